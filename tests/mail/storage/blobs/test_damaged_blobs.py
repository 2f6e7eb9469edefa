"""Damaged objects: new deliveries store their bytes again, and a repair uses other copies."""

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
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import FolderStore, new_object_name, open_store
from mail.storage.blobs.tier_move import copy_blobs_to_tier, update_rows_of_moved_blobs
from mail.storage.blobs.tiered_store import TieredStore
from mail.storage.message_content import read_all
from mail.storage.message_open import open_messages_and_log_damage
from models.domains.tables import Domain
from models.files.blobs import Blob
from models.files.damage_marks import wait_for_damage_marks
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.files import stored_files
from resolvers.files.uploads import ReceivedFile
from tests.conftest import GraphQLClient, client_context
from tests.support.accounts.account_rows import (
    StoredAccount,
    make_domain,
    make_stored_account,
    message_with_subject,
)
from tests.support.case_loop import each_case
from tests.support.stores.blob_damage import BLOB_DAMAGES, BlobDamage, damage_blob

ATTACHMENT_SIZE = 9000
LARGE_SIZE = 1_100_000  # bytes of an attachment that is buffered in a file


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@dataclass(frozen=True)
class AccountsOfTwoTenants:
    """Two users of one domain and one user of another, and therefore of two tenants."""

    environment: Environment
    domain: Domain
    ada: StoredAccount
    bob: StoredAccount
    dan: StoredAccount

    async def load_object_blobs(self) -> list[Any]:
        """Read all blobs with an object, oldest first."""
        query = (
            select(*select_columns(Blob)).where(col(Blob.name).is_not(None)).order_by(col(Blob.id))
        )
        return list(await self.environment.database.read(query))

    async def names_of_object_blobs(self) -> set[str]:
        """Return all blobs with an object, as the consistency check names them."""
        rows = await self.load_object_blobs()
        assert len(rows) == len(RAW_MESSAGES)
        return {f"blobs/{row.id}" for row in rows}

    async def find_damaged_objects(self) -> set[str]:
        """Run the consistency check and return the blobs with findings that it can't repair."""
        report = await check_consistency(self.environment)
        names = {finding.object for finding in report.unrepaired_findings}
        return {name for name in names if name.startswith("blobs/")}

    async def deliver_all_to_ada(self) -> dict[str, int]:
        """Deliver each of RAW_MESSAGES to ada, and return the message IDs by their names."""
        return {
            name: (await self.ada.deliver(raw)).message_id for name, raw in RAW_MESSAGES.items()
        }

    async def damage_objects(self, damage: BlobDamage) -> None:
        """Damage all objects that rows name."""
        for row in await self.load_object_blobs():
            await damage_blob(self.environment.object_store, row.name, damage)

    async def read_raw_message(self, message_id: int) -> bytes:
        """Read the raw bytes of a message."""
        query = select(*select_columns(Message)).where(col(Message.id) == message_id)
        (message,) = await open_messages_and_log_damage(
            self.environment, await self.environment.database.read(query)
        )
        return await read_all(message.stream_raw())


async def create_accounts(environment: Environment) -> AccountsOfTwoTenants:
    domain = await make_domain(environment)
    other_domain = await make_domain(environment, "example.net")
    ada, bob = [await make_stored_account(environment, domain, name) for name in ("ada", "bob")]
    return AccountsOfTwoTenants(
        environment, domain, ada, bob, await make_stored_account(environment, other_domain, "dan")
    )


