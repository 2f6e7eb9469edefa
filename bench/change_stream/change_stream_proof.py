"""Prove that no change is lost: a follower of an account knows what its database contains."""

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlmodel import col

from bench.change_stream import account_replica
from bench.change_stream.follow_transports import AccountEndpoint
from bench.change_stream.followers import CounterWatcher, StreamWatcher, create_watchers
from bench.change_stream.random_writers import RandomWriter, make_message
from bench.servers.bus_servers import InterruptibleBus
from bench.servers.merganser_process import MerganserServer, run_consistency_check, stop_process
from graph.types.global_ids import decode, encode
from mail.maintenance import housekeeping
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.commands.domains import domain_operations
from merganser.commands.users import user_operations
from merganser.commands.users.user_operations import ApiKeyRequest
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.admin.tasks import Task
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.users.creation.create import NewUser
from resolvers.users.limit_values import Unlimited

USERNAMES = ("ada", "bob")
INITIAL_MESSAGES = 100  # messages per account
MAX_FOLLOWER_BACKLOG = 500  # changes
EVENTS_AFTER_TRIM = 1500  # changes left in a trimmed journal
QUIET_SECONDS = 1.0  # seconds without a change that count as the end
TIMEOUT = 120.0  # seconds
MAX_START_ATTEMPTS = 5  # the database of a killed server may be locked for a moment
EXPECTED_LOG_EVENTS = (  # log events that kills cause
    "The first process has ended; stopping",
    "Process ended; restarting it",
)
MAX_SHOWN_DIFFERENCES = 5  # per watcher
DISTURBANCES = ("cut", "mend", "kill", "trim", "cut", "first", "mend", "one")

ProgressReporter = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ProofPlan:
    """The extent of one proof."""

    change_count: int
    seed: int = 1
    disturbances: Sequence[str] = DISTURBANCES  # disturbances, in this order
    writer_count: int = 8
    watchers_per_transport: int = 3  # per transport
    max_seconds: float = 300.0  # seconds, of the writing


@dataclass
class ProofResult:
    """The result of one proof."""

    seed: int
    change_count: int = 0
    # operations of the writers and disturbances
    operation_counts: Counter[str] = field(default_factory=Counter)
    watchers: list[StreamWatcher] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def ineffective_share(self) -> float:
        """The share of requests that were refused, interrupted or only validated."""
        names = ("tried", "refused", "broken off")
        counts_by_outcome = {
            name: many for name, many in self.operation_counts.items() if ": " in name
        }
        some = sum(many for name, many in counts_by_outcome.items() if name.endswith(names))
        return some / max(1, sum(counts_by_outcome.values()))

    def __str__(self) -> str:
        """Return a summary in one paragraph."""
        resync_reasons = Counter(
            reason for watcher in self.watchers for reason in watcher.resync_reasons
        )
        return (
            f"seed {self.seed}: {self.change_count} changes, {self.ineffective_share:.0%} of the "
            f"requests changed nothing; {len(self.watchers)} subscribers received "
            f"{sum(watcher.event_count for watcher in self.watchers)} events, connected "
            f"{sum(watcher.connection_count for watcher in self.watchers)} times, continued from "
            "their stored state "
            f"{sum(watcher.restart_count for watcher in self.watchers)} times, "
            f"resynchronized {dict(resync_reasons)}; "
            f"{len(self.differences)} differences."
        )


