"""Two real servers with one host name on one PostgreSQL: they are two nodes everywhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from bench.cluster_soak import create_data_folder
from bench.servers.bus_servers import BrokerProcess
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.operations.platform.cluster_operations import NODE_UPDATE, NODES
from tests.support.servers.bus_servers import make_redis_process
from tests.support.servers.merganser_server import HttpClient, MerganserProcess
from tests.support.servers.session_server import SESSIONS
from tests.support.servers.suspended_process import suspend_process
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

pytestmark = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)
HOST = "mx.example.org"
BUSY_MACHINE_SECONDS = 30.0
ENFORCEMENT_SECONDS = 1.0
LATE_SECONDS = 1.0  # on a busy machine
COMPONENTS = """query ($filter: ComponentFilter) { components(filter: $filter, first: 200) {
  unresponsiveNodes nodes { name state node pid } } }"""
STOP = """mutation ($input: ComponentStopInput!) { componentStop(input: $input) {
  components { name state node } unresponsiveNodes
  errors { code message path ... on ValidationError { constraint allowedValues } } } }"""
START = STOP.replace("componentStop(", "componentStart(").replace("StopInput", "StartInput")


@dataclass
class ServerPair:
    """Two servers with one host name, of which the first one has two listening processes."""

    servers: tuple[MerganserProcess, MerganserProcess]
    bus: BrokerProcess

    @property
    def names(self) -> tuple[str, str]:
        """The names of the nodes."""
        first, second = self.servers
        return f"{HOST}:{first.http_port}", f"{HOST}:{second.http_port}"


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerPair]:
    folder = tmp_path_factory.mktemp("servers")
    store = create_migrated_database(request.getfixturevalue("postgres"), "servers_on_one_host")
    bus = make_redis_process(folder)
    settings = {"OBJECT_STORE_URL": str(folder / "blobs"), "EVENT_BUS_URL": bus.url}
    first = MerganserProcess(folder / "one", store, settings, serve_arguments=("--workers", "2"))
    second = MerganserProcess(folder / "two", store, settings)
    bus.start()
    for server in (first, second):
        server.folder.mkdir()
    first.create_users("ada")
    create_data_folder(second.folder / "var", first.folder / "var")
    second.secrets = first.secrets
    for server in (first, second):
        server.start()
    yield ServerPair((first, second), bus)
    for server in (first, second):
        server.stop()
    bus.stop()


@pytest.fixture
async def root(pair: ServerPair) -> AsyncIterator[HttpClient]:
    """A client of the first server."""
    async with pair.servers[0].open_client("root") as client:
        yield client


async def wait_for(predicate: Callable[[], Coroutine[Any, Any, bool]]) -> float:
    """Wait until a condition is met; return the seconds that it took."""
    began_at = time.monotonic()
    while not await predicate():
        assert time.monotonic() - began_at < BUSY_MACHINE_SECONDS
        await asyncio.sleep(0.02)
    return time.monotonic() - began_at


async def states_of_lmtp(client: HttpClient) -> dict[str, set[str]]:
    """Return the states of the component lmtp by node."""
    states: dict[str, set[str]] = {}
    nodes = (await client(COMPONENTS, filter={"names": ["lmtp"]}))["components"]["nodes"]
    for node in nodes:
        states.setdefault(node["node"], set()).add(node["state"])
    return states


async def accepts_lmtp(server: MerganserProcess) -> bool:
    try:
        await (await connect_lmtp(server.lmtp_port)).close()
    except OSError:
        return False
    return True


async def test_lists_name_both_nodes(pair: ServerPair, root: HttpClient) -> None:
    nodes = (await root(NODES))["clusterNodes"]["nodes"]
    assert {f"{node['host']}:{node['port']}" for node in nodes} == set(pair.names)
    page = (await root(COMPONENTS))["components"]
    process_counts = {
        name: len({node["pid"] for node in page["nodes"] if node["node"] == name})
        for name in pair.names
    }
    assert process_counts == dict(zip(pair.names, (3, 1), strict=True))
    page = (await root(COMPONENTS, filter={"nodes": [pair.names[1]]}))["components"]
    assert {node["node"] for node in page["nodes"]} == {pair.names[1]}
    page = (await root(COMPONENTS, filter={"nodes": [HOST]}))["components"]
    assert {node["node"] for node in page["nodes"]} == set(pair.names)
    stores = (await root("{ storageStatus { stores { store node } } }"))["storageStatus"]["stores"]
    assert {row["node"] for row in stores if row["store"] == "spool"} == set(pair.names)
    async with pair.servers[1].open_client("root") as client:
        health = (await client("{ health { checks { node } } }"))["health"]
    assert {check["node"] for check in health["checks"]} == {pair.names[1]}


async def test_sessions_name_their_node(pair: ServerPair, root: HttpClient) -> None:
    for server, name in zip(pair.servers, pair.names, strict=True):
        async with server.open_websocket(server.secrets["ada"]) as socket:
            await socket.subscribe("subscription { changes { cursor } }")

            async def is_listed(name: str = name) -> bool:
                page = (await root(SESSIONS, filter={"services": ["WEBSOCKET"]}))["sessions"]
                return [session["node"] for session in page["nodes"]] == [name]

            await wait_for(is_listed)


async def test_component_is_stopped_on_one_of_the_nodes(pair: ServerPair, root: HttpClient) -> None:
    stopped = {"components": ["lmtp"], "node": pair.names[1]}
    payload = (await root(STOP, input=stopped))["componentStop"]
    assert (payload["errors"], payload["unresponsiveNodes"]) == ([], [])
    assert {row["node"] for row in payload["components"]} == {pair.names[1]}
    expected = {pair.names[0]: {"RUNNING"}, pair.names[1]: {"STOPPED"}}

    async def is_stopped() -> bool:
        return await states_of_lmtp(root) == expected

    await wait_for(is_stopped)
    assert [await accepts_lmtp(server) for server in pair.servers] == [True, False]
    await asyncio.to_thread(pair.servers[1].stop)
    await asyncio.to_thread(pair.servers[1].start)
    await wait_for(is_stopped)
    assert [await accepts_lmtp(server) for server in pair.servers] == [True, False]
    payload = (await root(START, input=stopped))["componentStart"]
    assert [(row["node"], row["state"]) for row in payload["components"]] == [
        (pair.names[1], "RUNNING")
    ]
    assert await accepts_lmtp(pair.servers[1])


async def test_host_of_two_nodes_is_ambiguous(pair: ServerPair, root: HttpClient) -> None:
    ambiguous = {"components": ["lmtp"], "node": HOST}
    (error,) = (await root(STOP, input=ambiguous))["componentStop"]["errors"]
    assert (error["path"], error["constraint"]) == (["node"], "EXCLUSIVE")
    assert error["allowedValues"] == sorted(pair.names)


async def test_only_the_node_that_does_not_answer_is_named(
    pair: ServerPair, root: HttpClient
) -> None:
    pid = pair.servers[1].pid
    with suspend_process(pair.servers[1], pid):
        page = (await root(COMPONENTS))["components"]
    assert page["unresponsiveNodes"] == [pair.names[1]]
    assert {node["node"] for node in page["nodes"]} == {pair.names[0]}


async def set_state(client: HttpClient, pair: ServerPair, state: str) -> None:
    """Set the state of the second node."""
    address = {"host": HOST, "port": pair.servers[1].http_port}
    update = {"nodes": [{"address": address}], "set": {"state": state}}
    assert (await client(NODE_UPDATE, input=update))["clusterNodeUpdate"]["errors"] == []


async def is_ready(server: MerganserProcess) -> bool:
    async with httpx.AsyncClient(timeout=BUSY_MACHINE_SECONDS) as http:
        response = await http.get(f"{server.url}/health/ready")
    assert response.status_code in (200, 503)
    return response.status_code == 200


async def refuses_sessions(server: MerganserProcess) -> bool:
    """True if the server refuses new sessions because it is draining."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.lmtp_port)
    greeting = await reader.readline()
    writer.close()
    return greeting.startswith(b"421 ")


