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
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Change, JournalEntry, Stream, append_journal_entry
from models.notifications.push_channels import PushChannel, PushKind
from models.notifications.webhooks import Webhook, WebhookReadPosition
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import ManualClock
from tests.support.accounts.account_rows import StoredAccount, make_domain, make_stored_account
from tests.support.stores.query_plans import record_query_plans

RETENTION = timedelta(days=30)
HOUR = timedelta(hours=1)


@pytest.fixture
async def ada(environment: Environment) -> StoredAccount:
    return await make_stored_account(environment, await make_domain(environment), "ada")


async def record_events(home: StoredAccount, count: int = 1) -> None:
    async with home.environment.write_session(home.user_id) as session:
        entry = JournalEntry(EventType.USER_UPDATED, [home.user_id] * count)
        await append_journal_entry(session, home.user_id, entry, at=home.environment.now())


async def load_stream(home: StoredAccount) -> Any:
    statement = select(*select_columns(Stream)).where(col(Stream.id) == home.user_id)
    (row,) = await home.environment.database.read(statement)
    return row


async def create_webhook(environment: Environment, **columns: Any) -> int:
    row = Webhook(
        id=environment.new_id(),
        types=None,
        url="https://x.example",
        secret="",
        since=environment.now(),
        created_at=environment.now(),
        **columns,
    )
    webhook_id = row.id
    async with environment.write_session() as session:
        session.add(row)
    return webhook_id


async def set_read_position(home: StoredAccount, number: int) -> None:
    async with home.environment.write_session() as session:
        session.add(WebhookReadPosition(stream_id=home.user_id, number=number))


async def assert_consistent(environment: Environment) -> None:
    assert (await check_consistency(environment)).findings == []


def with_short_journal(environment: Environment) -> Environment:
    return replace(environment, options=replace(environment.options, journal_max_events=3))


