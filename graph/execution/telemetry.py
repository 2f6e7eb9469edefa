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

from models.metrics.usage_recorder import UsageCaller
from models.observability import metrics, statement_counts, traces
from models.observability.statement_counts import StatementCount
from models.observability.traces import Span
from models.users.roles import Role
from resolvers.admin.trusted_documents import hash_of
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"  # a document whose operation has no name
REFUSED_LABEL = "refused"  # an invalid document: its operation name is not repeated
LABEL_COUNT_BY_SIGNED_IN = {
    True: 150,
    False: 50,
}  # metric labels of signed-in and of anonymous callers
MAX_NAME_LENGTH = 64  # characters
MAX_LOGGED_CODES = 8
SERVER_FAILURE_CODES = frozenset(("INTERNAL_SERVER_ERROR", "DEADLINE_EXCEEDED"))
MAX_REQUESTED_TRACES_PER_SECOND = 10.0  # traces that signed-in callers request by `traceparent`

MAX_LABELS = metrics.MAX_COMBINATIONS + 20  # operation names and the labels for other operations
OPERATION_SECONDS = metrics.histogram(
    "merganser_operation_seconds",
    "Duration of operations, from the document to the complete result.",
    "operation",
    "kind",
    max_combinations=MAX_LABELS,
)
OPERATION_ERRORS = metrics.counter(
    "merganser_operation_errors",
    "Operations with an error of this code.",
    "operation",
    "code",
    max_combinations=2 * MAX_LABELS,
)
OPERATION_COST = metrics.counter(
    "merganser_operation_cost",
    "Requested cost in points.",
    "operation",
    max_combinations=MAX_LABELS,
)
SUBSCRIPTION_EVENTS = metrics.counter(
    "merganser_subscription_events",
    "Results sent to subscribers.",
    "operation",
    max_combinations=MAX_LABELS,
)
HTTP_RESPONSES = metrics.counter(
    "merganser_http_responses",
    "HTTP responses of the endpoints graphql, rest, scim, oauth and autoconfig, by status.",
    "endpoint",
    "status",
)
OPEN_SUBSCRIPTIONS = metrics.up_down_counter("merganser_subscriptions", "Open subscriptions.")
OPEN_SOCKETS = metrics.up_down_counter("merganser_sockets", "Open WebSockets, signed in or not.")

NO_HEADERS: Mapping[str, str] = {}
_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)


class OperationCaller(Protocol):
    """The caller of an operation. Contexts of requests also have `request_id` and `headers`."""

    viewer: Viewer


class DocumentFacts(Protocol):
    """The name, type and faults of a document's operation."""

    @property
    def operation_name(self) -> str | None: ...
    @property
    def operation_type(self) -> OperationType: ...
    @property
    def faults(self) -> tuple[Any, ...]: ...


class OperationLabels:
    """A limited set of operation names that are used as metric labels.

    The first names get a label. Signed-in and anonymous callers have separate limits, so that
    anonymous callers can't use up all labels.
    """

    def __init__(self, label_counts: Mapping[bool, int] = LABEL_COUNT_BY_SIGNED_IN) -> None:
        self._free_labels = dict(label_counts)
        self._labels: set[str] = set()

    def reserve_operation_label_or_other(self, name: str | None, *, signed_in: bool) -> str:
        """Return the metric label of a valid operation with this name."""
        if name is None:
            return ANONYMOUS
        if name in self._labels:
            return name
        if len(name) > MAX_NAME_LENGTH or self._free_labels[signed_in] <= 0:
            return metrics.OTHER
        self._free_labels[signed_in] -= 1
        self._labels.add(name)
        return name


@dataclass(slots=True)
class OperationSpan(Span):
    """The span of a whole operation.

    `trace_id` (32 hex digits) and `parent_id` (16 hex digits) come from the client, or are empty.
    """

    trace_id: str = ""
    parent_id: str = ""


class TraceSink(Protocol):
    """A receiver of the traces of ended operations. It must not block."""

    def add_trace(self, span: OperationSpan) -> None: ...


