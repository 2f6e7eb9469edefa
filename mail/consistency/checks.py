"""The form of a check: a SELECT that finds all rows for which a rule is broken."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    FromClause,
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

from mail.consistency.report import Finding, Progress, Value
from models.runtime.environment import Turn, World

Expression = SQLColumnExpression[Any]
Condition = SQLColumnExpression[bool]

STEP = 5000  # keys that one statement checks
# Keys above LOW_KEY up to HIGH_KEY.
LOW: BindParameter[int] = bindparam("low")
HIGH: BindParameter[int] = bindparam("high")


@dataclass(frozen=True, slots=True)
class Rule:
    """Two values that must be equal. With `is_repairable` the repair of the check makes them so."""

    expected: Expression
    found: Expression
    cured: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """Rules for the rows of `source`, checked by ranges of the keys of `table`.

    Each range is one statement, so it sees one snapshot of a database in use.
    """

    subject: str
    table: type[SQLModel]
    rules: Mapping[str, Rule]
    source: FromClause
    stream: Expression  # the stream that a repair locks
    where: Sequence[Condition] = ()
    key: Expression | None = None  # of the object, if it is not a row of `table`
    kind: str | None = None  # the table of the object, if it is not `table`
    cure: "Cure | None" = None
    step: int = STEP


# Repairs rows by key, in a transaction that locks the stream.
Cure = Callable[[Turn, Check, Sequence[int], int], None]


@dataclass(frozen=True, slots=True)
class Hit:
    """A row for which rules of `check` are broken."""

    check: Check
    key: int
    stream: int
    findings: Sequence[Finding]


@dataclass(slots=True)
class Look:
    """A run of the consistency check with its environment and progress."""

    world: World
    progress: Progress | None
    looked: Counter[str] = field(default_factory=Counter)

    def tell(self, subject: str, done: int, total: int | None = None) -> None:
        """Report progress if the caller has asked for it."""
        if self.progress:
            self.progress(subject, done, total)


def identity(table: type[SQLModel]) -> ColumnElement[Any]:
    """The id column of a table."""
    column: ColumnElement[Any] = inspect(table).local_table.c.id
    return column


def within(column: Any) -> ColumnElement[bool]:
    """SQL: true if a key is in the range of the statement."""
    condition: ColumnElement[bool] = (column > LOW) & (column <= HIGH)
    return condition


def total(what: Any) -> ColumnElement[int]:
    """SQL: a sum as BIGINT, since PostgreSQL sums to NUMERIC; 0 without rows."""
    return cast(func.coalesce(func.sum(what), 0), BigInteger)


async def ranges(
    look: Look,
    subject: str,
    table: type[SQLModel],
    step: int = STEP,
    only: Sequence[Condition] = (),
) -> AsyncIterator[tuple[int, int]]:
    """Yield key ranges of at most `keys_per_range` rows each, as lower bound and last key."""
    key, low, done = identity(table), -1, 0
    counting = select(func.count()).select_from(table).where(*only)
    counted = await look.world.database.read(counting)
    many = int(counted[0][0])
    while True:
        asked = select(key).where(key > low, *only).order_by(key).limit(step)
        rows = await look.world.database.read(asked)
        if not rows:
            break
        yield rows[0][0] - 1 if only else low, rows[-1][0]
        low, done = rows[-1][0], done + len(rows)
        look.tell(subject, done, max(many, done))
    look.looked[str(table.__tablename__)] = done


def statement(check: Check) -> Select[*tuple[Any, ...]]:
    """The SELECT of the rows in a key range that break a rule."""
    key = identity(check.table) if check.key is None else check.key
    columns: list[Any] = [key.label("key"), check.stream.label("stream")]
    for name, rule in check.rules.items():
        columns += [rule.expected.label(f"{name}_expected"), rule.found.label(f"{name}_found")]
    broken = or_(*(rule.expected.is_distinct_from(rule.found) for rule in check.rules.values()))
    asked = select(*columns).select_from(check.source)
    return asked.where(within(identity(check.table)), broken, *check.where)


async def run(
    look: Look, check: Check, only: Sequence[Condition] = (), *, step: int | None = None
) -> list[Hit]:
    """Find all rows that break rules of a check, in the order of their keys.

    `conditions` select some of the rows.
    """
    asked, hits = statement(check).where(*only), list[Hit]()
    async for low, high in ranges(look, check.subject, check.table, step or check.step, only):
        rows = await look.world.database.read(asked.params(low=low, high=high))
        rows = sorted(rows, key=lambda row: row.key)
        hits += [Hit(check, row.key, row.stream, _findings(check, row)) for row in rows]
    return hits


def broken(turn: Turn, check: Check, keys: Sequence[int]) -> list[Row[*tuple[Any, ...]]]:
    """Read those of the rows that still break a rule, inside a transaction."""
    asked, rows = statement(check), list[Row[*tuple[Any, ...]]]()
    for key in keys:
        rows += turn.connection.execute(asked, {"low": key - 1, "high": key}).all()
    return rows


def differences(check: Check, row: Row[*tuple[Any, ...]]) -> dict[str, tuple[Value, Value]]:
    """The expected and found value of each broken rule, by its name."""
    named = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    pairs = {
        name: (_plain(named[f"{name}_expected"]), _plain(named[f"{name}_found"]))
        for name in check.rules
    }
    return {name: (wanted, found) for name, (wanted, found) in pairs.items() if wanted != found}


def write(turn: Turn, check: Check, keys: Sequence[int]) -> list[int]:
    """Set the columns of broken repairable rules to their expected values; return the keys."""
    written: list[int] = []
    for row in broken(turn, check, keys):
        values = {
            name: wanted
            for name, (wanted, _) in differences(check, row).items()
            if check.rules[name].cured
        }
        if values:
            one = update(check.table).where(identity(check.table) == row.key)
            turn.connection.execute(one.values(**values))
            written.append(row.key)
    return written


def _findings(check: Check, row: Row[*tuple[Any, ...]]) -> list[Finding]:
    name = f"{check.kind or check.table.__tablename__}/{row.key}"
    return [
        Finding(check.subject, rule, name, wanted, found, check.rules[rule].cured)
        for rule, (wanted, found) in differences(check, row).items()
    ]


def _plain(value: Any) -> Value:
    if isinstance(value, StrEnum):
        return str(value)
    return int(value) if isinstance(value, bool | Decimal) else value
