"""Metrics, log line and sampled trace of each operation.

They contain the operation name, error codes and the viewer's user ID, but never the document,
error messages or mail addresses.
"""

import logging
import random
import re
from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass, field
from time import monotonic, perf_counter, time_ns
from types import TracebackType
from typing import Any, Protocol

from graphql import OperationType
from strawberry.schema.exceptions import InvalidOperationTypeError

from models.observability import metrics, traces
from models.observability.traces import Span
from models.users.roles import Role
from resolvers.admin.trusted_documents import hash_of
from resolvers.context import Viewer

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"  # a document whose operation has no name
REFUSED = "refused"  # an invalid document: its operation name is not repeated
NAMES = {True: 150, False: 50}  # metric labels of signed-in and of anonymous callers
LONGEST = 64  # characters
CODES = 8
FAILURES = frozenset(("INTERNAL_SERVER_ERROR", "DEADLINE_EXCEEDED"))
FORCED = 10.0  # traces that signed-in callers request by `traceparent`

NAMED = metrics.MOST + 20  # operation names and the labels for other operations
SECONDS = metrics.histogram(
    "merganser_operation_seconds",
    "Time that operations took, from the document to the settled result.",
    "operation",
    "kind",
    most=NAMED,
)
ERRORS = metrics.counter(
    "merganser_operation_errors",
    "Operations that had an error with this code.",
    "operation",
    "code",
    most=2 * NAMED,
)
COST = metrics.counter(
    "merganser_operation_cost", "Cost that was asked for, in points.", "operation", most=NAMED
)
EVENTS = metrics.counter(
    "merganser_subscription_events", "Results sent to subscribers.", "operation", most=NAMED
)
RESPONSES = metrics.counter(
    "merganser_http_responses", "Answers over HTTP, by the road they took.", "road", "status"
)
OPEN = metrics.level("merganser_subscriptions", "Subscriptions that are open.")
SOCKETS = metrics.level("merganser_sockets", "WebSockets that are open, signed in or not.")

NOTHING: Mapping[str, str] = {}
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


class Asked(Protocol):
    """The caller of an operation. Contexts of requests also have `request_id` and `headers`."""

    viewer: Viewer


class Sort(Protocol):
    """The name, type and faults of a document's operation."""

    @property
    def name(self) -> str | None: ...
    @property
    def kind(self) -> OperationType: ...
    @property
    def faults(self) -> tuple[Any, ...]: ...


class Names:
    """A limited set of operation names that are used as metric labels.

    The first names get a label. Signed-in and anonymous callers have separate limits, so that
    anonymous callers can't use up all labels.
    """

    def __init__(self, room: Mapping[bool, int] = NAMES) -> None:
        self._left = dict(room)
        self._known: set[str] = set()

    def label(self, name: str | None, *, signed_in: bool) -> str:
        """Return the metric label of a valid operation with this name."""
        if name is None:
            return ANONYMOUS
        if name in self._known:
            return name
        if len(name) > LONGEST or self._left[signed_in] <= 0:
            return metrics.OTHER
        self._left[signed_in] -= 1
        self._known.add(name)
        return name


@dataclass(slots=True)
class Root(Span):
    """The span of a whole operation.

    `trace_id` (32 hex digits) and `parent_id` (16 hex digits) come from the client, or are empty.
    """

    trace_id: str = ""
    parent_id: str = ""


class Sink(Protocol):
    """A receiver of the traces of ended operations. It must not block."""

    def take(self, root: Root) -> None: ...


@dataclass(slots=True)
class Sampler:
    """The choice of operations to trace: a random share, and operations with a `traceparent`.

    A `traceparent` only counts if the caller is signed in, and at a limited rate.
    """

    share: float
    sink: Sink
    allowed: float = FORCED
    at: float = field(default_factory=monotonic)

    def root(self, asked: Asked) -> Root | None:
        """Return a new span for the operation; None if it is not traced."""
        said = getattr(asked, "headers", NOTHING).get("traceparent")
        parent = parent_of(said) if said and asked.viewer.role is not Role.PUBLIC else None
        if parent is None:
            return Root("") if random.random() < self.share else None  # noqa: S311 - no secret
        trace_id, parent_id, sampled = parent
        return Root("", trace_id=trace_id, parent_id=parent_id) if sampled and self._may() else None

    def _may(self) -> bool:
        now = monotonic()
        self.allowed = min(FORCED, self.allowed + (now - self.at) * FORCED)
        self.at = now
        if self.allowed < 1:
            return False
        self.allowed -= 1
        return True


def parent_of(header: str) -> tuple[str, str, bool] | None:
    """Parse a `traceparent` header (W3C Trace Context, level 1).

    Returns the trace ID, the parent span ID and the sampled flag; None if the header is invalid.
    """
    found = _PARENT.fullmatch(header)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16):
        return None
    return (trace_id, span_id, bool(int(flags, 16) & 1)) if int(span_id, 16) else None


names = Names()
_sampler: Sampler | None = None


def trace_to(sampler: Sampler | None) -> None:
    """Set the sampler that chooses operations to trace; None turns tracing off."""
    global _sampler  # noqa: PLW0603 - one per process, like the meters
    _sampler = sampler


