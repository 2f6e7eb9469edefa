"""Write what happens to messages to the log store: steps, deliveries, verdicts, reached limits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.messages.message_trace import DeliveryTraceEventKind
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment

INBOUND_PROGRAM = "mail.delivery"
OUTBOUND_PROGRAM = "mail.outbound"
SPAM_PROGRAM = "mail.spam"
LIMITS_PROGRAM = "mail.limits"
WARNING_EVENTS = frozenset({
    DeliveryTraceEventKind.REJECTED, DeliveryTraceEventKind.REFUSED,
    DeliveryTraceEventKind.QUARANTINED, DeliveryTraceEventKind.NOT_FORWARDED,
})  # fmt: skip
# Estimated bytes of memory:
ENTRY_SIZE = 1024  # of an entry, without the lists and the subject of a verdict
RECIPIENT_SIZE, SYMBOL_SIZE = 100, 300  # of a list item
WARNING_STATES = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED})


def record_trace_steps(environment: Environment, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write an entry for each step of the delivery trace, for the domain that can read the step.

    A verdict has an entry of its own, with more details: `record_verdicts`.
    """
    ranks = environment.logs.lowest_ranks()
    steps = [
        row
        for row in rows
        if row["event"] is not DeliveryTraceEventKind.CLASSIFIED
        and _level_of_step(row).rank >= ranks[row["component"]]
    ]
    if steps:
        size = ENTRY_SIZE * len(steps)
        environment.logs.record_unbuilt(map(_entry_of_step, steps), len(steps), size)


def _level_of_step(row: Mapping[str, Any]) -> LogLevel:
    return LogLevel.WARNING if row["event"] in WARNING_EVENTS else LogLevel.INFO


def _entry_of_step(row: Mapping[str, Any]) -> NewLogEntry:
    event, address, detail = str(row["event"]), row["address"], row["detail"]
    text = f"{event.lower().replace('_', ' ')}: {address}"
    return NewLogEntry(
        row["at"],
        row["component"],
        _level_of_step(row),
        INBOUND_PROGRAM,
        f"{text} ({detail})" if detail else text,
        {"event": event, "recipient": address, "sender": row["sender"], "detail": detail},
        domain_id=row["domain_id"],
        queue_id=row["queue_id"],
        message_id=row["message_id"],
    )


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """The result of an attempt to deliver a queued message to one recipient."""

    queue_id: str
    message_id: str | None
    user_id: int | None  # of the sender; None: the platform
    sender: str  # of the envelope
    recipient: str
    state: DeliveryState
    reply: str  # code and text
    host: str | None
    tls: str | None


def record_delivery_attempt(environment: Environment, attempt: DeliveryAttempt) -> None:
    """Write an entry about an attempt, which the administrators of the sender's domain can read."""
    level = LogLevel.WARNING if attempt.state in WARNING_STATES else LogLevel.INFO
    if not environment.logs.is_recorded(LogComponent.MTA, level):
        return
    where = f" by {attempt.host}" if attempt.host else ""
    fields = {
        "event": attempt.state,
        "recipient": attempt.recipient,
        "sender": attempt.sender,
        "host": attempt.host,
        "tls": attempt.tls,
        "reply": attempt.reply,
    }
    environment.logs.enqueue_or_drop_entry(
        NewLogEntry(
            environment.now(),
            LogComponent.MTA,
            level,
            OUTBOUND_PROGRAM,
            f"{attempt.state.lower()}{where}: {attempt.recipient} ({attempt.reply})",
            fields,
            user_id=attempt.user_id,
            queue_id=attempt.queue_id,
            message_id=attempt.message_id,
        )
    )


class VerdictEntry(NamedTuple):
    """The verdict on a message that recipients of one domain share."""

    domain_id: int | None
    action: str  # accept, junk or refuse
    reason: str
    level_score: int  # 0 to 100


class StorableScan(Protocol):
    """The result of the scanners for a message."""

    @property
    def symbols(self) -> Sequence[object]:
        """The tests that matched."""

    def json_to_store(self) -> Mapping[str, Any] | None:
        """Return the result as JSON, None if it says nothing."""


