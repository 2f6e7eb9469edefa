"""Statements that are compiled once: their text, their parameters and how rows are built."""

import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
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

from models.store.columns import BIG_INTEGER, UtcDateTime, datetime_from_storage

Parameters = ParamSpec("Parameters")
RowBuilder = Callable[[Sequence[Any]], list[Any]]
ParameterBinder = Callable[[Mapping[str, Any]], tuple[Any, ...]]

# SQL text for the driver, and the values of its parameters
SqlWithValues = tuple[str, tuple[Any, ...]]
SqlStatement = Select[*tuple[Any, ...]] | UpdateBase

MAX_KEYS_OF_QUICK_READ = 100  # more keys read many rows
CACHE_SIZE = 512  # statements of one function: clients choose columns freely
MAX_ROWS_PER_INSERT = 32  # fewer rows are a power of two, so that few texts are cached
MAX_COMBINED_PARAMETERS = (
    4000  # of combined statements: PostgreSQL keeps the plan of each for a while
)
# An insert of one row without parameters after it: those would be the same for all rows.
_SINGLE_ROW_INSERT = re.compile(r"(INSERT INTO .+? VALUES )(\([^()]+\))([^?$]*)", re.DOTALL)
_NUMBERED_PARAMETER = re.compile(r"\$(\d+)")  # a parameter of PostgreSQL


class PreparedStatement:
    """A statement with named parameters that is compiled once for each dialect.

    Outside a transaction it is a select that reads few rows by an index. So SQLite can read it on
    the event loop's thread.
    """

    __slots__ = ("_compiled", "statement")

    def __init__(self, statement: SqlStatement) -> None:
        self.statement: Any = statement
        self._compiled: dict[str, CompiledStatement] = {}

    def compiled(self, dialect: Dialect) -> "CompiledStatement":
        """Return the compiled statement for a dialect."""
        if dialect.name not in self._compiled:
            self._compiled[dialect.name] = CompiledStatement(self.statement, dialect)
        return self._compiled[dialect.name]

    def compile_with_values_and_notify(
        self, engine: Engine, parameters: Mapping[str, Any]
    ) -> tuple["CompiledStatement", tuple[Any, ...]]:
        """Return the compiled statement and its values, and notify listeners of the engine."""
        driven = self.compiled(engine.dialect)
        values = driven.bind_values(parameters)
        _notify_listeners(engine, driven.sql, values)
        return driven, values


def _notify_listeners(engine: Engine, sql: str, values: Sequence[Any]) -> None:
    """Notify the listeners that count the statements of an engine."""
    dispatch: Any = engine.dispatch
    for listener in dispatch.before_cursor_execute:
        listener(None, None, sql, values, None, False)


# a statement, and the values of its parameters
StatementWithValues = tuple[PreparedStatement, Mapping[str, Any]]


def fetch_rows(
    connection: Connection, statement: PreparedStatement, parameters: Mapping[str, Any]
) -> "LazyRows":
    """Return the rows of a prepared statement in the transaction of this connection."""
    return fetch_rows_of_each(connection, statement, [parameters])


def fetch_rows_of_each(
    connection: Connection,
    statement: PreparedStatement,
    parameter_sets: Sequence[Mapping[str, Any]],
) -> "LazyRows":
    """Return the rows of a prepared statement for several sets of parameters, in any order."""
    driven, raw = statement.compiled(connection.dialect), list[Any]()
    cursor = connection.connection.cursor()
    try:
        for sql, values in driven.sql_with_values(parameter_sets):
            _notify_listeners(connection.engine, sql, values)
            cursor.execute(sql, values)
            raw += cursor.fetchall()
    finally:
        cursor.close()
    return LazyRows(driven, raw)


def execute_statements(connection: Connection, statements: Sequence[StatementWithValues]) -> None:
    """Execute statements that change rows and don't depend on each other.

    Rows of the same statement are written together, in the order of the first use of each
    statement. PostgreSQL gets all in few round trips, since a round trip costs more than the work.
    """
    parameter_sets: dict[PreparedStatement, list[Mapping[str, Any]]] = {}
    for statement, parameters in statements:
        parameter_sets.setdefault(statement, []).append(parameters)
    dialect = connection.dialect
    texts: Iterable[SqlWithValues] = (
        text
        for statement, parameters in parameter_sets.items()
        for text in statement.compiled(dialect).sql_with_values(parameters)
    )
    if dialect.name != "sqlite":
        texts = _combine_statements(texts)
    cursor = connection.connection.cursor()
    try:
        for sql, values in texts:
            _notify_listeners(connection.engine, sql, values)
            cursor.execute(sql, values)
    finally:
        cursor.close()


