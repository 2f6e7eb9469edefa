"""Write the increments of a process, and sampled values, to the stored statistics."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import case, func, select, text
from sqlmodel import col

from models.domains.tables import DomainTotal
from models.metrics.tables import (
    LONG_STEP,
    SAMPLE_PERIOD,
    SAMPLED_COLUMNS,
    SHORT_STEP,
    SUMMED_COLUMNS,
    StatisticStep,
)
from models.metrics.usage_recorder import (
    API_OPERATIONS,
    COUNTER_NAMES,
    FIRST_BUCKET,
    PLATFORM_ID,
    POSITIONS,
    StepKey,
    UsageRow,
)
from models.queue.tables import IS_OPEN, QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.server_processes import ServerProcess
from models.store.cancel_safety import await_to_end
from models.store.columns import core_table, insert_with_conflict
from models.users.tables import User
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.metrics.usage_settlement import (
    add_user_counts_to_domains,
    load_domain_ids_by_user,
)

KEY_COLUMNS = ("domain_id", "step_seconds", "started_at")
_SampleKey = tuple[int, int]  # domain, and length of the step
_Sample = tuple[int, int, int]  # values of SAMPLED_COLUMNS
# The position of each summed column in a row of increments.
COLUMN_POSITIONS: Mapping[str, int] = {
    **{name.value.lower(): POSITIONS[name] for name in COUNTER_NAMES},
    "api_operations": API_OPERATIONS,
    **{
        name: FIRST_BUCKET + int(name.removeprefix("latency_"))
        for name in SUMMED_COLUMNS
        if name.startswith("latency_")
    },
}


async def add_increments_to_stored_steps(environment: Environment, step_start: int) -> None:
    """Add the increments of this process to the stored steps, all in one statement.

    Counts that are not yet settled belong to the step that begins at `step_start`. If the
    database can't be written, the increments are kept, and the error is raised.
    """
    await add_user_counts_to_domains(environment, step_start)
    environment.usage.mark_step_as_running(step_start)
    rows = environment.usage.take_step_rows()
    values = _values_of_both_steps(rows)
    statement = _add_statement(environment.database.dialect)

    def add_rows(transaction: DatabaseTransaction) -> None:
        transaction.connection.execute(statement, values)

    async def write_or_restore_increments() -> None:
        try:
            await environment.run_transaction(add_rows)
        except Exception:
            environment.usage.add_step_rows(rows)
            raise

    # a cancelled commit would leave it unknown
    await await_to_end(asyncio.ensure_future(write_or_restore_increments()))


def _values_of_both_steps(rows: Mapping[StepKey, UsageRow]) -> list[dict[str, int]]:
    """Return the values of rows for the short and the long step, in the order of the key.

    The order is the same in all processes, so that they can't deadlock.
    """
    values_by_key: dict[tuple[int, int, int], dict[str, int]] = {}
    for (domain_id, step_start), row in rows.items():
        for step in (SHORT_STEP, LONG_STEP):
            key = (domain_id, step, step_start - step_start % step)
            values = values_by_key.setdefault(
                key, dict.fromkeys(SUMMED_COLUMNS, 0) | dict(zip(KEY_COLUMNS, key, strict=True))
            )
            for name in SUMMED_COLUMNS:
                values[name] += row[COLUMN_POSITIONS[name]]
    return [values_by_key[key] for key in sorted(values_by_key)]


@cache
def _add_statement(dialect: str) -> Any:
    """Return the statement that inserts steps or adds their sums to stored ones."""
    insert = insert_with_conflict(dialect, StatisticStep)
    columns = core_table(StatisticStep).c
    return insert.on_conflict_do_update(
        index_elements=[columns[name] for name in KEY_COLUMNS],
        set_={name: columns[name] + insert.excluded[name] for name in SUMMED_COLUMNS},
    )


@cache
def _sample_statement(dialect: str) -> Any:
    """Return the upsert of sampled values that keeps the highest value of a step."""
    insert = insert_with_conflict(dialect, StatisticStep)
    columns = core_table(StatisticStep).c
    highest: dict[str, Any] = {
        name: case(
            (insert.excluded[name] <= columns[name], columns[name]),
            else_=func.coalesce(insert.excluded[name], columns[name]),
        )
        for name in SAMPLED_COLUMNS
    }
    return insert.on_conflict_do_update(
        index_elements=[columns[name] for name in KEY_COLUMNS], set_=highest
    )


async def _answer_active_users(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    recorder = environment.usage
    return {"userIds": [list(recorder.active_user_ids(ms)) for ms in arguments["periods"]]}


ACTIVE_USERS = ProcessRequestKind("METRICS_ACTIVE_USERS", _answer_active_users)


async def is_first_server_process(environment: Environment) -> bool:
    """True if this is the oldest of the server processes that run, or if none is registered."""
    statement = select(func.min(col(ServerProcess.id))).where(col(ServerProcess.answers_requests))
    (first_id,) = (await environment.database.read(statement))[0]
    return first_id in (None, environment.process.id)


class StatisticSampler:
    """Samples storage, active users and queue length for the statistics, once a minute.

    The highest values of a step are stored. A domain has no row in a step with the same values as
    before: readers take those of the last row of the day. The first sample of a day is complete.
    """

    def __init__(self) -> None:
        self._day_start = 0
        self._highest: dict[_SampleKey, _Sample] = {}  # of the current steps
        self._step_starts: dict[int, int] = {}  # by the length of the step
        self._written: dict[_SampleKey, _Sample] = {}

    async def sample_and_write(self, environment: Environment, step_start: int) -> None:
        """Sample the values of the step that begins at this time, and write them at once."""
        starts = {SHORT_STEP: step_start, LONG_STEP: step_start - step_start % LONG_STEP}
        now = environment.now().timestamp()
        periods = [max(0.0, now - start) for start in starts.values()]
        storage = await _load_storage_by_domain(environment)
        queue_lengths = await _load_queue_lengths_by_domain(environment)
        counts_of_steps = await _count_active_users_by_domain(environment, periods)
        samples = {
            (domain_id, step): (
                storage.get(domain_id, 0),
                counts.get(domain_id, 0),
                queue_lengths.get(domain_id, 0),
            )
            for step, counts in zip(starts, counts_of_steps, strict=True)
            for domain_id in {*storage, *queue_lengths, *counts}
        }
        self._forget_ended_steps_and_days(starts, step_start - step_start % SAMPLE_PERIOD)
        changed = self._update_highest_and_return_unwritten(samples)
        values = [
            dict.fromkeys(SUMMED_COLUMNS, 0)
            | dict(zip(KEY_COLUMNS, (domain_id, step, starts[step]), strict=True))
            | dict(zip(SAMPLED_COLUMNS, sample, strict=True))
            for (domain_id, step), sample in sorted(changed.items())
        ]
        statement = _sample_statement(environment.database.dialect)
        await environment.run_transaction(
            lambda transaction: transaction.connection.execute(statement, values)
        )
        self._written |= changed

    def _forget_ended_steps_and_days(self, starts: dict[int, int], day_start: int) -> None:
        """Forget the highest values of steps that have ended, and what was written yesterday."""
        if day_start != self._day_start:
            self._day_start, self._written = day_start, {}
        ended = {step for step, start in starts.items() if self._step_starts.get(step) != start}
        self._highest = {
            key: sample for key, sample in self._highest.items() if key[1] not in ended
        }
        self._step_starts = starts

    def _update_highest_and_return_unwritten(
        self, samples: Mapping[_SampleKey, _Sample]
    ) -> dict[_SampleKey, _Sample]:
        """Update the highest values, and return those that are not yet written."""
        for key, (storage, active_users, queue_length) in samples.items():
            before = self._highest.get(key, (0, 0, 0))
            self._highest[key] = (
                max(storage, before[0]),
                max(active_users, before[1]),
                max(queue_length, before[2]),
            )
        return {
            key: self._highest[key]
            for key in samples
            if key[0] == PLATFORM_ID or self._highest[key] != self._written.get(key)
        }


async def _load_storage_by_domain(environment: Environment) -> dict[int, int]:
    """Load the bytes that the users of each domain store, and of all users under PLATFORM_ID."""
    of_domains = select(
        col(DomainTotal.domain_id), func.sum(col(DomainTotal.used)).label("used")
    ).group_by(col(DomainTotal.domain_id))
    without_domain = select(func.coalesce(func.sum(col(User.used)), 0)).where(
        col(User.domain_id).is_(None)
    )
    storage = {row.domain_id: int(row.used) for row in await environment.database.read(of_domains)}
    (rest,) = (await environment.database.read(without_domain))[0]
    return {**storage, PLATFORM_ID: sum(storage.values()) + int(rest)}


async def _load_queue_lengths_by_domain(environment: Environment) -> dict[int, int]:
    """Load the number of waiting recipients by the sender's domain, and all under PLATFORM_ID."""
    statement = (
        select(col(User.domain_id), func.count().label("length"))
        .select_from(QueueEntry)
        .outerjoin(User, col(User.id) == col(QueueEntry.user_id))
        .where(text(f"queue_entries.{IS_OPEN}"))  # the same condition as the partial index
        .group_by(col(User.domain_id))
    )
    lengths = {
        row.domain_id or PLATFORM_ID: row.length
        for row in await environment.database.read(statement)
    }
    return {**lengths, PLATFORM_ID: sum(lengths.values())}


async def _count_active_users_by_domain(
    environment: Environment, periods_in_seconds: Sequence[float]
) -> list[dict[int, int]]:
    """Count the users of all processes who were active in the last seconds, for each period."""
    arguments = {"periods": [int(seconds * 1000) for seconds in periods_in_seconds]}
    answers = await ask_all_processes(environment, ACTIVE_USERS, arguments)
    user_ids_by_period = [
        set[int]().union(*(answer.answer["userIds"][index] for answer in answers.answers))
        for index in range(len(periods_in_seconds))
    ]
    all_ids = sorted(set[int]().union(*user_ids_by_period))
    domain_ids = await load_domain_ids_by_user(environment, all_ids)
    return [_count_users_by_domain(user_ids, domain_ids) for user_ids in user_ids_by_period]


def _count_users_by_domain(
    user_ids: Iterable[int], domain_ids: Mapping[int, int | None]
) -> dict[int, int]:
    counts: defaultdict[int, int] = defaultdict(int, {PLATFORM_ID: 0})
    for user_id in user_ids:
        counts[PLATFORM_ID] += 1
        if domain_id := domain_ids[user_id]:
            counts[domain_id] += 1
    return counts