@dataclass(slots=True)
class CheckedMessage:
    """A message that the spam check has seen, as far as the log names it."""

    sender: str  # of the envelope
    subject: str
    message_id: str | None
    queue_id: str
    client_ip: str | None
    size: int
    scan: StorableScan | None  # None: no scanner ran


def record_verdicts(
    environment: Environment,
    checked: CheckedMessage,
    recipients_by_verdict: Mapping[VerdictEntry, Sequence[str]],
) -> None:
    """Write an entry about each verdict, which is about recipients of one domain only."""
    count = len(recipients_by_verdict)
    size = ENTRY_SIZE * count + len(checked.subject)
    size += RECIPIENT_SIZE * sum(map(len, recipients_by_verdict.values()))
    if checked.scan is not None:
        size += SYMBOL_SIZE * len(checked.scan.symbols)
    entries = _verdict_entries(environment.now(), checked, recipients_by_verdict)
    environment.logs.record_unbuilt(entries, count, size)


def _verdict_entries(
    at: datetime,
    checked: CheckedMessage,
    recipients_by_verdict: Mapping[VerdictEntry, Sequence[str]],
) -> Iterator[NewLogEntry]:
    scan = (checked.scan.json_to_store() if checked.scan is not None else None) or {}
    for verdict, recipients in recipients_by_verdict.items():
        fields = {
            "type": "verdict",
            "action": verdict.action,
            "reason": str(verdict.reason),
            "verdictScore": verdict.level_score,
            "score": scan.get("score"),
            "requiredScore": scan.get("required"),
            "scannerAction": scan.get("action") or None,
            "symbols": scan.get("symbols") or [],
            "virus": scan.get("virus"),
            "sender": checked.sender,
            "recipients": recipients,
            "subject": checked.subject,
            "ip": checked.client_ip,
            "size": checked.size,
        }
        yield NewLogEntry(
            at,
            LogComponent.SPAM,
            LogLevel.INFO,
            SPAM_PROGRAM,
            f"{verdict.action}: {', '.join(recipients)} ({verdict.reason.lower()})",
            fields,
            domain_id=verdict.domain_id,
            queue_id=checked.queue_id,
            message_id=checked.message_id,
        )


@dataclass(frozen=True, slots=True)
class LimitedMessage:
    """A message that a limit refused, as far as it is known then. All texts are unchecked."""

    sender: str | None = None  # of the envelope
    recipients: Sequence[str] = ()
    subject: str | None = None
    message_id: str | None = None


UNKNOWN_MESSAGE = LimitedMessage()


@dataclass(frozen=True, slots=True)
class ReachedLimitEntry:
    """A limit that refused or delayed a message of a user."""

    user_id: int
    limit_name: str
    allowed: int
    resets_at: datetime | None
    client_ip: str | None = None
    correlation_id: str | None = None
    message: LimitedMessage = UNKNOWN_MESSAGE


def record_limited_message(environment: Environment, limit: ReachedLimitEntry) -> None:
    """Write an entry about a message that a limit refused or delayed."""
    if not environment.logs.is_recorded(LogComponent.RATE_LIMIT, LogLevel.WARNING):
        return
    fields = {
        "type": "limit",
        "limitName": limit.limit_name,
        "allowed": limit.allowed,
        "resetsAt": limit.resets_at.isoformat() if limit.resets_at else None,
        "ip": limit.client_ip,
        "sender": limit.message.sender,
        "recipients": list(limit.message.recipients),
        "subject": limit.message.subject,
    }
    environment.logs.enqueue_or_drop_entry(
        NewLogEntry(
            environment.now(),
            LogComponent.RATE_LIMIT,
            LogLevel.WARNING,
            LIMITS_PROGRAM,
            f"Message refused by the limit {limit.limit_name}",
            fields,
            user_id=limit.user_id,
            message_id=limit.message.message_id,
            correlation_id=limit.correlation_id,
        )
    )
