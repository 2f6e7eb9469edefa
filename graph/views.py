"""Objects that are views of something: of a row, of a pair, of a page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Made:
    """A field that is not the attribute of its name."""

    columns: tuple[str, ...]  # of the row, where the source is one
    of: Callable[[Any], Any]  # the source, as far as it was read


class Expressed(Made):
    """A field that is an expression of its source, `{0}`: generated code holds it as it is."""

    def __init__(self, columns: tuple[str, ...], expression: str) -> None:
        source = f"lambda source: {expression.format('source')}"
        super().__init__(columns, eval(source))  # noqa: S307 - our own words, at import
        object.__setattr__(self, "expression", expression)

    expression: str


class Viewed(Made):
    """A field whose value is a view, or a list of views where there are `many`.

    `source` says what of. No objects are made where an answer is made of their fields alone.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        source: Callable[[Any], Any],
        view: "type[View]",
        *,
        many: bool = False,
    ) -> None:
        super().__init__(columns, partial(_objects, source, view, many))
        object.__setattr__(self, "source", source)

    source: Callable[[Any], Any]


def _objects(source: Callable[[Any], Any], view: "type[View]", many: bool, row: Any) -> Any:
    found = source(row)
    if found is None:
        return None
    return [view.of(one) for one in found] if many else view.of(found)


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
        value = getattr(self.row, name) if made is None else made.of(self.row)
        setattr(self, name, value)
        return value
