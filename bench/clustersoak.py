"""`python -m bench.clustersoak`: kill servers of one PostgreSQL store in turn while mail leaves.

The clocks of the servers differ. A killed server is either started again at once, or only after
another one has taken over its leases. At the end each recipient is accounted for: delivered once;
delivered twice, because its server died between the end of the message and the note of the answer;
or still queued, with the reason.
"""

import asyncio
import shutil
import tempfile
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
import uvloop
from aiosmtpd.smtp import Envelope
from rich.console import Console
from sqlalchemy import text

from bench.crash import buried
from bench.load import Target, once
from bench.sendsoak import SEND, Far, Post, furnished
from bench.server import HOST, Server, bounded, stop
from bench.sides import postgres
from merganser.settings import Settings
from models.database import Database

CLIENTS = 4
BUSY = 60  # messages that wait at most
LOOK = 0.05  # seconds between two looks
TAKEN_OVER = 90.0  # seconds until another server must have taken over; on a busy machine
END = 300.0  # seconds that the rest of the queue may take
LONGEST = 3600.0
LATER = "later.example"  # its server answers 451 to everything
EVERY = 20  # one message of so many goes there
WINDOW = """SELECT recipient FROM deliveries JOIN server_processes ON holder = server_processes.id
  WHERE pid = :pid AND final_dot_at IS NOT NULL AND state IN ('PENDING', 'DEFERRED')"""
ALIVE = "SELECT pid FROM server_processes"
WAITING = f"""SELECT count(*) FROM deliveries
  WHERE state IN ('PENDING', 'DEFERRED') AND (domain <> '{LATER}' OR lease IS NOT NULL)"""  # noqa: S608
STATES = "SELECT recipient, state, lease, last_response FROM deliveries"


