"""Subscriptions in an outage of the database: nothing is lost, and nothing comes twice."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from models.events.event_types import EventType
from models.store.database import Database
from models.store.outage_log import OUTAGES
from tests.conftest import GraphQLClient
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.accounts.user_operations import try_create_user
from tests.support.clients.case_followers import (
    assert_last_received_once,
    received_labels,
    subscribe,
    write_until_received,
)
from tests.support.clients.change_followers import open_subscription, received_events
from tests.support.operations.domain_operations import DOMAIN_RENAME, create_domain, run_mutation
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.operations.subscription_cases import (
    CASES,
    SubscriptionAccounts,
    SubscriptionCase,
    prepare_subscription_accounts,
)
from tests.support.servers.live_server import (
    CHANGES_SUBSCRIPTION,
    LiveServer,
    SubscriptionFollower,
    record_journal_entry,
    wait_until,
)
from tests.support.servers.postgres_proxy import PostgresProxy
from tests.support.stores import store_fixtures

pytestmark = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)
SUBSCRIBERS = 30
EVENT_FIELDS = """{ cursor events { type ... on MessageChange { message { subject } }
  ... on UserChange { node { ... on User { username } } } } }"""
MAILBOX_CHANGES = f'subscription {{ mailboxChanges(mailbox: {{path: "Followed"}}) {EVENT_FIELDS} }}'
CHANGES_OF_MAILBOXES = (
    f'subscription {{ changes(mailboxes: [{{path: "Followed"}}]) {EVENT_FIELDS} }}'
)
DOMAIN_CHANGES = f'subscription {{ domainChanges(domain: {{name: "b.test"}}) {EVENT_FIELDS} }}'


@pytest.fixture
async def postgres_proxy(postgres: str) -> AsyncIterator[PostgresProxy]:
    postgres_proxy = PostgresProxy(postgres)
    await postgres_proxy.start()
    yield postgres_proxy
    await postgres_proxy.cut_connections()


@pytest.fixture(params=["postgres"])
async def database(postgres: str, postgres_proxy: PostgresProxy) -> AsyncIterator[Database]:
    """Yield an empty database behind a proxy that can be cut."""
    direct = Database(postgres)
    await store_fixtures.empty_database(direct)
    await direct.close()
    database = Database(postgres_proxy.url)
    yield database
    await database.close()


@pytest.fixture
async def accounts(ada: GraphQLClient, admin_client: GraphQLClient) -> SubscriptionAccounts:
    return await prepare_subscription_accounts(ada, admin_client)


async def cause_outage(client: GraphQLClient, proxy: PostgresProxy) -> None:
    """Cut all connections until a follower has noticed, then accept connections again."""
    await proxy.cut_connections()
    # the followers read and find no database
    for wakeup in client.environment.wakeups.follower_wakeups:
        wakeup.set()
    await wait_until(lambda: not OUTAGES.is_quiet)
    await proxy.start()
    await client.environment.database.ping()


@pytest.fixture
def reads(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The statements of all reads of the database, in order."""
    statements: list[Any] = []
    read = database.read

    async def record_and_read(statement: Any, *arguments: Any) -> Any:
        statements.append(statement)
        return await read(statement, *arguments)

    monkeypatch.setattr(database, "read", record_and_read)
    return statements


async def test_equal_subscribers_still_share_their_reads_after_an_outage(
    postgres_proxy: PostgresProxy, ada: GraphQLClient, live_server: LiveServer, reads: list[Any]
) -> None:
    followers = [await live_server.follow(ada, CHANGES_SUBSCRIPTION) for _ in range(SUBSCRIBERS)]
    followers += [await live_server.stream(ada, CHANGES_SUBSCRIPTION) for _ in range(SUBSCRIBERS)]
    await wait_until(lambda: live_server.subscriber_count == 2 * SUBSCRIBERS)
    position = await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1])
    read_counts = list[int]()
    for has_outage in (False, True, False):
        if has_outage:
            await cause_outage(ada, postgres_proxy)
        del reads[:]
        for _ in range(2):
            position = await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1])
            await wait_until(lambda: all(last_position(each) == position for each in followers))  # noqa: B023
        read_counts.append(len(reads))
    expected = (
        [str(first_position + n) for n in range(7)] if (first_position := position - 6) else []
    )
    for follower in followers:
        received = [event["cursor"].rpartition(".")[2] for event in follower.events]
        assert received == expected
        await follower.unsubscribe()
    assert max(read_counts) < SUBSCRIBERS, read_counts


