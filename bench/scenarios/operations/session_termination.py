"""Measure how fast sessionTerminate closes 1,000 WebSockets of all processes.

On SQLite one server with four processes has the sockets, on PostgreSQL two servers with two
processes each. Each measurement is repeated with an interrupted event bus, and on PostgreSQL with
an event bus that can't be reached.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress

from bench.cluster_soak import create_data_folder
from bench.figures.goals import TERMINATION_SECONDS
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import BenchmarkTarget, request_json
from bench.load.sample_account import create_user
from bench.scenarios.live_subscriptions import CONCURRENT_CONNECTS, LightSubscriber
from bench.servers.bus_servers import InterruptibleBus, PostgresNotifyBus, SocketBus
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import MerganserServer, run_until_exit
from bench.servers.ports import HOST, free_port
from merganser.server.environment_factory import open_environment, root_context
from models.users.roles import Role
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.cluster.process_requests import FAST_POLL_PERIOD

TITLE = "operations: session termination"
SOCKET_COUNT = 1000
USER_COUNT = 10
CLOSE_TIMEOUT = 60.0  # seconds
LIST_TIMEOUT = 60.0  # seconds until all sockets are listed
POLL_SECONDS = 0.1
PAUSE_SECONDS = 1.0  # after the time in which processes look for further requests more often
SUBSCRIPTION = "subscription { changes { cursor } }"
COUNT_QUERY = '{ sessions(filter: {users: {patterns: ["*"]}}, first: 1) { totalCount } }'
TERMINATE_MUTATION = """mutation { sessionTerminate(input: {users: {all: true}}) {
  terminatedCount pendingCount unresponsiveNodes errors { code } } }"""
CLOSE_OPCODE, OPCODE_MASK, LENGTH_MASK = 0x8, 0x0F, 0x7F  # RFC 6455, section 5.2
LENGTH_16, LENGTH_64 = 126, 127
MASKED_CLOSE_FRAME = bytes([0x88, 0x82, 0, 0, 0, 0]) + (1000).to_bytes(2)


class ClosingSubscriber(LightSubscriber):
    """A subscriber that answers a close frame, and records when its connection is closed."""

    def __init__(self, target: BenchmarkTarget, document: str = SUBSCRIPTION) -> None:
        super().__init__(target, document)
        self.closed_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        """Subscribe as the base class does; later look for a close frame."""
        if not self.subscribed.done():
            super().data_received(data)
            return
        self._buffer += data
        if self._pop_frames_until_close():
            self.transport.write(MASKED_CLOSE_FRAME)

    def connection_lost(self, _problem: Exception | None) -> None:
        """Record the time. Fails the subscription if it has not begun."""
        if not self.closed_at.done():
            self.closed_at.set_result(time.perf_counter())
        if not self.subscribed.done():
            self.subscribed.set_exception(ConnectionError("a connection was closed too early"))

    def _pop_frames_until_close(self) -> bool:
        """Remove complete frames from the buffer; return True at a close frame."""
        while len(self._buffer) >= 2:  # noqa: PLR2004 - the shortest head
            opcode, length, head = self._buffer[0] & OPCODE_MASK, self._buffer[1] & LENGTH_MASK, 2
            if length in (LENGTH_16, LENGTH_64):
                head += 2 if length == LENGTH_16 else 8
                if len(self._buffer) < head:
                    return False
                length = int.from_bytes(self._buffer[2:head])
            if len(self._buffer) < head + length:
                return False
            self._buffer = self._buffer[head + length :]
            if opcode == CLOSE_OPCODE:
                return True
        return False


@dataclass(frozen=True, slots=True)
class TerminationServers:
    """The running servers of one platform, with an API key of ROOT and the keys of the users."""

    servers: Sequence[MerganserServer]
    bus: InterruptibleBus
    root_key: str
    user_keys: Sequence[str]

    def target(self, server_number: int, api_key: str) -> BenchmarkTarget:
        """Return a server as the target of requests."""
        return BenchmarkTarget(self.servers[server_number].http_port, 0, api_key)

    async def count_sessions(self) -> int:
        """Return the number of sessions of users on all servers."""
        response = await request_json(
            self.target(0, self.root_key), "/graphql", {"query": COUNT_QUERY}
        )
        return int(response["data"]["sessions"]["totalCount"])

    async def wait_until_listed(self, count: int) -> None:
        """Wait until this number of sessions is listed. Raises TimeoutError."""
        async with asyncio.timeout(LIST_TIMEOUT):
            while await self.count_sessions() != count:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(POLL_SECONDS)

    async def open_sockets(self, count: int) -> list[ClosingSubscriber]:
        """Open sockets with a subscription, evenly over the servers and users."""
        loop, sockets = asyncio.get_running_loop(), list[ClosingSubscriber]()
        targets = [
            self.target(number % len(self.servers), self.user_keys[number % len(self.user_keys)])
            for number in range(count)
        ]
        for first in range(0, count, CONCURRENT_CONNECTS):
            connecting = [
                loop.create_connection(partial(ClosingSubscriber, target), HOST, target.port)
                for target in targets[first : first + CONCURRENT_CONNECTS]
            ]
            new = [subscriber for _, subscriber in await asyncio.gather(*connecting)]
            await asyncio.gather(*(subscriber.subscribed for subscriber in new))
            sockets += new
        return sockets

    async def measure_termination(self, socket_count: int) -> float:
        """Return the seconds from the request until the last of new sockets is closed.

        Raises RuntimeError if not all processes have answered and ended their sessions.
        """
        sockets = await self.open_sockets(socket_count)
        await self.wait_until_listed(socket_count)
        await asyncio.sleep(FAST_POLL_PERIOD + PAUSE_SECONDS)
        started_at = time.perf_counter()
        body = {"query": TERMINATE_MUTATION}
        request = asyncio.create_task(request_json(self.target(0, self.root_key), "/graphql", body))
        async with asyncio.timeout(CLOSE_TIMEOUT):
            closed_at = await asyncio.gather(*(one.closed_at for one in sockets))
            payload = (await request)["data"]["sessionTerminate"]
        ended_count = payload["terminatedCount"] + payload["pendingCount"]
        if ended_count != socket_count or payload["errors"] or payload["unresponsiveNodes"]:
            raise RuntimeError(f"unexpected response: {payload}")
        return max(closed_at) - started_at


async def measure_session_termination(
    database_kind: DatabaseKind, folder: Path, socket_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the seconds until the last socket is closed, with and without an event bus."""
    facts = list[MeasuredValue]()
    is_postgres = database_kind is DatabaseKind.POSTGRES
    task = progress.add_task(TITLE, total=3 if is_postgres else 2)

    def add_fact(bus_state: str, seconds: float) -> None:
        name = TERMINATION_SECONDS.format(socket_count)
        facts.append(MeasuredValue(f"{name}, {bus_state}", seconds, "s"))
        progress.advance(task)

    async with run_termination_servers(database_kind, folder / "default") as platform:
        add_fact("default event bus", await platform.measure_termination(socket_count))
        await platform.bus.interrupt()
        try:
            add_fact("interrupted event bus", await platform.measure_termination(socket_count))
        finally:
            await platform.bus.restore()
    if is_postgres:
        unreachable = {"MERGANSER_EVENT_BUS_URL": f"redis://{HOST}:{free_port()}"}
        async with run_termination_servers(
            database_kind, folder / "unreachable", unreachable
        ) as platform:
            add_fact("unreachable event bus", await platform.measure_termination(socket_count))
    progress.remove_task(task)
    return facts


