"""The narrower and wider streams: of a folder, of another's account, of domains."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from graph.types.scalars import SCALARS, Cursor
from models.auth.credentials import ApiKey
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from tests.conftest import Client, make_client, make_key, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import READ, mutate, share, team
from tests.support.accounts.user_operations import change, create
from tests.support.clients.change_followers import (
    CHANGE_BATCH_FIELDS,
    DOMAIN_CHANGES_SUBSCRIPTION,
    open_subscription,
    received_events,
)
from tests.support.operations.domain_operations import UPDATE, administrator, done, key_of, made
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.servers.live_server import PLAIN, Follower, House, Slow, note, until

OF_USER = f"""subscription ($user: UserRef, $after: Cursor) {{
  changes(user: $user, after: $after) {CHANGE_BATCH_FIELDS} }}"""
OF_BOX = f"""subscription ($id: ID!, $after: Cursor) {{
  mailboxChanges(mailbox: $id, after: $after) {CHANGE_BATCH_FIELDS} }}"""
OF_USERS = f"""subscription ($filter: UserFilter, $after: Cursor) {{
  userChanges(filter: $filter, after: $after) {CHANGE_BATCH_FIELDS} }}"""
BOTH = pytest.mark.parametrize("by", ["follow", "stream"])


def names(follower: Follower) -> list[Any]:
    """What each event is about."""
    return [
        (one["kind"], *(one["node"] or {"": None}).values()) for one in received_events(follower)
    ]


async def silent(follower: Follower) -> bool:
    """Whether no event comes."""
    many = len(received_events(follower))
    await asyncio.sleep(0.2)
    return len(received_events(follower)) == many


# one folder


@BOTH
async def test_a_folder_is_heard_and_no_other(live: House, ada: Client, by: str) -> None:
    box = await team(ada, "Old")
    follower = await open_subscription(live, by, ada, OF_BOX, id=box)
    await receive(ada, "Elsewhere")
    await append_unread_messages(ada, "Team", "Here")
    await until(lambda: received_events(follower))
    (event,) = received_events(follower)
    assert (event["kind"], event["message"]) == ("MESSAGE_ADDED", {"subject": "Here"})
    await mutate(ada, "mailboxRename", mailbox={"path": "Team"}, newPath="Crew")
    await until(lambda: len(received_events(follower)) == 2)
    assert received_events(follower)[1]["path"] == "Crew"
    await mutate(ada, "mailboxDelete", "deletedIds", mailboxes=[{"path": "Crew"}])
    await until(lambda: follower.over)
    assert received_events(follower)[-1]["kind"] == "MAILBOX_DELETED"
    await follower.leave()
    assert await live.refused(ada, OF_BOX, id=box) == "NOT_FOUND"


async def test_a_folder_is_heard_from_a_cursor_on(live: House, ada: Client) -> None:
    box = await team(ada, "Old")
    at = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    await append_unread_messages(ada, "Team", "One", "Two")
    follower = await live.follow(ada, OF_BOX, id=box, after=at)
    await until(lambda: len(received_events(follower)) == 2)
    again = await live.follow(ada, OF_BOX, id=box, after=received_events(follower)[0]["cursor"])
    await until(lambda: received_events(again))
    assert [event["message"]["subject"] for event in received_events(again)] == ["Two"]
    await follower.leave()
    await again.leave()


@BOTH
async def test_a_shared_folder_is_heard_as_long_as_it_is_shared(
    live: House, ada: Client, bob: Client, by: str
) -> None:
    box = await team(ada, "Old")
    assert await live.refused(bob, OF_BOX, id=box) == "NOT_FOUND"
    await share(ada, bob, *READ)
    follower = await open_subscription(live, by, bob, OF_BOX, id=box)
    await append_unread_messages(ada, "Team", "New")
    await until(lambda: received_events(follower))
    await share(ada, bob)
    await append_unread_messages(ada, "Team", "Unheard")
    await until(lambda: follower.over)
    assert [event["kind"] for event in received_events(follower)] == [
        "MESSAGE_ADDED",
        "MAILBOX_DELETED",
    ]
    await follower.leave()


async def test_a_folder_is_read_once_for_all_who_follow_it(live: House, ada: Client) -> None:
    box = await team(ada)
    followers = [await live.follow(ada, OF_BOX, id=box) for _ in range(5)]
    await until(lambda: live.seats == 5)
    assert len(live.groups) == 1
    await append_unread_messages(ada, "Team", "New")
    await until(lambda: all(received_events(one) for one in followers))
    assert len({str(one.got) for one in followers}) == 1
    for one in followers:
        await one.leave()


# another's account


@BOTH
async def test_an_administrator_follows_an_account(
    live: House, ada: Client, over: Client, by: str
) -> None:
    query = OF_USER.replace("message { subject }", "message { flags }")
    follower = await open_subscription(live, by, over, query, user={"username": "ada"})
    await receive(over, "Own")
    await receive(ada, "Hello")
    await until(lambda: received_events(follower))
    (event,) = received_events(follower)
    assert (event["kind"], event["message"]) == ("MESSAGE_ADDED", {"flags": []})
    await follower.leave()


async def test_nobody_follows_whom_they_do_not_manage(
    live: House, ada: Client, bob: Client, http: httpx.AsyncClient
) -> None:
    world = ada.world
    await make_client(world, http, "over", role=Role.ADMIN)
    ref = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    assert await live.refused(bob, OF_USER, **ref) == "NOT_FOUND"
    weak = await make_domain_admin(world, http, "weak")
    assert await live.refused(weak, OF_USER, **ref) == "FORBIDDEN"
    strong = await make_domain_admin(world, http, "strong", [AdminPermission.LOGIN_AS])
    follower = await open_subscription(live, "follow", strong, OF_USER, **ref)
    assert not follower.over
    await follower.leave()
    assert await live.refused(strong, OF_USER, user={"username": "over"}) == "NOT_FOUND"


async def test_an_account_that_rises_above_its_administrator_is_heard_no_more(
    live: House, ada: Client, over: Client
) -> None:
    follower = await open_subscription(live, "follow", over, OF_USER, user={"username": "ada"})
    async with ada.world.write_session(ada.user.id) as session:
        raised = update(User).where(col(User.id) == ada.user.id).values(role=Role.ROOT)
        await (await session.connection()).execute(raised)
    await receive(ada, "Secret")
    await until(lambda: follower.over)
    (last,) = follower.got
    assert last["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    await follower.leave()


# credentials


@BOTH
@pytest.mark.parametrize("wide", [False, True])
async def test_a_revoked_credential_hears_nothing_more(
    live: House, ada: Client, over: Client, by: str, wide: bool
) -> None:
    who, query = (over, OF_USERS) if wide else (ada, PLAIN)
    secret = await make_key(
        ada.world, "brief", scopes=[Scope.MASTER], user_id=who.user.id, role=who.user.role
    )
    brief = Client(who.http, who.world, who.user, secret)
    lasting = await open_subscription(live, by, who, query)
    ending: Follower = await getattr(live, by)(brief, query)
    await until(lambda: wide or live.seats == 2)
    await asyncio.sleep(0.1)
    keys = (await who("{ apiKeys { nodes { id name } } }"))["apiKeys"]["nodes"]
    (key,) = (one["id"] for one in keys if one["name"] == "brief")
    await who(
        "mutation ($i: IdsInput!) { apiKeyDelete(input: $i) { deletedIds } }", i={"ids": [key]}
    )
    if wide:
        await create(over)
    else:
        await receive(ada, "New")
    await until(lambda: received_events(lasting) and ending.over)
    assert not [one for one in ending.got if one.get("data")]
    if by == "follow":
        assert ending.ws
        await ending.ws.wait_closed()
        assert ending.ws.close_code == 4403
        assert ending.over["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    else:
        assert ending.got[-1]["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    await lasting.leave()
    await ending.leave()


async def test_a_credential_ended_by_another_process_is_told_by_the_journal(
    live: House, ada: Client
) -> None:
    """Its key is gone without a word in this process; a new password tells the account."""
    secret = await make_key(
        ada.world, "brief", scopes=[Scope.MASTER], user_id=ada.user.id, role=ada.user.role
    )
    ending = await live.follow(Client(ada.http, ada.world, ada.user, secret), PLAIN)
    lasting = await live.follow(ada, PLAIN)
    await until(lambda: live.seats == 2)
    async with ada.world.write_session(ada.user.id) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.name) == "brief"))
    users, errors = await change(ada, name="Ada")
    assert (users[0]["name"], errors) == ("Ada", [])
    await until(lambda: lasting.got and ending.over)
    assert not ending.got
    await lasting.leave()


# domains


@BOTH
async def test_a_domain_admin_hears_the_own_domains_alone(
    live: House, root: Client, world: Environment, http: httpx.AsyncClient, by: str
) -> None:
    for name in ("a.test", "b.test"):
        await made(root, name)
    chief = await administrator(world, http, "chief", "a.test")
    follower = await open_subscription(live, by, chief, OF_USERS)
    wider = await open_subscription(live, by, chief, DOMAIN_CHANGES_SUBSCRIPTION)
    await create(root, address="x@b.test")
    await done(root, UPDATE, domains=[{"name": "b.test"}], set={"description": "B"})
    await create(root, address="x@a.test")
    await until(lambda: received_events(follower) and received_events(wider))
    assert names(follower) == [("USER_CHANGED", "x@a.test")]
    assert received_events(follower)[0]["origin"] is None
    await done(root, UPDATE, domains=[{"name": "a.test"}], set={"description": "A"})
    await until(lambda: len(received_events(wider)) == 2)
    assert names(wider) == [("USER_CHANGED", "x@a.test"), ("DOMAIN_CHANGED", "a.test")]
    assert await silent(follower)
    for one in (follower, wider):
        await one.leave()


async def test_an_admin_hears_all_domains_and_new_ones(
    live: House, root: Client, over: Client
) -> None:
    follower = await open_subscription(live, "follow", over, DOMAIN_CHANGES_SUBSCRIPTION)
    await made(root, "new.test")
    await until(lambda: received_events(follower))
    assert names(follower) == [("DOMAIN_CHANGED", "new.test")]  # once, though it stands twice
    await create(root, address="x@new.test")
    await until(lambda: len(received_events(follower)) == 2)
    assert names(follower)[1] == ("USER_CHANGED", "x@new.test")
    at = received_events(follower)[0]["cursor"]
    again = await live.follow(over, DOMAIN_CHANGES_SUBSCRIPTION, after=at)
    await until(lambda: received_events(again))
    assert names(again) == [("USER_CHANGED", "x@new.test")]
    for one in (follower, again):
        await one.leave()


async def test_a_filter_picks_accounts_and_lets_the_end_of_others_pass(
    live: House, root: Client, over: Client
) -> None:
    (await create(root, address="y@example.org", tags=["vip"]))
    follower = await open_subscription(live, "follow", over, OF_USERS, filter={"tags": ["vip"]})
    users, _ = await create(root, address="x@example.org")
    vip, _ = await create(root, address="z@example.org", tags=["vip"])
    await until(lambda: received_events(follower))
    assert [event["nodeId"] for event in received_events(follower)] == [vip["id"]]
    await mutate(root, "userDelete", "journalCursor", users={"ids": [users["id"]]})
    await until(lambda: len(received_events(follower)) > 1)
    assert (users["id"], None) in [
        (event["nodeId"], event["node"]) for event in received_events(follower)
    ]
    await follower.leave()


async def test_one_domain_is_named_and_bad_ones_are_refused(
    live: House, root: Client, ada: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    for name in ("a.test", "b.test"):
        await made(root, name)
    chief = await administrator(world, http, "chief", "a.test", "b.test")
    follower = await open_subscription(
        live, "follow", chief, DOMAIN_CHANGES_SUBSCRIPTION, domain="B.Test"
    )
    await create(root, address="x@a.test")
    await create(root, address="x@b.test")
    await until(lambda: received_events(follower))
    assert names(follower) == [("USER_CHANGED", "x@b.test")]
    await follower.leave()
    assert (
        await live.refused(chief, DOMAIN_CHANGES_SUBSCRIPTION, domain="example.org") == "NOT_FOUND"
    )
    assert await live.refused(chief, OF_USERS, filter={"domain": "none.test"}) == "NOT_FOUND"
    for query in (OF_USERS, DOMAIN_CHANGES_SUBSCRIPTION):
        assert await live.refused(ada, query) == "FORBIDDEN"
        write: Any = SCALARS[Cursor].serialize
        foreign = write({await key_of(world, "example.org"): 1})
        assert await live.refused(chief, query, after=foreign) == "BAD_CURSOR"
        assert await live.refused(chief, query, after="1.x") == "BAD_CURSOR"


async def test_an_administrator_without_a_domain_hears_of_nothing(
    live: House, world: Environment, http: httpx.AsyncClient
) -> None:
    bare = await make_client(world, http, "bare", role=Role.DOMAIN_ADMIN)
    for query in (OF_USERS, DOMAIN_CHANGES_SUBSCRIPTION):
        assert await live.refused(bare, query) == "FORBIDDEN"


# bad manners


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "events"])
async def test_who_reads_slowly_alone_gets_all_of_it(
    live: House, ada: Client, over: Client, by_socket: bool
) -> None:
    query = """subscription { changes(user: {username: "ada"}, batchWindow: "PT0S") { cursor
      events { ... on MailboxChange { path } } } }"""
    with Slow(live.port) as slow:
        await slow.ask(over, query, by_socket=by_socket)
        await until(lambda: ada.world.wakeups.followed_streams)
        await asyncio.sleep(0.1)
        for number in range(60):
            await note(ada, ChangeKind.MAILBOX_UPDATED, [1], path=f"{number} {'x' * 120_000}")
            await asyncio.sleep(0)
        await note(ada, ChangeKind.MAILBOX_UPDATED, [1], path="End")
        rest = await slow.read(b'"path":"End"')
    numbers = [int(part.split(b" ", 1)[0]) for part in rest.split(b'"path":"')[1:-1]]
    assert numbers == list(range(60))


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "events"])
async def test_who_reads_nothing_and_is_sent_away_holds_up_nobody(
    live: House, ada: Client, by_socket: bool
) -> None:
    secret = await make_key(
        ada.world, "deaf", scopes=[Scope.MASTER], user_id=ada.user.id, role=ada.user.role
    )
    query = "subscription { changes { cursor events { ... on MailboxChange { path } } } }"
    with Slow(live.port) as slow:
        await slow.ask(Client(ada.http, ada.world, ada.user, secret), query, by_socket=by_socket)
        healthy = await live.follow(ada, query)
        await until(lambda: live.seats == 2)
        (group,), sent = live.groups, 0
        while not any(seat.result_queue._task for seat in group.members):  # noqa: SLF001 - it waits
            await note(ada, ChangeKind.MAILBOX_UPDATED, [1], path="x" * 500_000)
            sent += 1
            await until(lambda: len(healthy.events) == sent)  # noqa: B023
            await asyncio.sleep(0.05)
        assert live.seats == 2
        async with ada.world.write_session(ada.user.id) as session:
            await session.exec(delete(ApiKey).where(col(ApiKey.name) == "deaf"))
        await change(ada, name="Ada")
        await until(lambda: len(healthy.events) == sent + 1, 2)
        await healthy.leave()


async def test_ten_thousand_on_one_socket_are_a_hundred(live: House, ada: Client) -> None:
    ws = await live.socket(ada)
    for number in range(10_000):
        frame = {"type": "subscribe", "id": str(number), "payload": {"query": PLAIN}}
        await ws.send(orjson.dumps(frame).decode())
    codes = list[str]()
    async with asyncio.timeout(60):
        while len(codes) < 9_900:
            frame = orjson.loads(await ws.recv())
            assert frame["type"] == "error"
            codes.append(frame["payload"][0]["extensions"]["code"])
    assert set(codes) == {"RATE_LIMITED"}
    await until(lambda: live.seats == 100)
    assert len(live.groups) == 1
    await receive(ada, "New")
    heard = {orjson.loads(await ws.recv())["id"] for _ in range(100)}
    assert heard == {str(number) for number in range(100)}
    await ws.close()
    await until(lambda: not live.groups)


async def test_a_storm_of_opening_and_closing_leaves_nothing(
    live: House, ada: Client, over: Client
) -> None:
    box, before = await team(ada), len(asyncio.all_tasks())
    ours = [(ada, OF_BOX, {"id": box}), (ada, "subscription { counters { total } }", {})]
    theirs = [(over, OF_USER, {"user": {"username": "ada"}}), (over, OF_USERS, {})]
    sockets = {client.user.id: await live.socket(client) for client in (ada, over)}
    for number in range(300):
        client, query, variables = (ours + theirs)[number % 4]
        ws = sockets[client.user.id]
        payload = {"query": query, "variables": variables}
        frame = {"type": "subscribe", "id": str(number), "payload": payload}
        await ws.send(orjson.dumps(frame).decode())
        await ws.send(orjson.dumps({"type": "complete", "id": str(number)}).decode())
        if number % 50 == 0:
            await receive(ada, f"Number {number}")
    for ws in sockets.values():
        await ws.close()
    await until(lambda: not live.groups and not ada.world.wakeups.followed_streams)
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_idle_ones_ask_nothing(
    live: House, ada: Client, over: Client, statements: list[str]
) -> None:
    box = await team(ada)
    open_ = [
        await open_subscription(live, "follow", client, query, **variables)
        for client, query, variables in (
            (ada, OF_BOX, {"id": box}),
            (ada, "subscription { counters { total } }", {}),
            (ada, "subscription { submissionProgress { state } }", {}),
            (over, OF_USER, {"user": {"username": "ada"}}),
            (over, OF_USERS, {}),
            (over, DOMAIN_CHANGES_SUBSCRIPTION, {}),
        )
    ]
    await authentication.wait_for_background_tasks(ada.world)
    await asyncio.sleep(0.1)
    del statements[:]
    await asyncio.sleep(0.3)
    assert statements == []
    for one in open_:
        await one.leave()
