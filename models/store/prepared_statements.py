"""Statements that are compiled once: their text, their parameters and how rows are built."""

import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache, partial, wraps
from itertools import chain
from typing import Any, NamedTuple, ParamSpec, cast

import orjson
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Float,
    Numeric,
    Select,
    Subquery,
    any_,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from models.store.columns import Big, Instant, stored_instant

Given = ParamSpec("Given")
Build = Callable[[Sequence[Any]], list[Any]]
Bind = Callable[[Mapping[str, Any]], tuple[Any, ...]]

Text = tuple[str, tuple[Any, ...]]  # SQL text for the driver, and the values of its parameters
Made = Select[*tuple[Any, ...]] | UpdateBase

KEPT = 512  # statements of one function: clients choose columns freely
TOGETHER = 32  # fewer rows are a power of two, so that few texts are cached
PARAMETERS = 4000  # of combined statements: PostgreSQL keeps the plan of each for a while
# An insert of one row without parameters after it: those would be the same for all rows.
_ROW = re.compile(r"(INSERT INTO .+? VALUES )(\([^()]+\))([^?$]*)", re.DOTALL)
_NUMBERED = re.compile(r"\$(\d+)")  # a parameter of PostgreSQL


class Prepared:
    """A statement with named parameters that is compiled once for each dialect.

    Outside a transaction it is a select that reads few rows by an index. So SQLite can read it on
    the event loop's thread.
    """

    __slots__ = ("_driven", "made")

    def __init__(self, made: Made) -> None:
        self.made: Any = made
        self._driven: dict[str, Driven] = {}

    def driven(self, dialect: Dialect) -> "Driven":
        """Return the compiled statement for a dialect."""
        if dialect.name not in self._driven:
            self._driven[dialect.name] = Driven(self.made, dialect)
        return self._driven[dialect.name]

    def ready(self, engine: Engine, given: Mapping[str, Any]) -> tuple["Driven", tuple[Any, ...]]:
        """Return the compiled statement and its values, and notify listeners of the engine."""
        driven = self.driven(engine.dialect)
        values = driven.values(given)
        _told(engine, driven.sql, values)
        return driven, values


def _told(engine: Engine, sql: str, values: Sequence[Any]) -> None:
    """Notify the listeners that count the statements of an engine."""
    dispatch: Any = engine.dispatch
    for listener in dispatch.before_cursor_execute:
        listener(None, None, sql, values, None, False)


Sent = tuple[Prepared, Mapping[str, Any]]  # a statement, and the values of its parameters


def fetched(connection: Connection, statement: Prepared, given: Mapping[str, Any]) -> "Rows":
    """Return the rows of a prepared statement in the transaction of this connection."""
    return fetched_all(connection, statement, [given])


def fetched_all(
    connection: Connection, statement: Prepared, given: Sequence[Mapping[str, Any]]
) -> "Rows":
    """Return the rows of a prepared statement for several sets of parameters, in any order."""
    driven, raw = statement.driven(connection.dialect), list[Any]()
    cursor = connection.connection.cursor()
    try:
        for sql, values in driven.texts(given):
            _told(connection.engine, sql, values)
            cursor.execute(sql, values)
            raw += cursor.fetchall()
    finally:
        cursor.close()
    return Rows(driven, raw)


def send(connection: Connection, works: Sequence[Sent]) -> None:
    """Execute statements that change rows and don't depend on each other.

    Rows of the same statement are written together, in the order of the first use of each
    statement. PostgreSQL gets all in few round trips, since a round trip costs more than the work.
    """
    parameter_sets: dict[Prepared, list[Mapping[str, Any]]] = {}
    for statement, given in works:
        parameter_sets.setdefault(statement, []).append(given)
    dialect = connection.dialect
    texts: Iterable[Text] = (
        text
        for statement, given in parameter_sets.items()
        for text in statement.driven(dialect).texts(given)
    )
    if dialect.name != "sqlite":
        texts = _gathered(texts)
    cursor = connection.connection.cursor()
    try:
        for sql, values in texts:
            _told(connection.engine, sql, values)
            cursor.execute(sql, values)
    finally:
        cursor.close()


def _gathered(texts: Iterable["Text"]) -> Iterator["Text"]:
    """Combine statements of PostgreSQL, up to MAX_COMBINED_PARAMETERS parameters in each."""
    combined, values = list[str](), list[Any]()
    for sql, own_values in texts:
        if combined and len(values) + len(own_values) > PARAMETERS:
            yield _joined(*combined), tuple(values)
            combined, values = [], []
        combined.append(sql)
        values += own_values
    if combined:
        yield _joined(*combined), tuple(values)