def last_position(follower: SubscriptionFollower) -> int:
    """The position of the last batch; 0 without one."""
    return int(follower.last_cursor.rpartition(".")[2] or 0)


async def test_events_around_an_outage_come_once(
    postgres_proxy: PostgresProxy,
    live_server: LiveServer,
    accounts: SubscriptionAccounts,
) -> None:
    """A subscription with positions continues. The client repeats each other one."""
    followers, written = dict[SubscriptionCase, list[SubscriptionFollower]](), {}
    for case in CASES:
        followers[case] = [await subscribe(live_server, case, accounts) for _ in range(2)]
        written[case] = await write_until_received(case, accounts, *followers[case])
    await cause_outage(accounts.ada, postgres_proxy)
    for case in CASES:
        written[case] += [await case.write(accounts) for _ in range(2)]
    for case in CASES:
        for follower in followers[case]:
            await check_events_after_outage(live_server, case, accounts, follower, written[case])


async def check_events_after_outage(
    live_server: LiveServer,
    case: SubscriptionCase,
    accounts: SubscriptionAccounts,
    follower: SubscriptionFollower,
    written: list[str],
) -> None:
    """Wait for the last event, if necessary in a second subscription, and check all events.

    `written` gets the labels of further events.
    """
    await wait_until(lambda: follower.end_frame or written[-1] in received_labels(case, follower))
    followers = [follower]
    if error_codes(follower):
        assert case.after_type != "Cursor"
        assert error_codes(follower) == ["UNAVAILABLE"]
        (*_, last_payload, _) = follower.payloads
        after = case.after_type and case.after_value(last_payload["data"][case.field])
        followers.append(await subscribe(live_server, case, accounts, after))
        if after:
            await wait_until(lambda: written[-1] in received_labels(case, *followers))
        else:
            written += await write_until_received(case, accounts, followers[-1])
            followers = followers[1:]
    assert_last_received_once(case, received_labels(case, *followers), written)
    for each in followers:
        await each.unsubscribe()
    await follower.unsubscribe()


def error_codes(follower: SubscriptionFollower) -> list[str]:
    """The codes of the errors that ended a subscription."""
    return [
        error["extensions"]["code"]
        for payload in follower.payloads
        for error in payload.get("errors") or ()
    ]


def names_of_events(follower: SubscriptionFollower) -> list[str]:
    """The subject of each message and the username of each user in the events."""
    return [
        (event.get("message") or {}).get("subject") or (event.get("node") or {}).get("username", "")
        for event in received_events(follower)
    ]


async def test_restarted_subscription_follows_the_same_object_after_a_rename(
    postgres_proxy: PostgresProxy, live_server: LiveServer, accounts: SubscriptionAccounts
) -> None:
    """An outage starts the subscription again. Another object has the old name by then."""
    ada, admin = accounts.ada, accounts.admin
    followers = [
        await open_subscription(live_server, "follow", client, document)
        for client, document in (
            (ada, MAILBOX_CHANGES), (ada, CHANGES_OF_MAILBOXES), (admin, DOMAIN_CHANGES),
        )
    ]  # fmt: skip
    await append_unread_messages(ada, "Followed", "1")
    assert (await try_create_user(admin, address="u1@b.test"))[1] == []
    await wait_until(lambda: all(each.payloads for each in followers))
    await run_mailbox_mutation(ada, "mailboxRename", mailbox={"path": "Followed"}, newPath="Old")
    await run_mailbox_mutation(ada, "mailboxCreate", paths=["Followed"])
    renaming = await run_mutation(admin, DOMAIN_RENAME, domain={"name": "b.test"}, newName="c.test")
    assert renaming[1] == []
    await create_domain(admin, "b.test")
    await cause_outage(ada, postgres_proxy)
    for path in ("Followed", "Old"):
        await append_unread_messages(ada, path, f"In {path}")
    for domain in ("b.test", "c.test"):
        assert (await try_create_user(admin, address=f"u2@{domain}"))[1] == []
    last_names = ("In Old", "In Old", "u2@c.test")
    for follower, name in zip(followers, last_names, strict=True):
        await wait_until(
            lambda each=follower, name=name: error_codes(each) or name in names_of_events(each)
        )
        assert not error_codes(follower)
        assert not {"In Followed", "u2@b.test"} & set(names_of_events(follower))
        await follower.unsubscribe()
