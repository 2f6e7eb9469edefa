"""Control of the components, settings and stop of real servers with several processes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster_soak import create_data_folder
from bench.servers.bus_servers import InterruptibleBus, PostgresNotifyBus, SocketBus
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.servers.merganser_server import HttpClient, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

BUSY_MACHINE_SECONDS = 120.0
COMPONENTS = """query ($filter: ComponentFilter) { components(filter: $filter, first: 200) {
  totalCount unresponsiveNodes
  nodes { name kind state node pid address version latency detail stateChangedAt } } }"""
STOP = """mutation ($input: ComponentStopInput!) { componentStop(input: $input) {
  components { name state pid } unresponsiveNodes errors { __typename code message path } } }"""
START = STOP.replace("componentStop(", "componentStart(").replace("StopInput", "StartInput")
RELOAD = """mutation ($input: ConfigReloadInput!) { configReload(input: $input) {
  changedKeys restartRequiredKeys unresponsiveNodes errors { code message } } }"""
SERVER_STOP = """mutation ($input: ServerStopInput!) { serverStop(input: $input) {
  stoppingAt errors { code message path } } }"""


@pytest.fixture(params=store_fixtures.STORES, scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MerganserProcess]:
    """A server with two listening processes and a settings file."""
    folder = tmp_path_factory.mktemp("server")
    store = ""
    if request.param == "postgres":
        store = create_migrated_database(request.getfixturevalue("postgres"), "controlled_server")
    (folder / "settings").write_text("# empty\n")
    settings = {"CONFIG": str(folder / "settings")}
    started = MerganserProcess(folder, store, settings, serve_arguments=("--workers", "2"))
    started.create_users("ada")
    started.start()
    yield started
    started.stop()


@asynccontextmanager
async def interrupted_bus(server: MerganserProcess) -> AsyncIterator[None]:
    bus: InterruptibleBus = (
        PostgresNotifyBus(server.store_url)
        if server.store_url
        else SocketBus(server.folder / "var")
    )
    await bus.interrupt()
    try:
        yield
    finally:
        await bus.restore()


async def states(client: HttpClient, *names: str) -> list[str]:
    result = (await client(COMPONENTS, filter={"names": names}))["components"]
    return [node["state"] for node in result["nodes"]]


async def wait_for(predicate: Callable[[], Any]) -> None:
    deadline = time.monotonic() + BUSY_MACHINE_SECONDS
    while not await predicate():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def can_connect(server: MerganserProcess) -> bool:
    try:
        await (await connect_lmtp(server.lmtp_port)).close()
    except OSError:
        return False
    return True


async def test_components_of_all_processes_are_listed(server: MerganserProcess) -> None:
    async with server.open_client("root") as root:
        result = (await root(COMPONENTS))["components"]
    nodes = result["nodes"]
    assert result["unresponsiveNodes"] == []
    assert result["totalCount"] == len(nodes)
    assert len({node["pid"] for node in nodes}) == 3  # two that listen, one with the workers
    by_name: dict[str, list[Any]] = {}
    for node in nodes:
        by_name.setdefault(node["name"], []).append(node)
    assert [len(by_name[name]) for name in ("http", "lmtp", "queue", "tasks")] == [2, 2, 1, 1]
    assert [len(by_name[name]) for name in ("database", "blobs", "eventBus")] == [3, 3, 3]
    for node in by_name["database"]:
        assert node["state"] == "RUNNING"
        assert node["version"].startswith("PostgreSQL" if server.store_url else "SQLite")
        assert node["latency"].startswith("PT0.")
    assert {node["state"] for node in by_name["rspamd"]} == {"DISABLED"}
    assert {node["state"] for node in by_name["smtp"]} == {"DISABLED"}
    assert by_name["lmtp"][0]["address"] == f"127.0.0.1:{server.lmtp_port}"


@pytest.mark.parametrize("has_bus", [True, False], ids=["bus", "no-bus"])
async def test_stop_acts_on_all_processes_and_survives_their_replacement(
    server: MerganserProcess, has_bus: bool
) -> None:
    if not has_bus:
        async with interrupted_bus(server):
            await check_stop_and_start(server)
    else:
        await check_stop_and_start(server)


async def check_stop_and_start(server: MerganserProcess) -> None:
    async with server.open_client("root") as root:
        idle_session = await connect_lmtp(server.lmtp_port)
        sending = await connect_lmtp(server.lmtp_port)
        await sending.start_data("ada@example.org")
        payload = (await root(STOP, input={"components": ["lmtp", "tasks"]}))["componentStop"]
        assert payload["errors"] == []
        assert sorted(row["name"] for row in payload["components"]) == ["lmtp", "lmtp", "tasks"]
        assert {row["state"] for row in payload["components"]} <= {"STOPPED", "STOPPING"}
        assert (await idle_session.read_reply()).startswith("421 ")
        assert not await can_connect(server)
        sending.send_bytes(b"Subject: Finished\r\n\r\nText\r\n.\r\n")
        assert (await sending.read_reply()).startswith("250 ")
        await sending.close()
        await idle_session.close()
        wanted = ["STOPPED"] * 3

        async def are_stopped() -> bool:
            return await states(root, "lmtp", "tasks") == wanted

        await wait_for(are_stopped)
        assert (await ready_components(server))["lmtp"] == "stopped"
        (row, *_) = (await root(COMPONENTS, filter={"names": ["lmtp"]}))["components"]["nodes"]
        os.kill(row["pid"], signal.SIGKILL)
        await wait_until_replaced(root, row["pid"])
        assert await states(root, "lmtp") == ["STOPPED", "STOPPED"]
        assert not await can_connect(server)
        payload = (await root(START, input={"components": ["lmtp", "tasks"]}))["componentStart"]
        assert payload["errors"] == []
        wanted = ["RUNNING"] * 3
        await wait_for(are_stopped)
        assert await can_connect(server)
    assert "lmtp" not in await ready_components(server)


async def ready_components(server: MerganserProcess) -> dict[str, str]:
    async with httpx.AsyncClient(timeout=60) as client:
        response = await client.get(f"{server.url}/health/ready")
    assert response.status_code == 200
    components: dict[str, str] = response.json()["components"]
    return components


async def wait_until_replaced(root: HttpClient, pid: int) -> None:
    async def is_replaced() -> bool:
        try:
            page = (await root(COMPONENTS, filter={"names": ["lmtp"]}))["components"]
        except httpx.TransportError:  # a kept connection was one to the killed process
            return False
        pids = [row["pid"] for row in page["nodes"]]
        return len(pids) == 2 and pid not in pids

    await wait_for(is_replaced)


async def test_config_reload_names_changed_keys_and_drops_no_connection(
    server: MerganserProcess,
) -> None:
    file = server.folder / "settings"
    session = await connect_lmtp(server.lmtp_port)
    file.write_text("MERGANSER_QUEUE_LIFETIME=3d\nMERGANSER_LOG_LEVEL='DEBUG'\n")
    async with server.open_client("root") as root:
        payload = (await root(RELOAD, input={"options": {"validateOnly": True}}))["configReload"]
        assert payload["changedKeys"] == ["MERGANSER_LOG_LEVEL", "MERGANSER_QUEUE_LIFETIME"]
        query = '{ setting(by: {key: "queue.lifetime"}) { value } }'
        assert (await root(query))["setting"]["value"] == "P5D"
        payload = (await root(RELOAD, input={}))["configReload"]
        assert payload == {
            "changedKeys": ["MERGANSER_LOG_LEVEL", "MERGANSER_QUEUE_LIFETIME"],
            "restartRequiredKeys": ["MERGANSER_LOG_LEVEL"],
            "unresponsiveNodes": [],
            "errors": [],
        }
        assert (await root(query))["setting"]["value"] == "P3D"
        file.write_text("# all defaults\nMERGANSER_QUEUE_LIFETIM=4d\n")
        (error,) = (await root(RELOAD, input={}))["configReload"]["errors"]
        assert "line 2: MERGANSER_QUEUE_LIFETIM is not a setting" in error["message"]
        assert (await root(query))["setting"]["value"] == "P3D"
        file.write_text("MERGANSER_QUEUE_LIFETIME=2d\n")
        os.kill(server.pid, signal.SIGHUP)

        async def is_reloaded() -> bool:
            return bool((await root(query))["setting"]["value"] == "P2D")

        await wait_for(is_reloaded)
    assert (await session.run_command("NOOP")).startswith("250 ")
    await session.close()


async def test_subscription_reports_changes_of_all_processes(server: MerganserProcess) -> None:
    async with (
        server.open_client("root") as root,
        server.open_websocket(server.secrets["root"]) as websocket,
    ):
        await websocket.subscribe("subscription { health { name state } }")
        first_frame = asyncio.create_task(websocket.read_frame(BUSY_MACHINE_SECONDS))
        while not first_frame.done():  # any change shows that the subscription has started
            for document in (STOP, START):
                await root(document, input={"components": ["snooze"]})
            await asyncio.wait([first_frame], timeout=0.2)
        assert (await first_frame)["type"] == "next"
        await root(STOP, input={"components": ["snooze"]})
        async with asyncio.timeout(BUSY_MACHINE_SECONDS):
            while (await websocket.read_frame())["payload"]["data"]["health"] != {
                "name": "snooze",
                "state": "STOPPED",
            }:
                pass
        await root(START, input={"components": ["snooze"]})


async def test_server_stop_answers_and_ends_all_processes_in_turn(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers = [MerganserProcess(tmp_path / "one", serve_arguments=("--workers", "2"))]
    if "postgres" in store_fixtures.STORES:
        store = create_migrated_database(request.getfixturevalue("postgres"), "stopped_servers")
        blobs = {"OBJECT_STORE_URL": str(tmp_path / "blobs")}
        servers = [  # each process takes connections of the database
            MerganserProcess(tmp_path / "one", store, blobs, serve_arguments=("--workers", "2")),
            MerganserProcess(tmp_path / "two", store, blobs),
        ]
    for server in servers:
        server.folder.mkdir()
    servers[0].create_users("ada")
    for server in servers[1:]:
        create_data_folder(server.folder / "var", servers[0].folder / "var")
    for server in servers:
        server.start()
    async with servers[0].open_client("root") as root:
        (error,) = (await root(SERVER_STOP, input={"grace": "PT1H"}))["serverStop"]["errors"]
        assert (error["code"], error["path"]) == ("VALIDATION", ["grace"])
        payload = (await root(SERVER_STOP, input={"grace": "PT30S"}))["serverStop"]
    assert payload["errors"] == []
    assert payload["stoppingAt"]
    for server in reversed(servers):  # the one that answers is the last one
        assert await asyncio.to_thread(server.wait_for_exit) == 0
        assert "Traceback" not in server.log
