"""The restore mark in the object store, the incarnation, and the effects of a new one."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlmodel import col

from mail.consistency import check_consistency
from mail.maintenance import restore_mark
from mail.maintenance.restore_mark import RestoreGuard, read_mark_or_none
from mail.storage.blobs.garbage_collector import (
    collect_garbage,
    delete_dropped_objects_now_or_after_window,
    insert_dropped_objects,
)
from models.errors import Unauthenticated
from models.events.event_types import EventType
from models.events.incarnation import MARK_OBJECT_NAME, DroppedObject, StoreIncarnation
from models.events.journal import Change, Stream
from models.files.blobs import Blob
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from resolvers.changes.stream_reader import (
    FollowRequest,
    ResyncReason,
    follow_changes,
    load_last_stream_positions,
    read_event_page,
)
from resolvers.files import signed_urls
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to
from tests.support.clients.change_followers import wait_for_followers
from tests.support.servers.live_server import record_journal_entry
from tests.support.time_limits import HANG_SECONDS

RESTORE_WINDOW = timedelta(days=7)


pytestmark = pytest.mark.usefixtures("restore_guard")


@pytest.fixture
async def restore_guard(environment: Environment) -> RestoreGuard:
    """Return the restore guard of the server after its first comparison."""
    started_guard = RestoreGuard(environment)
    await started_guard.begin_incarnation_if_restored_and_write_mark()
    return started_guard


async def execute_sql(environment: Environment, *statements: str) -> None:
    async with environment.database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def decrement_stream(environment: Environment, stream_id: int) -> None:
    """Decrement the last position of a stream."""
    async with environment.write_session() as session:
        statement = update(Stream).where(col(Stream.id) == stream_id).values(last=Stream.last - 1)
        await (await session.connection()).execute(statement)


async def restart_process(environment: Environment) -> Environment:
    """Return the environment of the next process on the same database."""
    next_environment = replace(environment)
    await RestoreGuard(next_environment).begin_incarnation_if_restored_and_write_mark()
    return next_environment


async def simulate_restore(environment: Environment, client: GraphQLClient) -> None:
    """Return the incarnation and the stream of the user to an earlier state, as a restore does."""
    await execute_sql(environment, "UPDATE store_incarnation SET beat = 1")
    await decrement_stream(environment, client.user.id)
    last_position_statement = select(func.max(col(Change.last))).where(
        col(Change.stream_id) == client.user.id
    )
    async with environment.write_session() as session:
        last = (await (await session.connection()).execute(last_position_statement)).scalar_one()
        is_newest = (col(Change.stream_id) == client.user.id) & (col(Change.last) == last)
        await (await session.connection()).execute(delete(Change).where(is_newest))


async def uid_validities(environment: Environment) -> dict[int, int]:
    rows = await environment.database.read(select(col(Mailbox.id), col(Mailbox.uid_validity)))
    return {row.id: row.uid_validity for row in rows}


async def test_unrestored_database_keeps_its_incarnation(
    restore_guard: RestoreGuard, ada: GraphQLClient
) -> None:
    environment, before = ada.environment, await uid_validities(ada.environment)
    for clean_stop in (True, False):
        if clean_stop:
            await restore_guard.write_clean_stop_mark()
        await record_journal_entry(ada, EventType.LABEL_UPDATED, [1])
        next_environment = await restart_process(environment)
        assert (next_environment.incarnation.number, next_environment.incarnation.base) == (0, 0)
    await restore_guard.begin_incarnation_if_older_than_seen()
    assert await uid_validities(environment) == before


async def test_database_older_than_the_mark_begins_a_new_incarnation(
    restore_guard: RestoreGuard, ada: GraphQLClient
) -> None:
    environment, before = ada.environment, await uid_validities(ada.environment)
    old_positions = await load_last_stream_positions(client_context(ada))
    await record_journal_entry(ada, EventType.LABEL_UPDATED, [1])
    lost_positions = await load_last_stream_positions(client_context(ada))
    await restore_guard.write_clean_stop_mark()
    await simulate_restore(environment, ada)
    next_environment = await restart_process(environment)
    assert next_environment.incarnation.number == 1
    mark = await read_mark_or_none(environment)
    assert mark
    assert (mark.number, mark.base) == (1, next_environment.incarnation.base)
    ada = replace(ada, environment=next_environment)
    for _ in range(3):
        await record_journal_entry(ada, EventType.LABEL_UPDATED, [1])
    for positions in (old_positions, lost_positions):
        batch = await read_event_page(client_context(ada), FollowRequest(positions), 100)
        assert (batch.resync_reason, batch.events) == (ResyncReason.STORE_RESTORED, [])
        assert await load_last_stream_positions(client_context(ada)) == batch.position
    after = await uid_validities(environment)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert len(set(after.values())) == len(after)
    assert not (await check_consistency(next_environment)).unrepaired_findings
    later_environment = await restart_process(environment)
    assert later_environment.incarnation.base == next_environment.incarnation.base


async def test_stream_positions_of_the_mark_reveal_a_restore(ada: GraphQLClient) -> None:
    mark = await read_mark_or_none(ada.environment)
    assert mark
    positions = await load_last_stream_positions(client_context(ada))
    streams = {ada.user.id: positions[ada.user.id] + 1, 77: 5}
    await restore_mark.write_mark(ada.environment, replace(mark, streams=streams))
    assert (await restart_process(ada.environment)).incarnation.number == 1


@pytest.mark.parametrize("damage", ["no mark", "another database", "no row"])
async def test_missing_or_foreign_mark_begins_a_new_incarnation(
    ada: GraphQLClient, damage: str
) -> None:
    environment = ada.environment
    match damage:
        case "no mark":
            await environment.object_store.delete([MARK_OBJECT_NAME])
        case "another database":
            mark = await read_mark_or_none(environment)
            assert mark
            await restore_mark.write_mark(environment, replace(mark, store="another"))
        case _:
            await execute_sql(environment, "DELETE FROM store_incarnation")
    assert (await restart_process(environment)).incarnation.base > 0


async def test_base_of_each_incarnation_is_higher(ada: GraphQLClient) -> None:
    bases = [0]
    for _ in range(3):
        await execute_sql(
            ada.environment, "UPDATE store_incarnation SET beat = 0, base = 0, number = 0"
        )
        bases.append((await restart_process(ada.environment)).incarnation.base)
    assert sorted(set(bases)) == bases
    assert bases[-1] < 2**53


async def test_stopped_clock_repeats_no_numbers(ada: GraphQLClient) -> None:
    first = await restore_mark.begin_incarnation_after_consistent_restore(ada.environment)
    first_validities = await uid_validities(ada.environment)
    second = await restore_mark.begin_incarnation_after_consistent_restore(ada.environment)
    assert second.base > first.base
    assert not set(first_validities.values()) & set(
        (await uid_validities(ada.environment)).values()
    )


async def test_servers_that_start_together_begin_one_incarnation(ada: GraphQLClient) -> None:
    await execute_sql(ada.environment, "UPDATE store_incarnation SET beat = 0")
    loaded = await restore_mark.load_and_enter_incarnation(ada.environment)
    mark = await read_mark_or_none(ada.environment)
    assert mark
    incarnations = [
        await restore_mark.begin_incarnation_unless_begun(
            ada.environment, "test", loaded, mark.incarnation
        )
        for _ in range(2)
    ]
    assert incarnations[0] == incarnations[1]


async def test_running_server_detects_lost_commits(
    restore_guard: RestoreGuard, ada: GraphQLClient
) -> None:
    environment = ada.environment
    with environment.wakeups.follow_all_streams() as wakeup:
        await record_journal_entry(ada, EventType.LABEL_UPDATED, [1])
        restore_guard._take_positions_and_return_has_grown(wakeup)  # noqa: SLF001 - as the guard's loop does
    await restore_guard.begin_incarnation_if_older_than_seen()
    assert environment.incarnation.number == 0
    await decrement_stream(environment, ada.user.id)
    await restore_guard.begin_incarnation_if_older_than_seen()
    assert environment.incarnation.number == 1


async def test_waiting_follower_gets_a_resync(ada: GraphQLClient) -> None:
    ctx = client_context(ada)
    batches = follow_changes(ctx, FollowRequest(await load_last_stream_positions(ctx)))
    next_batch = asyncio.ensure_future(anext(batches))
    await wait_for_followers(ada.environment)
    assert not next_batch.done()
    await restore_mark.begin_incarnation_after_consistent_restore(ada.environment)
    async with asyncio.timeout(HANG_SECONDS):
        batch = await next_batch
        assert batch.resync_reason is ResyncReason.STORE_RESTORED
        position = await record_journal_entry(ada, EventType.LABEL_UPDATED, [1])
        batch = await anext(batches)
    assert batch.position[ada.user.id] == position
    await batches.aclose()


async def test_process_without_marks_enters_the_new_incarnation(ada: GraphQLClient) -> None:
    other_environment = replace(ada.environment)
    other_guard = RestoreGuard(other_environment, writes_marks=False)
    await restore_mark.load_and_enter_incarnation(other_environment)
    other_guard._seen_incarnation = other_environment.incarnation  # noqa: SLF001 - as the guard's loop does
    incarnation = await restore_mark.begin_incarnation_after_consistent_restore(ada.environment)
    await other_guard.begin_incarnation_if_older_than_seen()
    assert other_environment.incarnation.base == incarnation.base


async def test_signed_url_of_another_incarnation_is_refused(ada: GraphQLClient) -> None:
    environment, viewer = ada.environment, Viewer(ada.user.id, token_id=7)
    path, _, query = signed_urls.sign_path(
        environment, "/rest/x", ada.user.id, viewer, now=environment.now()
    ).partition("?")
    parameters = dict(pair.split("=") for pair in query.split("&"))
    assert signed_urls.verified_user_id_of_signed_path(environment, path, parameters) == ada.user.id
    await restore_mark.begin_incarnation_after_consistent_restore(environment)
    with pytest.raises(Unauthenticated):
        signed_urls.verified_user_id_of_signed_path(environment, path, parameters)


async def test_beat_is_incremented_before_the_mark_is_written(
    restore_guard: RestoreGuard, ada: GraphQLClient
) -> None:
    for _ in range(3):
        await restore_guard._write_next_mark()  # noqa: SLF001 - as the guard's loop does
        (row,) = await ada.environment.database.read(select(col(StoreIncarnation.beat)))
        mark = await read_mark_or_none(ada.environment)
        assert mark
        assert mark.beat == row.beat


async def test_delivery_needs_no_statement_for_the_mark(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await deliver_to(ada, "one")
    assert not [statement for statement in statements if "store_incarnation" in statement]


async def test_dropped_objects_are_kept_for_the_restore_window(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = replace(
        ada.environment,
        options=replace(ada.environment.options, backup_restore_window=RESTORE_WINDOW),
    )
    name, unreferenced_name = "ab/" + "ab" * 32 + ".1", "cd/" + "cd" * 32 + ".2"
    await environment.object_store.put(name, b"x")
    await environment.object_store.put(unreferenced_name, b"y")
    await environment.object_store.put(MARK_OBJECT_NAME, b"{}")
    blob_id, now = environment.new_id(), environment.now()
    async with environment.write_session() as session:
        session.add(
            Blob(
                id=blob_id,
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
    await collect_garbage(environment, environment.object_store, keep_objects_for=RESTORE_WINDOW)
    rows = await environment.database.read(select(col(Blob.id)).where(col(Blob.id) == blob_id))
    assert not rows
    assert (
        await environment.object_store.size(name)
        == await environment.object_store.size(unreferenced_name)
        == 1
    )
    await delete_dropped_objects_now_or_after_window(environment, ["ef/" + "ef" * 32 + ".3"])
    clock.tick(days=6)
    await collect_garbage(environment, environment.object_store, keep_objects_for=RESTORE_WINDOW)
    assert await environment.object_store.size(name) == 1
    clock.tick(days=2)
    await collect_garbage(environment, environment.object_store, keep_objects_for=RESTORE_WINDOW)
    assert await environment.object_store.size(name) is None
    assert await environment.object_store.size(unreferenced_name) is None
    assert await environment.object_store.size(MARK_OBJECT_NAME) == 2
    assert not await environment.database.read(select(col(DroppedObject.name)))


async def test_object_that_is_referenced_again_is_kept(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment, name = ada.environment, "ab/" + "ab" * 32 + ".1"
    await environment.object_store.put(name, b"x")
    await environment.run_transaction(
        lambda transaction: insert_dropped_objects(
            transaction.connection, [name], environment.now()
        )
    )
    async with environment.write_session() as session:
        session.add(
            Blob(
                id=environment.new_id(),
                tenant_id=1,
                digest="ab" * 32,
                size=1,
                stored_size=1,
                codec="raw",
                name=name,
                created_at=environment.now(),
            )
        )
    clock.tick(hours=1)
    await collect_garbage(environment, environment.object_store)
    assert await environment.object_store.size(name) == 1


async def test_failed_check_is_logged_once_and_a_bug_with_its_traceback(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    await environment.object_store.put(MARK_OBJECT_NAME, b"{}")  # no version wrote such a mark
    guard = RestoreGuard(environment)
    for _ in range(3):  # as the loop does after each interval
        assert not await guard._try_check_and_write_mark(write=True)  # noqa: SLF001
    (record,) = [record for record in caplog.records if "incarnation mark" in record.getMessage()]
    assert record.exc_info
    assert isinstance(record.exc_info[1], KeyError)
