"""Damaged objects: new mail stores their bytes again, and a repair finds other copies."""

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.consistency import verify
from mail.storage import received_messages
from mail.storage.blobs.compression import digest_of
from mail.storage.blobs.object_stores import LocalStore, object_name, open_store
from mail.storage.blobs.tier_move import bring, name
from mail.storage.blobs.tiered_store import Tiers
from mail.storage.message_content import gathered, sources
from models.files.blobs import Blob
from models.messages.tables import Message
from models.runtime.environment import World
from models.store.columns import picked
from models.store.object_store import Store
from resolvers.files import stored_files
from resolvers.files.uploads import Received
from tests.conftest import Client, context
from tests.mail.storage.blobs.test_blob_store import s3
from tests.support.accounts.account_rows import Home, domain_of, home_of, letter

__all__ = ["s3"]

ATTACHED = 9000
LARGE = 1_500_000  # bytes of an attachment that is kept in a file while it is stored
Damage = Callable[[bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "deleted": lambda _: None,
    "emptied": lambda _: b"",
    "truncated": lambda data: data[:-1],
    "extended": lambda data: data + b"?",
    "other": lambda data: os.urandom(len(data) // 2),
}


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@dataclass(frozen=True)
class Town:
    """Two accounts of one domain and one of another, so of two tenants."""

    world: World
    ada: Home
    bob: Home
    dan: Home

    async def objects(self) -> list[Any]:
        """All blobs with an object, oldest first."""
        asked = select(*picked(Blob)).where(col(Blob.name).is_not(None)).order_by(col(Blob.id))
        return list(await self.world.database.read(asked))

    async def damage(self, damage: Damage) -> None:
        """Damage all objects that rows name, in the object store."""
        for row in await self.objects():
            await spoil(self.world.blobs, row.name, damage)

    async def text(self, message_id: int) -> bytes:
        """The message as it is downloaded."""
        asked = select(*picked(Message)).where(col(Message.id) == message_id)
        (found,) = await sources(self.world, await self.world.database.read(asked))
        return await gathered(found.whole())


async def spoil(store: Store, object_name: str, damage: Damage) -> None:
    damaged = damage(await store.get(object_name))
    await store.delete([object_name])
    if damaged is not None:
        await store.put(object_name, damaged)


async def town_of(world: World) -> Town:
    here, there = await domain_of(world), await domain_of(world, "example.net")
    ada, bob = [await home_of(world, here, name) for name in ("ada", "bob")]
    return Town(world, ada, bob, await home_of(world, there, "dan"))


@pytest.fixture(params=["folder", "s3"])
async def town(
    request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Town:
    if request.param == "s3":
        place = request.getfixturevalue("s3")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        prefix = f"{tmp_path.name}-{os.urandom(4).hex()}"
        store = open_store(f"s3://bucket/{prefix}?endpoint={place}&region=eu-west-1")
        world = replace(world, blobs=store)
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


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("raw", RAWS)
async def test_new_mail_stores_damaged_objects_again(town: Town, damage: str, raw: str) -> None:
    first = await town.ada.receive(RAWS[raw])
    await town.damage(DAMAGES[damage])
    assert (await verify(town.world)).left
    second = await town.bob.receive(RAWS[raw])
    assert await town.text(second.message_id) == RAWS[raw]
    assert await town.text(first.message_id) == RAWS[raw]
    assert not (await verify(town.world)).left


async def test_intact_objects_are_not_stored_again(town: Town) -> None:
    await town.ada.receive(RAWS["piece"])
    (before,) = await town.objects()
    await town.bob.receive(RAWS["piece"])
    (after,) = await town.objects()
    assert after.name == before.name
    assert len([one async for one in town.world.blobs.list()]) == 1


async def test_many_deliveries_at_once_store_a_damaged_object_again(town: Town) -> None:
    await town.ada.receive(RAWS["piece"])
    await town.damage(DAMAGES["deleted"])
    homes = [town.ada, town.bob] * 4
    raws = [RAWS["piece"].replace(b"Subject: file", b"Subject: %d" % n) for n in range(8)]
    placed = await asyncio.gather(*(h.receive(r) for h, r in zip(homes, raws, strict=True)))
    for one, raw in zip(placed, raws, strict=True):
        assert await town.text(one.message_id) == raw
    assert not (await verify(town.world)).left


async def test_a_repair_restores_an_object_from_another_tenant(town: Town) -> None:
    first = await town.ada.receive(RAWS["piece"])
    (row,) = await town.objects()
    await spoil(town.world.blobs, row.name, _flip)
    await town.dan.receive(RAWS["piece"])
    report = await verify(town.world, repair=True)
    assert [(one.rule, one.repaired) for one in report.findings] == [("digest", True)]
    assert await town.text(first.message_id) == RAWS["piece"]
    assert not (await verify(town.world)).left


@pytest.mark.parametrize("damage", [*DAMAGES, "same size"])
async def test_a_repair_restores_an_object_from_one_that_no_row_names(
    town: Town, damage: str
) -> None:
    first = await town.ada.receive(RAWS["piece"])
    (row,) = await town.objects()
    content = await town.world.blobs.get(row.name)
    await town.world.blobs.put(object_name(row.digest, town.world.key()), b"not these bytes")
    await town.world.blobs.put(object_name(row.digest, town.world.key()), content)
    await spoil(town.world.blobs, row.name, {**DAMAGES, "same size": _flip}[damage])
    assert (await verify(town.world, repair=True)).findings
    assert await town.text(first.message_id) == RAWS["piece"]
    assert not (await verify(town.world)).left


async def test_after_a_repair_new_mail_restores_corruption_of_the_same_size(town: Town) -> None:
    first = await town.ada.receive(RAWS["piece"])
    await town.damage(_flip)
    assert (await verify(town.world, repair=True)).left
    (row,) = await town.objects()
    assert row.damaged_at
    await town.bob.receive(RAWS["piece"])
    (row,) = await town.objects()
    assert row.damaged_at is None
    assert await town.text(first.message_id) == RAWS["piece"]
    assert not (await verify(town.world)).left


async def test_the_mark_of_an_intact_object_is_removed(town: Town) -> None:
    await town.ada.receive(RAWS["piece"])
    (row,) = await town.objects()
    async with town.world.write() as session:
        marked = update(Blob).values(damaged_at=town.world.now())
        await (await session.connection()).execute(marked)
    assert not (await verify(town.world, repair=True)).left
    (row,) = await town.objects()
    assert row.damaged_at is None


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("raw", [*RAWS.values(), letter("small", attached=2000)])
async def test_new_mail_replaces_damaged_objects_of_the_cold_store(
    world: World, tmp_path: Path, damage: str, raw: bytes
) -> None:
    cold = LocalStore(tmp_path / "cold")
    town = await town_of(replace(world, blobs=Tiers(world.blobs, cold)))
    first = await town.ada.receive(raw)
    moved = await bring(town.world, [first.message_id], cold=True)
    await town.world.apply(lambda turn: name(turn, moved))
    await town.damage(DAMAGES[damage])
    second = await town.bob.receive(raw)
    assert await town.text(first.message_id) == await town.text(second.message_id) == raw
    assert not (await verify(town.world)).left
    await cold.close()


async def test_a_repair_keeps_the_tier(world: World, tmp_path: Path) -> None:
    cold = LocalStore(tmp_path / "cold")
    town = await town_of(replace(world, blobs=Tiers(world.blobs, cold)))
    first = await town.ada.receive(RAWS["piece"])
    await town.dan.receive(RAWS["piece"])
    moved = await bring(town.world, [first.message_id], cold=True)
    await town.world.apply(lambda turn: name(turn, moved))
    before = await town.objects()
    names = {row.name for row in before}
    far = max((row for row in before if row.name.endswith(".cold")), key=lambda row: row.size).name
    await spoil(town.world.blobs, far, _flip)
    assert (await verify(town.world, repair=True)).findings
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
    received = Received(source, size, digest_of(content), "text/plain", "a.txt")
    for _ in range(2):
        key = await stored_files.create(ctx, received)
        (row,) = await world.database.read(select(*picked(Blob)))
        assert len(await world.blobs.get(row.name)) == row.stored_size
        assert not (await verify(world)).left
        await spoil(world.blobs, row.name, DAMAGES["truncated"])
    assert key


async def test_a_known_object_costs_one_statement_and_no_write(
    town: Town, statements: list[str]
) -> None:
    await town.ada.receive(RAWS["piece"])
    found = await received_messages.read(RAWS["piece"])
    del statements[:]
    kept = await received_messages.stored(town.world, town.ada.domain_id, found)
    assert len(statements) == 1
    assert len(kept.known) == 1
    assert not kept.damaged
