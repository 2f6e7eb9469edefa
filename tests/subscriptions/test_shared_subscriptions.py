"""Subscriptions that are shared: what each of them gets, and what they cost together."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import graphql.execution
import orjson
import pytest

from graph.http.graphql_request import GraphqlRequest, encode_json
from graph.schema import schema
from graph.subscriptions import result_stream
from merganser.settings.settings import Settings
from models.auth.credentials import ApiKey
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, Clock, context, make_key
from tests.support.servers.live_server import (
    MADE,
    NESTED,
    PLAIN,
    House,
    Slow,
    cursor,
    house,
    note,
    until,
)
from tests.support.stores import store_fixtures


@pytest.fixture
async def database(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A store of one kind: what is shared is shared above it."""
    database = Database(store_fixtures.copied(sqlite_template, tmp_path))
    yield database
    await database.close()


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The events that were executed, counted where they are."""
    counted: list[object] = []
    execute = graphql.execution.execute_subscription_event

    def count(executor: Any) -> Any:
        counted.append(executor)
        return execute(executor)

    monkeypatch.setattr(result_stream, "execute_subscription_event", count)
    return counted


async def create(client: Client, *paths: str) -> None:
    await mailbox_loaders.create_mailboxes(context(client), NewMailboxes(paths))


async def test_one_event_is_executed_and_written_once_for_all(
    live: House, ada: Client, executions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = [await live.follow(ada, PLAIN) for _ in range(8)]
    streams = [await live.stream(ada, PLAIN) for _ in range(2)]
    await until(lambda: live.seats == 10)
    assert len(live.groups) == 1
    texts: list[bytes] = []

    def write(data: object) -> bytes:
        texts.append(encode_json(data))
        return texts[-1]

    monkeypatch.setattr(result_stream, "encode_json", write)
    await create(ada, "Clients")
    everybody = sockets + streams
    await until(lambda: all(each.got for each in everybody))
    assert (len(executions), len(texts)) == (1, 1)
    assert [each.batches for each in everybody] == [sockets[0].batches] * 10
    for each in everybody:
        await each.leave()
    await until(lambda: not live.groups)


async def test_the_last_one_gone_ends_the_group(live: House, ada: Client) -> None:
    before = len(asyncio.all_tasks())
    one, other = [await live.follow(ada, PLAIN) for _ in range(2)]
    await until(lambda: live.seats == 2)
    assert one.ws
    await one.ws.send('{"type": "complete", "id": "1"}')
    await until(lambda: live.seats == 1)
    await create(ada, "Clients")
    await until(lambda: other.got)
    assert not one.got
    await other.leave()
    await until(lambda: not live.groups)
    await one.leave()
    await until(lambda: len(asyncio.all_tasks()) == before)
    assert not ada.world.wakeups.followed_streams


async def test_an_id_that_is_used_again_hears_nothing_of_the_former(
    live: House, ada: Client
) -> None:
    ws = await live.socket(ada)
    subscribe = {"type": "subscribe", "id": "1", "payload": {"query": PLAIN}}
    await ws.send(orjson.dumps(subscribe).decode())
    await until(lambda: live.seats == 1)
    await create(ada, "Clients")
    await ws.send('{"type": "complete", "id": "1"}')
    subscribe["payload"] = {"query": "{ viewer { role } }"}
    await ws.send(orjson.dumps(subscribe).decode())
    frames = [orjson.loads(await ws.recv())]
    while frames[-1]["type"] != "complete":
        frames.append(orjson.loads(await ws.recv()))
    kinds = [next(iter(frame["payload"]["data"])) for frame in frames[:-1]]
    assert kinds[-1] == "viewer"
    assert "changes" not in kinds[kinds.index("viewer") :]
    await ws.close()


async def test_several_operations_of_a_socket_share_with_others(live: House, ada: Client) -> None:
    ws = await live.socket(ada)
    for id_, query in (("a", PLAIN), ("b", PLAIN), ('"c"', NESTED)):
        frame = {"type": "subscribe", "id": id_, "payload": {"query": query}}
        await ws.send(orjson.dumps(frame).decode())
    await until(lambda: live.seats == 3)
    assert len(live.groups) == 2
    await create(ada, "Clients")
    frames = [orjson.loads(await ws.recv()) for _ in range(3)]
    assert {frame["id"] for frame in frames} == {"a", "b", '"c"'}
    assert {frame["type"] for frame in frames} == {"next"}
    await ws.close()
    await until(lambda: not live.groups)


async def test_nobody_shares_with_other_rights(
    live: House, ada: Client, bob: Client, executions: list[object]
) -> None:
    common = {"user_id": ada.user.id, "role": ada.user.role}
    same = await make_key(ada.world, "same", scopes=[Scope.MASTER], **common)
    narrow = await make_key(ada.world, "narrow", scopes=[Scope.MAIL_READ], **common)
    reader = await make_key(ada.world, "reader", scopes=[Scope.MASTER], read_only=True, **common)
    followers = [
        await live.follow(client, NESTED, secret=secret)
        for client, secret in (
            (ada, ""), (ada, same), (ada, narrow), (ada, reader), (bob, ""),
        )
    ]  # fmt: skip
    await until(lambda: live.seats == 5)
    assert sorted(len(group.members) for group in live.groups) == [1, 1, 1, 2]
    for group in live.groups:
        viewer = group.context.viewer
        assert (viewer.token_id, viewer.api_key_id, viewer.expires_at) == (None, None, None)
    await create(ada, "Hers")
    await until(lambda: all(each.got for each in followers[:4]))
    await create(bob, "His")
    await until(lambda: followers[4].got)
    assert len(executions) == 4
    assert [[event["path"] for event in each.events] for each in followers] == [["Hers"]] * 4 + [
        ["His"]
    ]
    for each in followers:
        await each.leave()


async def test_who_has_no_scope_is_refused_beside_those_who_have(live: House, ada: Client) -> None:
    poor = await make_key(
        ada.world, "poor", scopes=[Scope.SMTP], user_id=ada.user.id, role=ada.user.role
    )
    rich = await live.follow(ada, PLAIN)
    await until(lambda: live.seats == 1)
    turned_away = await live.follow(ada, PLAIN, secret=poor)
    await until(lambda: turned_away.over or turned_away.got)
    (error,) = turned_away.got[0]["errors"] if turned_away.got else turned_away.over["payload"]
    assert error["extensions"]["code"] == "FORBIDDEN"
    assert live.seats == 1
    await rich.leave()
    await turned_away.leave()


async def test_different_windows_and_hosts_do_not_share(live: House, ada: Client) -> None:
    query = "subscription ($w: Duration) { changes(batchWindow: $w) { cursor } }"
    followers = [await live.follow(ada, query, w=window) for window in ("PT0S", "PT0.1S", "PT0S")]
    followers += [await live.follow(ada, query, host="mail.example.org", w="PT0S")]
    await until(lambda: live.seats == 4)  # links in answers name the host that was asked
    assert sorted(len(group.members) for group in live.groups) == [1, 1, 2]
    for each in followers:
        await each.leave()


async def test_a_newcomer_does_not_wait_for_the_end_of_a_long_window(
    live: House, ada: Client
) -> None:
    query = 'subscription { changes(batchWindow: "PT20S") { cursor events { kind } } }'
    first = await live.follow(ada, query)
    await until(lambda: live.seats == 1)
    await create(ada, "One")
    await until(lambda: first.got)  # and its window runs
    second = await live.follow(ada, query)
    await until(lambda: any(group.catching_up for group in live.groups) or live.seats == 2)
    await create(ada, "Two")
    await until(lambda: second.got)
    assert (len(first.got), len(second.events)) == (1, 1)
    for each in (first, second):
        await each.leave()
    await until(lambda: not live.groups)


def test_where_to_go_on_is_no_part_of_what_is_asked() -> None:
    ctx = Context(cast("Environment", None), Viewer(7, Role.USER, frozenset({Scope.MASTER})))
    spaced = PLAIN.replace("after: $after", "after: $ after # $after\n")
    choosing = PLAIN.replace("($a", "($x: Boolean!, $a").replace("kind", "kind @skip(if: $x)")
    for query, variables in ((PLAIN, "{}"), (spaced, "{}"), (choosing, '{"x":true}')):
        given = {"after": "1.7.3", **({"x": True} if query is choosing else {})}
        asked = GraphqlRequest(query, given)
        known = result_stream.find_subscription(schema, asked, ctx)
        assert known
        opened = result_stream.check_subscription(schema, known, asked, ctx)
        assert not isinstance(opened, list)
        how = result_stream.subscription_sharing(opened, asked)
        assert how
        assert (how.variables_json, how.after_positions) == (variables, {7: 3})


async def test_a_credential_that_ends_takes_its_own_seat_only(
    live: House, ada: Client, clock: Clock
) -> None:
    ends = clock() + timedelta(minutes=1)
    brief = await make_key(
        ada.world, "brief", scopes=[Scope.MASTER], user_id=ada.user.id, role=ada.user.role,
        expires_at=ends,
    )  # fmt: skip
    lasting = await live.follow(ada, PLAIN)
    ending = await live.follow(ada, PLAIN, secret=brief)
    await until(lambda: live.seats == 2)
    assert len(live.groups) == 1
    await create(ada, "Before")
    await until(lambda: lasting.got and ending.got)
    clock.tick(minutes=2)
    await create(ada, "After")  # no sweep has looked yet
    await until(lambda: len(lasting.got) == 2 and ending.over)
    assert ending.ws
    await ending.ws.wait_closed()
    assert (len(ending.got), ending.ws.close_code) == (1, 4403)
    assert ending.over["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    await lasting.leave()


async def test_a_revoked_credential_takes_its_own_seat_only(live: House, ada: Client) -> None:
    other = await make_key(
        ada.world, "other", scopes=[Scope.MASTER], user_id=ada.user.id, role=ada.user.role
    )
    lasting, revoked = await live.follow(ada, PLAIN), await live.follow(ada, PLAIN, secret=other)
    await until(lambda: live.seats == 2)
    (key,) = [
        follower.viewer.api_key_id
        for follower in live.endpoint.connection_watch.connections
        if follower.viewer.api_key_id
        and (await _name(ada.world, follower.viewer.api_key_id)) == "other"
    ]
    await live.endpoint.connection_watch.disconnect_viewers(lambda viewer: viewer.api_key_id == key)
    await until(lambda: revoked.over)
    await create(ada, "After")
    await until(lambda: lasting.got)
    assert not revoked.got
    await lasting.leave()


async def _name(world: Environment, key: int) -> str:
    async with world.write_session() as session:
        found = await session.get(ApiKey, key)
        assert found
        return found.name


async def test_an_error_in_one_event_is_masked_and_the_stream_goes_on(
    live: House, ada: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from graph.changes import types as change_types

    followers = [await live.follow(ada, NESTED) for _ in range(3)]
    await until(lambda: live.seats == 3)
    shown = change_types.MailboxChange.from_event

    inside: Any = "the password is hunter2"

    def broken(event: Any) -> Any:
        made = shown(event)
        made.kind = inside
        return made

    monkeypatch.setattr(change_types.MailboxChange, "from_event", broken)
    await create(ada, "Broken")
    await until(lambda: all(each.got for each in followers))
    monkeypatch.undo()
    await create(ada, "Whole")
    await until(lambda: all(len(each.got) == 2 for each in followers))
    for each in followers:
        first, second = each.got
        assert first["data"] is None
        assert first["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
        assert "hunter2" not in str(first)
        assert [event["path"] for event in second["data"]["changes"]["events"]] == ["Whole"]
        await each.leave()
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_late_joiners_catch_up_and_then_share(
    live: House, ada: Client, executions: list[object]
) -> None:
    await create(ada, *(f"Old {number}" for number in range(5)))
    first = await live.follow(ada, PLAIN)
    await until(lambda: live.seats == 1)
    late = [await live.follow(ada, PLAIN, after=cursor(ada, after)) for after in (0, MADE + 2)]
    late += [await live.stream(ada, PLAIN, after=cursor(ada, MADE))]
    await until(lambda: live.seats == 4)
    fresh = await live.follow(ada, PLAIN, after=cursor(ada, MADE + 5))  # it has missed nothing
    await until(lambda: live.seats == 5)
    assert len(live.groups) == 1
    del executions[:]
    await create(ada, "New")
    await until(lambda: all(each.at == cursor(ada, MADE + 6) for each in [first, fresh, *late]))
    assert len(executions) == 1
    for each, missed in zip([first, fresh, *late], (0, 0, MADE + 5, 3, 5), strict=True):
        places = [event["cursor"] for event in each.events]
        assert places == [cursor(ada, MADE + 6 - missed + n) for n in range(missed + 1)]
        await each.leave()


@pytest.mark.parametrize("by_socket", [True, False])
async def test_who_does_not_read_holds_up_nobody_and_gets_the_rest_folded(
    live: House, ada: Client, by_socket: bool
) -> None:
    query = """subscription { changes(batchWindow: "PT0S") { cursor events { kind
        ... on MailboxChange { path } ... on ResyncChange { reason } } } }"""
    with Slow(live.port) as slow:
        await slow.ask(ada, query, by_socket=by_socket)
        healthy = await live.follow(ada, query)
        await until(lambda: live.seats == 2)
        assert len(live.groups) == 1
        tracemalloc.start()
        long = "x" * 120_000
        for number in range(60):  # 7 MB; the kernel holds some 3 of them, and one batch is read
            await note(ada, ChangeKind.MAILBOX_UPDATED, [1], path=f"{number} {long}")
            await until(lambda: len(healthy.events) == number + 1)  # noqa: B023
            del healthy.got[:-1]
            healthy.got[0]["data"]["changes"]["events"] = [{}] * (number + 1)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 5_000_000
        assert live.seats == 1  # it is on its own now, and has not been forgotten
        await create(ada, "End")
        rest = await slow.read(b'"path":"End"')
        numbers = [int(part.split(b" ", 1)[0]) for part in rest.split(b'"path":"')[1:-1]]
        assert numbers == list(range(60))
        assert rest.count(b'"cursor":') < 55  # the last ones came together
        await until(lambda: live.seats == 2)
    await healthy.leave()
    await until(lambda: not live.groups)


async def test_who_is_too_far_behind_is_told_so_once(live: House, ada: Client) -> None:
    query = """subscription { changes(batchWindow: "PT0S") { cursor events { kind
        ... on MailboxChange { path } ... on ResyncChange { reason } } } }"""
    with Slow(live.port) as slow:
        await slow.ask(ada, query, by_socket=True)
        healthy = await live.follow(ada, PLAIN)
        await until(lambda: live.seats == 2)
        long = "x" * 1_000_000
        for number in range(8):
            await note(ada, ChangeKind.MAILBOX_UPDATED, [1], path=f"{number} {long}")
            await until(lambda: len(healthy.events) == number + 1)  # noqa: B023
        for _ in range(11):
            last = await note(ada, ChangeKind.TASK_CHANGED, [1] * 1000)
        await until(lambda: len(healthy.events) == 11_008)  # who reads gets all of them
        rest = await slow.read(b'"reason":"OVERFLOW"}]}}}}'[:-2])
        assert rest.count(b'"RESYNC"') == 1
        assert cursor(ada, last).encode() in rest[-300:]
        assert b'"TASK_CHANGED"' not in rest
        await create(ada, "End")
        assert b'"path":"End"' in await slow.read(b'"path":"End"')
        await healthy.leave()


@pytest.mark.parametrize("by_socket", [True, False])
async def test_who_takes_nothing_for_long_is_cut_off(
    world: Environment, tmp_path: Path, ada: Client, by_socket: bool
) -> None:
    query = "subscription { changes { cursor events { ... on MailboxChange { path } } } }"
    settings = Settings(write_timeout=timedelta(milliseconds=500))
    async with house(world, tmp_path, settings) as live:
        with Slow(live.port) as slow:
            await slow.ask(ada, query, by_socket=by_socket)
            await until(lambda: live.seats == 1)
            await note(ada, ChangeKind.MAILBOX_UPDATED, [1] * 8, path="x" * 1_000_000)
            await until(lambda: not live.endpoint.connection_watch.connections)
            await until(lambda: not live.groups)


async def test_a_key_of_the_platform_has_no_stream(live: House, root: Client) -> None:
    nobody = await live.follow(root, PLAIN)
    await until(lambda: nobody.got)
    assert nobody.got[0]["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert not live.groups
    await nobody.leave()
