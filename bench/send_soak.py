"""`python -m bench.send_soak`: kill the server while it sends messages, and count what arrives.

Clients send by `messageSend`, each message with an idempotency key, and retry until the server
responds. A receiving server counts the messages of each recipient. Then, with PostgreSQL, one of
two servers is stopped for longer than its leases last, and continued. No message may be lost. A
message may arrive twice only if a server died between the end of the message and the commit of the
result. The sender requests success DSNs, and must receive one for each message.
"""

import asyncio
import re
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import orjson
import typer
import uvloop
from aiosmtpd.smtp import SMTP, Envelope
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import text

from bench.crashes.crash_rounds import PlannedKill, kill_process_group
from bench.load.http_client import BenchmarkTarget, request_json
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.compared_servers import start_postgres
from bench.servers.merganser_process import (
    MerganserServer,
    run_consistency_check,
    run_with_timeout,
    stop_process,
)
from bench.servers.ports import HOST, free_port
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

FAULT_POINTS = ("dot", "sent", "owed", "commit", "outside")
MAX_PASSES = {"dot": 20, "sent": 20, "owed": 20, "commit": 60, "outside": 30}  # by fault point
CLIENT_COUNT = 4
MAX_UNDELIVERED = 40  # messages that were accepted and have not arrived
POLL_INTERVAL = 0.02  # seconds
ROUND_TIMEOUT, QUEUE_TIMEOUT = 120.0, 240.0  # seconds until the server dies, and the queue is empty
RUN_TIMEOUT = 3600.0  # seconds
QUEUED_BEFORE_STOP = 60  # messages
SEND_MUTATION = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submissions { queueId } errors { message } } }"""
COUNT_OPEN = """SELECT count(*) FROM queue_entries
  WHERE state IN ('PENDING', 'DEFERRED') OR pending_dsn_action IS NOT NULL"""
SELECT_DSN_PREVIEWS = "SELECT preview FROM messages WHERE subject = 'Your message went on'"
DSN_RECIPIENT = re.compile(r"n[0-9]+@d[0-9]\.example")
SELECT_UNCONFIRMED = """SELECT recipient FROM queue_entries
  WHERE final_dot_at IS NOT NULL AND state IN ('PENDING', 'DEFERRED')"""


@dataclass
class CountingMailServer:
    """A mail server that accepts all messages and counts them by recipient."""

    port: int = field(default_factory=free_port)
    received: Counter[str] = field(default_factory=Counter)
    received_at: dict[str, float] = field(default_factory=dict)  # first copy, `time.monotonic`
    pause: float = 0.0  # seconds before each reply to the end of a message

    async def handle_DATA(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        """Accept a message."""
        await asyncio.sleep(self.pause)
        self.received.update(envelope.rcpt_tos)
        for recipient in envelope.rcpt_tos:
            self.received_at.setdefault(recipient, time.monotonic())
        return "250 2.0.0 Taken"

    @asynccontextmanager
    async def run_server(self) -> AsyncGenerator[None]:
        """Listen until the block ends."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(self, hostname="far"), HOST, self.port)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()


@dataclass
class SoakRecipients:
    """The recipients that clients send to, one message each."""

    accepted: set[str] = field(default_factory=set)
    unanswered: list[str] = field(default_factory=list)  # sent without a response
    count: int = 0

    def next(self) -> str:
        """Return a recipient of a message without a response, else a new one."""
        if self.unanswered:
            return self.unanswered.pop(0)
        self.count += 1
        return f"n{self.count}@d{self.count % 7}.example"


@dataclass(frozen=True, slots=True)
class SendRound:
    """How one run of the server ended."""

    planned_end: str  # "SIGTERM", or fault point and pass
    exit_code: int


@dataclass
class SendSoakResult:
    """What clients sent in a soak, what arrived, and the differences found."""

    rounds: list[SendRound] = field(default_factory=list)
    accepted_count: int = 0
    received: Counter[str] = field(default_factory=Counter)
    unconfirmed: set[str] = field(default_factory=set)  # sent, without a result, at a kill
    unconfirmed_seconds: dict[str, float] = field(default_factory=dict)  # from the reply 250
    logged_count: int = 0  # recipients that may have two copies, by the log
    success_dsns: Counter[str] = field(default_factory=Counter)  # by recipient
    differences: list[str] = field(default_factory=list)

    @property
    def duplicate_count(self) -> int:
        """The number of second and later copies."""
        return sum(copies - 1 for copies in self.received.values())


