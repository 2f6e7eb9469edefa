"""Random requests for a schema, with values that its types allow or almost allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from hypothesis import strategies as some
from hypothesis.strategies import DrawFn, SearchStrategy

ODD_TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud83d",
    "a\udc00b",
    "\u202eevil",
    "\ufeffa",
    "\u2028",
    "\x7f",
    "e\u0301",
    "é",
    "ß",
    "İ",
    "👩‍👩‍👧‍👦",
    "a\r\nBcc: eve@example.net",
    "a\nb",
    "\r",
    "\t",
    "'",
    '"',
    '"a',
    "\\",
    "%",
    "_",
    "*",
    "-",
    "a* -b",
    '"" "',
    "-" * 300,
    "NEAR(a b)",
    "a AND OR NOT",
    "subject:",
    "'; DROP TABLE users; --",
    "null",
    "NaN",
    "-1",
    "1:*",
    "*:1",
    "1,2,3:5",
    "0",
    "4294967296",
    "9" * 400,
    "1:" + "9" * 30,
    "٣",
    "/",
    "//",
    "a/",
    "/a",
    "a//b",
    ".",
    "..",
    "../..",
    "a/b",
    "a/b/c",
    "Clients",
    "Clients/Eve",
    "INBOX",
    "inbox",
    "InBoX/a",
    "Trash",
    "Sent/x",
    "&AOk-",
    "/".join("abcdefghijklmnopqrstuvwxyz"),
    "/".join(["deep"] * 60),
    "x" * 256,
    "x" * 5000,
    "é" * 200,
    "a " * 2000,
    "a@example.org",
    "ada@example.org",
    "ADA@EXAMPLE.ORG",
    "a@b",
    "@",
    "@example.org",
    "a@",
    "a@@b",
    "a@[127.0.0.1]",
    '"a b"@example.org',
    "a@xn--",
    "a@xn--a.example",
    "a@bücher.example",
    "bücher@example.org",
    "a@" + "x" * 64 + ".example",
    "a@" + "x." * 130 + "example",
    "x" * 65 + "@example.org",
    "a+b@example.org",
    "*@example.org",
    "a@exam\u3002ple",
    "ada",
    "domain:example.org",
    "SEEN",
    "\\Seen",
    "$label",
    "Subject: Hi\n\nHello\n",
    "From: \0\n\n",
    "Content-Type: multipart/mixed; boundary=a\n\n--a\n\n--a--\n",
    "=?utf-8?q?=00?=",
    "Received",
    "X-A: b",
    "text/plain",
    "text/plain; charset=nonsense",
    "a/b/c",
    "SGVsbG8=",
    "SGVsbG8",
    "zz",
    "<a@b>",
    "<>",
    "127.0.0.1",
    "::1",
    "::ffff:1.2.3.4",
    "fe80::1%eth0",
    "1.2",
    "1",
]
DATE_TIMES = [
    "2030-01-01T00:00:00Z",
    "2031-01-01T00:00:00+02:00",
    "2029-01-01T00:00:00.123456789Z",
    "1970-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59+14:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2030-02-30T00:00:00Z",
    "2030-01-01",
    "2030-01-01T24:00:00Z",
]
DURATIONS = [
    "PT0S",
    "PT1S",
    "PT20M",
    "P1D",
    "P30D",
    "P180D",
    "P9999Y",
    "P999999D",
    "P9999Y99999M99999W999999D",
    "PT9999999H99999999M999999999S",
    "PT0.000001S",
    "-P1D",
    "P",
    "PT",
]
CURSORS = ["1.1.0", "1.0.0", "1.9223372036854775807.9223372036854775807", "1", "2.1.1", "1.1"]
# In INTEGERS, DATE_TIMES, DURATIONS and CURSORS the invalid values are at the end.
INTEGERS = [0, 1, -1, 2, 20, 100, 101, 1000, 1001, 2**31 - 1, -(2**31), 2**31, 2**53 - 1, 2**63]
MAILBOX_PATHS = ["INBOX", "Sent", "Trash", "Drafts", "Junk", "Clients", "Clients/Eve", "A", "A/B"]
ADDRESSES = ["ada@example.org", "bob@example.org", "carol@far.example", "eve@example.org"]
FLAGS = ["work", "$label", "\\Seen", "SEEN", "a" * 50]
# Values that are often valid, by the name of the argument or field
LIKELY_VALUES: Mapping[str, Sequence[str]] = {
    "path": MAILBOX_PATHS,
    "paths": MAILBOX_PATHS,
    "newPath": MAILBOX_PATHS,
    "uids": ["1", "1:*", "2,3", "*"],
    "address": ADDRESSES,
    "username": ["ada", "eve", "mallory", *ADDRESSES],
    "flags": FLAGS,
    "addFlags": FLAGS,
    "removeFlags": FLAGS,
    "query": ["news", "news -rich", '"news 1"', "ne*"],
    "content": ["SGVsbG8=", "", "zz"],
}
JSON_VALUES: list[Any] = [
    {"a": [[{}]]},
    {"\0": "\0"},
    {"a": "\ud800"},
    {"a": 2**70},
    {"a": 1e308},
    {"": None},
]


@dataclass(frozen=True)
class KnownValues:
    """Ids, cursors and other texts that exist in the store."""

    ids: tuple[str, ...] = ()
    cursors: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def text_strategy(known_values: KnownValues, *, is_strict: bool = False) -> SearchStrategy[str]:
    characters = some.characters(codec="utf-8", exclude_characters="\0" if is_strict else "")
    odd_texts = [text for text in ODD_TEXTS if not is_strict or text.isprintable()]
    return some.sampled_from([*odd_texts, *known_values.texts, *known_values.ids]) | some.text(
        characters, max_size=12
    )


def draw_json_value(draw: DrawFn, depth: int = 0) -> Any:
    """Draw any JSON value."""
    match draw(some.integers(0, 7 if depth < 3 else 5)):
        case 0 | 1 | 2:
            return draw(some.sampled_from(ODD_TEXTS))
        case 3:
            return draw(some.integers(-(2**70), 2**70))
        case 4:
            return draw(some.floats(allow_nan=False, allow_infinity=False))
        case 5:
            return draw(some.sampled_from([None, True, False]))
        case 6:
            return [draw_json_value(draw, depth + 1) for _ in range(draw(some.integers(0, 3)))]
    names = draw(some.lists(some.sampled_from(ODD_TEXTS), max_size=3))
    return {name: draw_json_value(draw, depth + 1) for name in names}


@dataclass
class RequestGenerator:
    """Draws the values of input types and the documents of one request."""

    schema: GraphQLSchema
    known_values: KnownValues
    draw: DrawFn
    is_strict: bool = False  # True if all values match their types
    variables: dict[str, Any] = field(default_factory=dict)
    variable_definitions: list[str] = field(default_factory=list)

    def happens(self, percent: int) -> bool:
        # Hypothesis shrinks to small numbers, so they must stand for the common case
        return self.draw(some.integers(0, 99)) >= 100 - percent

    def draw_leaf(self, leaf_type: GraphQLNamedType, name: str) -> Any:
        if isinstance(leaf_type, GraphQLEnumType):
            return self.draw(some.sampled_from([*leaf_type.values]))
        if name in LIKELY_VALUES and self.happens(80 if self.is_strict else 20):
            return self.draw(some.sampled_from(LIKELY_VALUES[name]))
        any_text = text_strategy(self.known_values, is_strict=self.is_strict)
        integers = INTEGERS[: 11 if self.is_strict else None]
        by_name: Mapping[str, SearchStrategy[Any]] = {
            "Boolean": some.booleans(),
            "Int": some.sampled_from(INTEGERS[:11]),
            "BigInt": some.sampled_from([*integers, 2**53 - 1, "12", "9007199254740991"]),
            "ByteSize": some.sampled_from([0, 1, 2**31, 2**53 - 1, "3 GiB", "0", "1.5k"]),
            "ID": some.sampled_from(self.known_values.ids or ("x",)),
            "Cursor": some.sampled_from(
                [*CURSORS[: 3 if self.is_strict else None], *self.known_values.cursors]
            ),
            "DateTime": some.sampled_from(DATE_TIMES[: 7 if self.is_strict else None]),
            "Duration": some.sampled_from(DURATIONS[: 11 if self.is_strict else None]),
            "JSON": some.sampled_from(JSON_VALUES),
        }
        if not self.is_strict:
            by_name = {
                **by_name,
                "ID": by_name["ID"] | any_text,
                "ByteSize": by_name["BigInt"] | any_text,
            }
        if leaf_type.name == "JSON" and self.happens(50):
            return draw_json_value(self.draw)
        return self.draw(by_name.get(leaf_type.name, any_text))

    def draw_value(self, value_type: Any, depth: int = 0, name: str = "") -> Any:
        """Draw a value for a field of this name. If not strict, it sometimes has another type."""
        if not self.is_strict and self.happens(2):
            return draw_json_value(self.draw)
        if isinstance(value_type, GraphQLNonNull):
            return self.draw_value(value_type.of_type, depth, name)
        if isinstance(value_type, GraphQLList):
            item_count = self.draw(some.sampled_from([0, 1, 1, 2, 3]))
            if self.happens(2):
                return [self.draw_value(value_type.of_type, 9, name)] * 101
            return [self.draw_value(value_type.of_type, depth, name) for _ in range(item_count)]
        if isinstance(value_type, GraphQLInputObjectType):
            return self.draw_object(value_type, depth)
        return self.draw_leaf(value_type, name)

    def draw_object(self, input_type: GraphQLInputObjectType, depth: int) -> Any:
        if input_type.is_one_of and (self.is_strict or not self.happens(3)):
            name = self.draw(some.sampled_from([*input_type.fields]))
            return {name: self.draw_value(input_type.fields[name].type, depth + 1, name)}
        percent = (45, 30, 20, 10)[min(depth, 3)]
        values = {}
        for name, field_definition in input_type.fields.items():
            is_required = is_required_input_field(field_definition)
            if is_required or (depth < 6 and self.happens(percent)):
                is_null = not (
                    self.is_strict and is_required_input_field(field_definition)
                ) and self.happens(3)
                values[name] = (
                    None if is_null else self.draw_value(field_definition.type, depth + 1, name)
                )
        return values

    def draw_arguments(self, field_definition: GraphQLField, *, is_root: bool) -> str:
        """Draw the arguments of a field, each in its own variable."""
        arguments = []
        for name, argument in field_definition.args.items():
            if not (is_required_argument(argument) or self.happens(60 if is_root else 30)):
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
            object_type = self.draw(
                some.sampled_from(self.schema.get_possible_types(selected_type))
            )
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

    def draw_request(
        self, operation: str, name: str, field_definition: GraphQLField
    ) -> dict[str, Any]:
        """Draw a request for one root field."""
        arguments = self.draw_arguments(field_definition, is_root=True)
        field_type = get_named_type(field_definition.type)
        selection = "" if is_leaf_type(field_type) else self.draw_selection(field_type, 1)
        definitions = (
            f"({', '.join(self.variable_definitions)})" if self.variable_definitions else ""
        )
        query = f"{operation} {definitions} {{ it: {name}{arguments} {selection} }}"
        return {"query": query, "variables": self.variables}


@some.composite
def random_requests(
    draw: DrawFn, schema: GraphQLSchema, known_values: KnownValues
) -> dict[str, Any]:
    """Draw a request for any root field."""
    roots = [
        (operation, name, field_definition)
        for operation, root in (
            ("query", schema.query_type),
            ("mutation", schema.mutation_type),
            ("subscription", schema.subscription_type),
        )
        for name, field_definition in (root.fields if root else {}).items()
    ]
    operation, name, field_definition = draw(some.sampled_from(roots))
    is_strict = draw(some.sampled_from([True, True, False]))
    return RequestGenerator(schema, known_values, draw, is_strict).draw_request(
        operation, name, field_definition
    )
