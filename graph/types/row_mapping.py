"""Columns that a selection set needs, and conversion of rows to objects."""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_views import (
    KEY_FIELDS,
    DerivedField,
    KeyRow,
    Link,
    SameRowField,
    View,
    ViewList,
    key_column_of_link,
)
from models.store.prepared_statements import LazyRows
from resolvers.context import BatchFunction

Item = TypeVar("Item", bound=View)
Value = TypeVar("Value")

SHADOWED_BUILTINS = {"list"}  # schema names that are Python builtins


@strawberry.interface(name="Node", description="Object with a global ID.")
class NodeView(View):
    """Base of node types over one table: a field is the column of its name or derived."""

    id: strawberry.ID = attribute_field("Global ID of the object.")

    load_batch: ClassVar[BatchFunction[int, Any]]  # loads rows by their keys


def global_id_field(type_name: str) -> DerivedField:
    """Return the derived field of a type's global ID."""
    return DerivedField(("id",), global_ids.encoder(type_name))


def link(
    column: str,
    load_batch: BatchFunction[Any, Any],
    object_from_row: Callable[[Any], Any],
    *,
    description: str,
    exists: bool = False,
) -> Any:
    """Declare a field that leads to the object with the key in `column`; `exists` as in Link.

    A list loads the objects of all its items at once (`objects_from_rows_with_links`).
    Otherwise the field loads its object with the same batch function.
    """
    return _link_field(
        Link((column,), attrgetter(column), load_batch, object_from_row, exists), description
    )


def _link_field(definition: Link, description: str) -> Any:
    # without a return type, which strawberry would use as the field's type
    """Return a field that resolves to the object of a link, and loads it unless it is set."""

    def resolve(self: Any, info: Info):  # type: ignore[no-untyped-def] # noqa: ANN202
        if definition.exists and selected_fields(info) <= KEY_FIELDS:
            return definition.object_from_row(KeyRow(definition.key_of_row(self.row)))
        values = vars(self)
        name = info.python_name
        return values[name] if name in values else _load(self, info)

    async def _load(self: Any, info: Info) -> Any:
        key = definition.key_of_row(self.row)
        return (
            None
            if key is None
            else definition.object_from_row(await info.context.load(definition.load_batch, key))
        )

    return strawberry.field(
        resolver=resolve, description=description, metadata={"link": definition}
    )


def row_link(definition: Link, *, description: str) -> Any:
    """Declare a field that leads to a row of the same type, which may be in the same list."""
    return _link_field(definition, description)


def lazy_view_factory(module: str, name: str) -> Callable[[Any], Any]:
    """Return a function that calls `from_row_or_none` of a type in a module.

    The module must be imported when the function is called.
    """

    def view_or_none(row: Any) -> Any:
        return getattr(sys.modules[module], name).from_row_or_none(row)

    return view_or_none


async def objects_from_rows_with_links(
    info: Info, view: type[Item], rows: Sequence[Any]
) -> list[Item]:
    """Return the objects of a list's rows and load the links that are selected."""
    links = _fields_of_type(view).links
    linked_ids = {
        name
        for name in links.keys() & selected_fields(info)
        if not (links[name].exists and selected_subfields(info, name) <= KEY_FIELDS)
    }
    if isinstance(rows, LazyRows) and not linked_ids:
        return cast("list[Item]", ViewList(view, rows))  # views are created on demand
    links_in_same_list = {name: link for name, link in links.items() if link.key_in_same_list}
    if isinstance(rows, LazyRows) and _reads_only_keys(info, links_in_same_list, linked_ids):
        selected_links = {name: links[name] for name in linked_ids}
        rows_with_keys = await _rows_with_linked_keys(info, rows, selected_links)
        return cast("list[Item]", ViewList(view, rows_with_keys, selected_links))
    items = [view.from_row(row) for row in rows]
    for name in linked_ids - links_in_same_list.keys() if items else ():
        link = links[name]
        keys = sorted({link.key_of_row(item.row) for item in items} - {None})
        objects_by_key = dict(
            zip(keys, await info.context.load_many(link.load_batch, keys), strict=True)
        )
        objects_by_id = {key: link.object_from_row(row) for key, row in objects_by_key.items()}
        for item in items:
            setattr(item, name, objects_by_id.get(link.key_of_row(item.row)))
    if linked_ids & links_in_same_list.keys():
        await _set_links_to_same_type(info, view, links_in_same_list, items)
    return items


