"""View objects: GraphQL objects with fields that are read from a row, a pair or a page."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self

from models.store.prepared_statements import Rows
from resolvers.context import Batch

KEY_FIELDS = frozenset({"id", "__typename"})  # fields that only need an object's key


@dataclass(frozen=True, slots=True)
class Link:
    """A field that leads to another object.

    With `exists` the object of a key always exists: if only KEY_FIELDS are selected, it is created
    from the key and nothing is loaded.

    With `key_in_own_list` the link leads to a row of the same type with this key. A list then looks
    among its own rows first. `is_item` is True if the field is the object of that row.
    """

    columns: tuple[str, ...]
    key: Callable[[Any], Any]  # of a row; if it returns None, the field is null
    batch: Batch[Any, Any]
    of: Callable[[Any], Any]
    exists: bool = False
    own_key: Callable[[Any], Any] | None = None
    item: bool = False


class KeyRow(NamedTuple):
    """A row with nothing but its key."""

    id: int


class Made:
    """A field that is derived from the values of `columns`, or from the source without columns.

    The function may run twice, so it must have no side effects.
    """

    def __init__(self, columns: tuple[str, ...], of: Callable[..., Any]) -> None:
        self.columns = columns
        self.of = of
        self.make: Callable[[Any], Any] = _reader(columns, of)


class Whole(Made):
    """A field that is derived from the whole source and reads these columns of it."""

    def __init__(self, columns: tuple[str, ...], of: Callable[[Any], Any]) -> None:
        super().__init__((), of)
        self.columns = columns


class MaybeThreaded(Whole):
    """A field that is derived from the whole source, in a worker thread if the source is large.

    For a large source the value is a task. Generated code leaves it to graphql-core, which awaits
    the task.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        of: Callable[[Any], Any],
        is_large: Callable[[Any], bool],
    ) -> None:
        super().__init__(columns, of)
        self.is_large = is_large
        self.make = self._make

    def _make(self, source: Any) -> Any:
        if self.is_large(source):
            return asyncio.ensure_future(asyncio.to_thread(self.of, source))
        return self.of(source)


class Expressed(Made):
    """A field that is a Python expression of its source `{0}`, which generated code contains."""

    def __init__(self, expression: str) -> None:
        source = f"lambda source: {expression.format('source')}"
        super().__init__((), eval(source))  # noqa: S307 - constant text of this project
        self.expression = expression


class Viewed(Made):
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
        many: bool = False,
    ) -> None:
        super().__init__(columns, partial(_objects, source, view, many))
        self.source = source
        self.look: Callable[[Any], Any] = _reader(columns, source)


def same(value: Any) -> Any:
    """Return the value of a column unchanged."""
    return value


def _reader(columns: tuple[str, ...], of: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a function of a source that calls `function` with the values of the columns."""
    if not columns:
        return of
    read = attrgetter(*columns)
    if len(columns) == 1:
        return lambda source: of(read(source))
    return lambda source: of(*read(source))


def _objects(source: Callable[..., Any], view: "type[View]", many: bool, *values: Any) -> Any:
    found = source(*values)
    if found is None:
        return None
    return [view.of(one) for one in found] if many else view.of(found)


class Listed(Sequence[Any]):
    """A list of views of unconverted rows. Generated code reads the rows without creating views."""

    __slots__ = ("_items", "rows", "view")

    def __init__(self, view: "type[View]", rows: Rows) -> None:
        self.view = view
        self.rows = rows
        self._items: list[View] | None = None

    @property
    def items(self) -> "list[View]":
        """The views, created at the first access."""
        if self._items is None:
            self._items = [self.view.of(row) for row in self.rows]
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
    made: ClassVar[Mapping[str, Made]] = {}

    @classmethod
    def of(cls, row: Any) -> Self:
        """Create the view of a row or another source."""
        one = cls.__new__(cls)
        one.row = row
        return one

    @classmethod
    def maybe(cls, row: Any) -> Self | None:
        """Create the view of a row; return None for None."""
        return None if row is None else cls.of(row)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "row":
            raise AttributeError(name)
        made = self.made.get(name)
        value = getattr(self.row, name) if made is None else made.make(self.row)
        setattr(self, name, value)
        return value
