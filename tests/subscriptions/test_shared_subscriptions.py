"""Tests of shared subscriptions: what each subscriber receives, and what they cost together."""

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
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context, make_api_key
from tests.support.servers.live_server import (
    CHANGES_SUBSCRIPTION,
    NESTED_CHANGES_SUBSCRIPTION,
    NEW_ACCOUNT_EVENT_COUNT,
    LiveServer,
    SlowClient,
    record_journal_entry,
    run_live_server,
    stream_cursor,
    wait_until,
)
from tests.support.stores import store_fixtures


@pytest.fixture
async def database(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A SQLite database: sharing does not depend on the database."""
    database = Database(store_fixtures.copy_sqlite_template(sqlite_template, tmp_path))
    yield database
    await database.close()


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The executed events."""
    executed: list[object] = []
    execute = graphql.execution.execute_subscription_event

    def record_and_execute(executor: Any) -> Any:
        executed.append(executor)
        return execute(executor)

    monkeypatch.setattr(result_stream, "execute_subscription_event", record_and_execute)
    return executed


async def create(client: GraphQLClient, *paths: str) -> None:
    await mailbox_create.create_mailboxes(client_context(client), NewMailboxes(paths))


async def test_event_is_executed_and_serialized_once_for_all(
    live_server: LiveServer,
    ada: GraphQLClient,
    executions: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = [await live_server.follow(ada, CHANGES_SUBSCRIPTION) for _ in range(8)]
    streams = [await live_server.stream(ada, CHANGES_SUBSCRIPTION) for _ in range(2)]
    await wait_until(lambda: live_server.subscriber_count == 10)
    assert len(live_server.groups) == 1
    texts: list[bytes] = []

    def record_and_encode(data: object) -> bytes:
        texts.append(encode_json(data))
        return texts[-1]

    monkeypatch.setattr(result_stream, "encode_json", record_and_encode)
    await create(ada, "Clients")
    followers = sockets + streams
    await wait_until(lambda: all(follower.payloads for follower in followers))
    assert (len(executions), len(texts)) == (1, 1)
    assert [follower.batches for follower in followers] == [sockets[0].batches] * 10
    for follower in followers:
        await follower.unsubscribe()
    await wait_until(lambda: not live_server.groups)


async def test_group_ends_with_its_last_member(live_server: LiveServer, ada: GraphQLClient) -> None:
    task_count = len(asyncio.all_tasks())
    completed_follower, other_follower = [
        await live_server.follow(ada, CHANGES_SUBSCRIPTION) for _ in range(2)
    ]
    await wait_until(lambda: live_server.subscriber_count == 2)
    assert completed_follower.ws
    await completed_follower.ws.send('{"type": "complete", "id": "1"}')
    await wait_until(lambda: live_server.subscriber_count == 1)
    await create(ada, "Clients")
    await wait_until(lambda: other_follower.payloads)
    assert not completed_follower.payloads
    await other_follower.unsubscribe()
    await wait_until(lambda: not live_server.groups)
    await completed_follower.unsubscribe()
    await wait_until(lambda: len(asyncio.all_tasks()) == task_count)
    assert not ada.environment.wakeups.followed_streams


async def test_reused_operation_id_gets_no_earlier_events(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    ws = await live_server.open_websocket(ada)
    subscribe = {"type": "subscribe", "id": "1", "payload": {"query": CHANGES_SUBSCRIPTION}}
    await ws.send(orjson.dumps(subscribe).decode())
    await wait_until(lambda: live_server.subscriber_count == 1)
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


async def test_operations_of_one_socket_share_with_others(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    ws = await live_server.open_websocket(ada)
    for id_, query in (
        ("a", CHANGES_SUBSCRIPTION),
        ("b", CHANGES_SUBSCRIPTION),
        ('"c"', NESTED_CHANGES_SUBSCRIPTION),
    ):
        frame = {"type": "subscribe", "id": id_, "payload": {"query": query}}
        await ws.send(orjson.dumps(frame).decode())
    await wait_until(lambda: live_server.subscriber_count == 3)
    assert len(live_server.groups) == 2
    await create(ada, "Clients")
    frames = [orjson.loads(await ws.recv()) for _ in range(3)]
    assert {frame["id"] for frame in frames} == {"a", "b", '"c"'}
    assert {frame["type"] for frame in frames} == {"next"}
    await ws.close()
    await wait_until(lambda: not live_server.groups)


async def test_subscriptions_with_different_rights_are_not_shared(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, executions: list[object]
) -> None:
    key_owner = {"user_id": ada.user.id, "role": ada.user.role}
    same_key = await make_api_key(ada.environment, "same", scopes=[Scope.FULL], **key_owner)
    narrow_key = await make_api_key(
        ada.environment, "narrow", scopes=[Scope.MAIL_READ], **key_owner
    )
    read_only_key = await make_api_key(
        ada.environment, "reader", scopes=[Scope.FULL], read_only=True, **key_owner
    )
    followers = [
        await live_server.follow(client, NESTED_CHANGES_SUBSCRIPTION, secret=secret)
        for client, secret in (
            (ada, ""), (ada, same_key), (ada, narrow_key), (ada, read_only_key), (bob, ""),
        )
    ]  # fmt: skip
    await wait_until(lambda: live_server.subscriber_count == 5)
    assert sorted(len(group.members) for group in live_server.groups) == [1, 1, 1, 2]
    for group in live_server.groups:
        viewer = group.context.viewer
        assert (viewer.token_id, viewer.api_key_id, viewer.expires_at) == (None, None, None)
    await create(ada, "Hers")
    await wait_until(lambda: all(follower.payloads for follower in followers[:4]))
    await create(bob, "His")
    await wait_until(lambda: followers[4].payloads)
    assert len(executions) == 4
    assert [[event["path"] for event in follower.events] for follower in followers] == [
        ["Hers"]
    ] * 4 + [["His"]]
    for follower in followers:
        await follower.unsubscribe()


async def test_subscriber_without_scope_is_refused(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    smtp_key = await make_api_key(
        ada.environment, "poor", scopes=[Scope.SMTP], user_id=ada.user.id, role=ada.user.role
    )
    allowed_follower = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 1)
    refused_follower = await live_server.follow(ada, CHANGES_SUBSCRIPTION, secret=smtp_key)
    await wait_until(lambda: refused_follower.end_frame or refused_follower.payloads)
    (error,) = (
        refused_follower.payloads[0]["errors"]
        if refused_follower.payloads
        else refused_follower.end_frame["payload"]
    )
    assert error["extensions"]["code"] == "FORBIDDEN"
    assert live_server.subscriber_count == 1
    await allowed_follower.unsubscribe()
    await refused_follower.unsubscribe()


async def test_different_batch_windows_and_hosts_are_not_shared(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    query = "subscription ($w: Duration) { changes(debounce: $w) { cursor } }"
    followers = [
        await live_server.follow(ada, query, w=window) for window in ("PT0S", "PT0.1S", "PT0S")
    ]
    followers += [await live_server.follow(ada, query, host="mail.example.org", w="PT0S")]
    # links in results contain the host of the request
    await wait_until(lambda: live_server.subscriber_count == 4)
    assert sorted(len(group.members) for group in live_server.groups) == [1, 1, 2]
    for follower in followers:
        await follower.unsubscribe()


async def test_new_subscriber_does_not_wait_for_running_debounce(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    query = 'subscription { changes(debounce: "PT20S") { cursor events { type } } }'
    first = await live_server.follow(ada, query)
    await wait_until(lambda: live_server.subscriber_count == 1)
    await create(ada, "One")
    await wait_until(lambda: first.payloads)  # its batch window has started
    second = await live_server.follow(ada, query)
    await wait_until(
        lambda: (
            any(group.catching_up for group in live_server.groups)
            or live_server.subscriber_count == 2
        )
    )
    await create(ada, "Two")
    await wait_until(lambda: second.payloads)
    assert (len(first.payloads), len(second.events)) == (1, 1)
    for follower in (first, second):
        await follower.unsubscribe()
    await wait_until(lambda: not live_server.groups)


def test_after_variable_is_not_part_of_sharing_key() -> None:
    ctx = Context(cast("Environment", None), Viewer(7, Role.USER, frozenset({Scope.FULL})))
    spaced_query = CHANGES_SUBSCRIPTION.replace("after: $after", "after: $ after # $after\n")
    directive_query = CHANGES_SUBSCRIPTION.replace("($a", "($x: Boolean!, $a").replace(
        "type", "type @skip(if: $x)"
    )
    for query, variables in (
        (CHANGES_SUBSCRIPTION, "{}"),
        (spaced_query, "{}"),
        (directive_query, '{"x":true}'),
    ):
        all_variables = {"after": "1.7.3", **({"x": True} if query is directive_query else {})}
        request = GraphqlRequest(query, all_variables)
        document = result_stream.find_subscription_charging_if_uncached(schema, request, ctx)
        assert document
        subscription = result_stream.check_and_charge_subscription(schema, document, request, ctx)
        assert not isinstance(subscription, list)
        sharing = result_stream.subscription_sharing_or_none(subscription, request)
        assert sharing
        assert (sharing.variables_json, sharing.after_positions) == (variables, {7: 3})


async def test_expired_credential_ends_only_its_subscription(
    live_server: LiveServer, ada: GraphQLClient, clock: ManualClock
) -> None:
    expires_at = clock() + timedelta(minutes=1)
    expiring_key = await make_api_key(
        ada.environment, "brief", scopes=[Scope.FULL], user_id=ada.user.id, role=ada.user.role,
        expires_at=expires_at,
    )  # fmt: skip
    lasting = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    ending = await live_server.follow(ada, CHANGES_SUBSCRIPTION, secret=expiring_key)
    await wait_until(lambda: live_server.subscriber_count == 2)
    assert len(live_server.groups) == 1
    await create(ada, "Before")
    await wait_until(lambda: lasting.payloads and ending.payloads)
    clock.tick(minutes=2)
    await create(ada, "After")  # no periodic check has run yet
    await wait_until(lambda: len(lasting.payloads) == 2 and ending.end_frame)
    assert ending.ws
    await ending.ws.wait_closed()
    assert (len(ending.payloads), ending.ws.close_code) == (1, 4403)
    assert ending.end_frame["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    await lasting.unsubscribe()


async def test_revoked_credential_ends_only_its_subscription(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    other_key = await make_api_key(
        ada.environment, "other", scopes=[Scope.FULL], user_id=ada.user.id, role=ada.user.role
    )
    lasting = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    revoked = await live_server.follow(ada, CHANGES_SUBSCRIPTION, secret=other_key)
    await wait_until(lambda: live_server.subscriber_count == 2)
    (key_id,) = [
        follower.viewer.api_key_id
        for follower in live_server.endpoint.connection_watch.connections
        if follower.viewer.api_key_id
        and (await _api_key_name(ada.environment, follower.viewer.api_key_id)) == "other"
    ]
    await live_server.endpoint.connection_watch.disconnect_viewers(
        lambda viewer: viewer.api_key_id == key_id
    )
    await wait_until(lambda: revoked.end_frame)
    await create(ada, "After")
    await wait_until(lambda: lasting.payloads)
    assert not revoked.payloads
    await lasting.unsubscribe()


async def _api_key_name(environment: Environment, key_id: int) -> str:
    async with environment.write_session() as session:
        api_key = await session.get(ApiKey, key_id)
        assert api_key
        return api_key.name


async def test_error_in_event_is_masked_and_stream_continues(
    live_server: LiveServer,
    ada: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from graph.changes import types as change_types

    followers = [await live_server.follow(ada, NESTED_CHANGES_SUBSCRIPTION) for _ in range(3)]
    await wait_until(lambda: live_server.subscriber_count == 3)
    from_event = change_types.MailboxChange.from_event

    hidden_text: Any = "the password is hunter2"

    def make_broken_event(event: Any) -> Any:
        change = from_event(event)
        change.type = hidden_text
        return change

    monkeypatch.setattr(change_types.MailboxChange, "from_event", make_broken_event)
    await create(ada, "Broken")
    await wait_until(lambda: all(follower.payloads for follower in followers))
    monkeypatch.undo()
    await create(ada, "Whole")
    await wait_until(lambda: all(len(follower.payloads) == 2 for follower in followers))
    for follower in followers:
        first, second = follower.payloads
        assert first["data"] is None
        assert first["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
        assert "hunter2" not in str(first)
        assert [event["path"] for event in second["data"]["changes"]["events"]] == ["Whole"]
        await follower.unsubscribe()
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_late_subscribers_catch_up_and_then_share(
    live_server: LiveServer, ada: GraphQLClient, executions: list[object]
) -> None:
    await create(ada, *(f"Old {number}" for number in range(5)))
    first = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 1)
    late_followers = [
        await live_server.follow(ada, CHANGES_SUBSCRIPTION, after=stream_cursor(ada, after))
        for after in (0, NEW_ACCOUNT_EVENT_COUNT + 2)
    ]
    late_followers += [
        await live_server.stream(
            ada, CHANGES_SUBSCRIPTION, after=stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
        )
    ]
    await wait_until(lambda: live_server.subscriber_count == 4)
    current_follower = await live_server.follow(
        ada, CHANGES_SUBSCRIPTION, after=stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 5)
    )  # no missed events
    await wait_until(lambda: live_server.subscriber_count == 5)
    assert len(live_server.groups) == 1
    del executions[:]
    await create(ada, "New")
    await wait_until(
        lambda: all(
            follower.last_cursor == stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 6)
            for follower in [first, current_follower, *late_followers]
        )
    )
    assert len(executions) == 1
    for follower, missed_count in zip(
        [first, current_follower, *late_followers],
        (0, 0, NEW_ACCOUNT_EVENT_COUNT + 5, 3, 5),
        strict=True,
    ):
        positions = [event["cursor"] for event in follower.events]
        assert positions == [
            stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 6 - missed_count + index)
            for index in range(missed_count + 1)
        ]
        await follower.unsubscribe()


@pytest.mark.parametrize("is_websocket", [True, False])
async def test_slow_reader_delays_no_one_and_gets_batched_events(
    live_server: LiveServer, ada: GraphQLClient, is_websocket: bool
) -> None:
    query = """subscription { changes(debounce: "PT0S") { cursor events { type
        ... on MailboxChange { path } ... on ResyncChange { reason } } } }"""
    with SlowClient(live_server.port) as slow_client:
        await slow_client.subscribe(ada, query, by_websocket=is_websocket)
        healthy = await live_server.follow(ada, query)
        await wait_until(lambda: live_server.subscriber_count == 2)
        assert len(live_server.groups) == 1
        tracemalloc.start()
        padding = "x" * 120_000
        for number in range(60):  # 7 MB: the kernel buffers about 3 MB, and one batch is read
            await record_journal_entry(
                ada, EventType.MAILBOX_UPDATED, [1], path=f"{number} {padding}"
            )
            await wait_until(lambda: len(healthy.events) == number + 1)  # noqa: B023
            del healthy.payloads[:-1]
            healthy.payloads[0]["data"]["changes"]["events"] = [{}] * (number + 1)
        memory, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert memory < 5_000_000
        # the slow reader has left the group and is still subscribed
        assert live_server.subscriber_count == 1
        await create(ada, "End")
        received = await slow_client.read_until(b'"path":"End"')
        numbers = [int(part.split(b" ", 1)[0]) for part in received.split(b'"path":"')[1:-1]]
        assert numbers == list(range(60))
        assert received.count(b'"cursor":') < 55  # the last events were batched
        await wait_until(lambda: live_server.subscriber_count == 2)
    await healthy.unsubscribe()
    await wait_until(lambda: not live_server.groups)


async def test_reader_too_far_behind_gets_one_resync(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    query = """subscription { changes(debounce: "PT0S") { cursor events { type
        ... on MailboxChange { path } ... on ResyncChange { reason } } } }"""
    with SlowClient(live_server.port) as slow_client:
        await slow_client.subscribe(ada, query, by_websocket=True)
        healthy = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
        await wait_until(lambda: live_server.subscriber_count == 2)
        padding = "x" * 1_000_000
        for number in range(8):
            await record_journal_entry(
                ada, EventType.MAILBOX_UPDATED, [1], path=f"{number} {padding}"
            )
            await wait_until(lambda: len(healthy.events) == number + 1)  # noqa: B023
        for _ in range(11):
            last_number = await record_journal_entry(ada, EventType.TASK_UPDATED, [1] * 1000)
        # the other subscriber receives all events
        await wait_until(lambda: len(healthy.events) == 11_008)
        received = await slow_client.read_until(b'"reason":"OVERFLOW"}]}}}}'[:-2])
        assert received.count(b'"RESYNC"') == 1
        assert stream_cursor(ada, last_number).encode() in received[-300:]
        assert b'"TASK_UPDATED"' not in received
        await create(ada, "End")
        assert b'"path":"End"' in await slow_client.read_until(b'"path":"End"')
        await healthy.unsubscribe()


@pytest.mark.parametrize("is_websocket", [True, False])
async def test_client_that_does_not_read_is_disconnected_after_timeout(
    environment: Environment, tmp_path: Path, ada: GraphQLClient, is_websocket: bool
) -> None:
    query = "subscription { changes { cursor events { ... on MailboxChange { path } } } }"
    settings = Settings(http_write_timeout=timedelta(milliseconds=500))
    async with run_live_server(environment, tmp_path, settings) as live_server:
        with SlowClient(live_server.port) as slow_client:
            await slow_client.subscribe(ada, query, by_websocket=is_websocket)
            await wait_until(lambda: live_server.subscriber_count == 1)
            await record_journal_entry(
                ada, EventType.MAILBOX_UPDATED, [1] * 8, path="x" * 1_000_000
            )
            await wait_until(lambda: not live_server.endpoint.connection_watch.connections)
            await wait_until(lambda: not live_server.groups)


async def test_platform_key_can_not_subscribe_to_changes(
    live_server: LiveServer, root: GraphQLClient
) -> None:
    follower = await live_server.follow(root, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: follower.payloads)
    assert follower.payloads[0]["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert not live_server.groups
    await follower.unsubscribe()
