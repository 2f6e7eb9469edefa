"""Bells that are heard in other processes, on each kind of bus."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import pytest

from merganser.server.event_bus import create_wakeups
from merganser.settings.settings import Settings
from models.events.bus import EventBus, MessageHandler
from models.events.bus.local_bus import LocalBus
from models.events.wakeups import MAX_MESSAGE_BYTES, SEND_INTERVAL, BusWakeups, Wakeups, _join_lines
from tests.support.servers.bus_servers import BROKERS

SECRET = b"s" * 32
KINDS = ["unix", "postgresql", "redis", "nats"]


@dataclass
class Road:
    """A kind of bus, and how it is broken off and mended."""

    settings: Settings
    stop: Callable[[], Any]
    start: Callable[[], Any]

    def bells(self) -> Wakeups:
        return create_wakeups(self.settings, SECRET)


@pytest.fixture(params=KINDS)
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    kind = request.param
    if kind == "unix":
        folder = tmp_path / "bells"

        def stop() -> None:
            for path in folder.iterdir():
                path.unlink()
            folder.rename(tmp_path / "away")

        yield Road(Settings(data=tmp_path), stop, lambda: (tmp_path / "away").rename(folder))
    elif kind == "postgresql":
        url = request.getfixturevalue("postgres").replace("+asyncpg", "")

        async def cut() -> None:
            connection = await asyncpg.connect(url)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND query ILIKE '%listen%merganser%' "
                "OR query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
            )
            await connection.close()

        settings = Settings(data=tmp_path, store=url, wakeups="postgresql")  # type: ignore[arg-type]
        yield Road(settings, cut, lambda: None)
    else:
        broker = BROKERS[kind](tmp_path)
        broker.start()
        settings = Settings(data=tmp_path, wakeups=broker.url)  # type: ignore[arg-type]
        yield Road(settings, broker.stop, broker.start)
        broker.stop()


async def done(work: Any) -> None:
    if asyncio.iscoroutine(work):
        await work


@asynccontextmanager
async def hearing(bells: Wakeups) -> AsyncGenerator[asyncio.Event]:
    """Bells that hear; the event is set whenever they begin to."""
    joined = asyncio.Event()
    task = asyncio.create_task(bells.receive(joined.set))
    async with asyncio.timeout(10):
        await joined.wait()
    joined.clear()
    try:
        yield joined
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await bells.close()


async def rings(bell: asyncio.Event, seconds: float = 2) -> None:
    async with asyncio.timeout(seconds):
        await bell.wait()
    bell.clear()


async def test_bells_are_heard_in_the_next_process(road: Road) -> None:
    here, there = road.bells(), road.bells()
    recalled: list[int | None] = []
    here.on_credentials_changed(recalled.append)
    async with hearing(here):
        async with hearing(there):
            with here.follow([7]) as bell, here.follow([8]) as other:
                there.announce({7: 3})
                await rings(bell)
                there.announce_credentials_changed([12])
                there.announce_credentials_changed([None])
                there.announce({7: 4})
                await rings(bell)
                assert recalled == [12, None]
                assert not other.is_set()
        here.announce({7: 5})  # to a neighbour that is gone


async def test_who_only_tells_need_not_hear(road: Road) -> None:
    here, there = road.bells(), road.bells()
    async with hearing(here):
        with here.follow([7]) as bell:
            there.announce({7: 3})
            await there.close()
            await rings(bell)


async def test_a_bus_that_was_away_is_heard_again(
    road: Road, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "models.events.wakeups")
    here, there = road.bells(), road.bells()
    async with hearing(here) as joined, hearing(there) as there_joined:
        with here.follow([7]) as bell:
            await done(road.stop())
            for number in range(50):  # of which the log is told once
                there.announce({7: 100 + number})
                await asyncio.sleep(0.02)
            await done(road.start())
            async with asyncio.timeout(15):
                await joined.wait()
                await there_joined.wait()
            assert not here.is_disconnected
            there.announce({7: 1000})
            await rings(bell)
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert 1 <= len(warnings) <= 4, [one.getMessage() for one in warnings]


class Counted:
    """A bus that counts what it carries."""

    name = "counted"

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def send(self, message: str) -> None:
        self.messages.append(message)

    async def receive(self, on_message: MessageHandler, on_connected: Callable[[], None]) -> None:
        on_connected()
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def test_many_commits_are_few_messages() -> None:
    bus: EventBus = Counted()
    bells, began = BusWakeups(bus), monotonic()
    for number in range(1000):
        bells.announce({number % 10: number})
        await asyncio.sleep(0.0005)
    await bells.close()
    assert isinstance(bus, Counted)
    assert len(bus.messages) <= (monotonic() - began) / SEND_INTERVAL + 2
    told = [line.split() for message in bus.messages for line in message.split("\n")[1:]]
    last = {int(stream): int(number) for stream, number in told}
    assert last == {number % 10: number for number in range(990, 1000)}


def test_no_message_is_too_long() -> None:
    lines = [f"{2**62 + number} {number}" for number in range(5000)]
    messages = list(_join_lines("name", lines))
    assert max(map(len, messages)) <= MAX_MESSAGE_BYTES
    assert [line for one in messages for line in one.split("\n")[1:]] == lines


async def test_what_others_say_on_a_bus_breaks_nothing(tmp_path: Path) -> None:
    bells, stranger = BusWakeups(LocalBus(tmp_path)), LocalBus(tmp_path)
    async with hearing(bells):
        with bells.follow([7]) as bell:
            for message in ("", "x", "x\n7", "x\n!all", "x\n7 one", "x\n" + "9" * 5000 + " 1"):
                await stranger.send(message)
            await stranger.send("x\n7 3")
            await rings(bell)
    await stranger.close()
