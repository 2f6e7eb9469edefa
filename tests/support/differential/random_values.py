"""Random values for the types of a schema: valid values, and errors that resolvers can make."""

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
from models.validation_constraints import ValidationConstraint

Item = TypeVar("Item")

MASK_64_BITS = (1 << 64) - 1
NULL_SHARE = 0.15  # of nullable values
OTHER_ITERABLE_SHARE = 0.05  # of lists, if values can be odd
PRESET_LINK_SHARE = 0.6  # of linked objects
SUBCLASS_SHARE = 0.03  # of objects, if values can be odd
VIEW_WITHOUT_ROW_SHARE = 0.05  # of views, if values can be odd
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class PathRandom:
    """Random numbers that depend only on a seed and a path, not on the numbers of other paths."""

    __slots__ = ("seed", "state")

    def __init__(self, seed: int) -> None:
        self.seed = self.state = seed & MASK_64_BITS

    def derive(self, *path: object) -> "PathRandom":
        """The random numbers of a child path."""
        path_bytes = repr(path).encode()
        mixed_seed = (
            (zlib.crc32(path_bytes, self.seed & 0xFFFFFFFF) << 32)
            ^ zlib.adler32(path_bytes)
            ^ self.seed
        )
        return PathRandom(mixed_seed * 0x9E3779B97F4A7C15)

    def integer_below(self, count: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK_64_BITS
        return (self.state >> 33) % count

    def happens(self, probability: float) -> bool:
        """True with this probability. 0 is never."""
        return self.integer_below(100_000) < probability * 100_000

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.integer_below(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """At most `count` distinct items in random order."""
        remaining, chosen = list(items), list[Item]()
        while remaining and len(chosen) < count:
            chosen.append(remaining.pop(self.integer_below(len(remaining))))
        return chosen


class UnknownValue:
    """A value of no type of a schema, with a constant `repr`."""

    def __repr__(self) -> str:
        return "<oddity>"


class StrSubclass(str):
    """A string of a subclass of `str`."""

    __slots__ = ()


class IntSubclass(int):
    """An integer of a subclass of `int`."""


class ListSubclass(list[Any]):
    """A list of a subclass of `list`."""


class SampleStrEnum(enum.StrEnum):
    A = "a"
    RED = "RED"


class SampleIntEnum(enum.IntEnum):
    ONE = 1
    LARGE = 2**40


class CustomAwaitable:
    """An awaitable that is no coroutine, so that Python doesn't warn if it is never awaited."""

    def __init__(self, value: object, loop_iterations: int = 0) -> None:
        self.value = value
        self.loop_iterations = loop_iterations

    def __await__(self) -> Generator[Any, None, Any]:
        for _ in range(self.loop_iterations):
            yield
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def __repr__(self) -> str:
        return "<later>"


async def _return_or_raise(value: object) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def _iterate(*values: object) -> Iterator[Any]:
    for value in values:
        if isinstance(value, GraphQLError):
            raise value
        yield value


async def _iterate_async(*values: object) -> AsyncIterator[Any]:
    for value in values:
        if isinstance(value, GraphQLError):
            raise value
        yield value


def _done_future(value: object) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    if isinstance(value, Exception):
        future.set_exception(value)
        future.exception()  # marks it as retrieved, so that asyncio doesn't log it
    else:
        future.set_result(value)
    return future


ERROR_FACTORIES: list[Callable[[], Exception]] = [
    lambda: ValueError("boom"),
    lambda: KeyError("boom"),
    lambda: AttributeError("boom"),
    lambda: TypeError("boom"),
    lambda: RuntimeError("coroutine raised"),
    lambda: GraphQLError("odd", extensions={"code": "ODD", "more": {"b": 1, "a": [2]}}),
    lambda: GraphQLError("elsewhere", path=["not", "here", 1]),
    lambda: NotFound("msg_1", path=["select", "ids"], index=3),
    lambda: InvalidInput("no good", constraint=ValidationConstraint.PATTERN, path=["set"]),
    lambda: Forbidden("never", requires="ROOT"),
    lambda: Conflict("there already"),
    lambda: ServiceUnavailable("later"),
]
ODD_VALUES: list[Callable[[Any], Any]] = [
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
    lambda _: StrSubclass("word"),
    lambda _: IntSubclass(7),
    lambda _: SampleStrEnum.RED,
    lambda _: SampleIntEnum.ONE,
    lambda _: SampleIntEnum.LARGE,
    lambda _: UnknownValue(),
    lambda _: UnknownValue,
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
    lambda right: ListSubclass([right]),
    lambda right: _iterate(right, right),
    lambda right: _iterate(right, GraphQLError("in the middle")),
    lambda right: _iterate_async(right, right),
    lambda right: _iterate_async(right, GraphQLError("in the middle")),
    CustomAwaitable,
    lambda right: CustomAwaitable(right, loop_iterations=2),
    lambda right: CustomAwaitable(CustomAwaitable(right)),
    _return_or_raise,
    _done_future,
]
NEARLY_VALID_VALUES: dict[str, list[Any]] = {  # by name of the scalar
    "String": [
        StrSubclass("word"),
        1,
        True,
        1.5,
        b"bytes",
        SampleStrEnum.A,
        IntSubclass(3),
        UnknownValue(),
        [],
        "\ud800",
    ],
    "ID": [7, IntSubclass(3), StrSubclass("1"), 1.5, True, 2**70, SampleStrEnum.A, UnknownValue()],
    "Int": [
        2**31,
        -(2**31) - 1,
        True,
        3.0,
        "7",
        "",
        IntSubclass(3),
        SampleIntEnum.ONE,
        SampleIntEnum.LARGE,
        1.5,
    ],
    "Float": [math.nan, math.inf, -math.inf, "1.5", True, IntSubclass(3), 10**400, ""],
    "Boolean": [1, 0, "true", 1.0, math.nan, math.inf, None],
    "BigInt": [2**53, -(2**53), True, "12", 1.0, IntSubclass(3), SampleIntEnum.LARGE],
    "ByteSize": [2**53, -(2**53), -1, True, "3 GiB", 1.0, IntSubclass(3)],
    "DateTime": [datetime(2030, 1, 1), date(2030, 1, 1), "2030-01-01", 0],  # noqa: DTZ001 - odd
    "Duration": [timedelta.max, timedelta.min, timedelta(seconds=-0.5), 3, "P1D"],
    "Cursor": [{}, {1: "a"}, [1], {"b": 1, "a": 2}],
    "URL": [StrSubclass("x"), 1, None],
    "EmailAddress": [StrSubclass("x"), 1, None],
    "Even": [1, 2.0, True, None],
    "Picky": ["c", "undefined", 1],
}
OTHER_ITERABLES: list[Callable[[list[Any]], Any]] = [
    tuple,
    iter,
    deque,
    ListSubclass,
    lambda items: _iterate(*items),
    lambda items: _iterate_async(*items),
    lambda items: [CustomAwaitable(item) for item in items],
    lambda items: dict.fromkeys(map(str, range(len(items))), 1),
]


def random_text(random: PathRandom) -> str:
    return random.choice(["", "a", "Grüße 🦆", 'say "hi"\n', "x" * 40, "\u2028\u0000"])


def random_json(random: PathRandom) -> Any:
    return random.choice(
        [{"a": [1, None, {"b": 1.5}]}, [], "text", 7, 2.5, False, {"z": 1, "a": 2}]
    )


VALID_VALUES: dict[str, Callable[[PathRandom], Any]] = {  # by name of the scalar
    "String": random_text,
    "ID": lambda random: random.choice(["1", "msg_AAAAAAAAAAE", ""]),
    "Int": lambda random: random.choice([0, 1, -1, 2**31 - 1, -(2**31)]),
    "Float": lambda random: random.choice([0.0, 1.5, 3, -2e300]),
    "Boolean": lambda random: random.choice([True, False]),
    "BigInt": lambda random: random.choice([0, 2**40, 2**53 - 1, 1 - 2**53]),
    "ByteSize": lambda random: random.choice([0, 2**40]),
    "Cursor": lambda random: {random.integer_below(9): random.integer_below(99), 7: 8},
    "DateTime": lambda random: NOON + timedelta(microseconds=random.integer_below(10**12)),
    "Duration": lambda random: timedelta(
        seconds=random.integer_below(10**7), milliseconds=random.integer_below(3)
    ),
    "EmailAddress": lambda _: "ada@example.org",
    "IPAddress": lambda _: "2001:db8::1",
    "JSON": random_json,
    "Upload": lambda _: "upl_1",
    "URL": lambda _: "https://example.org/a?b=c",
    "Even": lambda random: random.choice([0, 2, 2**60]),
    "Picky": lambda random: random.choice(["a", "b"]),
}


def strawberry_definition(type_or_field: GraphQLNamedType | GraphQLField) -> Any:
    """The Strawberry definition of a type or field; None if Strawberry didn't define it."""
    return type_or_field.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)


def is_link(field: Any) -> bool:
    return "link" in field.metadata


@cache
def _raising_subclass(cls: type) -> type:
    """A subclass that raises ValueError for missing attributes."""

    def raise_error(_self: object, name: str) -> Any:
        raise ValueError(f"no {name} to be had")

    return type(cls.__name__, (cls,), {"__getattr__": raise_error})


@cache
def _plain_subclass(cls: type) -> type:
    return type(cls.__name__, (cls,), {})


def _python_class(object_type: GraphQLObjectType) -> type:
    """The Python class of an object type. For a generic type, the class without parameters."""
    strawberry_type = strawberry_definition(object_type)
    python_class: type = (strawberry_type.concrete_of or strawberry_type).origin
    return python_class


class ValueGenerator:
    """Generates values for the selections of a document.

    `odd_share` is the share of odd values. A list has at most `max_items` items.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        odd_share: float,
        max_items: int,
        source: Callable[..., Any],
    ) -> None:
        self.schema = schema
        self.fragments = fragments
        self.odd_share = odd_share
        self.max_items = max_items
        self.source = source  # makes the row or pair that a view reads
        self.coroutines: list[Any] = []  # closed at the end, if nothing has awaited them

    def value(self, value_type: Any, nodes: Sequence[FieldNode], random: PathRandom) -> Any:
        """Generate a value of this type, with all fields that the nodes select in it."""
        valid_value = self._valid_value(value_type, nodes, random)
        named_type = get_named_type(value_type)
        if not is_leaf_type(named_type) or is_list_type(get_nullable_type(value_type)):
            return (
                self.odd_value(valid_value, random)
                if random.happens(self.odd_share / 2)
                else valid_value
            )
        if not random.happens(self.odd_share):
            return valid_value
        if random.happens(0.5) and named_type.name in NEARLY_VALID_VALUES:
            return random.choice(NEARLY_VALID_VALUES[named_type.name])
        return self.odd_value(valid_value, random)

    def odd_value(self, valid_value: Any, random: PathRandom) -> Any:
        """Generate a value that differs from the valid one, or an error."""
        if random.happens(0.3):
            error = random.choice(ERROR_FACTORIES)()
            return random.choice([lambda e: e, CustomAwaitable, _done_future])(error)
        return self.track_coroutine(random.choice(ODD_VALUES)(valid_value))

    def track_coroutine(self, value: Any) -> Any:
        """Remember a coroutine, to close it at the end. Returns the value."""
        if asyncio.iscoroutine(value):
            self.coroutines.append(value)
        return value

    def close(self) -> None:
        """Close the coroutines that nothing has awaited."""
        for coroutine in self.coroutines:
            coroutine.close()

    def _valid_value(self, value_type: Any, nodes: Sequence[FieldNode], random: PathRandom) -> Any:
        if is_non_null_type(value_type):
            value_type = value_type.of_type
        elif random.happens(NULL_SHARE):
            return None
        if is_list_type(value_type):
            return self._list(value_type.of_type, nodes, random)
        if isinstance(value_type, GraphQLEnumType):
            return random.choice(list(strawberry_definition(value_type).wrapped_cls))
        if is_abstract_type(value_type):
            value_type = random.choice(sorted(self.schema.get_possible_types(value_type), key=str))
        if is_object_type(value_type):
            return self.object(value_type, nodes, random)
        return VALID_VALUES[value_type.name](random)

    def _list(self, item_type: Any, nodes: Sequence[FieldNode], random: PathRandom) -> Any:
        items = [
            self.value(item_type, nodes, random.derive(number))
            for number in range(random.integer_below(self.max_items + 1))
        ]
        if self.odd_share and random.happens(OTHER_ITERABLE_SHARE):
            return random.choice(OTHER_ITERABLES)(items)
        return items

    def object(
        self, object_type: GraphQLObjectType, nodes: Sequence[FieldNode], random: PathRandom
    ) -> Any:
        """Generate an object of the class of a type, with only the selected attributes."""
        cls = _python_class(object_type)
        if self.odd_share and random.happens(SUBCLASS_SHARE):
            cls = random.choice([_raising_subclass, _plain_subclass])(cls)
        selected_fields = self.selected_fields(nodes)
        instance: Any = object.__new__(cls)
        is_view = issubclass(cls, View) and not (
            self.odd_share and random.happens(VIEW_WITHOUT_ROW_SHARE)
        )
        if is_view:
            instance.row = self.source(self, object_type, selected_fields, random.derive("row"))
        elif not issubclass(cls, View):
            instance.row = self.source(self, object_type, {}, random.derive("row"))
        for name, field_nodes in selected_fields.items():
            field = object_type.fields.get(name)
            strawberry_field = field and strawberry_definition(field)
            if not field or not strawberry_field:
                continue
            field_random = random.derive(name)
            is_linked = is_link(strawberry_field)
            if (strawberry_field.is_basic_field and not is_view) or (
                is_linked and field_random.happens(PRESET_LINK_SHARE)
            ):
                if self.odd_share and field_random.happens(self.odd_share / 4):
                    continue
                setattr(
                    instance,
                    strawberry_field.python_name,
                    self.value(field.type, field_nodes, field_random.derive("value")),
                )
        return instance

    def plain_object(self, object_type: GraphQLObjectType, random: PathRandom) -> Any:
        """Generate an object with all fields that have no resolver."""
        instance: Any = object.__new__(_python_class(object_type))
        for name, field in object_type.fields.items():
            if strawberry_definition(field).is_basic_field:
                value = self.value(field.type, (), random.derive(name))
                setattr(instance, strawberry_definition(field).python_name, value)
        return instance

    def selected_fields(self, nodes: Sequence[FieldNode]) -> dict[str, list[FieldNode]]:
        """The selected fields of these nodes by name, including those in fragments."""
        nodes_by_name: dict[str, list[FieldNode]] = {}
        for node in nodes:
            if node.selection_set:
                self._collect(node.selection_set.selections, nodes_by_name)
        return nodes_by_name

    def _collect(
        self, selections: Iterable[SelectionNode], nodes_by_name: dict[str, list[FieldNode]]
    ) -> None:
        for node in selections:
            match node:
                case FieldNode():
                    nodes_by_name.setdefault(node.name.value, []).append(node)
                case InlineFragmentNode():
                    self._collect(node.selection_set.selections, nodes_by_name)
                case FragmentSpreadNode():
                    fragment = self.fragments[node.name.value]
                    self._collect(fragment.selection_set.selections, nodes_by_name)
