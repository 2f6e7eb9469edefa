"""Python functions that complete values: one for a selection whose fields are plain attributes.

Generated code never reports an error. Where a value is not what its type says it raises
inside, and whoever called it hands the same value to graphql-core, which makes the exact
error, path and null.

Names of the schema and of a document come into the source through `repr()` alone, and
literals of a document not at all.

Each function counts the bytes of what it completes in `n`, and takes them from the budget `b`
of the answer, which raises if it is spent.
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

STATEMENTS = 8  # whose rows one list may be of: an argument may choose another
BRANCHES = 40  # object types behind an interface or a union, that we compile for

Complete = Callable[[Any, AnswerBudget], Any]


class Document(Protocol):
    """What the compiler asks of an operation."""

    schema: GraphQLSchema

    def fields(self, kind: GraphQLObjectType, details: FieldDetailsList) -> GroupedFieldSet:
        """The fields below these, as graphql-core groups them. Raises Bail for @defer."""


class Held(NamedTuple):
    """The variables of an object, and of what its fields are read from.

    Of a row as a driver gave it there is no object: `columns` has its variables, by name.
    """

    object: str
    source: str
    columns: "Raw | None" = None


class Raw:
    """The columns of a row as a driver gave it, each in a variable."""

    def __init__(self, writer: "Writer", columns: Mapping[str, Column], indent: int) -> None:
        self.columns = columns
        self.given = {name: f"c{nth}" for nth, name in enumerate(columns)}
        self._writer = writer
        self._indent = indent
        self._made: dict[str, str] = {}

    def value(self, name: str) -> str:
        """The variable with the value of a column, which is made where it is first needed."""
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
        """Say whether the driver gives a column as the text of an instant."""
        column = self.columns.get(name)
        return column is not None and column.process is instant


class OfRows:
    """The functions that complete a list of views, one for each statement its rows are from."""

    def __init__(
        self, document: Document, kind: GraphQLObjectType, details: FieldDetailsList
    ) -> None:
        self.document = document
        self.kind = kind
        self.details = details
        self._known: dict[int, tuple[Driven, Complete | None]] = {}

    def __call__(self, found: Listed) -> Complete | None:
        """The function for these rows; None where objects are needed."""
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
    """Writes one function; `names` are the constants it uses."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.names: dict[str, Any] = {
            "Bail": Bail,
            "LargeValue": LargeValue,
            "Listed": Listed,
            "Undefined": Undefined,
            "isfinite": math.isfinite,
            "len": len,
            "odd": odd,
            "size_of": size_of,
            "str": str,
            "type": type,
            "usual": USUAL,
        }
        self.lines: list[str] = []
        self._count = 0

    def value(self, kind: GraphQLOutputType, details: FieldDetailsList) -> Complete:
        """The function that completes a value of this type. Raises Bail where there is none."""
        return self._function(self._value(kind, details, "v", 1))

    def fields(
        self, kind: GraphQLObjectType, grouped: GroupedFieldSet
    ) -> tuple[Complete, GroupedFieldSet]:
        """The function for the plain fields of an object, and the fields it leaves open.

        What it makes has all fields, in their order. Raises Bail where none is plain.
        """
        self.emit(1, "if odd(v): raise Bail('odd')")
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
        """The function that completes a list of views, of rows as this statement gives them.

        Raises Bail where a field needs more than columns.
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
        except SyntaxError:  # Python allows 20 loops inside each other, and 100 indents
            raise Bail("depth") from None
        exec(code, self.names)  # noqa: S102 - of our own names alone
        made: Complete = self.names["complete"]
        return made

    def _value(
        self,
        kind: GraphQLOutputType,
        details: FieldDetailsList,
        var: str,
        indent: int,
        *,
        nullable: bool = True,
    ) -> str:
        """Write what completes the variable `var`; returns the variable with the outcome."""
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
        self.emit(indent, f"if type({var}) not in usual and odd({var}): raise Bail('odd')")
        self.emit(indent, f"{out} = {coerce}({var})")
        self.emit(indent, f"if {out} is None or {out} is Undefined: raise Bail('null')")
        if other and kind.name in TEXTS:
            self.emit(indent - 1, f"n += len({out})")
        elif kind.name not in SHORT:
            self.emit(indent - bool(other), f"n += size_of({out})")

    def _check(self, indent: int) -> None:
        """Write, for the end of a loop, that a budget which is spent ends it."""
        self.emit(indent, "if n > b.left: b.exceed()")

    def _check_list(self, var: str, indent: int) -> None:
        """Write the check of a list's type and length."""
        self.emit(indent, f"if type({var}) is not list: raise Bail('type')")
        self.emit(indent, f"if len({var}) > {LONG_LIST}: raise LargeValue")

    @staticmethod
    def _names_size(grouped: GroupedFieldSet) -> int:
        """The bytes of an object without its texts and the objects in it."""
        return sum(len(name) + OVERHEAD + OTHER_SIZE for name in grouped)

    def _enum(self, kind: GraphQLEnumType, var: str, out: str, indent: int) -> None:
        members: type[Enum] | None = getattr(origin(kind), "wrapped_cls", None)
        if members is None:
            raise Bail("enum")
        named = self.constant({member: kind.coerce_output_value(member) for member in members})
        self.emit(indent, f"if type({var}) is not {self.constant(members)}: raise Bail('type')")
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
            self.emit(indent, f"if {var} is None or odd({var}): raise Bail('null')")
        elif self._made(kind) is None:
            # A subclass, or an object cast to another type, is graphql-core's to judge.
            origin = self.constant(self._class(kind))
            self.emit(indent, f"if type({var}) is not {origin}: raise Bail('type')")
        self._fields(kind, details, self._held(kind, var, indent), out, indent)

    def _held(self, kind: GraphQLObjectType, var: str, indent: int) -> Held:
        """Fields of a view are read from what it is made of."""
        if self._made(kind) is None:
            return Held(var, var)
        self.emit(
            indent, f"if type({var}) is not {self.constant(self._class(kind))}: raise Bail('type')"
        )
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
        """One function for each type it may be; values of all others are graphql-core's."""
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
        self.emit(indent, f"if {branch} is None: raise Bail('type')")
        self.emit(indent, f"{out} = {branch}({var}, b)")
        self.emit(indent, f"if {out} is None: raise Bail('null')")

    def _definition(self, kind: GraphQLObjectType, details: FieldDetailsList) -> GraphQLField:
        field = self.document.schema.get_field(kind, details[0].node.name.value)
        if field is None:
            raise Bail("unknown")
        return field

    def _field(
        self, kind: GraphQLObjectType, details: FieldDetailsList, held: Held, indent: int
    ) -> str:
        """Write what one field needs; returns the expression for it."""
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
        if is_link(field):  # filled by its list, or left to its resolver
            self.emit(indent, f"{raw} = {held.object}.__dict__.get({name!r}, Undefined)")
            self.emit(indent, f"if {raw} is Undefined: raise Bail('link')")
        elif not is_plain(field):
            raise Bail("resolver")
        elif isinstance(viewed := made.get(name), Viewed):
            self.emit(indent, f"{raw} = {self.constant(viewed.look)}({held.source})")
            return self._viewed(field.type, details, raw, indent)
        elif isinstance(expressed := made.get(name), Expressed):
            self.emit(indent, f"{raw} = {expressed.expression.format(held.source)}")
        elif name in made:
            if isinstance(threaded := made[name], MaybeThreaded):
                is_large = self.constant(threaded.is_large)
                self.emit(indent, f"if {is_large}({held.source}): raise LargeValue")
            self.emit(indent, f"{raw} = {self.constant(made[name].make)}({held.source})")
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
        """Write what one field of a row needs, as a driver gave it."""
        if not is_plain(field) or (made and (isinstance(made, Whole) or not made.columns)):
            raise Bail("resolver")
        if made is None:
            if get_named_type(field.type).name == "DateTime" and columns.told(name):
                return self._told(field.type, columns.given[name], indent)
            return self._value(field.type, details, columns.value(name), indent)
        values = ", ".join(columns.value(one) for one in made.columns)
        raw = self._fresh("r")
        maker = made.source if isinstance(made, Viewed) else made.of
        self.emit(
            indent, f"{raw} = {values if maker is same else f'{self.constant(maker)}({values})'}"
        )
        if isinstance(made, Viewed):
            return self._viewed(field.type, details, raw, indent)
        return self._value(field.type, details, raw, indent)

    def _told(self, kind: GraphQLOutputType, var: str, indent: int) -> str:
        """Write an instant that the driver gives as text."""
        out = self._fresh("o")
        empty = "raise Bail('null')" if is_non_null_type(kind) else f"{out} = None"
        self.emit(indent, f"if {var} is None: {empty}")
        self.emit(indent, f"else: {out} = {self.constant(told)}({var})")
        return out

    def _viewed(
        self, kind: GraphQLOutputType, details: FieldDetailsList, var: str, indent: int
    ) -> str:
        """Write what completes sources of views, of which no object is made."""
        nullable, bare = not is_non_null_type(kind), get_nullable_type(kind)
        out = self._fresh("o")
        self.emit(indent, f"if {var} is None:")
        self.emit(indent + 1, f"{out} = None" if nullable else "raise Bail('null')")
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
        """The names of the fields below one that leads to an object."""
        grouped = self.document.fields(self._bare(field.type), details)
        return {below[0].node.name.value for below in grouped.values()}

    def _bare(self, kind: object) -> GraphQLObjectType:
        bare = kind.of_type if is_non_null_type(kind) else kind
        if not isinstance(bare, GraphQLObjectType):
            raise Bail("abstract")
        return bare

    def _made(self, kind: GraphQLObjectType) -> Mapping[str, Made] | None:
        """How the fields of a view are made; None where the type is no view."""
        cls = self._class(kind)
        return cls.made if issubclass(cls, View) else None

    def _class(self, kind: GraphQLObjectType) -> type:
        """The class of the objects of a type; of a generic, the one without arguments."""
        definition = origin(kind)
        if not isinstance(definition, StrawberryObjectDefinition):
            raise Bail("unknown")
        cls: type = (definition.concrete_of or definition).origin
        return cls

    def constant(self, value: Any) -> str:
        """The name of a value in the function."""
        name = self._fresh("k")
        self.names[name] = value
        return name

    def _fresh(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"

    def emit(self, indent: int, line: str) -> None:
        """Write a line."""
        self.lines.append("    " * indent + line)
