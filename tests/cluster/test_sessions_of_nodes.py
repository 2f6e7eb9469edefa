"""Sessions on nodes: counts, and the ends of sessions of users who move."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from models.auth.security_log import SecurityEventAction
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionPeer, SessionService, SessionTermination
from resolvers.cluster import process_requests
from resolvers.cluster.session_requests import CLUSTER_REQUEST_KINDS, MOVED_REASON
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.platform.cluster_operations import (
    AFFINITY_SET,
    NODE_COUNTS,
    NODE_FLUSH,
    load_affinity,
    other_server,
    pin_users,
    register_server,
    run_successful_mutation,
    set_node_values,
)
from tests.support.stores.counter_check import select_rows

HOSTS = ("a.example.org", "b.example.org")
SECURITY_LOG = "SELECT action FROM security_events ORDER BY id"


class UserSession:
    """A session of a user that ends at once."""

    service = SessionService.SUBMISSION
    peer = SessionPeer()
    idle_seconds = 0.0
    subscription_count = 0

    def __init__(self, environment: Environment, user_id: int) -> None:
        self.user_id = user_id
        self.session_id = environment.new_id()
        self.connected_at = environment.now()
        self.termination: SessionTermination | None = None
        self._registry = environment.live_sessions
        self._registry.add(self)

    def terminate(self, termination: SessionTermination) -> None:
        self.termination = termination
        self._registry.remove(self)


@asynccontextmanager
async def answered_requests(environment: Environment) -> AsyncIterator[None]:
    """Answer the requests of other processes until the end of the block."""
    task = asyncio.create_task(
        process_requests.answer_requests_until_cancelled(environment, CLUSTER_REQUEST_KINDS)
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def servers(environment: Environment) -> AsyncIterator[dict[str, Environment]]:
    """Two servers by the host of their node; requests reach the first one."""
    other = other_server(environment)
    async with AsyncExitStack() as stack:
        for host, server in zip(HOSTS, (environment, other), strict=True):
            await register_server(server, host)
        await stack.enter_async_context(answered_requests(other))
        yield dict(zip(HOSTS, (environment, other), strict=True))


async def test_sessions_are_counted_and_shown_on_their_nodes(
    root: GraphQLClient, ada: GraphQLClient, servers: dict[str, Environment]
) -> None:
    for _ in range(3):
        UserSession(servers["b.example.org"], ada.user.id)
    UserSession(servers["a.example.org"], 4711)
    nodes = (await root(NODE_COUNTS))["clusterNodes"]["nodes"]
    assert {node["host"]: node["sessionCount"] for node in nodes} == {
        "a.example.org": 1,
        "b.example.org": 3,
    }
    affinity = await load_affinity(root, "ada")
    assert affinity["sessionNodes"] == [{"host": "b.example.org"}]


async def test_unknown_number_of_sessions_is_null(
    root: GraphQLClient, environment: Environment, servers: dict[str, Environment]
) -> None:
    assert len(servers) == 2
    await set_node_values(environment, "b.example.org", process_count=2)  # one does not answer
    nodes = (await root(NODE_COUNTS))["clusterNodes"]["nodes"]
    assert [node["sessionCount"] for node in nodes] == [0, None]


@pytest.mark.parametrize("target", HOSTS)
async def test_pinned_users_keep_only_sessions_on_their_node(
    root: GraphQLClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
    servers: dict[str, Environment],
    target: str,
) -> None:
    sessions = {host: UserSession(server, ada.user.id) for host, server in servers.items()}
    others = [UserSession(server, bob.user.id) for server in servers.values()]
    payload = await pin_users(root, target, "ada")
    assert (payload["terminatedCount"], payload["pendingCount"]) == (1, 0)
    assert payload["unresponsiveNodes"] == []
    (other,) = {*HOSTS} - {target}
    expected = SessionTermination(MOVED_REASON, asks_to_reconnect=True)
    assert sessions[other].termination == expected
    assert sessions[target].termination is None
    assert [session.termination for session in others] == [None, None]
    actions = [row[0] for row in await select_rows(root.environment, SECURITY_LOG)]
    assert SecurityEventAction.SESSION_TERMINATED in actions


async def test_dry_run_ends_no_session(
    root: GraphQLClient, ada: GraphQLClient, servers: dict[str, Environment]
) -> None:
    session = UserSession(servers["b.example.org"], ada.user.id)
    fields = {"users": {"usernames": ["ada"]}, "node": {"host": "a.example.org"}}
    _, errors = await run_mutation(root, AFFINITY_SET, options={"validateOnly": True}, **fields)
    assert errors == []
    assert session.termination is None
    assert (await load_affinity(root, "ada"))["pinnedNode"] is None


async def test_forced_flush_ends_only_sessions_of_users_of_other_nodes(
    root: GraphQLClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
    servers: dict[str, Environment],
) -> None:
    hosts = {name: (await load_affinity(root, name))["node"]["host"] for name in ("ada", "bob")}
    flushed = hosts["ada"]
    (other,) = {*HOSTS} - {flushed}
    await pin_users(root, flushed, "ada", "bob")
    staying = UserSession(servers[flushed], ada.user.id)
    elsewhere = UserSession(servers[other], ada.user.id)
    moving = UserSession(servers[flushed], bob.user.id)
    fields = {"node": {"host": flushed}, "force": True}
    payload = await run_successful_mutation(root, NODE_FLUSH, **fields)
    moved_count = int(hosts["bob"] != flushed)
    assert payload["redistributedCount"] == 2
    assert payload["terminatedCount"] == moved_count
    assert (moving.termination is not None) is bool(moved_count)
    assert (staying.termination, elsewhere.termination) == (None, None)
