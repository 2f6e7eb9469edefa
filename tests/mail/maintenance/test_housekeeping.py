import asyncio
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import SQLModel, col

from mail.consistency import check_consistency
from mail.maintenance import housekeeping, row_batches
from mail.maintenance.housekeeping import HousekeepingResult, run_housekeeping_round
from mail.storage.blobs.object_stores import FolderStore
from models.admin.tasks import Task, TaskKind, UndoRecord
from models.auth.credentials import THROTTLE_RESET, AccessToken, Throttle
from models.events.event_types import EventType
from models.events.journal import Change, JournalEntry, Stream, append_journal_entry
from models.files.blobs import Blob, Upload
from models.mailboxes.tables import Mailbox
from models.messages.tables import DeliveryReceipt, Message, Thread, ThreadKey
from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from models.store.columns import core_table, select_columns
from models.users.tables import User
from tests.conftest import ManualClock
from tests.support.accounts.account_rows import (
    StoredAccount,
    make_domain,
    make_stored_account,
    message_with_subject,
)
from tests.support.time_limits import HANG_SECONDS

DAY = timedelta(days=1)


@pytest.fixture
async def ada(environment: Environment) -> StoredAccount:
    return await make_stored_account(environment, await make_domain(environment), "ada")


async def count_rows(environment: Environment, table: type[SQLModel]) -> int:
    (row,) = await environment.database.read(select(func.count()).select_from(table))
    return int(row[0])


async def load_row(environment: Environment, table: type[SQLModel], row_id: int) -> Any:
    statement = select(*select_columns(table)).where(core_table(table).c.id == row_id)
    return (await environment.database.read(statement))[0]


async def add_rows(environment: Environment, *rows: SQLModel) -> None:
    async with environment.write_session() as session:
        session.add_all(rows)


async def assert_consistent(environment: Environment) -> None:
    assert (await check_consistency(environment)).findings == []


