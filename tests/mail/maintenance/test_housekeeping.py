import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import SQLModel, col

from mail.consistency import check_consistency
from mail.maintenance import housekeeping, row_batches
from mail.maintenance.housekeeping import HousekeepingResult, run_round
from mail.storage.blobs.object_stores import FolderStore
from models.admin.tasks import Task, UndoRecord
from models.auth.credentials import THROTTLE_RESET, AccessToken, Throttle
from models.events.journal import Change, ChangeKind, JournalEntry, Stream, record_entry
from models.files.blobs import Blob, Upload
from models.mailboxes.tables import Mailbox
from models.messages.tables import DeliveryReceipt, Message, Thread, ThreadKey
from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from models.store.columns import core_table, select_columns
from models.users.tables import User
from tests.conftest import Clock
from tests.support.accounts.account_rows import Home, domain_of, home_of, letter

DAY = timedelta(days=1)


@pytest.fixture
async def ada(world: Environment) -> Home:
    return await home_of(world, await domain_of(world), "ada")


async def count_rows(world: Environment, table: type[SQLModel]) -> int:
    (row,) = await world.database.read(select(func.count()).select_from(table))
    return int(row[0])


async def load_row(world: Environment, table: type[SQLModel], row_id: int) -> Any:
    statement = select(*select_columns(table)).where(core_table(table).c.id == row_id)
    return (await world.database.read(statement))[0]


async def add_rows(world: Environment, *rows: SQLModel) -> None:
    async with world.write_session() as session:
        session.add_all(rows)


async def assert_consistent(world: Environment) -> None:
    assert (await check_consistency(world)).findings == []


async def test_expired_message_is_moved_to_the_archive(
    world: Environment, clock: Clock, ada: Home
) -> None:
    kept = await ada.receive(letter("stays"))
    await ada.keep(3600)
    expiring = await ada.receive(letter("goes", answers="stays"))
    assert (await run_round(world)).expired == 0
    clock.tick(hours=1)
    assert (await run_round(world)).expired == 1

    message = await load_row(world, Message, expiring.message_id)
    assert (message.mailbox_id, message.archived_from) == (None, "INBOX")
    assert message.archived_at == clock()
    assert message.purge_at == clock() + world.options.archive_for
    assert (await load_row(world, Message, kept.message_id)).mailbox_id == ada.inbox
    mailbox, user = (
        await load_row(world, Mailbox, ada.inbox),
        await load_row(world, User, ada.user_id),
    )
    assert (mailbox.total, mailbox.unseen, mailbox.modseq) == (1, 1, message.modseq)
    assert (user.message_count, user.used) == (1, mailbox.size)
    await assert_consistent(world)


