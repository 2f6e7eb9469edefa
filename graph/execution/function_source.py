"""The source of a generated function, with its variables and constants."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from graphql import GraphQLObjectType, GraphQLSchema, Undefined
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet

from graph.execution.completed_rows import CompleteRowFunction
from graph.execution.generated_code import FallbackNeeded, LargeValue, is_exception_or_awaitable
from graph.execution.leaf_checks import NEVER_AWAITABLE_TYPES
from graph.execution.response_size import ResponseBudget, estimated_json_size
from graph.types.object_views import ViewList
from models.store.prepared_statements import ResultColumn, utc_from_sqlite_text

CompleteFunction = Callable[[Any, ResponseBudget], Any]


class OperationFields(Protocol):
    """The schema and the collected fields of an operation."""

    schema: GraphQLSchema

    def subfields(
        self, object_type: GraphQLObjectType, details: FieldDetailsList
    ) -> GroupedFieldSet:
        """Return the subfields, grouped by response name.

        Raises FallbackNeeded for @defer.
        """


class FunctionSource:
    """The source of one function and the constants that it uses.

    The function has the parameters `v`, the value to complete, and `b`, the response budget.
    """

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {
            "Fallback": FallbackNeeded,
            "LargeValue": LargeValue,
            "Listed": ViewList,
            "Undefined": Undefined,
            "isfinite": math.isfinite,
            "len": len,
            "unusable": is_exception_or_awaitable,
            "json_size": estimated_json_size,
            "str": str,
            "type": type,
            "never_awaitable": NEVER_AWAITABLE_TYPES,
        }
        self.lines: list[str] = []
        self._variable_count = 0

    def add_constant(self, value: Any) -> str:
        """Add a constant to the function and return its name."""
        name = self.new_variable("k")
        self.constants[name] = value
        return name

    def new_variable(self, prefix: str) -> str:
        """Return the name of a new variable."""
        self._variable_count += 1
        return f"{prefix}{self._variable_count}"

    def write_line(self, indent: int, line: str) -> None:
        """Write a line."""
        self.lines.append("    " * indent + line)

    def compile_function(self, result_expression: str) -> CompleteFunction:
        """Compile the lines to a function that returns this expression.

        Raises FallbackNeeded if the source is nested too deeply.
        """
        self.write_line(1, "b.add_response_bytes(n)")
        function: CompleteFunction = self._compile(result_expression)
        return function

    def compile_row_function(self, result_expression: str) -> CompleteRowFunction:
        """Compile the lines to a function that returns this expression and its bytes of JSON.

        The function doesn't add the bytes to the budget. Raises FallbackNeeded if the source is
        nested too deeply.
        """
        function: CompleteRowFunction = self._compile(f"({result_expression}, n)")
        return function

    def _compile(self, result_expression: str) -> Any:
        local = "".join(f", {name}={name}" for name in self.constants)
        head, end = f"def complete(v, b{local}):", f"    return {result_expression}"
        body = "\n".join((head, "    n = 0", *self.lines, end, ""))
        try:
            code = compile(body, "<plan>", "exec")
        except SyntaxError:  # Python allows 20 nested loops and 100 indents
            raise FallbackNeeded("depth") from None
        exec(code, self.constants)  # noqa: S102 - the source has names of the schema only
        return self.constants["complete"]


class RowVariables:
    """The variables that hold the columns of an unconverted row."""

    def __init__(
        self, source: FunctionSource, columns: Mapping[str, ResultColumn], indent: int
    ) -> None:
        self.columns = columns
        self.raw_variables = {name: f"c{nth}" for nth, name in enumerate(columns)}
        self._source = source
        self._indent = indent
        self._converted_variables: dict[str, str] = {}

    def write_column_conversion_once(self, column_name: str) -> str:
        """Return the variable with the converted value of a column.

        Writes the conversion at the first use. Raises FallbackNeeded if the column is missing.
        """
        column, raw_value = self.columns.get(column_name), self.raw_variables.get(column_name, "")
        if column is None:
            raise FallbackNeeded("no column")
        if column.convert is None:
            return raw_value
        if column_name not in self._converted_variables:
            variable = self._converted_variables[column_name] = f"p{raw_value}"
            expression = column.expression.format(
                raw_value, self._source.add_constant(column.convert)
            )
            self._source.write_line(self._indent, f"{variable} = {expression}")
        return self._converted_variables[column_name]

    def is_instant_text(self, column_name: str) -> bool:
        """True if the driver returns the column as the text of an instant."""
        column = self.columns.get(column_name)
        return column is not None and column.convert is utc_from_sqlite_text


class CompiledAttributeFields(NamedTuple):
    """The function for the attribute fields of an object, and the fields left to graphql-core."""

    complete: CompleteFunction
    remaining_fields: GroupedFieldSet


class ObjectVariables(NamedTuple):
    """The names of the variables that hold an object and the source of its fields.

    For an unconverted row there is no object: `row_variables` has the variables of its columns.
    """

    object_variable: str
    source_variable: str
    row_variables: RowVariables | None = None
