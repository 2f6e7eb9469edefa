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
from mail.maintenance import housekeeping
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


async def count(world: Environment, table: type[SQLModel]) -> int:
    (row,) = await world.database.read(select(func.count()).select_from(table))
    return int(row[0])


async def row_of(world: Environment, table: type[SQLModel], key: int) -> Any:
    asked = select(*select_columns(table)).where(core_table(table).c.id == key)
    return (await world.database.read(asked))[0]


async def add(world: Environment, *rows: SQLModel) -> None:
    async with world.write_session() as session:
        session.add_all(rows)


async def whole(world: Environment) -> None:
    assert (await check_consistency(world)).findings == []


async def test_a_message_whose_time_has_come_goes_into_the_archive(
    world: Environment, clock: Clock, ada: Home
) -> None:
    stays = await ada.receive(letter("stays"))
    await ada.keep(3600)
    goes = await ada.receive(letter("goes", answers="stays"))
    assert (await run_round(world)).expired == 0
    clock.tick(hours=1)
    assert (await run_round(world)).expired == 1

    message = await row_of(world, Message, goes.message_id)
    assert (message.mailbox_id, message.archived_from) == (None, "INBOX")
    assert message.archived_at == clock()
    assert message.purge_at == clock() + world.options.archive_for
    assert (await row_of(world, Message, stays.message_id)).mailbox_id == ada.inbox
    box, user = await row_of(world, Mailbox, ada.inbox), await row_of(world, User, ada.user_id)
    assert (box.total, box.unseen, box.modseq) == (1, 1, message.modseq)
    assert (user.message_count, user.used) == (1, box.size)
    await whole(world)


