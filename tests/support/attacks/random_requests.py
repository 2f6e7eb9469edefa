"""Random requests for a schema, with values that its types allow or almost allow."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from random import Random
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNamedType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    get_named_type,
    is_leaf_type,
    is_required_argument,
    is_required_input_field,
)

from tests.support.attacks.likely_values import (
    CURSORS,
    DATE_TIMES,
    DURATIONS,
    INTEGERS,
    JSON_VALUES,
    LIKELY_VALUES,
    ODD_TEXTS,
    PAGE_ARGUMENTS,
    WORDS,
)


@dataclass(frozen=True)
class KnownValues:
    """Cursors, ids and other texts that exist in the store."""

    cursors: Sequence[str]
    ids_by_type: Mapping[str, Sequence[str]]
    texts: Sequence[str]
    texts_by_name: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by field or argument

    @property
    def ids(self) -> list[str]:
        """The ids of all types."""
        return [*chain.from_iterable(self.ids_by_type.values())]


def draw_text(random: Random, known_values: KnownValues, *, is_strict: bool = False) -> str:
    """Draw a text: an odd one, a value that exists, or random characters."""
    odd_texts = [text for text in ODD_TEXTS if not is_strict or text.isprintable()]
    if random.random() < 0.5:
        return random.choice([*odd_texts, *known_values.texts, *known_values.ids])
    lowest = 1 if is_strict else 0
    characters = (random.randint(lowest, random.choice([0x7F, 0xFF, 0xD7FF])) for _ in range(12))
    return "".join(map(chr, characters))[: random.randint(0, 12)]


def draw_json_value(random: Random, depth: int = 0) -> Any:
    """Draw any JSON value."""
    match random.randint(0, 7 if depth < 3 else 5):
        case 0 | 1 | 2:
            return random.choice(ODD_TEXTS)
        case 3:
            return random.choice([random.randint(-(2**70), 2**70), random.randint(-2, 2)])
        case 4:
            return random.choice([0.5, -0.0, 5e-324, 1.7e308, random.uniform(-1000, 1000)])
        case 5:
            return random.choice([None, True, False])
        case 6:
            return [draw_json_value(random, depth + 1) for _ in range(random.randint(0, 3))]
    names = random.choices(ODD_TEXTS, k=random.randint(0, 3))
    return {name: draw_json_value(random, depth + 1) for name in names}


class Style(StrEnum):
    """What the values of a request are like."""

    WILD = "WILD"  # some don't match their types
    TYPED = "TYPED"  # all match their types
    PLAUSIBLE = "PLAUSIBLE"  # most are valid, and few fields are optional


@dataclass
class RequestGenerator:
    """Draws the values of input types and the documents of one request."""

    schema: GraphQLSchema
    known_values: KnownValues
    random: Random
    style: Style = Style.WILD
    variables: dict[str, Any] = field(default_factory=dict)
    variable_definitions: list[str] = field(default_factory=list)

    @property
    def is_strict(self) -> bool:
        """True if all values match their types."""
        return self.style is not Style.WILD

    @property
    def is_plausible(self) -> bool:
        return self.style is Style.PLAUSIBLE

    def happens(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def draw_leaf(self, leaf_type: GraphQLNamedType, name: str, owner: str = "") -> Any:
        """Draw a value for a field of this name, in an input about objects of type `owner`."""
        if isinstance(leaf_type, GraphQLEnumType):
            return self.random.choice([*leaf_type.values])
        likely = [
            *LIKELY_VALUES.get(name, ()),
            *LIKELY_VALUES.get(leaf_type.name, ()),
            *LIKELY_VALUES.get(f"{owner}.{name}", ()),
            *self.known_values.texts_by_name.get(name, ()),
            *(self.known_values.ids_by_type.get(owner, ()) if name in {"id", "ids"} else ()),
        ]
        fitting = [value for value in likely if isinstance(value, int) is (leaf_type.name == "Int")]
        if fitting and self.happens(
            {Style.WILD: 20, Style.TYPED: 80, Style.PLAUSIBLE: 97}[self.style]
        ):
            return self.random.choice(fitting)
        if self.is_plausible and self.happens(95):
            return self._draw_plausible_leaf(leaf_type)
        return self._draw_any_leaf(leaf_type)

    def _draw_plausible_leaf(self, leaf_type: GraphQLNamedType) -> Any:
        values: Mapping[str, Sequence[Any]] = {
            "Boolean": [True, False],
            "Int": [1, 2, 20],
            "BigInt": [1, 1000],
            "ByteSize": [2**31, "3 GiB"],
            "ID": self.known_values.ids,
            "Cursor": self.known_values.cursors,
            "DateTime": DATE_TIMES[:2],
            "Duration": DURATIONS[2:5],
            "JSON": [{"a": "b"}, {}],
        }
        return self.random.choice(values.get(leaf_type.name, WORDS))

    def _draw_any_leaf(self, leaf_type: GraphQLNamedType) -> Any:
        end = 11 if self.is_strict else None
        values: Mapping[str, Sequence[Any]] = {
            "Boolean": [True, False],
            "Int": INTEGERS[:11],
            "BigInt": [*INTEGERS[:end], 2**53 - 1, "12", "9007199254740991"],
            "ByteSize": [0, 1, 2**31, 2**53 - 1, "3 GiB", "0", "1.5k"],
            "ID": self.known_values.ids,
            "Cursor": [*CURSORS[: 3 if self.is_strict else None], *self.known_values.cursors],
            "DateTime": DATE_TIMES[: 7 if self.is_strict else None],
            "Duration": DURATIONS[:end],
            "JSON": JSON_VALUES,
        }
        if leaf_type.name == "JSON" and self.happens(50):
            return draw_json_value(self.random)
        is_text = leaf_type.name not in values or (
            not self.is_strict and leaf_type.name in {"ID", "ByteSize"} and self.happens(50)
        )
        if is_text:
            return draw_text(self.random, self.known_values, is_strict=self.is_strict)
        return self.random.choice(values[leaf_type.name])

    def draw_value(self, value_type: Any, depth: int = 0, name: str = "", owner: str = "") -> Any:
        """Draw a value for a field of this name. If not strict, it sometimes has another type."""
        if not self.is_strict and self.happens(2):
            return draw_json_value(self.random)
        if isinstance(value_type, GraphQLNonNull):
            return self.draw_value(value_type.of_type, depth, name, owner)
        if isinstance(value_type, GraphQLList):
            item_count = self.random.choice([1] if self.is_plausible else [0, 1, 1, 2, 3])
            if not self.is_plausible and self.happens(2):
                return [self.draw_value(value_type.of_type, 9, name, owner)] * 101
            return [
                self.draw_value(value_type.of_type, depth, name, owner) for _ in range(item_count)
            ]
        if isinstance(value_type, GraphQLInputObjectType):
            return self.draw_object(value_type, depth)
        return self.draw_leaf(value_type, name, owner)

    def draw_object(self, input_type: GraphQLInputObjectType, depth: int) -> Any:
        owner = input_type.name.removesuffix("Ref").removesuffix("Selection")
        if input_type.is_one_of and (self.is_strict or not self.happens(3)):
            name = self.random.choice([*input_type.fields])
            return {name: self.draw_value(input_type.fields[name].type, depth + 1, name, owner)}
        percents = (20, 12, 8, 5) if self.is_plausible else (45, 30, 20, 10)
        percent = percents[min(depth, 3)]
        values = {}
        for name, field_definition in input_type.fields.items():
            is_required = is_required_input_field(field_definition)
            if is_required or (depth < 6 and self.happens(percent)):
                is_null = not (
                    self.is_strict and is_required_input_field(field_definition)
                ) and self.happens(3)
                values[name] = (
                    None
                    if is_null
                    else self.draw_value(field_definition.type, depth + 1, name, owner)
                )
        return values

    def draw_arguments(self, field_definition: GraphQLField, *, is_root: bool) -> str:
        """Draw the arguments of a field, each in its own variable."""
        arguments = []
        unused_names = self.random.choice(PAGE_ARGUMENTS) if self.is_strict else ()
        for name, argument in field_definition.args.items():
            if name in unused_names or not (
                is_required_argument(argument) or self.happens(60 if is_root else 30)
            ):
                continue
            variable = f"v{len(self.variable_definitions)}"
            self.variable_definitions.append(f"${variable}: {argument.type}")
            self.variables[variable] = self.draw_value(argument.type, name=name)
            arguments.append(f"{name}: ${variable}")
        return f"({', '.join(arguments)})" if arguments else ""

    def draw_selection(self, selected_type: GraphQLNamedType, depth: int) -> str:
        """Draw a selection set: some leaf fields, and sometimes fields of object types."""
        if not isinstance(selected_type, GraphQLObjectType | GraphQLInterfaceType):
            return "{ __typename }"
        selections = ["__typename"]
        if isinstance(selected_type, GraphQLInterfaceType):
            # only one type, since fields of the same name but different types would conflict
            object_type = self.random.choice(self.schema.get_possible_types(selected_type))
            selections.append(
                f"... on {object_type.name} {self.draw_selection(object_type, depth + 1)}"
            )
        for name, field_definition in selected_type.fields.items():
            field_type = get_named_type(field_definition.type)
            if is_leaf_type(field_type):
                if self.happens(35):
                    selections.append(
                        f"{name}{self.draw_arguments(field_definition, is_root=False)}"
                    )
            elif name == "errors" or (depth < 4 and self.happens(25)):
                arguments = self.draw_arguments(field_definition, is_root=False)
                selections.append(f"{name}{arguments} {self.draw_selection(field_type, depth + 1)}")
        return f"{{ {' '.join(selections)} }}"

    def draw_root_field(self, alias: str, name: str, field_definition: GraphQLField) -> str:
        """Draw a selection of a root field with its arguments."""
        arguments = self.draw_arguments(field_definition, is_root=True)
        field_type = get_named_type(field_definition.type)
        selection = "" if is_leaf_type(field_type) else self.draw_selection(field_type, 1)
        return f"{alias}: {name}{arguments} {selection}"

    def draw_request(
        self, operation: str, root_fields: Sequence[tuple[str, GraphQLField]], directive: str = ""
    ) -> dict[str, Any]:
        """Draw a request for these root fields, with the aliases `it` and `it1`."""
        selections = [
            self.draw_root_field(f"it{number or ''}", *root_field)
            for number, root_field in enumerate(root_fields)
        ]
        definitions = (
            f"({', '.join(self.variable_definitions)})" if self.variable_definitions else ""
        )
        query = f"{operation} {definitions} {directive} {{ {' '.join(selections)} }}"
        return {"query": query, "variables": self.variables}


def draw_request(
    random: Random, schema: GraphQLSchema, known_values: KnownValues
) -> dict[str, Any]:
    """Draw a request for any root field, or for two mutations, maybe with `@atomic`."""
    roots = [
        (operation, (name, field_definition))
        for operation, root in (
            ("query", schema.query_type),
            ("mutation", schema.mutation_type),
            ("subscription", schema.subscription_type),
        )
        for name, field_definition in (root.fields if root else {}).items()
    ]
    operation, root_field = random.choice(roots)
    generator = RequestGenerator(schema, known_values, random, random.choice([*Style]))
    if operation != "mutation" or random.random() > 0.2:
        return generator.draw_request(operation, [root_field])
    second_field = random.choice([one for kind, one in roots if kind == "mutation"])
    directive = random.choice(["", "@atomic"])
    return generator.draw_request(operation, [root_field, second_field], directive)


BODY_MEMBERS = ("query", "variables", "operationName", "extensions", "query", "\0")
QUERIES = ("{ __typename }", "{ viewer { role } }", "{ nope }", "mutation", *ODD_TEXTS)


def draw_body(random: Random) -> bytes:
    """Draw a valid, nearly valid or invalid JSON body."""
    names = random.choices(BODY_MEMBERS, k=random.randint(0, 4))
    value: Any = {name: draw_json_value(random) for name in names}
    match random.randint(0, 3):
        case 0:
            value = draw_json_value(random)
        case 1:
            value["query"] = random.choice(QUERIES)
        case 2:
            value = {"query": random.choice(QUERIES[:3]), "variables": {}}
    body = json.dumps(value).encode()
    match random.randint(0, 5):
        case 0:
            return body[: random.randint(0, len(body))]
        case 1:
            position = random.randint(0, len(body))
            return body[:position] + random.randbytes(random.randint(0, 3)) + body[position:]
        case 2:
            return random.randbytes(random.randint(0, 40))
    return body
