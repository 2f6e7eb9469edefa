"""Read statistics by time: stored steps, and the increments that no process has written yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, select
from sqlmodel import col

from mail.addresses.address_syntax import normalized_domain
from models.domains.tables import Domain
from models.errors import NotFound
from models.metrics.latency_histogram import BUCKET_COUNT, percentile_seconds
from models.metrics.names import StatisticName
from models.metrics.tables import (
    LONG_STEP,
    SAMPLE_PERIOD,
    SAMPLED_COLUMNS,
    SHORT_STEP,
    SUMMED_COLUMNS,
    StatisticStep,
)
from models.metrics.usage_recorder import PLATFORM_ID
from models.observability.metrics import OTHER
from models.runtime.environment import Environment
from models.store.keyset_pages import EPOCH
from models.users.roles import Role, Scope
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.domains.loaders import DomainIdOrName, is_administered_domain
from resolvers.metrics.statistics_writer import COLUMN_POSITIONS
from resolvers.metrics.usage_settlement import add_user_counts_to_domains
from resolvers.metrics.validation import (
    require_ordered_times,
    require_point_count,
    require_representable_times,
    require_statistic_names,
    valid_step_seconds,
)
from resolvers.viewer import GuardRule

READ_RULE = GuardRule(role=Role.DOMAIN_ADMIN, scope=Scope.READ)
PLATFORM_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)
LATENCY_COLUMNS = tuple(f"latency_{index}" for index in range(BUCKET_COUNT))
PERCENTILES = {StatisticName.API_LATENCY_P50: 0.5, StatisticName.API_LATENCY_P95: 0.95}

StepValues = dict[str, int | None]  # by the name of a column


@dataclass(frozen=True, slots=True)
class StatisticsRequest:
    """A request for statistics. `domain_id` is PLATFORM_ID for the whole platform."""

    names: tuple[StatisticName, ...]
    since: datetime
    before: datetime
    step: timedelta
    domain_id: int = PLATFORM_ID


@dataclass(frozen=True, slots=True)
class StatisticSeriesRow:
    """The values of one statistic, one for each step. None: not known."""

    name: StatisticName
    points: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class StatisticsRow:
    """Statistics from the start of the first step to the end of the last one."""

    starts_at: datetime
    ends_at: datetime
    step: timedelta
    series: Sequence[StatisticSeriesRow]
    unresponsive_nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class _StepRange:
    """The steps of a request: `count` steps of `seconds` each, from `start` (since 1970)."""

    start: int
    seconds: int
    count: int

    @property
    def stored_step(self) -> int:
        """The stored step that the steps of the request consist of."""
        return LONG_STEP if self.seconds >= LONG_STEP else SHORT_STEP

    @property
    def end(self) -> int:
        """The end of the last step in seconds since 1970."""
        return self.start + self.count * self.seconds

    @property
    def indexes(self) -> range:
        """The numbers of the steps, counted from 1970."""
        first = self.start // self.seconds
        return range(first, first + self.count)


async def require_visible_domain_or_platform_id(ctx: Context, ref: DomainIdOrName | None) -> int:
    """Return the id of a domain that the viewer administers; PLATFORM_ID without a reference.

    Raises Forbidden if the viewer may not see the whole platform, and NotFound for a domain that
    the viewer doesn't administer.
    """
    ctx.viewer.require(READ_RULE)
    if ref is None:
        ctx.viewer.require(PLATFORM_RULE, path=["domain"])
        return PLATFORM_ID
    name = None if ref.name is None else normalized_domain(ref.name)
    is_referenced = col(Domain.id) == ref.id if name is None else col(Domain.name) == name
    rows = await ctx.read(select(col(Domain.id)).where(is_referenced, is_administered_domain(ctx)))
    if not rows:
        raise NotFound(ref.name or str(ref.id), path=["domain"])
    domain_id: int = rows[0].id
    return domain_id


async def read_statistics(ctx: Context, request: StatisticsRequest) -> StatisticsRow:
    """Read statistics of the platform, or of a domain.

    The caller must check that the viewer can see them. Raises InvalidInput.
    """
    ctx.viewer.require(READ_RULE)
    require_statistic_names(request.names)
    steps = _valid_step_range(request)
    columns = _needed_columns(request.names)
    rows = await ctx.read(_select_steps(steps, request.domain_id, columns))
    values_by_index = _values_by_step(rows, request.domain_id)
    nodes = await _add_increments_and_list_silent_nodes(
        ctx.environment, request, steps, values_by_index
    )
    if not ctx.viewer.role.includes(Role.ADMIN):  # nodes are no business of domains
        nodes = [OTHER] if nodes else []
    _fill_in_unchanged_samples(values_by_index)
    series = [
        StatisticSeriesRow(
            name, [_statistic_value_of_step(values_by_index.get(at), name) for at in steps.indexes]
        )
        for name in request.names
    ]
    step = timedelta(seconds=steps.seconds)
    start, end = (EPOCH + timedelta(seconds=at) for at in (steps.start, steps.end))
    return StatisticsRow(start, end, step, series, nodes)


def _valid_step_range(request: StatisticsRequest) -> _StepRange:
    """Return the steps that the times of a request touch. Raises InvalidInput."""
    seconds = valid_step_seconds(request.step)
    require_ordered_times(request.since, request.before)
    step = timedelta(seconds=seconds)
    first = (request.since - EPOCH) // step
    last = -((EPOCH - request.before) // step)  # rounded up
    require_representable_times(first * seconds, last * seconds)
    require_point_count(last - first)
    return _StepRange(first * seconds, seconds, last - first)


def _needed_columns(names: Sequence[StatisticName]) -> list[str]:
    columns: list[str] = []
    for name in names:
        columns += LATENCY_COLUMNS if name in PERCENTILES else [name.value.lower()]
    return list(dict.fromkeys(columns))


def _select_steps(
    steps: _StepRange, domain_id: int, columns: Sequence[str]
) -> Select[*tuple[Any, ...]]:
    """Select the values of each step that has any. It reads ranges of the primary key.

    A domain is read with the rows of the platform, which show in which steps a process ran. The
    rows begin with the day of the first step, for values that have not changed since.
    """
    index = col(StatisticStep.started_at) // steps.seconds
    values = [
        (func.sum if name in SUMMED_COLUMNS else func.max)(getattr(StatisticStep, name)).label(name)
        for name in columns
    ]
    first = steps.start - (steps.start % SAMPLE_PERIOD if domain_id != PLATFORM_ID else 0)
    return (
        select(col(StatisticStep.domain_id), index.label("step_index"), *values)
        .where(
            col(StatisticStep.domain_id).in_({PLATFORM_ID, domain_id}),
            col(StatisticStep.step_seconds) == steps.stored_step,
            col(StatisticStep.started_at) >= first,
            col(StatisticStep.started_at) < steps.end,
        )
        .group_by(col(StatisticStep.domain_id), index)
    )


def _values_by_step(rows: Sequence[Any], domain_id: int) -> dict[int, StepValues]:
    """Return the values of the domain by step. A step without a row of the platform is absent."""
    values_by_index: dict[int, StepValues] = {
        int(row.step_index): {} for row in rows if row.domain_id == PLATFORM_ID
    }
    for row in rows:
        if row.domain_id == domain_id:
            values = row._asdict()
            index = int(values.pop("step_index"))
            del values["domain_id"]
            values_by_index[index] = {
                name: None if value is None else int(value) for name, value in values.items()
            }
    return values_by_index


async def _add_increments_and_list_silent_nodes(
    environment: Environment,
    request: StatisticsRequest,
    steps: _StepRange,
    values_by_index: dict[int, StepValues],
) -> Sequence[str]:
    """Add what all processes have counted since they last wrote, if it is in the range.

    Returns the nodes that did not answer.
    """
    now = int(environment.now().timestamp())
    if not steps.start - LONG_STEP <= now < steps.end + LONG_STEP:
        return ()
    arguments = {"domainId": request.domain_id}
    answers = await ask_all_processes(environment, UNWRITTEN_STATISTICS, arguments)
    if (index := now // steps.seconds) in steps.indexes:
        values_by_index.setdefault(index, {})  # this process runs
    for answer in answers.answers:
        for step_start, increments in answer.answer["steps"]:
            index = step_start // steps.seconds
            if index not in steps.indexes:
                continue
            values = values_by_index.setdefault(index, {})
            for name, increment in zip(SUMMED_COLUMNS, increments, strict=True):
                values[name] = (values.get(name) or 0) + increment
    return answers.unresponsive_nodes


def _fill_in_unchanged_samples(values_by_index: dict[int, StepValues]) -> None:
    """Take the sampled values of a step without any from the step before it."""
    before: StepValues = {}
    for index in sorted(values_by_index):
        values = values_by_index[index]
        for name in SAMPLED_COLUMNS:
            if values.get(name) is None:
                values[name] = before.get(name)
        before = values


async def _list_unwritten_increments_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    await add_user_counts_to_domains(environment)
    rows = environment.usage.unwritten_rows_of_domain(arguments["domainId"])
    return {
        "steps": [
            [key.step_start, [row[COLUMN_POSITIONS[name]] for name in SUMMED_COLUMNS]]
            for key, row in rows
        ]
    }


UNWRITTEN_STATISTICS = ProcessRequestKind(
    "METRICS_UNWRITTEN", _list_unwritten_increments_for_answer
)


def _statistic_value_of_step(values: StepValues | None, name: StatisticName) -> float | None:
    """Return the value of a statistic in a step; None if no process ran, or nothing is known."""
    if values is None:
        return None
    if name in PERCENTILES:
        counts = [values.get(column) or 0 for column in LATENCY_COLUMNS]
        return percentile_seconds(counts, PERCENTILES[name])
    column = name.value.lower()
    value = values.get(column)
    if value is None and column in SUMMED_COLUMNS:
        return 0.0
    return None if value is None else float(value)