async def test_who_follows_is_told_what_expired(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await ada.keep(60)
    placed = [await ada.receive(letter(name)) for name in ("one", "two")]
    clock.tick(minutes=2)
    with world.wakeups.follow([ada.user_id]) as bell:
        await run_round(world)
        assert bell.is_set()
    asked = select(*select_columns(Change)).order_by(col(Change.last).desc()).limit(1)
    (change,) = await world.database.read(asked.where(col(Change.stream_id) == ada.user_id))
    assert change.kind is ChangeKind.MESSAGE_ARCHIVED
    assert change.ids == [each.message_id for each in placed]
    assert change.facts["mailbox"] == [ada.inbox, ada.inbox]
    assert change.facts["uid"] == [1, 2]


async def test_a_draft_that_expired_is_kept_no_longer_than_an_undo(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await ada.keep(60)
    placed = await ada.receive(letter("draft"))
    async with world.write_session(ada.user_id) as session:
        (await session.get_one(Message, placed.message_id)).draft = True
    clock.tick(minutes=2)
    await run_round(world)
    message = await row_of(world, Message, placed.message_id)
    assert message.purge_at == clock() + world.options.undo_window


async def test_the_archive_lets_go_of_messages_conversations_and_blobs(
    world: Environment, clock: Clock, ada: Home
) -> None:
    stays = await ada.receive(letter("stays"))
    await ada.keep(60)
    await ada.receive(letter("in a conversation that stays", answers="stays"))
    await ada.receive(letter("alone", attached=9000))
    clock.tick(minutes=1)
    assert (await run_round(world)).expired == 2
    clock.tick(days=24)
    assert (await run_round(world)).purged == 0
    await whole(world)
    clock.tick(days=1)

    done = await run_round(world)
    assert (done.purged, done.threads, done.blobs, done.objects) == (2, 1, 3, 1)
    assert (
        await count(world, Message) == await count(world, Thread) == await count(world, Blob) == 1
    )
    refs = await world.database.read(select(col(ThreadKey.thread_id)).distinct())
    thread = (await row_of(world, Message, stays.message_id)).thread_id
    assert [row.thread_id for row in refs] == [thread]
    assert [stored.name async for stored in world.object_store.list()] == []
    await whole(world)


async def test_more_than_a_round_goes_in_several(
    world: Environment, clock: Clock, ada: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH_SIZE", 3)
    await ada.keep(60)
    for number in range(7):
        await ada.receive(letter(f"letter {number}"))
    clock.tick(minutes=2)
    assert (await run_round(world)).expired == 7
    await whole(world)
    clock.tick(days=40)
    done = await run_round(world)
    assert (done.purged, done.threads, done.receipts, done.changes) == (7, 7, 7, 10)
    await whole(world)


async def test_a_message_that_was_brought_back_is_not_purged(
    world: Environment, clock: Clock, ada: Home
) -> None:
    placed = await ada.receive(letter("back"))
    async with world.write_session(ada.user_id) as session:
        (await session.get_one(Message, placed.message_id)).purge_at = world.now()
    clock.tick(days=1)
    assert (await run_round(world)).purged == 0
    assert await count(world, Message) == 1


async def test_conversations_that_were_left_empty_go_with_the_daily_sweep(
    world: Environment, ada: Home
) -> None:
    await ada.receive(letter("stays"))
    await add(
        world, Thread(id=world.new_id(), user_id=ada.user_id, subject="", created_at=world.now())
    )
    assert (await run_round(world, sweep=False)).threads == 0
    assert (await run_round(world)).threads == 1
    await whole(world)


async def test_what_has_ended_goes_and_what_has_not_stays(
    world: Environment, clock: Clock, ada: Home
) -> None:
    now, past = clock(), clock() - timedelta(seconds=1)
    owner, options = ada.user_id, world.options
    for nth, (end, young) in enumerate([(past, timedelta()), (now + DAY, timedelta(minutes=1))]):
        receipt = now - options.receipts_for + young
        replay = now - options.replays_for + young
        finished = now - timedelta(days=7) + young
        await add(
            world,
            DeliveryReceipt(digest=f"r{nth}", message_id=1, at=receipt),
            IdempotentPayload(principal="p", key=f"k{nth}", asked="", at=replay),
            UndoRecord(id=world.new_id(), user_id=owner, digest=f"u{nth}", expires_at=end),
            AccessToken(
                id=world.new_id(),
                user_id=owner,
                digest=f"t{nth}",
                auth_version=1,
                created_at=past,
                last_used_at=past,
                expires_at=end,
            ),
            Throttle(key=f"x{nth}", until=end - THROTTLE_RESET),
            Task(id=world.new_id(), kind="some", created_at=past, finished_at=finished),
        )
    await add(world, Task(id=world.new_id(), kind="some", created_at=past))  # still at it
    once = HousekeepingResult(receipts=1, replays=1, undos=1, tokens=1, throttles=1, tasks=1)
    assert await run_round(world) == once
    tables: list[tuple[type[SQLModel], int]] = [
        (DeliveryReceipt, 1),
        (IdempotentPayload, 1),
        (UndoRecord, 1),
        (AccessToken, 1),
        (Throttle, 1),
        (Task, 2),
    ]
    for table, left in tables:
        assert await count(world, table) == left
    assert await run_round(world) == HousekeepingResult()


async def test_an_upload_nobody_used_goes_with_its_object(
    world: Environment, clock: Clock, ada: Home
) -> None:
    for name, hours in (("ab/old.1", 1), ("ab/young.1", 3)):
        await world.object_store.put(name, b"abc")
        await add(world, _upload(ada, name, clock() + timedelta(hours=hours)))
    clock.tick(hours=2)
    assert (await run_round(world, sweep=False)).uploads == 1
    assert [stored.name async for stored in world.object_store.list()] == ["ab/young.1"]
    await whole(world)


async def test_an_object_that_became_a_blob_stays_when_its_upload_goes(
    world: Environment, clock: Clock, ada: Home
) -> None:
    placed = await ada.receive(letter("file", attached=9000))
    rows = await world.database.read(select(col(Blob.name)).where(col(Blob.name).is_not(None)))
    await add(world, _upload(ada, rows[0].name, clock()))
    assert (await run_round(world)).uploads == 1
    await whole(world)
    assert (await row_of(world, Message, placed.message_id)).mailbox_id == ada.inbox


def _upload(home: Home, name: str, end: datetime) -> Upload:
    return Upload(
        id=home.world.new_id(),
        user_id=home.user_id,
        size=3,
        digest="",
        content_type="text/plain",
        blob_name=name,
        created_at=end,
        expires_at=end,
    )


async def _record(home: Home, many: int) -> None:
    async with home.world.write_session(home.user_id) as session:
        entry = JournalEntry(ChangeKind.USER_CHANGED, [home.user_id] * many)
        await record_entry(session, home.user_id, entry, at=home.world.now())


async def test_the_journal_forgets_what_is_too_old(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await _record(ada, 3)
    await _record(ada, 2)
    clock.tick(days=20)
    await _record(ada, 4)
    clock.tick(days=11)
    assert (await run_round(world)).changes == 2
    stream = await row_of(world, Stream, ada.user_id)
    assert (stream.gone, stream.last) == (5, 9)
    await whole(world)
    assert (await run_round(world)).changes == 0
    clock.tick(days=20)
    assert (await run_round(world)).changes == 1
    stream = await row_of(world, Stream, ada.user_id)
    assert (stream.gone, stream.last) == (9, 9)
    await whole(world)


async def test_the_journal_forgets_what_is_too_much_in_whole_changes(
    world: Environment, ada: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH_SIZE", 2)
    few = replace(world, options=replace(world.options, journal_events=5))
    for many in (3, 3, 3, 3, 3):
        await _record(ada, many)
    assert (await run_round(few)).changes == 3  # a fourth would leave fewer than are kept
    stream = await row_of(world, Stream, ada.user_id)
    assert (stream.gone, stream.last) == (9, 15)
    await whole(world)


async def test_two_rounds_at_once_do_all_once(world: Environment, clock: Clock, ada: Home) -> None:
    await ada.keep(60)
    for number in range(5):
        await ada.receive(letter(f"letter {number}", attached=6000))
    clock.tick(days=1)
    first = await asyncio.gather(*(run_round(world) for _ in range(3)))
    assert sum(done.expired for done in first) == 5
    await whole(world)
    clock.tick(days=60)
    second = await asyncio.gather(*(run_round(world) for _ in range(3)))
    assert sum(done.purged for done in second) == 5
    assert sum(done.changes for done in second) == 6
    await whole(world)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a log rings no bell
            await asyncio.sleep(0.01)


async def test_rounds_come_by_themselves_until_told_to_stop(
    world: Environment, ada: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(housekeeping, "ROUND_INTERVAL", 0.01)
    stop = asyncio.Event()
    with caplog.at_level(logging.INFO, "mail.maintenance.housekeeping"):
        running = asyncio.create_task(housekeeping.run_until_stopped(world, stop))
        await _until(lambda: len(caplog.records) > 2)
        stop.set()
        await asyncio.wait_for(running, 5)
    assert {record.getMessage() for record in caplog.records} == {"tidied"}
    assert vars(caplog.records[0])["purged"] == 0
    assert ada.user_id


async def test_a_round_that_fails_is_followed_by_another(
    world: Environment, ada: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(housekeeping, "ROUND_INTERVAL", 0.01)
    assert isinstance(world.object_store, FolderStore)
    shard = world.object_store.folder / "00"
    shard.touch()  # the sweep stumbles over what is no folder
    stop = asyncio.Event()
    with caplog.at_level(logging.INFO, "mail.maintenance.housekeeping"):
        running = asyncio.create_task(housekeeping.run_until_stopped(world, stop))
        await _until(lambda: bool(caplog.records))
        shard.unlink()
        await _until(lambda: caplog.records[-1].getMessage() == "tidied")
        stop.set()
        await asyncio.wait_for(running, 5)
    assert caplog.records[0].getMessage() == "housekeeping failed"
    assert ada.user_id


async def test_a_stop_before_the_first_round_is_heard(world: Environment) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(housekeeping.run_until_stopped(world, stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_counters_stay_right_in_a_busy_account(
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
    done, *_ = await asyncio.gather(asyncio.gather(*rounds), deliver("during"))
    assert sum(each.expired for each in done) == 15
    await whole(world)
    assert (await row_of(world, Mailbox, ada.inbox)).total == 15
