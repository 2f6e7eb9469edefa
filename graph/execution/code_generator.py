"""Generation of Python functions that complete values of one selection set.

Generated code never reports a GraphQL error. If a value doesn't fit its type, the function
raises an exception, and the executor gives the same value to graphql-core, which creates the
exact error, path and null.

Names of the schema and of a document get into the source through `repr()` only. Literals of a
document are never part of the source.

Each function counts the bytes of the completed value in `n` and adds them to the response
budget `b`, which raises an exception if the limit is exceeded.
"""

from collections.abc import Sequence

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLUnionType,
    get_named_type,
    get_nullable_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from strawberry.types.base import StrawberryObjectDefinition

from graph.execution.completed_rows import RowsFunction
from graph.execution.function_source import (
    CompiledAttributeFields,
    CompleteFunction,
    ObjectVariables,
    OperationFields,
    RowVariables,
)
from graph.execution.generated_code import FallbackNeeded
from graph.execution.leaf_writer import LeafWriter
from graph.execution.strawberry_definitions import (
    derived_fields_of_type_or_none,
    is_attribute_field,
    is_link_field,
    link_of_field_or_none,
    python_class_of_type,
    strawberry_definition,
)
from graph.types.object_views import (
    KEY_FIELDS,
    DerivedField,
    ExpressionField,
    KeyRow,
    NestedViewField,
    SameRowField,
    ThreadedIfLargeField,
    ViewList,
    WholeSourceField,
    key_column_of_link,
    return_unchanged,
)
from models.store.prepared_statements import CompiledStatement

MAX_STATEMENTS_PER_LIST = 8  # an argument can choose another statement for the same list
MAX_POSSIBLE_TYPES = 40  # of an interface or a union that is compiled


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


class TypeFunctions(dict[type, CompleteFunction | None]):
    """The functions that complete the objects of an interface or union, by Python class.

    A function is compiled when the first object of its class is completed: most documents select
    `errors`, which has 15 possible types, and most responses have none. The value is None if the
    class is that of no possible type, or if the selection can't be compiled.
    """

    def __init__(
        self,
        document: OperationFields,
        possible_types: Sequence[GraphQLObjectType],
        details: FieldDetailsList,
    ) -> None:
        super().__init__()
        self._document = document
        self._details = details
        self._types: dict[type, GraphQLObjectType] = {}
        for object_type in possible_types:
            definition = strawberry_definition(object_type)
            if isinstance(definition, StrawberryObjectDefinition) and not definition.concrete_of:
                self._types[definition.origin] = object_type

    def __missing__(self, python_class: type) -> CompleteFunction | None:
        if python_class not in self._types:
            return None  # not stored: any class can occur here
        try:
            function = FunctionWriter(self._document).compile_value_function(
                self._types[python_class], self._details
            )
        except FallbackNeeded:
            function = None
        self[python_class] = function
        return function

    def can_compile_any(self) -> bool:
        """Return True if the selection can be compiled for one of the types."""
        return any(self[python_class] for python_class in self._types)


