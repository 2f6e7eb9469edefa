"""States of the own node: what is refused, held and ended on a DRAINING or DOWN node."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from models.cluster.nodes import AdministrativeNodeState
from models.cluster.own_node import DOWN_REASON, DRAINING_REASON
from models.runtime.components import Component, ComponentKind, HoldReason
from models.runtime.environment import Environment
from models.sessions.live_sessions import (
    LiveSessionRegistry,
    SessionPeer,
    SessionService,
    SessionTermination,
)
from resolvers.cluster.node_state import NodeStateEnforcer, load_own_node_row
from resolvers.cluster.platform_follower import follow_platform_forever
from tests.conftest import GraphQLClient
from tests.support.operations.platform.cluster_operations import (
    add_node,
    register_server,
    update_node,
)
from tests.support.servers.session_server import SESSIONS, SessionServer

HOST = "mx1.example.org"
BUSY_MACHINE_SECONDS = 60.0
CHANGES = "subscription { changes { cursor } }"


class RecordedSession:
    """A session that records how it is ended, and ends at once."""

    service = SessionService.SMTP
    user_id = None
    peer = SessionPeer()
    idle_seconds = 0.0
    subscription_count = 0

    def __init__(self, environment: Environment, registry: LiveSessionRegistry) -> None:
        self.session_id = environment.new_id()
        self.connected_at = environment.now()
        self.termination: SessionTermination | None = None
        self._registry = registry
        registry.add(self)

    def terminate(self, termination: SessionTermination) -> None:
        self.termination = termination
        self._registry.remove(self)


class RecordedComponent(Component):
    """A component that does nothing."""

    async def start_work(self) -> None:
        """Start nothing."""

    async def finish_work(self) -> None:
        """Finish nothing."""


async def add_components(environment: Environment) -> dict[str, RecordedComponent]:
    """Add and start a worker, a listener and a component that can't be held."""
    components = {
        "queue": RecordedComponent("queue", ComponentKind.WORKER, environment.now),
        "smtp": RecordedComponent("smtp", ComponentKind.LISTENER, environment.now),
        "http": RecordedComponent(
            "http", ComponentKind.LISTENER, environment.now, can_be_held=False
        ),
    }
    for component in components.values():
        environment.components.add(component)
        await component.start()
    return components


def held_names(components: dict[str, RecordedComponent]) -> list[str]:
    return [
        name
        for name, component in components.items()
        if HoldReason.NODE_STATE in component.hold_reasons
    ]


@pytest.fixture
async def enforced(environment: Environment) -> AsyncIterator[Environment]:
    """An environment whose process enforces the state of its node."""
    await register_server(environment, HOST)
    task = asyncio.create_task(follow_platform_forever(environment))
    yield environment
    task.cancel()
    await asyncio.wait([task])


async def wait_for_state(environment: Environment, state: AdministrativeNodeState) -> float:
    """Wait until the process enforces a state; return the seconds that it took."""
    began_at = time.monotonic()
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        while environment.own_node.state is not state:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    return time.monotonic() - began_at


async def test_state_reaches_the_process_and_holds_components(
    root: GraphQLClient, enforced: Environment
) -> None:
    components = await add_components(enforced)
    await update_node(root, HOST, state="DRAINING")
    await wait_for_state(enforced, AdministrativeNodeState.DRAINING)
    assert held_names(components) == ["queue"]
    assert enforced.own_node.refusal_reason == DRAINING_REASON
    await update_node(root, HOST, state="DOWN")
    await wait_for_state(enforced, AdministrativeNodeState.DOWN)
    assert held_names(components) == ["queue", "smtp"]
    assert enforced.own_node.refusal_reason == DOWN_REASON
    await update_node(root, HOST, state="UP")
    await wait_for_state(enforced, AdministrativeNodeState.UP)
    assert held_names(components) == []
    assert enforced.own_node.refusal_reason is None


async def test_state_holds_components_that_start_later(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, HOST)
    await update_node(root, HOST, state="DOWN")
    await NodeStateEnforcer(environment).enforce_node_state(await load_own_node_row(environment))
    assert held_names(await add_components(environment)) == ["queue", "smtp"]


async def test_down_ends_all_sessions_at_once(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, HOST)
    enforcer, registry = NodeStateEnforcer(environment), environment.live_sessions
    sessions = [RecordedSession(environment, registry) for _ in range(20)]
    await update_node(root, HOST, state="DOWN")
    await enforcer.enforce_node_state(await load_own_node_row(environment))
    expected = SessionTermination(DOWN_REASON, asks_to_reconnect=True)
    assert [session.termination for session in sessions] == [expected] * 20