@dataclass(slots=True)
class TraceSampler:
    """The choice of operations to trace: a random share, and operations with a `traceparent`.

    A `traceparent` only counts if the caller is signed in, and at a limited rate.
    """

    sampled_share: float
    sink: TraceSink
    requested_traces_left: float = MAX_REQUESTED_TRACES_PER_SECOND
    refilled_at: float = field(default_factory=monotonic)

    def new_span_if_sampled(self, caller: OperationCaller) -> OperationSpan | None:
        """Return a new span for the operation; None if it is not traced."""
        traceparent = getattr(caller, "headers", NO_HEADERS).get("traceparent")
        parent = (
            parse_traceparent_or_none(traceparent)
            if traceparent and caller.viewer.role is not Role.PUBLIC
            else None
        )
        if parent is None:
            return OperationSpan("") if random.random() < self.sampled_share else None  # noqa: S311 - no secret
        return (
            OperationSpan("", trace_id=parent.trace_id, parent_id=parent.span_id)
            if parent.is_sampled and self._take_requested_trace_if_left()
            else None
        )

    def _take_requested_trace_if_left(self) -> bool:
        now = monotonic()
        self.requested_traces_left = min(
            MAX_REQUESTED_TRACES_PER_SECOND,
            self.requested_traces_left + (now - self.refilled_at) * MAX_REQUESTED_TRACES_PER_SECOND,
        )
        self.refilled_at = now
        if self.requested_traces_left < 1:
            return False
        self.requested_traces_left -= 1
        return True


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The trace and span that a client continues, and whether it records the trace."""

    trace_id: str
    span_id: str
    is_sampled: bool


def parse_traceparent_or_none(header: str) -> TraceParent | None:
    """Parse a `traceparent` header (W3C Trace Context, level 1). None if it is invalid."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16):
        return None
    if not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, is_sampled=bool(int(flags, 16) & 1))


operation_labels = OperationLabels()
_sampler: TraceSampler | None = None


def set_trace_sampler(sampler: TraceSampler | None) -> None:
    """Set the sampler that chooses operations to trace; None turns tracing off."""
    global _sampler  # noqa: PLW0603 - one per process, like the meters
    _sampler = sampler


