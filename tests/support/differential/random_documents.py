"""Random valid documents for a schema, with all syntax of GraphQL selections."""

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

from tests.support.differential.random_values import PathRandom

LEVELS_AND_WIDTHS = [(2, 6), (3, 5), (3, 8), (4, 4), (5, 3), (6, 2), (14, 1)]
MAX_ROOT_FIELDS = 3
FLAG_VARIABLES = 3  # for @skip and @include
INTROSPECTION = [
    "__schema { queryType { name } types { name kind } }",
    '__type(name: "Query") { name fields { name args { name } type { kind ofType { name } } } }',
    '__type(name: "nothing") { name }',
]
INPUT_SAMPLES: dict[str, list[Any]] = {  # by name of the scalar, as JSON
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
WRONG_VALUES: list[Any] = ["wrong", 2**40, [], {"no": 1}, None, 1.5, True]


@dataclass
class VariableDefinition:
    """The definition of a variable."""

    declared_type: str
    default: str
    type: Any

    def __str__(self) -> str:
        return f"{self.declared_type}{self.default}"


def graphql_literal(value: Any, input_type: Any) -> str:
    """A JSON value as a GraphQL literal."""
    if is_non_null_type(input_type):
        input_type = input_type.of_type
    match value:
        case str() if isinstance(input_type, GraphQLEnumType):
            return value
        case dict():
            fields = input_type.fields if isinstance(input_type, GraphQLInputObjectType) else {}
            members = (
                f"{name}: {graphql_literal(member, fields[name].type if fields else None)}"
                for name, member in value.items()
            )
            return "{" + ", ".join(members) + "}"
        case list():
            item_type = input_type.of_type if is_list_type(input_type) else input_type
            return "[" + ", ".join(graphql_literal(member, item_type) for member in value) + "]"
        case _:
            return orjson.dumps(value).decode()


class DocumentGenerator:
    """Generates one document. Fields never conflict: a response name belongs to one field."""

    def __init__(self, schema: GraphQLSchema, seed: int) -> None:
        self.schema = schema
        self.random = PathRandom(seed)
        self.field_key_by_response_name: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, VariableDefinition] = {}
        self.fragments: dict[str, tuple[str, str, int]] = {}  # name: type, text, levels
        self.levels, self.width = self.random.choice(LEVELS_AND_WIDTHS)

    def document(self) -> str:
        operation_types = [OperationType.QUERY] * 6 + [
            OperationType.MUTATION,
            OperationType.SUBSCRIPTION,
        ]
        operation_type = self.random.choice(operation_types)
        root = self.schema.get_root_type(operation_type)
        assert root
        if operation_type is OperationType.SUBSCRIPTION:  # one root field without @skip
            name = self.random.choice(sorted(root.fields))
            body = "{ " + self._field(root, name, self.levels, plain=True) + " }"
        else:
            body = self.selection_set(root, self.levels, MAX_ROOT_FIELDS)
            if operation_type is OperationType.QUERY and self.random.happens(0.04):
                body = body[:-1] + self.random.choice(INTROSPECTION) + " }"
        definitions = ", ".join(f"${name}: {variable}" for name, variable in self.variables.items())
        header = (
            f"{operation_type.value} Q({definitions}) "
            if definitions
            else f"{operation_type.value} Q "
        )
        fragments = (
            f"\nfragment {name} on {type_name} {text}"
            for name, (type_name, text, _) in self.fragments.items()
        )
        return header + body + "".join(fragments)

    def selection_set(self, selected_type: GraphQLNamedType, levels: int, width: int) -> str:
        """A selection set of a type: fields, some of them twice, and fragments."""
        fields: Mapping[str, GraphQLField] = getattr(selected_type, "fields", {})
        usable = [
            name
            for name in sorted(fields)
            if levels > 0 or not is_composite_type(get_named_type(fields[name].type))
        ]
        names = self.random.sample(usable, 1 + self.random.integer_below(width))
        if self.random.happens(0.15):  # a second selection of a field, which is merged
            names += [self.random.choice(names)] if names else []
        parts = [self._field(selected_type, name, levels) for name in names]
        if self.random.happens(0.2) or not parts:
            parts.append(f"{self.random.choice(['', 'type_: '])}__typename{self._directives()}")
        attempts, probability = (2, 0.8) if is_abstract_type(selected_type) else (1, 0.25)
        parts += [
            self._fragment(selected_type, levels)
            for _ in range(attempts)
            if self.random.happens(probability)
        ]
        if self.random.happens(0.1):
            parts.reverse()
        return "{ " + " ".join(parts) + " }"

    def _field(
        self, parent: GraphQLNamedType, name: str, levels: int, *, plain: bool = False
    ) -> str:
        field: GraphQLField = getattr(parent, "fields", {})[name]
        arguments = self._arguments(field)
        response_name = self._response_name(name, arguments, str(field.type))
        text = f"{response_name}: {name}" if response_name != name else name
        text += arguments + ("" if plain else self._directives())
        field_type = get_named_type(field.type)
        if is_composite_type(field_type):
            text += " " + self.selection_set(field_type, levels - 1, self.width)
        return text

    def _response_name(self, name: str, arguments: str, field_type: str) -> str:
        """A unique response name for this field with these arguments."""
        field_key = (name, arguments, field_type)
        if (
            self.random.happens(0.85)
            and self.field_key_by_response_name.setdefault(name, field_key) == field_key
        ):
            return name
        for number in range(1000):
            response_name = f"{name}_{number}"
            if self.field_key_by_response_name.setdefault(response_name, field_key) == field_key:
                return response_name
        raise AssertionError("no name is left")

    def _arguments(self, field: GraphQLField) -> str:
        arguments = []
        for name, argument in field.args.items():
            if not is_required_argument(argument) and self.random.happens(0.7):
                continue
            has_default = argument.default_value is not Undefined
            arguments.append(f"{name}: {self._argument(argument.type, has_default=has_default)}")
        return f"({', '.join(arguments)})" if arguments else ""

    def _argument(self, argument_type: Any, *, has_default: bool) -> str:
        value = self.input_value(argument_type, 3)
        if self.random.happens(0.6):
            return graphql_literal(value, argument_type)
        name, declared_type = f"v{len(self.variables)}", str(argument_type)
        if is_non_null_type(argument_type) and has_default and self.random.happens(0.5):
            # a null variable is valid then, but fails during execution
            declared_type = declared_type[:-1]
        default = f" = {graphql_literal(value, argument_type)}" if self.random.happens(0.5) else ""
        self.variables[name] = VariableDefinition(declared_type, default, argument_type)
        return f"${name}"

    def input_value(self, input_type: Any, levels: int) -> Any:
        """A JSON value for an input type."""
        if is_non_null_type(input_type):
            input_type = input_type.of_type
        elif self.random.happens(0.15):
            return None
        if is_list_type(input_type):
            return [
                self.input_value(input_type.of_type, levels - 1)
                for _ in range(self.random.integer_below(3))
            ]
        if isinstance(input_type, GraphQLEnumType):
            return self.random.choice(list(input_type.values))
        if not is_input_object_type(input_type):
            return self.random.choice(INPUT_SAMPLES[input_type.name])
        # lexicographic_sort_schema drops is_one_of
        if input_type.is_one_of:
            name = self.random.choice(list(input_type.fields))
            member_type = input_type.fields[name].type
            value = None
            while value is None:
                value = self.input_value(member_type, levels - 1)
            return {name: value}
        return {
            name: self.input_value(field.type, levels - 1)
            for name, field in input_type.fields.items()
            if is_required_input_field(field) or (levels > 0 and self.random.happens(0.3))
        }

    def _directives(self) -> str:
        directives = ""
        for name in ("skip", "include"):
            if self.random.happens(0.05):
                directives += f" @{name}(if: {self._flag()})"
        return directives

    def _flag(self) -> str:
        if self.random.happens(0.3):
            return self.random.choice(["true", "false"])
        name = f"b{self.random.integer_below(FLAG_VARIABLES)}"
        if name not in self.variables:
            default = self.random.choice(["", " = true", " = false"])
            self.variables[name] = VariableDefinition("Boolean!", default, None)
        return f"${name}"

    def _fragment(self, selected_type: GraphQLNamedType, levels: int) -> str:
        """An inline fragment, or the spread of a new or existing fragment."""
        type_names = self._applicable_types(selected_type)
        if self.random.happens(0.5):
            usable_fragments = [
                name
                for name, (type_name, _, needed_levels) in self.fragments.items()
                if type_name in type_names and needed_levels <= levels
            ]
            if usable_fragments and self.random.happens(0.5):
                return f"...{self.random.choice(usable_fragments)}{self._directives()}"
            type_name = self.random.choice(type_names)
            text = self.selection_set(self._type(type_name), levels, self.width)
            name = f"F{len(self.fragments)}"
            self.fragments[name] = type_name, text, levels
            return f"...{name}{self._directives()}"
        if self.random.happens(0.2):
            return (
                f"...{self._directives()} {self.selection_set(selected_type, levels, self.width)}"
            )
        type_name = self.random.choice(type_names)
        text = self.selection_set(self._type(type_name), levels, self.width)
        return f"... on {type_name}{self._directives()} {text}"

    def _type(self, name: str) -> GraphQLNamedType:
        named_type = self.schema.get_type(name)
        assert named_type
        return named_type

    def _applicable_types(self, selected_type: GraphQLNamedType) -> list[str]:
        """The names of the types that a fragment in this type can have."""
        if isinstance(selected_type, GraphQLObjectType):
            unions = [
                abstract_type.name
                for abstract_type in self._abstract_types()
                if selected_type in self.schema.get_possible_types(abstract_type)
            ]
            return sorted({selected_type.name, *unions})
        possible = self.schema.get_possible_types(selected_type)  # type: ignore[arg-type]
        names = {selected_type.name, *(possible_type.name for possible_type in possible)}
        for other in self._abstract_types():
            if set(possible) & set(self.schema.get_possible_types(other)):
                names.add(other.name)
        return sorted(names)

    def _abstract_types(self) -> list[Any]:
        return [
            named_type
            for named_type in self.schema.type_map.values()
            if is_abstract_type(named_type)
        ]

    def variable_values(self, random: PathRandom, flag_random: PathRandom) -> dict[str, Any]:
        """Values for the variables: some are missing, null or of a wrong type."""
        values: dict[str, Any] = {}
        for name, variable in self.variables.items():
            variable_random = (flag_random if variable.type is None else random).derive(name)
            if variable.default and variable_random.happens(0.4):
                continue
            if variable.type is None:
                values[name] = variable_random.choice([True, False])
            else:
                values[name] = DocumentGenerator(self.schema, variable_random.seed).input_value(
                    variable.type, 3
                )
            if not variable.declared_type.endswith("!") and random.happens(0.1):
                values[name] = None
            if random.happens(0.01):
                values[name] = random.choice(WRONG_VALUES)
        return values
