"""Source lines that complete leaf values: scalars and enums, and the checks of lists and sizes."""

from enum import Enum
from typing import Any

from graphql import GraphQLEnumType, GraphQLOutputType, is_non_null_type
from graphql.execution.collect_fields import GroupedFieldSet

from graph.execution.function_source import FunctionSource
from graph.execution.generated_code import FallbackNeeded, rfc3339_from_sqlite_text_or_fall_back
from graph.execution.leaf_checks import FIXED_SIZE_SCALARS, INVALID_VALUE_CHECKS, TEXT_SCALARS
from graph.execution.list_steps import MAX_ITEMS_PER_CALL
from graph.execution.response_size import FIELD_OVERHEAD_BYTES
from graph.execution.response_size import NON_TEXT_VALUE_BYTES as OTHER_SIZE
from graph.execution.strawberry_definitions import strawberry_definition


class LeafWriter(FunctionSource):
    """A writer of the source lines for leaf values, and of the checks of lists and sizes."""

    def write_scalar(self, scalar_type: Any, var: str, out: str, indent: int) -> None:
        """Write the completion of a scalar: variable `var` to variable `out`."""
        coerce = self.add_constant(scalar_type.coerce_output_value)
        if other := INVALID_VALUE_CHECKS.get(scalar_type.name):
            self.write_line(indent, f"{out} = {var}")
            self.write_line(indent, f"if {other.format(v=var)}:")
            indent += 1
        is_unusable = f"type({var}) not in never_awaitable and unusable({var})"
        self.write_line(indent, f"if {is_unusable}: raise Fallback('odd')")
        self.write_line(indent, f"{out} = {coerce}({var})")
        self.write_line(indent, f"if {out} is None or {out} is Undefined: raise Fallback('null')")
        if other and scalar_type.name in TEXT_SCALARS:
            self.write_line(indent - 1, f"n += len({out})")
        elif scalar_type.name not in FIXED_SIZE_SCALARS:
            self.write_line(indent - bool(other), f"n += json_size({out})")

    def write_enum(self, enum_type: GraphQLEnumType, var: str, out: str, indent: int) -> None:
        """Write the completion of an enum member: variable `var` to variable `out`.

        Raises FallbackNeeded if the enum has no Python class.
        """
        members: type[Enum] | None = getattr(strawberry_definition(enum_type), "wrapped_cls", None)
        if members is None:
            raise FallbackNeeded("enum")
        names_by_member = self.add_constant(
            {member: enum_type.coerce_output_value(member) for member in members}
        )
        self.write_line(
            indent, f"if type({var}) is not {self.add_constant(members)}: raise Fallback('type')"
        )
        self.write_line(indent, f"{out} = {names_by_member}[{var}]")

    def write_instant_to_variable(
        self, output_type: GraphQLOutputType, var: str, indent: int
    ) -> str:
        """Write the conversion of an instant that the driver returns as text."""
        out = self.new_variable("o")
        empty = "raise Fallback('null')" if is_non_null_type(output_type) else f"{out} = None"
        self.write_line(indent, f"if {var} is None: {empty}")
        self.write_line(
            indent,
            f"else: {out} = {self.add_constant(rfc3339_from_sqlite_text_or_fall_back)}({var})",
        )
        return out

    def write_budget_check(self, indent: int) -> None:
        """Write the check at the end of a loop that the response limit is not exceeded."""
        self.write_line(indent, "if n > b.left: b.raise_exceeded()")

    def write_list_check(self, var: str, indent: int) -> None:
        """Write the check of a list's type and length."""
        self.write_line(indent, f"if type({var}) is not list: raise Fallback('type')")
        self.write_line(indent, f"if len({var}) > {MAX_ITEMS_PER_CALL}: raise LargeValue")

    @staticmethod
    def fixed_object_size(grouped_fields: GroupedFieldSet) -> int:
        """Return the bytes of an object in JSON without its texts and nested objects."""
        return sum(len(name) + FIELD_OVERHEAD_BYTES + OTHER_SIZE for name in grouped_fields)
