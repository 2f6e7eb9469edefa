"""Subscriptions to the changes of one mailbox and of another account, and their end."""

import asyncio

import httpx
import orjson
import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from models.auth.credentials import ApiKey
from models.events.event_types import EventType
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, deliver_to, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.accounts.user_operations import try_create_user, try_update_users
from tests.support.clients.change_followers import (
    CHANGE_BATCH_FIELDS,
    DOMAIN_CHANGES_SUBSCRIPTION,
    EACH_TRANSPORT,
    USERS_SUBSCRIPTION,
    open_subscription,
    received_events,
    wait_for_followers,
)
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.servers.live_server import (
    CHANGES_SUBSCRIPTION,
    LiveServer,
    SlowClient,
    record_journal_entry,
    wait_until,
)
from tests.support.time_limits import HANG_SECONDS

USER_SUBSCRIPTION = f"""subscription ($user: UserRef, $after: Cursor) {{
  changes(user: $user, after: $after) {CHANGE_BATCH_FIELDS} }}"""
MAILBOX_SUBSCRIPTION = f"""subscription ($id: ID!, $after: Cursor) {{
  mailboxChanges(mailbox: {{id: $id}}, after: $after) {CHANGE_BATCH_FIELDS} }}"""
CHANGES_OF_MAILBOXES = f"""subscription ($mailboxes: [MailboxRef!], $after: Cursor) {{
  changes(mailboxes: $mailboxes, after: $after) {CHANGE_BATCH_FIELDS} }}"""


@EACH_TRANSPORT
async def test_mailbox_subscription_gets_events_of_that_mailbox_only(
    live_server: LiveServer, ada: GraphQLClient, transport: str
) -> None:
    mailbox_id = await create_team_mailbox(ada, "Old")
    follower = await open_subscription(
        live_server, transport, ada, MAILBOX_SUBSCRIPTION, id=mailbox_id
    )
    await deliver_to(ada, "Elsewhere")
    await append_unread_messages(ada, "Team", "Here")
    await wait_until(lambda: received_events(follower))
    (event,) = received_events(follower)
    assert (event["type"], event["message"]) == ("MESSAGE_ADDED", {"subject": "Here"})
    await run_mailbox_mutation(ada, "mailboxRename", mailbox={"path": "Team"}, newPath="Crew")
    await wait_until(lambda: len(received_events(follower)) == 2)
    assert received_events(follower)[1]["path"] == "Crew"
    await run_mailbox_mutation(ada, "mailboxDelete", "deletedIds", mailboxes=[{"path": "Crew"}])
    await wait_until(lambda: follower.end_frame)
    assert received_events(follower)[-1]["type"] == "MAILBOX_DELETED"
    await follower.unsubscribe()
    assert (
        await live_server.follow_until_refused(ada, MAILBOX_SUBSCRIPTION, id=mailbox_id)
        == "NOT_FOUND"
    )


async def test_mailbox_subscription_starts_at_cursor(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "Old")
    cursor = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    await append_unread_messages(ada, "Team", "One", "Two")
    follower = await live_server.follow(ada, MAILBOX_SUBSCRIPTION, id=mailbox_id, after=cursor)
    await wait_until(lambda: len(received_events(follower)) == 2)
    second_follower = await live_server.follow(
        ada, MAILBOX_SUBSCRIPTION, id=mailbox_id, after=received_events(follower)[0]["cursor"]
    )
    await wait_until(lambda: received_events(second_follower))
    assert [event["message"]["subject"] for event in received_events(second_follower)] == ["Two"]
    await follower.unsubscribe()
    await second_follower.unsubscribe()


@EACH_TRANSPORT
async def test_shared_mailbox_subscription_ends_with_the_share(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, transport: str
) -> None:
    mailbox_id = await create_team_mailbox(ada, "Old")
    assert (
        await live_server.follow_until_refused(bob, MAILBOX_SUBSCRIPTION, id=mailbox_id)
        == "NOT_FOUND"
    )
    await share_mailbox(ada, bob, *READ_RIGHTS)
    follower = await open_subscription(
        live_server, transport, bob, MAILBOX_SUBSCRIPTION, id=mailbox_id
    )
    await append_unread_messages(ada, "Team", "New")
    await wait_until(lambda: received_events(follower))
    await share_mailbox(ada, bob)
    await append_unread_messages(ada, "Team", "Unheard")
    await wait_until(lambda: follower.end_frame)
    assert [event["type"] for event in received_events(follower)] == [
        "MESSAGE_ADDED",
        "MAILBOX_DELETED",
    ]
    await follower.unsubscribe()


