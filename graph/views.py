"""Objects that are views of something: of a row, of a pair, of a page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class Made:
    """A field that is not the attribute of its name."""

    columns: tuple[str, ...]  # of the row, where the source is one
    of: Callable[[Any], Any]  # the source, as far as it was read


@dataclass(frozen=True, slots=True)
class Viewed:
    """A field whose value is a view, or a list of views where there are `many`.

    `source` says what of. No objects are made where an answer is made of their fields alone.
    """

    columns: tuple[str, ...]
    source: Callable[[Any], Any]
    view: "type[View]"
    many: bool = False

    def of(self, source: Any) -> Any:
        """The objects; None stays None."""
        found = self.source(source)
        if found is None:
            return None
        return [self.view.of(one) for one in found] if self.many else self.view.of(found)


class View:
    """An object over `row`: each plain field is the attribute of its name, or in `made`.

    What nobody reads is not made.
    """

    row: Any
    made: ClassVar[Mapping[str, Made | Viewed]] = {}

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