async def test_follower_is_woken_and_gets_the_archived_messages(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await ada.keep(60)
    deliveries = [await ada.receive(letter(name)) for name in ("one", "two")]
    clock.tick(minutes=2)
    with world.wakeups.follow([ada.user_id]) as wakeup:
        await run_round(world)
        assert wakeup.is_set()
    statement = select(*select_columns(Change)).order_by(col(Change.last).desc()).limit(1)
    (change,) = await world.database.read(statement.where(col(Change.stream_id) == ada.user_id))
    assert change.kind is ChangeKind.MESSAGE_ARCHIVED
    assert change.ids == [delivery.message_id for delivery in deliveries]
    assert change.facts["mailbox"] == [ada.inbox, ada.inbox]
    assert change.facts["uid"] == [1, 2]


async def test_expired_draft_is_kept_for_the_undo_window(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await ada.keep(60)
    delivery = await ada.receive(letter("draft"))
    async with world.write_session(ada.user_id) as session:
        (await session.get_one(Message, delivery.message_id)).draft = True
    clock.tick(minutes=2)
    await run_round(world)
    message = await load_row(world, Message, delivery.message_id)
    assert message.purge_at == clock() + world.options.undo_window


async def test_purge_deletes_messages_threads_and_blobs(
    world: Environment, clock: Clock, ada: Home
) -> None:
    kept = await ada.receive(letter("stays"))
    await ada.keep(60)
    await ada.receive(letter("in a conversation that stays", answers="stays"))
    await ada.receive(letter("alone", attached=9000))
    clock.tick(minutes=1)
    assert (await run_round(world)).expired == 2
    clock.tick(days=24)
    assert (await run_round(world)).purged == 0
    await assert_consistent(world)
    clock.tick(days=1)

    result = await run_round(world)
    assert (result.purged, result.threads, result.blobs, result.objects) == (2, 1, 3, 1)
    assert (
        await count_rows(world, Message)
        == await count_rows(world, Thread)
        == await count_rows(world, Blob)
        == 1
    )
    thread_keys = await world.database.read(select(col(ThreadKey.thread_id)).distinct())
    thread = (await load_row(world, Message, kept.message_id)).thread_id
    assert [row.thread_id for row in thread_keys] == [thread]
    assert [stored.name async for stored in world.object_store.list()] == []
    await assert_consistent(world)


async def test_large_round_is_split_into_batches(
    world: Environment, clock: Clock, ada: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_SIZE", 3)
    await ada.keep(60)
    for number in range(7):
        await ada.receive(letter(f"letter {number}"))
    clock.tick(minutes=2)
    assert (await run_round(world)).expired == 7
    await assert_consistent(world)
    clock.tick(days=40)
    result = await run_round(world)
    assert (result.purged, result.threads, result.receipts, result.changes) == (7, 7, 7, 10)
    await assert_consistent(world)


async def test_restored_message_is_not_purged(world: Environment, clock: Clock, ada: Home) -> None:
    delivery = await ada.receive(letter("back"))
    async with world.write_session(ada.user_id) as session:
        (await session.get_one(Message, delivery.message_id)).purge_at = world.now()
    clock.tick(days=1)
    assert (await run_round(world)).purged == 0
    assert await count_rows(world, Message) == 1


async def test_empty_thread_is_deleted_by_the_daily_sweep(world: Environment, ada: Home) -> None:
    await ada.receive(letter("stays"))
    await add_rows(
        world, Thread(id=world.new_id(), user_id=ada.user_id, subject="", created_at=world.now())
    )
    assert (await run_round(world, sweep=False)).threads == 0
    assert (await run_round(world)).threads == 1
    await assert_consistent(world)


async def test_only_expired_rows_are_deleted(world: Environment, clock: Clock, ada: Home) -> None:
    now, past = clock(), clock() - timedelta(seconds=1)
    user_id, options = ada.user_id, world.options
    for number, (expires_at, age_margin) in enumerate(
        [(past, timedelta()), (now + DAY, timedelta(minutes=1))]
    ):
        receipt = now - options.receipts_for + age_margin
        replay = now - options.replays_for + age_margin
        finished = now - timedelta(days=7) + age_margin
        await add_rows(
            world,
            DeliveryReceipt(digest=f"r{number}", message_id=1, at=receipt),
            IdempotentPayload(principal="p", key=f"k{number}", asked="", at=replay),
            UndoRecord(
                id=world.new_id(), user_id=user_id, digest=f"u{number}", expires_at=expires_at
            ),
            AccessToken(
                id=world.new_id(),
                user_id=user_id,
                digest=f"t{number}",
                auth_version=1,
                created_at=past,
                last_used_at=past,
                expires_at=expires_at,
            ),
            Throttle(key=f"x{number}", until=expires_at - THROTTLE_RESET),
            Task(id=world.new_id(), kind="some", created_at=past, finished_at=finished),
        )
    await add_rows(world, Task(id=world.new_id(), kind="some", created_at=past))  # still running
    expected = HousekeepingResult(receipts=1, replays=1, undos=1, tokens=1, throttles=1, tasks=1)
    assert await run_round(world) == expected
    tables: list[tuple[type[SQLModel], int]] = [
        (DeliveryReceipt, 1),
        (IdempotentPayload, 1),
        (UndoRecord, 1),
        (AccessToken, 1),
        (Throttle, 1),
        (Task, 2),
    ]
    for table, remaining in tables:
        assert await count_rows(world, table) == remaining
    assert await run_round(world) == HousekeepingResult()


async def test_unused_upload_is_deleted_with_its_object(
    world: Environment, clock: Clock, ada: Home
) -> None:
    for name, hours in (("ab/old.1", 1), ("ab/young.1", 3)):
        await world.object_store.put(name, b"abc")
        await add_rows(world, make_upload(ada, name, clock() + timedelta(hours=hours)))
    clock.tick(hours=2)
    assert (await run_round(world, sweep=False)).uploads == 1
    assert [stored.name async for stored in world.object_store.list()] == ["ab/young.1"]
    await assert_consistent(world)


async def test_object_of_a_blob_stays_when_its_upload_is_deleted(
    world: Environment, clock: Clock, ada: Home
) -> None:
    delivery = await ada.receive(letter("file", attached=9000))
    rows = await world.database.read(select(col(Blob.name)).where(col(Blob.name).is_not(None)))
    await add_rows(world, make_upload(ada, rows[0].name, clock()))
    assert (await run_round(world)).uploads == 1
    await assert_consistent(world)
    assert (await load_row(world, Message, delivery.message_id)).mailbox_id == ada.inbox


def make_upload(account: Home, name: str, expires_at: datetime) -> Upload:
    return Upload(
        id=account.world.new_id(),
        user_id=account.user_id,
        size=3,
        digest="",
        content_type="text/plain",
        blob_name=name,
        created_at=expires_at,
        expires_at=expires_at,
    )


async def record_events(account: Home, event_count: int) -> None:
    async with account.world.write_session(account.user_id) as session:
        entry = JournalEntry(ChangeKind.USER_CHANGED, [account.user_id] * event_count)
        await record_entry(session, account.user_id, entry, at=account.world.now())


async def test_old_journal_events_are_deleted(world: Environment, clock: Clock, ada: Home) -> None:
    await record_events(ada, 3)
    await record_events(ada, 2)
    clock.tick(days=20)
    await record_events(ada, 4)
    clock.tick(days=11)
    assert (await run_round(world)).changes == 2
    stream = await load_row(world, Stream, ada.user_id)
    assert (stream.gone, stream.last) == (5, 9)
    await assert_consistent(world)
    assert (await run_round(world)).changes == 0
    clock.tick(days=20)
    assert (await run_round(world)).changes == 1
    stream = await load_row(world, Stream, ada.user_id)
    assert (stream.gone, stream.last) == (9, 9)
    await assert_consistent(world)


async def test_journal_above_its_limit_is_shortened_by_whole_entries(
    world: Environment, ada: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_SIZE", 2)
    limited_environment = replace(world, options=replace(world.options, journal_events=5))
    for event_count in (3, 3, 3, 3, 3):
        await record_events(ada, event_count)
    # Deleting a fourth entry would keep too few events.
    assert (await run_round(limited_environment)).changes == 3
    stream = await load_row(world, Stream, ada.user_id)
    assert (stream.gone, stream.last) == (9, 15)
    await assert_consistent(world)


async def test_simultaneous_rounds_process_every_row_once(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await ada.keep(60)
    for number in range(5):
        await ada.receive(letter(f"letter {number}", attached=6000))
    clock.tick(days=1)
    first_results = await asyncio.gather(*(run_round(world) for _ in range(3)))
    assert sum(result.expired for result in first_results) == 5
    await assert_consistent(world)
    clock.tick(days=60)
    second_results = await asyncio.gather(*(run_round(world) for _ in range(3)))
    assert sum(result.purged for result in second_results) == 5
    assert sum(result.changes for result in second_results) == 6
    await assert_consistent(world)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.01)


async def test_rounds_repeat_until_stopped(
    world: Environment, ada: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(housekeeping, "ROUND_INTERVAL", 0.01)
    stop = asyncio.Event()
    with caplog.at_level(logging.INFO, "mail.maintenance.housekeeping"):
        housekeeping_task = asyncio.create_task(housekeeping.run_until_stopped(world, stop))
        await wait_until(lambda: len(caplog.records) > 2)
        stop.set()
        await asyncio.wait_for(housekeeping_task, 5)
    assert {record.getMessage() for record in caplog.records} == {"tidied"}
    assert vars(caplog.records[0])["purged"] == 0
    assert ada.user_id


async def test_failed_round_is_followed_by_another(
    world: Environment, ada: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(housekeeping, "ROUND_INTERVAL", 0.01)
    assert isinstance(world.object_store, FolderStore)
    shard = world.object_store.folder / "00"
    shard.touch()  # the sweep fails on a path that is not a folder
    stop = asyncio.Event()
    with caplog.at_level(logging.INFO, "mail.maintenance.housekeeping"):
        housekeeping_task = asyncio.create_task(housekeeping.run_until_stopped(world, stop))
        await wait_until(lambda: bool(caplog.records))
        shard.unlink()
        await wait_until(lambda: caplog.records[-1].getMessage() == "tidied")
        stop.set()
        await asyncio.wait_for(housekeeping_task, 5)
    assert caplog.records[0].getMessage() == "housekeeping failed"
    assert ada.user_id


async def test_stop_before_the_first_round_is_respected(world: Environment) -> None:
    stop = asyncio.Event()
    housekeeping_task = asyncio.create_task(housekeeping.run_until_stopped(world, stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(housekeeping_task, 5)


async def test_counters_are_correct_with_concurrent_deliveries(
    world: Environment, clock: Clock, ada: Home
) -> None:
    async def deliver(name: str) -> None:
        for number in range(15):
            await ada.receive(letter(f"{name} {number}"))

    await ada.keep(60)
    await deliver("before")
    clock.tick(minutes=2)
    async with world.write_session(ada.user_id) as session:
        await (await session.connection()).execute(
            update(Message).where(col(Message.uid) % 2 == 0).values(keywords=["x"])
        )
    rounds = (run_round(world) for _ in range(3))
    results, *_ = await asyncio.gather(asyncio.gather(*rounds), deliver("during"))
    assert sum(result.expired for result in results) == 15
    await assert_consistent(world)
    assert (await load_row(world, Mailbox, ada.inbox)).total == 15
