"""Generation of Python functions that complete values of one selection set.

Generated code never reports a GraphQL error. If a value doesn't fit its type, the function
raises an exception, and the executor gives the same value to graphql-core, which creates the
exact error, path and null.

Names of the schema and of a document get into the source through `repr()` only. Literals of a
document are never part of the source.

Each function counts the bytes of the completed value in `n` and adds them to the response
budget `b`, which raises an exception if the limit is exceeded.
"""

from enum import Enum
from typing import Any, Protocol

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
    get_nullable_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from strawberry.types.base import StrawberryObjectDefinition

from graph.execution.function_source import (
    CompleteFunction,
    FunctionSource,
    ObjectVariables,
    RowVariables,
)
from graph.execution.generated_code import FallbackNeeded, rfc3339_from_sqlite_text
from graph.execution.leaf_checks import FIXED_SIZE_SCALARS, INVALID_VALUE_CHECKS, TEXT_SCALARS
from graph.execution.list_steps import MAX_ITEMS_PER_CALL
from graph.execution.response_size import FIELD_OVERHEAD_BYTES
from graph.execution.response_size import NON_TEXT_VALUE_BYTES as OTHER_SIZE
from graph.execution.strawberry_definitions import (
    derived_fields_of_type,
    is_attribute_field,
    is_link_field,
    link_of,
    python_class_of_type,
    strawberry_definition,
)
from graph.types.object_views import (
    KEY_FIELDS,
    DerivedField,
    ExpressionField,
    KeyRow,
    NestedViewField,
    ThreadedIfLargeField,
    ViewList,
    WholeSourceField,
    return_unchanged,
)
from models.store.prepared_statements import CompiledStatement

MAX_STATEMENTS_PER_LIST = 8  # an argument can choose another statement for the same list
MAX_POSSIBLE_TYPES = 40  # of an interface or a union that is compiled


class OperationFields(Protocol):
    """The schema and the collected fields of an operation."""

    schema: GraphQLSchema

    def subfields(
        self, object_type: GraphQLObjectType, details: FieldDetailsList
    ) -> GroupedFieldSet:
        """Return the subfields, grouped by response name.

        Raises FallbackNeeded for @defer.
        """


class RowListFunctions:
    """The functions that complete the rows of a list, one for each SQL statement of the list."""

    def __init__(
        self, document: OperationFields, object_type: GraphQLObjectType, details: FieldDetailsList
    ) -> None:
        self.document = document
        self.object_type = object_type
        self.details = details
        self._functions: dict[int, tuple[CompiledStatement, CompleteFunction | None]] = {}

    def __call__(self, view_list: ViewList) -> CompleteFunction | None:
        """Return the function for these rows; None if the list must be completed by objects."""
        driven = view_list.rows.compiled
        function = self._functions.get(id(driven))
        if function is None:
            if len(self._functions) >= MAX_STATEMENTS_PER_LIST:
                return None
            function = self._functions[id(driven)] = driven, self._compile_for_statement(driven)
        return function[1]

    def _compile_for_statement(self, statement: CompiledStatement) -> CompleteFunction | None:
        try:
            return FunctionWriter(self.document).compile_rows_function(
                self.object_type, self.details, statement
            )
        except FallbackNeeded:
            return None


