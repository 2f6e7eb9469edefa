"""Random values for a schema's types: right ones, and all that a resolver may get wrong."""

import asyncio
import enum
import math
import zlib
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import strawberry
from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    SelectionNode,
    Undefined,
    get_named_type,
    get_nullable_type,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
)
from strawberry.schema.schema_converter import GraphQLCoreConverter

from graph.types.object_views import View
from models.errors import Conflict, Forbidden, InvalidInput, NotFound, ServiceUnavailable

Item = TypeVar("Item")

MASK = (1 << 64) - 1
EMPTY = 0.15  # of values that may be null
LOOSE = 0.05  # of lists that are another iterable, where values may be odd
FILLED = 0.6  # of links
SUBCLASS = 0.03  # of objects
BARE = 0.05  # of views that hold their fields themselves, where values may be odd
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Dice:
    """Chance that hangs on seed and place alone: one place falls the same without the others."""

    __slots__ = ("seed", "state")

    def __init__(self, seed: int) -> None:
        self.seed = self.state = seed & MASK

    def at(self, *place: object) -> "Dice":
        """The dice of a place below."""
        word = repr(place).encode()
        mixed = (zlib.crc32(word, self.seed & 0xFFFFFFFF) << 32) ^ zlib.adler32(word) ^ self.seed
        return Dice(mixed * 0x9E3779B97F4A7C15)

    def below(self, count: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return (self.state >> 33) % count

    def one_in(self, share: float) -> bool:
        """True so often; a share of 0 is never."""
        return self.below(100_000) < share * 100_000

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """So many of them, each once, in any order."""
        left, taken = list(items), list[Item]()
        while left and len(taken) < count:
            taken.append(left.pop(self.below(len(left))))
        return taken


class Oddity:
    """Nothing that a schema knows, the same words each time."""

    def __repr__(self) -> str:
        return "<oddity>"


class Word(str):
    """Text, but not of the type `str`."""

    __slots__ = ()


class Number(int):
    """Not of the type `int`."""


class Row(list[Any]):
    """Not of the type `list`."""


class Letter(enum.StrEnum):
    A = "a"
    RED = "RED"


class Digit(enum.IntEnum):
    ONE = 1
    LARGE = 2**40


class Later:
    """Awaitable, and no coroutine: nobody complains where it is never awaited."""

    def __init__(self, value: object, turns: int = 0) -> None:
        self.value = value
        self.turns = turns

    def __await__(self) -> Generator[Any, None, Any]:
        for _ in range(self.turns):
            yield
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def __repr__(self) -> str:
        return "<later>"


async def _told(value: object) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def _each(*values: object) -> Iterator[Any]:
    for value in values:
        if isinstance(value, GraphQLError):
            raise value
        yield value


async def _each_later(*values: object) -> AsyncIterator[Any]:
    for value in values:
        if isinstance(value, GraphQLError):
            raise value
        yield value


def _settled(value: object) -> asyncio.Future[Any]:
    made = asyncio.get_running_loop().create_future()
    if isinstance(value, Exception):
        made.set_exception(value)
        made.exception()  # seen: nobody complains where it is not awaited
    else:
        made.set_result(value)
    return made


ERRORS: list[Callable[[], Exception]] = [
    lambda: ValueError("boom"),
    lambda: KeyError("boom"),
    lambda: AttributeError("boom"),
    lambda: TypeError("boom"),
    lambda: RuntimeError("coroutine raised"),
    lambda: GraphQLError("odd", extensions={"code": "ODD", "more": {"b": 1, "a": [2]}}),
    lambda: GraphQLError("elsewhere", path=["not", "here", 1]),
    lambda: NotFound("msg_1", path=["select", "ids"], index=3),
    lambda: InvalidInput("no good", constraint="pattern", path=["set"]),
    lambda: Forbidden("never", requires="ROOT"),
    lambda: Conflict("there already"),
    lambda: ServiceUnavailable("later"),
]
ODD: list[Callable[[Any], Any]] = [
    lambda _: None,
    lambda _: None,
    lambda _: Undefined,
    lambda _: strawberry.UNSET,
    lambda _: 2**40,
    lambda _: -(2**31) - 1,
    lambda _: -(2**31),
    lambda _: True,
    lambda _: 0,
    lambda _: 1.5,
    lambda _: 3.0,
    lambda _: 3.0e20,
    lambda _: math.nan,
    lambda _: -math.inf,
    lambda _: "",
    lambda _: "zz",
    lambda _: "7",
    lambda _: "RED",
    lambda _: b"bytes",
    lambda _: Word("word"),
    lambda _: Number(7),
    lambda _: Letter.RED,
    lambda _: Digit.ONE,
    lambda _: Digit.LARGE,
    lambda _: Oddity(),
    lambda _: Oddity,
    lambda _: datetime(2030, 1, 1),  # noqa: DTZ001 - odd
    lambda _: datetime.max.replace(tzinfo=UTC),
    lambda _: date(2030, 1, 1),
    lambda _: timedelta(seconds=-0.5),
    lambda _: [],
    lambda right: [right],
    lambda right: [[right]],
    lambda right: (right,),
    lambda right: {"id": right},
    lambda _: {1, 2},
    lambda _: range(2),
    lambda right: deque([right, right]),
    lambda right: Row([right]),
    lambda right: _each(right, right),
    lambda right: _each(right, GraphQLError("in the middle")),
    lambda right: _each_later(right, right),
    lambda right: _each_later(right, GraphQLError("in the middle")),
    Later,
    lambda right: Later(right, turns=2),
    lambda right: Later(Later(right)),
    _told,
    _settled,
]
NEAR: dict[str, list[Any]] = {  # of scalars, by name: nearly right, or right in another type
    "String": [Word("word"), 1, True, 1.5, b"bytes", Letter.A, Number(3), Oddity(), [], "\ud800"],
    "ID": [7, Number(3), Word("1"), 1.5, True, 2**70, Letter.A, Oddity()],
    "Int": [2**31, -(2**31) - 1, True, 3.0, "7", "", Number(3), Digit.ONE, Digit.LARGE, 1.5],
    "Float": [math.nan, math.inf, -math.inf, "1.5", True, Number(3), 10**400, ""],
    "Boolean": [1, 0, "true", 1.0, math.nan, math.inf, None],
    "BigInt": [2**53, -(2**53), True, "12", 1.0, Number(3), Digit.LARGE],
    "ByteSize": [2**53, -(2**53), -1, True, "3 GiB", 1.0, Number(3)],
    "DateTime": [datetime(2030, 1, 1), date(2030, 1, 1), "2030-01-01", 0],  # noqa: DTZ001 - odd
    "Duration": [timedelta.max, timedelta.min, timedelta(seconds=-0.5), 3, "P1D"],
    "Cursor": [{}, {1: "a"}, [1], {"b": 1, "a": 2}],
    "URL": [Word("x"), 1, None],
    "EmailAddress": [Word("x"), 1, None],
    "Even": [1, 2.0, True, None],
    "Picky": ["c", "undefined", 1],
}
LOOSE_LISTS: list[Callable[[list[Any]], Any]] = [
    tuple,
    iter,
    deque,
    Row,
    lambda items: _each(*items),
    lambda items: _each_later(*items),
    lambda items: [Later(item) for item in items],
    lambda items: dict.fromkeys(map(str, range(len(items))), 1),
]


def text(dice: Dice) -> str:
    return dice.pick(["", "a", "Grüße 🦆", 'say "hi"\n', "x" * 40, "\u2028\u0000"])


def json_of(dice: Dice) -> Any:
    return dice.pick([{"a": [1, None, {"b": 1.5}]}, [], "text", 7, 2.5, False, {"z": 1, "a": 2}])


RIGHT: dict[str, Callable[[Dice], Any]] = {  # of scalars, by name
    "String": text,
    "ID": lambda dice: dice.pick(["1", "msg_AAAAAAAAAAE", ""]),
    "Int": lambda dice: dice.pick([0, 1, -1, 2**31 - 1, -(2**31)]),
    "Float": lambda dice: dice.pick([0.0, 1.5, 3, -2e300]),
    "Boolean": lambda dice: dice.pick([True, False]),
    "BigInt": lambda dice: dice.pick([0, 2**40, 2**53 - 1, 1 - 2**53]),
    "ByteSize": lambda dice: dice.pick([0, 2**40]),
    "Cursor": lambda dice: {dice.below(9): dice.below(99), 7: 8},
    "DateTime": lambda dice: NOON + timedelta(microseconds=dice.below(10**12)),
    "Duration": lambda dice: timedelta(seconds=dice.below(10**7), milliseconds=dice.below(3)),
    "EmailAddress": lambda _: "ada@example.org",
    "IPAddress": lambda _: "2001:db8::1",
    "JSON": json_of,
    "Upload": lambda _: "upl_1",
    "URL": lambda _: "https://example.org/a?b=c",
    "Even": lambda dice: dice.pick([0, 2, 2**60]),
    "Picky": lambda dice: dice.pick(["a", "b"]),
}


def definition(kind: GraphQLNamedType | GraphQLField) -> Any:
    """What Strawberry knows of it; None of what is not Strawberry's."""
    return kind.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)


