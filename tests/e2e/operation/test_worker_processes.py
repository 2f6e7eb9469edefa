"""Tests of a server with several worker processes: events and metrics of all, and a common end."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from bench.servers.bus_servers import InterruptibleBus, PostgresNotifyBus, SocketBus
from tests.conftest import raw_message
from tests.support.clients.change_followers import CHANGES_SUBSCRIPTION
from tests.support.clients.plain_http import plain_blocking_client, plain_client
from tests.support.servers.bus_servers import BROKERS
from tests.support.servers.merganser_server import MerganserProcess, WebsocketClient, is_complete
from tests.support.servers.metric_samples import MetricSamples, metric_value, parse_metrics
from tests.support.servers.suspended_process import suspend_process
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database
from tests.support.time_limits import HANG_SECONDS

WORKERS = 2
# Seconds until all processes have received an event, on a busy machine. Without the event bus they
# receive it at the next poll: it takes up to POLL_SECONDS (15) of `stream_reader`.
EVENT_LIMIT = 10.0
TERMINATION_COUNT = 4
SESSION_TERMINATE = (
    "mutation { sessionTerminate(input: {revokeTokens: true}) { terminatedCount errors { code } } }"
)
BUS_BY_KIND = {
    "sqlite": "auto",
    "postgres": "auto",
    "sqlite+redis": "redis",
    "sqlite+nats": "nats",
}


@dataclass
class WorkerFleet:
    """A server with several processes, and its event bus."""

    server: MerganserProcess
    bus: InterruptibleBus
    begun_at: float  # before its processes, in seconds since 1970
    operation_numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    @property
    def pids(self) -> list[int]:
        """The worker processes of the first process."""
        pid = self.server.pid
        return [
            int(child_pid)
            for child_pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    @property
    def background_pid(self) -> int:
        """The process that runs the background work and has no listener."""
        (worker_pid,) = (pid for pid in self.pids if not self._is_listening(pid))
        return worker_pid

    def _is_listening(self, pid: int) -> bool:
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
        port, listening = f":{self.server.http_port:04X}", "0A"
        listening_sockets = {
            f"socket:[{columns[9]}]"
            for columns in lines
            if columns[1].endswith(port) and columns[3] == listening
        }
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed in the meantime
                if str(link.readlink()) in listening_sockets:
                    return True
        return False

    def new_operation_name(self) -> str:
        """Return a new operation name, which identifies the worker in the log."""
        return f"Where{next(self.operation_numbers)}"

    async def worker_of_socket(self, socket: WebsocketClient) -> str:
        """Return the worker that this socket is connected to."""
        name = self.new_operation_name()
        await socket.subscribe(f"query {name} {{ viewer {{ role }} }}", id=name)
        frames = [(await socket.read_frame())["type"] for _ in range(2)]
        assert frames == ["next", "complete"]
        return await self.worker_of_operation(name)

    async def worker_of_operation(self, name: str) -> str:
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                # parsing the whole log would take most of the time
                for line in self.server.log.splitlines():
                    if name in line and (record := json.loads(line)).get("operation") == name:
                        return str(record["worker"])
                await asyncio.sleep(0.02)

    async def load_cursor(self, user: str) -> str:
        """Read the current cursor of an account. A subscription after it misses no event."""
        async with self.server.open_client(user) as client:
            return await client.load_cursor()

    @asynccontextmanager
    async def sockets(self, user: str) -> AsyncGenerator[dict[str, WebsocketClient]]:
        """Open a socket of the user at each worker that has a listener."""
        sockets_by_worker: dict[str, WebsocketClient] = {}
        async with AsyncExitStack() as stack:
            for _ in range(40):
                socket = await stack.enter_async_context(
                    self.server.open_websocket(self.server.secrets[user])
                )
                sockets_by_worker.setdefault(await self.worker_of_socket(socket), socket)
                if len(sockets_by_worker) == WORKERS:
                    break
            assert sorted(sockets_by_worker) == ["1", "2"]
            yield sockets_by_worker


def available_kinds() -> list[str]:
    return [kind for kind in BUS_BY_KIND if kind.partition("+")[0] in store_fixtures.STORES]


@pytest.fixture(params=available_kinds(), scope="module")
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerFleet]:
    store, settings = "", {}
    folder = tmp_path_factory.mktemp("fleet")
    bus: InterruptibleBus = SocketBus(folder / "var")
    if request.param.startswith("postgres"):
        store = create_migrated_database(request.getfixturevalue("postgres"), "fleet")
        bus = PostgresNotifyBus(store)
    if BUS_BY_KIND[request.param] in BROKERS:
        broker = BROKERS[BUS_BY_KIND[request.param]](folder)
        broker.start()
        request.addfinalizer(broker.stop)  # noqa: PT021 - also if the server does not start
        settings["EVENT_BUS_URL"] = broker.url
        bus = broker
    server = MerganserProcess(folder, store, settings, serve_arguments=("--workers", str(WORKERS)))
    server.create_users("ada", "bob", "dora", "eve", "fay")
    begun_at = time.time()
    server.start()
    yield WorkerFleet(server, bus, begun_at)
    server.stop()


RECIPIENTS_METRIC = "merganser_lmtp_recipients_total"
CLOCK_TICK = 2.0  # seconds; the kernel counts the start time from the boot time, which it rounds
METRICS_INTERVAL = 1.0  # seconds between two metric updates of a process
# Seconds between two checks of a condition on metrics: it takes long to collect and parse them.
METRICS_CHECK_INTERVAL = METRICS_INTERVAL / 2


async def wait_until(
    condition: Callable[[], Awaitable[bool] | bool], interval: float = 0.05
) -> None:
    """Wait until the condition is true. It is checked each `interval` seconds."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            value = condition()
            if value if isinstance(value, bool) else await value:
                return
            await asyncio.sleep(interval)


