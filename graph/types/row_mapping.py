"""Columns that a selection set needs, and conversion of rows to objects."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from keyword import iskeyword
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import strawberry
from graphql import (
    FieldNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    SelectionSetNode,
    get_named_type,
)
from strawberry.types import get_object_definition
from strawberry.types.base import StrawberryObjectDefinition

import graph.types.enum_registration  # noqa: F401 - before the first field that has an enum
from graph.types import global_ids
from graph.types.errors import leaf
from graph.types.fields import Info
from graph.types.object_views import KEY_FIELDS, KeyRow, Link, Listed, Made, View
from models.store.prepared_statements import Rows
from resolvers.context import Batch

Item = TypeVar("Item", bound=View)
Value = TypeVar("Value")

SHADOWED = {"list"}  # schema names that are Python builtins


@strawberry.interface(name="Node", description="Anything with a global id.")
class Shape(View):
    """Base of node types over one table: a field is the column of its name or derived."""

    id: strawberry.ID = leaf("Global id.")

    batch: ClassVar[Batch[int, Any]]  # loads rows by their keys

    @classmethod
    def columns(cls, asked: Iterable[str]) -> frozenset[str]:
        """Return the columns to select for these fields, always including the ID."""
        fields = _fields(cls)
        columns = {"id"}
        for name in asked:
            if name in fields.links:
                columns.update(fields.links[name].columns)
            elif name in fields.plain:
                columns.update(cls.made[name].columns if name in cls.made else (name,))
            else:
                columns.update(fields.computed.get(name, ()))
        return frozenset(columns)


def identified(kind: str) -> Made:
    """Return the derived field of a type's global ID."""
    return Made(("id",), global_ids.encoder(kind))


def link(
    column: str,
    batch: Batch[Any, Any],
    of: Callable[[Any], Any],
    *,
    description: str,
    exists: bool = False,
) -> Any:
    """Declare a field that leads to the object with the key in `column`; `exists` as in Link.

    A list loads the objects of all its items at once (`list_objects`). Otherwise the field loads
    its object with the same batch function.
    """
    return _linked(Link((column,), attrgetter(column), batch, of, exists), description)


def _linked(to: Link, description: str) -> Any:
    # without a return type, which strawberry would use as the field's type
    def resolve(self: Any, info: Info):  # type: ignore[no-untyped-def] # noqa: ANN202
        if to.exists and asked(info) <= KEY_FIELDS:
            return to.of(KeyRow(to.key(self.row)))
        filled = vars(self)
        name = info.python_name
        return filled[name] if name in filled else _load(self, info)

    async def _load(self: Any, info: Info) -> Any:
        key = to.key(self.row)
        return None if key is None else to.of(await info.context.load(to.batch, key))

    return strawberry.field(resolver=resolve, description=description, metadata={"link": to})


def row_link(to: Link, *, description: str) -> Any:
    """Declare a field that leads to a row of the same type, which may be in the same list."""
    return _linked(to, description)


def shaped(module: str, name: str) -> Callable[[Any], Any]:
    """Return a function that creates a view of a type from a module that imports this one.

    The function returns None for None.
    """

    def of(row: Any) -> Any:
        return getattr(sys.modules[module], name).maybe(row)

    return of


async def listed(info: Info, shape: type[Item], rows: Sequence[Any]) -> list[Item]:
    """Return the objects of a list's rows and load the links that are selected."""
    links = _fields(shape).links
    wanted = {
        name
        for name in links.keys() & asked(info)
        if not (links[name].exists and asked_below(info, name) <= KEY_FIELDS)
    }
    if isinstance(rows, Rows) and not wanted:
        return cast("list[Item]", Listed(shape, rows))  # views are created on demand
    items = [shape.of(row) for row in rows]
    own = {name: to for name, to in links.items() if to.own_key}
    for name in wanted - own.keys() if items else ():
        to = links[name]
        keys = sorted({to.key(item.row) for item in items} - {None})
        found = dict(zip(keys, await info.context.load_all(to.batch, keys), strict=True))
        made = {key: to.of(row) for key, row in found.items()}
        for item in items:
            setattr(item, name, made.get(to.key(item.row)))
    if wanted & own.keys():
        await _fill_own(info, shape, own, items)
    return items


