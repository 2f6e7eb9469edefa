"""Subscriptions to the changes of the users of domains."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from graph.types.scalars import SCALARS, Cursor
from models.runtime.environment import Environment
from models.users.roles import Role
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.accounts.user_operations import try_create_user
from tests.support.clients.change_followers import (
    DOMAIN_CHANGES_SUBSCRIPTION,
    EACH_TRANSPORT,
    USERS_SUBSCRIPTION,
    open_subscription,
    received_events,
)
from tests.support.operations.domain_operations import (
    DOMAIN_UPDATE,
    create_domain,
    load_domain_id,
    make_admin_of_domains,
    run_mutation,
)
from tests.support.servers.live_server import LiveServer, SubscriptionFollower, wait_until

API_KEY_CREATE = """mutation ($input: ApiKeyCreateInput!) {
  apiKeyCreate(input: $input) { apiKey { id } secret } }"""


def kinds_and_names(follower: SubscriptionFollower) -> list[Any]:
    """Return the kind and the name of the object of each received event."""
    return [
        (event["type"], *(event["node"] or {"": None}).values())
        for event in received_events(follower)
    ]


@EACH_TRANSPORT
async def test_domain_admin_gets_events_of_own_domains_only(
    live_server: LiveServer,
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    transport: str,
) -> None:
    for name in ("a.test", "b.test"):
        await create_domain(root, name)
    domain_admin = await make_admin_of_domains(environment, http, "chief", "a.test")
    user_follower = await open_subscription(
        live_server, transport, domain_admin, USERS_SUBSCRIPTION
    )
    domain_follower = await open_subscription(
        live_server, transport, domain_admin, DOMAIN_CHANGES_SUBSCRIPTION
    )
    await try_create_user(root, address="x@b.test")
    await run_mutation(root, DOMAIN_UPDATE, domains=[{"name": "b.test"}], set={"description": "B"})
    await try_create_user(root, address="x@a.test")
    await wait_until(lambda: received_events(user_follower) and received_events(domain_follower))
    assert kinds_and_names(user_follower) == [("USER_CREATED", "x@a.test")]
    assert received_events(user_follower)[0]["origin"] is None
    await run_mutation(root, DOMAIN_UPDATE, domains=[{"name": "a.test"}], set={"description": "A"})
    await wait_until(lambda: len(received_events(domain_follower)) == 2)
    assert kinds_and_names(domain_follower) == [
        ("USER_CREATED", "x@a.test"),
        ("DOMAIN_UPDATED", "a.test"),
    ]
    await try_create_user(root, address="y@a.test")
    await wait_until(lambda: len(received_events(user_follower)) > 1)
    assert kinds_and_names(user_follower)[1:] == [("USER_CREATED", "y@a.test")]
    for follower in (user_follower, domain_follower):
        await follower.unsubscribe()


async def test_admin_gets_events_of_all_and_new_domains(
    live_server: LiveServer, root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    follower = await open_subscription(
        live_server, "follow", admin_client, DOMAIN_CHANGES_SUBSCRIPTION
    )
    await create_domain(root, "new.test")
    await wait_until(lambda: received_events(follower))
    # once, although two streams have the event
    assert kinds_and_names(follower) == [("DOMAIN_CREATED", "new.test")]
    await try_create_user(root, address="x@new.test")
    await wait_until(lambda: len(received_events(follower)) == 2)
    assert kinds_and_names(follower)[1] == ("USER_CREATED", "x@new.test")
    cursor = received_events(follower)[0]["cursor"]
    second_follower = await live_server.follow(
        admin_client, DOMAIN_CHANGES_SUBSCRIPTION, after=cursor
    )
    await wait_until(lambda: received_events(second_follower))
    assert kinds_and_names(second_follower) == [("USER_CREATED", "x@new.test")]
    for subscription in (follower, second_follower):
        await subscription.unsubscribe()


@EACH_TRANSPORT
@pytest.mark.parametrize("change", ["key deleted", "key switched off", "owner suspended"])
async def test_stream_ends_with_the_key_for_domains(
    live_server: LiveServer,
    root: GraphQLClient,
    transport: str,
    change: str,
) -> None:
    live_server.endpoint.connection_watch.check_interval = 3600  # only the change can close it
    await create_domain(root, "b.test")
    owner = await make_admin_of_domains(root.environment, root.http, "chief", "b.test")
    key = {"name": "panel", "role": "DOMAIN_ADMIN", "domains": [{"name": "b.test"}]}
    created = (await owner(API_KEY_CREATE, input=key))["apiKeyCreate"]
    panel = replace(owner, secret=created["secret"])
    follower = await open_subscription(live_server, transport, panel, DOMAIN_CHANGES_SUBSCRIPTION)
    keys = {"apiKeys": [{"id": created["apiKey"]["id"]}]}
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "key deleted": ("apiKeyDelete", keys),
        "key switched off": ("apiKeyUpdate", {**keys, "set": {"active": False}}),
        "owner suspended": (
            "userUpdate",
            {"users": {"usernames": [owner.user.username]}, "set": {"suspended": True}},
        ),
    }
    mutation, values = changes[change]
    payload = await run_mailbox_mutation(root, mutation, "__typename", **values)
    assert payload["errors"] == []
    await wait_until(lambda: follower.end_frame)
    assert not [item for item in follower.payloads if item.get("data")]
    await follower.unsubscribe()


async def test_user_filter_applies_except_to_deletions(
    live_server: LiveServer, root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    (await try_create_user(root, address="y@example.org", tags=["vip"]))
    follower = await open_subscription(
        live_server, "follow", admin_client, USERS_SUBSCRIPTION, filter={"tags": ["vip"]}
    )
    users, _ = await try_create_user(root, address="x@example.org")
    vip, _ = await try_create_user(root, address="z@example.org", tags=["vip"])
    await wait_until(lambda: received_events(follower))
    assert [event["nodeId"] for event in received_events(follower)] == [vip["id"]]
    await run_mailbox_mutation(root, "userDelete", "journalCursor", users={"ids": [users["id"]]})
    await wait_until(lambda: len(received_events(follower)) > 1)
    assert (users["id"], None) in [
        (event["nodeId"], event["node"]) for event in received_events(follower)
    ]
    await follower.unsubscribe()


async def test_domain_argument_selects_domain_or_is_refused(
    live_server: LiveServer,
    root: GraphQLClient,
    ada: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    for name in ("a.test", "b.test"):
        await create_domain(root, name)
    domain_admin = await make_admin_of_domains(environment, http, "chief", "a.test", "b.test")
    follower = await open_subscription(
        live_server, "follow", domain_admin, DOMAIN_CHANGES_SUBSCRIPTION, domain={"name": "B.Test"}
    )
    await try_create_user(root, address="x@a.test")
    await try_create_user(root, address="x@b.test")
    await wait_until(lambda: received_events(follower))
    assert kinds_and_names(follower) == [("USER_CREATED", "x@b.test")]
    await follower.unsubscribe()
    assert (
        await live_server.follow_until_refused(
            domain_admin, DOMAIN_CHANGES_SUBSCRIPTION, domain={"name": "example.org"}
        )
        == "NOT_FOUND"
    )
    assert (
        await live_server.follow_until_refused(
            domain_admin, USERS_SUBSCRIPTION, filter={"domain": {"name": "none.test"}}
        )
        == "NOT_FOUND"
    )
    for query in (USERS_SUBSCRIPTION, DOMAIN_CHANGES_SUBSCRIPTION):
        assert await live_server.follow_until_refused(ada, query) == "FORBIDDEN"
        serialize_cursor: Any = SCALARS[Cursor].serialize
        foreign_cursor = serialize_cursor({await load_domain_id(environment, "example.org"): 1})
        assert (
            await live_server.follow_until_refused(domain_admin, query, after=foreign_cursor)
            == "BAD_CURSOR"
        )
        assert (
            await live_server.follow_until_refused(domain_admin, query, after="1.x") == "BAD_CURSOR"
        )


async def test_domain_admin_without_domain_is_refused(
    live_server: LiveServer, environment: Environment, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_client(environment, http, "bare", role=Role.DOMAIN_ADMIN)
    for query in (USERS_SUBSCRIPTION, DOMAIN_CHANGES_SUBSCRIPTION):
        assert await live_server.follow_until_refused(domain_admin, query) == "FORBIDDEN"
