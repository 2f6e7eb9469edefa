"""Several processes behind one place: what one does the others tell, and all end together."""

import asyncio
import os
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
from tests.support.servers.bus_servers import BROKERS
from tests.support.servers.merganser_server import Server, Socket, is_complete
from tests.support.servers.metric_samples import MetricSamples, metric_value, parse_metrics
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_database

WORKERS = 2
SOON = 3.0  # seconds in which all processes have heard, on a machine that does other things too
KICK = "mutation { sessionKick(input: {revokeTokens: true}) { kicked errors { code } } }"
KINDS = {
    "sqlite": "auto",
    "postgres": "auto",
    "sqlite+redis": "redis",
    "sqlite+nats": "nats",
}


@dataclass
class Fleet:
    """A server of several processes, and its bus."""

    server: Server
    bus: InterruptibleBus
    names: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    @property
    def pids(self) -> list[int]:
        """The processes that the first has begun."""
        pid = self.server.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def background(self) -> int:
        """The process that works behind those that listen."""
        (found,) = (pid for pid in self.pids if not self._listens(pid))
        return found

    def _listens(self, pid: int) -> bool:
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
        port, listening = f":{self.server.http:04X}", "0A"
        ours = {f"socket:[{w[9]}]" for w in lines if w[1].endswith(port) and w[3] == listening}
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                if str(link.readlink()) in ours:
                    return True
        return False

    def at(self) -> str:
        """A name for an operation, by which the log tells who has answered it."""
        return f"Where{next(self.names)}"

    async def worker(self, socket: Socket) -> str:
        """The worker that this socket is connected to."""
        name = self.at()
        await socket.subscribe(f"query {name} {{ viewer {{ role }} }}", id=name)
        frames = [(await socket.hear())["type"] for _ in range(2)]
        assert frames == ["next", "complete"]
        return await self.who_answered(name)

    async def who_answered(self, name: str) -> str:
        async with asyncio.timeout(5):
            while True:
                for line in self.server.logged():
                    if line.get("operation") == name:
                        return str(line["worker"])
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def sockets(self, user: str) -> AsyncGenerator[dict[str, Socket]]:
        """A socket of the user at each worker that listens."""
        found: dict[str, Socket] = {}
        async with AsyncExitStack() as stack:
            for _ in range(40):
                one = await stack.enter_async_context(self.server.socket(self.server.secrets[user]))
                found.setdefault(await self.worker(one), one)
                if len(found) == WORKERS:
                    break
            assert sorted(found) == ["1", "2"]
            yield found


def kinds() -> list[str]:
    return [kind for kind in KINDS if kind.partition("+")[0] in store_fixtures.STORES]


@pytest.fixture(params=kinds(), scope="module")
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    store, more = "", {}
    folder = tmp_path_factory.mktemp("fleet")
    bus: InterruptibleBus = SocketBus(folder / "var")
    if request.param.startswith("postgres"):
        store = create_database(request.getfixturevalue("postgres"), "fleet")
        bus = PostgresNotifyBus(store)
    if KINDS[request.param] in BROKERS:
        broker = BROKERS[KINDS[request.param]](folder)
        broker.start()
        request.addfinalizer(broker.stop)  # noqa: PT021 - also where the server does not begin
        more["WAKEUPS"] = broker.url
        bus = broker
    server = Server(folder, store, more, words=("--workers", str(WORKERS)))
    server.make("ada", "bob", "dora", "eve", "fay")
    server.start()
    yield Fleet(server, bus)
    server.stop()


DELIVERED = "merganser_lmtp_recipients_total"
NOTED = 1.0  # seconds between two notes of a process


async def until(true: Callable[[], Awaitable[bool] | bool], seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.05)


async def ready(fleet: Fleet) -> bool:
    with suppress(httpx.TransportError):
        async with httpx.AsyncClient(timeout=30) as http:
            return is_complete(await http.get(f"{fleet.server.url}/health/ready"))
    return False


async def subjects(socket: Socket, many: int) -> list[str]:
    events = await socket.events(many)
    return [event["message"]["subject"] for event in events]


async def test_what_comes_in_at_one_worker_is_heard_at_all(fleet: Fleet) -> None:
    names = [f"News {number}" for number in range(12)]
    async with fleet.sockets("ada") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION)
            assert await socket.silent()
        for name in names:  # each over a connection of its own: some here, some there
            begun = time.monotonic()
            sent = await fleet.server.deliver(raw_message(name), "ada@example.org")
            assert sent.startswith("250 2.0.0 Delivered")
            for socket in sockets.values():
                assert await subjects(socket, 1) == [name]
            assert time.monotonic() - begun < SOON