async def _fill_own(
    info: Info, shape: type[Item], links: Mapping[str, Link], items: Sequence[Item]
) -> None:
    """Set the links of items to rows of their own type, to the selected depth.

    Rows that are not among the items are loaded level by level, and their links are set too.
    """
    to = next(iter(links.values()))
    own_key: Any = to.own_key
    known: dict[Any, Any] = {own_key(item.row): item for item in items}
    fields, some = _item_fields(info), items
    while some and links.keys() & _names(fields):
        keys = [to.key(one.row) for one in some]
        missing = sorted(set(keys) - known.keys() - {None})
        rows = await info.context.load_all(to.batch, missing) if missing else []
        new = {key: shape.maybe(row) for key, row in zip(missing, rows, strict=True)}
        known |= new
        for key, one in zip(keys, some, strict=True):
            found = known.get(key)
            for name, each in links.items():
                setattr(one, name, found if each.item or found is None else each.of(found.row))
        some = [one for one in new.values() if one is not None]
        fields = _below_own(info, fields, links)


def _below_own(
    info: Info, fields: Iterable[FieldNode], links: Mapping[str, Link]
) -> list[FieldNode]:
    """Return the fields that are selected below links to the same type."""
    nodes = [node for node in fields if (to := links.get(_python(node.name.value))) and to.own_key]
    return list(_below(info, nodes))


def columns(info: Info, shape: type[Shape]) -> frozenset[str]:
    """Return the columns to select for the list or connection that is being resolved."""

    def make() -> frozenset[str]:
        fields, links = _item_fields(info), _fields(shape).links
        found = shape.columns(_names(fields))
        while fields := _below_own(info, fields, links):
            found |= shape.columns(_names(fields))
        return found

    return _kept(info, shape, make)


def asked(info: Info) -> frozenset[str]:
    """Return the Python names of the fields that are selected on items of a list or connection.

    It is a superset if the selection has @skip, @include or type conditions.
    """
    return _kept(info, None, lambda: _names(_item_fields(info)))


def asked_below(info: Info, name: str) -> frozenset[str]:
    """Return the Python names of the subfields selected on one field of the items.

    It is a superset if the selection has @skip, @include or type conditions.
    """

    def names() -> frozenset[str]:
        nodes = [node for node in _item_fields(info) if _python(node.name.value) == name]
        return _names(_below(info, nodes))

    return _kept(info, name, names)


def _item_fields(info: Info) -> list[FieldNode]:
    """Return the nodes of the fields selected on the items of a list or connection."""
    level = list(_below(info, info._raw_info.field_nodes))  # noqa: SLF001 - no other way in
    if get_named_type(info._raw_info.return_type).name.endswith("Connection"):  # noqa: SLF001
        edges = [node for node in level if node.name.value == "edges"]
        inside = [node for node in _below(info, edges) if node.name.value == "node"]
        inside += [node for node in level if node.name.value == "nodes"]
        level = list(_below(info, inside))
    return level


def _names(nodes: Iterable[FieldNode]) -> frozenset[str]:
    return frozenset(_python(node.name.value) for node in nodes)


def _kept(info: Info, what: object, make: Callable[[], Value]) -> Value:
    """Return the computed value for the current selection, cached with its document."""
    key = what, *map(id, info._raw_info.field_nodes)  # noqa: SLF001 - strawberry's is slower
    memo = info.context.memo
    if key not in memo:
        memo[key] = make()
    kept: Value = memo[key]
    return kept


def _below(info: Info, nodes: Iterable[FieldNode]) -> Iterator[FieldNode]:
    for node in nodes:
        if node.selection_set:
            yield from _selected(info, node.selection_set)


def _selected(info: Info, selections: SelectionSetNode) -> Iterator[FieldNode]:
    for node in selections.selections:
        if isinstance(node, FieldNode):
            yield node
        elif isinstance(node, InlineFragmentNode):
            yield from _selected(info, node.selection_set)
        elif isinstance(node, FragmentSpreadNode):
            fragment = info._raw_info.fragments[node.name.value]  # noqa: SLF001 - no other way in
            yield from _selected(info, fragment.selection_set)


@cache
def _python(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: "_" + match[0].lower(), name)
    return snake + "_" if iskeyword(snake) or snake in SHADOWED else snake


class Fields(NamedTuple):
    """The fields of a type, by the way they are computed."""

    plain: frozenset[str]
    links: dict[str, Link]
    computed: dict[str, tuple[str, ...]]  # columns by field


def _fields(kind: type) -> Fields:
    return _sorted(get_object_definition(kind, strict=True))


@cache
def _sorted(definition: StrawberryObjectDefinition) -> Fields:
    fields = definition.fields
    links = {f.python_name: f.metadata["link"] for f in fields if "link" in f.metadata}
    computed = {f.python_name: f.metadata["columns"] for f in fields if "columns" in f.metadata}
    return Fields(frozenset(f.python_name for f in fields if f.is_basic_field), links, computed)
