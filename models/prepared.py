"""Selects that are made once: their text, their parameters and how their rows are made."""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import orjson
from sqlalchemy import JSON, BindParameter, Dialect, Select, bindparam
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


class Driven:
    """The text of a select for one kind of store, without SQLAlchemy around each run."""

    __slots__ = ("_defaults", "_names", "_processors", "rows", "sql")

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
        self.rows = _builder(compiled, dialect)

    def values(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of the parameters, in the order of the text."""
        values = []
        for name in self._names:
            value = given[name] if name in given else self._defaults[name]
            processor = self._processors.get(name)
            values.append(value if processor is None else processor(value))
        return tuple(values)


def _builder(compiled: SQLCompiler, dialect: Dialect) -> Build:
    """Makes rows, with names, of what the driver gives."""
    columns = compiled._result_columns  # noqa: SLF001 - the order of the text, with types
    kind = namedtuple("Picked", [column.keyname for column in columns], rename=True)  # type: ignore[misc]
    names = [f"c{nth}" for nth in range(len(columns))]
    scope: dict[str, Any] = {"kind": kind, "new": tuple.__new__}
    parts = []
    for name, column in zip(names, columns, strict=True):
        processor = _processor(column.type, dialect)
        if processor is None:
            parts.append(name)
        else:
            scope[f"p{name}"] = processor
            parts.append(f"None if {name} is None else p{name}({name})")
    source = (
        f"def rows(found):\n"
        f"    return [new(kind, ({', '.join(parts)},)) for {', '.join(names)}, in found]\n"
    )
    exec(compile(source, "<rows>", "exec"), scope)  # noqa: S102 - of numbered names alone
    build: Build = scope["rows"]
    return build


def _processor(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    if dialect.name == "sqlite":  # shorter ways to the same values
        if isinstance(kind, Instant):
            return _instant
        if isinstance(kind, JSON):
            return orjson.loads
    return kind.dialect_impl(dialect).result_processor(dialect, None)


def _instant(text: str) -> datetime:
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

    return kept  # type: ignore[return-value]  # lru_cache forgets the parameters
