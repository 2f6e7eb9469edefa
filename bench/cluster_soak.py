"""`python -m bench.clustersoak`: kill servers of one PostgreSQL store in turn while mail leaves.

The clocks of the servers differ. A killed server is either started again at once, or only after
another one has taken over its leases. With `--failover` the primary of the store is killed too,
and an asynchronous standby that lacks its last commits takes its place. At the end each recipient
is accounted for: delivered once; delivered twice, because its server died between the end of the
message and the commit of the result, or because the standby lacked that commit; still queued, with
the reason; or lost, because the standby lacked the whole submission.
"""

import asyncio
import shutil
import tempfile
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
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

from bench.crashes.crash_rounds import buried
from bench.crashes.recipient_accounting import Account, Evidence, close_account, count_warnings
from bench.crashes.replicated_store import LostCommits, ReplicatedStore
from bench.load.http_client import Target, once
from bench.send_soak import SEND, Far, Post, furnished
from bench.servers.compared_servers import postgres
from bench.servers.merganser_process import COMMAND, Server, answering, bounded, spawned, stop
from bench.servers.ports import HOST
from merganser.settings.settings import Settings
from models.store.database import Database

BUSY = 60  # messages that wait at most
LOOK = 0.05  # seconds between two looks
TAKEN_OVER = 90.0  # seconds until another server must have taken over; on a busy machine
END = 300.0  # seconds that a start, a wait for mail, or the rest of the queue may take
LONGEST = 3600.0
UNDER_WAY = 5  # recipients, at least, whose results are the first commits that the standby lacks
LACKED = 40  # messages that leave while the standby gets no commits
LATER = "later.example"  # its server answers 451 to everything
EVERY = 20  # one message of so many goes there
WINDOW = """SELECT recipient FROM deliveries JOIN server_processes ON holder = server_processes.id
  WHERE pid = :pid AND final_dot_at IS NOT NULL AND state IN ('PENDING', 'DEFERRED')"""
ALIVE = "SELECT pid FROM server_processes"
WAITING = f"""SELECT count(*) FROM deliveries
  WHERE state IN ('PENDING', 'DEFERRED') AND (domain <> '{LATER}' OR lease IS NOT NULL)"""  # noqa: S608