def plan_kills(count: int, seed: int) -> list[PlannedKill]:
    """Plan a kill at each fault point in turn, at a random pass."""
    random = Random(seed)  # noqa: S311 - no secret
    names = (FAULT_POINTS[number % len(FAULT_POINTS)] for number in range(count))
    return [PlannedKill(name, random.randint(1, MAX_PASSES[name])) for name in names]


async def run_send_soak(
    folder: Path,
    plan: Sequence[PlannedKill],
    *,
    report_round: Callable[[], object] = lambda: None,
) -> SendSoakResult:
    """Run a server in this empty folder, kill it as planned, then let it empty its queue."""
    receiver, recipients, result = CountingMailServer(), SoakRecipients(), SendSoakResult()
    server = MerganserServer(folder, extra_environment=_next_hop_setting(receiver))
    api_key = await create_account(Settings(data=folder))
    async with receiver.run_server():
        for planned_kill in plan:
            end = await _run_until_killed(server, receiver, recipients, api_key, planned_kill)
            result.rounds.append(
                SendRound(f"{planned_kill.fault_point}:{planned_kill.count}", end.exit_code)
            )
            unconfirmed = [row[0] for row in _select_rows(server, SELECT_UNCONFIRMED)]
            _add_unconfirmed(result, receiver, unconfirmed, end.died_at)
            report_round()
        process = await server.start()
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT):
                while recipients.unanswered:
                    await _send_message(server, api_key, recipients)
                while _select_rows(server, COUNT_OPEN) != [(0,)]:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(POLL_INTERVAL)
            exit_code = await stop_process(process)
        finally:
            await kill_process_group(process)
        result.rounds.append(SendRound("SIGTERM", exit_code))
        report_round()
    result.accepted_count, result.received = len(recipients.accepted), receiver.received
    result.logged_count = _count_logged_duplicates(server)
    result.success_dsns = _count_dsns(_select_rows(server, SELECT_DSN_PREVIEWS))
    result.differences = [
        *find_differences(result, recipients),
        *await run_consistency_check(server),
    ]
    return result


def _next_hop_setting(receiver: CountingMailServer) -> dict[str, str]:
    return {"MERGANSER_NEXT_HOP": f"smtp://{HOST}:{receiver.port}?tls=never"}


async def create_account(settings: Settings) -> str:
    """Create an account with an API key, and return the secret of the key."""
    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("soak", user_id=user.id)
        )
        return secret


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """The exit code of a server process, and when it ended."""

    exit_code: int
    died_at: float  # by `time.monotonic`


def _add_unconfirmed(
    result: SendSoakResult,
    receiver: CountingMailServer,
    recipients: Sequence[str],
    died_at: float,
) -> None:
    """Add recipients that may get a second copy, with the time since they got the first one."""
    for recipient in recipients:
        result.unconfirmed.add(recipient)
        if recipient in receiver.received_at:
            seconds = died_at - receiver.received_at[recipient]
            result.unconfirmed_seconds.setdefault(recipient, seconds)


async def _run_until_killed(
    server: MerganserServer,
    receiver: CountingMailServer,
    recipients: SoakRecipients,
    api_key: str,
    planned_kill: PlannedKill,
) -> ProcessEnd:
    """Run the server under load until it is killed."""
    process = await server.start(fault=planned_kill.fault_setting)
    count_before = receiver.received.total()

    async def kill_from_outside() -> None:
        if planned_kill.fault_point == "outside":
            while receiver.received.total() < count_before + planned_kill.count:  # noqa: ASYNC110
                await asyncio.sleep(0)
            process.kill()

    async def wait_for_end() -> ProcessEnd:
        return ProcessEnd(await process.wait(), time.monotonic())

    try:
        async with asyncio.timeout(ROUND_TIMEOUT):
            clients = [
                _send_until_ended(server, receiver, recipients, api_key, process)
                for _ in range(CLIENT_COUNT)
            ]
            end = asyncio.create_task(wait_for_end())
            await asyncio.gather(end, kill_from_outside(), *clients)
            return await end
    finally:
        await kill_process_group(process)


