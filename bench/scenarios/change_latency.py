"""Measure how soon watchers of many accounts receive events, and their cost."""

import asyncio
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from bench.figures.goals import (
    CHANGE_RATE,
    CHANGE_TO_EVENT,
    DELIVERY_TO_EVENT,
    IDLE_SUBSCRIBER_MEMORY,
    SUBSCRIBERS_PREFIX,
)
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.http_client import (
    BenchmarkTarget,
    SequentialConnection,
    encode_post_request,
    open_connections,
)
from bench.load.lmtp_client import connect
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import create_user
from bench.scenarios.live_subscriptions import (
    CHANGES_SUBSCRIPTION,
    EVENT_TIMEOUT,
    LightSubscriber,
    open_subscribers,
)
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    MerganserServer,
    logged_errors,
    memory_of_process,
    run_until_exit,
    wait_until_idle,
)
from graph.types.global_ids import encode
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import open_environment, root_context
from merganser.server.sockets import raise_open_file_limit
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "live: event latency"
CONCURRENT_ACCOUNTS = 16
PAUSE_BETWEEN_MESSAGES = 0.03  # seconds
CLIENT_COUNT = 4  # that change flags
SPARE_OPEN_FILES = 200  # in addition to the sockets of watchers
FLAG_MUTATION = """mutation ($input: MessageUpdateInput!) {
  messageUpdate(input: $input) { updatedCount errors { message } } }"""


@dataclass(frozen=True, slots=True)
class LatencySize:
    """The extent of the measurement."""

    account_count: int = 500  # with one watcher each
    message_count: int = 500
    changes_per_second: int = 200  # changes per second
    seconds: float = 15.0  # of changes
    idle_count: int = 5000  # subscribers, spread over the accounts

    @property
    def step_count(self) -> int:
        """The number of steps of the progress bar."""
        return (
            self.account_count
            + self.message_count
            + int(self.changes_per_second * self.seconds)
            + self.idle_count
        )


@dataclass(frozen=True, slots=True)
class WatchedAccount:
    """The address, credential and a message of an account. The ID is a global ID."""

    address: str
    api_key: str = field(repr=False)
    message_id: str


@dataclass(frozen=True, slots=True)
class AccountWithWatcher:
    """An account with its target and its watcher."""

    account: WatchedAccount
    target: BenchmarkTarget
    watcher: LightSubscriber


AdvanceStep = Callable[[], None]


async def measure_latency(
    database_kind: DatabaseKind, folder: Path, size: LatencySize, progress: Progress
) -> list[MeasuredValue]:
    """Measure the memory of idle subscribers, then the latency of deliveries and changes.

    Raises RuntimeError if the limit of open files is too low.
    """
    raise_open_file_limit()
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < size.idle_count + SPARE_OPEN_FILES:
        raise RuntimeError(
            f"{size.idle_count} subscribers need as many open files; {most} are allowed"
        )
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "heard", url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    task = progress.add_task(TITLE, total=size.step_count)

    def advance() -> None:
        progress.advance(task)

    async with open_environment(settings, migrate=True) as environment:
        accounts = await create_accounts(environment, size.account_count, advance)
    async with run_until_exit(server.start) as pid:
        targets = [BenchmarkTarget(server.http_port, pid, account.api_key) for account in accounts]
        facts = await _measure_idle_memory(targets, size.idle_count)
        progress.advance(task, size.idle_count)
        watchers = await open_subscribers(targets, CHANGES_SUBSCRIPTION)
        crew = [AccountWithWatcher(*one) for one in zip(accounts, targets, watchers, strict=True)]
        await wait_until_idle(pid)
        facts += await _measure_delivery_latency(
            crew, server.lmtp_port, size.message_count, advance
        )
        await wait_until_idle(pid)
        facts += await _measure_change_latency(crew, size, advance)
        _disconnect(watchers)
    progress.remove_task(task)
    if problems := logged_errors(server.data_folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


async def create_accounts(
    environment: Environment, account_count: int, advance: AdvanceStep
) -> list[WatchedAccount]:
    """Create accounts, each with an API key and one message."""
    message = await received_messages.parse_storable_message(MessageGenerator().make_message(0))

    async def account(number: int) -> WatchedAccount:
        address = f"w{number}@bench.example"
        user = await create_user(environment, address)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("bench", user_id=user.id)
        )
        to = await address_resolution.load_recipient_below_limits(environment, address)
        stored = await received_messages.store_once_for_recipient(
            environment, message, to, "bob@example.com"
        )
        advance()
        return WatchedAccount(address, secret, encode("Message", stored.message_id))

    accounts = list[WatchedAccount]()
    for first in range(0, account_count, CONCURRENT_ACCOUNTS):
        numbers = range(first, min(first + CONCURRENT_ACCOUNTS, account_count))
        accounts += await asyncio.gather(*map(account, numbers))
    return accounts


def _disconnect(watchers: Sequence[LightSubscriber]) -> None:
    for watcher in watchers:
        watcher.transport.abort()


