"""Subscriptions to the changes of one mailbox, of another account and of domains."""

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

USER_SUBSCRIPTION = f"""subscription ($user: UserRef, $after: Cursor) {{
  changes(user: $user, after: $after) {CHANGE_BATCH_FIELDS} }}"""
MAILBOX_SUBSCRIPTION = f"""subscription ($id: ID!, $after: Cursor) {{
  mailboxChanges(mailbox: $id, after: $after) {CHANGE_BATCH_FIELDS} }}"""
USERS_SUBSCRIPTION = f"""subscription ($filter: UserFilter, $after: Cursor) {{
  userChanges(filter: $filter, after: $after) {CHANGE_BATCH_FIELDS} }}"""
EACH_TRANSPORT = pytest.mark.parametrize("transport", ["follow", "stream"])


def kinds_and_names(follower: Follower) -> list[Any]:
    """Return the kind and the name of the object of each received event."""
    return [
        (event["kind"], *(event["node"] or {"": None}).values())
        for event in received_events(follower)
    ]


async def receives_no_event(follower: Follower) -> bool:
    """True if no event arrives within 0.2 s."""
    count = len(received_events(follower))
    await asyncio.sleep(0.2)
    return len(received_events(follower)) == count


@EACH_TRANSPORT
async def test_mailbox_subscription_gets_events_of_that_mailbox_only(
    live: House, ada: Client, transport: str
) -> None:
    mailbox_id = await team(ada, "Old")
    follower = await open_subscription(live, transport, ada, MAILBOX_SUBSCRIPTION, id=mailbox_id)
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
    assert await live.refused(ada, MAILBOX_SUBSCRIPTION, id=mailbox_id) == "NOT_FOUND"


async def test_mailbox_subscription_starts_at_cursor(live: House, ada: Client) -> None:
    mailbox_id = await team(ada, "Old")
    cursor = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    await append_unread_messages(ada, "Team", "One", "Two")
    follower = await live.follow(ada, MAILBOX_SUBSCRIPTION, id=mailbox_id, after=cursor)
    await until(lambda: len(received_events(follower)) == 2)
    second_follower = await live.follow(
        ada, MAILBOX_SUBSCRIPTION, id=mailbox_id, after=received_events(follower)[0]["cursor"]
    )
    await until(lambda: received_events(second_follower))
    assert [event["message"]["subject"] for event in received_events(second_follower)] == ["Two"]
    await follower.leave()
    await second_follower.leave()


@EACH_TRANSPORT
async def test_shared_mailbox_subscription_ends_with_the_share(
    live: House, ada: Client, bob: Client, transport: str
) -> None:
    mailbox_id = await team(ada, "Old")
    assert await live.refused(bob, MAILBOX_SUBSCRIPTION, id=mailbox_id) == "NOT_FOUND"
    await share(ada, bob, *READ)
    follower = await open_subscription(live, transport, bob, MAILBOX_SUBSCRIPTION, id=mailbox_id)
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


async def test_mailbox_is_read_once_for_all_subscribers(live: House, ada: Client) -> None:
    mailbox_id = await team(ada)
    followers = [await live.follow(ada, MAILBOX_SUBSCRIPTION, id=mailbox_id) for _ in range(5)]
    await until(lambda: live.seats == 5)
    assert len(live.groups) == 1
    await append_unread_messages(ada, "Team", "New")
    await until(lambda: all(received_events(follower) for follower in followers))
    assert len({str(follower.got) for follower in followers}) == 1
    for follower in followers:
        await follower.leave()


@EACH_TRANSPORT
async def test_admin_can_follow_another_account(
    live: House, ada: Client, over: Client, transport: str
) -> None:
    query = USER_SUBSCRIPTION.replace("message { subject }", "message { flags }")
    follower = await open_subscription(live, transport, over, query, user={"username": "ada"})
    await receive(over, "Own")
    await receive(ada, "Hello")
    await until(lambda: received_events(follower))
    (event,) = received_events(follower)
    assert (event["kind"], event["message"]) == ("MESSAGE_ADDED", {"flags": []})
    await follower.leave()


async def test_following_unmanaged_account_is_refused(
    live: House, ada: Client, bob: Client, http: httpx.AsyncClient
) -> None:
    world = ada.world
    await make_client(world, http, "over", role=Role.ADMIN)
    variables = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    assert await live.refused(bob, USER_SUBSCRIPTION, **variables) == "NOT_FOUND"
    admin_without_permission = await make_domain_admin(world, http, "weak")
    assert (
        await live.refused(admin_without_permission, USER_SUBSCRIPTION, **variables) == "FORBIDDEN"
    )
    admin_with_permission = await make_domain_admin(
        world, http, "strong", [AdminPermission.LOGIN_AS]
    )
    follower = await open_subscription(
        live, "follow", admin_with_permission, USER_SUBSCRIPTION, **variables
    )
    assert not follower.over
    await follower.leave()
    assert (
        await live.refused(admin_with_permission, USER_SUBSCRIPTION, user={"username": "over"})
        == "NOT_FOUND"
    )