class Observed:
    """A context manager that measures, logs and traces one operation.

    Inside the block the caller sets the document, the cost and the result.
    """

    __slots__ = ("_began", "_codes", "_open", "_token", "asked", "cost", "events", "known",
                 "root", "sent", "text")  # fmt: skip

    def __init__(self, asked: Asked, text: str | None) -> None:
        self.asked = asked
        self.text = text
        self.known: Sort | None = None
        self.cost = 0
        self.sent: Any = None  # as it is sent to the client
        self.events: int | None = None  # of a subscription
        self.root = None if _sampler is None else _sampler.root(asked)
        self._codes: set[str] = set()
        self._open = False
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> "Observed":
        if self.root is not None:
            self._token = traces.current.set(self.root)
        self._began = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = perf_counter() - self._began
        if self._token is not None:
            traces.current.reset(self._token)
        self._finish(seconds, error)

    def judged(self, known: Sort) -> None:
        """Set the document of the operation, and count an open subscription."""
        self.known = known
        if known.kind is OperationType.SUBSCRIPTION and not known.faults:
            self._open = True
            OPEN.add()

    def begin(self) -> None:
        """Start to measure a subscription, which is not run inside the `with` block."""
        self._began = perf_counter()
        self.events = 0

    def passed(self, result: Any) -> None:
        """Count a sent result of a subscription and the codes of its errors."""
        self.events = (self.events or 0) + 1
        self.sent = result  # its data is already released
        if getattr(result, "errors", None):
            self._codes |= codes_of(result)

    def end(self, error: BaseException | None = None) -> None:
        """Record the end of a subscription, and the error that ended it."""
        self._finish(perf_counter() - self._began, error)

    def _finish(self, seconds: float, error: BaseException | None) -> None:
        """Write metrics, log line and trace. `error` is the exception raised by the operation."""
        if self._open:
            OPEN.add(by=-1)
        known = self.known
        name, kind, label = None, "none", REFUSED
        if known is not None and not known.faults:
            name, kind = known.name, known.kind.value
            label = names.label(name, signed_in=self.asked.viewer.role is not Role.PUBLIC)
        SECONDS.note(seconds, label, kind)
        if self.cost:
            COST.add(label, by=self.cost)
        if self.events:
            EVENTS.add(label, by=self.events)
        if error is not None or getattr(self.sent, "errors", None):
            self._codes |= codes_of(self.sent) if error is None else raised(error)
        for code in self._codes:
            ERRORS.add(label, code)
        logged = log.isEnabledFor(logging.INFO)
        if logged or self.root is not None:
            facts = self._facts(name, kind, seconds, error)
            if logged:
                # log.info would look up the line of code, which takes time and is not logged
                extra = {"facts": facts}
                record = log.makeRecord(
                    log.name, logging.INFO, "", 0, "operation", (), None, extra=extra
                )
                log.handle(record)
            if self.root is not None and _sampler is not None:
                self._trace(self.root, facts)
                _sampler.sink.take(self.root)

    def _facts(
        self, name: str | None, kind: str, seconds: float, error: BaseException | None
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "request_id": getattr(self.asked, "request_id", ""),
            "operation": name and name[:LONGEST],
            "kind": kind,
            "status": self._status(error),
            "ms": round(seconds * 1000, 3),
            "cost": self.cost,
        }
        if self._codes:
            facts["codes"] = sorted(self._codes)[:CODES]
        if self.events is not None:
            facts["events"] = self.events
        if self.asked.viewer.user_id:
            facts["user"] = self.asked.viewer.user_id
        return facts

    def _status(self, error: BaseException | None) -> str:
        if error is not None and not isinstance(error, Exception):
            return "gone"  # cancelled: the client has left
        if not self._codes:
            return "ok"
        if not FAILURES.isdisjoint(self._codes):
            return "failed"
        if getattr(self.sent, "data", None) is not None:
            return "partial"
        errors = getattr(self.sent, "errors", None) or ()
        return "failed" if any(one.path for one in errors) else "refused"

    def _trace(self, root: Root, facts: dict[str, Any]) -> None:
        root.name = " ".join(filter(None, (facts["kind"], facts["operation"])))
        root.ended = time_ns()
        root.failed = facts["status"] == "failed"
        root.facts = {
            "graphql.operation.type": facts["kind"],
            "graphql.operation.name": facts["operation"] or ANONYMOUS,
            "merganser.status": facts["status"],
            "merganser.cost": self.cost,
            "merganser.request_id": facts["request_id"],
        }
        if self.text is not None:
            root.facts["graphql.document.hash"] = f"sha256:{hash_of(self.text).hex()}"
        if "codes" in facts:
            root.facts["merganser.codes"] = facts["codes"]
        if root.lost:
            root.facts["merganser.parts_lost"] = root.lost


def codes_of(result: Any) -> set[str]:
    """Return the codes of a result's errors."""
    return {str((one.extensions or {}).get("code")) for one in result.errors}


def raised(error: BaseException) -> set[str]:
    """Return the error codes that an operation counts as if it ended with this exception."""
    if isinstance(error, InvalidOperationTypeError):
        return {"BAD_USER_INPUT"}
    return {"INTERNAL_SERVER_ERROR"} if isinstance(error, Exception) else set()