async def is_ready(fleet: WorkerFleet) -> bool:
    with suppress(httpx.TransportError):
        async with plain_client(timeout=HANG_SECONDS) as http:
            return is_complete(await http.get(f"{fleet.server.url}/health/ready"))
    return False


async def read_subjects(socket: WebsocketClient, count: int) -> list[str]:
    events = await socket.read_events(count)
    return [event["message"]["subject"] for event in events]


def test_processes_share_most_of_their_memory(fleet: WorkerFleet) -> None:
    for pid in fleet.pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kilobytes = {key: int(size) for key, size in re.findall(r"(\w+): +(\d+) kB", rollup)}
        private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        assert private < kilobytes["Rss"] / 2


async def test_delivery_at_one_worker_reaches_subscribers_of_all(fleet: WorkerFleet) -> None:
    sent_subjects = [f"News {number}" for number in range(12)]
    cursor = await fleet.load_cursor("ada")
    async with fleet.sockets("ada") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
        # A single delivery can be slow. Without the event bus, all but the first wait for a poll.
        async with asyncio.timeout(len(sent_subjects) * EVENT_LIMIT):
            for subject in sent_subjects:  # each has its own connection, to either worker
                reply = await fleet.server.deliver_by_lmtp(raw_message(subject), "ada@example.org")
                assert reply.startswith("250 2.0.0 OK: queued")
                for socket in sockets.values():
                    assert await read_subjects(socket, 1) == [subject]


async def test_concurrent_deliveries_all_reach_subscribers(fleet: WorkerFleet) -> None:
    # the deliveries to one account wait for each other, and are refused after some seconds
    sent_subjects = [f"Storm {number}" for number in range(24)]

    async def write(subject: str) -> str:
        return await fleet.server.deliver_by_lmtp(raw_message(subject), "fay@example.org")

    cursor = await fleet.load_cursor("fay")
    async with fleet.sockets("fay") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
        replies = await asyncio.gather(*map(write, sent_subjects))
        assert {reply[:20] for reply in replies} == {"250 2.0.0 OK: queued"}
        for socket in sockets.values():
            assert sorted(await read_subjects(socket, len(sent_subjects))) == sorted(sent_subjects)
    assert not [line for line in fleet.server.log_records() if "locked" in str(line)]


async def test_session_terminate_closes_sockets_of_all_workers(fleet: WorkerFleet) -> None:
    # One end can be slow. Without the event bus, most wait for the next check of the credential.
    async with asyncio.timeout(TERMINATION_COUNT * EVENT_LIMIT):
        for _ in range(TERMINATION_COUNT):
            async with fleet.sockets("bob") as sockets, fleet.server.open_client("bob") as bob:
                for socket in sockets.values():
                    await socket.subscribe(CHANGES_SUBSCRIPTION)
                    assert await socket.receives_nothing()
                result = await bob(SESSION_TERMINATE)
                assert result["sessionTerminate"]["errors"] == []
                close_codes = [
                    await socket.wait_for_close_code(HANG_SECONDS) for socket in sockets.values()
                ]
                assert close_codes == [4403, 4403]


