"""The mark outside the database, the incarnation, and what a new one changes."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlmodel import col

from mail.consistency import check_consistency
from mail.maintenance import restore_mark
from mail.maintenance.restore_mark import RestoreGuard, read_mark
from mail.storage.blobs.garbage_collector import (
    collect_garbage,
    insert_dropped_objects,
    remove_unnamed_objects,
)
from models.errors import Unauthenticated
from models.events.incarnation import MARK_OBJECT_NAME, DroppedObject, StoreIncarnation
from models.events.journal import Change, ChangeKind, Stream
from models.files.blobs import Blob
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from resolvers.changes.stream_reader import (
    FollowRequest,
    ResyncReason,
    follow_changes,
    load_current_positions,
    read_event_page,
)
from resolvers.context import Viewer
from resolvers.files import signed_urls
from tests.conftest import Client, Clock, context, receive
from tests.support.servers.live_server import note

WINDOW = timedelta(days=7)


pytestmark = pytest.mark.usefixtures("guard")


@pytest.fixture
async def guard(world: Environment) -> RestoreGuard:
    """The guard of the server, started."""
    made = RestoreGuard(world)
    await made.start()
    return made


async def sql(world: Environment, *statements: str) -> None:
    async with world.database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def lower(world: Environment, stream: int) -> None:
    """Let a stream end with the number before."""
    async with world.write_session() as session:
        less = update(Stream).where(col(Stream.id) == stream).values(last=Stream.last - 1)
        await (await session.connection()).execute(less)


async def restarted(world: Environment) -> Environment:
    """The world of the next process on the same store."""
    fresh = replace(world)
    await RestoreGuard(fresh).start()
    return fresh


async def set_back(world: Environment, client: Client) -> None:
    """Return the rows that tell of it to an earlier moment, as a restore does."""
    await sql(world, "UPDATE store_incarnation SET beat = 1")
    await lower(world, client.user.id)
    gone = select(func.max(col(Change.last))).where(col(Change.stream_id) == client.user.id)
    async with world.write_session() as session:
        last = (await (await session.connection()).execute(gone)).scalar_one()
        newest = (col(Change.stream_id) == client.user.id) & (col(Change.last) == last)
        await (await session.connection()).execute(delete(Change).where(newest))


async def validities(world: Environment) -> dict[int, int]:
    rows = await world.database.read(select(col(Mailbox.id), col(Mailbox.uid_validity)))
    return {row.id: row.uid_validity for row in rows}


async def test_a_sound_store_keeps_its_incarnation(guard: RestoreGuard, ada: Client) -> None:
    world, before = ada.world, await validities(ada.world)
    for clean in (True, False):
        if clean:
            await guard.stop()
        await note(ada, ChangeKind.LABEL_CHANGED, [1])
        fresh = await restarted(world)
        assert (fresh.incarnation.number, fresh.incarnation.base) == (0, 0)
    await guard.check_database()
    assert await validities(world) == before


async def test_a_database_that_is_older_than_the_mark_begins_a_new_incarnation(
    guard: RestoreGuard, ada: Client
) -> None:
    world, before = ada.world, await validities(ada.world)
    old = await load_current_positions(context(ada))
    await note(ada, ChangeKind.LABEL_CHANGED, [1])
    lost = await load_current_positions(context(ada))
    await guard.stop()
    await set_back(world, ada)
    fresh = await restarted(world)
    assert fresh.incarnation.number == 1
    mark = await read_mark(world)
    assert mark
    assert (mark.number, mark.base) == (1, fresh.incarnation.base)
    ada = replace(ada, world=fresh)
    for _ in range(3):
        await note(ada, ChangeKind.LABEL_CHANGED, [1])
    for since in (old, lost):
        batch = await read_event_page(context(ada), FollowRequest(since), 100)
        assert (batch.resync_reason, batch.events) == (ResyncReason.STORE_RESTORED, [])
        assert await load_current_positions(context(ada)) == batch.position
    after = await validities(world)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert len(set(after.values())) == len(after)
    assert not (await check_consistency(fresh)).unrepaired_findings
    again = await restarted(world)
    assert again.incarnation.base == fresh.incarnation.base


async def test_streams_of_the_mark_tell_of_a_restore_within_a_beat(ada: Client) -> None:
    mark = await read_mark(ada.world)
    assert mark
    at = await load_current_positions(context(ada))
    streams = {ada.user.id: at[ada.user.id] + 1, 77: 5}
    await restore_mark.write_mark(ada.world, replace(mark, streams=streams))
    assert (await restarted(ada.world)).incarnation.number == 1


@pytest.mark.parametrize("harm", ["no mark", "another store", "no row"])
async def test_a_mark_that_does_not_fit_begins_a_new_incarnation(ada: Client, harm: str) -> None:
    world = ada.world
    match harm:
        case "no mark":
            await world.object_store.delete([MARK_OBJECT_NAME])
        case "another store":
            mark = await read_mark(world)
            assert mark
            await restore_mark.write_mark(world, replace(mark, store="another"))
        case _:
            await sql(world, "DELETE FROM store_incarnation")
    assert (await restarted(world)).incarnation.base > 0


async def test_each_incarnation_begins_above_all_others(ada: Client) -> None:
    bases = [0]
    for _ in range(3):
        await sql(ada.world, "UPDATE store_incarnation SET beat = 0, base = 0, number = 0")
        bases.append((await restarted(ada.world)).incarnation.base)
    assert sorted(set(bases)) == bases
    assert bases[-1] < 2**53


async def test_a_clock_that_stands_still_does_not_repeat_numbers(ada: Client) -> None:
    first = await restore_mark.begin_after_consistent_restore(ada.world)
    validity = await validities(ada.world)
    second = await restore_mark.begin_after_consistent_restore(ada.world)
    assert second.base > first.base
    assert not set(validity.values()) & set((await validities(ada.world)).values())


async def test_two_servers_that_start_together_begin_one_incarnation(ada: Client) -> None:
    await sql(ada.world, "UPDATE store_incarnation SET beat = 0")
    found = await restore_mark.load_incarnation(ada.world)
    mark = await read_mark(ada.world)
    assert mark
    begun = [
        await restore_mark.begin_incarnation(ada.world, "test", found, mark.incarnation)
        for _ in range(2)
    ]
    assert begun[0] == begun[1]


async def test_a_server_that_runs_notices_lost_commits(guard: RestoreGuard, ada: Client) -> None:
    world = ada.world
    with world.wakeups.follow_all() as bell:
        await note(ada, ChangeKind.LABEL_CHANGED, [1])
        guard._remember_positions(bell)  # noqa: SLF001 - as its loop does
    await guard.check_database()
    assert world.incarnation.number == 0
    await lower(world, ada.user.id)
    await guard.check_database()
    assert world.incarnation.number == 1


async def test_a_follower_is_told_while_it_waits(ada: Client) -> None:
    ctx = context(ada)
    batches = follow_changes(ctx, FollowRequest(await load_current_positions(ctx)))
    coming = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0.2)
    assert not coming.done()
    await restore_mark.begin_after_consistent_restore(ada.world)
    async with asyncio.timeout(20):
        batch = await coming
        assert batch.resync_reason is ResyncReason.STORE_RESTORED
        last = await note(ada, ChangeKind.LABEL_CHANGED, [1])
        batch = await anext(batches)
    assert batch.position[ada.user.id] == last
    await batches.aclose()


async def test_a_process_that_only_compares_enters_what_another_began(ada: Client) -> None:
    other = replace(ada.world)
    watching = RestoreGuard(other, writes_marks=False)
    await restore_mark.load_incarnation(other)
    watching._seen_incarnation = other.incarnation  # noqa: SLF001 - as its loop does
    begun = await restore_mark.begin_after_consistent_restore(ada.world)
    await watching.check_database()
    assert other.incarnation.base == begun.base


async def test_links_of_another_incarnation_are_refused(ada: Client) -> None:
    world, by = ada.world, Viewer(ada.user.id, token_id=7)
    path, _, query = signed_urls.sign_path(
        world, "/rest/x", ada.user.id, by, now=world.now()
    ).partition("?")
    given = dict(pair.split("=") for pair in query.split("&"))
    assert signed_urls.verify_signed_path(world, path, given) == ada.user.id
    await restore_mark.begin_after_consistent_restore(world)
    with pytest.raises(Unauthenticated):
        signed_urls.verify_signed_path(world, path, given)


async def test_the_beat_is_raised_before_the_mark_is_written(
    guard: RestoreGuard, ada: Client
) -> None:
    for _ in range(3):
        await guard._write_next_mark()  # noqa: SLF001 - as its loop does
        (row,) = await ada.world.database.read(select(col(StoreIncarnation.beat)))
        mark = await read_mark(ada.world)
        assert mark
        assert mark.beat == row.beat


async def test_deliveries_cost_no_statement_for_the_mark(
    ada: Client, statements: list[str]
) -> None:
    await receive(ada, "one")
    assert not [each for each in statements if "store_incarnation" in each]


# ---------------------------------------------------------------- objects


async def test_objects_are_kept_as_long_as_a_restore_may_name_them(
    ada: Client, clock: Clock
) -> None:
    world = replace(ada.world, options=replace(ada.world.options, restore_window=WINDOW))
    name, other = "ab/" + "ab" * 32 + ".1", "cd/" + "cd" * 32 + ".2"
    await world.object_store.put(name, b"x")
    await world.object_store.put(other, b"y")
    await world.object_store.put(MARK_OBJECT_NAME, b"{}")
    key, now = world.new_id(), world.now()
    async with world.write_session() as session:
        session.add(
            Blob(
                id=key,
                tenant_id=1,
                digest="ab" * 32,
                size=1,
                stored_size=1,
                codec="raw",
                name=name,
                created_at=now,
            )
        )
    clock.tick(days=2)
    await collect_garbage(world, world.object_store, keep_objects_for=WINDOW)
    rows = await world.database.read(select(col(Blob.id)).where(col(Blob.id) == key))
    assert not rows
    assert await world.object_store.size(name) == await world.object_store.size(other) == 1
    await remove_unnamed_objects(world, ["ef/" + "ef" * 32 + ".3"])
    clock.tick(days=6)
    await collect_garbage(world, world.object_store, keep_objects_for=WINDOW)
    assert await world.object_store.size(name) == 1
    clock.tick(days=2)
    await collect_garbage(world, world.object_store, keep_objects_for=WINDOW)
    assert await world.object_store.size(name) is None
    assert await world.object_store.size(other) is None
    assert await world.object_store.size(MARK_OBJECT_NAME) == 2
    assert not await world.database.read(select(col(DroppedObject.name)))


async def test_an_object_that_is_named_again_stays(ada: Client, clock: Clock) -> None:
    world, name = ada.world, "ab/" + "ab" * 32 + ".1"
    await world.object_store.put(name, b"x")
    await world.run_transaction(
        lambda turn: insert_dropped_objects(turn.connection, [name], world.now())
    )
    async with world.write_session() as session:
        session.add(
            Blob(
                id=world.new_id(),
                tenant_id=1,
                digest="ab" * 32,
                size=1,
                stored_size=1,
                codec="raw",
                name=name,
                created_at=world.now(),
            )
        )
    clock.tick(hours=1)
    await collect_garbage(world, world.object_store)
    assert await world.object_store.size(name) == 1