async def test_admin_subscription_ends_when_account_gets_higher_role(
    live: House, ada: Client, over: Client
) -> None:
    follower = await open_subscription(
        live, "follow", over, USER_SUBSCRIPTION, user={"username": "ada"}
    )
    async with ada.world.write_session(ada.user.id) as session:
        role_update = update(User).where(col(User.id) == ada.user.id).values(role=Role.ROOT)
        await (await session.connection()).execute(role_update)
    await receive(ada, "Secret")
    await until(lambda: follower.over)
    (last,) = follower.got
    assert last["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    await follower.leave()


@EACH_TRANSPORT
@pytest.mark.parametrize("by_admin", [False, True])
async def test_subscription_ends_when_credential_is_revoked(
    live: House, ada: Client, over: Client, transport: str, by_admin: bool
) -> None:
    client, query = (over, USERS_SUBSCRIPTION) if by_admin else (ada, PLAIN)
    secret = await make_key(
        ada.world, "brief", scopes=[Scope.MASTER], user_id=client.user.id, role=client.user.role
    )
    revoked_client = Client(client.http, client.world, client.user, secret)
    remaining_follower = await open_subscription(live, transport, client, query)
    revoked_follower: Follower = await getattr(live, transport)(revoked_client, query)
    await until(lambda: by_admin or live.seats == 2)
    await asyncio.sleep(0.1)
    api_keys = (await client("{ apiKeys { nodes { id name } } }"))["apiKeys"]["nodes"]
    (key_id,) = (item["id"] for item in api_keys if item["name"] == "brief")
    await client(
        "mutation ($i: IdsInput!) { apiKeyDelete(input: $i) { deletedIds } }", i={"ids": [key_id]}
    )
    if by_admin:
        await create(over)
    else:
        await receive(ada, "New")
    await until(lambda: received_events(remaining_follower) and revoked_follower.over)
    assert not [item for item in revoked_follower.got if item.get("data")]
    if transport == "follow":
        assert revoked_follower.ws
        await revoked_follower.ws.wait_closed()
        assert revoked_follower.ws.close_code == 4403
        assert revoked_follower.over["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    else:
        assert revoked_follower.got[-1]["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    await remaining_follower.leave()
    await revoked_follower.leave()


async def test_revocation_by_another_process_is_found_by_next_account_change(
    live: House, ada: Client
) -> None:
    """The key is deleted without an event. The next change of the account ends the subscription."""
    secret = await make_key(
        ada.world, "brief", scopes=[Scope.MASTER], user_id=ada.user.id, role=ada.user.role
    )
    revoked_follower = await live.follow(Client(ada.http, ada.world, ada.user, secret), PLAIN)
    remaining_follower = await live.follow(ada, PLAIN)
    await until(lambda: live.seats == 2)
    async with ada.world.write_session(ada.user.id) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.name) == "brief"))
    users, errors = await change(ada, name="Ada")
    assert (users[0]["name"], errors) == ("Ada", [])
    await until(lambda: remaining_follower.got and revoked_follower.over)
    assert not revoked_follower.got
    await remaining_follower.leave()


@EACH_TRANSPORT
async def test_domain_admin_gets_events_of_own_domains_only(
    live: House, root: Client, world: Environment, http: httpx.AsyncClient, transport: str
) -> None:
    for name in ("a.test", "b.test"):
        await made(root, name)
    domain_admin = await administrator(world, http, "chief", "a.test")
    user_follower = await open_subscription(live, transport, domain_admin, USERS_SUBSCRIPTION)
    domain_follower = await open_subscription(
        live, transport, domain_admin, DOMAIN_CHANGES_SUBSCRIPTION
    )
    await create(root, address="x@b.test")
    await done(root, UPDATE, domains=[{"name": "b.test"}], set={"description": "B"})
    await create(root, address="x@a.test")
    await until(lambda: received_events(user_follower) and received_events(domain_follower))
    assert kinds_and_names(user_follower) == [("USER_CHANGED", "x@a.test")]
    assert received_events(user_follower)[0]["origin"] is None
    await done(root, UPDATE, domains=[{"name": "a.test"}], set={"description": "A"})
    await until(lambda: len(received_events(domain_follower)) == 2)
    assert kinds_and_names(domain_follower) == [
        ("USER_CHANGED", "x@a.test"),
        ("DOMAIN_CHANGED", "a.test"),
    ]
    assert await receives_no_event(user_follower)
    for follower in (user_follower, domain_follower):
        await follower.leave()


async def test_admin_gets_events_of_all_and_new_domains(
    live: House, root: Client, over: Client
) -> None:
    follower = await open_subscription(live, "follow", over, DOMAIN_CHANGES_SUBSCRIPTION)
    await made(root, "new.test")
    await until(lambda: received_events(follower))
    # once, although two streams have the event
    assert kinds_and_names(follower) == [("DOMAIN_CHANGED", "new.test")]
    await create(root, address="x@new.test")
    await until(lambda: len(received_events(follower)) == 2)
    assert kinds_and_names(follower)[1] == ("USER_CHANGED", "x@new.test")
    cursor = received_events(follower)[0]["cursor"]
    second_follower = await live.follow(over, DOMAIN_CHANGES_SUBSCRIPTION, after=cursor)
    await until(lambda: received_events(second_follower))
    assert kinds_and_names(second_follower) == [("USER_CHANGED", "x@new.test")]
    for subscription in (follower, second_follower):
        await subscription.leave()