async def test_mailbox_is_read_once_for_all_subscribers(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada)
    followers = [
        await live_server.follow(ada, MAILBOX_SUBSCRIPTION, id=mailbox_id) for _ in range(5)
    ]
    await wait_until(lambda: live_server.subscriber_count == 5)
    assert len(live_server.groups) == 1
    await append_unread_messages(ada, "Team", "New")
    await wait_until(lambda: all(received_events(follower) for follower in followers))
    assert len({str(follower.payloads) for follower in followers}) == 1
    for follower in followers:
        await follower.unsubscribe()


@EACH_TRANSPORT
async def test_admin_can_follow_another_account(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient, transport: str
) -> None:
    query = USER_SUBSCRIPTION.replace("message { subject }", "message { imap { flags } }")
    follower = await open_subscription(
        live_server, transport, admin_client, query, user={"username": "ada"}
    )
    await deliver_to(admin_client, "Own")
    await deliver_to(ada, "Hello")
    await wait_until(lambda: received_events(follower))
    (event,) = received_events(follower)
    assert (event["type"], event["message"]) == ("MESSAGE_RECEIVED", {"imap": {"flags": []}})
    await follower.unsubscribe()


async def test_following_unmanaged_account_is_refused(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, http: httpx.AsyncClient
) -> None:
    environment = ada.environment
    await make_client(environment, http, "over", role=Role.ADMIN)
    variables = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    assert (
        await live_server.follow_until_refused(bob, USER_SUBSCRIPTION, **variables) == "NOT_FOUND"
    )
    admin_without_permission = await make_domain_admin(environment, http, "weak")
    assert (
        await live_server.follow_until_refused(
            admin_without_permission, USER_SUBSCRIPTION, **variables
        )
        == "FORBIDDEN"
    )
    admin_with_permission = await make_domain_admin(
        environment, http, "strong", [AdminPermission.IMPERSONATE]
    )
    follower = await open_subscription(
        live_server, "follow", admin_with_permission, USER_SUBSCRIPTION, **variables
    )
    assert not follower.end_frame
    await follower.unsubscribe()
    assert (
        await live_server.follow_until_refused(
            admin_with_permission, USER_SUBSCRIPTION, user={"username": "over"}
        )
        == "NOT_FOUND"
    )