@dataclass
class Neighbour(Far):
    """A server that counts what it takes, and takes nothing for LATER."""

    async def handle_DATA(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        """Take a message, or put it off."""
        if envelope.rcpt_tos[0].endswith(LATER):
            return "451 4.3.0 Later"
        return await super().handle_DATA(_server, _session, envelope)


@dataclass
class Account:
    """What became of all recipients."""

    answered: int = 0
    once: int = 0
    twice: int = 0
    queued: Counter[str] = field(default_factory=Counter)  # by the reason
    kills: int = 0
    taken_over: list[float] = field(default_factory=list)  # seconds until that was done
    differences: list[str] = field(default_factory=list)


@dataclass
class Cluster:
    """Servers of one store, a load on all of them, and the neighbour that counts."""

    servers: list[Server]
    skews: list[int]  # seconds by which their clocks are ahead
    database: Database
    secret: str
    far: Neighbour
    post: Post = field(default_factory=Post)
    running: dict[int, Process] = field(default_factory=dict)
    window: Counter[str] = field(default_factory=Counter)  # whose server died beside the dot

    async def start(self, nth: int) -> None:
        """Start a server, with its clock."""
        self.running[nth] = await self.servers[nth].start()

    async def kill(self, nth: int) -> int:
        """Kill a server, and note whose messages it may have sent; its process id."""
        process = self.running.pop(nth)
        process.kill()
        await process.wait()
        self.window.update(row.recipient for row in await self.rows(WINDOW, pid=process.pid))
        return process.pid

    async def rows(self, sql: str, **given: Any) -> list[Any]:
        """The rows of a statement."""
        async with self.database.engine.connect() as connection:
            return list((await connection.execute(text(sql), given)).all())

    async def taken_over(self, pid: int) -> float:
        """Wait until the leases of a dead server have ended; how many seconds that took."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.timeout(TAKEN_OVER):
            while pid in {row.pid for row in await self.rows(ALIVE)}:  # noqa: ASYNC110 - rows
                await asyncio.sleep(LOOK)
        return loop.time() - begun

    async def load(self, until: asyncio.Event) -> None:
        """Send one message after the other by servers that run."""
        while not until.is_set():
            if len(self.post.answered) - len(self.far.came) > BUSY or not self.running:
                await asyncio.sleep(LOOK)
                continue
            nth = list(self.running)[self.post.made % len(self.running)]
            with suppress(OSError, EOFError, RuntimeError, KeyError):  # it died meanwhile
                await self.send(nth)

    async def send(self, nth: int) -> None:
        """Send a message; without an answer it waits to be sent again, under the same key."""
        to = self.post.next()
        if not to.endswith(LATER) and int(to[1 : to.index("@")]) % EVERY == 0:
            to = f"{to.partition('@')[0]}@{LATER}"
        given = {
            "to": [{"address": to}],
            "subject": f"Soak {to}",
            "text": "Hello.",
            "options": {"idempotencyKey": to},
        }
        answered = False
        try:
            body = {"query": SEND, "variables": {"input": given}}
            answer = await once(Target(self.servers[nth].http, 0, self.secret), "/graphql", body)
            if answer["data"]["messageSend"]["errors"]:
                raise RuntimeError("refused")
            answered = True
        finally:
            if answered:
                self.post.answered.add(to)
            else:
                self.post.waiting.append(to)


def clock_ahead(seconds: int) -> dict[str, str]:
    """The environment of a process whose time of day is ahead; its monotonic clocks are right.

    Raises FileNotFoundError if libfaketime is not installed.
    """
    if not seconds:
        return {}
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise FileNotFoundError("libfaketime: install the Debian package faketime")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@asynccontextmanager
async def cluster(folder: Path, skews: list[int]) -> AsyncGenerator[Cluster]:
    """Servers over one new PostgreSQL store, each with a data folder of its own."""
    far, url = Neighbour(pause=0.02), postgres(folder)
    first = folder / "server0"
    blobs = folder / "blobs"
    settings = Settings(data=first, store=url, blobs=str(blobs))
    secret = await furnished(settings)
    more = {
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{far.port}?tls=never",
        "MERGANSER_BLOBS": str(blobs),
    }
    servers = []
    for nth in range(len(skews)):
        own = folder / f"server{nth}"
        if nth:
            await asyncio.to_thread(own.mkdir, mode=0o700)
            for name in ("secret", "vault"):
                await asyncio.to_thread(shutil.copy, first / name, own / name)
        servers.append(Server(own, url, more={**more, **clock_ahead(skews[nth])}))
    made = Cluster(servers, skews, Database(settings.store), secret, far)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(made.database.close)
        await stack.enter_async_context(far.listening())
        try:
            for nth in range(len(skews)):
                await made.start(nth)
            yield made
        finally:
            for process in list(made.running.values()):
                await buried(process)


async def soak(folder: Path, skews: list[int], kills: int, seed: int = 1) -> Account:
    """Kill each server in turn under load, then account for every recipient."""
    random, account = Random(seed), Account()  # noqa: S311 - no secret
    async with cluster(folder, skews) as all_:
        ended = asyncio.Event()
        loads = [asyncio.create_task(all_.load(ended)) for _ in range(CLIENTS)]
        try:
            for nth in range(kills):
                victim = nth % len(skews)
                wanted = all_.far.came.total() + random.randint(5, 40)
                async with asyncio.timeout(END):
                    while all_.far.came.total() < wanted:  # noqa: ASYNC110 - nobody rings
                        await asyncio.sleep(0.001)
                pid = await all_.kill(victim)
                account.kills += 1
                if nth // len(skews) % 2 == 0:
                    account.taken_over.append(await all_.taken_over(pid))
                await all_.start(victim)
        finally:
            ended.set()
            await asyncio.gather(*loads, return_exceptions=True)
        async with asyncio.timeout(END):
            while all_.post.waiting:
                await all_.send(next(iter(all_.running)))
            while (await all_.rows(WAITING))[0][0]:  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(LOOK)
        await _accounted(all_, account)
        for process in list(all_.running.values()):
            if (code := await stop(process)) != 0:
                account.differences.append(f"a server ended with {code}")
        all_.running.clear()
    return account


async def _accounted(all_: Cluster, account: Account) -> None:
    """Say of each recipient what became of it."""
    came, account.answered = all_.far.came, len(all_.post.answered)
    rows = {row.recipient: row for row in await all_.rows(STATES)}
    for to in sorted(all_.post.answered):
        row, times = rows.get(to), came[to]
        if row is None:
            account.differences.append(f"{to} was answered and is not in the store")
        elif to.endswith(LATER) and not times and row.lease is None and row.last_response:
            account.queued[row.last_response] += 1
        elif times == 1 and row.state == "RELAYED":
            account.once += 1
        elif 1 < times <= 1 + all_.window[to] and row.state == "RELAYED":
            account.twice += 1
        else:
            account.differences.append(f"{to} came {times} times, and is {row.state}")
    unknown = set(came) - all_.post.answered
    account.differences += [f"{to} came, and was never answered" for to in sorted(unknown)]


def main(
    servers: Annotated[int, typer.Option(min=2, help="How many servers.")] = 2,
    kills: Annotated[int, typer.Option(min=0, help="How often one is killed.")] = 20,
    skew: Annotated[int, typer.Option(help="Seconds between the clocks of two servers.")] = 300,
    seed: Annotated[int, typer.Option(help="When they die.")] = 1,
) -> None:
    """Kill servers in turn while mail leaves, and account for every recipient."""
    console = Console(highlight=False, width=120)
    skews, found = [nth * skew for nth in range(servers)], list[Account]()

    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="merganser-clustersoak-") as folder:
            found.append(await soak(Path(folder), skews, kills, seed))

    uvloop.run(bounded(work(), LONGEST))
    (account,) = found
    slowest = max(account.taken_over, default=0.0)
    console.print(
        f"{account.kills} kills of {servers} servers: {account.answered} recipients, "
        f"{account.once} delivered once, {account.twice} twice within the window, "
        f"{account.queued.total()} still queued {dict(account.queued)}; "
        f"taken over in at most {slowest:.1f} s; {len(account.differences)} differences."
    )
    for line in account.differences:
        console.print(f"  {line}", markup=False)
    if account.differences:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