def _reads_only_keys(
    info: Info, links_in_same_list: Mapping[str, Link], names: Collection[str]
) -> bool:
    """Return True if all of these links lead to the same list and only KEY_FIELDS are selected."""
    return all(
        name in links_in_same_list
        and (not links_in_same_list[name].is_item or selected_subfields(info, name) <= KEY_FIELDS)
        for name in names
    )


async def _rows_with_linked_keys(info: Info, rows: LazyRows, links: Mapping[str, Link]) -> LazyRows:
    """Return the rows with the keys of the linked rows, all of one type, as columns."""
    link = next(iter(links.values()))
    own_key: Any = link.key_in_same_list
    ids_by_key: dict[Any, int | None] = {own_key(row): row.id for row in rows}
    keys = [link.key_of_row(row) for row in rows]
    missing = sorted(set(keys) - ids_by_key.keys() - {None})
    loaded = await info.context.load_many(link.load_batch, missing) if missing else []
    ids_by_key |= {
        key: None if row is None else row.id for key, row in zip(missing, loaded, strict=True)
    }
    linked_ids = [ids_by_key.get(key) for key in keys]
    return rows.with_columns({key_column_of_link(name): linked_ids for name in sorted(links)})


async def _set_links_to_same_type(
    info: Info, view: type[Item], links: Mapping[str, Link], items: Sequence[Item]
) -> None:
    """Set the links of items to rows of their own type, to the selected depth.

    Rows that are not among the items are loaded level by level, and their links are set too.
    """
    link = next(iter(links.values()))
    own_key: Any = link.key_in_same_list
    items_by_key: dict[Any, Any] = {own_key(item.row): item for item in items}
    fields, selected_items = _item_field_nodes(info), items
    # at any depth, since an item can also be the linked object of another one
    selected_links = _links_selected_at_any_depth(info, view, links)
    while selected_items and links.keys() & _python_names(fields):
        keys = [link.key_of_row(item.row) for item in selected_items]
        missing = sorted(set(keys) - items_by_key.keys() - {None})
        rows = await info.context.load_many(link.load_batch, missing) if missing else []
        new = {key: view.from_row_or_none(row) for key, row in zip(missing, rows, strict=True)}
        items_by_key |= new
        for key, item in zip(keys, selected_items, strict=True):
            linked_item = items_by_key.get(key)
            for name, each in selected_links.items():
                setattr(
                    item,
                    name,
                    linked_item
                    if each.is_item or linked_item is None
                    else each.object_from_row(linked_item.row),
                )
        selected_items = [item for item in new.values() if item is not None]
        fields = _fields_below_links_to_same_type(info, fields, links)


def _links_selected_at_any_depth(
    info: Info, view: type[Any], links: Mapping[str, Link]
) -> Mapping[str, Link]:
    """Return those of these links to the same type that are selected in the list or below them."""

    def compute_links() -> Mapping[str, Link]:
        names: set[str] = set()
        fields = _item_field_nodes(info)
        while fields:
            names |= links.keys() & _python_names(fields)
            fields = _fields_below_links_to_same_type(info, fields, links)
        return {name: link for name, link in links.items() if name in names}

    return _cached_by_selection(info, ("links", view), compute_links)


def _fields_below_links_to_same_type(
    info: Info, fields: Iterable[FieldNode], links: Mapping[str, Link]
) -> list[FieldNode]:
    """Return the fields that are selected below links to the same type."""
    nodes = [
        node
        for node in fields
        if (link := links.get(_python_name(node.name.value))) and link.key_in_same_list
    ]
    return list(_subfield_nodes(info, nodes))


def selected_columns(info: Info, view: type[NodeView]) -> frozenset[str]:
    """Return the columns to select for the list or connection that is being resolved.

    The ID is always one of them.
    """

    def compute_columns() -> frozenset[str]:
        fields, links = _item_field_nodes(info), _fields_of_type(view).links
        columns = {"id", *_columns_of_fields(info, view, fields)}
        while fields := _fields_below_links_to_same_type(info, fields, links):
            columns.update(_columns_of_fields(info, view, fields))
        return frozenset(columns)

    return _cached_by_selection(info, view, compute_columns)


