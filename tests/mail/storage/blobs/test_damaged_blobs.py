"""Damaged objects: new mail stores their bytes again, and a repair finds other copies."""

import asyncio
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.consistency import check_consistency
from mail.storage import received_messages
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.object_stores import FolderStore, object_name, open_store
from mail.storage.blobs.tier_move import copy_to_tier, name_moved_blobs
from mail.storage.blobs.tiered_store import TieredStore
from mail.storage.message_content import open_messages, read_all
from models.files.blobs import Blob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.files import stored_files
from resolvers.files.uploads import ReceivedFile
from tests.conftest import Client, context
from tests.support.accounts.account_rows import Home, domain_of, home_of, letter
from tests.support.stores.blob_damage import BLOB_DAMAGES, BlobDamage, damage_blob

ATTACHED = 9000
LARGE = 1_500_000  # bytes of an attachment that is kept in a file while it is stored


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@dataclass(frozen=True)
class Town:
    """Two accounts of one domain and one of another, so of two tenants."""

    world: Environment
    ada: Home
    bob: Home
    dan: Home

    async def objects(self) -> list[Any]:
        """All blobs with an object, oldest first."""
        asked = (
            select(*select_columns(Blob)).where(col(Blob.name).is_not(None)).order_by(col(Blob.id))
        )
        return list(await self.world.database.read(asked))

    async def damage(self, damage: BlobDamage) -> None:
        """Damage all objects that rows name, in the object store."""
        for row in await self.objects():
            await damage_blob(self.world.object_store, row.name, damage)

    async def text(self, message_id: int) -> bytes:
        """The message as it is downloaded."""
        asked = select(*select_columns(Message)).where(col(Message.id) == message_id)
        (found,) = await open_messages(self.world, await self.world.database.read(asked))
        return await read_all(found.stream_raw())


async def town_of(world: Environment) -> Town:
    here, there = await domain_of(world), await domain_of(world, "example.net")
    ada, bob = [await home_of(world, here, name) for name in ("ada", "bob")]
    return Town(world, ada, bob, await home_of(world, there, "dan"))