async def test_one_process_runs_background_work(fleet: WorkerFleet) -> None:
    assert len(fleet.pids) == WORKERS + 1
    start_lines = [
        line
        for line in fleet.server.log_records()
        if line["event"] in {"Background process started", "Listening"}
    ]
    assert {line["worker"] for line in start_lines} == {"1", "2", "background"}
    assert {
        line["worker"] for line in start_lines if line["event"] == "Background process started"
    } == {"background"}


async def test_outage_of_event_bus_loses_no_event(fleet: WorkerFleet) -> None:
    sent_subjects = [f"Letter {number}" for number in range(30)]
    cursor = await fleet.load_cursor("dora")
    async with fleet.sockets("dora") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
        for number, subject in enumerate(sent_subjects):
            if number == 10:
                await fleet.bus.interrupt()
            if number == 20:
                await fleet.bus.restore()
            await fleet.server.deliver_by_lmtp(raw_message(subject), "dora@example.org")
            await asyncio.sleep(0.05)
        for socket in sockets.values():
            assert await read_subjects(socket, len(sent_subjects)) == sent_subjects
        warnings = [
            line for line in fleet.server.log_records() if "Event bus unavailable" in line["event"]
        ]
        assert len(warnings) <= 4 * (WORKERS + 1)  # one warning per outage and process


async def test_killed_worker_is_replaced_and_clients_continue(fleet: WorkerFleet) -> None:
    await wait_until(lambda: is_ready(fleet))
    async with fleet.server.open_client("eve") as eve, fleet.sockets("eve") as sockets:
        cursor = await eve.load_cursor()
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
        pids_before = fleet.pids
        os.kill(pids_before[0], signal.SIGKILL)
        await wait_until(
            lambda: len(fleet.pids) == len(pids_before) and pids_before[0] not in fleet.pids
        )
        for number in range(5):
            await fleet.server.deliver_by_lmtp(raw_message(f"Again {number}"), "eve@example.org")
    sent_subjects = [f"Again {number}" for number in range(5)]
    await wait_until(lambda: is_ready(fleet))
    async with fleet.sockets("eve") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
            assert await read_subjects(socket, 5) == sent_subjects


def read_metrics(fleet: WorkerFleet) -> MetricSamples:
    """Read the metrics of all processes from any worker, over a new connection."""
    headers = {
        "Authorization": f"Bearer {fleet.server.secrets['root']}",
        "Accept": "application/openmetrics-text",
    }
    with plain_blocking_client(headers=headers, timeout=HANG_SECONDS) as http:
        return parse_metrics(http.get(f"{fleet.server.url}/metrics").text)


def worker_up_values(metrics: MetricSamples) -> dict[str, float]:
    return {
        dict(labels)["worker"]: value
        for (name, labels), value in metrics.items()
        if name == "merganser_worker_up"
    }


async def _delivered_count(fleet: WorkerFleet) -> float:
    """Return the number of deliveries, after all processes have updated their metrics."""
    previous, current = -1.0, -2.0
    while previous != current:
        previous = current
        await asyncio.sleep(2 * METRICS_INTERVAL)
        current = metric_value(
            await asyncio.to_thread(read_metrics, fleet), RECIPIENTS_METRIC, outcome="delivered"
        )
    return current


async def test_every_worker_reports_metrics_of_all_workers(fleet: WorkerFleet) -> None:
    await wait_until(lambda: is_ready(fleet))
    operation_metric = "merganser_operation_seconds_count"
    delivered_before = await _delivered_count(fleet)
    name, query_count = fleet.new_operation_name(), 12
    async with fleet.sockets("eve") as sockets:
        for socket in sockets.values():
            for _ in range(query_count):
                await socket.subscribe(f"query {name} {{ viewer {{ role }} }}")
                assert [(await socket.read_frame())["type"] for _ in range(2)] == [
                    "next",
                    "complete",
                ]
            await socket.subscribe(CHANGES_SUBSCRIPTION)
        for number in range(8):
            await fleet.server.deliver_by_lmtp(raw_message(f"Counted {number}"), "fay@example.org")

        async def has_all_counts() -> bool:
            metrics = await asyncio.to_thread(read_metrics, fleet)
            delivered = metric_value(metrics, RECIPIENTS_METRIC, outcome="delivered")
            return (
                metric_value(metrics, operation_metric, operation=name, kind="query")
                == WORKERS * query_count
                and delivered - delivered_before == 8
                and metric_value(metrics, "merganser_subscriptions") == WORKERS
            )

        await wait_until(has_all_counts, METRICS_CHECK_INTERVAL)
        for _ in range(6):  # at either worker
            metrics = await asyncio.to_thread(read_metrics, fleet)
            assert (
                metric_value(metrics, operation_metric, operation=name, kind="query")
                == WORKERS * query_count
            )
            assert worker_up_values(metrics) == {"1": 1, "2": 1, "background": 1}
    start_labels = {labels for name, labels in metrics if name == "process_start_time_seconds"}
    assert {dict(labels)["worker"] for labels in start_labels} == {"1", "2", "background"}
    start_times = [
        metric_value(metrics, "process_start_time_seconds", **dict(labels))
        for labels in start_labels
    ]
    assert fleet.begun_at - CLOCK_TICK < min(start_times)
    assert max(start_times) < time.time() + CLOCK_TICK


