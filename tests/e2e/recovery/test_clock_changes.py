"""The clocks of real servers are set while mail leaves: nothing is sent twice, nothing waits.

libfaketime changes the time of day of a server, and not its monotonic clocks. Its offset is in a
file, so the clock of a running server can be set.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.smtp import Envelope

from bench.cluster_soak import LATER, ReceivingServer, ServerGroup, clock_ahead, make_data_folder
from bench.load.http_client import Target, once
from bench.send_soak import SEND, Far, furnished
from bench.servers.merganser_process import Server
from bench.servers.ports import HOST
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from models.store.database import Database
from models.users.roles import Role
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey
from tests.e2e.conftest import beside
from tests.support.stores import store_fixtures

WAITING = """SELECT recipient, state, attempts, next_at, turn_at, lease, holder, last_response
             FROM deliveries WHERE state <> 'RELAYED'"""
HOUR = 3600  # seconds
LIMIT = 400.0  # seconds for all of it, on a busy machine
PATIENCE = 60.0  # seconds for a part of it
USUAL = [f"d{nth}.example" for nth in range(4)]
CLUSTERS = [("sqlite", [0])]
if "LONG" in os.environ:  # `make conformance`; e2e/test_cluster_sending has skewed clocks, too
    CLUSTERS += [("postgres", [0, 300]), ("postgres", [0, HOUR])]
FLUSH = "mutation ($input: QueueFlushInput!) { queueFlush(input: $input) { errors { message } } }"


@dataclass
class SlowServer(ReceivingServer):
    """A mail server that notes what has come whole, and defers each recipient at LATER once."""

    asked: list[str] = field(default_factory=list)  # recipients of messages that have come whole
    refused: set[str] = field(default_factory=set)
    stubborn: bool = False  # it refuses recipients at LATER again and again

    async def handle_DATA(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope
    ) -> str:
        (to,) = envelope.rcpt_tos
        self.asked.append(to)
        if to.endswith(LATER) and (self.stubborn or to not in self.refused):
            self.refused.add(to)
            return "451 4.3.0 Later"
        await self.open.wait()
        return await Far.handle_DATA(self, server, session, envelope)


@dataclass
class Site:
    """Servers of one store whose clocks can be set, and the server that their mail goes to."""

    cluster: ServerGroup
    far: SlowServer
    clocks: list[Path]
    skews: list[int]  # seconds by which the clocks are ahead
    root: str  # an API key
    sent: set[str] = field(default_factory=set)  # recipients
    messages: int = 0

    async def set_clocks(self, seconds: int) -> None:
        """Set all clocks to the right time, their usual difference, and so many seconds more."""
        for clock, skew in zip(self.clocks, self.skews, strict=True):
            new = clock.with_suffix(".new")
            new.write_text(f"{skew + seconds:+d}s")
            new.replace(clock)  # a server that reads meanwhile finds no empty file
        for nth, skew in enumerate(self.skews):
            await self._is_ahead(nth, skew + seconds)

    async def _is_ahead(self, nth: int, seconds: int) -> None:
        """Wait until a server answers with this time of day, if it runs."""
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient() as client:
            while nth in self.cluster.running:
                url = f"http://{HOST}:{self.cluster.servers[nth].http}/health"
                date = parsedate_to_datetime((await client.get(url)).headers["date"])
                if abs((date - datetime.now(UTC)).total_seconds() - seconds) < HOUR / 60:
                    return
                await asyncio.sleep(0.1)

    async def send(self, *domains: str, by: int = 0) -> list[str]:
        """Send a message to somebody at each domain, by this server."""
        self.messages += 1
        key = f"m{self.messages}"
        recipients = [f"{key}@{domain}" for domain in domains]
        given = {
            "to": [{"address": each} for each in recipients],
            "text": "Hello.",
            "options": {"idempotencyKey": key},
        }
        await self.mutate("messageSend", SEND, given, (self.cluster.secret, by))
        self.sent.update(recipients)
        return recipients

    async def mutate(
        self, name: str, document: str, given: dict[str, Any], where: tuple[str, int]
    ) -> None:
        """Do this mutation with the secret and at the server that `where` says."""
        secret, nth = where
        target, done = Target(self.cluster.servers[nth].http, 0, secret), None
        body = {"query": document, "variables": {"input": given}}
        async with asyncio.timeout(PATIENCE):
            while done is None:
                with suppress(RuntimeError):  # the deadline of a request, on a busy machine
                    done = (await once(target, "/graphql", body))["data"][name]
        assert done["errors"] == []

    async def until_asked(self, *recipients: str) -> None:
        """Wait until the whole messages for these have come, answered or not."""
        async with asyncio.timeout(PATIENCE):
            while not set(recipients) <= set(self.far.asked):  # noqa: ASYNC110 - nobody rings
                await asyncio.sleep(0.02)

    async def until_came(self) -> None:
        """Wait until all that was sent has come."""
        try:
            async with asyncio.timeout(PATIENCE):
                while set(self.far.came) != self.sent:  # noqa: ASYNC110 - nobody rings
                    await asyncio.sleep(0.02)
        except TimeoutError:
            waiting = await self.cluster.rows(WAITING)
            missing = self.sent - set(self.far.came)
            raise TimeoutError(f"missing: {missing}, waiting: {waiting}") from None

    async def kill_all(self) -> None:
        for nth in list(self.cluster.running):
            await self.cluster.kill(nth)


def settable_clock(file: Path) -> dict[str, str]:
    """The environment of a process whose time of day this file changes."""
    return {
        **{name: text for name, text in clock_ahead(1).items() if name != "FAKETIME"},
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",  # seconds until the file is read again
    }


@asynccontextmanager
async def site(
    folder: Path, url: str | None, skews: list[int], *, fake: bool = True
) -> AsyncGenerator[Site]:
    """Servers over one store that run, with these differences between their clocks.

    Without `fake` clocks they can be forked, which takes less time than to start them.
    """
    far, first = SlowServer(), folder / "server"
    far.open.clear()
    blobs = str(folder / "blobs")
    settings = Settings(data=first, blobs=blobs, **({"store": url} if url else {}))  # type: ignore[arg-type]
    secret = await furnished(settings)
    async with opened(settings) as world:
        _, root = await api_keys.create_key(owner(world), NewKey("root", role=Role.ROOT))
    clocks = [folder / f"clock{nth}" for nth in range(len(skews))]
    servers = []
    for nth, clock in enumerate(clocks):
        own = first if nth == 0 else folder / f"server{nth}"
        if nth:
            make_data_folder(own, first)
        more = {
            **(settable_clock(clock) if fake else {}),
            "MERGANSER_BLOBS": blobs,
            "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{far.port}?tls=never",
            "MERGANSER_QUEUE_BACKOFF": "8s 1h",
        }
        servers.append(Server(own, url, more=more))
    made = ServerGroup(servers, Database(settings.store), secret, far)
    async with far.listening():
        here = Site(made, far, clocks, skews, root)
        try:
            await here.set_clocks(0)
            for nth in range(len(skews)):
                await made.start(nth)
            yield here
        finally:
            await made.end()


@pytest.fixture(params=CLUSTERS, ids=lambda given: f"{given[0]}{given[1]}")
async def here(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Site]:
    kind, skews = request.param
    if kind not in store_fixtures.STORES:
        pytest.skip("not one of the stores that are tested")
    url = None
    if kind == "postgres":
        url = beside(request.getfixturevalue("postgres"), f"clocks{skews[-1]}")
    async with asyncio.timeout(LIMIT), site(tmp_path, url, skews) as made:
        yield made


async def test_steps_of_an_hour_neither_double_nor_delay_mail(here: Site) -> None:
    for ahead in (HOUR, 0, -HOUR):
        here.far.open.clear()
        await here.until_asked(*await here.send(*USUAL))
        await here.until_asked(*await here.send(LATER))  # its retry is planned by the old clock
        await here.set_clocks(ahead)
        for nth in here.cluster.running:  # it looks at the queue: are the leases over?
            await here.until_asked(*await here.send(f"s{nth}.example", by=nth))
        here.far.open.set()
        await here.until_came()
    assert here.far.refused
    assert set(here.far.came.values()) == {1}


async def test_servers_killed_while_their_clocks_are_ahead_go_on_at_once(here: Site) -> None:
    far = here.far
    await here.set_clocks(HOUR)
    far.open.set()
    far.stubborn = True
    (stuck,) = await here.send(LATER)
    async with asyncio.timeout(PATIENCE):  # its third attempt is an hour later
        while far.asked.count(stuck) < 2:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.02)
    far.open.clear()
    for nth in here.cluster.running:
        await here.until_asked(*await here.send(*(f"s{nth}-{each}" for each in USUAL), by=nth))
    await here.kill_all()
    assert here.cluster.window
    await here.set_clocks(0)
    far.open.set()
    before = far.asked.count(stuck)
    for nth in range(len(here.cluster.servers)):
        await here.cluster.start(nth)
    here.sent.remove(stuck)
    await here.until_came()
    assert max(far.came.values()) <= 2
    assert {to for to, times in far.came.items() if times > 1} <= set(here.cluster.window)

    assert far.asked.count(stuck) == before
    far.stubborn = False
    await here.mutate("queueFlush", FLUSH, {"all": True}, (here.root, 0))
    here.sent.add(stuck)
    await here.until_came()
    assert far.came[stuck] == 1