async def _send_until_ended(
    server: MerganserServer,
    receiver: CountingMailServer,
    recipients: SoakRecipients,
    api_key: str,
    process: asyncio.subprocess.Process,
) -> None:
    """Send messages one after another until the server process has ended."""
    while process.returncode is None:
        if len(recipients.accepted) - len(receiver.received) > MAX_UNDELIVERED:
            await asyncio.sleep(POLL_INTERVAL)
        with suppress(OSError, EOFError):  # the server was killed during the request
            await _send_message(server, api_key, recipients)


async def _send_message(server: MerganserServer, api_key: str, recipients: SoakRecipients) -> None:
    """Send a message. Without a response it is sent again later, with the same idempotency key."""
    recipient = recipients.next()
    values = {
        "to": [{"address": recipient}],
        "subject": f"Soak {recipient}",
        "text": "Hello.",
        "requestDsn": True,
        "options": {"idempotencyKey": recipient},
    }
    is_accepted = False
    try:
        body = {"query": SEND_MUTATION, "variables": {"input": values}}
        response = await request_json(
            BenchmarkTarget(server.http_port, 0, api_key), "/graphql", body
        )
        payload = response["data"]["messageSend"]
        if payload["errors"]:
            raise RuntimeError(f"refused: {payload['errors']}")
        is_accepted = True
    finally:
        if is_accepted:
            recipients.accepted.add(recipient)
        else:
            recipients.unanswered.append(recipient)


def _select_rows(server: MerganserServer, sql: str) -> list[tuple[Any, ...]]:
    with closing(
        sqlite3.connect(f"file:{server.data_folder / 'merganser.db'}?mode=ro", uri=True)
    ) as db:
        return db.execute(sql).fetchall()


def _count_dsns(rows: Sequence[Any]) -> Counter[str]:
    """Count the DSNs of each recipient from their previews."""
    return Counter(recipient for row in rows for recipient in set(DSN_RECIPIENT.findall(row[0])))


def _count_logged_duplicates(server: MerganserServer) -> int:
    """Return the number of recipients that may have two copies by the log."""
    lines = (server.data_folder / "server.log").read_text().splitlines()
    records = [orjson.loads(line) for line in lines if "Messages may be delivered twice" in line]
    return sum(record["recipients"] for record in records)


def find_differences(result: SendSoakResult, recipients: SoakRecipients) -> list[str]:
    """Return the differences between the messages that were accepted and those that arrived."""
    accepted, received = recipients.accepted, result.received
    differences = [
        f"{one} was accepted and has not arrived" for one in accepted if not received[one]
    ]
    differences += [
        f"{one} arrived, and was not accepted" for one in received if one not in accepted
    ]
    differences += [
        f"{recipient} received {copies} copies, though its result was recorded at each kill"
        for recipient, copies in received.items()
        if copies > 1 and recipient not in result.unconfirmed
    ]
    differences += [
        f"{recipient} was reported in DSNs {result.success_dsns[recipient]} times"
        for recipient in accepted | set(result.success_dsns)
        if result.success_dsns[recipient] != 1
    ]
    if result.duplicate_count > result.logged_count:
        differences.append(
            f"{result.duplicate_count} messages arrived twice, {result.logged_count} are in the log"
        )
    differences += [
        f"{soak_round.planned_end}: the server exited with {soak_round.exit_code}"
        for soak_round in result.rounds
        if soak_round.exit_code != (0 if soak_round.planned_end == "SIGTERM" else -signal.SIGKILL)
    ]
    return differences