async def test_user_filter_applies_except_to_deletions(
    live: House, root: Client, over: Client
) -> None:
    (await create(root, address="y@example.org", tags=["vip"]))
    follower = await open_subscription(
        live, "follow", over, USERS_SUBSCRIPTION, filter={"tags": ["vip"]}
    )
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


async def test_domain_argument_selects_domain_or_is_refused(
    live: House, root: Client, ada: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    for name in ("a.test", "b.test"):
        await made(root, name)
    domain_admin = await administrator(world, http, "chief", "a.test", "b.test")
    follower = await open_subscription(
        live, "follow", domain_admin, DOMAIN_CHANGES_SUBSCRIPTION, domain="B.Test"
    )
    await create(root, address="x@a.test")
    await create(root, address="x@b.test")
    await until(lambda: received_events(follower))
    assert kinds_and_names(follower) == [("USER_CHANGED", "x@b.test")]
    await follower.leave()
    assert (
        await live.refused(domain_admin, DOMAIN_CHANGES_SUBSCRIPTION, domain="example.org")
        == "NOT_FOUND"
    )
    assert (
        await live.refused(domain_admin, USERS_SUBSCRIPTION, filter={"domain": "none.test"})
        == "NOT_FOUND"
    )
    for query in (USERS_SUBSCRIPTION, DOMAIN_CHANGES_SUBSCRIPTION):
        assert await live.refused(ada, query) == "FORBIDDEN"
        serialize_cursor: Any = SCALARS[Cursor].serialize
        foreign_cursor = serialize_cursor({await key_of(world, "example.org"): 1})
        assert await live.refused(domain_admin, query, after=foreign_cursor) == "BAD_CURSOR"
        assert await live.refused(domain_admin, query, after="1.x") == "BAD_CURSOR"


async def test_domain_admin_without_domain_is_refused(
    live: House, world: Environment, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_client(world, http, "bare", role=Role.DOMAIN_ADMIN)
    for query in (USERS_SUBSCRIPTION, DOMAIN_CHANGES_SUBSCRIPTION):
        assert await live.refused(domain_admin, query) == "FORBIDDEN"


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "events"])
async def test_slow_reader_gets_all_events(
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
        received = await slow.read(b'"path":"End"')
    numbers = [int(part.split(b" ", 1)[0]) for part in received.split(b'"path":"')[1:-1]]
    assert numbers == list(range(60))


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "events"])
async def test_revoked_client_that_reads_nothing_does_not_delay_others(
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
        # until the sender waits
        while not any(seat.result_queue._task for seat in group.members):  # noqa: SLF001
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


async def test_one_socket_can_have_100_subscriptions(live: House, ada: Client) -> None:
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
    subscription_ids = {orjson.loads(await ws.recv())["id"] for _ in range(100)}
    assert subscription_ids == {str(number) for number in range(100)}
    await ws.close()
    await until(lambda: not live.groups)


async def test_rapid_subscribe_and_complete_leaves_no_tasks(
    live: House, ada: Client, over: Client
) -> None:
    mailbox_id, task_count = await team(ada), len(asyncio.all_tasks())
    user_subscriptions = [
        (ada, MAILBOX_SUBSCRIPTION, {"id": mailbox_id}),
        (ada, "subscription { counters { total } }", {}),
    ]
    admin_subscriptions = [
        (over, USER_SUBSCRIPTION, {"user": {"username": "ada"}}),
        (over, USERS_SUBSCRIPTION, {}),
    ]
    sockets = {client.user.id: await live.socket(client) for client in (ada, over)}
    for number in range(300):
        client, query, variables = (user_subscriptions + admin_subscriptions)[number % 4]
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
    await until(lambda: len(asyncio.all_tasks()) <= task_count)


async def test_idle_subscriptions_execute_no_statement(
    live: House, ada: Client, over: Client, statements: list[str]
) -> None:
    mailbox_id = await team(ada)
    followers = [
        await open_subscription(live, "follow", client, query, **variables)
        for client, query, variables in (
            (ada, MAILBOX_SUBSCRIPTION, {"id": mailbox_id}),
            (ada, "subscription { counters { total } }", {}),
            (ada, "subscription { submissionProgress { state } }", {}),
            (over, USER_SUBSCRIPTION, {"user": {"username": "ada"}}),
            (over, USERS_SUBSCRIPTION, {}),
            (over, DOMAIN_CHANGES_SUBSCRIPTION, {}),
        )
    ]
    await authentication.wait_for_background_tasks(ada.world)
    await asyncio.sleep(0.1)
    del statements[:]
    await asyncio.sleep(0.3)
    assert statements == []
    for follower in followers:
        await follower.leave()
