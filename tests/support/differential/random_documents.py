"""Random documents that fit a schema: whatever GraphQL can say about fields, in all its forms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    OperationType,
    Undefined,
    get_named_type,
    is_abstract_type,
    is_composite_type,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
    is_required_argument,
    is_required_input_field,
)

from tests.support.differential.random_values import Dice, definition

SHAPES = [(2, 6), (3, 5), (3, 8), (4, 4), (5, 3), (6, 2), (14, 1)]  # levels, fields of each
ROOTS = 3
FLAGS = 3  # variables that decide of @skip and @include
INTROSPECTION = [
    "__schema { queryType { name } types { name kind } }",
    '__type(name: "Query") { name fields { name args { name } type { kind ofType { name } } } }',
    '__type(name: "nothing") { name }',
]
LITERALS: dict[str, list[Any]] = {  # of scalars of inputs, by name, as JSON
    "String": ["", "a", 'say "hi"', "\u2028"],
    "ID": ["1", "msg_AAAAAAAAAAE", 7],
    "Int": [0, 1, -5, 2**31 - 1],
    "Float": [0, 1.5, -2e3],
    "Boolean": [True, False],
    "BigInt": [7, "12"],
    "ByteSize": [7, "3 GiB"],
    "CIDR": ["192.0.2.0/24"],
    "Cursor": ["1.7.8"],
    "DateTime": ["2030-01-01T12:00:00Z"],
    "Duration": ["P30D"],
    "EmailAddress": ["ada@example.org"],
    "IPAddress": ["::1"],
    "JSON": [{"a": 1}, {}],
    "Upload": ["upl_1"],
    "URL": ["https://example.org/"],
}
WRONG: list[Any] = ["wrong", 2**40, [], {"no": 1}, None, 1.5, True]  # values of variables


@dataclass
class Variable:
    """What a document says of a variable."""

    kind: str
    default: str
    type: Any

    def __str__(self) -> str:
        return f"{self.kind}{self.default}"


def written(value: Any, kind: Any) -> str:
    """JSON as a literal of GraphQL."""
    if is_non_null_type(kind):
        kind = kind.of_type
    match value:
        case str() if isinstance(kind, GraphQLEnumType):
            return value
        case dict():
            fields = kind.fields if isinstance(kind, GraphQLInputObjectType) else {}
            members = (
                f"{name}: {written(one, fields[name].type if fields else None)}"
                for name, one in value.items()
            )
            return "{" + ", ".join(members) + "}"
        case list():
            item = kind.of_type if is_list_type(kind) else kind
            return "[" + ", ".join(written(one, item) for one in value) + "]"
        case _:
            return orjson.dumps(value).decode()


class Author:
    """Writes one document. A name in the response is one field's: so nothing conflicts."""

    def __init__(self, schema: GraphQLSchema, seed: int) -> None:
        self.schema = schema
        self.dice = Dice(seed)
        self.names: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, Variable] = {}
        self.fragments: dict[str, tuple[str, str, int]] = {}  # name: type, text, levels
        self.levels, self.width = self.dice.pick(SHAPES)

    def document(self) -> str:
        kinds = [OperationType.QUERY] * 6 + [OperationType.MUTATION, OperationType.SUBSCRIPTION]
        kind = self.dice.pick(kinds)
        root = self.schema.get_root_type(kind)
        assert root
        if kind is OperationType.SUBSCRIPTION:  # of one field, without @skip
            name = self.dice.pick(sorted(root.fields))
            body = "{ " + self._field(root, name, self.levels, plain=True) + " }"
        else:
            body = self.selection(root, self.levels, ROOTS)
            if kind is OperationType.QUERY and self.dice.one_in(0.04):
                body = body[:-1] + self.dice.pick(INTROSPECTION) + " }"
        said = ", ".join(f"${name}: {one}" for name, one in self.variables.items())
        head = f"{kind.value} Q({said}) " if said else f"{kind.value} Q "
        written = (f"\nfragment {n} on {t} {text}" for n, (t, text, _) in self.fragments.items())
        return head + body + "".join(written)

    def selection(self, kind: GraphQLNamedType, levels: int, width: int) -> str:
        """`{ … }` of a type: fields, some twice, and fragments."""
        fields: Mapping[str, GraphQLField] = getattr(kind, "fields", {})
        usable = [
            name
            for name in sorted(fields)
            if levels > 0 or not is_composite_type(get_named_type(fields[name].type))
        ]
        chosen = self.dice.some(usable, 1 + self.dice.below(width))
        if self.dice.one_in(0.15):  # the deeper ones once more, to be merged
            chosen += [self.dice.pick(chosen)] if chosen else []
        parts = [self._field(kind, name, levels) for name in chosen]
        if self.dice.one_in(0.2) or not parts:
            parts.append(f"{self.dice.pick(['', 'type_: '])}__typename{self._directives()}")
        tries, share = (2, 0.8) if is_abstract_type(kind) else (1, 0.25)
        parts += [self._fragment(kind, levels) for _ in range(tries) if self.dice.one_in(share)]
        if self.dice.one_in(0.1):
            parts.reverse()
        return "{ " + " ".join(parts) + " }"

    def _field(
        self, parent: GraphQLNamedType, name: str, levels: int, *, plain: bool = False
    ) -> str:
        field: GraphQLField = getattr(parent, "fields", {})[name]
        arguments = self._arguments(field)
        shown = self._name(name, arguments, str(field.type))
        text = f"{shown}: {name}" if shown != name else name
        text += arguments + ("" if plain else self._directives())
        inner = get_named_type(field.type)
        if is_composite_type(inner):
            text += " " + self.selection(inner, levels - 1, self.width)
        return text

    def _name(self, name: str, arguments: str, kind: str) -> str:
        """A name in the response that nothing else has."""
        what = (name, arguments, kind)
        if self.dice.one_in(0.85) and self.names.setdefault(name, what) == what:
            return name
        for number in range(1000):
            shown = f"{name}_{number}"
            if self.names.setdefault(shown, what) == what:
                return shown
        raise AssertionError("no name is left")

    def _arguments(self, field: GraphQLField) -> str:
        said = []
        for name, argument in field.args.items():
            if not is_required_argument(argument) and self.dice.one_in(0.7):
                continue
            has_default = argument.default_value is not Undefined
            said.append(f"{name}: {self._argument(argument.type, has_default=has_default)}")
        return f"({', '.join(said)})" if said else ""

    def _argument(self, kind: Any, *, has_default: bool) -> str:
        value = self.input(kind, 3)
        if self.dice.one_in(0.6):
            return written(value, kind)
        name, declared = f"v{len(self.variables)}", str(kind)
        if is_non_null_type(kind) and has_default and self.dice.one_in(0.5):
            declared = declared[:-1]  # null may come in then, and is refused while it runs
        default = f" = {written(value, kind)}" if self.dice.one_in(0.5) else ""
        self.variables[name] = Variable(declared, default, kind)
        return f"${name}"

    def input(self, kind: Any, levels: int) -> Any:
        """JSON that this type of inputs takes."""
        if is_non_null_type(kind):
            kind = kind.of_type
        elif self.dice.one_in(0.15):
            return None
        if is_list_type(kind):
            return [self.input(kind.of_type, levels - 1) for _ in range(self.dice.below(3))]
        if isinstance(kind, GraphQLEnumType):
            return self.dice.pick(list(kind.values))
        if not is_input_object_type(kind):
            return self.dice.pick(LITERALS[kind.name])
        if kind.is_one_of or definition(kind).is_one_of:  # sorting a schema forgets it
            name = self.dice.pick(list(kind.fields))
            inner = kind.fields[name].type
            value = None
            while value is None:
                value = self.input(inner, levels - 1)
            return {name: value}
        return {
            name: self.input(field.type, levels - 1)
            for name, field in kind.fields.items()
            if is_required_input_field(field) or (levels > 0 and self.dice.one_in(0.3))
        }

    def _directives(self) -> str:
        said = ""
        for name in ("skip", "include"):
            if self.dice.one_in(0.05):
                said += f" @{name}(if: {self._flag()})"
        return said

    def _flag(self) -> str:
        if self.dice.one_in(0.3):
            return self.dice.pick(["true", "false"])
        name = f"b{self.dice.below(FLAGS)}"
        if name not in self.variables:
            default = self.dice.pick(["", " = true", " = false"])
            self.variables[name] = Variable("Boolean!", default, None)
        return f"${name}"

    def _fragment(self, kind: GraphQLNamedType, levels: int) -> str:
        """An inline fragment, or a named one that is new or known."""
        near = self._near(kind)
        if self.dice.one_in(0.5):
            known = [
                name
                for name, (on, _, needed) in self.fragments.items()
                if on in near and needed <= levels
            ]
            if known and self.dice.one_in(0.5):
                return f"...{self.dice.pick(known)}{self._directives()}"
            on = self.dice.pick(near)
            text = self.selection(self._type(on), levels, self.width)
            name = f"F{len(self.fragments)}"
            self.fragments[name] = on, text, levels
            return f"...{name}{self._directives()}"
        if self.dice.one_in(0.2):
            return f"...{self._directives()} {self.selection(kind, levels, self.width)}"
        on = self.dice.pick(near)
        text = self.selection(self._type(on), levels, self.width)
        return f"... on {on}{self._directives()} {text}"

    def _type(self, name: str) -> GraphQLNamedType:
        found = self.schema.get_type(name)
        assert found
        return found

    def _near(self, kind: GraphQLNamedType) -> list[str]:
        """Types whose fragments may stand in a selection of this one."""
        if isinstance(kind, GraphQLObjectType):
            unions = [u.name for u in self._abstract() if kind in self.schema.get_possible_types(u)]
            return sorted({kind.name, *unions})
        possible = self.schema.get_possible_types(kind)  # type: ignore[arg-type]
        near = {kind.name, *(one.name for one in possible)}
        for other in self._abstract():
            if set(possible) & set(self.schema.get_possible_types(other)):
                near.add(other.name)
        return sorted(near)

    def _abstract(self) -> list[Any]:
        return [kind for kind in self.schema.type_map.values() if is_abstract_type(kind)]

    def values(self, dice: Dice, flags: Dice) -> dict[str, Any]:
        """Values for the variables: some are left out, null or wrong."""
        given: dict[str, Any] = {}
        for name, variable in self.variables.items():
            own = (flags if variable.type is None else dice).at(name)
            if variable.default and own.one_in(0.4):
                continue
            if variable.type is None:
                given[name] = own.pick([True, False])
            else:
                given[name] = Author(self.schema, own.seed).input(variable.type, 3)
            if not variable.kind.endswith("!") and dice.one_in(0.1):
                given[name] = None
            if dice.one_in(0.01):
                given[name] = dice.pick(WRONG)
        return given
