"""Read usage counters of all processes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from models.domains.tables import Domain
from models.metrics.names import NAMES_BY_TYPE, MetricName, MetricSetKind
from models.metrics.process_counters import process_counters_since_reset
from models.metrics.usage_recorder import (
    COMMAND_TIME,
    OTHER_ID,
    POSITIONS,
    USED_AT,
    Key,
    UsageRow,
    milliseconds_now,
)
from models.observability.metrics import OTHER
from models.runtime.environment import Environment
from models.store.keyset_pages import EPOCH, Cursor, Page, PageRequest, SortValue
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.cluster.process_requests import (
    AnswersOfProcesses,
    ProcessRequestKind,
    ask_all_processes,
)
from resolvers.cluster.scan_windows import ScanWindow
from resolvers.context import Context
from resolvers.metrics.resets import apply_resets, load_reset_times, time_of_reset
from resolvers.metrics.set_orders import (
    MetricSetOrder,
    cursor_value,
    require_counter_of_type,
    sort_key_after_cursor_or_raise,
)
from resolvers.metrics.usage_settlement import add_user_counts_to_domains
from resolvers.pagination import page_from_rows
from resolvers.viewer import GuardRule

READ_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)
NUMBERED_TYPES = (
    MetricSetKind.DOMAIN,
    MetricSetKind.USER,
    MetricSetKind.SESSION,
)  # their keys are ids
MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class MetricConditions:
    """Conditions on sets of counters. None: no condition.

    `key` is the key as tables have it: an id, an IP address or the name of a command.
    """

    type: MetricSetKind
    key: Key | None = None
    names: tuple[MetricName, ...] | None = None
    updated_since: datetime | None = None

    @property
    def shown_names(self) -> list[MetricName]:
        """The names of the counters that a set of this type shows, in the order of MetricName."""
        return [
            name for name in NAMES_BY_TYPE[self.type] if self.names is None or name in self.names
        ]


@dataclass(frozen=True, slots=True)
class MetricCounterRow:
    """The value of a counter, and the time of its last reset."""

    name: MetricName
    value: float
    reset_at: datetime | None


@dataclass(frozen=True, slots=True)
class MetricSetRow:
    """The counters of one key. `raw_key` is None for the whole platform."""

    type: MetricSetKind
    raw_key: Key | None
    key: str | None  # as people know it
    counters: Sequence[MetricCounterRow]
    updated_at: datetime | None
    reset_at: datetime | None
    sort_value: SortValue = 0

    def cursor(self, ordering: str) -> Cursor:
        """Return the cursor of the set in the list with this ordering name."""
        return Cursor(ordering, self.sort_value, 0)


@dataclass(frozen=True, slots=True)
class MetricSetPage:
    """A page of sets of counters, and the nodes that did not answer."""

    page: Page[MetricSetRow]
    unresponsive_nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class PlatformMetrics:
    """The counters of the platform, and the nodes that did not answer."""

    row: MetricSetRow
    unresponsive_nodes: Sequence[str]


@dataclass(slots=True)
class _MergedSet:
    """The sum of the values of a key over processes, by the name of the counter."""

    values: dict[str, float]
    updated_at_ms: int  # milliseconds since 1970; 0: unknown


async def _apply_resets_and_list_metrics_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    await apply_resets(environment, arguments["resets"])
    names = [MetricName(name) for name in arguments["names"]]
    metric_type = MetricSetKind(arguments["type"])
    if metric_type in (MetricSetKind.GLOBAL, MetricSetKind.DOMAIN):
        await add_user_counts_to_domains(environment)
    if metric_type is MetricSetKind.GLOBAL:
        return {"sets": [_platform_set(environment, names)]}
    rows = environment.usage.tables[metric_type].rows
    since_ms = arguments.get("updatedSinceMs")
    clock = _ClockOffset(environment)
    keys: Iterable[Key] = rows
    if arguments.get("keys") is not None:
        keys = [key for key in arguments["keys"] if key in rows]
    if since_ms is not None:
        keys = [key for key in keys if clock.wall_ms(rows[key]) >= since_ms]
    if arguments.get("onlyKeys"):
        return {"keys": list(keys)}
    if "count" in arguments:
        keys = ScanWindow.from_arguments(arguments).items_in_scan_order(keys, _sort_key)
    return {
        "sets": [
            [key, clock.wall_ms(rows[key]), [_value(rows[key], name) for name in names]]
            for key in keys
        ]
    }


class _ClockOffset:
    """The difference between the clock of the environment and the monotonic clock."""

    def __init__(self, environment: Environment) -> None:
        now_ms = (environment.now() - EPOCH) // MILLISECOND
        self._offset_ms = now_ms - milliseconds_now()

    def wall_ms(self, row: UsageRow) -> int:
        """Return the time of the last use of a row in milliseconds since 1970; 0 without one."""
        used_at: int = row[USED_AT]
        return used_at + self._offset_ms if used_at else 0


def _platform_set(environment: Environment, names: Sequence[MetricName]) -> list[Any]:
    """Return the set of the platform in this process: key None, time in ms, values of `names`."""
    totals = environment.usage.totals
    counters = process_counters_since_reset(environment)
    values = [_value(totals, name) if name in POSITIONS else counters.get(name) for name in names]
    return [None, _ClockOffset(environment).wall_ms(totals), values]


def _value(row: UsageRow, name: MetricName) -> float:
    position = POSITIONS[name]
    return row[position] / 1_000_000 if position == COMMAND_TIME else row[position]


def _sort_key(key: Key) -> tuple[Key, int]:
    return key, 0  # keys are unique


READ_METRICS = ProcessRequestKind("METRICS_READ", _apply_resets_and_list_metrics_for_answer)


async def read_metric_set_page(
    ctx: Context, conditions: MetricConditions, page_request: PageRequest, order: MetricSetOrder
) -> MetricSetPage:
    """Read a page of the counters of all processes, summed by key.

    Raises InvalidInput for a cursor of another list, and for a counter that the type doesn't have.
    """
    ctx.viewer.require(READ_RULE)
    require_counter_of_type(conditions.type, order)
    if conditions.type is MetricSetKind.GLOBAL:
        platform = await read_platform_set(ctx.environment, conditions.names)
        rows = [] if page_request.cursor else [platform.row]
        return MetricSetPage(page_from_rows(rows, page_request), platform.unresponsive_nodes)
    key_type: type[Key] = int if conditions.type in NUMBERED_TYPES else str
    window = ScanWindow.from_page_request(
        page_request,
        sort_key_after_cursor_or_raise(page_request, order, key_type),
        is_descending=order.is_descending,
    )
    reader = _SetReader(ctx.environment, conditions, await load_reset_times(ctx.environment))
    name = order.counter_name
    page = await (
        reader.read_by_key(window) if name is None else reader.read_by_value(window, name)
    )
    names_by_key = await _load_key_names(ctx, conditions.type, page.sort_values)
    rows = [
        replace(
            _metric_set_row(conditions, key, names_by_key, page.sets[key], reader.resets),
            sort_value=sort_value,
        )
        for key, sort_value in page.sort_values.items()
        if key in page.sets
    ]
    return MetricSetPage(page_from_rows(rows, page_request), page.unresponsive_nodes)


@dataclass(frozen=True, slots=True)
class _SetsOfPage:
    """The keys of a page with their sort values, in the order of the scan, and their counters."""

    sort_values: Mapping[Key, SortValue]
    sets: Mapping[Key | None, _MergedSet]
    unresponsive_nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class _SetReader:
    """Reads pages of sets of counters from all processes."""

    environment: Environment
    conditions: MetricConditions
    resets: Mapping[str, int]

    async def read_by_key(self, window: ScanWindow) -> _SetsOfPage:
        """Read the sets of a window of keys: the one of each process is in its keys' order."""
        answers = await self._ask(self.conditions, **window.to_arguments())
        sets = _merged_sets(self.conditions, answers)
        keys = window.items_in_scan_order((key for key in sets if key is not None), _sort_key)
        if self.conditions.updated_since is not None and len(answers.answers) > 1:
            # a process leaves out a key that it has not used since, but another one has
            all_answers = await self._ask_for_keys(keys)
            sets = _merged_sets(self.conditions, all_answers)
        return _SetsOfPage({key: key for key in keys}, sets, answers.unresponsive_nodes)

    async def read_by_value(self, window: ScanWindow, name: MetricName) -> _SetsOfPage:
        """Read the sets of a window of values of a counter.

        Only the sums of all processes can be sorted. So each process first returns the value of
        each of its keys, at most MAX_KEYS, and then all counters of the keys of the window.
        """
        ranked = replace(self.conditions, names=(name,), updated_since=None)
        answers = await self._ask(ranked)
        since_ms = _milliseconds(self.conditions.updated_since) or 0
        positions = [
            (round(merged.values[name], 6), key)  # a sum of floats depends on the order
            for key, merged in _merged_sets(ranked, answers).items()
            if key is not None and merged.updated_at_ms >= since_ms
        ]
        shown = window.items_in_scan_order(positions, lambda position: position)
        all_answers = await self._ask_for_keys([key for _, key in shown])
        return _SetsOfPage(
            {key: cursor_value(value, key) for value, key in shown},
            _merged_sets(self.conditions, all_answers),
            sorted({*answers.unresponsive_nodes, *all_answers.unresponsive_nodes}),
        )

    async def _ask_for_keys(self, keys: Sequence[Key]) -> AnswersOfProcesses:
        conditions = replace(self.conditions, updated_since=None)
        return await self._ask(conditions, keys=keys)

    async def _ask(self, conditions: MetricConditions, **arguments: Any) -> AnswersOfProcesses:
        all_arguments = _request_arguments(conditions, self.resets) | arguments
        return await ask_all_processes(self.environment, READ_METRICS, all_arguments)


