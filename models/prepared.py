"""Selects that are made once: their text, their parameters and how their rows are made."""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, cast

import orjson
from sqlalchemy import (
    JSON,
    BindParameter,
    Boolean,
    Dialect,
    Engine,
    Float,
    Numeric,
    Select,
    bindparam,
)
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from models.columns import Big, Instant

Given = ParamSpec("Given")
Build = Callable[[Sequence[Any]], list[Any]]

KEPT = 512  # statements of one kind: clients choose columns as they like


class Prepared:
    """A select with named parameters, each of whose rows is found by an index.

    It reads few rows, so that a store at hand is asked on the spot: no thread is woken for it.
    """

    __slots__ = ("_driven", "select")

    def __init__(self, select: Select[*tuple[Any, ...]]) -> None:
        self.select = select
        self._driven: dict[str, Driven] = {}

    def driven(self, dialect: Dialect) -> "Driven":
        """The statement as the driver takes it."""
        if dialect.name not in self._driven:
            self._driven[dialect.name] = Driven(self.select, dialect)
        return self._driven[dialect.name]

    def ready(self, engine: Engine, given: Mapping[str, Any]) -> tuple["Driven", tuple[Any, ...]]:
        """The statement and its values; those who count an engine's statements hear of it."""
        driven = self.driven(engine.dialect)
        values = driven.values(given)
        dispatch: Any = engine.dispatch
        for heard in dispatch.before_cursor_execute:
            heard(None, None, driven.sql, values, None, False)
        return driven, values


class Column(NamedTuple):
    """A column of what a driver gives: its type, and what makes a value of it, if anything."""

    type: TypeEngine[Any]
    process: Callable[[Any], Any] | None

    @property
    def expression(self) -> str:
        """Python that makes the value of the variable `{0}`, by the function `{1}`."""
        if self.process is None:
            return "{0}"
        if isinstance(self.type, Boolean):
            return "None if {0} is None else {0} == 1"
        if self.process is orjson.loads:  # most lists are empty
            return "None if {0} is None else [] if {0} == '[]' else {1}({0})"
        return "None if {0} is None else {1}({0})"


class Rows(Sequence[Any]):
    """Rows as the driver gave them in `raw`; their values are made when somebody looks."""

    __slots__ = ("_made", "driven", "raw")

    def __init__(self, driven: "Driven", raw: Sequence[tuple[Any, ...]]) -> None:
        self.driven = driven
        self.raw = raw
        self._made: list[Any] | None = None

    @property
    def made(self) -> list[Any]:
        """The rows, by names."""
        if self._made is None:
            self._made = self.driven.rows(self.raw)
        return self._made

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.made)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Rows(self.driven, self.raw[at])
        if self._made is None:
            return self.driven.rows([self.raw[at]])[0]
        return self._made[at]

    def values(self, column: str) -> list[Any]:
        """What the driver gave for one column."""
        at = list(self.driven.columns).index(column)
        return [row[at] for row in self.raw]

    def chosen(self, order: Sequence[int]) -> "Rows":
        """The rows at these places, in this order."""
        return Rows(self.driven, [self.raw[at] for at in order])


def values_of(rows: Sequence[Any], column: str) -> list[Any]:
    """What these rows hold in a column that every driver gives as it is: text, or a number."""
    return rows.values(column) if isinstance(rows, Rows) else [getattr(r, column) for r in rows]


def chosen(rows: Sequence[Any], order: Sequence[int]) -> Sequence[Any]:
    """The rows at these places, in this order."""
    return rows.chosen(order) if isinstance(rows, Rows) else [rows[at] for at in order]


class Driven:
    """The text of a select for one kind of store, without SQLAlchemy around each run."""

    __slots__ = ("_defaults", "_names", "_processors", "columns", "rows", "sql")

    def __init__(self, select: Select[*tuple[Any, ...]], dialect: Dialect) -> None:
        compiled = select.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - of a select
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._defaults = compiled.params
        self._processors = {
            name: found
            for name, bind in compiled.binds.items()
            if (found := bind.type.dialect_impl(dialect).bind_processor(dialect))
        }
        entries = compiled._result_columns  # noqa: SLF001 - the order of the text, with types
        self.columns = {
            one.keyname: Column(one.type, _processor(one.type, dialect)) for one in entries
        }
        self.rows = _builder(self.columns)

    def values(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of the parameters, in the order of the text."""
        values = []
        for name in self._names:
            value = given[name] if name in given else self._defaults[name]
            processor = self._processors.get(name)
            values.append(value if processor is None else processor(value))
        return tuple(values)


def _builder(columns: Mapping[str, Column]) -> Build:
    """Makes rows, with names, of what the driver gives."""
    Picked = namedtuple("Picked", columns, rename=True)  # type: ignore[misc]
    names = [f"c{nth}" for nth in range(len(columns))]
    scope: dict[str, Any] = {"kind": Picked, "new": tuple.__new__}
    parts = []
    for name, column in zip(names, columns.values(), strict=True):
        scope[f"p{name}"] = column.process
        parts.append(column.expression.format(name, f"p{name}"))
    source = (
        f"def rows(found):\n"
        f"    return [new(kind, ({', '.join(parts)},)) for {', '.join(names)}, in found]\n"
    )
    exec(compile(source, "<rows>", "exec"), scope)  # noqa: S102 - of numbered names alone
    build: Build = scope["rows"]
    return build


def _processor(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    if dialect.name == "postgresql":
        if isinstance(kind, Instant):
            return None  # the driver gives UTC
        if isinstance(kind, Numeric | Float):  # SQLAlchemy would ask what the driver calls it
            return Decimal if kind.asdecimal else float
    if dialect.name == "sqlite":  # shorter ways to the same values
        if isinstance(kind, Instant):
            return instant
        if isinstance(kind, JSON):
            return orjson.loads
    return kind.dialect_impl(dialect).result_processor(dialect, None)


def instant(text: str) -> datetime:
    """What SQLite keeps is UTC, without saying so."""
    return datetime.fromisoformat(f"{text}+00:00")


def number(name: str) -> BindParameter[int]:
    """A parameter that is a key or a count."""
    return bindparam(name, type_=Big)


def prepared(
    make: Callable[Given, Select[*tuple[Any, ...]]],
) -> Callable[Given, Prepared]:
    """Keep the selects that a function makes, by its arguments."""

    @lru_cache(KEPT)
    @wraps(make)
    def kept(*args: Given.args, **kwargs: Given.kwargs) -> Prepared:
        return Prepared(make(*args, **kwargs))

    return cast("Callable[Given, Prepared]", kept)  # lru_cache forgets the parameters
