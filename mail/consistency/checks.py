"""The form of a check: a SELECT that finds all rows for which a rule is broken."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    SQLColumnExpression,
    bindparam,
    cast,
    func,
    inspect,
    or_,
    select,
    update,
)
from sqlmodel import SQLModel

from mail.consistency.report import Finding, FindingValue, ReportProgress
from models.runtime.environment import DatabaseTransaction, Environment

Expression = SQLColumnExpression[Any]
Condition = SQLColumnExpression[bool]

KEYS_PER_STATEMENT = 5000  # keys that one statement checks
# Keys above LOW_KEY up to HIGH_KEY.
LOW_KEY: BindParameter[int] = bindparam("low")
HIGH_KEY: BindParameter[int] = bindparam("high")


@dataclass(frozen=True, slots=True)
class EqualityRule:
    """Two values that must be equal. With `is_repairable` the repair of the check makes them so."""

    expected: Expression
    found: Expression
    is_repairable: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ConsistencyCheck:
    """Rules for the rows of `source`, checked by ranges of the keys of `table`.

    Each range is one statement, so it sees one snapshot of a database in use. Two checks with
    equal fields are different checks: SQL expressions can't be compared.
    """

    subject: str
    table: type[SQLModel]
    rules: Mapping[str, EqualityRule]
    source: FromClause
    stream_id: Expression  # the stream that a repair locks
    conditions: Sequence[Condition] = ()
    object_key: Expression | None = None  # of the object, if it is not a row of `table`
    object_kind: str | None = None  # the table of the object, if it is not `table`
    repair: "RepairFunction | None" = None
    keys_per_statement: int = KEYS_PER_STATEMENT


# Repairs rows by key, in a transaction that locks the stream.
RepairFunction = Callable[[DatabaseTransaction, ConsistencyCheck, Sequence[int], int], None]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row for which rules of `check` are broken."""

    check: ConsistencyCheck
    key: int
    stream_id: int
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys above `low` up to `last` that one statement checks."""

    low: int
    last: int
    row_count: int


@dataclass(slots=True)
class CheckRun:
    """A run of the consistency check with its environment and progress."""

    environment: Environment
    progress: ReportProgress | None
    # by table and number of keys per range
    key_ranges: dict[tuple[type[SQLModel], int], list[KeyRange]] = field(default_factory=dict)
    checked_counts: Counter[str] = field(default_factory=Counter)

    def report_progress(self, subject: str, checked_count: int, total: int | None = None) -> None:
        """Report progress if the caller has asked for it."""
        if self.progress:
            self.progress(subject, checked_count, total)


def id_column(table: type[SQLModel]) -> ColumnElement[Any]:
    """The id column of a table."""
    column: ColumnElement[Any] = inspect(table).local_table.c.id
    return column


def is_in_key_range(key_column: Any) -> ColumnElement[bool]:
    """SQL: true if a key is in the range of the statement."""
    condition: ColumnElement[bool] = (key_column > LOW_KEY) & (key_column <= HIGH_KEY)
    return condition


def whole_sum(expression: Any) -> ColumnElement[int]:
    """SQL: a sum as BIGINT, since PostgreSQL sums to NUMERIC; 0 without rows."""
    return cast(func.coalesce(func.sum(expression), 0), BigInteger)


async def iterate_key_ranges_with_progress(
    check_run: CheckRun,
    subject: str,
    table: type[SQLModel],
    keys_per_range: int = KEYS_PER_STATEMENT,
    conditions: Sequence[Condition] = (),
) -> AsyncIterator[tuple[int, int]]:
    """Yield key ranges of at most `keys_per_range` rows each, as lower bound and last key.

    Without conditions, all checks of a run use the ranges that the first one has read.
    """
    key_ranges = None if conditions else check_run.key_ranges.get((table, keys_per_range))
    if key_ranges is None:
        key_ranges = await _read_key_ranges(check_run, table, keys_per_range, conditions)
        if not conditions:
            check_run.key_ranges[table, keys_per_range] = key_ranges
    row_count, done_count = sum(key_range.row_count for key_range in key_ranges), 0
    for key_range in key_ranges:
        yield key_range.low, key_range.last
        done_count += key_range.row_count
        check_run.report_progress(subject, done_count, row_count)
    check_run.checked_counts[str(table.__tablename__)] = row_count


async def _read_key_ranges(
    check_run: CheckRun,
    table: type[SQLModel],
    keys_per_range: int,
    conditions: Sequence[Condition],
) -> list[KeyRange]:
    statement = _with_conditions(_key_range_statement(table), conditions)
    key_ranges: list[KeyRange] = []
    low = -1
    while True:
        parameters = {"low": low, "count": keys_per_range}
        rows = await check_run.environment.database.read(statement, parameters)
        if rows:
            first_low = rows[0][0] - 1 if conditions else low
            key_ranges.append(KeyRange(first_low, rows[-1][0], len(rows)))
            low = rows[-1][0]
        if len(rows) < keys_per_range:
            return key_ranges


def _with_conditions(
    statement: Select[*tuple[Any, ...]], conditions: Sequence[Condition]
) -> Select[*tuple[Any, ...]]:
    """Add conditions, if there are any: a copy takes longer than a read of a small table."""
    return statement.where(*conditions) if conditions else statement


@cache
def _key_range_statement(table: type[SQLModel]) -> Select[*tuple[Any, ...]]:
    """The SELECT of the next keys of a table."""
    key = id_column(table)
    return select(key).where(key > LOW_KEY).order_by(key).limit(bindparam("count", type_=Integer))


@cache
def broken_rows_statement(check: ConsistencyCheck) -> Select[*tuple[Any, ...]]:
    """The SELECT of the rows in a key range that break a rule."""
    key = id_column(check.table) if check.object_key is None else check.object_key
    columns: list[Any] = [key.label("key"), check.stream_id.label("stream")]
    for name, rule in check.rules.items():
        columns += [rule.expected.label(f"{name}_expected"), rule.found.label(f"{name}_found")]
    broken = or_(*(rule.expected.is_distinct_from(rule.found) for rule in check.rules.values()))
    statement = select(*columns).select_from(check.source)
    return statement.where(is_in_key_range(id_column(check.table)), broken, *check.conditions)


async def find_broken_rows(
    check_run: CheckRun,
    check: ConsistencyCheck,
    conditions: Sequence[Condition] = (),
    *,
    keys_per_statement: int | None = None,
) -> list[BrokenRow]:
    """Find all rows that break rules of a check, in the order of their keys.

    `conditions` select some of the rows.
    """
    statement = _with_conditions(broken_rows_statement(check), conditions)
    broken_rows: list[BrokenRow] = []
    async for low, high in iterate_key_ranges_with_progress(
        check_run,
        check.subject,
        check.table,
        keys_per_statement or check.keys_per_statement,
        conditions,
    ):
        parameters = {"low": low, "high": high}
        rows = await check_run.environment.database.read(statement, parameters)
        broken_rows += [
            BrokenRow(check, row.key, row.stream, _findings_of_row(check, row))
            for row in sorted(rows, key=lambda row: row.key)
        ]
    return broken_rows


def reread_broken_rows(
    transaction: DatabaseTransaction, check: ConsistencyCheck, keys: Sequence[int]
) -> list[Row[*tuple[Any, ...]]]:
    """Read those of the rows that still break a rule, inside a transaction."""
    statement, rows = broken_rows_statement(check), list[Row[*tuple[Any, ...]]]()
    for key in keys:
        rows += transaction.connection.execute(statement, {"low": key - 1, "high": key}).all()
    return rows


def expected_and_found_by_broken_rule(
    check: ConsistencyCheck, row: Row[*tuple[Any, ...]]
) -> dict[str, tuple[FindingValue, FindingValue]]:
    """The expected and found value of each broken rule, by its name."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    pairs = {
        name: (_report_value(columns[f"{name}_expected"]), _report_value(columns[f"{name}_found"]))
        for name in check.rules
    }
    return {
        name: (expected, stored) for name, (expected, stored) in pairs.items() if expected != stored
    }


def write_expected_values(
    transaction: DatabaseTransaction, check: ConsistencyCheck, keys: Sequence[int]
) -> list[int]:
    """Set the columns of broken repairable rules to their expected values; return the keys."""
    repaired_keys: list[int] = []
    for row in reread_broken_rows(transaction, check, keys):
        values = {
            name: expected
            for name, (expected, _) in expected_and_found_by_broken_rule(check, row).items()
            if check.rules[name].is_repairable
        }
        if values:
            statement = update(check.table).where(id_column(check.table) == row.key)
            transaction.connection.execute(statement.values(**values))
            repaired_keys.append(row.key)
    return repaired_keys


def _findings_of_row(check: ConsistencyCheck, row: Row[*tuple[Any, ...]]) -> list[Finding]:
    name = f"{check.object_kind or check.table.__tablename__}/{row.key}"
    return [
        Finding(check.subject, rule, name, expected, stored, check.rules[rule].is_repairable)
        for rule, (expected, stored) in expected_and_found_by_broken_rule(check, row).items()
    ]


def _report_value(value: Any) -> FindingValue:
    if isinstance(value, StrEnum):
        return str(value)
    return int(value) if isinstance(value, bool | Decimal) else value
