"""How long changes are kept, and for whom they wait."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlmodel import col

from mail.consistency import check_consistency
from mail.maintenance import journal_retention
from mail.maintenance.journal_retention import UNREAD_GRACE, delete_old_entries
from models.events.journal import PLATFORM, Change, ChangeKind, JournalEntry, Stream, record_entry
from models.notifications.push_channels import PushChannel, PushKind
from models.notifications.webhooks import Webhook, WebhookReadPosition
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import Clock
from tests.support.accounts.account_rows import Home, domain_of, home_of
from tests.support.stores.query_plans import explained

KEPT = timedelta(days=30)
HOUR = timedelta(hours=1)


@pytest.fixture
async def ada(world: Environment) -> Home:
    return await home_of(world, await domain_of(world), "ada")


async def note(home: Home, many: int = 1) -> None:
    async with home.world.write_session(home.user_id) as session:
        entry = JournalEntry(ChangeKind.USER_CHANGED, [home.user_id] * many)
        await record_entry(session, home.user_id, entry, at=home.world.now())


async def stands(home: Home) -> Any:
    asked = select(*select_columns(Stream)).where(col(Stream.id) == home.user_id)
    (row,) = await home.world.database.read(asked)
    return row


async def hook(world: Environment, **whose: Any) -> int:
    row = Webhook(
        id=world.new_id(), types=["*"], url="https://x.example", secret="", since=world.now(),
        created_at=world.now(), **whose,
    )  # fmt: skip
    key = row.id
    async with world.write_session() as session:
        session.add(row)
    return key


async def read_to(home: Home, number: int) -> None:
    async with home.world.write_session() as session:
        session.add(WebhookReadPosition(stream_id=home.user_id, number=number))


async def whole(world: Environment) -> None:
    assert (await check_consistency(world)).findings == []


def short(world: Environment) -> Environment:
    return replace(world, options=replace(world.options, journal_events=3))


async def test_a_change_waits_a_day_for_the_webhook_that_has_not_read_it(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await hook(world)
    await note(ada, 2)
    clock.tick(hours=2)
    await note(ada)
    clock.tick(seconds=KEPT.total_seconds())
    assert await delete_old_entries(world) == 0  # the first is too old by two hours
    assert (await stands(ada)).gone == 0
    clock.tick(seconds=(UNREAD_GRACE - HOUR).total_seconds())
    assert await delete_old_entries(world) == 1  # by a day and an hour
    found = await stands(ada)
    assert (found.gone, found.last) == (2, 3)
    assert found.gone_at == clock() - KEPT - UNREAD_GRACE - HOUR
    clock.tick(hours=2)
    assert await delete_old_entries(world) == 1
    assert (await stands(ada)).gone == 3
    await whole(world)


async def test_what_is_read_waits_for_nobody(world: Environment, clock: Clock, ada: Home) -> None:
    await hook(world)
    await note(ada, 2)
    await note(ada)
    await read_to(ada, 2)
    clock.tick(seconds=(KEPT + HOUR).total_seconds())
    assert await delete_old_entries(world) == 1
    assert (await stands(ada)).gone == 2
    await whole(world)


async def test_changes_that_are_too_many_wait_a_day_too(
    world: Environment, clock: Clock, ada: Home
) -> None:
    few = short(world)
    await hook(world)
    await note(ada, 4)
    await note(ada, 3)
    assert await delete_old_entries(few, by_age=False) == 0
    clock.tick(seconds=(UNREAD_GRACE + HOUR).total_seconds())
    await note(ada)
    await note(ada, 3)
    assert await delete_old_entries(few, by_age=False) == 2  # the third is not a day old
    assert ((await stands(ada)).gone, (await stands(ada)).last) == (7, 11)
    await read_to(ada, 8)
    assert await delete_old_entries(few, by_age=False) == 1
    await whole(world)


@pytest.mark.parametrize("whose", ["off", "another's", "another domain's"])
async def test_nothing_waits_for_webhooks_that_would_not_be_told(
    world: Environment, clock: Clock, ada: Home, whose: str
) -> None:
    domain = await domain_of(world, "example.net")
    bob = await home_of(world, domain, "bob")
    given: dict[str, dict[str, Any]] = {
        "off": {"active": False},
        "another's": {"user_id": bob.user_id},
        "another domain's": {"domain_id": domain.id},
    }
    await hook(world, **given[whose])
    await note(ada)
    await note(bob)
    clock.tick(seconds=(KEPT + HOUR).total_seconds())
    assert await delete_old_entries(world) == (2 if whose == "off" else 1)
    assert (await stands(ada)).gone == 1


@pytest.mark.parametrize("whose", ["user_id", "domain_id"])
async def test_changes_wait_for_webhooks_of_the_account_and_of_its_domain(
    world: Environment, clock: Clock, ada: Home, whose: str
) -> None:
    await hook(world, **{whose: getattr(ada, whose)})
    await note(ada)
    clock.tick(seconds=(KEPT + HOUR).total_seconds())
    assert await delete_old_entries(world) == 0
    async with world.write_session() as session:
        off = update(Webhook).values(active=False)
        await (await session.connection()).execute(off)
    assert await delete_old_entries(world) == 1


async def test_changes_wait_for_the_channel_that_is_furthest_behind(
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
    await note(ada)
    clock.tick(seconds=(KEPT + HOUR).total_seconds())
    assert await delete_old_entries(world) == 0
    async with world.write_session() as session:
        off = update(PushChannel).where(col(PushChannel.kind) == PushKind.PUSHOVER)
        await (await session.connection()).execute(off.values(active=False))
    assert await delete_old_entries(world) == 1  # the other has read it


async def test_the_age_is_looked_at_now_and_then(
    world: Environment, clock: Clock, ada: Home
) -> None:
    await note(ada)
    clock.tick(seconds=(KEPT + HOUR).total_seconds())
    assert await delete_old_entries(world, by_age=False) == 0
    assert await delete_old_entries(world, by_age=True) == 1


async def streams(world: Environment, many: int, changes: int) -> None:
    """So many streams beside the others, each with changes of one event each."""
    keys = [world.new_id() for _ in range(many)]
    rows = [
        {
            "stream_id": key, "last": n, "at": world.now(), "kind": ChangeKind.USER_CHANGED,
            "ids": [key], "facts": {"modseq": n},
        }
        for key in keys
        for n in range(1, changes + 1)
    ]  # fmt: skip
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(Stream), [{"id": key, "last": changes} for key in keys])
        await connection.execute(insert(Change), rows)


async def test_trimming_costs_the_same_for_many_streams_and_is_done_in_portions(
    world: Environment, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, costs = short(world), list[int]()
    for many in (1, 20):
        await streams(world, many, 5)
        del statements[:]
        assert await delete_old_entries(few, by_age=False) == 2 * many
        costs.append(len([sent for sent in statements if "streams" in sent or "changes" in sent]))
    assert costs[0] == costs[1] == 5  # looked up, held, the end, removed, noted
    monkeypatch.setattr(journal_retention, "EVENTS_PER_TRANSACTION", 10)
    await streams(world, 3, 33)
    del statements[:]
    assert await delete_old_entries(few) == 90
    removed = [sent for sent in statements if sent.startswith("DELETE")]
    assert len(removed) == 9
    asked = select(col(Stream.id)).where(col(Stream.last) - col(Stream.gone) > 3)
    assert await few.database.read(asked) == []


async def test_stores_find_what_goes_by_the_key(world: Environment, clock: Clock) -> None:
    await streams(world, 500, 20)
    await hook(world)
    clock.tick(seconds=(KEPT + 2 * UNREAD_GRACE).total_seconds())
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE streams, changes"))
    few = short(world)
    with explained(world) as plans:
        length = await plans.of(
            delete_old_entries(few, by_age=False), "streams", asking="max(changes.last)"
        )
        age = await plans.of(delete_old_entries(few), "streams", asking="max(changes.last)")
    for plan in (length, age):
        assert "SCAN changes" not in plan, plan
        assert "Seq Scan on changes" not in plan, plan
        assert "webhook_feeds" in plan, plan
    assert await few.database.read(select(col(Change.last))) == []


async def test_the_platform_s_own_stream_is_trimmed_as_all_are(
    world: Environment, clock: Clock, ada: Home
) -> None:
    async with world.write_session(PLATFORM) as session:
        entry = JournalEntry(ChangeKind.SETTING_CHANGED, [ada.user_id])
        await record_entry(session, PLATFORM, entry, at=clock())
    clock.tick(seconds=(KEPT + HOUR).total_seconds())
    key = await hook(world, user_id=ada.user_id)
    assert await delete_old_entries(world) == 0  # it may tell of her
    async with world.write_session() as session:
        await session.delete(await session.get_one(Webhook, key))
    assert await delete_old_entries(world) == 1
