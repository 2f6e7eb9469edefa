"""Generation of Python functions that complete values of one selection set.

Generated code never reports a GraphQL error. If a value doesn't fit its type, the function
raises an exception, and the executor gives the same value to graphql-core, which creates the
exact error, path and null.

Names of the schema and of a document get into the source through `repr()` only. Literals of a
document are never part of the source.

Each function counts the bytes of the completed value in `n` and adds them to the response
budget `b`, which raises an exception if the limit is exceeded.
"""

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    GraphQLUnionType,
    Undefined,
    get_named_type,
    get_nullable_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from strawberry.types.base import StrawberryObjectDefinition

from graph.execution.generated_code import Bail, LargeValue, odd, told
from graph.execution.leaf_checks import OTHER, SHORT, TEXTS, USUAL
from graph.execution.list_steps import LONG_LIST
from graph.execution.response_size import OTHER as OTHER_SIZE
from graph.execution.response_size import OVERHEAD, AnswerBudget, size_of
from graph.execution.strawberry_definitions import is_link, is_plain, link_of, origin
from graph.types.object_views import (
    KEY_FIELDS,
    Expressed,
    KeyRow,
    Listed,
    Made,
    MaybeThreaded,
    View,
    Viewed,
    Whole,
    same,
)
from models.store.prepared_statements import Column, Driven, instant

STATEMENTS = 8  # an argument can choose another statement for the same list
BRANCHES = 40  # of an interface or a union that is compiled

Complete = Callable[[Any, AnswerBudget], Any]


class Document(Protocol):
    """The schema and the collected fields of an operation."""

    schema: GraphQLSchema

    def fields(self, kind: GraphQLObjectType, details: FieldDetailsList) -> GroupedFieldSet:
        """Return the subfields, grouped by response name.

        Raises FallbackNeeded for @defer.
        """


class Held(NamedTuple):
    """The names of the variables that hold an object and the source of its fields.

    For an unconverted row there is no object: `row_variables` has the variables of its columns.
    """

    object: str
    source: str
    columns: "Raw | None" = None


class Raw:
    """The variables that hold the columns of an unconverted row."""

    def __init__(self, writer: "Writer", columns: Mapping[str, Column], indent: int) -> None:
        self.columns = columns
        self.given = {name: f"c{nth}" for nth, name in enumerate(columns)}
        self._writer = writer
        self._indent = indent
        self._made: dict[str, str] = {}

    def value(self, name: str) -> str:
        """Return the variable with the converted value of a column.

        Writes the conversion at the first use. Raises FallbackNeeded if the column is missing.
        """
        column, given = self.columns.get(name), self.given.get(name, "")
        if column is None:
            raise Bail("no column")
        if column.process is None:
            return given
        if name not in self._made:
            made = self._made[name] = f"p{given}"
            expression = column.expression.format(given, self._writer.constant(column.process))
            self._writer.emit(self._indent, f"{made} = {expression}")
        return self._made[name]

    def told(self, name: str) -> bool:
        """True if the driver returns the column as the text of an instant."""
        column = self.columns.get(name)
        return column is not None and column.process is instant


class OfRows:
    """The functions that complete the rows of a list, one for each SQL statement of the list."""

    def __init__(
        self, document: Document, kind: GraphQLObjectType, details: FieldDetailsList
    ) -> None:
        self.document = document
        self.kind = kind
        self.details = details
        self._known: dict[int, tuple[Driven, Complete | None]] = {}

    def __call__(self, found: Listed) -> Complete | None:
        """Return the function for these rows; None if the list must be completed by objects."""
        driven = found.rows.driven
        known = self._known.get(id(driven))
        if known is None:
            if len(self._known) >= STATEMENTS:
                return None
            known = self._known[id(driven)] = driven, self._compiled(driven)
        return known[1]

    def _compiled(self, driven: Driven) -> Complete | None:
        try:
            return Writer(self.document).rows(self.kind, self.details, driven)
        except Bail:
            return None


