"""Wake-ups between processes, over each kind of event bus."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import pytest

from merganser.server.event_bus import create_wakeups
from merganser.settings.settings import Settings
from models.events.bus import EventBus, MessageHandler
from models.events.bus.local_bus import LocalBus
from models.events.wakeups import (
    MAX_MESSAGE_BYTES,
    SEND_INTERVAL,
    BusWakeups,
    Wakeups,
    _messages_from_lines,
)
from models.runtime.environment import Environment
from resolvers.changes.stream_reader import POLL_SECONDS, FollowRequest, follow_changes
from resolvers.changes.wakeups import receive_wakeups_forever
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.servers.bus_servers import BROKERS
from tests.support.servers.live_server import wait_until
from tests.support.time_limits import HANG_SECONDS

SECRET = b"s" * 32
FAILED_ANNOUNCEMENTS = 50
BUS_KINDS = ["unix", "postgresql", "redis", "nats"]


@dataclass
class BusSetup:
    """The settings of a kind of event bus, with functions that interrupt and restore it."""

    settings: Settings
    stop: Callable[[], Any]
    start: Callable[[], Any]

    def create_wakeups(self) -> Wakeups:
        return create_wakeups(self.settings, SECRET)


@pytest.fixture(params=BUS_KINDS)
def bus_setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BusSetup]:
    kind = request.param
    if kind == "unix":
        folder = tmp_path / "bells"

        def stop() -> None:
            for path in folder.iterdir():
                path.unlink()
            folder.rename(tmp_path / "away")

        yield BusSetup(Settings(data=tmp_path), stop, lambda: (tmp_path / "away").rename(folder))
    elif kind == "postgresql":
        url = request.getfixturevalue("postgres").replace("+asyncpg", "")

        async def terminate_connections() -> None:
            connection = await asyncpg.connect(url)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND query ILIKE '%listen%merganser%' "
                "OR query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
            )
            await connection.close()

        settings = Settings(data=tmp_path, database_url=url, event_bus_url="postgresql")  # type: ignore[arg-type]
        yield BusSetup(settings, terminate_connections, lambda: None)
    else:
        broker = BROKERS[kind](tmp_path)
        broker.start()
        settings = Settings(data=tmp_path, event_bus_url=broker.url)  # type: ignore[arg-type]
        yield BusSetup(settings, broker.stop, broker.start)
        broker.stop()


async def await_if_coroutine(value: Any) -> None:
    if asyncio.iscoroutine(value):
        await value


@asynccontextmanager
async def run_receiver(wakeups: Wakeups) -> AsyncGenerator[asyncio.Event]:
    """Receive wake-ups in a task. The event is set at each new connection to the bus."""
    connected = asyncio.Event()
    task = asyncio.create_task(wakeups.receive_forever(connected.set))
    async with asyncio.timeout(HANG_SECONDS):
        await connected.wait()
    connected.clear()
    try:
        yield connected
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await wakeups.close()


async def wait_for_wakeup(event: asyncio.Event, seconds: float = HANG_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        await event.wait()
    event.clear()


async def test_wakeups_reach_other_process(bus_setup: BusSetup) -> None:
    receiver, sender = bus_setup.create_wakeups(), bus_setup.create_wakeups()
    changed_credentials: list[int | None] = []
    receiver.add_credentials_listener(changed_credentials.append)
    async with run_receiver(receiver):
        async with run_receiver(sender):
            with receiver.follow([7]) as event, receiver.follow([8]) as other_event:
                sender.announce({7: 3})
                await wait_for_wakeup(event)
                sender.announce_credentials_changed([12])
                sender.announce_credentials_changed([None])
                sender.announce({7: 4})
                await wait_for_wakeup(event)
                assert changed_credentials == [12, None]
                assert not other_event.is_set()
        receiver.announce({7: 5})  # the other process has stopped


async def test_process_can_announce_without_receiving(bus_setup: BusSetup) -> None:
    receiver, sender = bus_setup.create_wakeups(), bus_setup.create_wakeups()
    async with run_receiver(receiver):
        with receiver.follow([7]) as event:
            sender.announce({7: 3})
            await sender.close()
            await wait_for_wakeup(event)


async def test_wakeups_arrive_after_bus_outage(
    bus_setup: BusSetup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "models.events.wakeups")
    receiver, sender = bus_setup.create_wakeups(), bus_setup.create_wakeups()
    async with (
        run_receiver(receiver) as receiver_connected,
        run_receiver(sender) as sender_connected,
    ):
        with receiver.follow([7]) as event:
            await await_if_coroutine(bus_setup.stop())
            disconnected = set[Wakeups]()
            async with asyncio.timeout(HANG_SECONDS):
                for number in count():  # many failures, which are logged once
                    sender.announce({7: 100 + number})
                    await asyncio.sleep(0.02)
                    disconnected |= {one for one in (receiver, sender) if one.is_disconnected}
                    if number >= FAILED_ANNOUNCEMENTS and len(disconnected) == 2:
                        break
            await await_if_coroutine(bus_setup.start())
            async with asyncio.timeout(HANG_SECONDS):
                await receiver_connected.wait()
                await sender_connected.wait()
            await wait_until(lambda: not (receiver.is_disconnected or sender.is_disconnected))
            sender.announce({7: 1000})
            await wait_for_wakeup(event)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 1 <= len(warnings) <= 4, [record.getMessage() for record in warnings]


class CountingBus:
    """An event bus that stores the messages sent."""

    name = "counted"

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def send(self, message: str) -> None:
        self.messages.append(message)

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        on_connected()
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def test_many_commits_are_sent_in_few_messages() -> None:
    bus: EventBus = CountingBus()
    wakeups, started_at = BusWakeups(bus), monotonic()
    for number in range(1000):
        wakeups.announce({number % 10: number})
        await asyncio.sleep(0.0005)
    await wakeups.close()
    assert isinstance(bus, CountingBus)
    assert len(bus.messages) <= (monotonic() - started_at) / SEND_INTERVAL + 2
    positions = [line.split() for message in bus.messages for line in message.split("\n")[1:]]
    last_positions = {int(stream): int(number) for stream, number in positions}
    assert last_positions == {number % 10: number for number in range(990, 1000)}


def test_messages_are_within_size_limit() -> None:
    lines = [f"{2**62 + number} {number}" for number in range(5000)]
    messages = list(_messages_from_lines("name", lines))
    assert max(map(len, messages)) <= MAX_MESSAGE_BYTES
    assert [line for message in messages for line in message.split("\n")[1:]] == lines


async def test_follower_tells_when_it_has_read_all_changes(ada: GraphQLClient) -> None:
    wakeups = ada.environment.wakeups
    stream = follow_changes(client_context(ada), FollowRequest())
    pending = asyncio.ensure_future(anext(stream))
    await wait_until(lambda: wakeups.follower_wakeups)
    (wakeup,) = wakeups.follower_wakeups
    async with asyncio.timeout(HANG_SECONDS):
        await wakeup.started.wait()
    assert wakeup.is_idle
    await deliver_to(ada, "New")
    assert not wakeup.is_idle
    async with asyncio.timeout(HANG_SECONDS):
        assert (await pending).events
    assert not wakeup.is_idle  # until the next batch is requested
    pending = asyncio.ensure_future(anext(stream))
    await wait_until(lambda: wakeup.is_idle)
    pending.cancel()


async def test_invalid_bus_messages_are_ignored(tmp_path: Path) -> None:
    wakeups, other_bus = BusWakeups(LocalBus(tmp_path)), LocalBus(tmp_path)
    async with run_receiver(wakeups):
        with wakeups.follow([7]) as event:
            for message in ("", "x", "x\n7", "x\n!all", "x\n7 one", "x\n" + "9" * 5000 + " 1"):
                await other_bus.send(message)
            await other_bus.send("x\n7 3")
            await wait_for_wakeup(event)
    await other_bus.close()


class UnreachableBus(CountingBus):
    """An event bus to which no connection is possible."""

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        raise ConnectionError


async def test_changes_of_other_processes_are_found_without_bus(
    environment: Environment, ada: GraphQLClient
) -> None:
    wakeups = BusWakeups(UnreachableBus())
    task = asyncio.create_task(receive_wakeups_forever(replace(environment, wakeups=wakeups)))
    try:
        with wakeups.follow([ada.user.id]) as event:
            await deliver_to(ada, "by another process")
            await wait_for_wakeup(event, POLL_SECONDS / 2)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await wakeups.close()
