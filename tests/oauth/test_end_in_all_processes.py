"""The end of a token in all processes: open connections are closed, and requests are refused."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from graph.http.graphql_endpoint import EndpointSettings
from models.events.bus.local_bus import LocalBus
from models.events.wakeups import BusWakeups, Wakeups
from models.runtime.environment import Environment
from models.sessions.live_sessions import LiveSessionRegistry
from models.store.database import Database
from resolvers.auth import authentication, credential_cache
from tests.conftest import GraphQLClient, ManualClock
from tests.support.clients.plain_http import plain_client
from tests.support.oauth.oauth_flow import OauthBrowser, add_client
from tests.support.oauth.token_ends import ENDS_BY_ADMINISTRATOR, end_token
from tests.support.servers.live_server import CHANGES_SUBSCRIPTION, LiveServer, run_live_server
from tests.support.time_limits import HANG_SECONDS

# Connections are checked once an hour, so that in the tests only an event can close them.
SELDOM_CHECKED = EndpointSettings(credential_check_interval=3600, heartbeat=HANG_SECONDS)


@dataclass
class ServerProcess:
    """A server on the same database as another process: with caches, pools and a bus of its own."""

    environment: Environment
    live: LiveServer

    async def is_accepted(self, token: str) -> bool:
        """True if GraphQL accepts a token."""
        url = f"http://127.0.0.1:{self.live.port}"
        async with plain_client(base_url=url, timeout=HANG_SECONDS) as http:
            return await OauthBrowser(http).is_accepted(token)


@contextlib.asynccontextmanager
async def run_server_process(
    environment: Environment, spool: Path, wakeups: Wakeups
) -> AsyncGenerator[ServerProcess]:
    """Run a server on the database of an environment, as another process does."""
    database = Database(environment.database.url)
    own_environment = replace(
        environment, database=database, wakeups=wakeups, live_sessions=LiveSessionRegistry()
    )
    credential_cache.follow_drops_of_other_processes(own_environment)
    is_connected = asyncio.Event()
    receiving = asyncio.create_task(wakeups.receive_forever(is_connected.set))
    await is_connected.wait()
    async with run_live_server(
        own_environment, spool, endpoint_settings=SELDOM_CHECKED
    ) as live_server:
        yield ServerProcess(own_environment, live_server)
    await authentication.wait_for_background_tasks(own_environment)
    receiving.cancel()
    await asyncio.wait([receiving])
    await wakeups.close()
    await database.close()


@pytest.fixture
def bus_folder(tmp_path: Path) -> Path:
    return tmp_path / "bells"


@pytest.fixture(autouse=True)
async def _bus(environment: Environment, bus_folder: Path) -> AsyncIterator[None]:
    """The process in which tokens end sends its events over the bus."""
    wakeups = BusWakeups(LocalBus(bus_folder))
    object.__setattr__(environment, "wakeups", wakeups)
    yield
    await authentication.wait_for_background_tasks(environment)
    await wakeups.close()


@pytest.fixture
async def processes(
    environment: Environment, bus_folder: Path, tmp_path: Path
) -> AsyncIterator[list[ServerProcess]]:
    """Two servers that receive the events of the bus, and one that misses them."""
    all_wakeups = [BusWakeups(LocalBus(bus_folder)), BusWakeups(LocalBus(bus_folder)), Wakeups()]
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(run_server_process(environment, tmp_path, wakeups))
            for wakeups in all_wakeups
        ]


@pytest.mark.parametrize("way", ["token", *ENDS_BY_ADMINISTRATOR])
async def test_end_closes_the_connections_of_all_processes(
    browser: OauthBrowser,
    processes: list[ServerProcess],
    ada: GraphQLClient,
    root: GraphQLClient,
    way: str,
) -> None:
    webmail = await add_client(root.environment)
    token = (await browser.get_tokens(webmail, scope="read"))["access_token"]
    other_client = await add_client(root.environment, "Other")
    other_token = (await browser.get_tokens(other_client, scope="read"))["access_token"]
    *connected, _ = processes
    sockets, streams, other_sockets = [], [], []
    for process in connected:
        sockets.append(await process.live.open_websocket(secret=token))
        follower = GraphQLClient(ada.http, process.environment, ada.user, token)
        streams.append(await process.live.stream(follower, CHANGES_SUBSCRIPTION))
        other_sockets.append(await process.live.open_websocket(secret=other_token))
    await end_token(way, browser, webmail, token, root)
    async with asyncio.timeout(HANG_SECONDS):
        for socket in sockets:
            await socket.wait_closed()
        await asyncio.wait([stream.task for stream in streams if stream.task])
    assert {(socket.close_code, socket.close_reason) for socket in sockets} == {(4403, "Forbidden")}
    assert [stream.payloads[-1]["errors"][0]["extensions"]["code"] for stream in streams] == [
        "UNAUTHENTICATED"
    ] * len(streams)
    if way in ("token", "grant", "client"):  # the other ways end all tokens of the user
        assert all(socket.close_code is None for socket in other_sockets)
    for socket in other_sockets:
        await socket.close()


@pytest.mark.parametrize("way", ["token", *ENDS_BY_ADMINISTRATOR])
async def test_end_is_known_in_all_processes_after_a_second(
    browser: OauthBrowser,
    processes: list[ServerProcess],
    root: GraphQLClient,
    clock: ManualClock,
    way: str,
) -> None:
    """The process without a bus reads from the database which credentials have changed."""
    webmail = await add_client(root.environment)
    token = (await browser.get_tokens(webmail, scope="read"))["access_token"]
    for process in processes:
        assert await process.is_accepted(token)  # it is cached from now on
    await end_token(way, browser, webmail, token, root)
    clock.tick(seconds=1)
    for process in processes:
        assert not await process.is_accepted(token)