async def test_unread_entry_is_kept_one_more_day_for_webhook(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await create_webhook(environment)
    await record_events(ada, 2)
    clock.tick(hours=2)
    await record_events(ada)
    clock.tick(seconds=RETENTION.total_seconds())
    # the oldest entry is two hours past the retention
    assert await delete_excess_and_old_entries(environment) == 0
    assert (await load_stream(ada)).pruned_position == 0
    clock.tick(seconds=(UNREAD_GRACE - HOUR).total_seconds())
    assert await delete_excess_and_old_entries(environment) == 1  # one hour after the extra day
    stream = await load_stream(ada)
    assert (stream.pruned_position, stream.last) == (2, 3)
    assert stream.pruned_at == clock() - RETENTION - UNREAD_GRACE - HOUR
    clock.tick(hours=2)
    assert await delete_excess_and_old_entries(environment) == 1
    assert (await load_stream(ada)).pruned_position == 3
    await assert_consistent(environment)


async def test_read_entry_is_deleted_after_retention(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await create_webhook(environment)
    await record_events(ada, 2)
    await record_events(ada)
    await set_read_position(ada, 2)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(environment) == 1
    assert (await load_stream(ada)).pruned_position == 2
    await assert_consistent(environment)


async def test_unread_excess_entries_are_kept_one_day(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    short_journal_environment = with_short_journal(environment)
    await create_webhook(environment)
    await record_events(ada, 4)
    await record_events(ada, 3)
    assert await delete_excess_and_old_entries(short_journal_environment, by_age=False) == 0
    clock.tick(seconds=(UNREAD_GRACE + HOUR).total_seconds())
    await record_events(ada)
    await record_events(ada, 3)
    # the third entry is not a day old
    assert await delete_excess_and_old_entries(short_journal_environment, by_age=False) == 2
    assert ((await load_stream(ada)).pruned_position, (await load_stream(ada)).last) == (7, 11)
    await set_read_position(ada, 8)
    assert await delete_excess_and_old_entries(short_journal_environment, by_age=False) == 1
    await assert_consistent(environment)


@pytest.mark.parametrize("webhook_case", ["off", "another's", "another domain's"])
async def test_entries_are_not_kept_for_webhooks_that_do_not_get_them(
    environment: Environment, clock: ManualClock, ada: StoredAccount, webhook_case: str
) -> None:
    domain = await make_domain(environment, "example.net")
    bob = await make_stored_account(environment, domain, "bob")
    webhook_columns: dict[str, dict[str, Any]] = {
        "off": {"active": False},
        "another's": {"user_id": bob.user_id},
        "another domain's": {"domain_id": domain.id},
    }
    await create_webhook(environment, **webhook_columns[webhook_case])
    await record_events(ada)
    await record_events(bob)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(environment) == (2 if webhook_case == "off" else 1)
    assert (await load_stream(ada)).pruned_position == 1


@pytest.mark.parametrize("owner_column", ["user_id", "domain_id"])
async def test_entries_are_kept_for_webhooks_of_user_and_domain(
    environment: Environment, clock: ManualClock, ada: StoredAccount, owner_column: str
) -> None:
    await create_webhook(environment, **{owner_column: getattr(ada, owner_column)})
    await record_events(ada)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(environment) == 0
    async with environment.write_session() as session:
        deactivation = update(Webhook).values(active=False)
        await (await session.connection()).execute(deactivation)
    assert await delete_excess_and_old_entries(environment) == 1


async def test_entries_are_kept_for_the_slowest_push_channel(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    async with environment.write_session() as session:
        for kind, number in ((PushKind.HTTP, 1), (PushKind.PUSHOVER, 0)):
            session.add(
                PushChannel(
                    id=environment.new_id(),
                    user_id=ada.user_id,
                    kind=kind,
                    target="",
                    number=number,
                    created_at=clock(),
                    updated_at=clock(),
                )
            )
    await record_events(ada)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(environment) == 0
    async with environment.write_session() as session:
        deactivation = update(PushChannel).where(col(PushChannel.kind) == PushKind.PUSHOVER)
        await (await session.connection()).execute(deactivation.values(active=False))
    assert await delete_excess_and_old_entries(environment) == 1  # the other channel has read it


async def test_old_entries_are_deleted_only_if_by_age(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    await record_events(ada)
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    assert await delete_excess_and_old_entries(environment, by_age=False) == 0
    assert await delete_excess_and_old_entries(environment, by_age=True) == 1


async def create_streams(environment: Environment, stream_count: int, change_count: int) -> None:
    """Create streams with this number of changes of one event each."""
    stream_ids = [environment.new_id() for _ in range(stream_count)]
    rows = [
        {
            "stream_id": stream_id,
            "last": n,
            "at": environment.now(),
            "type": EventType.USER_UPDATED,
            "ids": [stream_id],
            "facts": {"modseq": n},
        }
        for stream_id in stream_ids
        for n in range(1, change_count + 1)
    ]
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(
            insert(Stream), [{"id": stream_id, "last": change_count} for stream_id in stream_ids]
        )
        await connection.execute(insert(Change), rows)


async def test_deletion_is_batched_with_constant_statements(
    environment: Environment, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_journal_environment, statement_counts = with_short_journal(environment), list[int]()
    for stream_count in (1, 20):
        await create_streams(environment, stream_count, 5)
        del statements[:]
        assert (
            await delete_excess_and_old_entries(short_journal_environment, by_age=False)
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
    # select, lock, find the end, delete, update
    assert statement_counts[0] == statement_counts[1] == 5
    monkeypatch.setattr(journal_retention, "EVENTS_PER_TRANSACTION", 10)
    await create_streams(environment, 3, 33)
    del statements[:]
    assert await delete_excess_and_old_entries(short_journal_environment) == 90
    removed = [statement for statement in statements if statement.startswith("DELETE")]
    assert len(removed) == 9
    excess_streams = select(col(Stream.id)).where(
        col(Stream.last) - col(Stream.pruned_position) > 3
    )
    assert await short_journal_environment.database.read(excess_streams) == []


async def test_entries_to_delete_are_found_by_primary_key(
    environment: Environment, clock: ManualClock
) -> None:
    await create_streams(environment, 500, 20)
    await create_webhook(environment)
    clock.tick(seconds=(RETENTION + 2 * UNREAD_GRACE).total_seconds())
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE streams, changes"))
    short_journal_environment = with_short_journal(environment)
    with record_query_plans(environment) as plans:
        excess_plan = await plans.explain_select(
            delete_excess_and_old_entries(short_journal_environment, by_age=False),
            "streams",
            containing="max(changes.last)",
        )
        age_plan = await plans.explain_select(
            delete_excess_and_old_entries(short_journal_environment),
            "streams",
            containing="max(changes.last)",
        )
    for plan in (excess_plan, age_plan):
        assert "SCAN changes" not in plan, plan
        assert "Seq Scan on changes" not in plan, plan
        assert "webhook_read_positions" in plan, plan
    assert await short_journal_environment.database.read(select(col(Change.last))) == []


async def test_platform_stream_is_trimmed(
    environment: Environment, clock: ManualClock, ada: StoredAccount
) -> None:
    async with environment.write_session(PLATFORM) as session:
        entry = JournalEntry(EventType.SETTING_UPDATED, [ada.user_id])
        await append_journal_entry(session, PLATFORM, entry, at=clock())
    clock.tick(seconds=(RETENTION + HOUR).total_seconds())
    webhook_id = await create_webhook(environment, user_id=ada.user_id)
    # the stream can have events about this user
    assert await delete_excess_and_old_entries(environment) == 0
    async with environment.write_session() as session:
        await session.delete(await session.get_one(Webhook, webhook_id))
    assert await delete_excess_and_old_entries(environment) == 1