@asynccontextmanager
async def run_termination_servers(
    database_kind: DatabaseKind, folder: Path, extra_environment: dict[str, str] | None = None
) -> AsyncGenerator[TerminationServers]:
    """Run one server with four processes, or two with two each, on a new database."""
    url = start_database(database_kind, folder)
    names, worker_count = (("first", "second"), 2) if url else (("first",), 4)
    limits = {
        "MERGANSER_HTTP_CONNECTIONS": "8000",
        "MERGANSER_HTTP_CONNECTIONS_PER_CLIENT": "8000",
        "MERGANSER_OBJECT_STORE_URL": str(folder / "blobs"),
        **(extra_environment or {}),
    }
    servers = [
        MerganserServer(folder / name, url, ("--workers", str(worker_count)), limits)
        for name in names
    ]
    blobs_of_all_servers = {"object_store_url": str(folder / "blobs")}
    settings = server_settings(servers[0]).model_copy(update=blobs_of_all_servers)
    async with open_environment(settings, migrate=True) as environment:
        ctx = root_context(environment)
        root_key = (await api_key_mutations.create_api_key(ctx, NewApiKey("root", Role.ROOT)))[1]
        user_keys = []
        for number in range(USER_COUNT):
            user = await create_user(environment, f"socket{number}@bench.example")
            new_key = NewApiKey("bench", user_id=user.id)
            user_keys.append((await api_key_mutations.create_api_key(ctx, new_key))[1])
    for server in servers[1:]:
        create_data_folder(server.data_folder, servers[0].data_folder)
    bus = PostgresNotifyBus(url) if url else SocketBus(servers[0].data_folder)
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(run_until_exit(server.start))
        yield TerminationServers(servers, bus, root_key, user_keys)
