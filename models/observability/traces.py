"""The spans of operations that are traced.

A traced operation has a Span as `current`, and the code that works for it adds child spans. All
other operations pay one lookup. No span contains values of mail, variables or documents.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time_ns
from types import TracebackType

from models.observability.metrics import Histogram

MAX_CHILDREN = 100  # child spans of an operation; further ones are only counted

AttributeValue = str | int | float | bool | list[str]


@dataclass(slots=True)
class Span:
    """A piece of work. Times are nanoseconds since the epoch; `ended_at` is 0 until the end."""

    name: str
    began_at: int = field(default_factory=time_ns)
    ended_at: int = 0
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    children: list["Span"] = field(default_factory=list)
    failed: bool = False
    children_left: int = MAX_CHILDREN  # children that it may still have; a child has none

    def begin_child(self, name: str) -> "Span | None":
        """Begin a child span; return None if there are too many."""
        self.children_left -= 1
        if self.children_left < 0:
            return None
        child_span = Span(name, children_left=0)
        self.children.append(child_span)
        return child_span

    @property
    def dropped_count(self) -> int:
        """The number of child spans above the limit."""
        return max(0, -self.children_left)


current: ContextVar[Span | None] = ContextVar("span", default=None)


class TimedBlock:
    """Measures a block: always in a histogram, and as a child span if the operation is traced.

    Set attributes of `span` before the block ends.
    """

    __slots__ = ("_began", "_labels", "_meter", "_name", "span")

    def __init__(self, meter: Histogram, name: str, *labels: str) -> None:
        self._meter = meter
        self._name = name
        self._labels = labels
        self.span: Span | None = None

    def __enter__(self) -> "TimedBlock":
        if (trace := current.get()) is not None:
            self.span = trace.begin_child(self._name)
        self._began = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._meter.observe(perf_counter() - self._began, *self._labels)
        if self.span is not None:
            self.span.ended_at = time_ns()
            self.span.failed = kind is not None
