"""Objects that are views of something: of a row, of a pair, of a page."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self

from models.store.prepared_statements import Rows
from resolvers.context import Batch

KEY_FIELDS = frozenset({"id", "__typename"})  # what the key of an object alone answers


@dataclass(frozen=True, slots=True)
class Link:
    """A field that leads to another object.

    With `exists` the object of a key is always there: where only KEY_FIELDS are asked of it,
    it is made of the key, and nothing is loaded.

    With `own_key` the link leads to a row of the same kind, which has this key. A list then
    looks among its own rows first, and `item` says that the field is the object of that row.
    """

    columns: tuple[str, ...]
    key: Callable[[Any], Any]  # of a row; None: the field is null
    batch: Batch[Any, Any]
    of: Callable[[Any], Any]
    exists: bool = False
    own_key: Callable[[Any], Any] | None = None
    item: bool = False


class KeyRow(NamedTuple):
    """A row of which only the key is known."""

    id: int


class Made:
    """A field that is not the attribute of its name, but made of the values of `columns`.

    Without columns it is made of the source itself. It may be made twice: nothing else may
    depend on it.
    """

    def __init__(self, columns: tuple[str, ...], of: Callable[..., Any]) -> None:
        self.columns = columns
        self.of = of
        self.make: Callable[[Any], Any] = _reader(columns, of)


class Whole(Made):
    """A field made of the whole source, of which it reads these columns."""

    def __init__(self, columns: tuple[str, ...], of: Callable[[Any], Any]) -> None:
        super().__init__((), of)
        self.columns = columns


class MaybeThreaded(Whole):
    """A field made of the whole source: a task with a worker thread if the source is large.

    Generated code leaves large sources to graphql-core, which awaits the task.
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
    """A field that is an expression of its source, `{0}`: generated code holds it as it is."""

    def __init__(self, expression: str) -> None:
        source = f"lambda source: {expression.format('source')}"
        super().__init__((), eval(source))  # noqa: S307 - our own words, at import
        self.expression = expression


class Viewed(Made):
    """A field whose value is a view, or a list of views where there are `many`.

    `source` says what of. No objects are made where an answer is made of their fields alone.
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
    """What a column holds, as it is."""
    return value


def _reader(columns: tuple[str, ...], of: Callable[..., Any]) -> Callable[[Any], Any]:
    """What reads the columns of a source, and hands them on."""
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
    """Views of rows as a driver gave them: an answer is made of those, and no object, if it can."""

    __slots__ = ("_items", "rows", "view")

    def __init__(self, view: "type[View]", rows: Rows) -> None:
        self.view = view
        self.rows = rows
        self._items: list[View] | None = None

    @property
    def items(self) -> "list[View]":
        """The views."""
        if self._items is None:
            self._items = [self.view.of(row) for row in self.rows]
        return self._items

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return self.items[at]


class View:
    """An object over `row`: each plain field is the attribute of its name, or in `made`.

    What nobody reads is not made.
    """

    row: Any
    made: ClassVar[Mapping[str, Made]] = {}

    @classmethod
    def of(cls, row: Any) -> Self:
        """The view of this."""
        one = cls.__new__(cls)
        one.row = row
        return one

    @classmethod
    def maybe(cls, row: Any) -> Self | None:
        """The view of this; None stays None."""
        return None if row is None else cls.of(row)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "row":
            raise AttributeError(name)
        made = self.made.get(name)
        value = getattr(self.row, name) if made is None else made.make(self.row)
        setattr(self, name, value)
        return value