def _columns_of_fields(info: Info, view: type[View], nodes: Iterable[FieldNode]) -> Iterator[str]:
    """Yield the columns that the selected fields of a view need, with those of SameRowFields."""
    fields = _fields_of_type(view)
    for node in nodes:
        name = _python_name(node.name.value)
        derived = view.derived_fields.get(name)
        if name in fields.links:
            yield from fields.links[name].columns
        elif name not in fields.attributes:
            yield from fields.computed.get(name, ())
        elif isinstance(derived, SameRowField):
            yield from _columns_of_fields(info, derived.view, _subfield_nodes(info, [node]))
        else:
            yield from derived.columns if derived else (name,)


def selected_fields(info: Info) -> frozenset[str]:
    """Return the Python names of the fields that are selected on items of a list or connection.

    It is a superset if the selection has @skip, @include or type conditions.
    """
    return _cached_by_selection(info, None, lambda: _python_names(_item_field_nodes(info)))


def selected_subfields(info: Info, field_name: str) -> frozenset[str]:
    """Return the Python names of the subfields selected on one field of the items.

    It is a superset if the selection has @skip, @include or type conditions.
    """

    def compute_subfield_names() -> frozenset[str]:
        nodes = [
            node for node in _item_field_nodes(info) if _python_name(node.name.value) == field_name
        ]
        return _python_names(_subfield_nodes(info, nodes))

    return _cached_by_selection(info, field_name, compute_subfield_names)


def _item_field_nodes(info: Info) -> list[FieldNode]:
    """Return the nodes of the fields selected on the items of a list or connection."""
    level = list(_subfield_nodes(info, info._raw_info.field_nodes))  # noqa: SLF001 - no other way in
    if get_named_type(info._raw_info.return_type).name.endswith("Connection"):  # noqa: SLF001
        edges = [node for node in level if node.name.value == "edges"]
        inside = [node for node in _subfield_nodes(info, edges) if node.name.value == "node"]
        inside += [node for node in level if node.name.value == "nodes"]
        level = list(_subfield_nodes(info, inside))
    return level


def _python_names(nodes: Iterable[FieldNode]) -> frozenset[str]:
    return frozenset(_python_name(node.name.value) for node in nodes)


def _cached_by_selection(info: Info, cache_key: object, compute: Callable[[], Value]) -> Value:
    """Return the computed value for the current selection, cached with its document."""
    key = cache_key, *map(id, info._raw_info.field_nodes)  # noqa: SLF001 - strawberry's is slower
    memo = info.context.selection_cache
    if key not in memo:
        memo[key] = compute()
    cached: Value = memo[key]
    return cached


def _subfield_nodes(info: Info, nodes: Iterable[FieldNode]) -> Iterator[FieldNode]:
    for node in nodes:
        if node.selection_set:
            yield from _flattened_selection(info, node.selection_set)


def _flattened_selection(info: Info, selections: SelectionSetNode) -> Iterator[FieldNode]:
    for node in selections.selections:
        if isinstance(node, FieldNode):
            yield node
        elif isinstance(node, InlineFragmentNode):
            yield from _flattened_selection(info, node.selection_set)
        elif isinstance(node, FragmentSpreadNode):
            fragment = info._raw_info.fragments[node.name.value]  # noqa: SLF001 - no other way in
            yield from _flattened_selection(info, fragment.selection_set)


@cache
def _python_name(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: "_" + match[0].lower(), name)
    return snake + "_" if iskeyword(snake) or snake in SHADOWED_BUILTINS else snake


class FieldsByType(NamedTuple):
    """The fields of a type, by the way they are computed."""

    attributes: frozenset[str]
    links: dict[str, Link]
    computed: dict[str, tuple[str, ...]]  # columns by field


def _fields_of_type(kind: type) -> FieldsByType:
    return _fields_of_definition(get_object_definition(kind, strict=True))


@cache
def _fields_of_definition(definition: StrawberryObjectDefinition) -> FieldsByType:
    fields = definition.fields
    links = {f.python_name: f.metadata["link"] for f in fields if "link" in f.metadata}
    computed = {f.python_name: f.metadata["columns"] for f in fields if "columns" in f.metadata}
    return FieldsByType(
        frozenset(f.python_name for f in fields if f.is_basic_field), links, computed
    )