async def test_expired_message_is_moved_to_the_archive(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    kept = await ada.deliver(message_with_subject("stays"))
    await ada.set_retention(3600)
    expiring = await ada.deliver(message_with_subject("goes", in_reply_to="stays"))
    assert (await run_housekeeping_round(environment)).expired == 0
    clock.tick(hours=1)
    assert (await run_housekeeping_round(environment)).expired == 1

    message = await load_row(environment, Message, expiring.message_id)
    assert (message.mailbox_id, message.deleted_from) == (None, "INBOX")
    assert message.deleted_at == clock()
    assert message.purge_at == clock() + environment.options.deleted_messages_retention
    assert (await load_row(environment, Message, kept.message_id)).mailbox_id == ada.inbox_id
    mailbox = await load_row(environment, Mailbox, ada.inbox_id)
    user = await load_row(environment, User, ada.user_id)
    assert (mailbox.message_count, mailbox.unseen_count, mailbox.modseq) == (1, 1, message.modseq)
    assert (user.message_count, user.used) == (1, mailbox.size)
    await assert_consistent(environment)


async def test_follower_is_woken_and_gets_the_deleted_messages(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await ada.set_retention(60)
    deliveries = [await ada.deliver(message_with_subject(name)) for name in ("one", "two")]
    clock.tick(minutes=2)
    with environment.wakeups.follow([ada.user_id]) as wakeup:
        await run_housekeeping_round(environment)
        assert wakeup.is_set()
    statement = select(*select_columns(Change)).order_by(col(Change.last).desc()).limit(1)
    (change,) = await environment.database.read(
        statement.where(col(Change.stream_id) == ada.user_id)
    )
    assert change.type is EventType.MESSAGE_DELETED
    assert change.ids == [delivery.message_id for delivery in deliveries]
    assert change.facts["mailbox"] == [ada.inbox_id, ada.inbox_id]
    assert change.facts["uid"] == [1, 2]


async def test_expired_draft_is_kept_for_the_undo_window(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await ada.set_retention(60)
    delivery = await ada.deliver(message_with_subject("draft"))
    async with environment.write_session(ada.user_id) as session:
        (await session.get_one(Message, delivery.message_id)).draft = True
    clock.tick(minutes=2)
    await run_housekeeping_round(environment)
    message = await load_row(environment, Message, delivery.message_id)
    assert message.purge_at == clock() + environment.options.undo_window


async def test_purge_deletes_messages_threads_and_blobs(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    kept = await ada.deliver(message_with_subject("stays"))
    await ada.set_retention(60)
    await ada.deliver(message_with_subject("in a conversation that stays", in_reply_to="stays"))
    await ada.deliver(message_with_subject("alone", attachment_size=9000))
    clock.tick(minutes=1)
    assert (await run_housekeeping_round(environment)).expired == 2
    clock.tick(days=24)
    assert (await run_housekeeping_round(environment)).purged == 0
    await assert_consistent(environment)
    clock.tick(days=1)

    result = await run_housekeeping_round(environment)
    assert (result.purged, result.threads, result.blobs, result.objects) == (2, 1, 3, 1)
    assert (
        await count_rows(environment, Message)
        == await count_rows(environment, Thread)
        == await count_rows(environment, Blob)
        == 1
    )
    thread_keys = await environment.database.read(select(col(ThreadKey.thread_id)).distinct())
    thread = (await load_row(environment, Message, kept.message_id)).thread_id
    assert [row.thread_id for row in thread_keys] == [thread]
    assert [stored.name async for stored in environment.object_store.list()] == []
    await assert_consistent(environment)


async def test_large_round_is_split_into_batches(
    environment: Environment,
    clock: ManualClock,
    ada: StoredAccount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_SIZE", 3)
    await ada.set_retention(60)
    for number in range(7):
        await ada.deliver(message_with_subject(f"letter {number}"))
    clock.tick(minutes=2)
    assert (await run_housekeeping_round(environment)).expired == 7
    await assert_consistent(environment)
    clock.tick(days=40)
    result = await run_housekeeping_round(environment)
    assert (result.purged, result.threads, result.receipts, result.changes) == (7, 7, 7, 10)
    await assert_consistent(environment)


async def test_restored_message_is_not_purged(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    delivery = await ada.deliver(message_with_subject("back"))
    async with environment.write_session(ada.user_id) as session:
        (await session.get_one(Message, delivery.message_id)).purge_at = environment.now()
    clock.tick(days=1)
    assert (await run_housekeeping_round(environment)).purged == 0
    assert await count_rows(environment, Message) == 1


async def test_empty_thread_is_deleted_by_the_daily_sweep(
    environment: Environment, ada: StoredAccount
) -> None:
    await ada.deliver(message_with_subject("stays"))
    await add_rows(
        environment,
        Thread(
            id=environment.new_id(), user_id=ada.user_id, subject="", created_at=environment.now()
        ),
    )
    assert (await run_housekeeping_round(environment, sweep=False)).threads == 0
    assert (await run_housekeeping_round(environment)).threads == 1
    await assert_consistent(environment)


async def test_only_expired_rows_are_deleted(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    now, past = clock(), clock() - timedelta(seconds=1)
    user_id, options = ada.user_id, environment.options
    for number, (expires_at, age_margin) in enumerate(
        [(past, timedelta()), (now + DAY, timedelta(minutes=1))]
    ):
        receipt = now - options.duplicate_delivery_retention + age_margin
        replay = now - options.idempotency_retention + age_margin
        finished = now - timedelta(days=7) + age_margin
        await add_rows(
            environment,
            DeliveryReceipt(digest=f"r{number}", message_id=1, at=receipt),
            IdempotentPayload(principal="p", key=f"k{number}", request_digest="", at=replay),
            UndoRecord(
                id=environment.new_id(), user_id=user_id, digest=f"u{number}", expires_at=expires_at
            ),
            AccessToken(
                id=environment.new_id(),
                user_id=user_id,
                digest=f"t{number}",
                auth_version=1,
                created_at=past,
                last_used_at=past,
                expires_at=expires_at,
            ),
            Throttle(id=environment.new_id(), key=f"x{number}", until=expires_at - THROTTLE_RESET),
            Task(
                id=environment.new_id(),
                kind=TaskKind.USER_IMPORT_COMMAND,
                created_at=past,
                finished_at=finished,
            ),
        )
    await add_rows(
        environment,
        Task(id=environment.new_id(), kind=TaskKind.USER_IMPORT_COMMAND, created_at=past),
    )  # still running
    expected = HousekeepingResult(receipts=1, replays=1, undos=1, tokens=1, throttles=1, tasks=1)
    assert await run_housekeeping_round(environment) == expected
    tables: list[tuple[type[SQLModel], int]] = [
        (DeliveryReceipt, 1),
        (IdempotentPayload, 1),
        (UndoRecord, 1),
        (AccessToken, 1),
        (Throttle, 1),
        (Task, 2),
    ]
    for table, remaining in tables:
        assert await count_rows(environment, table) == remaining
    assert await run_housekeeping_round(environment) == HousekeepingResult()


async def test_unused_upload_is_deleted_with_its_object(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    for name, hours in (("ab/old.1", 1), ("ab/young.1", 3)):
        await environment.object_store.put(name, b"abc")
        await add_rows(environment, make_upload(ada, name, clock() + timedelta(hours=hours)))
    clock.tick(hours=2)
    assert (await run_housekeeping_round(environment, sweep=False)).uploads == 1
    assert [stored.name async for stored in environment.object_store.list()] == ["ab/young.1"]
    await assert_consistent(environment)


async def test_object_of_a_blob_stays_when_its_upload_is_deleted(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    delivery = await ada.deliver(message_with_subject("file", attachment_size=9000))
    rows = await environment.database.read(
        select(col(Blob.name)).where(col(Blob.name).is_not(None))
    )
    await add_rows(environment, make_upload(ada, rows[0].name, clock()))
    assert (await run_housekeeping_round(environment)).uploads == 1
    await assert_consistent(environment)
    assert (await load_row(environment, Message, delivery.message_id)).mailbox_id == ada.inbox_id


def make_upload(account: StoredAccount, name: str, expires_at: datetime) -> Upload:
    return Upload(
        id=account.environment.new_id(),
        user_id=account.user_id,
        size=3,
        digest="",
        content_type="text/plain",
        blob_name=name,
        created_at=expires_at,
        expires_at=expires_at,
    )


async def record_events(account: StoredAccount, event_count: int) -> None:
    async with account.environment.write_session(account.user_id) as session:
        entry = JournalEntry(EventType.USER_UPDATED, [account.user_id] * event_count)
        await append_journal_entry(session, account.user_id, entry, at=account.environment.now())


async def test_old_journal_events_are_deleted(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await record_events(ada, 3)
    await record_events(ada, 2)
    clock.tick(days=20)
    await record_events(ada, 4)
    clock.tick(days=11)
    assert (await run_housekeeping_round(environment)).changes == 2
    stream = await load_row(environment, Stream, ada.user_id)
    assert (stream.pruned_position, stream.last) == (5, 9)
    await assert_consistent(environment)
    assert (await run_housekeeping_round(environment)).changes == 0
    clock.tick(days=20)
    assert (await run_housekeeping_round(environment)).changes == 1
    stream = await load_row(environment, Stream, ada.user_id)
    assert (stream.pruned_position, stream.last) == (9, 9)
    await assert_consistent(environment)


async def test_journal_above_its_limit_is_shortened_by_whole_entries(
    environment: Environment, ada: StoredAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_SIZE", 2)
    limited_environment = replace(
        environment, options=replace(environment.options, journal_max_events=5)
    )
    for event_count in (3, 3, 3, 3, 3):
        await record_events(ada, event_count)
    # Deleting a fourth entry would keep too few events.
    assert (await run_housekeeping_round(limited_environment)).changes == 3
    stream = await load_row(environment, Stream, ada.user_id)
    assert (stream.pruned_position, stream.last) == (9, 15)
    await assert_consistent(environment)


async def test_simultaneous_rounds_process_every_row_once(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await ada.set_retention(60)
    for number in range(5):
        await ada.deliver(message_with_subject(f"letter {number}", attachment_size=6000))
    clock.tick(days=1)
    first_results = await asyncio.gather(*(run_housekeeping_round(environment) for _ in range(3)))
    assert sum(result.expired for result in first_results) == 5
    await assert_consistent(environment)
    clock.tick(days=60)
    second_results = await asyncio.gather(*(run_housekeeping_round(environment) for _ in range(3)))
    assert sum(result.purged for result in second_results) == 5
    assert sum(result.changes for result in second_results) == 6
    await assert_consistent(environment)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not condition():  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.01)


async def test_rounds_repeat_until_stopped(
    environment: Environment,
    ada: StoredAccount,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(housekeeping, "ROUND_INTERVAL", 0.01)
    stop = asyncio.Event()
    with caplog.at_level(logging.INFO, "mail.maintenance.housekeeping"):
        housekeeping_task = asyncio.create_task(housekeeping.run_until_stopped(environment, stop))
        await wait_until(lambda: len(caplog.records) > 2)
        stop.set()
        await asyncio.wait_for(housekeeping_task, HANG_SECONDS)
    assert {record.getMessage() for record in caplog.records} == {"Housekeeping finished"}
    count_names = {field.name for field in fields(housekeeping.HousekeepingResult)}
    assert not count_names & set(vars(caplog.records[0]))  # nothing was deleted
    assert ada.user_id


async def test_failed_round_is_followed_by_another(
    environment: Environment,
    ada: StoredAccount,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(housekeeping, "ROUND_INTERVAL", 0.01)
    assert isinstance(environment.object_store, FolderStore)
    shard = environment.object_store.folder / "00"
    shard.touch()  # the sweep fails on a path that is not a folder
    stop = asyncio.Event()
    with caplog.at_level(logging.INFO, "mail.maintenance.housekeeping"):
        housekeeping_task = asyncio.create_task(housekeeping.run_until_stopped(environment, stop))
        await wait_until(lambda: bool(caplog.records))
        shard.unlink()
        await wait_until(lambda: caplog.records[-1].getMessage() == "Housekeeping finished")
        stop.set()
        await asyncio.wait_for(housekeeping_task, HANG_SECONDS)
    assert caplog.records[0].getMessage() == "Housekeeping failed"
    assert ada.user_id


async def test_stop_before_the_first_round_is_respected(environment: Environment) -> None:
    stop = asyncio.Event()
    housekeeping_task = asyncio.create_task(housekeeping.run_until_stopped(environment, stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(housekeeping_task, HANG_SECONDS)


async def test_counters_are_correct_with_concurrent_deliveries(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    async def deliver(name: str) -> None:
        for number in range(15):
            await ada.deliver(message_with_subject(f"{name} {number}"))

    await ada.set_retention(60)
    await deliver("before")
    clock.tick(minutes=2)
    async with environment.write_session(ada.user_id) as session:
        await (await session.connection()).execute(
            update(Message).where(col(Message.uid) % 2 == 0).values(keywords=["x"])
        )
    rounds = (run_housekeeping_round(environment) for _ in range(3))
    results, *_ = await asyncio.gather(asyncio.gather(*rounds), deliver("during"))
    assert sum(result.expired for result in results) == 15
    await assert_consistent(environment)
    assert (await load_row(environment, Mailbox, ada.inbox_id)).message_count == 15