def _combine_statements(texts: Iterable["SqlWithValues"]) -> Iterator["SqlWithValues"]:
    """Combine statements of PostgreSQL, up to MAX_COMBINED_PARAMETERS parameters in each."""
    combined, values = list[str](), list[Any]()
    for sql, own_values in texts:
        if combined and len(values) + len(own_values) > MAX_COMBINED_PARAMETERS:
            yield _join_statements(*combined), tuple(values)
            combined, values = [], []
        combined.append(sql)
        values += own_values
    if combined:
        yield _join_statements(*combined), tuple(values)


def _shifted_parameter(offset: int, match: re.Match[str]) -> str:
    return f"${int(match[1]) + offset}"


def _renumber_parameters(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts with their numbered parameters renumbered one after the other."""
    offset = 0
    for text in texts:
        yield _NUMBERED_PARAMETER.sub(partial(_shifted_parameter, offset), text)
        offset += len(set(_NUMBERED_PARAMETER.findall(text)))


@lru_cache(CACHE_SIZE)
def _join_statements(*texts: str) -> str:
    """Join statements of PostgreSQL by WITH; the parameters follow one another."""
    *others, last = _renumber_parameters(texts)
    parts = ", ".join(f"part{nth} AS ({text})" for nth, text in enumerate(others))
    return f"WITH {parts} {last}" if parts else last


class ResultColumn(NamedTuple):
    """A column of the driver's rows: its type, and the function that converts its values."""

    type: TypeEngine[Any]
    convert: Callable[[Any], Any] | None

    @property
    def expression(self) -> str:
        """Python code that converts the variable `{0}` with the function `{1}`."""
        if self.convert is None:
            return "{0}"
        if isinstance(self.type, Boolean):
            return "None if {0} is None else {0} == 1"
        if self.convert in (orjson.loads, lists_or_objects_from_postgres):  # most lists are empty
            return "None if {0} is None else [] if {0} == '[]' else {1}({0})"
        if self.convert is datetime_from_storage:  # asyncpg returns UTC, except for infinity
            return "{0} if {0} is None or {0}.tzinfo else {1}({0})"
        return "None if {0} is None else {1}({0})"


class LazyRows(Sequence[Any]):
    """Rows of the driver in `raw`, which are converted when they are first read."""

    __slots__ = ("_converted", "compiled", "raw")

    def __init__(self, compiled: "CompiledStatement", raw: Sequence[tuple[Any, ...]]) -> None:
        self.compiled = compiled
        self.raw = raw
        self._converted: list[Any] | None = None

    @property
    def converted(self) -> list[Any]:
        """The rows as named tuples."""
        if self._converted is None:
            self._converted = self.compiled.build_rows(self.raw)
        return self._converted

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.converted)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return LazyRows(self.compiled, self.raw[at])
        if self._converted is None:
            return self.compiled.build_rows([self.raw[at]])[0]
        return self._converted[at]

    def raw_values(self, column: str) -> list[Any]:
        """Return the unconverted values of a column."""
        at = self.compiled.column_indexes[column]
        return [row[at] for row in self.raw]

    def column_values(self, column: str) -> list[Any]:
        """Return the converted values of a column."""
        process, values = self.compiled.columns[column].convert, self.raw_values(column)
        if process is None or values.count(None) == len(values):
            return values
        return [None if value is None else process(value) for value in values]

    def with_columns(self, values_by_column: Mapping[str, Sequence[int | None]]) -> "LazyRows":
        """Return the rows with these columns added, which have IDs or None."""
        values = zip(self.raw, *values_by_column.values(), strict=True)
        return LazyRows(
            self.compiled.with_columns(tuple(values_by_column)),
            [(*row, *added_values) for row, *added_values in values],
        )

    def rows_at(self, indexes: Sequence[int]) -> "LazyRows":
        """Return the rows at these indexes, in this order."""
        return LazyRows(self.compiled, [self.raw[at] for at in indexes])


def raw_values(rows: Sequence[Any], column: str) -> list[Any]:
    """Return the values of a column that every driver returns unchanged: text, or a number."""
    return (
        rows.raw_values(column)
        if isinstance(rows, LazyRows)
        else [getattr(r, column) for r in rows]
    )


def column_values(rows: Sequence[Any], column: str) -> list[Any]:
    """Return the values of a column."""
    return (
        rows.column_values(column)
        if isinstance(rows, LazyRows)
        else [getattr(row, column) for row in rows]
    )