def is_link(field: Any) -> bool:
    return "link" in field.metadata


@cache
def _raising(cls: type) -> type:
    """A subclass that breaks where an attribute is not there."""

    def broken(_self: object, name: str) -> Any:
        raise ValueError(f"no {name} to be had")

    return type(cls.__name__, (cls,), {"__getattr__": broken})


@cache
def _sub(cls: type) -> type:
    return type(cls.__name__, (cls,), {})


def _class(kind: GraphQLObjectType) -> type:
    """What its objects are of: a generic's are of the class without its parameters."""
    known = definition(kind)
    found: type = (known.concrete_of or known).origin
    return found


class Maker:
    """Values for whatever a document selects.

    `wrong` is the share of those that are odd, and lists have at most so many items.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        wrong: float,
        most: int,
        source: Callable[..., Any],
    ) -> None:
        self.schema = schema
        self.fragments = fragments
        self.wrong = wrong
        self.most = most
        self.source = source  # of what a view is made
        self.made: list[Any] = []  # coroutines: to be closed, where nobody has awaited them

    def value(self, kind: Any, nodes: Sequence[FieldNode], dice: Dice) -> Any:
        """A value for a field or an item of this type, with all that is selected below."""
        right, leaf = self._right(kind, nodes, dice), get_named_type(kind)
        if not is_leaf_type(leaf) or is_list_type(get_nullable_type(kind)):
            return self.odd(right, dice) if dice.one_in(self.wrong / 2) else right
        if not dice.one_in(self.wrong):
            return right
        if dice.one_in(0.5) and leaf.name in NEAR:
            return dice.pick(NEAR[leaf.name])
        return self.odd(right, dice)

    def odd(self, right: Any, dice: Dice) -> Any:
        """Something else than what is right."""
        if dice.one_in(0.3):
            error = dice.pick(ERRORS)()
            return dice.pick([lambda e: e, Later, _settled])(error)
        return self.kept(dice.pick(ODD)(right))

    def kept(self, value: Any) -> Any:
        if asyncio.iscoroutine(value):
            self.made.append(value)
        return value

    def close(self) -> None:
        """End the coroutines that nobody has awaited."""
        for one in self.made:
            one.close()

    def _right(self, kind: Any, nodes: Sequence[FieldNode], dice: Dice) -> Any:
        if is_non_null_type(kind):
            kind = kind.of_type
        elif dice.one_in(EMPTY):
            return None
        if is_list_type(kind):
            return self._list(kind.of_type, nodes, dice)
        if isinstance(kind, GraphQLEnumType):
            return dice.pick(list(definition(kind).wrapped_cls))
        if is_abstract_type(kind):
            kind = dice.pick(sorted(self.schema.get_possible_types(kind), key=str))
        if is_object_type(kind):
            return self.object(kind, nodes, dice)
        return RIGHT[kind.name](dice)

    def _list(self, item: Any, nodes: Sequence[FieldNode], dice: Dice) -> Any:
        items = [self.value(item, nodes, dice.at(nth)) for nth in range(dice.below(self.most + 1))]
        if self.wrong and dice.one_in(LOOSE):
            return dice.pick(LOOSE_LISTS)(items)
        return items

    def object(self, kind: GraphQLObjectType, nodes: Sequence[FieldNode], dice: Dice) -> Any:
        """An object of the class behind the type; what nobody selects is not there."""
        cls = _class(kind)
        if self.wrong and dice.one_in(SUBCLASS):
            cls = dice.pick([_raising, _sub])(cls)
        selected = self.selected(nodes)
        made: Any = object.__new__(cls)
        viewed = issubclass(cls, View) and not (self.wrong and dice.one_in(BARE))
        if viewed:
            made.row = self.source(self, kind, selected, dice.at("row"))
        elif not issubclass(cls, View):
            made.row = self.source(self, kind, {}, dice.at("row"))
        for name, listed in selected.items():
            field = kind.fields.get(name)
            known = field and definition(field)
            if not field or not known:
                continue
            place = dice.at(name)
            link = is_link(known)
            if (known.is_basic_field and not viewed) or (link and place.one_in(FILLED)):
                if self.wrong and place.one_in(self.wrong / 4):
                    continue
                setattr(made, known.python_name, self.value(field.type, listed, place.at("value")))
        return made

    def whole(self, kind: GraphQLObjectType, dice: Dice) -> Any:
        """An object with all its plain fields that hold no objects."""
        made: Any = object.__new__(_class(kind))
        for name, field in kind.fields.items():
            if definition(field).is_basic_field:
                value = self.value(field.type, (), dice.at(name))
                setattr(made, definition(field).python_name, value)
        return made

    def selected(self, nodes: Sequence[FieldNode]) -> dict[str, list[FieldNode]]:
        """Fields below these nodes by name, through all fragments."""
        found: dict[str, list[FieldNode]] = {}
        for node in nodes:
            if node.selection_set:
                self._collect(node.selection_set.selections, found)
        return found

    def _collect(
        self, selections: Iterable[SelectionNode], found: dict[str, list[FieldNode]]
    ) -> None:
        for node in selections:
            match node:
                case FieldNode():
                    found.setdefault(node.name.value, []).append(node)
                case InlineFragmentNode():
                    self._collect(node.selection_set.selections, found)
                case FragmentSpreadNode():
                    fragment = self.fragments[node.name.value]
                    self._collect(fragment.selection_set.selections, found)
