"""Measure what the log entries of a delivery cost: CPU with and without them, in turn.

Messages are delivered in this process by the pipeline of LMTP. A round ends when its steps of the
delivery trace and its log entries are written, so that the CPU of their writers counts, too. The
rounds alternate. The median of the ratios of neighbouring rounds counts, since other load affects
both alike.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from bench.figures.goals import DELIVERY_LOG_SHARE
from bench.figures.measurements import MeasuredValue
from bench.load.message_generator import endless_messages
from bench.load.sample_account import create_user
from bench.scenarios.journal_cost import postgres_process_ids
from bench.scenarios.queue_claims import gc_as_in_server
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import MerganserServer, cpu_seconds_precise
from mail.delivery.listener_backend import LocalBackend
from mail.storage import message_trace
from merganser.server.environment_factory import open_environment
from merganser.server.observability.log_store import create_log_store, record_logs_in_log_store
from models.runtime.environment import CommittedOptions, Environment

TITLE = "operations: log entries of a delivery"
MESSAGE_SIZE = 20_000  # bytes
ACCOUNT_COUNT = 8  # that get messages concurrently, to avoid lock waits
MESSAGES_PER_ACCOUNT = 15  # of a round: as many together as a busy server delivers in 0.2 s
WARM_UP_ROUNDS = 4
ROUNDS = 24  # with entries, and as many without them
SENDER = "bob@example.com"


async def measure_delivery_log(
    database_kind: DatabaseKind, folder: Path, rounds: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the CPU of a delivery with log entries, and how much more it is than without."""
    url = start_database(database_kind, folder)
    settings = server_settings(MerganserServer(folder / "data", url))
    task = progress.add_task(TITLE, total=2 * (WARM_UP_ROUNDS + rounds))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    async with open_environment(settings, migrate=True) as environment:
        environment.logs.store = create_log_store(settings, environment.database)
        with record_logs_in_log_store(environment), gc_as_in_server():
            deliveries = await _DeliveryRounds.create(environment)
            for number in range(2 * (WARM_UP_ROUNDS + rounds)):
                if number == 2 * WARM_UP_ROUNDS:  # all connections are open now
                    deliveries.backend_pids = await postgres_process_ids(environment)
                has_entries = number % 4 in {0, 3}  # each order equally often
                _set_levels(environment, "INFO" if has_entries else "OFF")
                cpu = await deliveries.measure_round()
                if number >= 2 * WARM_UP_ROUNDS:
                    seconds[has_entries].append(cpu)
                progress.advance(task)
        await environment.logs.stop()
    progress.remove_task(task)
    # of neighbouring rounds, which the load of other programs affects alike
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    message_count = ACCOUNT_COUNT * MESSAGES_PER_ACCOUNT
    return [
        MeasuredValue(
            "CPU of a delivery with log entries",
            statistics.median(seconds[True]) / message_count * 1e6,
            "µs",
        ),
        MeasuredValue(DELIVERY_LOG_SHARE, 100 * (statistics.median(ratios) - 1), "%"),
    ]


def _set_levels(environment: Environment, levels: str) -> None:
    """Change the setting `logs.levels`."""
    options = replace(environment.options, logs_levels=levels)
    committed = CommittedOptions(options, environment.options_position)
    environment.use_options_unless_outdated(committed)


class _DeliveryRounds:
    """Deliveries of new messages to the same accounts."""

    def __init__(
        self,
        environment: Environment,
        addresses: Sequence[str],
    ) -> None:
        self.backend_pids: Sequence[int] = ()  # of PostgreSQL
        self._environment = environment
        self._addresses = addresses
        self._backend = LocalBackend(environment)
        self._messages = endless_messages(MESSAGE_SIZE)

    @classmethod
    async def create(cls, environment: Environment) -> "_DeliveryRounds":
        """Create the accounts."""
        addresses = [f"user{number}@example.org" for number in range(ACCOUNT_COUNT)]
        for address in addresses:
            await create_user(environment, address)
        return cls(environment, addresses)

    async def measure_round(self) -> float:
        """Deliver the messages of a round, and return the CPU seconds."""
        messages = [
            [next(self._messages) for _ in range(MESSAGES_PER_ACCOUNT)] for _ in self._addresses
        ]
        before = self._cpu_seconds()
        await asyncio.gather(*map(self._deliver_to_account, self._addresses, messages))
        await message_trace.write_pending_trace_steps(self._environment)
        await self._environment.logs.flush_within_timeout()
        return self._cpu_seconds() - before

    async def _deliver_to_account(self, address: str, messages: list[bytes]) -> None:
        for message in messages:
            accepted = await self._backend.accept_recipient(address, SENDER)
            await self._backend.deliver(message, [accepted], SENDER)

    def _cpu_seconds(self) -> float:
        return sum(map(cpu_seconds_precise, self.backend_pids)) + time.process_time()
