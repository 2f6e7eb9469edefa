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


@dataclass(slots=True)
class CheckRun:
    """A run of the consistency check with its environment and progress."""

    environment: Environment
    progress: ReportProgress | None
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
    """Yield key ranges of at most `keys_per_range` rows each, as lower bound and last key."""
    statement = _with_conditions(_key_range_statement(table), conditions)
    low, done_count, row_count = -1, 0, 0
    if check_run.progress:
        counting = select(func.count()).select_from(table).where(*conditions)
        row_count = int((await check_run.environment.database.read(counting))[0][0])
    while True:
        parameters = {"low": low, "count": keys_per_range}
        rows = await check_run.environment.database.read(statement, parameters)
        if not rows:
            break
        yield rows[0][0] - 1 if conditions else low, rows[-1][0]
        low, done_count = rows[-1][0], done_count + len(rows)
        check_run.report_progress(subject, done_count, max(row_count, done_count))
        if len(rows) < keys_per_range:
            break
    check_run.checked_counts[str(table.__tablename__)] = done_count


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