async def test_many_who_write_at_once_are_all_heard(fleet: Fleet) -> None:
    names = [f"Storm {number}" for number in range(64)]

    async def write(name: str) -> str:
        return await fleet.server.deliver(raw_message(name), "fay@example.org")

    async with fleet.sockets("fay") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION)
            assert await socket.silent()
        answers = await asyncio.gather(*map(write, names))
        assert {one[:19] for one in answers} == {"250 2.0.0 Delivered"}
        for socket in sockets.values():
            assert sorted(await subjects(socket, len(names))) == sorted(names)
    assert not [line for line in fleet.server.logged() if "locked" in str(line)]


async def test_who_is_kicked_at_one_worker_is_gone_from_all(fleet: Fleet) -> None:
    async with fleet.sockets("bob") as sockets, fleet.server.client("bob") as bob:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION)
            assert await socket.silent()
        done = await bob(KICK)
        assert done["sessionKick"]["errors"] == []
        begun = time.monotonic()
        assert [await socket.closed() for socket in sockets.values()] == [4403, 4403]
        assert time.monotonic() - begun < SOON + 0.5  # what closing takes


async def test_one_process_works_behind_the_others(fleet: Fleet) -> None:
    assert len(fleet.pids) == WORKERS + 1
    began = [line for line in fleet.server.logged() if line["event"] in {"working", "listening"}]
    assert {line["worker"] for line in began} == {"1", "2", "background"}
    assert {line["worker"] for line in began if line["event"] == "working"} == {"background"}


async def test_nothing_is_lost_while_the_bus_is_away(fleet: Fleet) -> None:
    names = [f"Letter {number}" for number in range(30)]
    async with fleet.sockets("dora") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION)
            assert await socket.silent()
        for number, name in enumerate(names):
            if number == 10:
                await fleet.bus.interrupt()
            if number == 20:
                await fleet.bus.restore()
            await fleet.server.deliver(raw_message(name), "dora@example.org")
            await asyncio.sleep(0.05)
        for socket in sockets.values():
            assert await subjects(socket, len(names)) == names
        warned = [line for line in fleet.server.logged() if "wake-ups are not" in line["event"]]
        assert len(warned) <= 4 * (WORKERS + 1)  # once for each break, however much was told


async def test_a_worker_that_is_killed_is_replaced_and_its_clients_go_on(fleet: Fleet) -> None:
    await until(lambda: ready(fleet))
    async with fleet.server.client("eve") as eve, fleet.sockets("eve") as sockets:
        cursor = await eve.cursor()
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
        before = fleet.pids
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len(fleet.pids) == len(before) and before[0] not in fleet.pids)
        for number in range(5):
            await fleet.server.deliver(raw_message(f"Again {number}"), "eve@example.org")
    names = [f"Again {number}" for number in range(5)]
    await until(lambda: ready(fleet))
    async with fleet.sockets("eve") as sockets:
        for socket in sockets.values():
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=cursor)
            assert await subjects(socket, 5) == names


def numbers(fleet: Fleet) -> MetricSamples:
    """What whoever is asked tells of all, over a connection of its own."""
    headers = {
        "Authorization": f"Bearer {fleet.server.secrets['root']}",
        "Accept": "application/openmetrics-text",
    }
    return parse_metrics(httpx.get(f"{fleet.server.url}/metrics", headers=headers, timeout=15).text)


def up(found: MetricSamples) -> dict[str, float]:
    return {
        dict(labels)["worker"]: value
        for (name, labels), value in found.items()
        if name == "merganser_worker_up"
    }


async def _delivered(fleet: Fleet) -> float:
    """How much has been delivered, once all processes have noted what they did before."""
    before, now = -1.0, -2.0
    while before != now:
        before = now
        await asyncio.sleep(2 * NOTED)
        now = metric_value(await asyncio.to_thread(numbers, fleet), DELIVERED, outcome="delivered")
    return now