async def test_admin_subscription_ends_when_account_gets_higher_role(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    follower = await open_subscription(
        live_server, "follow", admin_client, USER_SUBSCRIPTION, user={"username": "ada"}
    )
    async with ada.environment.write_session(ada.user.id) as session:
        role_update = update(User).where(col(User.id) == ada.user.id).values(role=Role.ROOT)
        await (await session.connection()).execute(role_update)
    await deliver_to(ada, "Secret")
    await wait_until(lambda: follower.end_frame)
    (last,) = follower.payloads
    assert last["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    await follower.unsubscribe()


@EACH_TRANSPORT
@pytest.mark.parametrize("by_admin", [False, True])
async def test_subscription_ends_when_credential_is_revoked(
    live_server: LiveServer,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    transport: str,
    by_admin: bool,
) -> None:
    client, query = (admin_client, USERS_SUBSCRIPTION) if by_admin else (ada, CHANGES_SUBSCRIPTION)
    secret = await make_api_key(
        ada.environment,
        "brief",
        scopes=[Scope.FULL],
        user_id=client.user.id,
        role=client.user.role,
    )
    revoked_client = GraphQLClient(client.http, client.environment, client.user, secret)
    remaining_follower = await open_subscription(live_server, transport, client, query)
    revoked_follower = await open_subscription(live_server, transport, revoked_client, query)
    api_keys = (await client("{ apiKeys { nodes { id name } } }"))["apiKeys"]["nodes"]
    (key_id,) = (item["id"] for item in api_keys if item["name"] == "brief")
    await client(
        "mutation ($i: ApiKeyDeleteInput!) { apiKeyDelete(input: $i) { deletedIds } }",
        i={"apiKeys": [{"id": key_id}]},
    )
    if by_admin:
        await try_create_user(admin_client)
    else:
        await deliver_to(ada, "New")
    await wait_until(lambda: received_events(remaining_follower) and revoked_follower.end_frame)
    assert not [item for item in revoked_follower.payloads if item.get("data")]
    if transport == "follow":
        assert revoked_follower.ws
        await revoked_follower.ws.wait_closed()
        assert revoked_follower.ws.close_code == 4403
        assert revoked_follower.end_frame["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    else:
        assert revoked_follower.payloads[-1]["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    await remaining_follower.unsubscribe()
    await revoked_follower.unsubscribe()


async def test_revocation_by_another_process_is_found_by_next_account_change(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    """The key is deleted without an event. The next change of the account ends the subscription."""
    secret = await make_api_key(
        ada.environment, "brief", scopes=[Scope.FULL], user_id=ada.user.id, role=ada.user.role
    )
    revoked_follower = await live_server.follow(
        GraphQLClient(ada.http, ada.environment, ada.user, secret), CHANGES_SUBSCRIPTION
    )
    remaining_follower = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 2)
    async with ada.environment.write_session(ada.user.id) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.name) == "brief"))
    users, errors = await try_update_users(ada, name="Ada")
    assert (users[0]["name"], errors) == ("Ada", [])
    await wait_until(lambda: remaining_follower.payloads and revoked_follower.end_frame)
    assert not revoked_follower.payloads
    await remaining_follower.unsubscribe()


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "events"])
async def test_slow_reader_gets_all_events(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient, by_socket: bool
) -> None:
    query = """subscription { changes(user: {username: "ada"}, debounce: "PT0S") { cursor
      events { ... on MailboxChange { path } } } }"""
    with SlowClient(live_server.port) as slow:
        await slow.subscribe(admin_client, query, by_websocket=by_socket)
        await wait_for_followers(ada.environment)
        for number in range(60):
            await record_journal_entry(
                ada, EventType.MAILBOX_UPDATED, [1], path=f"{number} {'x' * 120_000}"
            )
            await asyncio.sleep(0)
        await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1], path="End")
        received = await slow.read_until(b'"path":"End"')
    numbers = [int(part.split(b" ", 1)[0]) for part in received.split(b'"path":"')[1:-1]]
    assert numbers == list(range(60))


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "events"])
async def test_revoked_client_that_reads_nothing_does_not_delay_others(
    live_server: LiveServer, ada: GraphQLClient, by_socket: bool
) -> None:
    secret = await make_api_key(
        ada.environment, "deaf", scopes=[Scope.FULL], user_id=ada.user.id, role=ada.user.role
    )
    query = "subscription { changes { cursor events { ... on MailboxChange { path } } } }"
    with SlowClient(live_server.port) as slow:
        await slow.subscribe(
            GraphQLClient(ada.http, ada.environment, ada.user, secret),
            query,
            by_websocket=by_socket,
        )
        healthy = await live_server.follow(ada, query)
        await wait_until(lambda: live_server.subscriber_count == 2)
        (group,), sent = live_server.groups, 0
        # until the sender waits
        while not any(subscriber.result_queue._task for subscriber in group.members):  # noqa: SLF001
            await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1], path="x" * 500_000)
            sent += 1
            await wait_until(lambda: len(healthy.events) == sent)  # noqa: B023
            await asyncio.sleep(0.05)
        assert live_server.subscriber_count == 2
        async with ada.environment.write_session(ada.user.id) as session:
            await session.exec(delete(ApiKey).where(col(ApiKey.name) == "deaf"))
        await try_update_users(ada, name="Ada")
        await wait_until(lambda: len(healthy.events) == sent + 1)
        await healthy.unsubscribe()


