"""View objects: GraphQL objects with fields that are read from a row, a pair or a page."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self

from models.store.prepared_statements import LazyRows
from resolvers.context import BatchFunction

KEY_FIELDS = frozenset({"id", "__typename"})  # fields that only need an object's key


@dataclass(frozen=True, slots=True)
class Link:
    """A field that leads to another object.

    With `exists` the object of a key always exists: if only KEY_FIELDS are selected, it is created
    from the key and nothing is loaded.

    With `key_in_same_list` the link leads to a row of the same type with this key. A list then
    looks among its own rows first. `is_item` is True if the field is the object of that row.
    """

    columns: tuple[str, ...]
    key_of_row: Callable[[Any], Any]  # of a row; if it returns None, the field is null
    load_batch: BatchFunction[Any, Any]
    object_from_row: Callable[[Any], Any]
    exists: bool = False
    key_in_same_list: Callable[[Any], Any] | None = None
    is_item: bool = False

    def object_from_key_or_none(self, key: int | None) -> Any:
        """Return the object of a row of which only KEY_FIELDS are read; None for None."""
        return None if key is None else self.object_from_row(KeyRow(key))


class KeyRow(NamedTuple):
    """A row with nothing but its key."""

    id: int


class DerivedField:
    """A field that is derived from the values of `columns`, or from the source without columns.

    The function may run twice, so it must have no side effects.
    """

    def __init__(self, columns: tuple[str, ...], derive: Callable[..., Any]) -> None:
        self.columns = columns
        self.derive = derive
        self.derive_from_source: Callable[[Any], Any] = _function_called_with_columns(
            columns, derive
        )


class WholeSourceField(DerivedField):
    """A field that is derived from the whole source and reads these columns of it."""

    def __init__(self, columns: tuple[str, ...], derive: Callable[[Any], Any]) -> None:
        super().__init__((), derive)
        self.columns = columns


class ThreadedIfLargeField(WholeSourceField):
    """A field that is derived from the whole source, in a worker thread if the source is large.

    For a large source the value is a task. Generated code leaves it to graphql-core, which awaits
    the task.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        derive: Callable[[Any], Any],
        is_large: Callable[[Any], bool],
    ) -> None:
        super().__init__(columns, derive)
        self.is_large = is_large
        self.derive_from_source = self._derive_in_thread_if_large

    def _derive_in_thread_if_large(self, source: Any) -> Any:
        if self.is_large(source):
            return asyncio.ensure_future(asyncio.to_thread(self.derive, source))
        return self.derive(source)


class ExpressionField(DerivedField):
    """A field that is a Python expression of its source `{0}`, which generated code contains."""

    def __init__(self, expression: str) -> None:
        source = f"lambda source: {expression.format('source')}"
        super().__init__((), eval(source))  # noqa: S307 - constant text of this project
        self.expression = expression


class NestedViewField(DerivedField):
    """A field with a view as its value, or with `many` a list of views.

    `sources_from_columns` returns the source of the view, or of each view. Generated code reads
    the fields from it without creating view objects.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        source: Callable[..., Any],
        view: "type[View]",
        *,
        is_list: bool = False,
    ) -> None:
        super().__init__(columns, partial(_views_from_columns, source, view, is_list))
        self.sources_from_columns = source
        self.sources_from_source: Callable[[Any], Any] = _function_called_with_columns(
            columns, source
        )


class SameRowField(NestedViewField):
    """A field with a view of the same source, which groups fields of one row.

    A list selects the columns that the selected fields of the view need. Generated code reads
    them from the row.
    """

    def __init__(self, view: "type[View]") -> None:
        super().__init__((), return_unchanged, view)
        self.view = view


def return_unchanged(value: Any) -> Any:
    """Return the value of a column unchanged."""
    return value


def _function_called_with_columns(
    columns: tuple[str, ...], function: Callable[..., Any]
) -> Callable[[Any], Any]:
    """Return a function of a source that calls `function` with the values of the columns."""
    if not columns:
        return function
    read_columns = attrgetter(*columns)
    if len(columns) == 1:
        return lambda source: function(read_columns(source))
    return lambda source: function(*read_columns(source))


def _views_from_columns(
    source: Callable[..., Any], view: "type[View]", is_list: bool, *values: Any
) -> Any:
    """The view of what `source` returns for the column values; None if that is None.

    With `is_list`, a list with the view of each item. `source` must not be async.
    """
    view_objects = source(*values)
    if view_objects is None:
        return None
    return (
        [view.from_row(view_object) for view_object in view_objects]
        if is_list
        else view.from_row(view_objects)
    )


def key_column_of_link(link_name: str) -> str:
    """Return the name of the column with the keys of a link's objects, in rows of a list."""
    return f"key_of_{link_name}"


class ViewList(Sequence[Any]):
    """A list of views of unconverted rows. Generated code reads the rows without creating views.

    `links` are those to rows of the same type whose keys are columns of the rows.
    """

    __slots__ = ("_items", "_links", "rows", "view")

    def __init__(
        self, view: "type[View]", rows: LazyRows, links: Mapping[str, Link] | None = None
    ) -> None:
        self.view = view
        self.rows = rows
        self._links = links or {}
        self._items: list[View] | None = None

    @property
    def items(self) -> "list[View]":
        """The views, created at the first access."""
        if self._items is None:
            self._items = [self.view.from_row(row) for row in self.rows]
            for name, link in self._links.items():
                column = key_column_of_link(name)
                for item in self._items:
                    setattr(item, name, link.object_from_key_or_none(getattr(item.row, column)))
        return self._items

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return self.items[at]


class View:
    """An object over `row`: a field is the row's attribute of its name or a derived field.

    Derived fields are computed at their first access.
    """

    row: Any
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {}
    row_type: ClassVar[type[Any] | None] = None  # the dataclass of `row`, if payloads contain it

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """Create the view of a row or another source."""
        view_object = cls.__new__(cls)
        view_object.row = row
        return view_object

    @classmethod
    def from_row_or_none(cls, row: Any) -> Self | None:
        """Create the view of a row; return None for None."""
        return None if row is None else cls.from_row(row)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "row":
            raise AttributeError(name)
        derived_field = self.derived_fields.get(name)
        value = (
            getattr(self.row, name)
            if derived_field is None
            else derived_field.derive_from_source(self.row)
        )
        setattr(self, name, value)
        return value
