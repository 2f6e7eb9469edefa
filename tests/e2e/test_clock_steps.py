"""The time of day is set while a real server sends mail: nothing is sent twice, nothing waits."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.clustersoak import LATER, Cluster, Neighbour, clock_ahead
from bench.crash import buried
from bench.sendsoak import furnished
from bench.server import HOST, Server
from merganser.settings import Settings
from models.database import Database

HOUR = 3600  # seconds
LIMIT = 300.0
MANY = 15  # messages under way when the clock is set


@asynccontextmanager
async def steppable(folder: Path) -> AsyncGenerator[Cluster]:
    """A server with an SQLite store, whose clock follows a file."""
    far, settings = Neighbour(pause=0.2), Settings(data=folder / "var")
    secret = await furnished(settings)
    await asyncio.to_thread((folder / "clock").write_text, "+0s")
    faked = {name: text for name, text in clock_ahead(1).items() if name != "FAKETIME"}
    more = {
        **faked,
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{far.port}?tls=never",
    }
    server = Server(folder / "var", more=more)
    made = Cluster([server], [0], Database(settings.store), secret, far)
    async with far.listening():
        try:
            await made.start(0)
            yield made
        finally:
            for process in list(made.running.values()):
                await buried(process)
            await made.database.close()


async def sent(one: Cluster, many: int) -> None:
    """Hand in this many messages that the neighbour takes."""
    handed = len(one.post.answered)
    while len(one.post.answered) < handed + many:
        if (one.post.made + 1) % 20 == 0:
            one.post.made += 1  # the neighbour would put it off
        await one.send(0)


async def came(one: Cluster) -> None:
    """Wait until everything has come that was handed in."""
    while set(one.far.came) != one.post.answered:  # noqa: ASYNC110 - nobody rings
        await asyncio.sleep(0.05)


async def test_steps_of_an_hour_neither_double_nor_delay_mail(tmp_path: Path) -> None:
    def step(seconds: int) -> None:
        (tmp_path / "clock").write_text(f"{seconds:+d}s")

    async with asyncio.timeout(LIMIT), steppable(tmp_path) as one:
        for ahead in (HOUR, 0, -HOUR, 0):
            await sent(one, MANY)
            await asyncio.to_thread(step, ahead)  # leases of what is under way go on
            await came(one)
        assert not any(to.endswith(LATER) for to in one.post.answered)
        assert set(one.far.came.values()) == {1}

        await asyncio.to_thread(step, HOUR)
        await asyncio.sleep(1)
        before = one.far.came.total()
        await sent(one, MANY)
        while one.far.came.total() == before:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.01)
        await one.kill(0)
        await asyncio.to_thread(step, 0)
        await one.start(0)
        await came(one)  # long before the hour is over
        twice = {to for to, times in one.far.came.items() if times > 1}
        assert twice <= set(one.window)
        assert max(one.far.came.values()) <= 2