async def test_one_socket_can_have_100_subscriptions(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    ws = await live_server.open_websocket(ada)
    for number in range(10_000):
        frame = {"type": "subscribe", "id": str(number), "payload": {"query": CHANGES_SUBSCRIPTION}}
        await ws.send(orjson.dumps(frame).decode())
    codes = list[str]()
    async with asyncio.timeout(HANG_SECONDS):
        while len(codes) < 9_900:
            frame = orjson.loads(await ws.recv())
            assert frame["type"] == "error"
            codes.append(frame["payload"][0]["extensions"]["code"])
    assert set(codes) == {"RATE_LIMITED"}
    await wait_until(lambda: live_server.subscriber_count == 100)
    assert len(live_server.groups) == 1
    await deliver_to(ada, "New")
    subscription_ids = {orjson.loads(await ws.recv())["id"] for _ in range(100)}
    assert subscription_ids == {str(number) for number in range(100)}
    await ws.close()
    await wait_until(lambda: not live_server.groups)


async def test_rapid_subscribe_and_complete_leaves_no_tasks(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    mailbox_id, task_count = await create_team_mailbox(ada), len(asyncio.all_tasks())
    user_subscriptions = [
        (ada, MAILBOX_SUBSCRIPTION, {"id": mailbox_id}),
        (ada, "subscription { mailboxCounters { messageCount } }", {}),
    ]
    admin_subscriptions = [
        (admin_client, USER_SUBSCRIPTION, {"user": {"username": "ada"}}),
        (admin_client, USERS_SUBSCRIPTION, {}),
    ]
    sockets = {
        client.user.id: await live_server.open_websocket(client) for client in (ada, admin_client)
    }
    for number in range(300):
        client, query, variables = (user_subscriptions + admin_subscriptions)[number % 4]
        ws = sockets[client.user.id]
        payload = {"query": query, "variables": variables}
        frame = {"type": "subscribe", "id": str(number), "payload": payload}
        await ws.send(orjson.dumps(frame).decode())
        await ws.send(orjson.dumps({"type": "complete", "id": str(number)}).decode())
        if number % 50 == 0:
            await deliver_to(ada, f"Number {number}")
    for ws in sockets.values():
        await ws.close()
    await wait_until(
        lambda: not live_server.groups and not ada.environment.wakeups.followed_streams
    )
    await wait_until(lambda: len(asyncio.all_tasks()) <= task_count)


async def test_idle_subscriptions_execute_no_statement(
    live_server: LiveServer, ada: GraphQLClient, admin_client: GraphQLClient, statements: list[str]
) -> None:
    mailbox_id = await create_team_mailbox(ada)
    followers = [
        await open_subscription(live_server, "follow", client, query, **variables)
        for client, query, variables in (
            (ada, MAILBOX_SUBSCRIPTION, {"id": mailbox_id}),
            (ada, "subscription { mailboxCounters { messageCount } }", {}),
            (ada, "subscription { submissionProgress { state } }", {}),
            (admin_client, USER_SUBSCRIPTION, {"user": {"username": "ada"}}),
            (admin_client, USERS_SUBSCRIPTION, {}),
            (admin_client, DOMAIN_CHANGES_SUBSCRIPTION, {}),
        )
    ]
    await authentication.wait_for_background_tasks(ada.environment)
    for _ in range(20):  # on a busy machine the first reads can take longer than one pause
        del statements[:]
        await asyncio.sleep(0.3)
        if not statements:
            break
    assert statements == []
    for follower in followers:
        await follower.unsubscribe()


async def test_changes_of_mailboxes_by_path_and_role(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    await run_mailbox_mutation(ada, "mailboxCreate", paths=["Team"])
    follower = await open_subscription(
        live_server,
        "follow",
        ada,
        CHANGES_OF_MAILBOXES,
        mailboxes=[{"path": "Team"}, {"specialUse": "SENT"}],
    )
    for path in ("INBOX", "Sent", "Team"):
        await append_unread_messages(ada, path, path)
    await wait_until(lambda: len(received_events(follower)) == 2)
    assert [event["message"]["subject"] for event in received_events(follower)] == ["Sent", "Team"]
    missing = await live_server.follow(ada, CHANGES_OF_MAILBOXES, mailboxes=[{"path": "Nowhere"}])
    with pytest.raises(AssertionError, match="NOT_FOUND"):
        await wait_until(lambda: missing.results)
