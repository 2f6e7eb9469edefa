"""Tests of the changes of an account as plain server-sent events for scripts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import GraphQLClient, deliver_to, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.operations.mailbox_operations import add_mailboxes, append_unread_messages
from tests.support.servers.live_server import (
    CHANGES_SUBSCRIPTION,
    NEW_ACCOUNT_EVENT_COUNT,
    LiveServer,
    stream_cursor,
    wait_until,
)
from tests.support.time_limits import HANG_SECONDS

Event = dict[str, Any]


def updates_path(client: GraphQLClient) -> str:
    return f"/rest/users/{global_ids.encode('User', client.user.id)}/updates"


class UpdatesReader:
    """Reads one stream as the HTML standard defines it."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.events = list[Event]()  # each with its kind under "", by default "message"
        self.last_event_id = ""
        self.is_closed = False
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        kind, data = "message", ""
        async for line in self.response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                self.last_event_id = value
            elif name == "event":
                kind = value
            elif name == "data":
                data = value
            elif not line:
                if data:
                    self.events.append({"": kind, **json.loads(data)})
                kind, data = "message", ""
        self.is_closed = True


@asynccontextmanager
async def open_updates(
    live_server: LiveServer,
    client: GraphQLClient,
    owner: GraphQLClient | None = None,
    **headers: str,
) -> AsyncIterator[UpdatesReader]:
    url = f"http://127.0.0.1:{live_server.port}{updates_path(owner or client)}"
    header_fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        httpx.AsyncClient(timeout=HANG_SECONDS) as http,
        http.stream("GET", url, headers={**client.headers, **header_fields}) as response,
    ):
        if response.status_code != 200:
            await response.aread()
        reader = UpdatesReader(response)
        if response.status_code == 200 and not headers:
            await wait_until(lambda: reader.last_event_id)
        yield reader
        reader.task.cancel()
        await asyncio.wait([reader.task])


async def test_each_change_is_an_event_with_its_cursor(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    async with open_updates(live_server, ada) as reader:
        assert reader.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reader.response.headers["x-content-type-options"] == "nosniff"
        assert reader.last_event_id == stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
        await add_mailboxes(ada, "Box")
        received = await deliver_to(ada, "Hello")
        await wait_until(lambda: len(reader.events) == 2)
    created, added = reader.events
    assert (created["type"], created["path"], created["mailbox"]) == (
        "MAILBOX_CREATED",
        "Box",
        {"messageCount": 0, "unseenCount": 0},
    )
    assert created["mailboxId"] == global_ids.encode("Mailbox", (await ada.load_mailbox("Box")).id)
    assert (added["type"], added["messageId"]) == (
        "MESSAGE_RECEIVED",
        global_ids.encode("Message", received.message_id),
    )
    assert (added["uid"], added["flags"], added[""]) == (1, [], "message")
    assert (
        added["cursor"] == reader.last_event_id == stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 2)
    )


async def test_last_event_id_continues_stream(live_server: LiveServer, ada: GraphQLClient) -> None:
    for number in range(3):
        await deliver_to(ada, f"Number {number}")
    async with open_updates(
        live_server, ada, Last_Event_ID=stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 1)
    ) as reader:
        await wait_until(lambda: len(reader.events) == 2)
        await deliver_to(ada, "Live")
        await wait_until(lambda: len(reader.events) == 3)
    assert [event["uid"] for event in reader.events] == [2, 3, 4]
    async with open_updates(live_server, ada, Last_Event_ID=stream_cursor(ada, 10**6)) as reader:
        await wait_until(lambda: reader.events)
    assert (reader.events[0]["type"], reader.events[0]["reason"]) == ("RESYNC", "CURSOR_UNKNOWN")
    assert reader.last_event_id == stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 4)