async def run_stopped_server_soak(folder: Path) -> SendSoakResult:
    """Stop one of two servers with PostgreSQL for longer than its leases last, and continue it."""
    receiver, recipients = CountingMailServer(pause=3.0), SoakRecipients()
    result, url = SendSoakResult(), start_postgres(folder)
    servers = [
        MerganserServer(folder / "both", url, extra_environment=_next_hop_setting(receiver))
        for _ in range(2)
    ]  # with the same keys
    await asyncio.to_thread(servers[0].data_folder.mkdir)
    settings = Settings(data=servers[0].data_folder, database_url=url)
    api_key = await create_account(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(receiver.run_server())
        environment = await stack.enter_async_context(open_environment(settings))

        async def select_rows(sql: str) -> list[Any]:
            async with environment.database.engine.begin() as connection:
                result = await connection.execute(text(sql))
                return list(result.all()) if result.returns_rows else []

        first = await servers[0].start()
        stack.push_async_callback(kill_process_group, first)
        for _ in range(QUEUED_BEFORE_STOP):
            await _send_message(servers[0], api_key, recipients)
        await _wait_until(lambda: _has_rows(select_rows, SELECT_UNCONFIRMED))
        first.send_signal(signal.SIGSTOP)
        receiver.pause = 0.0
        stopped_at = time.monotonic()
        unconfirmed = [row[0] for row in await select_rows(SELECT_UNCONFIRMED)]
        _add_unconfirmed(result, receiver, unconfirmed, stopped_at)
        second = await servers[1].start()
        stack.push_async_callback(kill_process_group, second)
        await _wait_until(lambda: _is_count_zero(select_rows, COUNT_OPEN))
        first.send_signal(signal.SIGCONT)
        for _ in range(QUEUED_BEFORE_STOP):
            await _send_message(servers[1], api_key, recipients)
        await _wait_until(lambda: _is_count_zero(select_rows, COUNT_OPEN))
        await asyncio.sleep(1)  # the first server finishes the attempts that it had started
        for process in (first, second):
            result.rounds.append(SendRound("SIGTERM", await stop_process(process)))
        result.success_dsns = _count_dsns(await select_rows(SELECT_DSN_PREVIEWS))
    result.accepted_count, result.received = len(recipients.accepted), receiver.received
    result.logged_count = _count_logged_duplicates(servers[0])
    result.differences = find_differences(result, recipients)
    return result


def _format_range(seconds_by_recipient: Mapping[str, float]) -> str:
    """Return the shortest, longest and median time as text."""
    seconds = sorted(seconds_by_recipient.values()) or [0.0]
    median = seconds[len(seconds) // 2]
    return (
        f"{seconds[0]:.3f} to {seconds[-1]:.3f} s "
        f"(median {median:.3f} s, {len(seconds_by_recipient)})"
    )


RowSelector = Callable[[str], Awaitable[list[Any]]]


async def _has_rows(select_rows: RowSelector, sql: str) -> bool:
    return bool(await select_rows(sql))


async def _is_count_zero(select_rows: RowSelector, sql: str) -> bool:
    return bool((await select_rows(sql))[0][0] == 0)


async def _wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(QUEUE_TIMEOUT):
        while not await condition():  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(POLL_INTERVAL)


def main(
    kills: Annotated[int, typer.Option(min=0, help="Number of kills.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the times of the kills.")] = 1,
) -> None:
    """Kill the server under load, then suspend one of two for longer than its leases last."""
    console, results = Console(highlight=False, width=120), list[tuple[str, SendSoakResult]]()
    plan = plan_kills(kills, seed)

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory(prefix="merganser-sendsoak-") as folder,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("Killing the server", total=len(plan) + 2)
            for name in ("killed", "stopped"):
                await asyncio.to_thread((Path(folder) / name).mkdir)
            if plan:
                result = await run_send_soak(
                    Path(folder) / "killed", plan, report_round=lambda: bar.advance(task)
                )
                results.append((f"{kills} kills", result))
            result = await run_stopped_server_soak(Path(folder) / "stopped")
            results.append(("one server suspended", result))

    uvloop.run(run_with_timeout(work(), RUN_TIMEOUT))
    for name, result in results:
        console.print(
            f"{name}: {result.accepted_count} messages, {len(result.received)} arrived, "
            f"{result.duplicate_count} of them as duplicates; {len(result.unconfirmed)} had no "
            f"recorded result, {result.logged_count} of these are in the log; "
            f"{result.success_dsns.total()} DSNs of success; {len(result.differences)} differences."
        )
        range_text = _format_range(result.unconfirmed_seconds)
        console.print(f"  At the kills, a result was not recorded for {range_text}.")
        for line in result.differences:
            console.print(f"  {line}", markup=False)
    if any(result.differences for _, result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