def rows_at(rows: Sequence[Any], indexes: Sequence[int]) -> Sequence[Any]:
    """Return the rows at these indexes, in this order."""
    return rows.rows_at(indexes) if isinstance(rows, LazyRows) else [rows[at] for at in indexes]


def sorted_rows(rows: Sequence[Any], sort_values: Sequence[Any]) -> Sequence[Any]:
    """Return the rows in the order of their sort values, and of their IDs if these are equal."""
    keys = list(zip(sort_values, raw_values(rows, "id"), strict=True))
    return rows_at(rows, sorted(range(len(rows)), key=keys.__getitem__))


class CompiledStatement:
    """A statement compiled for one dialect, which runs without SQLAlchemy's execution."""

    __slots__ = (
        "_insert_parts",
        "_statements_with_columns",
        "_texts_by_row_count",
        "bind_values",
        "build_rows",
        "column_indexes",
        "columns",
        "sql",
    )

    def __init__(self, statement: SqlStatement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - of a statement
        self.sql = str(compiled)
        self._insert_parts = _SINGLE_ROW_INSERT.fullmatch(self.sql)
        self._texts_by_row_count: dict[int, str] = {1: self.sql}
        binds, defaults = compiled.binds, compiled.params
        # returns the values of named parameters in the order of the text
        self.bind_values = _build_binder(
            [
                _StatementParameter(
                    name,
                    defaults[name],
                    binds[name].type.dialect_impl(dialect).bind_processor(dialect),
                )
                for name in compiled.positiontup or ()
            ]
        )
        entries = compiled._result_columns  # noqa: SLF001 - the order of the text, with types
        self.columns = {
            entry.keyname: ResultColumn(entry.type, _result_converter_or_none(entry.type, dialect))
            for entry in entries
        }
        self.column_indexes = {name: at for at, name in enumerate(self.columns)}
        self.build_rows = _build_row_builder(self.columns)
        self._statements_with_columns: dict[tuple[str, ...], CompiledStatement] = {}

    def with_columns(self, names: tuple[str, ...]) -> "CompiledStatement":
        """Return the statement with columns that its caller adds to the rows: IDs or None."""
        all_names = (*self.columns, *names)
        extended = self._statements_with_columns.get(all_names)
        if extended is None:
            extended = self._statements_with_columns[all_names] = copy(self)
            added = dict.fromkeys(names, ResultColumn(BIG_INTEGER, None))
            extended.columns = {**self.columns, **added}
            extended.column_indexes = {name: at for at, name in enumerate(extended.columns)}
            extended.build_rows = _build_row_builder(extended.columns)
        return extended

    @property
    def has_hashable_rows(self) -> bool:
        """True if the driver's rows can be keys of a dictionary: no column is an array."""
        return not any(isinstance(column.type, ARRAY) for column in self.columns.values())

    def sql_with_values(
        self, parameter_sets: Sequence[Mapping[str, Any]]
    ) -> Iterator[SqlWithValues]:
        """Yield SQL and values for these sets of parameters; rows of an insert are combined."""
        max_rows, position = MAX_ROWS_PER_INSERT if self._insert_parts else 1, 0
        while position < len(parameter_sets):
            row_count = min(max_rows, 1 << (len(parameter_sets) - position).bit_length() - 1)
            if row_count == 1:
                yield self.sql, self.bind_values(parameter_sets[position])
            else:
                rows = parameter_sets[position : position + row_count]
                yield (
                    self._text_with_rows(row_count),
                    tuple(chain.from_iterable(map(self.bind_values, rows))),
                )
            position += row_count

    def _text_with_rows(self, row_count: int) -> str:
        """Return the text of an insert with this number of rows."""
        if row_count not in self._texts_by_row_count:
            assert self._insert_parts is not None  # noqa: S101 - only inserts are repeated
            head, row, tail = self._insert_parts.groups()
            self._texts_by_row_count[row_count] = (
                head + ", ".join(_renumber_parameters([row] * row_count)) + tail
            )
        return self._texts_by_row_count[row_count]


class _StatementParameter(NamedTuple):
    """A parameter of a statement."""

    name: str
    default: Any
    convert: Callable[[Any], Any] | None  # to the driver's type; None: not needed


def _build_binder(parameters: Sequence[_StatementParameter]) -> ParameterBinder:
    """Compile a function that converts named values to the tuple that the driver needs."""
    scope: dict[str, Any] = {}
    parts = []
    for nth, (name, default, process) in enumerate(parameters):
        scope[f"d{nth}"], scope[f"p{nth}"] = default, process
        value = f"get({name!r}, d{nth})"
        parts.append(value if process is None else f"p{nth}({value})")
    items = "".join(f"{part}, " for part in parts)
    source = f"def values(given):\n    get = given.get\n    return ({items})\n"
    exec(compile(source, "<values>", "exec"), scope)  # noqa: S102 - of names of parameters alone
    bind: ParameterBinder = scope["values"]
    return bind


def _build_row_builder(columns: Mapping[str, ResultColumn]) -> RowBuilder:
    """Compile a function that converts the driver's rows to named tuples."""
    Picked = namedtuple("Picked", columns, rename=True)  # type: ignore[misc]
    names = [f"c{nth}" for nth in range(len(columns))]
    scope: dict[str, Any] = {"kind": Picked, "new": tuple.__new__}
    parts = []
    for name, column in zip(names, columns.values(), strict=True):
        scope[f"p{name}"] = column.convert
        parts.append(column.expression.format(name, f"p{name}"))
    source = (
        "def rows(found):\n"
        f"    return [new(kind, ({', '.join(parts)},)) for {', '.join(names)}, in found]\n"
        if columns
        else "def rows(found):\n    return []\n"
    )
    exec(compile(source, "<rows>", "exec"), scope)  # noqa: S102 - of numbered names alone
    build: RowBuilder = scope["rows"]
    return build


def _result_converter_or_none(
    column_type: TypeEngine[Any], dialect: Dialect
) -> Callable[[Any], Any] | None:
    """Return the function that converts the driver's values of a type, if one is needed."""
    if dialect.name == "postgresql":
        if isinstance(column_type, UtcDateTime):
            return datetime_from_storage
        if isinstance(column_type, Numeric | Float):  # SQLAlchemy would need the driver's type code
            return Decimal if column_type.asdecimal else float
        if isinstance(column_type, JSON):
            return lists_or_objects_from_postgres
    if dialect.name == "sqlite":  # faster than SQLAlchemy's, with the same results
        if isinstance(column_type, UtcDateTime):
            return utc_from_sqlite_text
        if isinstance(column_type, JSON):
            return orjson.loads
    return column_type.dialect_impl(dialect).result_processor(dialect, None)


def lists_or_objects_from_postgres(value: Any) -> Any:
    """Convert a stored list or object, which connections of transactions have decoded already."""
    return orjson.loads(value) if isinstance(value, str) else value


def utc_from_sqlite_text(text: str) -> datetime:
    """Convert a stored time of SQLite, which is UTC without a time zone."""
    return datetime.fromisoformat(f"{text}+00:00")


def integer_parameter(name: str) -> BindParameter[int]:
    """Return a parameter that is an id or a count."""
    return bindparam(name, type_=BIG_INTEGER)


def is_in_parameter(
    dialect: str, key: Any, parameter_name: str, element_type: type[TypeEngine[Any]] = BigInteger
) -> ColumnElement[bool]:
    """Return SQL that is true if a key is in a list, which is a single parameter of any length."""
    if dialect == "sqlite":
        json_values = func.json_each(bindparam(parameter_name, type_=JSON)).table_valued("value")
        condition: ColumnElement[bool] = key.in_(select(json_values.c.value))
        return condition
    return cast(
        "ColumnElement[bool]", key == any_(bindparam(parameter_name, type_=ARRAY(element_type)))
    )


def rows_from_parameter(dialect: str, parameter_name: str, columns: Sequence[str]) -> Subquery:
    """Return SQL for rows of integers with these columns; the parameter is a list of lists."""
    if dialect == "sqlite":
        json_values = func.json_each(bindparam(parameter_name, type_=JSON)).table_valued("value")
        texts = [f"json_extract(value, '$[{nth}]')" for nth in range(len(columns))]
    else:
        json_values = func.jsonb_array_elements(
            bindparam(parameter_name, type_=JSONB)
        ).table_valued("value")
        texts = [f"cast(value ->> {nth} AS bigint)" for nth in range(len(columns))]
    values = zip(texts, columns, strict=True)
    return (
        select(*(literal_column(text, BIG_INTEGER).label(column) for text, column in values))
        .select_from(json_values)
        .subquery(parameter_name)
    )


def prepare_cached(
    build: Callable[Parameters, SqlStatement],
) -> Callable[Parameters, PreparedStatement]:
    """Cache the prepared statements of a function that builds statements, by its arguments."""

    @lru_cache(CACHE_SIZE)
    @wraps(build)
    def cached(*args: Parameters.args, **kwargs: Parameters.kwargs) -> PreparedStatement:
        return PreparedStatement(build(*args, **kwargs))

    # lru_cache forgets the parameters
    return cast("Callable[Parameters, PreparedStatement]", cached)
