"""The spans of operations that are traced.

A traced operation has a Span as `current`, and the code that works for it adds child spans. All
other operations pay one lookup. No span contains values of mail, variables or documents.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time_ns
from types import TracebackType

from models.observability.metrics import Histogram

MOST = 100  # child spans of an operation; further ones are only counted

Fact = str | int | float | bool | list[str]


@dataclass(slots=True)
class Span:
    """A piece of work. Times are nanoseconds since the epoch; `ended` is 0 until the end."""

    name: str
    began: int = field(default_factory=time_ns)
    ended: int = 0
    facts: dict[str, Fact] = field(default_factory=dict)
    parts: list["Span"] = field(default_factory=list)
    failed: bool = False
    left: int = MOST  # children that it may still have; a child has none

    def part(self, name: str) -> "Span | None":
        """Begin a child span; return None if there are too many."""
        self.left -= 1
        if self.left < 0:
            return None
        made = Span(name, left=0)
        self.parts.append(made)
        return made

    @property
    def lost(self) -> int:
        """The number of child spans above the limit."""
        return max(0, -self.left)


current: ContextVar[Span | None] = ContextVar("span", default=None)


class Timed:
    """Measures a block: always in a histogram, and as a child span if the operation is traced.

    Set attributes of `span` before the block ends.
    """

    __slots__ = ("_began", "_labels", "_meter", "_name", "part")

    def __init__(self, meter: Histogram, name: str, *labels: str) -> None:
        self._meter = meter
        self._name = name
        self._labels = labels
        self.part: Span | None = None

    def __enter__(self) -> "Timed":
        if (whole := current.get()) is not None:
            self.part = whole.part(self._name)
        self._began = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._meter.note(perf_counter() - self._began, *self._labels)
        if self.part is not None:
            self.part.ended = time_ns()
            self.part.failed = kind is not None