@pytest.mark.parametrize("has_bus", [True, False], ids=["bus", "no-bus"])
async def test_state_set_at_one_server_is_enforced_at_the_other(
    pair: ServerPair, root: HttpClient, has_bus: bool
) -> None:
    first, second = pair.servers

    async def is_draining() -> bool:
        return await refuses_sessions(second)

    async def is_up() -> bool:
        return not await refuses_sessions(second)

    if not has_bus:
        await pair.bus.interrupt()
    try:
        await set_state(root, pair, "DRAINING")
        assert await wait_for(is_draining) < ENFORCEMENT_SECONDS + LATE_SECONDS
        assert [await is_ready(server) for server in (first, second)] == [True, False]
        await set_state(root, pair, "UP")
        assert await wait_for(is_up) < ENFORCEMENT_SECONDS + LATE_SECONDS
        await set_state(root, pair, "DRAINING")
        await wait_for(is_draining)
    finally:
        await pair.bus.restore()
    await asyncio.sleep(2 * ENFORCEMENT_SECONDS)  # the processes connect to the bus again
    assert await is_draining()
    assert not await is_ready(second)
    assert await is_ready(first)
    await set_state(root, pair, "UP")
    assert await wait_for(is_up) < ENFORCEMENT_SECONDS + LATE_SECONDS


async def test_server_of_one_node_stops(pair: ServerPair, root: HttpClient) -> None:
    document = """mutation ($node: String!) {
      serverStop(input: { node: $node, grace: "PT0S" }) { stoppingAt errors { code } } }"""
    payload = (await root(document, node=pair.names[1]))["serverStop"]
    assert payload["errors"] == []
    assert await asyncio.to_thread(pair.servers[1].wait_for_exit) == 0
    assert await is_ready(pair.servers[0])
    await asyncio.to_thread(pair.servers[1].start)