async def test_metrics_of_killed_worker_are_kept(fleet: WorkerFleet) -> None:
    await wait_until(lambda: is_ready(fleet))
    name, operation_metric = fleet.new_operation_name(), "merganser_operation_seconds_count"

    async def has_count(expected: int) -> bool:
        metrics = await asyncio.to_thread(read_metrics, fleet)
        return metric_value(metrics, operation_metric, operation=name, kind="query") == expected

    async with fleet.sockets("eve") as sockets:
        for socket in sockets.values():
            await socket.subscribe(f"query {name} {{ viewer {{ role }} }}")
            assert [(await socket.read_frame())["type"] for _ in range(2)] == ["next", "complete"]
        await wait_until(lambda: has_count(WORKERS), METRICS_CHECK_INTERVAL)
        background_process = fleet.background_pid
        killed_pid = next(pid for pid in fleet.pids if pid != background_process)

        async def has_count_and_up_values(**expected: int) -> bool:
            with suppress(httpx.TransportError):  # connections to the killed worker end
                metrics = await asyncio.to_thread(read_metrics, fleet)
                assert (
                    metric_value(metrics, operation_metric, operation=name, kind="query") == WORKERS
                )
                return worker_up_values(metrics) == {"1": 1, "2": 1, **expected}
            return False

        os.kill(killed_pid, signal.SIGKILL)
        await wait_until(lambda: killed_pid not in fleet.pids)
        await wait_until(lambda: has_count_and_up_values(background=1), METRICS_CHECK_INTERVAL)
        with suspend_process(fleet.server, background_process):  # alive, without a response
            await wait_until(lambda: has_count_and_up_values(background=0), METRICS_CHECK_INTERVAL)
    await wait_until(lambda: is_ready(fleet))


async def test_second_server_with_same_store_is_refused(fleet: WorkerFleet) -> None:
    result = await asyncio.to_thread(fleet.server.run_command, "serve", "--workers", "2")
    assert result.exit_code == 1
    refusals = (
        "Another merganser process uses this database",
        "Another server runs as node",
        "Cannot listen on",
    )
    assert any(text in result.stderr for text in refusals), result.stderr
    assert "Traceback" not in result.stderr


def _have_ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_stop_ends_all_processes(fleet: WorkerFleet) -> None:
    pids = fleet.pids
    await asyncio.to_thread(fleet.server.stop)
    assert _have_ended(pids)
    await asyncio.to_thread(fleet.server.start)


async def test_workers_end_without_first_process(fleet: WorkerFleet) -> None:
    pids = fleet.pids
    fleet.server.kill()
    await wait_until(lambda: _have_ended(pids))
    await asyncio.to_thread(fleet.server.start)


async def test_server_is_ready_while_one_process_is_missing(fleet: WorkerFleet) -> None:
    await wait_until(lambda: is_ready(fleet))
    os.kill(fleet.background_pid, signal.SIGKILL)
    counts: list[dict[str, int]] = []
    async with asyncio.timeout(HANG_SECONDS), plain_client(timeout=HANG_SECONDS) as http:
        while not counts or len(counts) < 2 or counts[-1] == counts[-2] or counts[-1]["up"] < 3:
            with suppress(httpx.TransportError):
                response = await http.get(f"{fleet.server.url}/health/ready")
                assert response.status_code == 200, response.text
                if not counts or counts[-1] != response.json()["processes"]:
                    counts.append(response.json()["processes"])
            await asyncio.sleep(0.02)  # the start of a process takes longer
    assert counts[0]["configured"] == WORKERS + 1
    assert min(count["up"] for count in counts) == WORKERS