class FunctionWriter(FunctionSource):
    """A writer of the function that completes the values of one selection set."""

    def __init__(self, document: OperationFields) -> None:
        super().__init__()
        self.document = document

    def compile_value_function(
        self, output_type: GraphQLOutputType, details: FieldDetailsList
    ) -> CompleteFunction:
        """Compile the function that completes a value of this type.

        Raises FallbackNeeded if the selection can't be compiled.
        """
        return self.compile_function(self._write_value(output_type, details, "v", 1))

    def compile_attribute_fields_function(
        self, object_type: GraphQLObjectType, grouped_fields: GroupedFieldSet
    ) -> tuple[CompleteFunction, GroupedFieldSet]:
        """Compile the function for the attribute fields of an object.

        Returns the function and the fields that graphql-core must execute. The function's result
        has all fields in order, with None for these. Raises FallbackNeeded if no field can be
        compiled.
        """
        self.write_line(1, "if unusable(v): raise Fallback('odd')")
        object_variable = self._write_class_check(object_type, "v", 1)
        parts, rest = [], {}
        for name, details in grouped_fields.items():
            mark = len(self.lines)
            try:
                if is_link_field(self._field_definition(object_type, details)):
                    raise FallbackNeeded("link")
                parts.append(
                    f"{name!r}: {self._write_field(object_type, details, object_variable, 1)}"
                )
            except FallbackNeeded:
                del self.lines[mark:]
                rest[name] = details
                parts.append(f"{name!r}: None")
        if len(rest) == len(grouped_fields):
            raise FallbackNeeded("resolver")
        self.write_line(1, f"n += {self._fixed_object_size(grouped_fields)}")
        return self.compile_function(f"{{{', '.join(parts)}}}"), rest

    def compile_rows_function(
        self,
        object_type: GraphQLObjectType,
        details: FieldDetailsList,
        statement: CompiledStatement,
    ) -> CompleteFunction:
        """Compile the function that completes a list from the unconverted rows of a statement.

        Raises FallbackNeeded if a field needs more than columns.
        """
        raw = RowVariables(self, statement.columns, 2)
        self.write_line(1, "o = []")
        self.write_line(1, f"for {', '.join(raw.raw_variables.values())}, in v:")
        self._write_fields(object_type, details, ObjectVariables("", "", raw), "one", 2)
        self.write_line(2, "o.append(one)")
        self._write_budget_check(2)
        return self.compile_function("o")

    def _write_value(
        self,
        output_type: GraphQLOutputType,
        details: FieldDetailsList,
        var: str,
        indent: int,
        *,
        nullable: bool = True,
    ) -> str:
        """Write the completion of the variable `var`; return the variable with the result."""
        if is_non_null_type(output_type):
            return self._write_value(output_type.of_type, details, var, indent, nullable=False)
        out = self.new_variable("o")
        if nullable:
            self.write_line(indent, f"if {var} is None: {out} = None")
            self.write_line(indent, "else:")
            indent += 1
        if is_list_type(output_type):
            self._write_list(output_type.of_type, details, var, out, indent)
        elif isinstance(output_type, GraphQLEnumType):
            self._write_enum(output_type, var, out, indent)
        elif is_leaf_type(output_type):
            self._write_scalar(output_type, var, out, indent)
        elif isinstance(output_type, GraphQLObjectType):
            self._write_object(output_type, details, var, out, indent)
        elif isinstance(output_type, GraphQLInterfaceType | GraphQLUnionType):
            self._write_abstract(output_type, details, var, out, indent)
        return out

    def _write_scalar(self, scalar_type: Any, var: str, out: str, indent: int) -> None:
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

    def _write_budget_check(self, indent: int) -> None:
        """Write the check at the end of a loop that the response limit is not exceeded."""
        self.write_line(indent, "if n > b.left: b.raise_exceeded()")

    def _write_list_check(self, var: str, indent: int) -> None:
        """Write the check of a list's type and length."""
        self.write_line(indent, f"if type({var}) is not list: raise Fallback('type')")
        self.write_line(indent, f"if len({var}) > {MAX_ITEMS_PER_CALL}: raise LargeValue")

    @staticmethod
    def _fixed_object_size(grouped_fields: GroupedFieldSet) -> int:
        """Return the bytes of an object in JSON without its texts and nested objects."""
        return sum(len(name) + FIELD_OVERHEAD_BYTES + OTHER_SIZE for name in grouped_fields)

    def _write_enum(self, enum_type: GraphQLEnumType, var: str, out: str, indent: int) -> None:
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

    def _write_list(
        self,
        item_type: GraphQLOutputType,
        details: FieldDetailsList,
        var: str,
        out: str,
        indent: int,
    ) -> None:
        one = self.new_variable("i")
        bare = get_nullable_type(item_type)
        if isinstance(bare, GraphQLObjectType) and derived_fields_of_type(bare) is not None:
            function, rows = (
                self.new_variable("f"),
                self.add_constant(RowListFunctions(self.document, bare, details)),
            )
            self.write_line(
                indent, f"{function} = {rows}({var}) if type({var}) is Listed else None"
            )
            self.write_line(
                indent, f"if {function} is not None: {out} = {function}({var}.rows.raw, b)"
            )
            self.write_line(indent, "else:")
            self.write_line(indent + 1, f"if type({var}) is Listed: {var} = {var}.items")
            indent += 1
        self._write_list_check(var, indent)
        self.write_line(indent, f"{out} = []")
        self.write_line(indent, f"for {one} in {var}:")
        self.write_line(
            indent + 1, f"{out}.append({self._write_value(item_type, details, one, indent + 1)})"
        )
        self._write_budget_check(indent + 1)

    def _write_object(
        self,
        object_type: GraphQLObjectType,
        details: FieldDetailsList,
        var: str,
        out: str,
        indent: int,
    ) -> None:
        if derived_fields_of_type(object_type) is None and not object_type.is_type_of:
            self.write_line(indent, f"if {var} is None or unusable({var}): raise Fallback('null')")
        elif derived_fields_of_type(object_type) is None:
            # graphql-core checks subclasses and objects cast to another type
            origin = self.add_constant(python_class_of_type(object_type))
            self.write_line(indent, f"if type({var}) is not {origin}: raise Fallback('type')")
        self._write_fields(
            object_type,
            details,
            self._write_class_check(object_type, var, indent),
            out,
            indent,
        )

    def _write_class_check(
        self, object_type: GraphQLObjectType, var: str, indent: int
    ) -> ObjectVariables:
        """Write the check of the object's class; return its variables.

        The source of a view's fields is its row.
        """
        if derived_fields_of_type(object_type) is None:
            return ObjectVariables(var, var)
        python_class = self.add_constant(python_class_of_type(object_type))
        self.write_line(indent, f"if type({var}) is not {python_class}: raise Fallback('type')")
        source = self.new_variable("s")
        self.write_line(indent, f"{source} = {var}.row")
        return ObjectVariables(var, source)

    def _write_fields(
        self,
        object_type: GraphQLObjectType,
        details: FieldDetailsList,
        object_variables: ObjectVariables,
        out: str,
        indent: int,
    ) -> None:
        grouped = self.document.subfields(object_type, details)
        parts = [
            f"{name!r}: {self._write_field(object_type, below, object_variables, indent)}"
            for name, below in grouped.items()
        ]
        self.write_line(indent, f"n += {self._fixed_object_size(grouped)}")
        self.write_line(indent, f"{out} = {{{', '.join(parts)}}}")

    def _write_abstract(
        self,
        abstract_type: GraphQLInterfaceType | GraphQLUnionType,
        details: FieldDetailsList,
        var: str,
        out: str,
        indent: int,
    ) -> None:
        """Write the call of one function per possible type; other types fall back."""
        types = self.document.schema.get_possible_types(abstract_type)
        if len(types) > MAX_POSSIBLE_TYPES:
            raise FallbackNeeded("abstract")
        branches: dict[type, CompleteFunction] = {}
        for each in types:
            definition = strawberry_definition(each)
            if isinstance(definition, StrawberryObjectDefinition) and not definition.concrete_of:
                try:
                    branches[definition.origin] = FunctionWriter(
                        self.document
                    ).compile_value_function(each, details)
                except FallbackNeeded:
                    continue
        if not branches:
            raise FallbackNeeded("abstract")
        branch = self.new_variable("b")
        self.write_line(indent, f"{branch} = {self.add_constant(branches)}.get(type({var}))")
        self.write_line(indent, f"if {branch} is None: raise Fallback('type')")
        self.write_line(indent, f"{out} = {branch}({var}, b)")
        self.write_line(indent, f"if {out} is None: raise Fallback('null')")

    def _field_definition(
        self, object_type: GraphQLObjectType, details: FieldDetailsList
    ) -> GraphQLField:
        field = self.document.schema.get_field(object_type, details[0].node.name.value)
        if field is None:
            raise FallbackNeeded("unknown")
        return field

    def _write_field(
        self,
        object_type: GraphQLObjectType,
        details: FieldDetailsList,
        object_variables: ObjectVariables,
        indent: int,
    ) -> str:
        """Write the statements for one field and return the expression of its value."""
        if details[0].node.name.value == "__typename":
            return repr(object_type.name)
        field = self._field_definition(object_type, details)
        name = getattr(strawberry_definition(field), "python_name", "")
        raw, derived = self.new_variable("r"), derived_fields_of_type(object_type) or {}
        if (
            (to := link_of(field))
            and to.exists
            and self._selected_names(field, details) <= KEY_FIELDS
        ):
            (key,) = to.columns
            key = (
                object_variables.row_variables.variable_of_column(key)
                if object_variables.row_variables
                else f"{object_variables.source_variable}.{key}"
            )
            self.write_line(indent, f"{raw} = {self.add_constant(KeyRow)}({key})")
            return self._write_view(field.type, details, raw, indent)
        if object_variables.row_variables:
            return self._write_field_of_row(
                field, derived.get(name), name, details, object_variables.row_variables, indent
            )
        if is_link_field(field):  # set by its list, or resolved by graphql-core
            self.write_line(
                indent,
                f"{raw} = {object_variables.object_variable}.__dict__.get({name!r}, Undefined)",
            )
            self.write_line(indent, f"if {raw} is Undefined: raise Fallback('link')")
        elif not is_attribute_field(field):
            raise FallbackNeeded("resolver")
        elif isinstance(viewed := derived.get(name), NestedViewField):
            look = self.add_constant(viewed.sources_from_source)
            self.write_line(indent, f"{raw} = {look}({object_variables.source_variable})")
            return self._write_view(field.type, details, raw, indent)
        elif isinstance(expressed := derived.get(name), ExpressionField):
            self.write_line(
                indent, f"{raw} = {expressed.expression.format(object_variables.source_variable)}"
            )
        elif name in derived:
            if isinstance(threaded := derived[name], ThreadedIfLargeField):
                is_large = self.add_constant(threaded.is_large)
                self.write_line(
                    indent, f"if {is_large}({object_variables.source_variable}): raise LargeValue"
                )
            derive = self.add_constant(derived[name].derive_from_source)
            self.write_line(indent, f"{raw} = {derive}({object_variables.source_variable})")
        else:
            self.write_line(indent, f"{raw} = {object_variables.source_variable}.{name}")
        return self._write_value(field.type, details, raw, indent)

    def _write_field_of_row(
        self,
        field: GraphQLField,
        derived_field: DerivedField | None,
        name: str,
        details: FieldDetailsList,
        row_variables: RowVariables,
        indent: int,
    ) -> str:
        """Write the completion of a field of an unconverted row; return the expression."""
        if not is_attribute_field(field) or (
            derived_field
            and (isinstance(derived_field, WholeSourceField) or not derived_field.columns)
        ):
            raise FallbackNeeded("resolver")
        if derived_field is None:
            if get_named_type(field.type).name == "DateTime" and row_variables.is_instant_text(
                name
            ):
                return self._write_instant(field.type, row_variables.raw_variables[name], indent)
            return self._write_value(
                field.type, details, row_variables.variable_of_column(name), indent
            )
        values = ", ".join(row_variables.variable_of_column(one) for one in derived_field.columns)
        raw = self.new_variable("r")
        maker = (
            derived_field.sources_from_columns
            if isinstance(derived_field, NestedViewField)
            else derived_field.derive
        )
        call = values if maker is return_unchanged else f"{self.add_constant(maker)}({values})"
        self.write_line(indent, f"{raw} = {call}")
        if isinstance(derived_field, NestedViewField):
            return self._write_view(field.type, details, raw, indent)
        return self._write_value(field.type, details, raw, indent)

    def _write_instant(self, output_type: GraphQLOutputType, var: str, indent: int) -> str:
        """Write the conversion of an instant that the driver returns as text."""
        out = self.new_variable("o")
        empty = "raise Fallback('null')" if is_non_null_type(output_type) else f"{out} = None"
        self.write_line(indent, f"if {var} is None: {empty}")
        self.write_line(
            indent, f"else: {out} = {self.add_constant(rfc3339_from_sqlite_text)}({var})"
        )
        return out

    def _write_view(
        self, output_type: GraphQLOutputType, details: FieldDetailsList, var: str, indent: int
    ) -> str:
        """Write the completion of a view, or list of views, without creating view objects."""
        nullable, bare = not is_non_null_type(output_type), get_nullable_type(output_type)
        out = self.new_variable("o")
        self.write_line(indent, f"if {var} is None:")
        self.write_line(indent + 1, f"{out} = None" if nullable else "raise Fallback('null')")
        self.write_line(indent, "else:")
        if is_list_type(bare):
            one, output = self.new_variable("i"), self.new_variable("o")
            self._write_list_check(var, indent + 1)
            self.write_line(indent + 1, f"{out} = []")
            self.write_line(indent + 1, f"for {one} in {var}:")
            self._write_fields(
                self._require_object_type(bare.of_type),
                details,
                ObjectVariables(one, one),
                output,
                indent + 2,
            )
            self.write_line(indent + 2, f"{out}.append({output})")
            self._write_budget_check(indent + 2)
        else:
            self._write_fields(
                self._require_object_type(bare), details, ObjectVariables(var, var), out, indent + 1
            )
        return out

    def _selected_names(self, field: GraphQLField, details: FieldDetailsList) -> set[str]:
        """Return the names of the subfields of a field with an object type."""
        grouped = self.document.subfields(self._require_object_type(field.type), details)
        return {below[0].node.name.value for below in grouped.values()}

    def _require_object_type(self, output_type: object) -> GraphQLObjectType:
        bare = output_type.of_type if is_non_null_type(output_type) else output_type
        if not isinstance(bare, GraphQLObjectType):
            raise FallbackNeeded("abstract")
        return bare
