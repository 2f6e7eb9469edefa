"""Retention of journal entries, including those that webhooks and push channels have not read."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlmodel import col

from mail.consistency import check_consistency
from mail.maintenance import journal_retention
from mail.maintenance.journal_retention import UNREAD_GRACE, delete_excess_and_old_entries
from models.events.journal import PLATFORM, Change, ChangeKind, JournalEntry, Stream, record_entry
from models.notifications.push_channels import PushChannel, PushKind
from models.notifications.webhooks import Webhook, WebhookReadPosition
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import Clock
from tests.support.accounts.account_rows import Home, domain_of, home_of
from tests.support.stores.query_plans import explained

RETENTION = timedelta(days=30)
HOUR = timedelta(hours=1)


@pytest.fixture
async def ada(world: Environment) -> Home:
    return await home_of(world, await domain_of(world), "ada")


async def record_events(home: Home, count: int = 1) -> None:
    async with home.world.write_session(home.user_id) as session:
        entry = JournalEntry(ChangeKind.USER_CHANGED, [home.user_id] * count)
        await record_entry(session, home.user_id, entry, at=home.world.now())


async def load_stream(home: Home) -> Any:
    statement = select(*select_columns(Stream)).where(col(Stream.id) == home.user_id)
    (row,) = await home.world.database.read(statement)
    return row


async def create_webhook(world: Environment, **columns: Any) -> int:
    row = Webhook(
        id=world.new_id(), types=["*"], url="https://x.example", secret="", since=world.now(),
        created_at=world.now(), **columns,
    )  # fmt: skip
    webhook_id = row.id
    async with world.write_session() as session:
        session.add(row)
    return webhook_id


async def set_read_position(home: Home, number: int) -> None:
    async with home.world.write_session() as session:
        session.add(WebhookReadPosition(stream_id=home.user_id, number=number))


async def assert_consistent(world: Environment) -> None:
    assert (await check_consistency(world)).findings == []


def with_short_journal(world: Environment) -> Environment:
    return replace(world, options=replace(world.options, journal_events=3))


async def test_unread_entry_is_kept_one_more_day_for_webhook(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await create_webhook(world)
    await record_events(ada, 2)
    clock.tick(hours=2)
    await record_events(ada)
    clock.tick(seconds=RETENTION.total_seconds())
    # the oldest entry is two hours past the retention
    assert await delete_excess_and_old_entries(world) == 0
    assert (await load_stream(ada)).gone == 0
    clock.tick(seconds=(UNREAD_GRACE - HOUR).total_seconds())
    assert await delete_excess_and_old_entries(world) == 1  # one hour after the extra day
    stream = await load_stream(ada)
    assert (stream.gone, stream.last) == (2, 3)
    assert stream.gone_at == clock() - RETENTION - UNREAD_GRACE - HOUR
    clock.tick(hours=2)
    assert await delete_excess_and_old_entries(world) == 1
    assert (await load_stream(ada)).gone == 3
    await assert_consistent(world)


async def test_read_entry_is_deleted_after_retention(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await create_webhook(world)
    await record_events(ada, 2)
    await record_events(ada)
    await set_read_position(ada, 2)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(world) == 1
    assert (await load_stream(ada)).gone == 2
    await assert_consistent(world)


async def test_unread_excess_entries_are_kept_one_day(
    world: Environment, clock: Clock, ada: Home
) -> None:
    short_journal_world = with_short_journal(world)
    await create_webhook(world)
    await record_events(ada, 4)
    await record_events(ada, 3)
    assert await delete_excess_and_old_entries(short_journal_world, by_age=False) == 0
    clock.tick(seconds=(UNREAD_GRACE + HOUR).total_seconds())
    await record_events(ada)
    await record_events(ada, 3)
    # the third entry is not a day old
    assert await delete_excess_and_old_entries(short_journal_world, by_age=False) == 2
    assert ((await load_stream(ada)).gone, (await load_stream(ada)).last) == (7, 11)
    await set_read_position(ada, 8)
    assert await delete_excess_and_old_entries(short_journal_world, by_age=False) == 1
    await assert_consistent(world)


@pytest.mark.parametrize("webhook_case", ["off", "another's", "another domain's"])
async def test_entries_are_not_kept_for_webhooks_that_do_not_get_them(
    world: Environment, clock: Clock, ada: Home, webhook_case: str
) -> None:
    domain = await domain_of(world, "example.net")
    bob = await home_of(world, domain, "bob")
    webhook_columns: dict[str, dict[str, Any]] = {
        "off": {"active": False},
        "another's": {"user_id": bob.user_id},
        "another domain's": {"domain_id": domain.id},
    }
    await create_webhook(world, **webhook_columns[webhook_case])
    await record_events(ada)
    await record_events(bob)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(world) == (2 if webhook_case == "off" else 1)
    assert (await load_stream(ada)).gone == 1


@pytest.mark.parametrize("owner_column", ["user_id", "domain_id"])
async def test_entries_are_kept_for_webhooks_of_user_and_domain(
    world: Environment, clock: Clock, ada: Home, owner_column: str
) -> None:
    await create_webhook(world, **{owner_column: getattr(ada, owner_column)})
    await record_events(ada)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(world) == 0
    async with world.write_session() as session:
        deactivation = update(Webhook).values(active=False)
        await (await session.connection()).execute(deactivation)
    assert await delete_excess_and_old_entries(world) == 1


async def test_entries_are_kept_for_the_slowest_push_channel(
    world: Environment, clock: Clock, ada: Home
) -> None:
    async with world.write_session() as session:
        for kind, number in ((PushKind.HTTP, 1), (PushKind.PUSHOVER, 0)):
            session.add(
                PushChannel(
                    id=world.new_id(), user_id=ada.user_id, kind=kind, target="", number=number,
                    created_at=clock(), updated_at=clock(),
                )
            )  # fmt: skip
    await record_events(ada)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(world) == 0
    async with world.write_session() as session:
        deactivation = update(PushChannel).where(col(PushChannel.kind) == PushKind.PUSHOVER)
        await (await session.connection()).execute(deactivation.values(active=False))
    assert await delete_excess_and_old_entries(world) == 1  # the other channel has read it


async def test_old_entries_are_deleted_only_if_by_age(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await record_events(ada)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(world, by_age=False) == 0
    assert await delete_excess_and_old_entries(world, by_age=True) == 1


async def create_streams(world: Environment, stream_count: int, change_count: int) -> None:
    """Create streams with this number of changes of one event each."""
    stream_ids = [world.new_id() for _ in range(stream_count)]
    rows = [
        {
            "stream_id": stream_id, "last": n, "at": world.now(), "kind": ChangeKind.USER_CHANGED,
            "ids": [stream_id], "facts": {"modseq": n},
        }
        for stream_id in stream_ids
        for n in range(1, change_count + 1)
    ]  # fmt: skip
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(
            insert(Stream), [{"id": stream_id, "last": change_count} for stream_id in stream_ids]
        )
        await connection.execute(insert(Change), rows)


async def test_deletion_is_batched_with_constant_statements(
    world: Environment, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_journal_world, statement_counts = with_short_journal(world), list[int]()
    for stream_count in (1, 20):
        await create_streams(world, stream_count, 5)
        del statements[:]
        assert (
            await delete_excess_and_old_entries(short_journal_world, by_age=False)
            == 2 * stream_count
        )
        statement_counts.append(
            len(
                [
                    statement
                    for statement in statements
                    if "streams" in statement or "changes" in statement
                ]
            )
        )
    assert (
        statement_counts[0] == statement_counts[1] == 5
    )  # select, lock, find the end, delete, update
    monkeypatch.setattr(journal_retention, "EVENTS_PER_TRANSACTION", 10)
    await create_streams(world, 3, 33)
    del statements[:]
    assert await delete_excess_and_old_entries(short_journal_world) == 90
    removed = [statement for statement in statements if statement.startswith("DELETE")]
    assert len(removed) == 9
    excess_streams = select(col(Stream.id)).where(col(Stream.last) - col(Stream.gone) > 3)
    assert await short_journal_world.database.read(excess_streams) == []


async def test_entries_to_delete_are_found_by_primary_key(world: Environment, clock: Clock) -> None:
    await create_streams(world, 500, 20)
    await create_webhook(world)
    clock.tick(seconds=(RETENTION + 2 * UNREAD_GRACE).total_seconds())
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE streams, changes"))
    short_journal_world = with_short_journal(world)
    with explained(world) as plans:
        excess_plan = await plans.of(
            delete_excess_and_old_entries(short_journal_world, by_age=False),
            "streams",
            asking="max(changes.last)",
        )
        age_plan = await plans.of(
            delete_excess_and_old_entries(short_journal_world),
            "streams",
            asking="max(changes.last)",
        )
    for plan in (excess_plan, age_plan):
        assert "SCAN changes" not in plan, plan
        assert "Seq Scan on changes" not in plan, plan
        assert "webhook_feeds" in plan, plan
    assert await short_journal_world.database.read(select(col(Change.last))) == []


async def test_platform_stream_is_trimmed(world: Environment, clock: Clock, ada: Home) -> None:
    async with world.write_session(PLATFORM) as session:
        entry = JournalEntry(ChangeKind.SETTING_CHANGED, [ada.user_id])
        await record_entry(session, PLATFORM, entry, at=clock())
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    webhook_id = await create_webhook(world, user_id=ada.user_id)
    # the stream can have events about this user
    assert await delete_excess_and_old_entries(world) == 0
    async with world.write_session() as session:
        await session.delete(await session.get_one(Webhook, webhook_id))
    assert await delete_excess_and_old_entries(world) == 1