ROWS = "SELECT recipient, state, lease, holder, attempts, next_at, last_response FROM deliveries"


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What happens in a soak."""

    skews: list[int]  # seconds by which the clock of each server is ahead
    kills: int
    failover: bool = False  # halfway, to a standby that lacks commits
    clients: int = 4
    seed: int = 1  # decides when servers die


@dataclass
class ReceivingServer(Far):
    """A server that counts what it accepts, and accepts nothing for LATER."""

    open: asyncio.Event = field(default_factory=asyncio.Event)  # messages are answered

    def __post_init__(self) -> None:
        self.open.set()

    async def handle_DATA(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        """Accept a message, or put it off."""
        if envelope.rcpt_tos[0].endswith(LATER):
            return "451 4.3.0 Later"
        await self.open.wait()
        return await super().handle_DATA(_server, _session, envelope)


@dataclass
class ServerGroup:
    """Servers of one store, a load on all of them, and the server that receives their mail."""

    servers: list[Server]
    database: Database
    secret: str
    far: ReceivingServer
    store: ReplicatedStore | None = None
    post: Post = field(default_factory=Post)
    sent: int = 0  # accepted messages that the receiving server accepts, too
    running: dict[int, Process] = field(default_factory=dict)
    window: Counter[str] = field(default_factory=Counter)  # kills after the end of the message
    lost: LostCommits = field(default_factory=LostCommits)

    async def start(self, nth: int) -> None:
        """Start a server, and wait until it answers."""
        server = self.servers[nth]
        command = (*COMMAND, "serve")
        process = await spawned(command, server.settings(), server.folder / "server.log")
        self.running[nth] = process
        async with asyncio.timeout(END):
            while True:
                with suppress(TimeoutError):
                    await answering(server.http, process)
                    return

    async def kill(self, nth: int) -> int:
        """Kill a server, and note whose messages it may have sent; its process id."""
        process = self.running.pop(nth)
        process.kill()
        await process.wait()
        self.window.update(row.recipient for row in await self.rows(WINDOW, pid=process.pid))
        _remove_fake_clock(process.pid)
        return process.pid

    async def end(self) -> None:
        """Kill the servers that run, and close the store."""
        for process in self.running.values():
            await buried(process)
            _remove_fake_clock(process.pid)
        self.running.clear()
        await self.database.close()

    async def rows(self, sql: str, **given: Any) -> list[Any]:
        """The rows of a statement."""
        async with self.database.engine.connect() as connection:
            return list((await connection.execute(text(sql), given)).all())

    async def take_over(self, pid: int) -> float:
        """Wait until the leases of a dead server have ended; how many seconds that took."""

        async def is_over() -> bool:
            return pid not in {row.pid for row in await self.rows(ALIVE)}

        begun = asyncio.get_running_loop().time()
        await wait_until(is_over, TAKEN_OVER, "nobody has taken over the leases of a dead server")
        return asyncio.get_running_loop().time() - begun

    async def arrive(self, more: int) -> None:
        """Wait until so many more messages have arrived."""
        wanted = self.far.came.total() + more

        async def has_come() -> bool:
            return self.far.came.total() >= wanted

        await wait_until(has_come, END, "no mail arrives", look=0.001)

    async def fail_over(self, store: ReplicatedStore) -> None:
        """Kill the primary after commits that the standby lacks, and promote the standby."""
        await self.arrive(EVERY)
        self.far.open.clear()
        try:
            await asyncio.to_thread(store.stop_replication, UNDER_WAY)
        finally:
            self.far.open.set()
        await self.arrive(LACKED)
        self.lost = await asyncio.to_thread(store.fail_over)
        await self.database.close()
        self.database = Database(store.url)

    async def load(self, until: asyncio.Event) -> None:
        """Send one message after the other by servers that run."""
        while not until.is_set():
            if self.sent - len(self.far.came) > BUSY or not self.running:
                await asyncio.sleep(LOOK)
                continue
            nth = list(self.running)[self.post.made % len(self.running)]
            try:
                await self.send(nth)
            except (OSError, EOFError, RuntimeError):  # the server or the store is away
                await asyncio.sleep(LOOK)

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
                self.sent += not to.endswith(LATER)
            else:
                self.post.waiting.append(to)

    async def drain(self) -> None:
        """Send what was not answered, and wait until no recipient waits but those of LATER."""
        async with asyncio.timeout(END):
            while self.post.waiting:
                with suppress(RuntimeError):  # a deadline on a busy machine
                    await self.send(next(iter(self.running)))

        async def is_empty() -> bool:
            return not (await self.rows(WAITING))[0][0]

        with suppress(TimeoutError):  # the account names each recipient that still waits
            await wait_until(is_empty, END, "the queue is not empty")


async def wait_until(
    condition: Callable[[], Awaitable[bool]], seconds: float, what: str, look: float = LOOK
) -> None:
    """Wait for a condition that nothing announces. Raises TimeoutError(what)."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(look)
    except TimeoutError:
        raise TimeoutError(what) from None


def make_data_folder(folder: Path, first: Path) -> None:
    """Make the data folder of a further server, with the keys of the first one."""
    folder.mkdir(mode=0o700)
    for name in ("secret", "vault"):
        shutil.copy(first / name, folder / name)


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


