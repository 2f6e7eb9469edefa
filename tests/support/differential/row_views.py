"""What views are made of: rows, pairs, pages, with columns that are right or odd."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

import orjson
from graphql import FieldNode, GraphQLObjectType, get_nullable_type

from graph.messages.mime_parts import MailAddress
from graph.types.connections import Connection, ConnectionSource, Edge, EdgeSource, PageInfo
from graph.types.object_views import View
from mail.mime.mime_tree import json_from_part
from mail.mime.parser import parse_structure_and_fields
from models.store.keyset_pages import Cursor, Page
from models.users.roles import Scope
from tests.support.differential.random_values import EMPTY, Dice, definition, text

PLACES = [
    lambda row: Cursor("x", row, 7),
    lambda _: Cursor("x", "a", 7),
    lambda _: None,
    lambda row: row.nothing,
]
LETTER = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nHi"
    b"\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <a@b>\r\n\r\nx\r\n--b--\r\n"
)


@cache
def structure() -> bytes:
    return orjson.dumps(json_from_part(parse_structure_and_fields(LETTER)[0]))


def pair(dice: Dice) -> Any:
    """Name and address: a list in a row, or a tuple."""
    made = [dice.pick([None, "Ada", ""]), dice.pick(["ada@example.org", None, ""])]
    return tuple(made) if dice.one_in(0.3) else made


def pairs(dice: Dice) -> list[Any]:
    return [pair(dice.at(nth)) for nth in range(dice.below(3))]


def attachments(dice: Dice) -> list[dict[str, Any]]:
    one = {
        "part": "2",
        "hash": "00",
        "filename": None,
        "content_type": "image/png",
        "disposition": "inline",
        "encoding": "base64",
        "related": True,
        "cid": "a@b",
        "size": dice.below(9999),
    }
    return [one] * dice.below(3)


COLUMNS: Mapping[str, Callable[[Dice], Any]] = {  # what `made` of a view reads of its row
    "id": lambda dice: dice.below(2**62),
    "user_id": lambda dice: dice.below(2**62),
    "shown": lambda dice: dice.pick(["ada@example.org", "*@example.org", ""]),
    "local": lambda dice: dice.pick(["ada", "*", "a*"]),
    "scopes": lambda dice: dice.some([one.value for one in Scope], 2),
    "path": lambda dice: dice.pick(["INBOX", "A/B", ""]),
    "retention": lambda dice: dice.pick([None, 0, 3600]),
    "envelope_from": lambda dice: dice.pick([None, "", "bob@example.com"]),
    "envelope_to": lambda dice: dice.some(["ada@example.org", "bob@example.com"], 2),
    "from_name": lambda dice: dice.pick([None, "", "Bob"]),
    "from_address": lambda dice: dice.pick([None, "bob@example.com"]),
    "sender": lambda dice: dice.pick([None, pair(dice)]),
    "reply_to": pairs,
    "to": pairs,
    "cc": pairs,
    "bcc": pairs,
    "mailing_list": lambda dice: dice.pick(
        [None, {"id": "x", "unsubscribe": None, "url": "https://x.example/", "one_click": True}]
    ),
    "preview": text,
    "keywords": lambda dice: dice.some(["$Forwarded", "x", "y"], 2),
    "attachment_count": lambda dice: dice.below(3),
    "attachments": attachments,
    "structure": lambda _: structure(),
    "content_type": lambda _: "text/plain",
    "content_params": lambda dice: dice.pick([{}, {"charset": "utf-8"}]),
    "password": lambda dice: dice.pick([None, "hash"]),
    "disabled": lambda dice: dice.one_in(0.5),
    "suspended": lambda dice: dice.one_in(0.5),
    "one": lambda dice: dice.pick([None, pair(dice)]),
    "many": pairs,
    "word": text,
}


class Plain(NamedTuple):
    """A field whose value is the column of its name: its type, and who selects it."""

    type: Any
    nodes: Sequence[FieldNode]


class Row:
    """A row: each column is made up when it is read first, and stays."""

    def __init__(self, maker: Any, dice: Dice, fields: Mapping[str, Plain]) -> None:
        self._maker = maker
        self._dice = dice
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = self._made(name)
        vars(self)[name] = value
        return value

    def _made(self, name: str) -> Any:
        place = self._dice.at("column", name)
        if place.one_in(self._maker.wrong / 8):
            raise ValueError(f"no {name} to be had")
        if name in COLUMNS:
            right = COLUMNS[name](place)
            value = self._maker.odd(right, place) if place.one_in(self._maker.wrong) else right
            return [right] if _spent(value) else value
        if name in self._fields:
            field = self._fields[name]
            value = self._maker.value(field.type, field.nodes, place.at("value"))
            return [] if _spent(value) else value
        return None if place.one_in(EMPTY) else place.below(1000)  # of a link


def _spent(value: object) -> bool:
    """Whether reading uses it up: a column is read as often as anybody asks, and never is that."""
    return isinstance(value, Iterator | AsyncIterator)


def source(
    maker: Any, kind: GraphQLObjectType, selected: Mapping[str, Sequence[FieldNode]], dice: Dice
) -> Any:
    """What a view of this type is made of."""
    known = definition(kind)
    cls = (known.concrete_of or known).origin
    if cls is MailAddress:
        return pair(dice)
    if cls in (Connection, PageInfo):
        return paged(maker, kind, selected, dice)
    if cls is Edge:
        item = _inner(kind, "node")
        return EdgeSource(dice.pick(PLACES), 7, maker.value(item, selected.get("node", ()), dice))
    fields = {
        definition(field).python_name: Plain(field.type, selected[name])
        for name, field in kind.fields.items()
        if name in selected
    }
    return Row(maker, dice, fields)


def paged(
    maker: Any, kind: GraphQLObjectType, selected: Mapping[str, Sequence[FieldNode]], dice: Dice
) -> ConnectionSource:
    """A page of as many items as rows, or, where odd things may be, of others."""
    nodes = list(selected.get("nodes", ()))
    nodes += maker.selected(selected.get("edges", ())).get("node", ())
    if "nodes" in kind.fields:
        items = maker.value(_inner(kind, "nodes"), nodes, dice.at("items"))
    else:
        items = []
    if "edges" in selected and not isinstance(items, list):
        items = [items] * 2  # a page's items are read as often as anybody asks
    count = len(items) if isinstance(items, list) else dice.below(3)
    rows: list[Any] = [datetime(2030, 1, 1 + nth, tzinfo=UTC) for nth in range(count)]
    ends: list[Any] = [True, False] if not dice.one_in(maker.wrong) else [None, "yes"]
    page = Page(rows, dice.pick(ends), dice.pick(ends))
    place = dice.pick(PLACES[: 1 if not dice.one_in(maker.wrong) else 4])

    async def total() -> int:
        return dice.below(9)

    return ConnectionSource(page, items, place, total)


def _inner(kind: GraphQLObjectType, name: str) -> Any:
    return get_nullable_type(kind.fields[name].type) if name == "node" else kind.fields[name].type


def is_view(cls: type) -> bool:
    return issubclass(cls, View)
