"""`python -m bench.cluster_soak`: kill servers of one database in turn while they send mail.

The clocks of the servers differ. A killed server is either started again at once, or only after
another one has taken over its leases. With `--failover` the primary database is killed too,
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

from bench.crashes.crash_rounds import kill_process_group
from bench.crashes.recipient_accounting import (
    RecipientAccount,
    SoakEvidence,
    account_for_all,
    count_warnings,
)
from bench.crashes.replicated_store import LostCommits, ReplicatedStore
from bench.load.http_client import BenchmarkTarget, request_json
from bench.send_soak import SEND_MUTATION, CountingMailServer, SoakRecipients, create_account
from bench.servers.compared_servers import start_postgres
from bench.servers.merganser_process import (
    MERGANSER_COMMAND,
    MerganserServer,
    run_with_timeout,
    spawn,
    stop_process,
    wait_until_healthy,
)
from bench.servers.ports import HOST
from merganser.settings.settings import Settings
from models.store.database import Database

MAX_UNDELIVERED = 60  # messages that were accepted and have not arrived
POLL_INTERVAL = 0.05  # seconds
TAKEOVER_TIMEOUT = 90.0  # seconds until another server takes over, also on a busy machine
STEP_TIMEOUT = 300.0  # seconds for a start, for new mail, or for the rest of the queue
RUN_TIMEOUT = 3600.0  # seconds
MIN_SENDING = 5  # recipients whose results are the first commits that the standby lacks
UNREPLICATED_COUNT = 40  # messages that are delivered while the standby gets no commits
LATER = "later.example"  # its server answers 451 to everything
DEFERRED_INTERVAL = 20  # one of 20 messages goes to LATER
SELECT_UNCONFIRMED = """SELECT recipient FROM queue_entries
  JOIN server_processes ON holder = server_processes.id
  WHERE pid = :pid AND final_dot_at IS NOT NULL AND state IN ('PENDING', 'DEFERRED')"""
SELECT_PIDS = "SELECT pid FROM server_processes"
COUNT_OPEN = f"""SELECT count(*) FROM queue_entries
  WHERE state IN ('PENDING', 'DEFERRED') AND (domain <> '{LATER}' OR lease IS NOT NULL)"""  # noqa: S608
SELECT_DELIVERIES = (
    "SELECT recipient, state, lease, holder, attempts, next_at, last_response FROM queue_entries"
)


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What happens in a soak."""

    skews: list[int]  # seconds by which the clock of each server is ahead
    kills: int
    failover: bool = False  # halfway, to a standby that lacks commits
    clients: int = 4
    seed: int = 1  # decides when servers die