async def _measure_idle_memory(
    targets: Sequence[BenchmarkTarget], subscriber_count: int
) -> list[MeasuredValue]:
    """Return the memory of idle subscribers, spread over the accounts."""
    pid = targets[0].pid
    # the first subscriber causes imports
    _disconnect(await open_subscribers(targets[:1], CHANGES_SUBSCRIPTION))
    await wait_until_idle(pid)
    before, _ = memory_of_process(pid)
    subscribers = await open_subscribers(
        [targets[n % len(targets)] for n in range(subscriber_count)], CHANGES_SUBSCRIPTION
    )
    await wait_until_idle(pid)
    now, _ = memory_of_process(pid)
    _disconnect(subscribers)
    await wait_until_idle(pid)
    return [
        MeasuredValue(
            f"{subscriber_count:,} {IDLE_SUBSCRIBER_MEMORY}", (now - before) / 1024, "MiB"
        )
    ]


async def _measure_delivery_latency(
    watched_accounts: Sequence[AccountWithWatcher],
    lmtp_port: int,
    message_count: int,
    advance: AdvanceStep,
) -> list[MeasuredValue]:
    """Measure the time from the 250 of a delivery to its event, account by account."""
    lmtp_connection, writer = await connect(lmtp_port), MessageGenerator(seed=2)
    latencies = list[float]()
    for number in range(message_count):
        one, raw = watched_accounts[number % len(watched_accounts)], writer.make_message(number)
        coming = one.watcher.expect_event()
        reply = await lmtp_connection.deliver(one.account.address, raw)
        answered = time.perf_counter()
        if not reply.startswith("250"):
            raise RuntimeError(f"not delivered: {reply}")
        async with asyncio.timeout(EVENT_TIMEOUT):
            latencies.append(await coming - answered)
        if b"MESSAGE_RECEIVED" not in one.watcher.event_data:
            raise RuntimeError(f"not the event of a message: {one.watcher.event_data!r}")
        advance()
        await asyncio.sleep(PAUSE_BETWEEN_MESSAGES)
    await lmtp_connection.close()
    return _latency_values(
        f"{len(watched_accounts)} {SUBSCRIBERS_PREFIX}{DELIVERY_TO_EVENT}", latencies
    )


def _latency_values(name: str, seconds: Sequence[float]) -> list[MeasuredValue]:
    """Return percentiles of latencies in ms; events before the reply count as 0."""
    late = [max(second, 0.0) * 1e3 for second in seconds]
    return [
        MeasuredValue(f"{name}, p50", percentile(late, 0.5), "ms"),
        MeasuredValue(f"{name}, p99", percentile(late, 0.99), "ms"),
        MeasuredValue(f"{name}, maximum of {len(late):,}", max(late), "ms"),
    ]


async def _measure_change_latency(
    watched_accounts: Sequence[AccountWithWatcher], size: LatencySize, advance: AdvanceStep
) -> list[MeasuredValue]:
    """Measure the time from the response of a mutation to its event, at a steady rate."""
    numbers = iter(range(int(size.changes_per_second * size.seconds)))
    started_at = time.perf_counter()
    measured_changes = list[
        tuple[float, float, asyncio.Future[float]]
    ]()  # sent, answered, event received

    async def client(connection: SequentialConnection) -> None:
        for number in numbers:  # shared by all clients
            account = watched_accounts[number % len(watched_accounts)]
            is_second_pass = number // len(watched_accounts) % 2
            request = _encode_flag_request(account, is_flagged=not is_second_pass)
            await asyncio.sleep(
                max(started_at + number / size.changes_per_second - time.perf_counter(), 0)
            )
            event_received, sent_at = account.watcher.expect_event(), time.perf_counter()
            data, answered_at = await connection.request_data(request)
            if int(data["messageUpdate"]["updatedCount"]) != 1:
                raise RuntimeError(f"nothing was changed: {data}")
            measured_changes.append((sent_at, answered_at, event_received))
            advance()

    connections = await open_connections(watched_accounts[0].target, CLIENT_COUNT)
    await asyncio.gather(*map(client, connections))
    took = time.perf_counter() - started_at
    async with asyncio.timeout(EVENT_TIMEOUT):
        event_times = await asyncio.gather(
            *(event_received for _, _, event_received in measured_changes)
        )
    for connection in connections:
        connection.close()
    after = [
        at - answered_at
        for at, (_, answered_at, _) in zip(event_times, measured_changes, strict=True)
    ]
    latencies_of_run = [
        at - sent_at for at, (sent_at, _, _) in zip(event_times, measured_changes, strict=True)
    ]
    name = f"{len(watched_accounts)} {SUBSCRIBERS_PREFIX.strip()}"
    return [
        MeasuredValue(
            f"{name} {CHANGE_RATE}, {size.changes_per_second} requested",
            len(measured_changes) / took,
            "",
        ),
        *_latency_values(f"{name} {CHANGE_TO_EVENT}", after),
        MeasuredValue(
            f"{name} from the request of a mutation to the event, p50",
            percentile(latencies_of_run, 0.5) * 1e3,
            "ms",
        ),
        MeasuredValue(
            f"{name} from the request of a mutation to the event, p99",
            percentile(latencies_of_run, 0.99) * 1e3,
            "ms",
        ),
    ]


def _encode_flag_request(account: AccountWithWatcher, *, is_flagged: bool) -> bytes:
    parameters = {"select": {"ids": [account.account.message_id]}, "set": {"flagged": is_flagged}}
    return encode_post_request(
        account.target, "/graphql", {"query": FLAG_MUTATION, "variables": {"input": parameters}}
    )