def _behind(taken: int, found: re.Match[str]) -> str:
    return f"${int(found[1]) + taken}"


def _numbered_on(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts with their numbered parameters renumbered one after the other."""
    taken = 0
    for text in texts:
        yield _NUMBERED.sub(partial(_behind, taken), text)
        taken += len(set(_NUMBERED.findall(text)))


@lru_cache(KEPT)
def _joined(*texts: str) -> str:
    """Join statements of PostgreSQL by WITH; the parameters follow one another."""
    *others, last = _numbered_on(texts)
    parts = ", ".join(f"part{nth} AS ({text})" for nth, text in enumerate(others))
    return f"WITH {parts} {last}" if parts else last


class Column(NamedTuple):
    """A column of the driver's rows: its type, and the function that converts its values."""

    type: TypeEngine[Any]
    process: Callable[[Any], Any] | None

    @property
    def expression(self) -> str:
        """Python code that converts the variable `{0}` with the function `{1}`."""
        if self.process is None:
            return "{0}"
        if isinstance(self.type, Boolean):
            return "None if {0} is None else {0} == 1"
        if self.process is orjson.loads:  # most lists are empty
            return "None if {0} is None else [] if {0} == '[]' else {1}({0})"
        if self.process is stored_instant:  # asyncpg returns UTC, except for infinity
            return "{0} if {0} is None or {0}.tzinfo else {1}({0})"
        return "None if {0} is None else {1}({0})"


class Rows(Sequence[Any]):
    """Rows of the driver in `raw`, which are converted when they are first read."""

    __slots__ = ("_made", "driven", "raw")

    def __init__(self, driven: "Driven", raw: Sequence[tuple[Any, ...]]) -> None:
        self.driven = driven
        self.raw = raw
        self._made: list[Any] | None = None

    @property
    def made(self) -> list[Any]:
        """The rows as named tuples."""
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
        """Return the unconverted values of a column."""
        at = self.driven.places[column]
        return [row[at] for row in self.raw]

    def read(self, column: str) -> list[Any]:
        """Return the converted values of a column."""
        process, values = self.driven.columns[column].process, self.values(column)
        if process is None or values.count(None) == len(values):
            return values
        return [None if value is None else process(value) for value in values]

    def chosen(self, order: Sequence[int]) -> "Rows":
        """Return the rows at these indexes, in this order."""
        return Rows(self.driven, [self.raw[at] for at in order])


def values_of(rows: Sequence[Any], column: str) -> list[Any]:
    """Return the values of a column that every driver returns unchanged: text, or a number."""
    return rows.values(column) if isinstance(rows, Rows) else [getattr(r, column) for r in rows]


def read_of(rows: Sequence[Any], column: str) -> list[Any]:
    """Return the values of a column."""
    return rows.read(column) if isinstance(rows, Rows) else [getattr(row, column) for row in rows]


def chosen(rows: Sequence[Any], order: Sequence[int]) -> Sequence[Any]:
    """Return the rows at these indexes, in this order."""
    return rows.chosen(order) if isinstance(rows, Rows) else [rows[at] for at in order]


class Driven:
    """A statement compiled for one dialect, which runs without SQLAlchemy's execution."""

    __slots__ = ("_parts", "_repeated", "columns", "places", "rows", "sql", "values")

    def __init__(self, made: Made, dialect: Dialect) -> None:
        compiled = made.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - of a statement
        self.sql = str(compiled)
        self._parts = _ROW.fullmatch(self.sql)
        self._repeated: dict[int, str] = {1: self.sql}
        binds, defaults = compiled.binds, compiled.params
        # returns the values of named parameters in the order of the text
        self.values = _binder(
            [
                (
                    name,
                    defaults[name],
                    binds[name].type.dialect_impl(dialect).bind_processor(dialect),
                )
                for name in compiled.positiontup or ()
            ]
        )
        entries = compiled._result_columns  # noqa: SLF001 - the order of the text, with types
        self.columns = {
            entry.keyname: Column(entry.type, _processor(entry.type, dialect)) for entry in entries
        }
        self.places = {name: at for at, name in enumerate(self.columns)}
        self.rows = _builder(self.columns)

    def texts(self, given: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
        """Yield SQL and values for these sets of parameters; rows of an insert are combined."""
        most, at = TOGETHER if self._parts else 1, 0
        while at < len(given):
            many = min(most, 1 << (len(given) - at).bit_length() - 1)
            if many == 1:
                yield self.sql, self.values(given[at])
            else:
                rows = given[at : at + many]
                yield self._of(many), tuple(chain.from_iterable(map(self.values, rows)))
            at += many

    def _of(self, many: int) -> str:
        """Return the text of an insert with this number of rows."""
        if many not in self._repeated:
            assert self._parts is not None  # noqa: S101 - only inserts are repeated
            head, row, tail = self._parts.groups()
            self._repeated[many] = head + ", ".join(_numbered_on([row] * many)) + tail
        return self._repeated[many]


def _binder(parameters: Sequence[tuple[str, Any, Callable[[Any], Any] | None]]) -> Bind:
    """Compile a function that converts named values to the tuple that the driver needs."""
    scope: dict[str, Any] = {}
    parts = []
    for nth, (name, default, process) in enumerate(parameters):
        scope[f"d{nth}"], scope[f"p{nth}"] = default, process
        value = f"get({name!r}, d{nth})"
        parts.append(value if process is None else f"p{nth}({value})")
    made = "".join(f"{part}, " for part in parts)
    source = f"def values(given):\n    get = given.get\n    return ({made})\n"
    exec(compile(source, "<values>", "exec"), scope)  # noqa: S102 - of names of parameters alone
    bind: Bind = scope["values"]
    return bind


def _builder(columns: Mapping[str, Column]) -> Build:
    """Compile a function that converts the driver's rows to named tuples."""
    Picked = namedtuple("Picked", columns, rename=True)  # type: ignore[misc]
    names = [f"c{nth}" for nth in range(len(columns))]
    scope: dict[str, Any] = {"kind": Picked, "new": tuple.__new__}
    parts = []
    for name, column in zip(names, columns.values(), strict=True):
        scope[f"p{name}"] = column.process
        parts.append(column.expression.format(name, f"p{name}"))
    source = (
        "def rows(found):\n"
        f"    return [new(kind, ({', '.join(parts)},)) for {', '.join(names)}, in found]\n"
        if columns
        else "def rows(found):\n    return []\n"
    )
    exec(compile(source, "<rows>", "exec"), scope)  # noqa: S102 - of numbered names alone
    build: Build = scope["rows"]
    return build


def _processor(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return the function that converts the driver's values of a type, if one is needed."""
    if dialect.name == "postgresql":
        if isinstance(kind, Instant):
            return stored_instant
        if isinstance(kind, Numeric | Float):  # SQLAlchemy would need the driver's type code
            return Decimal if kind.asdecimal else float
    if dialect.name == "sqlite":  # faster than SQLAlchemy's, with the same results
        if isinstance(kind, Instant):
            return instant
        if isinstance(kind, JSON):
            return orjson.loads
    return kind.dialect_impl(dialect).result_processor(dialect, None)


def instant(text: str) -> datetime:
    """Convert a stored time of SQLite, which is UTC without a time zone."""
    return datetime.fromisoformat(f"{text}+00:00")


def number(name: str) -> BindParameter[int]:
    """Return a parameter that is an id or a count."""
    return bindparam(name, type_=Big)


def among(
    dialect: str, key: Any, name: str, kind: type[TypeEngine[Any]] = BigInteger
) -> ColumnElement[bool]:
    """Return SQL that is true if a key is in a list, which is a single parameter of any length."""
    if dialect == "sqlite":
        each = func.json_each(bindparam(name, type_=JSON)).table_valued("value")
        found: ColumnElement[bool] = key.in_(select(each.c.value))
        return found
    return cast("ColumnElement[bool]", key == any_(bindparam(name, type_=ARRAY(kind))))


def listed(dialect: str, name: str, columns: Sequence[str]) -> Subquery:
    """Return SQL for rows of integers with these columns; the parameter is a list of lists."""
    if dialect == "sqlite":
        each = func.json_each(bindparam(name, type_=JSON)).table_valued("value")
        texts = [f"json_extract(value, '$[{nth}]')" for nth in range(len(columns))]
    else:
        each = func.jsonb_array_elements(bindparam(name, type_=JSONB)).table_valued("value")
        texts = [f"cast(value ->> {nth} AS bigint)" for nth in range(len(columns))]
    values = zip(texts, columns, strict=True)
    return (
        select(*(literal_column(text, Big).label(column) for text, column in values))
        .select_from(each)
        .subquery(name)
    )


def prepared(make: Callable[Given, Made]) -> Callable[Given, Prepared]:
    """Cache the prepared statements of a function that builds statements, by its arguments."""

    @lru_cache(KEPT)
    @wraps(make)
    def kept(*args: Given.args, **kwargs: Given.kwargs) -> Prepared:
        return Prepared(make(*args, **kwargs))

    return cast("Callable[Given, Prepared]", kept)  # lru_cache forgets the parameters