@pytest.fixture(params=["folder", "s3"])
async def town(
    request: pytest.FixtureRequest,
    world: Environment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Town:
    if request.param == "s3":
        place = request.getfixturevalue("s3_server")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        prefix = f"{tmp_path.name}-{os.urandom(4).hex()}"
        store = open_store(f"s3://bucket/{prefix}?endpoint={place}&region=eu-west-1")
        world = replace(world, object_store=store)
    return await town_of(world)


def large_root() -> bytes:
    """A message whose skeleton is too large for its row."""
    dice = random.Random(7)  # noqa: S311 - any bytes will do
    lines = (dice.randbytes(36).hex() for _ in range(10_000))
    return b"Subject: Long\r\n\r\n" + "\r\n".join(lines).encode()


RAWS = {
    "piece": letter("file", attached=ATTACHED),
    "file": letter("film", attached=LARGE),
    "root": large_root(),
}


@pytest.mark.parametrize("damage", BLOB_DAMAGES)
@pytest.mark.parametrize("raw", RAWS)
async def test_new_mail_stores_damaged_objects_again(town: Town, damage: str, raw: str) -> None:
    first = await town.ada.receive(RAWS[raw])
    await town.damage(BLOB_DAMAGES[damage])
    assert (await check_consistency(town.world)).unrepaired_findings
    second = await town.bob.receive(RAWS[raw])
    assert await town.text(second.message_id) == RAWS[raw]
    assert await town.text(first.message_id) == RAWS[raw]
    assert not (await check_consistency(town.world)).unrepaired_findings


async def test_intact_objects_are_not_stored_again(town: Town) -> None:
    await town.ada.receive(RAWS["piece"])
    (before,) = await town.objects()
    await town.bob.receive(RAWS["piece"])
    (after,) = await town.objects()
    assert after.name == before.name
    assert len([one async for one in town.world.object_store.list()]) == 1


async def test_many_deliveries_at_once_store_a_damaged_object_again(town: Town) -> None:
    await town.ada.receive(RAWS["piece"])
    await town.damage(BLOB_DAMAGES["deleted"])
    homes = [town.ada, town.bob] * 4
    raws = [RAWS["piece"].replace(b"Subject: file", b"Subject: %d" % n) for n in range(8)]
    placed = await asyncio.gather(*(h.receive(r) for h, r in zip(homes, raws, strict=True)))
    for one, raw in zip(placed, raws, strict=True):
        assert await town.text(one.message_id) == raw
    assert not (await check_consistency(town.world)).unrepaired_findings


async def test_a_repair_restores_an_object_from_another_tenant(town: Town) -> None:
    first = await town.ada.receive(RAWS["piece"])
    (row,) = await town.objects()
    await damage_blob(town.world.object_store, row.name, _flip)
    await town.dan.receive(RAWS["piece"])
    report = await check_consistency(town.world, repair=True)
    assert [(one.rule, one.repaired) for one in report.findings] == [("digest", True)]
    assert await town.text(first.message_id) == RAWS["piece"]
    assert not (await check_consistency(town.world)).unrepaired_findings


@pytest.mark.parametrize("damage", [*BLOB_DAMAGES, "same size"])
async def test_a_repair_restores_an_object_from_one_that_no_row_names(
    town: Town, damage: str
) -> None:
    first = await town.ada.receive(RAWS["piece"])
    (row,) = await town.objects()
    content = await town.world.object_store.get(row.name)
    await town.world.object_store.put(
        object_name(row.digest, town.world.new_id()), b"not these bytes"
    )
    await town.world.object_store.put(object_name(row.digest, town.world.new_id()), content)
    await damage_blob(
        town.world.object_store, row.name, {**BLOB_DAMAGES, "same size": _flip}[damage]
    )
    assert (await check_consistency(town.world, repair=True)).findings
    assert await town.text(first.message_id) == RAWS["piece"]
    assert not (await check_consistency(town.world)).unrepaired_findings


async def test_after_a_repair_new_mail_restores_corruption_of_the_same_size(town: Town) -> None:
    first = await town.ada.receive(RAWS["piece"])
    await town.damage(_flip)
    assert (await check_consistency(town.world, repair=True)).unrepaired_findings
    (row,) = await town.objects()
    assert row.damaged_at
    await town.bob.receive(RAWS["piece"])
    (row,) = await town.objects()
    assert row.damaged_at is None
    assert await town.text(first.message_id) == RAWS["piece"]
    assert not (await check_consistency(town.world)).unrepaired_findings


async def test_the_mark_of_an_intact_object_is_removed(town: Town) -> None:
    await town.ada.receive(RAWS["piece"])
    (row,) = await town.objects()
    async with town.world.write_session() as session:
        marked = update(Blob).values(damaged_at=town.world.now())
        await (await session.connection()).execute(marked)
    assert not (await check_consistency(town.world, repair=True)).unrepaired_findings
    (row,) = await town.objects()
    assert row.damaged_at is None


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("raw", [*RAWS.values(), letter("small", attached=2000)])
async def test_new_mail_replaces_damaged_objects_of_the_cold_store(
    world: Environment, tmp_path: Path, damage: str, raw: bytes
) -> None:
    cold = FolderStore(tmp_path / "cold")
    town = await town_of(replace(world, object_store=TieredStore(world.object_store, cold)))
    first = await town.ada.receive(raw)
    moved = await copy_to_tier(town.world, [first.message_id], cold=True)
    await town.world.run_transaction(lambda turn: name_moved_blobs(turn, moved))
    await town.damage(BLOB_DAMAGES[damage])
    second = await town.bob.receive(raw)
    assert await town.text(first.message_id) == await town.text(second.message_id) == raw
    assert not (await check_consistency(town.world)).unrepaired_findings
    await cold.close()


async def test_a_repair_keeps_the_tier(world: Environment, tmp_path: Path) -> None:
    cold = FolderStore(tmp_path / "cold")
    town = await town_of(replace(world, object_store=TieredStore(world.object_store, cold)))
    first = await town.ada.receive(RAWS["piece"])
    await town.dan.receive(RAWS["piece"])
    moved = await copy_to_tier(town.world, [first.message_id], cold=True)
    await town.world.run_transaction(lambda turn: name_moved_blobs(turn, moved))
    before = await town.objects()
    names = {row.name for row in before}
    far = max((row for row in before if row.name.endswith(".cold")), key=lambda row: row.size).name
    await damage_blob(town.world.object_store, far, _flip)
    assert (await check_consistency(town.world, repair=True)).findings
    assert await town.text(first.message_id) == RAWS["piece"]
    (new,) = {row.name for row in await town.objects()} - names
    assert new.endswith(".cold")
    await cold.close()


@pytest.mark.parametrize("size", [300_000, LARGE])
async def test_a_new_file_replaces_a_damaged_object(ada: Client, tmp_path: Path, size: int) -> None:
    world, ctx, content = ada.world, context(ada), os.urandom(size)
    path = tmp_path / "content"
    path.write_bytes(content)
    source = path if size == LARGE else content
    received = ReceivedFile(source, size, content_digest(content), "text/plain", "a.txt")
    for _ in range(2):
        key = await stored_files.store_received_file(ctx, received)
        (row,) = await world.database.read(select(*select_columns(Blob)))
        assert len(await world.object_store.get(row.name)) == row.stored_size
        assert not (await check_consistency(world)).unrepaired_findings
        await damage_blob(world.object_store, row.name, BLOB_DAMAGES["truncated"])
    assert key


async def test_a_known_object_costs_one_statement_and_no_write(
    town: Town, statements: list[str]
) -> None:
    await town.ada.receive(RAWS["piece"])
    found = await received_messages.read_message(RAWS["piece"])
    del statements[:]
    kept = await received_messages.store_blobs(town.world, town.ada.domain_id, found)
    assert len(statements) == 1
    assert len(kept.known_digests) == 1
    assert not kept.damaged_objects