async def count_metric_sets(ctx: Context, conditions: MetricConditions) -> int:
    """Count the keys of all processes that meet the conditions."""
    ctx.viewer.require(READ_RULE)
    if conditions.type is MetricSetKind.GLOBAL:
        return 1
    resets = await load_reset_times(ctx.environment)
    arguments = {**_request_arguments(conditions, resets), "onlyKeys": True}
    answers = await ask_all_processes(ctx.environment, READ_METRICS, arguments)
    return len({key for answer in answers.answers for key in answer.answer["keys"]})


async def read_platform_set(
    environment: Environment, names: tuple[MetricName, ...] | None
) -> PlatformMetrics:
    """Read the counters of the platform, summed over the processes that answer."""
    conditions = MetricConditions(MetricSetKind.GLOBAL, names=names)
    resets = await load_reset_times(environment)
    answers = await ask_all_processes(
        environment, READ_METRICS, _request_arguments(conditions, resets)
    )
    merged = _merged_sets(conditions, answers)[None]
    row = _metric_set_row(conditions, None, {}, merged, resets)
    return PlatformMetrics(row, answers.unresponsive_nodes)


def _milliseconds(at: datetime | None) -> int | None:
    """Return a time in milliseconds since 1970."""
    return None if at is None else (at - EPOCH) // MILLISECOND