async def test_draining_spreads_the_ends_of_sessions(
    root: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register_server(environment, HOST)
    enforcer, registry = NodeStateEnforcer(environment), environment.live_sessions
    components = await add_components(environment)
    for _ in range(100):
        RecordedSession(environment, registry)
    await update_node(root, HOST, state="DRAINING", drainTime="PT10S")
    now, counts = time.monotonic(), []
    for second in range(11):
        monkeypatch.setattr(time, "monotonic", lambda second=second: now + second)
        await enforcer.enforce_node_state(await load_own_node_row(environment))
        counts.append(len(registry))
        assert ("smtp" in held_names(components)) is (second >= 10)
    monkeypatch.undo()
    assert counts[0] in range(85, 96)
    assert counts[5] in range(35, 55)
    assert counts[10] == 0


async def test_drain_begins_again_when_it_is_set_again(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, HOST)
    enforcer = NodeStateEnforcer(environment)
    await update_node(root, HOST, state="DRAINING", drainTime="PT0S")
    await enforcer.enforce_node_state(await load_own_node_row(environment))
    first = environment.own_node.drain_ends_at
    await update_node(root, HOST, state="DRAINING", drainTime="PT1H")
    await enforcer.enforce_node_state(await load_own_node_row(environment))
    second = environment.own_node.drain_ends_at
    assert second >= first + 3599
    await update_node(root, HOST, tag="rack 2")
    await enforcer.enforce_node_state(await load_own_node_row(environment))
    assert environment.own_node.drain_ends_at == second


async def test_node_that_is_added_as_draining_ends_its_sessions_at_once(
    root: GraphQLClient, environment: Environment
) -> None:
    await register_server(environment, HOST)
    enforcer = NodeStateEnforcer(environment)
    await update_node(root, HOST, state="DRAINING", drainTime="PT1H")
    await enforcer.enforce_node_state(await load_own_node_row(environment))
    session = RecordedSession(environment, environment.live_sessions)
    added = await add_node(root, HOST, state="DRAINING")
    assert added["drainEndsAt"] is None
    await enforcer.enforce_node_state(await load_own_node_row(environment))
    assert session.termination is not None


async def test_new_sessions_are_refused_with_a_reason(
    root: GraphQLClient, ada: GraphQLClient, session_server: SessionServer, enforced: Environment
) -> None:
    await update_node(root, HOST, state="DRAINING")
    await wait_for_state(enforced, AdministrativeNodeState.DRAINING)
    refusal = f"421 4.3.2 mx.example.org {DRAINING_REASON}"
    for port in (session_server.lmtp.port, session_server.submission.port, session_server.mx.port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(BUSY_MACHINE_SECONDS):
            assert (await reader.read()).decode().strip() == refusal
        writer.close()
    with pytest.raises(InvalidStatus) as refused:
        await session_server.live.open_websocket(ada)
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "5"
    async with session_server.client_of(ada) as remote:
        headers = {"Authorization": f"Bearer {ada.secret}", "Accept": "text/event-stream"}
        stream = await remote.http.post("/graphql", json={"query": CHANGES}, headers=headers)
        assert (stream.status_code, stream.headers["Retry-After"]) == (503, "5")
        assert DRAINING_REASON in stream.text
    async with session_server.client_of(root) as remote:
        assert (await update_node(remote, HOST, state="UP"))["administrativeState"] == "UP"
    await wait_for_state(enforced, AdministrativeNodeState.UP)
    client = await session_server.open_lmtp_session()
    await client.close()


@pytest.mark.usefixtures("enforced")
async def test_open_sockets_are_closed_so_that_clients_connect_again(
    root: GraphQLClient, ada: GraphQLClient, session_server: SessionServer
) -> None:
    follower = await session_server.live.follow(ada, CHANGES)
    smtp = await session_server.open_mx_session()
    sessions: Any = (await root(SESSIONS))["sessions"]
    assert sessions["totalCount"] == 2
    await update_node(root, HOST, state="DOWN")
    assert follower.ws is not None
    async with asyncio.timeout(BUSY_MACHINE_SECONDS):
        await follower.ws.wait_closed()
    assert (follower.ws.close_code, follower.ws.close_reason) == (1012, DOWN_REASON)
    assert follower.end_frame is None  # clients don't repeat operations that ended
    assert DOWN_REASON in await smtp.read_reply()
    await follower.unsubscribe()
    await smtp.close()


@pytest.mark.usefixtures("enforced")
async def test_event_stream_ends_without_complete(
    root: GraphQLClient, ada: GraphQLClient, session_server: SessionServer
) -> None:
    async with session_server.client_of(ada) as remote:
        headers = {"Authorization": f"Bearer {ada.secret}", "Accept": "text/event-stream"}
        request = remote.http.stream("POST", "/graphql", json={"query": CHANGES}, headers=headers)
        async with asyncio.timeout(BUSY_MACHINE_SECONDS), request as response:
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("id:")
            await update_node(root, HOST, state="DOWN")
            rest = [line async for line in lines]
    assert not any("complete" in line or "error" in line for line in rest)
