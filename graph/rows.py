"""From a selection to the columns it needs, and from rows to objects."""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from keyword import iskeyword
from typing import Any, ClassVar, NamedTuple, Self

import strawberry
from strawberry.types import get_object_definition
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.nodes import SelectedField, Selection

from graph import ids
from graph.errors import leaf
from graph.fields import Info
from resolvers.context import Batch

SHADOWED = {"list"}  # names of fields that Python needs for itself


@dataclass(frozen=True, slots=True)
class Made:
    """A field that is not the column of its name."""

    columns: tuple[str, ...]
    of: Callable[[Any], Any]  # the row, as far as it was read


@dataclass(frozen=True, slots=True)
class Link:
    """A field that leads to another object."""

    column: str
    batch: Batch[Any, Any]
    of: Callable[[Any], Any]


@strawberry.interface(name="Node", description="Anything with a global id.")
class Shape:
    """A type over one table: each plain field is the column of its name, or in `made`."""

    row: strawberry.Private[Any]
    id: strawberry.ID = leaf("Global id.")

    made: ClassVar[dict[str, Made]] = {}
    batch: ClassVar[Batch[int, Any]]  # loads rows by their keys

    @classmethod
    def of(cls, row: Any, asked: Collection[str] | None = None) -> Self:
        """The object of a row; fields that nobody `asked` for are left unset."""
        one = cls.__new__(cls)
        one.row = row
        plain = _fields(cls).plain
        for name in plain if asked is None else plain.intersection(asked):
            made = cls.made.get(name)
            setattr(one, name, made.of(row) if made else getattr(row, name))
        return one

    @classmethod
    def columns(cls, asked: Iterable[str]) -> frozenset[str]:
        """The columns to select for these fields; the key is always among them."""
        fields = _fields(cls)
        columns = {"id"}
        for name in asked:
            if name in fields.links:
                columns.add(fields.links[name].column)
            elif name in fields.plain:
                columns.update(cls.made[name].columns if name in cls.made else (name,))
            else:
                columns.update(fields.computed.get(name, ()))
        return frozenset(columns)


def identified(kind: str) -> Made:
    """How a type's `id` is made."""
    return Made(("id",), lambda row: ids.encode(kind, row.id))


def link(column: str, batch: Batch[Any, Any], of: Callable[[Any], Any], *, description: str) -> Any:
    """A field that leads to the object `batch` finds by our `column`.

    A list fills it for all its items (`fill`); where nobody did, it is loaded. Both ways
    use the same batch function, and the same loader.
    """

    # no return type here: strawberry would take it for the field's
    def resolve(self: Any, info: Info):  # type: ignore[no-untyped-def] # noqa: ANN202
        filled = vars(self).get(info.python_name)
        return _load(self, info) if filled is None else filled

    async def _load(self: Any, info: Info) -> Any:
        key = getattr(self.row, column)
        return None if key is None else of(await info.context.load(batch, key))

    return strawberry.field(
        resolver=resolve, description=description, metadata={"link": Link(column, batch, of)}
    )


def shaped(module: str, name: str) -> Callable[[Any], Any]:
    """How a row becomes an object of a type in a module that imports ours; None stays None."""

    def of(row: Any) -> Any:
        return None if row is None else getattr(sys.modules[module], name).of(row)

    return of


async def fill(info: Info, items: list[Any], asked: Iterable[str]) -> None:
    """Load the links that were asked for, for all the items at once, and set them."""
    links = _fields(type(items[0])).links if items else {}
    for name in links.keys() & set(asked):
        to = links[name]
        keys = sorted({getattr(item.row, to.column) for item in items} - {None})
        rows = await info.context.load_all(to.batch, keys)
        found = {key: to.of(row) for key, row in zip(keys, rows, strict=True)}
        for item in items:
            setattr(item, name, found.get(getattr(item.row, to.column)))


def asked(info: Info, *path: str) -> frozenset[str]:
    """Names, as in Python, of the fields selected below `path`, through fragments.

    A superset where @skip or type conditions stand. The plan of a document keeps it.
    """
    level = list(_below(info.selected_fields))
    for name in path:
        level = list(_below(field for field in level if field.name == name))
    return frozenset(_python(field.name) for field in level)


def _below(selections: Iterable[Selection]) -> Iterator[SelectedField]:
    for inner in chain.from_iterable(selection.selections for selection in selections):
        if isinstance(inner, SelectedField):
            yield inner
        else:
            yield from _below([inner])


@cache
def _python(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: "_" + match[0].lower(), name)
    return snake + "_" if iskeyword(snake) or snake in SHADOWED else snake


class Fields(NamedTuple):
    """The fields of a type, sorted out."""

    plain: frozenset[str]
    links: dict[str, Link]
    computed: dict[str, tuple[str, ...]]  # with the columns each needs


def _fields(kind: type) -> Fields:
    return _sorted(get_object_definition(kind, strict=True))


@cache
def _sorted(definition: StrawberryObjectDefinition) -> Fields:
    fields = definition.fields
    links = {f.python_name: f.metadata["link"] for f in fields if "link" in f.metadata}
    computed = {f.python_name: f.metadata["columns"] for f in fields if "columns" in f.metadata}
    return Fields(frozenset(f.python_name for f in fields if f.is_basic_field), links, computed)