def _request_arguments(conditions: MetricConditions, resets: Mapping[str, int]) -> dict[str, Any]:
    return {
        "type": conditions.type.value,
        "names": [name.value for name in conditions.shown_names],
        "keys": None if conditions.key is None else [conditions.key],
        "updatedSinceMs": _milliseconds(conditions.updated_since),
        "resets": dict(resets),
    }


def _merged_sets(
    conditions: MetricConditions, answers: AnswersOfProcesses
) -> dict[Key | None, _MergedSet]:
    """Add up the values of each key. A counter that no process has is absent."""
    merged: dict[Key | None, _MergedSet] = {}
    for answer in answers.answers:
        for key, updated_at_ms, values in answer.answer["sets"]:
            target = merged.setdefault(key, _MergedSet({}, 0))
            target.updated_at_ms = max(target.updated_at_ms, updated_at_ms)
            for name, value in zip(conditions.shown_names, values, strict=True):
                if value is not None:
                    target.values[name] = target.values.get(name, 0) + value
    return merged


async def _load_key_names(
    ctx: Context, metric_type: MetricSetKind, keys: Collection[Key]
) -> dict[Key, str]:
    """Load the usernames or names of domains that the keys of a page stand for."""
    if metric_type is MetricSetKind.USER:
        statement: Select[*tuple[Any, ...]] = select(
            col(User.id), col(User.username).label("name")
        ).where(col(User.id).in_(keys))
    elif metric_type is MetricSetKind.DOMAIN:
        statement = select(col(Domain.id), col(Domain.name)).where(col(Domain.id).in_(keys))
    else:
        return {}
    return {row.id: row.name for row in await ctx.read(statement)} if keys else {}


def _metric_set_row(
    conditions: MetricConditions,
    key: Key | None,
    names_by_key: Mapping[Key, str],
    merged: _MergedSet,
    resets: Mapping[str, int],
) -> MetricSetRow:
    counters = [
        MetricCounterRow(
            name, merged.values[name], time_of_reset(resets[name]) if name in resets else None
        )
        for name in conditions.shown_names
        if name in merged.values
    ]
    reset_times = [counter.reset_at for counter in counters if counter.reset_at is not None]
    return MetricSetRow(
        conditions.type,
        key,
        _shown_key(conditions.type, key, names_by_key),
        counters,
        EPOCH + merged.updated_at_ms * MILLISECOND if merged.updated_at_ms else None,
        max(reset_times, default=None),
    )


def _shown_key(
    metric_type: MetricSetKind, key: Key | None, names_by_key: Mapping[Key, str]
) -> str | None:
    """Return the key as people know it. Sessions, and users that are gone, have their number."""
    if key is None:
        return None
    if metric_type in NUMBERED_TYPES and key == OTHER_ID:
        return OTHER
    return names_by_key.get(key, str(key))