class FunctionWriter(LeafWriter):
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
        return self.compile_function(self._write_value_to_variable(output_type, details, "v", 1))

    def compile_attribute_fields_function(
        self, object_type: GraphQLObjectType, grouped_fields: GroupedFieldSet
    ) -> CompiledAttributeFields:
        """Compile the function that reads the attribute fields of an object.

        Returns the function, and the fields that it can't read and graphql-core must execute. The
        result of the function has all fields in order; the fields for graphql-core are None in it.
        Raises FallbackNeeded if no field can be compiled.
        """
        self.write_line(1, "if unusable(v): raise Fallback('odd')")
        object_variable = self._write_class_check_to_variables(object_type, "v", 1)
        parts, rest = [], {}
        for name, details in grouped_fields.items():
            line_count = len(self.lines)
            try:
                if is_link_field(self._field_definition(object_type, details)):
                    raise FallbackNeeded("link")
                value = self._write_field_expression(object_type, details, object_variable, 1)
                parts.append(f"{name!r}: {value}")
            except FallbackNeeded:
                del self.lines[line_count:]
                rest[name] = details
                parts.append(f"{name!r}: None")
        if len(rest) == len(grouped_fields):
            raise FallbackNeeded("resolver")
        self.write_line(1, f"n += {self.fixed_object_size(grouped_fields)}")
        return CompiledAttributeFields(self.compile_function(f"{{{', '.join(parts)}}}"), rest)

    def compile_rows_function(
        self,
        object_type: GraphQLObjectType,
        details: FieldDetailsList,
        statement: CompiledStatement,
    ) -> RowsFunction:
        """Compile the function that completes a list from the unconverted rows of a statement.

        Raises FallbackNeeded if a field needs more than columns, or if a column has arrays.
        """
        if not statement.has_hashable_rows:
            raise FallbackNeeded("array")  # such a row is no key of a cache
        row = RowVariables(self, statement.columns, 1)
        self.write_line(1, f"{', '.join(row.raw_variables.values())}, = v")
        self._write_fields(object_type, details, ObjectVariables("", "", row), "o", 1)
        return RowsFunction(self.compile_row_function("o"))

    def _write_value_to_variable(
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
            return self._write_value_to_variable(
                output_type.of_type, details, var, indent, nullable=False
            )
        out = self.new_variable("o")
        if nullable:
            self.write_line(indent, f"if {var} is None: {out} = None")
            self.write_line(indent, "else:")
            indent += 1
        if is_list_type(output_type):
            self._write_list(output_type.of_type, details, var, out, indent)
        elif isinstance(output_type, GraphQLEnumType):
            self.write_enum(output_type, var, out, indent)
        elif is_leaf_type(output_type):
            self.write_scalar(output_type, var, out, indent)
        elif isinstance(output_type, GraphQLObjectType):
            self._write_object(output_type, details, var, out, indent)
        elif isinstance(output_type, GraphQLInterfaceType | GraphQLUnionType):
            self._write_call_by_possible_type(output_type, details, var, out, indent)
        return out

    def _write_list(
        self,
        item_type: GraphQLOutputType,
        details: FieldDetailsList,
        var: str,
        out: str,
        indent: int,
    ) -> None:
        index_name = self.new_variable("i")
        bare = get_nullable_type(item_type)
        if isinstance(bare, GraphQLObjectType) and derived_fields_of_type_or_none(bare) is not None:
            function = self.new_variable("f")
            rows = self.add_constant(RowListFunctions(self.document, bare, details))
            self.write_line(
                indent, f"{function} = {rows}({var}) if type({var}) is Listed else None"
            )
            self.write_line(
                indent, f"if {function} is not None: {out} = {function}({var}.rows.raw, b)"
            )
            self.write_line(indent, "else:")
            self.write_line(indent + 1, f"if type({var}) is Listed: {var} = {var}.items")
            indent += 1
        self.write_list_check(var, indent)
        self.write_line(indent, f"{out} = []")
        self.write_line(indent, f"for {index_name} in {var}:")
        item = self._write_value_to_variable(item_type, details, index_name, indent + 1)
        self.write_line(indent + 1, f"{out}.append({item})")
        self.write_budget_check(indent + 1)

    def _write_object(
        self,
        object_type: GraphQLObjectType,
        details: FieldDetailsList,
        var: str,
        out: str,
        indent: int,
    ) -> None:
        if derived_fields_of_type_or_none(object_type) is None and not object_type.is_type_of:
            self.write_line(indent, f"if {var} is None or unusable({var}): raise Fallback('null')")
        elif derived_fields_of_type_or_none(object_type) is None:
            # graphql-core checks subclasses and objects cast to another type
            origin = self.add_constant(python_class_of_type(object_type))
            self.write_line(indent, f"if type({var}) is not {origin}: raise Fallback('type')")
        self._write_fields(
            object_type,
            details,
            self._write_class_check_to_variables(object_type, var, indent),
            out,
            indent,
        )

    def _write_class_check_to_variables(
        self, object_type: GraphQLObjectType, var: str, indent: int
    ) -> ObjectVariables:
        """Write the check of the object's class; return its variables.

        The source of a view's fields is its row.
        """
        if derived_fields_of_type_or_none(object_type) is None:
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
        values = {
            name: self._write_field_expression(object_type, below, object_variables, indent)
            for name, below in grouped.items()
        }
        parts = [f"{name!r}: {value}" for name, value in values.items()]
        self.write_line(indent, f"n += {self.fixed_object_size(grouped)}")
        self.write_line(indent, f"{out} = {{{', '.join(parts)}}}")

    def _write_call_by_possible_type(
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
        functions = TypeFunctions(self.document, types, details)
        if not functions.can_compile_any():
            raise FallbackNeeded("abstract")
        branch = self.new_variable("b")
        self.write_line(indent, f"{branch} = {self.add_constant(functions)}[type({var})]")
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

    def _write_field_expression(
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
        raw, derived = self.new_variable("r"), derived_fields_of_type_or_none(object_type) or {}
        if (
            (field_link := link_of_field_or_none(field))
            and field_link.exists
            and self._selected_names(field, details) <= KEY_FIELDS
        ):
            (key,) = field_link.columns
            key = (
                object_variables.row_variables.write_column_conversion_once(key)
                if object_variables.row_variables
                else f"{object_variables.source_variable}.{key}"
            )
            self.write_line(indent, f"{raw} = {self.add_constant(KeyRow)}({key})")
            return self._write_view_to_variable(field.type, details, raw, indent)
        if object_variables.row_variables:
            return self._write_row_field_expression(
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
            return self._write_view_to_variable(field.type, details, raw, indent)
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
        return self._write_value_to_variable(field.type, details, raw, indent)

    def _write_row_field_expression(
        self,
        field: GraphQLField,
        derived_field: DerivedField | None,
        name: str,
        details: FieldDetailsList,
        row_variables: RowVariables,
        indent: int,
    ) -> str:
        """Write the completion of a field of an unconverted row; return the expression."""
        if isinstance(derived_field, SameRowField):
            out, bare = self.new_variable("o"), self._require_object_type(field.type)
            self._write_fields(bare, details, ObjectVariables("", "", row_variables), out, indent)
            return out
        if field_link := link_of_field_or_none(field):  # the list has loaded the key
            key = row_variables.write_column_conversion_once(key_column_of_link(name))
            raw, derive = self.new_variable("r"), field_link.object_from_key_or_none
            self.write_line(indent, f"{raw} = {self.add_constant(derive)}({key})")
            return self._write_value_to_variable(field.type, details, raw, indent)
        if not is_attribute_field(field) or (
            derived_field
            and (isinstance(derived_field, WholeSourceField) or not derived_field.columns)
        ):
            raise FallbackNeeded("resolver")
        if derived_field is None:
            if get_named_type(field.type).name == "DateTime" and row_variables.is_instant_text(
                name
            ):
                return self.write_instant_to_variable(
                    field.type, row_variables.raw_variables[name], indent
                )
            return self._write_value_to_variable(
                field.type, details, row_variables.write_column_conversion_once(name), indent
            )
        values = ", ".join(
            row_variables.write_column_conversion_once(column) for column in derived_field.columns
        )
        raw = self.new_variable("r")
        maker = (
            derived_field.sources_from_columns
            if isinstance(derived_field, NestedViewField)
            else derived_field.derive
        )
        call = values if maker is return_unchanged else f"{self.add_constant(maker)}({values})"
        self.write_line(indent, f"{raw} = {call}")
        if isinstance(derived_field, NestedViewField):
            return self._write_view_to_variable(field.type, details, raw, indent)
        return self._write_value_to_variable(field.type, details, raw, indent)

    def _write_view_to_variable(
        self, output_type: GraphQLOutputType, details: FieldDetailsList, var: str, indent: int
    ) -> str:
        """Write the completion of a view, or list of views, without creating view objects."""
        nullable, bare = not is_non_null_type(output_type), get_nullable_type(output_type)
        out = self.new_variable("o")
        self.write_line(indent, f"if {var} is None:")
        self.write_line(indent + 1, f"{out} = None" if nullable else "raise Fallback('null')")
        self.write_line(indent, "else:")
        if is_list_type(bare):
            index_name, output = self.new_variable("i"), self.new_variable("o")
            self.write_list_check(var, indent + 1)
            self.write_line(indent + 1, f"{out} = []")
            self.write_line(indent + 1, f"for {index_name} in {var}:")
            self._write_fields(
                self._require_object_type(bare.of_type),
                details,
                ObjectVariables(index_name, index_name),
                output,
                indent + 2,
            )
            self.write_line(indent + 2, f"{out}.append({output})")
            self.write_budget_check(indent + 2)
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
