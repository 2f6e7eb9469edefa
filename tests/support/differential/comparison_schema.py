"""A schema with every kind of type and field; its resolvers return generated values."""

import enum
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, NewType, Optional, TypeVar

import strawberry
from graphql import GraphQLResolveInfo, Undefined
from strawberry.scalars import JSON
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import create_type
from strawberry.types.field import StrawberryField

from graph.types.connections import Connection
from graph.types.object_views import (
    DerivedField,
    NestedViewField,
    SameRowField,
    View,
    return_unchanged,
)
from graph.types.row_mapping import link
from graph.types.scalars import SCALARS, URL, BigInt, ByteSize
from tests.support.differential.generated_results import GeneratedContext, leaf_of, leaves_by_ids

Info = strawberry.Info[GeneratedContext, None]
Item = TypeVar("Item")
Even = NewType("Even", int)
Picky = NewType("Picky", str)


def _serialize_even(value: Any) -> int:
    if type(value) is not int or value % 2:
        raise ValueError(f"odd: {value!r}"[:60])
    return value


def _serialize_picky(value: Any) -> str | None:
    """Serialize "a" and "b"; return None or Undefined for other values."""
    if value == "undefined":
        return Undefined  # type: ignore[return-value]
    return value if value in ("a", "b") else None


@strawberry.enum
class Colour(enum.Enum):
    RED = "a"
    BLUE = "b"


@strawberry.enum
class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@strawberry.enum
class Sign(enum.StrEnum):
    PLUS = "PLUS"
    MINUS = enum.auto()


def graphql_info(info: Info) -> GraphQLResolveInfo[Any]:
    return info._raw_info  # noqa: SLF001 - the info of graphql-core


def generated_value(info: Info, **arguments: Any) -> Any:
    return info.context.resolve_field(graphql_info(info), arguments)


async def generated_value_later(info: Info, **arguments: Any) -> Any:
    return await info.context.resolve_field_later(graphql_info(info), arguments)


@strawberry.interface
class Node:
    id: strawberry.ID


@strawberry.interface
class Named(Node):
    name: str
    nick: str | None


@strawberry.type
class Leaf(Node):
    s: str
    os: str | None
    i: int
    oi: int | None
    f: float
    of: float | None
    b: bool
    ob: bool | None
    e: Colour
    oe: Colour | None
    level: Level
    sign: Sign | None
    d: datetime | None
    even: Even
    picky: Picky | None
    free: JSON | None
    big: BigInt
    size: ByteSize | None
    url: URL | None
    ids: list[strawberry.ID] | None
    ls: list[str]
    los: list[str | None] | None
    les: list[Colour]
    grid: list[list[int]]
    holes: list[list[str | None] | None] | None
    cube: list[list[list[Sign]]]
    secret: strawberry.Private[str] = "nobody's"  # noqa: S105 - none
    class_: str | None = strawberry.field(name="class", default="kept")


@strawberry.type
class Other(Named):
    x: int
    like: Optional["Other"]
    shared: list[str]


@strawberry.type
class Strict(Named):
    """An object type with its own `is_type_of`."""

    y: float | None
    shared: list[str]

    @classmethod
    def is_type_of(cls, value: Any, _info: GraphQLResolveInfo[Any]) -> bool:
        return type(value) is cls


@strawberry.type
class Bare:
    """An object type without an interface, so that the class of its values is not checked."""

    leaf: Leaf | None
    bare: Optional["Bare"]
    n: int


@strawberry.type
class Pair(View):
    """A view of two values."""

    first: str | None
    second: str

    derived_fields: ClassVar[dict[str, DerivedField]] = {
        "first": DerivedField((), lambda pair: pair[0]),
        "second": DerivedField((), lambda pair: pair[1] or ""),
    }


@strawberry.type
class Spelling(View):
    """A view of the same row as the view that contains it."""

    word: str
    length: int
    level: Level | None

    derived_fields: ClassVar[dict[str, DerivedField]] = {"length": DerivedField(("word",), len)}

    @strawberry.field
    async def later(self, info: Info) -> str | None:
        value: str | None = await generated_value_later(info)
        return value


@strawberry.type
class Seen(View, Node):
    """A view of a row, with every kind of derived field."""

    word: str
    length: int
    level: Level | None
    one: Pair | None
    must: Pair
    many: list[Pair]
    some: list[Pair | None] | None
    spelling: Spelling
    leaf: Leaf | None
    leaves: list[Leaf]
    to: Leaf | None = link("leaf_id", leaves_by_ids, leaf_of, description="A leaf.")

    derived_fields: ClassVar[dict[str, DerivedField | NestedViewField]] = {
        "id": DerivedField(("id",), "seen_{}".format),
        "length": DerivedField(("word",), len),
        "one": NestedViewField(("one",), return_unchanged, Pair),
        "must": NestedViewField(("one",), return_unchanged, Pair),
        "many": NestedViewField(("many",), return_unchanged, Pair, is_list=True),
        "some": NestedViewField(("many",), lambda pairs: pairs or None, Pair, is_list=True),
        "spelling": SameRowField(Spelling),
    }

    @strawberry.field
    async def later(self, info: Info) -> Optional["Seen"]:
        value: Seen | None = await generated_value_later(info)
        return value


