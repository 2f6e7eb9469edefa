"""Values that a schema's types allow, or nearly allow, and documents that use them."""

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

ODD = [
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
MOMENTS = [
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
SPANS = [
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
# what is only nearly right stands at the end of these
WHOLE = [0, 1, -1, 2, 20, 100, 101, 1000, 1001, 2**31 - 1, -(2**31), 2**31, 2**53 - 1, 2**63]
PATHS = ["INBOX", "Sent", "Trash", "Drafts", "Junk", "Clients", "Clients/Eve", "A", "A/B"]
PEOPLE = ["ada@example.org", "bob@example.org", "carol@far.example", "eve@example.org"]
FLAGS = ["work", "$label", "\\Seen", "SEEN", "a" * 50]
LIKELY: Mapping[str, Sequence[str]] = {  # what does well, by the name of its member
    "path": PATHS,
    "paths": PATHS,
    "newPath": PATHS,
    "uids": ["1", "1:*", "2,3", "*"],
    "address": PEOPLE,
    "username": ["ada", "eve", "mallory", *PEOPLE],
    "flags": FLAGS,
    "addFlags": FLAGS,
    "removeFlags": FLAGS,
    "query": ["news", "news -rich", '"news 1"', "ne*"],
    "content": ["SGVsbG8=", "", "zz"],
}
DEEP: list[Any] = [
    {"a": [[{}]]},
    {"\0": "\0"},
    {"a": "\ud800"},
    {"a": 2**70},
    {"a": 1e308},
    {"": None},
]


@dataclass(frozen=True)
class Known:
    """Words that name something: ids, cursors, tokens."""

    ids: tuple[str, ...] = ()
    cursors: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def texts(known: Known, *, strict: bool = False) -> SearchStrategy[str]:
    letters = some.characters(codec="utf-8", exclude_characters="\0" if strict else "")
    odd = [text for text in ODD if not strict or text.isprintable()]
    return some.sampled_from([*odd, *known.texts, *known.ids]) | some.text(letters, max_size=12)


def json_value(draw: DrawFn, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    match draw(some.integers(0, 7 if depth < 3 else 5)):
        case 0 | 1 | 2:
            return draw(some.sampled_from(ODD))
        case 3:
            return draw(some.integers(-(2**70), 2**70))
        case 4:
            return draw(some.floats(allow_nan=False, allow_infinity=False))
        case 5:
            return draw(some.sampled_from([None, True, False]))
        case 6:
            return [json_value(draw, depth + 1) for _ in range(draw(some.integers(0, 3)))]
    names = draw(some.lists(some.sampled_from(ODD), max_size=3))
    return {name: json_value(draw, depth + 1) for name in names}


@dataclass
class Inventor:
    """Draws values of input types and documents of a schema."""

    schema: GraphQLSchema
    known: Known
    draw: DrawFn
    strict: bool = False  # whether all values are what their types ask for
    variables: dict[str, Any] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)

    def chance(self, of_hundred: int) -> bool:
        # the small end is the rare one: what shrinks becomes usual
        return self.draw(some.integers(0, 99)) >= 100 - of_hundred

    def leaf(self, kind: GraphQLNamedType, name: str) -> Any:
        if isinstance(kind, GraphQLEnumType):
            return self.draw(some.sampled_from([*kind.values]))
        if name in LIKELY and self.chance(80 if self.strict else 20):
            return self.draw(some.sampled_from(LIKELY[name]))
        text = texts(self.known, strict=self.strict)
        whole = WHOLE[: 11 if self.strict else None]
        by_name: Mapping[str, SearchStrategy[Any]] = {
            "Boolean": some.booleans(),
            "Int": some.sampled_from(WHOLE[:11]),
            "BigInt": some.sampled_from([*whole, 2**53 - 1, "12", "9007199254740991"]),
            "ByteSize": some.sampled_from([0, 1, 2**31, 2**53 - 1, "3 GiB", "0", "1.5k"]),
            "ID": some.sampled_from(self.known.ids or ("x",)),
            "Cursor": some.sampled_from(
                [*CURSORS[: 3 if self.strict else None], *self.known.cursors]
            ),
            "DateTime": some.sampled_from(MOMENTS[: 7 if self.strict else None]),
            "Duration": some.sampled_from(SPANS[: 11 if self.strict else None]),
            "JSON": some.sampled_from(DEEP),
        }
        if not self.strict:
            by_name = {**by_name, "ID": by_name["ID"] | text, "ByteSize": by_name["BigInt"] | text}
        if kind.name == "JSON" and self.chance(50):
            return json_value(self.draw)
        return self.draw(by_name.get(kind.name, text))

    def value(self, kind: Any, depth: int = 0, name: str = "") -> Any:
        """A value of this type for a member of this name; once in a while one of another type."""
        if not self.strict and self.chance(2):
            return json_value(self.draw)
        if isinstance(kind, GraphQLNonNull):
            return self.value(kind.of_type, depth, name)
        if isinstance(kind, GraphQLList):
            many = self.draw(some.sampled_from([0, 1, 1, 2, 3]))
            if self.chance(2):
                return [self.value(kind.of_type, 9, name)] * 101
            return [self.value(kind.of_type, depth, name) for _ in range(many)]
        if isinstance(kind, GraphQLInputObjectType):
            return self.object(kind, depth)
        return self.leaf(kind, name)

    def object(self, kind: GraphQLInputObjectType, depth: int) -> Any:
        if kind.is_one_of and (self.strict or not self.chance(3)):
            name = self.draw(some.sampled_from([*kind.fields]))
            return {name: self.value(kind.fields[name].type, depth + 1, name)}
        likely = (45, 30, 20, 10)[min(depth, 3)]
        made = {}
        for name, spec in kind.fields.items():
            needed = is_required_input_field(spec)
            if needed or (depth < 6 and self.chance(likely)):
                null = not (self.strict and is_required_input_field(spec)) and self.chance(3)
                made[name] = None if null else self.value(spec.type, depth + 1, name)
        return made

    def arguments(self, spec: GraphQLField, *, all_of_them: bool) -> str:
        """The arguments of a field, each in a variable of its own."""
        said = []
        for name, argument in spec.args.items():
            if not (is_required_argument(argument) or self.chance(60 if all_of_them else 30)):
                continue
            variable = f"v{len(self.declared)}"
            self.declared.append(f"${variable}: {argument.type}")
            self.variables[variable] = self.value(argument.type, name=name)
            said.append(f"{name}: ${variable}")
        return f"({', '.join(said)})" if said else ""

    def selection(self, kind: GraphQLNamedType, depth: int) -> str:
        """What to ask of an object: some leaves, and now and then what is behind a link."""
        if not isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            return "{ __typename }"
        asked = ["__typename"]
        if isinstance(kind, GraphQLInterfaceType):
            # of one kind only: fields of the same name and other types would be a conflict
            one = self.draw(some.sampled_from(self.schema.get_possible_types(kind)))
            asked.append(f"... on {one.name} {self.selection(one, depth + 1)}")
        for name, spec in kind.fields.items():
            inner = get_named_type(spec.type)
            if is_leaf_type(inner):
                if self.chance(35):
                    asked.append(f"{name}{self.arguments(spec, all_of_them=False)}")
            elif name == "errors" or (depth < 4 and self.chance(25)):
                arguments = self.arguments(spec, all_of_them=False)
                asked.append(f"{name}{arguments} {self.selection(inner, depth + 1)}")
        return f"{{ {' '.join(asked)} }}"

    def document(self, operation: str, name: str, spec: GraphQLField) -> dict[str, Any]:
        """A request for one root field."""
        arguments = self.arguments(spec, all_of_them=True)
        kind = get_named_type(spec.type)
        selection = "" if is_leaf_type(kind) else self.selection(kind, 1)
        declared = f"({', '.join(self.declared)})" if self.declared else ""
        query = f"{operation} {declared} {{ it: {name}{arguments} {selection} }}"
        return {"query": query, "variables": self.variables}


@some.composite
def requests(draw: DrawFn, schema: GraphQLSchema, known: Known) -> dict[str, Any]:
    """A request for any field of the roots."""
    roots = [
        (operation, name, spec)
        for operation, root in (
            ("query", schema.query_type),
            ("mutation", schema.mutation_type),
            ("subscription", schema.subscription_type),
        )
        for name, spec in (root.fields if root else {}).items()
    ]
    operation, name, spec = draw(some.sampled_from(roots))
    strict = draw(some.sampled_from([True, True, False]))
    return Inventor(schema, known, draw, strict).document(operation, name, spec)