class Writer:
    """A writer of the source of one function and of the constants that it uses."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.names: dict[str, Any] = {
            "Fallback": Bail,
            "LargeValue": LargeValue,
            "Listed": Listed,
            "Undefined": Undefined,
            "isfinite": math.isfinite,
            "len": len,
            "unusable": odd,
            "json_size": size_of,
            "str": str,
            "type": type,
            "never_awaitable": USUAL,
        }
        self.lines: list[str] = []
        self._count = 0

    def value(self, kind: GraphQLOutputType, details: FieldDetailsList) -> Complete:
        """Compile the function that completes a value of this type.

        Raises FallbackNeeded if the selection can't be compiled.
        """
        return self._function(self._value(kind, details, "v", 1))

    def fields(
        self, kind: GraphQLObjectType, grouped: GroupedFieldSet
    ) -> tuple[Complete, GroupedFieldSet]:
        """Compile the function for the attribute fields of an object.

        Returns the function and the fields that graphql-core must execute. The function's result
        has all fields in order, with None for these. Raises FallbackNeeded if no field can be
        compiled.
        """
        self.emit(1, "if unusable(v): raise Fallback('odd')")
        held = self._held(kind, "v", 1)
        parts, rest = [], {}
        for name, details in grouped.items():
            mark = len(self.lines)
            try:
                if is_link(self._definition(kind, details)):
                    raise Bail("link")
                parts.append(f"{name!r}: {self._field(kind, details, held, 1)}")
            except Bail:
                del self.lines[mark:]
                rest[name] = details
                parts.append(f"{name!r}: None")
        if len(rest) == len(grouped):
            raise Bail("resolver")
        self.emit(1, f"n += {self._names_size(grouped)}")
        return self._function(f"{{{', '.join(parts)}}}"), rest

    def rows(self, kind: GraphQLObjectType, details: FieldDetailsList, driven: Driven) -> Complete:
        """Compile the function that completes a list from the unconverted rows of a statement.

        Raises FallbackNeeded if a field needs more than columns.
        """
        raw = Raw(self, driven.columns, 2)
        self.emit(1, "o = []")
        self.emit(1, f"for {', '.join(raw.given.values())}, in v:")
        self._fields(kind, details, Held("", "", raw), "one", 2)
        self.emit(2, "o.append(one)")
        self._check(2)
        return self._function("o")

    def _function(self, outcome: str) -> Complete:
        local = "".join(f", {name}={name}" for name in self.names)
        head, counted = f"def complete(v, b{local}):", "    b.take(n)"
        end = f"    return {outcome}"
        body = "\n".join((head, "    n = 0", *self.lines, counted, end, ""))
        try:
            code = compile(body, "<plan>", "exec")
        except SyntaxError:  # Python allows 20 nested loops and 100 indents
            raise Bail("depth") from None
        exec(code, self.names)  # noqa: S102 - the source has names of the schema only
        function: Complete = self.names["complete"]
        return function

    def _value(
        self,
        kind: GraphQLOutputType,
        details: FieldDetailsList,
        var: str,
        indent: int,
        *,
        nullable: bool = True,
    ) -> str:
        """Write the completion of the variable `var`; return the variable with the result."""
        if is_non_null_type(kind):
            return self._value(kind.of_type, details, var, indent, nullable=False)
        out = self._fresh("o")
        if nullable:
            self.emit(indent, f"if {var} is None: {out} = None")
            self.emit(indent, "else:")
            indent += 1
        if is_list_type(kind):
            self._list(kind.of_type, details, var, out, indent)
        elif isinstance(kind, GraphQLEnumType):
            self._enum(kind, var, out, indent)
        elif is_leaf_type(kind):
            self._scalar(kind, var, out, indent)
        elif isinstance(kind, GraphQLObjectType):
            self._object(kind, details, var, out, indent)
        elif isinstance(kind, GraphQLInterfaceType | GraphQLUnionType):
            self._abstract(kind, details, var, out, indent)
        return out

    def _scalar(self, kind: Any, var: str, out: str, indent: int) -> None:
        coerce = self.constant(kind.coerce_output_value)
        if other := OTHER.get(kind.name):
            self.emit(indent, f"{out} = {var}")
            self.emit(indent, f"if {other.format(v=var)}:")
            indent += 1
        is_unusable = f"type({var}) not in never_awaitable and unusable({var})"
        self.emit(indent, f"if {is_unusable}: raise Fallback('odd')")
        self.emit(indent, f"{out} = {coerce}({var})")
        self.emit(indent, f"if {out} is None or {out} is Undefined: raise Fallback('null')")
        if other and kind.name in TEXTS:
            self.emit(indent - 1, f"n += len({out})")
        elif kind.name not in SHORT:
            self.emit(indent - bool(other), f"n += json_size({out})")

    def _check(self, indent: int) -> None:
        """Write the check at the end of a loop that the response limit is not exceeded."""
        self.emit(indent, "if n > b.left: b.exceed()")

    def _check_list(self, var: str, indent: int) -> None:
        """Write the check of a list's type and length."""
        self.emit(indent, f"if type({var}) is not list: raise Fallback('type')")
        self.emit(indent, f"if len({var}) > {LONG_LIST}: raise LargeValue")

    @staticmethod
    def _names_size(grouped: GroupedFieldSet) -> int:
        """Return the bytes of an object in JSON without its texts and nested objects."""
        return sum(len(name) + OVERHEAD + OTHER_SIZE for name in grouped)

    def _enum(self, kind: GraphQLEnumType, var: str, out: str, indent: int) -> None:
        members: type[Enum] | None = getattr(origin(kind), "wrapped_cls", None)
        if members is None:
            raise Bail("enum")
        named = self.constant({member: kind.coerce_output_value(member) for member in members})
        self.emit(indent, f"if type({var}) is not {self.constant(members)}: raise Fallback('type')")
        self.emit(indent, f"{out} = {named}[{var}]")

    def _list(
        self, item: GraphQLOutputType, details: FieldDetailsList, var: str, out: str, indent: int
    ) -> None:
        one = self._fresh("i")
        bare = get_nullable_type(item)
        if isinstance(bare, GraphQLObjectType) and self._made(bare) is not None:
            made, rows = self._fresh("f"), self.constant(OfRows(self.document, bare, details))
            self.emit(indent, f"{made} = {rows}({var}) if type({var}) is Listed else None")
            self.emit(indent, f"if {made} is not None: {out} = {made}({var}.rows.raw, b)")
            self.emit(indent, "else:")
            self.emit(indent + 1, f"if type({var}) is Listed: {var} = {var}.items")
            indent += 1
        self._check_list(var, indent)
        self.emit(indent, f"{out} = []")
        self.emit(indent, f"for {one} in {var}:")
        self.emit(indent + 1, f"{out}.append({self._value(item, details, one, indent + 1)})")
        self._check(indent + 1)

    def _object(
        self, kind: GraphQLObjectType, details: FieldDetailsList, var: str, out: str, indent: int
    ) -> None:
        if self._made(kind) is None and not kind.is_type_of:
            self.emit(indent, f"if {var} is None or unusable({var}): raise Fallback('null')")
        elif self._made(kind) is None:
            # graphql-core checks subclasses and objects cast to another type
            origin = self.constant(self._class(kind))
            self.emit(indent, f"if type({var}) is not {origin}: raise Fallback('type')")
        self._fields(kind, details, self._held(kind, var, indent), out, indent)

    def _held(self, kind: GraphQLObjectType, var: str, indent: int) -> Held:
        """Write the check of the object's class; return its variables.

        The source of a view's fields is its row.
        """
        if self._made(kind) is None:
            return Held(var, var)
        python_class = self.constant(self._class(kind))
        self.emit(indent, f"if type({var}) is not {python_class}: raise Fallback('type')")
        source = self._fresh("s")
        self.emit(indent, f"{source} = {var}.row")
        return Held(var, source)

    def _fields(
        self,
        kind: GraphQLObjectType,
        details: FieldDetailsList,
        held: Held,
        out: str,
        indent: int,
    ) -> None:
        grouped = self.document.fields(kind, details)
        parts = [
            f"{name!r}: {self._field(kind, below, held, indent)}" for name, below in grouped.items()
        ]
        self.emit(indent, f"n += {self._names_size(grouped)}")
        self.emit(indent, f"{out} = {{{', '.join(parts)}}}")

    def _abstract(
        self,
        kind: GraphQLInterfaceType | GraphQLUnionType,
        details: FieldDetailsList,
        var: str,
        out: str,
        indent: int,
    ) -> None:
        """Write the call of one function per possible type; other types fall back."""
        types = self.document.schema.get_possible_types(kind)
        if len(types) > BRANCHES:
            raise Bail("abstract")
        branches: dict[type, Complete] = {}
        for each in types:
            definition = origin(each)
            if isinstance(definition, StrawberryObjectDefinition) and not definition.concrete_of:
                try:
                    branches[definition.origin] = Writer(self.document).value(each, details)
                except Bail:
                    continue
        if not branches:
            raise Bail("abstract")
        branch = self._fresh("b")
        self.emit(indent, f"{branch} = {self.constant(branches)}.get(type({var}))")
        self.emit(indent, f"if {branch} is None: raise Fallback('type')")
        self.emit(indent, f"{out} = {branch}({var}, b)")
        self.emit(indent, f"if {out} is None: raise Fallback('null')")

    def _definition(self, kind: GraphQLObjectType, details: FieldDetailsList) -> GraphQLField:
        field = self.document.schema.get_field(kind, details[0].node.name.value)
        if field is None:
            raise Bail("unknown")
        return field

    def _field(
        self, kind: GraphQLObjectType, details: FieldDetailsList, held: Held, indent: int
    ) -> str:
        """Write the statements for one field and return the expression of its value."""
        if details[0].node.name.value == "__typename":
            return repr(kind.name)
        field = self._definition(kind, details)
        name = getattr(origin(field), "python_name", "")
        raw, made = self._fresh("r"), self._made(kind) or {}
        if (to := link_of(field)) and to.exists and self._names(field, details) <= KEY_FIELDS:
            (key,) = to.columns
            key = held.columns.value(key) if held.columns else f"{held.source}.{key}"
            self.emit(indent, f"{raw} = {self.constant(KeyRow)}({key})")
            return self._viewed(field.type, details, raw, indent)
        if held.columns:
            return self._of_columns(field, made.get(name), name, details, held.columns, indent)
        if is_link(field):  # set by its list, or resolved by graphql-core
            self.emit(indent, f"{raw} = {held.object}.__dict__.get({name!r}, Undefined)")
            self.emit(indent, f"if {raw} is Undefined: raise Fallback('link')")
        elif not is_plain(field):
            raise Bail("resolver")
        elif isinstance(viewed := made.get(name), Viewed):
            look = self.constant(viewed.look)
            self.emit(indent, f"{raw} = {look}({held.source})")
            return self._viewed(field.type, details, raw, indent)
        elif isinstance(expressed := made.get(name), Expressed):
            self.emit(indent, f"{raw} = {expressed.expression.format(held.source)}")
        elif name in made:
            if isinstance(threaded := made[name], MaybeThreaded):
                is_large = self.constant(threaded.is_large)
                self.emit(indent, f"if {is_large}({held.source}): raise LargeValue")
            derive = self.constant(made[name].make)
            self.emit(indent, f"{raw} = {derive}({held.source})")
        else:
            self.emit(indent, f"{raw} = {held.source}.{name}")
        return self._value(field.type, details, raw, indent)

    def _of_columns(
        self,
        field: GraphQLField,
        made: Made | None,
        name: str,
        details: FieldDetailsList,
        columns: Raw,
        indent: int,
    ) -> str:
        """Write the completion of a field of an unconverted row; return the expression."""
        if not is_plain(field) or (made and (isinstance(made, Whole) or not made.columns)):
            raise Bail("resolver")
        if made is None:
            if get_named_type(field.type).name == "DateTime" and columns.told(name):
                return self._told(field.type, columns.given[name], indent)
            return self._value(field.type, details, columns.value(name), indent)
        values = ", ".join(columns.value(one) for one in made.columns)
        raw = self._fresh("r")
        maker = made.source if isinstance(made, Viewed) else made.of
        call = values if maker is same else f"{self.constant(maker)}({values})"
        self.emit(indent, f"{raw} = {call}")
        if isinstance(made, Viewed):
            return self._viewed(field.type, details, raw, indent)
        return self._value(field.type, details, raw, indent)

    def _told(self, kind: GraphQLOutputType, var: str, indent: int) -> str:
        """Write the conversion of an instant that the driver returns as text."""
        out = self._fresh("o")
        empty = "raise Fallback('null')" if is_non_null_type(kind) else f"{out} = None"
        self.emit(indent, f"if {var} is None: {empty}")
        self.emit(indent, f"else: {out} = {self.constant(told)}({var})")
        return out

    def _viewed(
        self, kind: GraphQLOutputType, details: FieldDetailsList, var: str, indent: int
    ) -> str:
        """Write the completion of a view, or list of views, without creating view objects."""
        nullable, bare = not is_non_null_type(kind), get_nullable_type(kind)
        out = self._fresh("o")
        self.emit(indent, f"if {var} is None:")
        self.emit(indent + 1, f"{out} = None" if nullable else "raise Fallback('null')")
        self.emit(indent, "else:")
        if is_list_type(bare):
            one, made = self._fresh("i"), self._fresh("o")
            self._check_list(var, indent + 1)
            self.emit(indent + 1, f"{out} = []")
            self.emit(indent + 1, f"for {one} in {var}:")
            self._fields(self._bare(bare.of_type), details, Held(one, one), made, indent + 2)
            self.emit(indent + 2, f"{out}.append({made})")
            self._check(indent + 2)
        else:
            self._fields(self._bare(bare), details, Held(var, var), out, indent + 1)
        return out

    def _names(self, field: GraphQLField, details: FieldDetailsList) -> set[str]:
        """Return the names of the subfields of a field with an object type."""
        grouped = self.document.fields(self._bare(field.type), details)
        return {below[0].node.name.value for below in grouped.values()}

    def _bare(self, kind: object) -> GraphQLObjectType:
        bare = kind.of_type if is_non_null_type(kind) else kind
        if not isinstance(bare, GraphQLObjectType):
            raise Bail("abstract")
        return bare

    def _made(self, kind: GraphQLObjectType) -> Mapping[str, Made] | None:
        """Return the derived fields of a view type; None if the type is not a view."""
        cls = self._class(kind)
        return cls.made if issubclass(cls, View) else None

    def _class(self, kind: GraphQLObjectType) -> type:
        """Return the Python class of an object type; of a generic type the unparametrized class."""
        definition = origin(kind)
        if not isinstance(definition, StrawberryObjectDefinition):
            raise Bail("unknown")
        cls: type = (definition.concrete_of or definition).origin
        return cls

    def constant(self, value: Any) -> str:
        """Add a constant to the function and return its name."""
        name = self._fresh("k")
        self.names[name] = value
        return name

    def _fresh(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"

    def emit(self, indent: int, line: str) -> None:
        """Write a line."""
        self.lines.append("    " * indent + line)