class OperationObserver:
    """A context manager that measures, logs and traces one operation.

    Inside the block the caller sets the document, the cost and the result.
    """

    __slots__ = (
        "_error_codes",
        "_is_counted_as_open",
        "_outer_statement_count",
        "_span_token",
        "_started_at",
        "_statement_count",
        "caller",
        "cost",
        "document",
        "document_text",
        "event_count",
        "result",
        "span",
    )  # fmt: skip

    def __init__(self, caller: OperationCaller, document_text: str | None) -> None:
        self.caller = caller
        self.document_text = document_text
        self.document: DocumentFacts | None = None
        self.cost = 0
        self.result: Any = None  # as it is sent to the client
        self.event_count: int | None = None  # of a subscription
        self.span = None if _sampler is None else _sampler.new_span_if_sampled(caller)
        self._error_codes: set[str] = set()
        self._is_counted_as_open = False
        self._span_token: Token[Span | None] | None = None
        self._outer_statement_count: StatementCount | None = None
        self._statement_count: StatementCount | None = None  # None for a subscription

    def __enter__(self) -> "OperationObserver":
        if self.span is not None:
            self._span_token = traces.current.set(self.span)
        self._outer_statement_count = statement_counts.current.get()
        self._statement_count = StatementCount()
        statement_counts.current.set(self._statement_count)
        self._started_at = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = perf_counter() - self._started_at
        statement_counts.current.set(self._outer_statement_count)
        if self._span_token is not None:
            traces.current.reset(self._span_token)
        self._record_metrics_log_and_trace(seconds, error)

    def set_document_and_count_subscription(self, document: DocumentFacts) -> None:
        """Set the document of the operation, and count an open subscription."""
        self.document = document
        if document.operation_type is OperationType.SUBSCRIPTION and not document.faults:
            self._is_counted_as_open = True
            OPEN_SUBSCRIPTIONS.add()

    def start_stream(self) -> None:
        """Start to measure a subscription, which is not run inside the `with` block."""
        self._started_at = perf_counter()
        self.event_count = 0

    def count_event(self, result: Any) -> None:
        """Count a sent result of a subscription and the codes of its errors."""
        self.event_count = (self.event_count or 0) + 1
        self.result = result  # its data is already released
        if getattr(result, "errors", None):
            self._error_codes |= error_codes(result)

    def end_stream(self, error: BaseException | None = None) -> None:
        """Record the end of a subscription, and the error that ended it."""
        self._record_metrics_log_and_trace(perf_counter() - self._started_at, error)

    def _record_metrics_log_and_trace(self, seconds: float, error: BaseException | None) -> None:
        """Write metrics, log line and trace. `error` is the exception raised by the operation."""
        if self._is_counted_as_open:
            OPEN_SUBSCRIPTIONS.add(amount=-1)
        document = self.document
        name, kind, label = None, "none", REFUSED_LABEL
        if document is not None and not document.faults:
            name, kind = document.operation_name, document.operation_type.value
            label = operation_labels.reserve_operation_label_or_other(
                name, signed_in=self.caller.viewer.role is not Role.PUBLIC
            )
        OPERATION_SECONDS.observe(seconds, label, kind)
        if self.cost:
            OPERATION_COST.add(label, amount=self.cost)
        if self.event_count:
            SUBSCRIPTION_EVENTS.add(label, amount=self.event_count)
        if error is not None or getattr(self.result, "errors", None):
            self._error_codes |= (
                error_codes(self.result) if error is None else error_codes_of_exception(error)
            )
        for code in self._error_codes:
            OPERATION_ERRORS.add(label, code)
        is_public = self.caller.viewer.role is Role.PUBLIC  # anybody can choose a name
        usage_name = label if is_public or name is None else name
        self._count_usage(usage_name, seconds if self.event_count is None else None)
        level = logging.WARNING if self._is_slow(seconds) else logging.INFO
        if self.span is not None or log.isEnabledFor(level):
            self._log_and_trace(level, self._log_fields(name, kind, seconds, error))

    def _log_and_trace(self, level: int, log_fields: dict[str, Any]) -> None:
        """Write the log line, if its level is enabled, and the trace. A slow one is a warning."""
        if level == logging.WARNING:
            log_fields |= self._slow_operation_fields()
        if log.isEnabledFor(level):
            # log.warning would look up the line of code, which takes time and is not logged
            # `facts` is logged on stderr, and the log store also has the address
            extra = {"facts": log_fields, "client_ip": getattr(self.caller, "client_ip", None)}
            record = log.makeRecord(log.name, level, "", 0, "operation", (), None, extra=extra)
            log.handle(record)
        if self.span is not None and _sampler is not None:
            self._end_and_describe_span(self.span, log_fields)
            _sampler.sink.add_trace(self.span)

    def _count_usage(self, name: str, seconds: float | None) -> None:
        """Count the operation for its user, address, session and name."""
        caller = self.caller
        environment = getattr(caller, "environment", None)
        if environment is not None:
            environment.usage.count_api_operation(
                name if len(name) <= MAX_NAME_LENGTH else metrics.OTHER,
                UsageCaller(
                    caller.viewer.user_id,
                    getattr(caller, "client_ip", None),
                    getattr(caller, "live_session_id", None),
                ),
                seconds,
                has_failed=bool(self._error_codes),
            )

    def _log_fields(
        self, name: str | None, kind: str, seconds: float, error: BaseException | None
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "request_id": getattr(self.caller, "request_id", ""),
            "operation": name and name[:MAX_NAME_LENGTH],
            "kind": kind,
            "status": self._operation_status(error),
            "ms": round(seconds * 1000, 3),
            "cost": self.cost,
        }
        if self._statement_count is not None:
            facts["statements"] = self._statement_count.total
        if self._error_codes:
            facts["codes"] = sorted(self._error_codes)[:MAX_LOGGED_CODES]
        if self.event_count is not None:
            facts["events"] = self.event_count
        if self.caller.viewer.user_id:
            facts["user"] = self.caller.viewer.user_id
        return facts

    def _is_slow(self, seconds: float) -> bool:
        """True if a query or mutation took at least `log_slow_operation_threshold`."""
        environment = getattr(self.caller, "environment", None)
        if self._statement_count is None or environment is None:
            return False
        threshold: float = environment.options.log_slow_operation_threshold.total_seconds()
        return 0 < threshold <= seconds

    def _slow_operation_fields(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"slow": True}
        if self.document_text is not None:
            facts["document"] = f"sha256:{hash_of(self.document_text).hex()}"
        return facts

    def _operation_status(self, error: BaseException | None) -> str:
        if error is not None and not isinstance(error, Exception):
            return "gone"  # cancelled: the client has left
        if not self._error_codes:
            return "ok"
        if not SERVER_FAILURE_CODES.isdisjoint(self._error_codes):
            return "failed"
        if getattr(self.result, "data", None) is not None:
            return "partial"
        errors = getattr(self.result, "errors", None) or ()
        return "failed" if any(error.path for error in errors) else "refused"

    def _end_and_describe_span(self, span: OperationSpan, log_fields: dict[str, Any]) -> None:
        span.name = " ".join(filter(None, (log_fields["kind"], log_fields["operation"])))
        span.ended_at = time_ns()
        span.failed = log_fields["status"] == "failed"
        span.attributes = {
            "graphql.operation.type": log_fields["kind"],
            "graphql.operation.name": log_fields["operation"] or ANONYMOUS,
            "merganser.status": log_fields["status"],
            "merganser.cost": self.cost,
            "merganser.request_id": log_fields["request_id"],
        }
        if self.document_text is not None:
            span.attributes["graphql.document.hash"] = f"sha256:{hash_of(self.document_text).hex()}"
        if "codes" in log_fields:
            span.attributes["merganser.codes"] = log_fields["codes"]
        if span.dropped_count:
            span.attributes["merganser.parts_lost"] = span.dropped_count


def error_codes(result: Any) -> set[str]:
    """Return the codes of a result's errors."""
    return {str((error.extensions or {}).get("code")) for error in result.errors}


def error_codes_of_exception(error: BaseException) -> set[str]:
    """Return the error codes that an operation counts as if it ended with this exception."""
    if isinstance(error, InvalidOperationTypeError):
        return {"BAD_USER_INPUT"}
    return {"INTERNAL_SERVER_ERROR"} if isinstance(error, Exception) else set()