@dataclass
class DeferringMailServer(CountingMailServer):
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

    servers: list[MerganserServer]
    database: Database
    secret: str
    receiver: DeferringMailServer
    store: ReplicatedStore | None = None
    recipients: SoakRecipients = field(default_factory=SoakRecipients)
    sent: int = 0  # accepted messages that the receiving server accepts, too
    running: dict[int, Process] = field(default_factory=dict)
    unconfirmed: Counter[str] = field(default_factory=Counter)  # kills after the end of the message
    lost: LostCommits = field(default_factory=LostCommits)

    async def start(self, nth: int) -> None:
        """Start a server, and wait until it answers."""
        server = self.servers[nth]
        command = (*MERGANSER_COMMAND, "serve")
        process = await spawn(
            command, server.process_environment(), server.data_folder / "server.log"
        )
        self.running[nth] = process
        async with asyncio.timeout(STEP_TIMEOUT):
            while True:
                with suppress(TimeoutError):
                    await wait_until_healthy(server.http_port, process)
                    return

    async def kill(self, nth: int) -> int:
        """Kill a server, and record the recipients that it may have sent to. Returns its pid."""
        process = self.running.pop(nth)
        process.kill()
        await process.wait()
        self.unconfirmed.update(
            row.recipient for row in await self.select_rows(SELECT_UNCONFIRMED, pid=process.pid)
        )
        _remove_fake_clock(process.pid)
        return process.pid

    async def end(self) -> None:
        """Kill the running servers and close the database."""
        for process in self.running.values():
            await kill_process_group(process)
            _remove_fake_clock(process.pid)
        self.running.clear()
        await self.database.close()

    async def select_rows(self, sql: str, **values: Any) -> list[Any]:
        """Return the rows of a query."""
        async with self.database.engine.connect() as connection:
            return list((await connection.execute(text(sql), values)).all())

    async def wait_for_takeover(self, pid: int) -> float:
        """Wait until the leases of a dead server have ended. Returns the seconds that it took."""

        async def is_over() -> bool:
            return pid not in {row.pid for row in await self.select_rows(SELECT_PIDS)}

        started_at = asyncio.get_running_loop().time()
        await wait_until(
            is_over, TAKEOVER_TIMEOUT, "no server has taken over the leases of a killed server"
        )
        return asyncio.get_running_loop().time() - started_at

    async def wait_for_messages(self, count: int) -> None:
        """Wait until this number of messages has arrived."""
        expected_total = self.receiver.received.total() + count

        async def has_arrived() -> bool:
            return self.receiver.received.total() >= expected_total

        await wait_until(has_arrived, STEP_TIMEOUT, "no message arrives", poll_interval=0.001)

    async def fail_over(self, store: ReplicatedStore) -> None:
        """Kill the primary after commits that the standby lacks, and promote the standby."""
        await self.wait_for_messages(DEFERRED_INTERVAL)
        self.receiver.open.clear()
        try:
            await asyncio.to_thread(store.stop_replication, MIN_SENDING)
        finally:
            self.receiver.open.set()
        await self.wait_for_messages(UNREPLICATED_COUNT)
        self.lost = await asyncio.to_thread(store.fail_over)
        await self.database.close()
        self.database = Database(store.url)

    async def load(self, until: asyncio.Event) -> None:
        """Send one message after another through the running servers."""
        while not until.is_set():
            if self.sent - len(self.receiver.received) > MAX_UNDELIVERED or not self.running:
                await asyncio.sleep(POLL_INTERVAL)
                continue
            nth = list(self.running)[self.recipients.count % len(self.running)]
            try:
                await self.send(nth)
            except (OSError, EOFError, RuntimeError):  # the server or the database is down
                await asyncio.sleep(POLL_INTERVAL)

    async def send(self, nth: int) -> None:
        """Send a message. Without a response it is sent again later, with the same key."""
        to = self.recipients.next()
        if not to.endswith(LATER) and int(to[1 : to.index("@")]) % DEFERRED_INTERVAL == 0:
            to = f"{to.partition('@')[0]}@{LATER}"
        values = {
            "to": [{"address": to}],
            "subject": f"Soak {to}",
            "text": "Hello.",
            "options": {"idempotencyKey": to},
        }
        is_accepted = False
        try:
            body = {"query": SEND_MUTATION, "variables": {"input": values}}
            response = await request_json(
                BenchmarkTarget(self.servers[nth].http_port, 0, self.secret), "/graphql", body
            )
            if response["data"]["messageSend"]["errors"]:
                raise RuntimeError("refused")
            is_accepted = True
        finally:
            if is_accepted:
                self.recipients.accepted.add(to)
                self.sent += not to.endswith(LATER)
            else:
                self.recipients.unanswered.append(to)

    async def drain(self) -> None:
        """Repeat messages without a response, and wait until only mail to LATER is queued."""
        async with asyncio.timeout(STEP_TIMEOUT):
            while self.recipients.unanswered:
                with suppress(RuntimeError):  # a deadline on a busy machine
                    await self.send(next(iter(self.running)))

        async def is_empty() -> bool:
            return not (await self.select_rows(COUNT_OPEN))[0][0]

        with suppress(TimeoutError):  # the account names each recipient that still waits
            await wait_until(is_empty, STEP_TIMEOUT, "the queue is not empty")