async def test_whoever_is_asked_tells_what_all_have_counted(fleet: Fleet) -> None:
    await until(lambda: ready(fleet))
    seconds = "merganser_operation_seconds_count"
    earlier = await _delivered(fleet)
    name, many = fleet.at(), 12
    async with fleet.sockets("eve") as sockets:
        for socket in sockets.values():
            for _ in range(many):
                await socket.subscribe(f"query {name} {{ viewer {{ role }} }}")
                assert [(await socket.hear())["type"] for _ in range(2)] == ["next", "complete"]
            await socket.subscribe(CHANGES_SUBSCRIPTION)
        for number in range(8):
            await fleet.server.deliver(raw_message(f"Counted {number}"), "fay@example.org")

        async def told() -> bool:
            found = await asyncio.to_thread(numbers, fleet)
            more = metric_value(found, DELIVERED, outcome="delivered")
            return (
                metric_value(found, seconds, operation=name, kind="query") == WORKERS * many
                and more - earlier == 8
                and metric_value(found, "merganser_subscriptions") == WORKERS
            )

        await until(told)
        for _ in range(6):  # here or there
            found = await asyncio.to_thread(numbers, fleet)
            assert metric_value(found, seconds, operation=name, kind="query") == WORKERS * many
            assert up(found) == {"1": 1, "2": 1, "background": 1}
    start = {labels for name, labels in found if name == "process_start_time_seconds"}
    assert {dict(labels)["worker"] for labels in start} == {"1", "2", "background"}
    begun = [metric_value(found, "process_start_time_seconds", **dict(labels)) for labels in start]
    assert all(abs(time.time() - each) < 600 for each in begun)


async def test_what_is_counted_does_not_go_down_with_a_worker(fleet: Fleet) -> None:
    await until(lambda: ready(fleet))
    name, seconds = fleet.at(), "merganser_operation_seconds_count"

    async def counted(many: int) -> bool:
        found = await asyncio.to_thread(numbers, fleet)
        return metric_value(found, seconds, operation=name, kind="query") == many

    async with fleet.sockets("eve") as sockets:
        for socket in sockets.values():
            await socket.subscribe(f"query {name} {{ viewer {{ role }} }}")
            assert [(await socket.hear())["type"] for _ in range(2)] == ["next", "complete"]
        await until(lambda: counted(WORKERS))
        behind = fleet.background
        killed = next(pid for pid in fleet.pids if pid != behind)
        os.kill(killed, signal.SIGKILL)
        os.kill(behind, signal.SIGSTOP)  # it lives, and answers nobody
        try:

            async def told() -> bool:
                with suppress(httpx.TransportError):  # its connections end with it
                    found = await asyncio.to_thread(numbers, fleet)
                    assert metric_value(found, seconds, operation=name, kind="query") == WORKERS
                    return up(found) == {"1": 1, "2": 1, "background": 0}
                return False

            await until(lambda: killed not in fleet.pids)
            await until(told)
        finally:
            os.kill(behind, signal.SIGCONT)
    await until(lambda: ready(fleet))


async def test_a_second_server_is_refused_on_the_same_place(fleet: Fleet) -> None:
    said = await asyncio.to_thread(fleet.server.command, "serve", "--workers", "2")
    assert said.code == 1
    assert "another merganser uses this store" in said.err or "cannot listen on" in said.err
    assert "Traceback" not in said.err


def _gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_told_to_stop_all_end_and_nobody_is_left(fleet: Fleet) -> None:
    pids = fleet.pids
    await asyncio.to_thread(fleet.server.stop)
    assert _gone(pids)
    await asyncio.to_thread(fleet.server.start)


async def test_without_the_first_process_the_others_end(fleet: Fleet) -> None:
    pids = fleet.pids
    fleet.server.kill()
    await until(lambda: _gone(pids))
    await asyncio.to_thread(fleet.server.start)


async def test_server_is_ready_while_one_process_is_missing(fleet: Fleet) -> None:
    await until(lambda: ready(fleet))
    os.kill(fleet.background, signal.SIGKILL)
    counts: list[dict[str, int]] = []
    async with asyncio.timeout(60), httpx.AsyncClient(timeout=30) as http:
        while not counts or len(counts) < 2 or counts[-1] == counts[-2] or counts[-1]["up"] < 3:
            with suppress(httpx.TransportError):
                answer = await http.get(f"{fleet.server.url}/health/ready")
                assert answer.status_code == 200, answer.text
                if not counts or counts[-1] != answer.json()["processes"]:
                    counts.append(answer.json()["processes"])
    assert counts[0]["configured"] == WORKERS + 1
    assert min(count["up"] for count in counts) == WORKERS