@pytest.fixture(params=["folder", "s3"])
async def accounts(
    request: pytest.FixtureRequest,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AccountsOfTwoTenants:
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_server")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        prefix = f"{tmp_path.name}-{os.urandom(4).hex()}"
        store = open_store(f"s3://bucket/{prefix}?endpoint={endpoint}&region=eu-west-1")
        environment = replace(environment, object_store=store)
    return await create_accounts(environment)


def message_with_large_layout() -> bytes:
    """Return a message with a layout that is too large for its row."""
    rng = random.Random(7)  # noqa: S311 - reproducible
    lines = (rng.randbytes(36).hex() for _ in range(10_000))
    return b"Subject: Long\r\n\r\n" + "\r\n".join(lines).encode()


RAW_MESSAGES = {
    "piece": message_with_subject("file", attachment_size=ATTACHMENT_SIZE),
    "file": message_with_subject("film", attachment_size=LARGE_SIZE),
    "root": message_with_large_layout(),
}


async def check_delivered_again(
    accounts: AccountsOfTwoTenants, first_ids: dict[str, int], username: str
) -> None:
    """Deliver the messages to a new user, and check that all copies and objects are intact."""
    other = await make_stored_account(accounts.environment, accounts.domain, username)
    second_ids = {name: (await other.deliver(RAW_MESSAGES[name])).message_id for name in first_ids}
    for case in each_case(RAW_MESSAGES):
        with case as name:
            assert await accounts.read_raw_message(second_ids[name]) == RAW_MESSAGES[name]
            assert await accounts.read_raw_message(first_ids[name]) == RAW_MESSAGES[name]
    assert not (await check_consistency(accounts.environment)).unrepaired_findings


async def test_new_delivery_stores_damaged_objects_again(accounts: AccountsOfTwoTenants) -> None:
    first_ids = await accounts.deliver_all_to_ada()
    for case in each_case(BLOB_DAMAGES):
        with case as damage:
            await accounts.damage_objects(BLOB_DAMAGES[damage])
            assert await accounts.find_damaged_objects() == await accounts.names_of_object_blobs()
            await check_delivered_again(accounts, first_ids, damage)


async def test_new_delivery_stores_objects_again_that_were_found_with_flipped_bit(
    accounts: AccountsOfTwoTenants,
) -> None:
    first_ids = await accounts.deliver_all_to_ada()
    for case in each_case(["read", "check"]):
        with case as found_by:
            await accounts.damage_objects(flip_last_bit)
            if found_by == "read":
                await check_reads_find_damage(accounts, first_ids)
            else:
                names = await accounts.names_of_object_blobs()
                assert await accounts.find_damaged_objects() == names
            await check_delivered_again(accounts, first_ids, found_by)
            await wait_for_damage_marks(accounts.environment.object_store)
            assert {row.damaged_at for row in await accounts.load_object_blobs()} == {None}


async def check_reads_find_damage(
    accounts: AccountsOfTwoTenants, message_ids: dict[str, int]
) -> None:
    for case in each_case(message_ids):
        with case as name, pytest.raises(CorruptBlob):
            await accounts.read_raw_message(message_ids[name])


async def test_read_marks_damaged_objects_for_other_processes(
    accounts: AccountsOfTwoTenants,
) -> None:
    message_ids = await accounts.deliver_all_to_ada()
    await accounts.damage_objects(flip_last_bit)
    for _ in range(2):
        await check_reads_find_damage(accounts, message_ids)
    await wait_for_damage_marks(accounts.environment.object_store)
    rows = await accounts.load_object_blobs()
    assert len(rows) == len(RAW_MESSAGES)
    assert all(row.damaged_at for row in rows)


async def test_new_delivery_stores_damaged_row_again(accounts: AccountsOfTwoTenants) -> None:
    raw = message_with_subject("small", attachment_size=2000)
    first = await accounts.ada.deliver(raw)
    rows = await accounts.environment.database.read(select(*select_columns(Blob)))
    part = max(rows, key=lambda row: row.size)
    assert part.name is None
    statement = update(Blob).where(col(Blob.id) == part.id).values(data=flip_last_bit(part.data))
    async with accounts.environment.write_session() as session:
        await (await session.connection()).execute(statement)
    with pytest.raises(CorruptBlob):
        await accounts.read_raw_message(first.message_id)
    await wait_for_damage_marks(accounts.environment.object_store)
    await accounts.bob.deliver(raw)
    assert await accounts.read_raw_message(first.message_id) == raw
    assert not (await check_consistency(accounts.environment)).unrepaired_findings


async def test_intact_object_is_not_stored_again(accounts: AccountsOfTwoTenants) -> None:
    await accounts.ada.deliver(RAW_MESSAGES["piece"])
    (row_before,) = await accounts.load_object_blobs()
    await accounts.bob.deliver(RAW_MESSAGES["piece"])
    (row_after,) = await accounts.load_object_blobs()
    assert row_after.name == row_before.name
    assert (
        len([stored_object async for stored_object in accounts.environment.object_store.list()])
        == 1
    )


async def test_concurrent_deliveries_store_damaged_object_again(
    accounts: AccountsOfTwoTenants,
) -> None:
    await accounts.ada.deliver(RAW_MESSAGES["piece"])
    await accounts.damage_objects(BLOB_DAMAGES["deleted"])
    homes = [accounts.ada, accounts.bob] * 4
    raws = [RAW_MESSAGES["piece"].replace(b"Subject: file", b"Subject: %d" % n) for n in range(8)]
    stored_messages = await asyncio.gather(
        *(home.deliver(raw_message) for home, raw_message in zip(homes, raws, strict=True))
    )
    for stored_message, raw in zip(stored_messages, raws, strict=True):
        assert await accounts.read_raw_message(stored_message.message_id) == raw
    assert not (await check_consistency(accounts.environment)).unrepaired_findings


async def test_repair_restores_object_from_other_tenant(accounts: AccountsOfTwoTenants) -> None:
    first = await accounts.ada.deliver(RAW_MESSAGES["piece"])
    (row,) = await accounts.load_object_blobs()
    await damage_blob(accounts.environment.object_store, row.name, flip_last_bit)
    await accounts.dan.deliver(RAW_MESSAGES["piece"])
    report = await check_consistency(accounts.environment, repair=True)
    assert [(finding.rule, finding.repaired) for finding in report.findings] == [("digest", True)]
    assert await accounts.read_raw_message(first.message_id) == RAW_MESSAGES["piece"]
    assert not (await check_consistency(accounts.environment)).unrepaired_findings


async def test_repair_restores_object_from_unreferenced_copy(
    accounts: AccountsOfTwoTenants,
) -> None:
    first = await accounts.ada.deliver(RAW_MESSAGES["piece"])
    for case in each_case([*BLOB_DAMAGES.values(), flip_last_bit]):
        with case as damage:
            await check_repair_from_unreferenced_copy(accounts, first.message_id, damage)


async def check_repair_from_unreferenced_copy(
    accounts: AccountsOfTwoTenants, message_id: int, damage: BlobDamage
) -> None:
    """Damage the only object, and restore it from another object with the same bytes."""
    (row,) = await accounts.load_object_blobs()
    content = await accounts.environment.object_store.get(row.name)
    await accounts.environment.object_store.put(
        new_object_name(row.digest, accounts.environment.new_id()), b"not these bytes"
    )
    await accounts.environment.object_store.put(
        new_object_name(row.digest, accounts.environment.new_id()), content
    )
    await damage_blob(accounts.environment.object_store, row.name, damage)
    assert (await check_consistency(accounts.environment, repair=True)).findings
    assert await accounts.read_raw_message(message_id) == RAW_MESSAGES["piece"]
    assert not (await check_consistency(accounts.environment)).unrepaired_findings


async def test_new_delivery_replaces_object_that_repair_marked(
    accounts: AccountsOfTwoTenants,
) -> None:
    first = await accounts.ada.deliver(RAW_MESSAGES["piece"])
    await accounts.damage_objects(flip_last_bit)
    assert (await check_consistency(accounts.environment, repair=True)).unrepaired_findings
    (row,) = await accounts.load_object_blobs()
    assert row.damaged_at
    await accounts.bob.deliver(RAW_MESSAGES["piece"])
    (row,) = await accounts.load_object_blobs()
    assert row.damaged_at is None
    assert await accounts.read_raw_message(first.message_id) == RAW_MESSAGES["piece"]
    assert not (await check_consistency(accounts.environment)).unrepaired_findings


async def test_repair_removes_mark_of_intact_object(accounts: AccountsOfTwoTenants) -> None:
    await accounts.ada.deliver(RAW_MESSAGES["piece"])
    (row,) = await accounts.load_object_blobs()
    async with accounts.environment.write_session() as session:
        statement = update(Blob).values(damaged_at=accounts.environment.now())
        await (await session.connection()).execute(statement)
    assert not (await check_consistency(accounts.environment, repair=True)).unrepaired_findings
    (row,) = await accounts.load_object_blobs()
    assert row.damaged_at is None


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize(
    "raw", [*RAW_MESSAGES.values(), message_with_subject("small", attachment_size=2000)]
)
async def test_new_delivery_replaces_damaged_object_of_cold_store(
    environment: Environment, tmp_path: Path, damage: str, raw: bytes
) -> None:
    cold = FolderStore(tmp_path / "cold")
    accounts = await create_accounts(
        replace(environment, object_store=TieredStore(environment.object_store, cold))
    )
    first = await accounts.ada.deliver(raw)
    moved = await copy_blobs_to_tier(accounts.environment, [first.message_id], cold=True)
    await accounts.environment.run_transaction(
        lambda transaction: update_rows_of_moved_blobs(transaction, moved)
    )
    await accounts.damage_objects(BLOB_DAMAGES[damage])
    second = await accounts.bob.deliver(raw)
    assert (
        await accounts.read_raw_message(first.message_id)
        == await accounts.read_raw_message(second.message_id)
        == raw
    )
    assert not (await check_consistency(accounts.environment)).unrepaired_findings
    await cold.close()


async def test_repair_keeps_storage_tier(environment: Environment, tmp_path: Path) -> None:
    cold = FolderStore(tmp_path / "cold")
    accounts = await create_accounts(
        replace(environment, object_store=TieredStore(environment.object_store, cold))
    )
    first = await accounts.ada.deliver(RAW_MESSAGES["piece"])
    await accounts.dan.deliver(RAW_MESSAGES["piece"])
    moved = await copy_blobs_to_tier(accounts.environment, [first.message_id], cold=True)
    await accounts.environment.run_transaction(
        lambda transaction: update_rows_of_moved_blobs(transaction, moved)
    )
    rows_before = await accounts.load_object_blobs()
    names = {row.name for row in rows_before}
    cold_name = max(
        (row for row in rows_before if row.name.endswith(".cold")), key=lambda row: row.size
    ).name
    await damage_blob(accounts.environment.object_store, cold_name, flip_last_bit)
    assert (await check_consistency(accounts.environment, repair=True)).findings
    assert await accounts.read_raw_message(first.message_id) == RAW_MESSAGES["piece"]
    (new_name,) = {row.name for row in await accounts.load_object_blobs()} - names
    assert new_name.endswith(".cold")
    await cold.close()


@pytest.mark.parametrize("size", [300_000, LARGE_SIZE])
async def test_new_file_replaces_damaged_object(
    ada: GraphQLClient, tmp_path: Path, size: int
) -> None:
    environment, ctx, content = ada.environment, client_context(ada), os.urandom(size)
    path = tmp_path / "content"
    path.write_bytes(content)
    source = path if size == LARGE_SIZE else content
    received = ReceivedFile(source, size, content_digest(content), "text/plain", "a.txt")
    for _ in range(2):
        key = await stored_files.store_received_file(ctx, received)
        (row,) = await environment.database.read(select(*select_columns(Blob)))
        assert len(await environment.object_store.get(row.name)) == row.stored_size
        assert not (await check_consistency(environment)).unrepaired_findings
        await damage_blob(environment.object_store, row.name, BLOB_DAMAGES["truncated"])
    assert key


async def test_known_object_costs_one_statement_and_no_write(
    accounts: AccountsOfTwoTenants, statements: list[str]
) -> None:
    await accounts.ada.deliver(RAW_MESSAGES["piece"])
    message = await received_messages.parse_storable_message(RAW_MESSAGES["piece"])
    del statements[:]
    blobs = await received_messages.store_blobs_once_per_tenant(
        accounts.environment, accounts.ada.domain_id, message
    )
    assert len(statements) == 1
    assert len(blobs.known_digests) == 1
    assert not blobs.damaged_objects
