"""Generated rows, pairs and pages that views read, with valid or odd columns."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

import orjson
from graphql import FieldNode, GraphQLObjectType, get_nullable_type

from graph.messages.mime_parts import MailAddress
from graph.types.connections import Connection, ConnectionSource, Edge, EdgeSource, PageInfo
from graph.types.object_views import SameRowField, View
from mail.mime.mime_tree import json_rows_from_tree
from mail.mime.parser import parse_structure_and_fields
from models.store.keyset_pages import Cursor, Page
from models.users.roles import Scope
from tests.support.differential.random_values import (
    NULL_SHARE,
    PathRandom,
    random_text,
    strawberry_definition,
)

CURSOR_FACTORIES = [
    lambda row: Cursor("x", row, 7),
    lambda _: Cursor("x", "a", 7),
    lambda _: None,
    lambda row: row.nothing,
]
MESSAGE = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nHi"
    b"\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <a@b>\r\n\r\nx\r\n--b--\r\n"
)


@cache
def message_structure() -> bytes:
    return orjson.dumps(json_rows_from_tree(parse_structure_and_fields(MESSAGE)[0]))


def name_and_address(random: PathRandom) -> Any:
    """A name and an address, as a list or a tuple."""
    parts = [random.choice([None, "Ada", ""]), random.choice(["ada@example.org", None, ""])]
    return tuple(parts) if random.happens(0.3) else parts


def names_and_addresses(random: PathRandom) -> list[Any]:
    return [name_and_address(random.derive(number)) for number in range(random.integer_below(3))]


def attachment_rows(random: PathRandom) -> list[dict[str, Any]]:
    attachment = {
        "section": "2",
        "sha256": "00",
        "filename": None,
        "content_type": "image/png",
        "disposition": "inline",
        "encoding": "base64",
        "inline": True,
        "content_id": "a@b",
        "size": random.integer_below(9999),
    }
    return [attachment] * random.integer_below(3)


COLUMNS: Mapping[str, Callable[[PathRandom], Any]] = {  # columns that derived fields of views read
    "id": lambda random: random.integer_below(2**62),
    "user_id": lambda random: random.integer_below(2**62),
    "display_address": lambda random: random.choice(["ada@example.org", "*@example.org", ""]),
    "local": lambda random: random.choice(["ada", "*", "a*"]),
    "scopes": lambda random: random.sample([scope.value for scope in Scope], 2),
    "path": lambda random: random.choice(["INBOX", "A/B", ""]),
    "retention": lambda random: random.choice([None, 3600]),
    "envelope_from": lambda random: random.choice([None, "", "bob@example.com"]),
    "envelope_to": lambda random: random.sample(["ada@example.org", "bob@example.com"], 2),
    "from_name": lambda random: random.choice([None, "", "Bob"]),
    "from_address": lambda random: random.choice([None, "bob@example.com"]),
    "sender": lambda random: random.choice([None, name_and_address(random)]),
    "reply_to": names_and_addresses,
    "to": names_and_addresses,
    "cc": names_and_addresses,
    "bcc": names_and_addresses,
    "mailing_list": lambda random: random.choice(
        [None, {"id": "x", "unsubscribe": None, "url": "https://x.example/", "one_click": True}]
    ),
    "preview": random_text,
    "keywords": lambda random: random.sample(["$Forwarded", "x", "y"], 2),
    "attachment_count": lambda random: random.integer_below(3),
    "attachments": attachment_rows,
    "mime_structure": lambda _: message_structure(),
    "content_type": lambda _: "text/plain",
    "content_params": lambda random: random.choice([{}, {"charset": "utf-8"}]),
    "password": lambda random: random.choice([None, "hash"]),
    "active": lambda random: random.happens(0.5),
    "suspended": lambda random: random.happens(0.5),
    "one": lambda random: random.choice([None, name_and_address(random)]),
    "many": names_and_addresses,
    "word": random_text,
}


class ColumnField(NamedTuple):
    """A field that returns the column of the same name, with the nodes that select it."""

    type: Any
    nodes: Sequence[FieldNode]


class GeneratedRow:
    """A row that generates each column at the first read."""

    def __init__(
        self, generator: Any, random: PathRandom, fields: Mapping[str, ColumnField]
    ) -> None:
        self._generator = generator
        self._random = random
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = self._generate_column(name)
        vars(self)[name] = value
        return value

    def _generate_column(self, name: str) -> Any:
        column_random = self._random.derive("column", name)
        if column_random.happens(self._generator.odd_share / 8):
            raise ValueError(f"no {name} to be had")
        if name in COLUMNS:
            valid_value = COLUMNS[name](column_random)
            value = (
                self._generator.odd_value(valid_value, column_random)
                if column_random.happens(self._generator.odd_share)
                else valid_value
            )
            return [valid_value] if _is_iterator(value) else value
        if name in self._fields:
            field = self._fields[name]
            value = self._generator.value(field.type, field.nodes, column_random.derive("value"))
            return [] if _is_iterator(value) else value
        # the id of a linked row
        return None if column_random.happens(NULL_SHARE) else column_random.integer_below(1000)


def _is_iterator(value: object) -> bool:
    """True for an iterator, which can be read only once. A column can be read several times."""
    return isinstance(value, Iterator | AsyncIterator)


def view_source(
    generator: Any,
    view_type: GraphQLObjectType,
    selected_fields: Mapping[str, Sequence[FieldNode]],
    random: PathRandom,
) -> Any:
    """Generate the source of a view of this type: a row, a pair or a page."""
    strawberry_type = strawberry_definition(view_type)
    python_class = (strawberry_type.concrete_of or strawberry_type).origin
    if python_class is MailAddress:
        return name_and_address(random)
    if python_class in (Connection, PageInfo):
        return page_source(generator, view_type, selected_fields, random)
    if python_class is Edge:
        node_type = _node_type(view_type, "node")
        return EdgeSource(
            random.choice(CURSOR_FACTORIES),
            7,
            generator.value(node_type, selected_fields.get("node", ()), random),
        )
    return GeneratedRow(generator, random, _column_fields(generator, view_type, selected_fields))


def _column_fields(
    generator: Any, view_type: GraphQLObjectType, selected_fields: Mapping[str, Sequence[FieldNode]]
) -> dict[str, ColumnField]:
    """The selected fields of a row by column, with those of views of the same row."""
    definition, fields = strawberry_definition(view_type), dict[str, ColumnField]()
    derived_fields = (definition.concrete_of or definition).origin.derived_fields
    for name, nodes in selected_fields.items():
        field = view_type.fields.get(name)
        if field is None:  # __typename
            continue
        python_name = strawberry_definition(field).python_name
        if isinstance(derived_fields.get(python_name), SameRowField):
            same_row_type: Any = get_nullable_type(field.type)
            nested_fields = generator.selected_fields(nodes)
            fields = _column_fields(generator, same_row_type, nested_fields) | fields
        else:
            fields[python_name] = ColumnField(field.type, nodes)
    return fields


def page_source(
    generator: Any,
    view_type: GraphQLObjectType,
    selected_fields: Mapping[str, Sequence[FieldNode]],
    random: PathRandom,
) -> ConnectionSource:
    """Generate a page of a connection. If values can be odd, it can have too few or many items."""
    nodes = list(selected_fields.get("nodes", ()))
    nodes += generator.selected_fields(selected_fields.get("edges", ())).get("node", ())
    if "nodes" in view_type.fields:
        items = generator.value(_node_type(view_type, "nodes"), nodes, random.derive("items"))
    else:
        items = []
    if "edges" in selected_fields and not isinstance(items, list):
        items = [items] * 2  # the items of a page can be read several times
    count = len(items) if isinstance(items, list) else random.integer_below(3)
    rows: list[Any] = [datetime(2030, 1, 1 + number, tzinfo=UTC) for number in range(count)]
    has_more_values: list[Any] = (
        [True, False] if not random.happens(generator.odd_share) else [None, "yes"]
    )
    page = Page(rows, random.choice(has_more_values), random.choice(has_more_values))
    make_cursor = random.choice(
        CURSOR_FACTORIES[: 1 if not random.happens(generator.odd_share) else 4]
    )

    async def total() -> int:
        return random.integer_below(9)

    return ConnectionSource(page, items, make_cursor, total)


def _node_type(view_type: GraphQLObjectType, name: str) -> Any:
    return (
        get_nullable_type(view_type.fields[name].type)
        if name == "node"
        else view_type.fields[name].type
    )


def is_view(cls: type) -> bool:
    return issubclass(cls, View)