async def wait_until(
    condition: Callable[[], Awaitable[bool]],
    seconds: float,
    error_text: str,
    poll_interval: float = POLL_INTERVAL,
) -> None:
    """Wait for a condition that nothing announces. Raises TimeoutError(error_text)."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(poll_interval)
    except TimeoutError:
        raise TimeoutError(error_text) from None


def create_data_folder(folder: Path, first: Path) -> None:
    """Create the data folder of a further server, with the keys of the first one."""
    folder.mkdir(mode=0o700)
    for name in ("secret", "vault"):
        shutil.copy(first / name, folder / name)


def clock_ahead(seconds: int) -> dict[str, str]:
    """Return the environment variables that set the time of day ahead, not the monotonic clocks.

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
        # else a thread that waits for a lock with a time limit uses the CPU all the time
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def _remove_fake_clock(pid: int) -> None:
    """Remove the shared memory that libfaketime leaves behind if its process is killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        (Path("/dev/shm") / name).unlink(missing_ok=True)  # noqa: S108 - libfaketime decides the folder


@asynccontextmanager
async def run_cluster(folder: Path, plan: SoakPlan) -> AsyncGenerator[ServerGroup]:
    """Run servers with one new PostgreSQL database, each with its own data folder."""
    async with AsyncExitStack() as stack:
        store: ReplicatedStore | None = None
        if plan.failover:
            store = ReplicatedStore()
            stack.push_async_callback(asyncio.to_thread, store.remove)
            await asyncio.to_thread(store.start_both)
        group = await _create_server_group(folder, plan, store)
        await stack.enter_async_context(group.receiver.run_server())
        try:
            await asyncio.gather(*(group.start(nth) for nth in range(len(group.servers))))
            yield group
        finally:
            await group.end()


async def _create_server_group(
    folder: Path, plan: SoakPlan, store: ReplicatedStore | None
) -> ServerGroup:
    """Create the database, and a data folder with the same keys for each server."""
    receiver, url = DeferringMailServer(pause=0.02), store.url if store else start_postgres(folder)
    first, blobs = folder / "server0", folder / "blobs"
    settings = Settings(data=first, database_url=url, object_store_url=str(blobs))
    secret = await create_account(settings)
    common = {
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{receiver.port}?tls=never",
        "MERGANSER_OBJECT_STORE_URL": str(blobs),
    }
    servers = []
    for nth, skew in enumerate(plan.skews):
        own = folder / f"server{nth}"
        if nth:
            await asyncio.to_thread(create_data_folder, own, first)
        servers.append(MerganserServer(own, url, extra_environment={**common, **clock_ahead(skew)}))
    return ServerGroup(servers, Database(settings.database_url), secret, receiver, store)


async def run_cluster_soak(folder: Path, plan: SoakPlan) -> RecipientAccount:
    """Kill each server in turn under load, then account for every recipient."""
    account = RecipientAccount()
    async with run_cluster(folder, plan) as group:
        ended = asyncio.Event()
        loads = [asyncio.create_task(group.load(ended)) for _ in range(plan.clients)]
        try:
            await _kill_in_turn(group, plan, account)
        finally:
            ended.set()
            await asyncio.gather(*loads)
        await group.drain()
        for process in list(group.running.values()):
            if (code := await stop_process(process)) != 0:
                account.differences.append(f"a server exited with {code}")
        group.running.clear()
        rows = {row.recipient: row for row in await group.select_rows(SELECT_DELIVERIES)}
        evidence = SoakEvidence(
            group.recipients.accepted,
            group.receiver.received,
            rows,
            group.unconfirmed,
            group.lost,
        )
        account_for_all(account, evidence)
        pids = [row.pid for row in await group.select_rows(SELECT_PIDS)]
        account.differences += [f"process {pid} is still registered" for pid in pids]
        account.lost_commits = group.lost if plan.failover else None
        logs = [(server.data_folder / "server.log").read_text() for server in group.servers]
        account.warnings = count_warnings(logs)
    return account


async def _kill_in_turn(group: ServerGroup, plan: SoakPlan, account: RecipientAccount) -> None:
    """Kill one server after the other, and the primary database halfway."""
    random, many = Random(plan.seed), len(plan.skews)  # noqa: S311 - no secret
    for nth in range(plan.kills):
        if group.store and nth == plan.kills // 2:
            await group.fail_over(group.store)
        await group.wait_for_messages(random.randint(5, 40))
        pid = await group.kill(nth % many)
        account.kill_count += 1
        if (nth + nth // many) % 2 == 0:
            account.takeover_seconds.append(await group.wait_for_takeover(pid))
        await group.start(nth % many)
    if group.store and not plan.kills:
        await group.fail_over(group.store)
    await group.wait_for_messages(5)


def main(
    servers: Annotated[int, typer.Option(min=2, help="Number of servers.")] = 2,
    kills: Annotated[int, typer.Option(min=0, help="Number of kills.")] = 20,
    skew: Annotated[int, typer.Option(help="Seconds between the clocks of two servers.")] = 300,
    failover: Annotated[
        bool, typer.Option(help="Kill the primary database, whose standby lacks commits.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the times of the kills.")] = 1,
) -> None:
    """Kill servers in turn while they send mail, and account for every recipient."""
    console = Console(highlight=False, width=120)
    plan = SoakPlan([nth * skew for nth in range(servers)], kills, failover, seed=seed)
    accounts = list[RecipientAccount]()

    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="merganser-clustersoak-") as folder:
            accounts.append(await run_cluster_soak(Path(folder), plan))

    uvloop.run(run_with_timeout(work(), RUN_TIMEOUT))
    (account,) = accounts
    for line in account.report_lines():
        console.print(line, markup=False)
    if account.differences or account.accounted_count < account.accepted:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