@dataclass
class ProofServer:
    """A server with its bus and accounts that is killed and started again."""

    merganser: MerganserServer
    bus: InterruptibleBus
    environment: Environment
    user_ids: list[int]
    api_keys: list[str]
    root_api_key: str
    process: asyncio.subprocess.Process | None = None

    def account_endpoint(self, index: int) -> AccountEndpoint:
        """Return the endpoint of an account."""
        return AccountEndpoint(
            self.merganser.http_port, self.api_keys[index], encode("User", self.user_ids[index])
        )

    async def start_process(self) -> None:
        """Start the server. Repeats it while the database of a killed one is locked."""
        for left in reversed(range(MAX_START_ATTEMPTS)):
            try:
                self.process = await self.merganser.start()
            except RuntimeError:
                if not left:
                    raise
                await asyncio.sleep(0.3)
            else:
                return

    async def kill_processes(self, *, only_first: bool = False) -> None:
        """Kill the server with SIGKILL.

        Of several processes all, or the first, after which all end.
        """
        if self.process:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            if not only_first:
                for pid in _process_ids_of_session(self.process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(TIMEOUT):
                while _process_ids_of_session(self.process.pid):  # noqa: ASYNC110 - processes send no wake-up
                    await asyncio.sleep(0.02)
            self.process = None

    async def kill_one_process(self) -> None:
        """Kill one child process; restart the server if it has none."""
        children = (
            _child_process_ids(self.process.pid)
            if self.process and self.merganser.serve_arguments
            else []
        )
        if children:
            os.kill(children[0], signal.SIGKILL)
            return
        await self.kill_processes()
        await self.start_process()

    async def read_event_numbers(self) -> list[int]:
        """Return the number of the newest event of each account."""
        return [
            (await account_replica.read_stream_numbers(self.environment.database, user_id))[0]
            for user_id in self.user_ids
        ]


def _process_ids_of_session(session_id: int) -> list[int]:
    """Return the processes of the session that this process leads."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _parent, _group, session = path.read_text().rpartition(") ")[2].split()[:4]
            if int(session) == session_id and state != "Z":
                found.append(int(path.parent.name))
    return found


def _child_process_ids(pid: int) -> list[int]:
    """Return the child processes of a process."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def settings_for_command(server: MerganserServer, **extra: Any) -> Settings:
    """Return settings for a command that uses the database of a server."""
    url: dict[str, Any] = {"database_url": server.database_url} if server.database_url else {}
    return Settings(data=server.data_folder, **url, **extra)


async def prove_change_stream(
    server: MerganserServer,
    bus: InterruptibleBus,
    plan: ProofPlan,
    *,
    report_progress: ProgressReporter = lambda _: None,
) -> ProofResult:
    """Run writers, watchers and disturbances on an empty folder. Returns the differences."""
    server.extra_environment |= {
        "MERGANSER_SUBSCRIPTIONS_MAX_LAG_EVENTS": str(MAX_FOLLOWER_BACKLOG)
    }
    async with open_environment(settings_for_command(server), migrate=True) as environment:
        proof_server = await _create_accounts(server, bus, environment)
        try:
            await proof_server.start_process()
            verdict = await _run_writers_and_watchers(proof_server, plan, report_progress)
            verdict.differences += await _stop_and_find_errors(proof_server)
        finally:
            await proof_server.kill_processes()
    verdict.differences += await run_consistency_check(server)
    return verdict


async def _create_accounts(
    server: MerganserServer, bus: InterruptibleBus, environment: Environment
) -> ProofServer:
    """Create the accounts with their first messages."""
    users, secrets = list[int](), list[str]()
    await domain_operations.create_domain(environment, "example.org", {}, creates_dkim_key=False)
    for name in USERNAMES:
        new = NewUser(
            name, address=f"{name}@example.org", password_disabled=True, quota=Unlimited.UNLIMITED
        )
        users.append(decode("User", (await user_operations.create_user(environment, new))[0]))
        secrets.append(
            (await user_operations.create_api_key(environment, ApiKeyRequest(name, name)))[1]
        )
    root = (
        await user_operations.create_api_key(environment, ApiKeyRequest("root", role=Role.ROOT))
    )[1]
    for nth, name in itertools.product(range(INITIAL_MESSAGES), USERNAMES):
        to = await address_resolution.load_recipient_below_limits(
            environment, f"{name}@example.org"
        )
        mail = await received_messages.parse_storable_message(make_message(f"{name} {nth}"))
        await received_messages.store_once_for_recipient(environment, mail, to, "carol@example.com")
    return ProofServer(server, bus, environment, users, secrets, root)


async def _run_writers_and_watchers(
    proof_server: ProofServer, plan: ProofPlan, report_progress: ProgressReporter
) -> ProofResult:
    """Run writers and watchers, and compare the replicas with the database at the end."""
    random = Random(plan.seed)  # noqa: S311 - no secret
    result, indexes = ProofResult(plan.seed), range(len(USERNAMES))
    endpoints = [proof_server.account_endpoint(nth) for nth in indexes]
    result.watchers = create_watchers(
        endpoints, proof_server.root_api_key, plan.watchers_per_transport, plan.seed
    )
    counter_watchers = [
        CounterWatcher(f"counters of {name}", endpoint, Random(f"{plan.seed}.{name}"))  # noqa: S311
        for name, endpoint in zip(USERNAMES, endpoints, strict=True)
    ]
    addresses = [f"{name}@example.org" for name in USERNAMES]
    writers = [
        RandomWriter(
            endpoints, addresses, proof_server.merganser.lmtp_port,
            Random(f"{plan.seed}.w{nth}"),  # noqa: S311 - no secret
            name=f"w{nth}",
        )
        for nth in range(plan.writer_count)
    ]  # fmt: skip
    followers: list[StreamWatcher | CounterWatcher] = [*result.watchers, *counter_watchers]
    tasks = [asyncio.create_task(follower.follow()) for follower in followers]
    writer_tasks = [asyncio.create_task(writer.write()) for writer in writers]
    initial_event_count = sum(await proof_server.read_event_numbers())
    try:
        result.differences += await _disturb_while_writing(
            proof_server,
            plan,
            random,
            RunningWriters(writer_tasks, initial_event_count, report_progress),
            result,
        )
        result.differences += await _cancel_tasks(writer_tasks)
        await proof_server.bus.restore()
        targets = await _wait_until_no_changes(proof_server)
        result.change_count = sum(targets) - initial_event_count
        for follower in followers:
            follower.stays_connected = True
        await _wait_until(lambda: _have_all_events(proof_server, result.watchers))
        result.differences += await _find_differences(
            proof_server, result.watchers, counter_watchers
        )
    finally:
        await _cancel_tasks(writer_tasks)
        task_errors = await _cancel_tasks(tasks)
    result.differences += task_errors
    result.operation_counts += sum((writer.operation_counts for writer in writers), Counter[str]())
    return result


async def _cancel_tasks(tasks: Sequence[asyncio.Task[None]]) -> list[str]:
    """Cancel tasks, and return the errors of those that ended before."""
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [repr(end) for end in ends if isinstance(end, Exception)]


@dataclass(frozen=True, slots=True)
class RunningWriters:
    """The tasks of the writers, with the event count at their start."""

    tasks: list[asyncio.Task[None]]
    initial_event_count: int
    report_progress: ProgressReporter


async def _disturb_while_writing(
    proof_server: ProofServer,
    plan: ProofPlan,
    random: Random,
    running_writers: RunningWriters,
    result: ProofResult,
) -> list[str]:
    """Apply the disturbances one after another until there are enough changes.

    Returns errors.
    """
    pending = list(plan.disturbances)
    interval = plan.change_count / (len(pending) + 1)
    deadline = time.monotonic() + plan.max_seconds
    count = 0
    while pending or count < plan.change_count:
        if time.monotonic() > deadline:
            return [f"{count} changes in {plan.max_seconds} s: {plan.change_count} were to be made"]
        if any(task.done() for task in running_writers.tasks):
            return ["a writer has ended by itself"]
        await asyncio.sleep(random.uniform(0.05, 0.15))
        event_count = sum(await proof_server.read_event_numbers())
        count = event_count - running_writers.initial_event_count
        running_writers.report_progress(min(count, plan.change_count))
        if pending and count >= (len(plan.disturbances) + 1 - len(pending)) * interval:
            disturbance = pending.pop(0)
            result.operation_counts[disturbance] += 1
            await _apply_disturbance(proof_server, disturbance)
    return []


async def _apply_disturbance(proof_server: ProofServer, disturbance: str) -> None:
    """Apply one disturbance by its name."""
    if disturbance == "cut":
        await proof_server.bus.interrupt()
    elif disturbance == "mend":
        await proof_server.bus.restore()
    elif disturbance in ("kill", "first"):
        await proof_server.kill_processes(only_first=disturbance == "first")
        await proof_server.start_process()
    elif disturbance == "one":
        await proof_server.kill_one_process()
    elif disturbance == "trim":
        async with open_environment(
            settings_for_command(proof_server.merganser, journal_max_events=EVENTS_AFTER_TRIM)
        ) as environment:
            await housekeeping.run_housekeeping_round(environment, sweep=False)


async def _wait_until_no_changes(proof_server: ProofServer) -> list[int]:
    """Wait until no task, snooze or change is left. Returns the newest event of each account."""
    read = proof_server.environment.database.read
    tasks = select(func.count()).select_from(Task).where(col(Task.finished_at).is_(None))
    snoozed = select(func.count()).select_from(Message)
    snoozed = snoozed.where(col(Message.snoozed_until).is_not(None))
    snoozed = snoozed.where(col(Message.deleted_at).is_(None))
    async with asyncio.timeout(TIMEOUT):
        since, last_numbers = time.monotonic(), await proof_server.read_event_numbers()
        while True:
            await asyncio.sleep(0.1)
            now = await proof_server.read_event_numbers()
            ((open_tasks,),), ((asleep,),) = await read(tasks), await read(snoozed)
            if now != last_numbers or open_tasks or asleep:
                since, last_numbers = time.monotonic(), now
            if time.monotonic() - since >= QUIET_SECONDS:
                return now


async def _wait_until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition is true, or the timeout is over."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.05)


async def _have_all_events(proof_server: ProofServer, watchers: Iterable[StreamWatcher]) -> bool:
    """True if the watchers have the newest events.

    The numbers are read anew, since a busy server can commit a request of a stopped writer late.
    """
    user_ids = [encode("User", user_id) for user_id in proof_server.user_ids]
    numbers = dict[str, int](zip(user_ids, await proof_server.read_event_numbers(), strict=True))
    return all(watcher.event_number >= numbers[watcher.endpoint.user_id] for watcher in watchers)


async def _find_differences(
    proof_server: ProofServer,
    watchers: Iterable[StreamWatcher],
    counter_watchers: Sequence[CounterWatcher],
) -> list[str]:
    """Return the differences between the watchers and the database."""
    differences, database = list[str](), proof_server.environment.database
    for nth, user in enumerate(proof_server.user_ids):
        stored_state = await account_replica.read_account_state(database, user)
        last, _ = await account_replica.read_stream_numbers(database, user)
        differences += [
            f"{USERNAMES[nth]}: {gap}"
            for gap in await account_replica.find_journal_gaps(database, user)
        ]
        for watcher in watchers:
            if watcher.endpoint.user_id == encode("User", user):
                differences += watcher.all_problems
                differences += await _differences_of_watcher(
                    proof_server, watcher, stored_state, (user, last)
                )
        counter_watcher = counter_watchers[nth]
        stored_counters = {key: counts for key, (_, *counts) in stored_state[0].items()}
        await _wait_until(lambda: _has_counters(counter_watcher, stored_counters))  # noqa: B023 - it is over before the next
        differences += counter_watcher.problems
        for key, counts in stored_counters.items():
            if list(counter_watcher.counters.get(key, ())) != counts:
                watched = counter_watcher.counters.get(key)
                differences.append(
                    f"{counter_watcher.name}: {key} has {counts}, received {watched}"
                )
    return differences


def _has_counters(watcher: CounterWatcher, counters_by_mailbox: dict[str, list[int]]) -> bool:
    """True if a watcher has received these counters."""
    return all(
        list(watcher.counters.get(key, ())) == counts for key, counts in counters_by_mailbox.items()
    )


async def _differences_of_watcher(
    proof_server: ProofServer,
    watcher: StreamWatcher,
    stored_state: account_replica.AccountState,
    user_and_last_event: tuple[int, int],
) -> list[str]:
    """Return the differences of one watcher with the events that concern them."""
    user, last = user_and_last_event
    if watcher.replica is None or watcher.event_number != last:
        return [f"{watcher.name} has the events up to {watcher.event_number} of {last}"]
    wrong = account_replica.differences_by_id(watcher.replica.account_state, stored_state)
    some = dict(list(wrong.items())[:MAX_SHOWN_DIFFERENCES])
    events = await account_replica.events_by_object_id(
        proof_server.environment.database, user, some
    )
    found = []
    for key, text in some.items():
        found.append(f"{watcher.name} (since {watcher.replica.exact_from}): {text}")
        found += [f"    {event}" for event in events[key]]
    if len(wrong) > MAX_SHOWN_DIFFERENCES:
        found.append(f"{watcher.name}: {len(wrong) - MAX_SHOWN_DIFFERENCES} more")
    return found


async def _stop_and_find_errors(proof_server: ProofServer) -> list[str]:
    """Stop the server, and return its unexpected log entries."""
    if proof_server.process is None:
        return ["the server did not run at the end"]
    code = await stop_process(proof_server.process)
    found = [f"the server exited with {code}"] if code else []
    for line in (proof_server.merganser.data_folder / "server.log").read_text().splitlines():
        fact = orjson.loads(line) if line.startswith("{") else {"level": "error", "event": line}
        if fact["event"] in EXPECTED_LOG_EVENTS:
            continue
        if fact["level"] == "error" or "traceback" in fact:
            found.append(f"the server logged {line[-1500:]}")
    return found[:MAX_SHOWN_DIFFERENCES]