async def test_updates_equal_events_of_subscription(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Old")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    follower = await live_server.follow(bob, CHANGES_SUBSCRIPTION)
    async with open_updates(live_server, bob) as reader:
        await wait_until(lambda: live_server.subscriber_count == 2)
        # one at a time: if both streams grow together, their order is undefined
        await deliver_to(ada, "Private")
        await append_unread_messages(ada, "Team", "New")
        await wait_until(lambda: len(reader.events) == 1 == len(follower.events))
        await deliver_to(bob, "Own")
        await wait_until(lambda: len(reader.events) == 2 == len(follower.events))
        await share_mailbox(ada, bob)
        await wait_until(lambda: len(reader.events) == 3 == len(follower.events))
        await append_unread_messages(ada, "Team", "Unheard")
        await deliver_to(bob, "Last")
        await wait_until(lambda: len(reader.events) == 4 == len(follower.events))
    events = [(event["type"], event["cursor"]) for event in reader.events]
    assert events == [(event["type"], event["cursor"]) for event in follower.events]
    await follower.unsubscribe()


async def test_updates_of_other_users_need_administrator(
    live_server: LiveServer,
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    plain_admin = await make_domain_admin(environment, http, "weak")
    login_as_admin = await make_domain_admin(
        environment, http, "strong", [AdminPermission.IMPERSONATE]
    )
    platform_admin = await make_client(environment, http, "over", role=Role.ADMIN)
    for client, owner, status in (
        (bob, ada, 404),
        (plain_admin, ada, 403),
        (login_as_admin, platform_admin, 404),
    ):
        async with open_updates(live_server, client, owner) as reader:
            assert reader.response.status_code == status
    async with open_updates(
        live_server, login_as_admin, ada, Last_Event_ID=stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
    ) as reader:
        await deliver_to(ada, "Hello")
        await wait_until(lambda: reader.events)
    assert reader.events[0]["type"] == "MESSAGE_RECEIVED"


async def test_invalid_request_is_refused_with_status(
    live_server: LiveServer, ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    async with open_updates(live_server, ada, Last_Event_ID="x") as reader:
        assert reader.response.status_code == 400
        assert reader.response.json()["errors"][0]["extensions"]["code"] == "BAD_CURSOR"
    async with open_updates(live_server, ada, Last_Event_ID=f"1.{ada.user.id + 1}.1") as reader:
        await wait_until(lambda: reader.is_closed)
    (event,) = reader.events
    assert (event[""], event["extensions"]["code"]) == ("error", "BAD_CURSOR")
    sender = await make_api_key(
        environment, "sender", scopes=[Scope.SUBMIT], user_id=ada.user.id, role=Role.USER
    )
    for secret, status in (("wrong", 401), (sender, 403)):
        async with open_updates(
            live_server, GraphQLClient(http, environment, ada.user, secret), ada
        ) as reader:
            assert reader.response.status_code == status
    assert (await http.get("/rest/users/x/updates", headers=ada.headers)).status_code == 404
    assert (await http.head(updates_path(ada), headers=ada.headers)).status_code == 405
    assert (await http.get(updates_path(ada))).status_code == 401


async def test_stream_ends_when_api_key_is_deleted(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    secret = await make_api_key(
        ada.environment, "brief", scopes=[Scope.FULL], user_id=ada.user.id, role=ada.user.role
    )
    async with open_updates(
        live_server, GraphQLClient(ada.http, ada.environment, ada.user, secret)
    ) as reader:
        keys = (await ada("{ apiKeys { nodes { id name } } }"))["apiKeys"]["nodes"]
        (key_id,) = (api_key["id"] for api_key in keys if api_key["name"] == "brief")
        await ada(
            "mutation ($i: ApiKeyDeleteInput!) { apiKeyDelete(input: $i) { deletedIds } }",
            i={"apiKeys": [{"id": key_id}]},
        )
        await deliver_to(ada, "Unheard")
        await wait_until(lambda: reader.is_closed)
    (last,) = reader.events
    assert (last[""], last["extensions"]["code"]) == ("error", "UNAUTHENTICATED")
    admission_control = live_server.endpoint.guards
    await wait_until(
        lambda: not live_server.groups and not admission_control.stream_limiter.in_use_count
    )
    assert not live_server.endpoint.connection_watch.connections


async def test_streams_of_one_account_are_shared(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    async with (
        open_updates(live_server, ada) as first_reader,
        open_updates(live_server, ada) as second_reader,
    ):
        await wait_until(lambda: live_server.subscriber_count == 2)
        assert len(live_server.groups) == 1
        await run_mailbox_mutation(ada, "mailboxCreate", paths=["Box"])
        await wait_until(lambda: first_reader.events and second_reader.events)
    assert first_reader.events == second_reader.events