@strawberry.type
class Page(Generic[Item]):
    nodes: list[Item]
    first: Item | None
    more: bool
    note: strawberry.Private[Any] = None

    @strawberry.field
    async def total(self, info: Info) -> int:
        total: int = await generated_value_later(info)
        return total


Several = Annotated[Leaf | Other | Strict | Bare | Seen, strawberry.union("Several")]


@strawberry.input(one_of=True)
class Choice:
    by_id: strawberry.Maybe[strawberry.ID]
    by_number: strawberry.Maybe[int]


@strawberry.input
class Filter:
    word: str | None = None
    numbers: list[int] | None = None
    colour: Colour = Colour.RED
    choice: Choice | None = strawberry.UNSET
    all_: list["Filter"] | None = strawberry.field(name="all", default=strawberry.UNSET)


@strawberry.type
class Branch(Named):
    row: strawberry.Private[Any]
    leaf: Leaf
    oleaf: Leaf | None
    leaves: list[Leaf]
    oleaves: list[Leaf | None] | None
    table: list[list[Leaf]]
    any_: Node = strawberry.field(name="any")
    named: Named | None
    anys: list[Node | None]
    un: Several | None
    uns: list[Several]
    others: list[Other] | None
    bare: Bare
    kids: list["Branch"]
    seen: Seen | None
    sights: list[Seen]
    page: Page[Leaf]
    pages: list[Page[Other]] | None
    to: Leaf | None = link("leaf_id", leaves_by_ids, leaf_of, description="A leaf.")
    must: Leaf = link("other_id", leaves_by_ids, leaf_of, description="A leaf, always.")
    known: ClassVar[int] = 7

    @strawberry.field
    def parent(self, info: Info) -> Optional["Branch"]:
        value: Branch | None = generated_value(info)
        return value

    @strawberry.field
    def now(self, info: Info) -> str:
        value: str = generated_value(info)
        return value

    @strawberry.field
    async def later(self, info: Info) -> Leaf:
        leaf: Leaf = await generated_value_later(info)
        return leaf

    @strawberry.field
    async def later_text(self, info: Info) -> str | None:
        value: str | None = await generated_value_later(info)
        return value

    @strawberry.field
    def some(
        self, info: Info, n: int = 2, colours: list[Colour] | None = None
    ) -> list[Leaf] | None:
        value: list[Leaf] | None = generated_value(info, n=n, colours=colours)
        return value

    @strawberry.field
    async def found(
        self, info: Info, where: Filter, choice: Choice | None = None, at: datetime | None = None
    ) -> list[Several] | None:
        value: list[Several] | None = await generated_value_later(
            info, where=where, choice=choice, at=at
        )
        return value


ROOT_FIELD_TYPES: dict[str, Any] = {
    "branch": Branch | None,
    "branches": list[Branch],
    "node": Node | None,
    "nodes": list[Node | None] | None,
    "several": list[Several] | None,
    "page": Page[Leaf] | None,
    "bare": Bare | None,
    "seen": Seen | None,
    "sights": Connection[Seen],
    "count": int | None,
    "table": list[list[Colour | None]] | None,
}


def root_fields() -> list[StrawberryField]:
    """The root fields: one with a synchronous and one with an asynchronous resolver per type."""
    strawberry_fields = []
    for name, field_type in ROOT_FIELD_TYPES.items():

        def resolve(info: Info) -> Any:
            return generated_value(info)

        async def resolve_later(info: Info) -> Any:
            return await generated_value_later(info)

        for field_name, resolver in ((name, resolve), (f"late_{name}", resolve_later)):
            resolver.__name__ = field_name
            strawberry_fields.append(strawberry.field(resolver=resolver, graphql_type=field_type))
    return strawberry_fields


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def event(self) -> AsyncGenerator[Branch, None]:
        yield Branch.__new__(Branch)

    @strawberry.subscription
    async def maybe(self) -> AsyncGenerator[Several | None, None]:
        yield None


def make_schema(**options: Any) -> strawberry.Schema:
    scalars = {
        **SCALARS,
        Even: strawberry.scalar(name="Even", serialize=_serialize_even),
        Picky: strawberry.scalar(name="Picky", serialize=_serialize_picky),
    }
    return strawberry.Schema(
        query=create_type("Query", root_fields()),
        mutation=create_type("Mutation", root_fields()),
        subscription=Subscription,
        types=[Leaf, Other, Strict, Branch, Seen],
        config=StrawberryConfig(scalar_map=scalars),
        **options,
    )