def _remove_fake_clock(pid: int) -> None:
    """Remove the shared memory that libfaketime leaves behind if its process is killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        (Path("/dev/shm") / name).unlink(missing_ok=True)  # noqa: S108 - its own place


@asynccontextmanager
async def cluster(folder: Path, plan: SoakPlan) -> AsyncGenerator[ServerGroup]:
    """Servers over one new PostgreSQL store, each with a data folder of its own."""
    async with AsyncExitStack() as stack:
        store: ReplicatedStore | None = None
        if plan.failover:
            store = ReplicatedStore()
            stack.push_async_callback(asyncio.to_thread, store.remove)
            await asyncio.to_thread(store.start)
        group = await _furnished_group(folder, plan, store)
        await stack.enter_async_context(group.far.listening())
        try:
            await asyncio.gather(*(group.start(nth) for nth in range(len(group.servers))))
            yield group
        finally:
            await group.end()


async def _furnished_group(
    folder: Path, plan: SoakPlan, store: ReplicatedStore | None
) -> ServerGroup:
    """Prepare the store, and a data folder with the same keys for each server."""
    far, url = ReceivingServer(pause=0.02), store.url if store else postgres(folder)
    first, blobs = folder / "server0", folder / "blobs"
    settings = Settings(data=first, store=url, blobs=str(blobs))
    secret = await furnished(settings)
    common = {
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{far.port}?tls=never",
        "MERGANSER_BLOBS": str(blobs),
    }
    servers = []
    for nth, skew in enumerate(plan.skews):
        own = folder / f"server{nth}"
        if nth:
            await asyncio.to_thread(make_data_folder, own, first)
        servers.append(Server(own, url, more={**common, **clock_ahead(skew)}))
    return ServerGroup(servers, Database(settings.store), secret, far, store)


async def soak(folder: Path, plan: SoakPlan) -> Account:
    """Kill each server in turn under load, then account for every recipient."""
    account = Account()
    async with cluster(folder, plan) as group:
        ended = asyncio.Event()
        loads = [asyncio.create_task(group.load(ended)) for _ in range(plan.clients)]
        try:
            await _kill_in_turn(group, plan, account)
        finally:
            ended.set()
            await asyncio.gather(*loads)
        await group.drain()
        for process in list(group.running.values()):
            if (code := await stop(process)) != 0:
                account.differences.append(f"a server ended with {code}")
        group.running.clear()
        rows = {row.recipient: row for row in await group.rows(ROWS)}
        seen = group.post.answered, group.far.came, rows, group.window
        close_account(account, Evidence(*seen, group.lost))
        left = [row.pid for row in await group.rows(ALIVE)]
        account.differences += [f"process {pid} is still registered" for pid in left]
        account.lost_commits = group.lost if plan.failover else None
        logs = [(one.folder / "server.log").read_text() for one in group.servers]
        account.warnings = count_warnings(logs)
    return account


async def _kill_in_turn(group: ServerGroup, plan: SoakPlan, account: Account) -> None:
    """Kill one server after the other, and the primary of the store halfway."""
    random, many = Random(plan.seed), len(plan.skews)  # noqa: S311 - no secret
    for nth in range(plan.kills):
        if group.store and nth == plan.kills // 2:
            await group.fail_over(group.store)
        await group.arrive(random.randint(5, 40))
        pid = await group.kill(nth % many)
        account.kills += 1
        if (nth + nth // many) % 2 == 0:
            account.taken_over.append(await group.take_over(pid))
        await group.start(nth % many)
    if group.store and not plan.kills:
        await group.fail_over(group.store)
    await group.arrive(5)


def main(
    servers: Annotated[int, typer.Option(min=2, help="How many servers.")] = 2,
    kills: Annotated[int, typer.Option(min=0, help="How often one is killed.")] = 20,
    skew: Annotated[int, typer.Option(help="Seconds between the clocks of two servers.")] = 300,
    failover: Annotated[
        bool, typer.Option(help="Kill the primary of the store; its standby lacks commits.")
    ] = False,
    seed: Annotated[int, typer.Option(help="When they die.")] = 1,
) -> None:
    """Kill servers in turn while mail leaves, and account for every recipient."""
    console = Console(highlight=False, width=120)
    plan = SoakPlan([nth * skew for nth in range(servers)], kills, failover, seed=seed)
    found = list[Account]()

    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="merganser-clustersoak-") as folder:
            found.append(await soak(Path(folder), plan))

    uvloop.run(bounded(work(), LONGEST))
    (account,) = found
    for line in account.lines():
        console.print(line, markup=False)
    if account.differences or account.accounted < account.answered:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
