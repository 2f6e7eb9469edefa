"""Changes of an account as plain server-sent events, for scripts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import Client, make_client, make_key, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import READ, mutate, share, team
from tests.support.operations.mailbox_operations import add_mailboxes, append_unread_messages
from tests.support.servers.live_server import MADE, PLAIN, House, cursor, until

Event = dict[str, Any]


def path(client: Client) -> str:
    return f"/rest/users/{global_ids.encode('User', client.user.id)}/updates"


class Reader:
    """One stream, read as the HTML standard tells."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.events = list[Event]()  # with a kind where it is not "message"
        self.at = ""  # the last id
        self.over = False
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        kind, data = "message", ""
        async for line in self.answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                self.at = value
            elif name == "event":
                kind = value
            elif name == "data":
                data = value
            elif not line:
                if data:
                    self.events.append({"": kind, **json.loads(data)})
                kind, data = "message", ""
        self.over = True


@asynccontextmanager
async def updates(
    live: House, client: Client, of: Client | None = None, **headers: str
) -> AsyncIterator[Reader]:
    url = f"http://127.0.0.1:{live.port}{path(of or client)}"
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream("GET", url, headers={**client.headers, **more}) as answer,
    ):
        if answer.status_code != 200:
            await answer.aread()
        reader = Reader(answer)
        if answer.status_code == 200 and not headers:
            await until(lambda: reader.at)
        yield reader
        reader.task.cancel()
        await asyncio.wait([reader.task])


async def test_each_change_is_an_event_with_its_cursor(live: House, ada: Client) -> None:
    async with updates(live, ada) as reader:
        assert reader.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reader.answer.headers["x-content-type-options"] == "nosniff"
        assert reader.at == cursor(ada, MADE)
        await add_mailboxes(ada, "Box")
        placed = await receive(ada, "Hello")
        await until(lambda: len(reader.events) == 2)
    made, added = reader.events
    assert (made["kind"], made["path"], made["mailbox"]) == (
        "MAILBOX_CREATED",
        "Box",
        {"total": 0, "unseen": 0},
    )
    assert made["mailboxId"] == global_ids.encode("Mailbox", (await ada.box("Box")).id)
    assert (added["kind"], added["messageId"]) == (
        "MESSAGE_ADDED",
        global_ids.encode("Message", placed.message_id),
    )
    assert (added["uid"], added["flags"], added[""]) == (1, [], "message")
    assert added["cursor"] == reader.at == cursor(ada, MADE + 2)


async def test_who_was_cut_off_goes_on(live: House, ada: Client) -> None:
    for number in range(3):
        await receive(ada, f"Number {number}")
    async with updates(live, ada, Last_Event_ID=cursor(ada, MADE + 1)) as reader:
        await until(lambda: len(reader.events) == 2)
        await receive(ada, "Live")
        await until(lambda: len(reader.events) == 3)
    assert [event["uid"] for event in reader.events] == [2, 3, 4]
    async with updates(live, ada, Last_Event_ID=cursor(ada, 10**6)) as reader:
        await until(lambda: reader.events)
    assert (reader.events[0]["kind"], reader.events[0]["reason"]) == ("RESYNC", "CURSOR_UNKNOWN")
    assert reader.at == cursor(ada, MADE + 4)


async def test_it_tells_what_the_subscription_tells(live: House, ada: Client, bob: Client) -> None:
    await team(ada, "Old")
    await share(ada, bob, *READ)
    follower = await live.follow(bob, PLAIN)
    async with updates(live, bob) as reader:
        await until(lambda: live.seats == 2)
        # one after the other: where both streams grow at once, either may be heard first
        await receive(ada, "Private")
        await append_unread_messages(ada, "Team", "New")
        await until(lambda: len(reader.events) == 1 == len(follower.events))
        await receive(bob, "Own")
        await until(lambda: len(reader.events) == 2 == len(follower.events))
        await share(ada, bob)
        await until(lambda: len(reader.events) == 3 == len(follower.events))
        await append_unread_messages(ada, "Team", "Unheard")
        await receive(bob, "Last")
        await until(lambda: len(reader.events) == 4 == len(follower.events))
    plain = [(event["kind"], event["cursor"]) for event in reader.events]
    assert plain == [(event["kind"], event["cursor"]) for event in follower.events]
    await follower.leave()


async def test_others_are_read_by_their_administrators(
    live: House, ada: Client, bob: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    weak = await make_domain_admin(world, http, "weak")
    strong = await make_domain_admin(world, http, "strong", [AdminPermission.LOGIN_AS])
    over = await make_client(world, http, "over", role=Role.ADMIN)
    for client, of, status in ((bob, ada, 404), (weak, ada, 403), (strong, over, 404)):
        async with updates(live, client, of) as reader:
            assert reader.answer.status_code == status
    async with updates(live, strong, ada, Last_Event_ID=cursor(ada, MADE)) as reader:
        await receive(ada, "Hello")
        await until(lambda: reader.events)
    assert reader.events[0]["kind"] == "MESSAGE_ADDED"


async def test_bad_requests_are_refused_by_their_status(
    live: House, ada: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    async with updates(live, ada, Last_Event_ID="x") as reader:
        assert reader.answer.status_code == 400
        assert reader.answer.json()["errors"][0]["extensions"]["code"] == "BAD_CURSOR"
    async with updates(live, ada, Last_Event_ID=f"1.{ada.user.id + 1}.1") as reader:
        await until(lambda: reader.over)
    (event,) = reader.events
    assert (event[""], event["extensions"]["code"]) == ("error", "BAD_CURSOR")
    sender = await make_key(
        world, "sender", scopes=[Scope.SUBMIT], user_id=ada.user.id, role=Role.USER
    )
    for secret, status in (("wrong", 401), (sender, 403)):
        async with updates(live, Client(http, world, ada.user, secret), ada) as reader:
            assert reader.answer.status_code == status
    assert (await http.get("/rest/users/x/updates", headers=ada.headers)).status_code == 404
    assert (await http.head(path(ada), headers=ada.headers)).status_code == 405
    assert (await http.get(path(ada))).status_code == 401


async def test_it_ends_with_its_credential_and_leaves_nothing(live: House, ada: Client) -> None:
    secret = await make_key(
        ada.world, "brief", scopes=[Scope.MASTER], user_id=ada.user.id, role=ada.user.role
    )
    async with updates(live, Client(ada.http, ada.world, ada.user, secret)) as reader:
        keys = (await ada("{ apiKeys { nodes { id name } } }"))["apiKeys"]["nodes"]
        (key,) = (one["id"] for one in keys if one["name"] == "brief")
        await ada(
            "mutation ($i: IdsInput!) { apiKeyDelete(input: $i) { deletedIds } }", i={"ids": [key]}
        )
        await receive(ada, "Unheard")
        await until(lambda: reader.over)
    (last,) = reader.events
    assert (last[""], last["extensions"]["code"]) == ("error", "UNAUTHENTICATED")
    guards = live.endpoint.guards
    await until(lambda: not live.groups and not guards.stream_limiter.in_use_count)
    assert not live.endpoint.connection_watch.connections


async def test_those_of_one_account_are_read_together(live: House, ada: Client) -> None:
    async with updates(live, ada) as one, updates(live, ada) as other:
        await until(lambda: live.seats == 2)
        assert len(live.groups) == 1
        await mutate(ada, "mailboxCreate", paths=["Box"])
        await until(lambda: one.events and other.events)
    assert one.events == other.events
