"""The delivery trace: the steps of messages, collected and written after the deliveries.

Steps wait in memory for a second and are written together, so that a delivery doesn't wait for
them. The steps of a second are lost if the process ends or the database fails, and steps that
exceed MAX_WAITING. Both are counted.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import insert

from mail.addresses.address_syntax import normalized_address
from mail.logs.message_entries import record_trace_steps
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable
from models.logs.entries import LogComponent
from models.messages.message_trace import DeliveryTraceEventKind, DeliveryTraceStep
from models.observability import metrics
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import core_table
from models.store.database import Database
from models.store.prepared_statements import PreparedStatement, StatementWithValues

log = logging.getLogger(__name__)

WRITE_DELAY = 1.0  # seconds
MAX_WAITING = 10_000  # steps that wait
MAX_TEXT_LENGTH = (
    500  # characters of a Message-ID, and of a detail: an index takes no more on PostgreSQL
)

_INSERT_STEP = PreparedStatement(insert(DeliveryTraceStep).inline())

LOST_STEPS = metrics.counter(
    "merganser_trace_steps_dropped", "Steps of the delivery trace that could not be written."
)


@dataclass
class _PendingSteps:
    """The steps that wait to be written, with the timer and tasks that write them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    lost_count: int = 0  # steps that could not be written


@lru_cache(maxsize=4)
def _pending_steps(_database: Database) -> _PendingSteps:
    """The steps that wait to be written into this database."""
    return _PendingSteps()


@dataclass
class TraceRecorder:
    """A recorder of the delivery trace of one received message."""

    queue_id: str = ""
    sender: str = ""  # of the envelope
    steps: list[dict[str, Any]] = field(default_factory=list)

    def record_step(  # noqa: PLR0913 - the columns of a step
        self,
        environment: Environment,
        event: DeliveryTraceEventKind,
        recipient: tuple[str, int | None],
        detail: str | None = None,
        *,
        component: LogComponent = LogComponent.MTA,
        stored_message_id: int | None = None,
    ) -> None:
        """Record a step for a recipient: its address, and the id of the domain that can read it."""
        address, domain_id = recipient
        self.steps.append(
            {
                "id": environment.new_id(),
                "at": environment.now(),
                "component": component,
                "event": event,
                "detail": detail,
                "address": address,
                "domain_id": domain_id,
                "submission_id": None,
                "stored_message_id": stored_message_id,
            }
        )

    def schedule_write(self, environment: Environment, message: StorableMessage) -> None:
        """Write the recorded steps in the background, and to the log store."""
        rows = self._take_rows(message)
        record_trace_steps(environment, rows)
        _enqueue_or_drop_steps(environment, rows)

    def write_in_transaction(
        self, transaction: DatabaseTransaction, message: StorableMessage
    ) -> None:
        """Write the recorded steps now, in a transaction that nothing else waits for."""
        rows = self._take_rows(message)
        if transaction.environment.options.message_trace_retention and rows:
            transaction.connection.execute(insert(core_table(DeliveryTraceStep)), rows)

    def _take_rows(self, message: StorableMessage) -> list[dict[str, Any]]:
        """Remove the recorded steps and return their rows."""
        columns = {"queue_id": self.queue_id, "message_id": stored_text(message.facts.message_id)}
        columns |= _sender_columns(self.sender)
        steps, self.steps = self.steps, []
        return [
            {
                **step,
                **columns,
                **_recipient_columns(step["address"]),
                "detail": stored_text(step["detail"]),
            }
            for step in steps
        ]


def new_queue_id(environment: Environment) -> str:
    """A new queue id for a received message."""
    return environment.random_bytes(10).hex()


def stored_text(text: str | None) -> str | None:
    """The stored and searched form of a text, shortened to MAX_TEXT_LENGTH."""
    clean_text: str | None = make_storable(text[:MAX_TEXT_LENGTH]) if text else None
    return clean_text


def search_key(address: str) -> str | None:
    """The form in which the addresses of steps are stored and searched."""
    return stored_text("@".join(normalized_address(address)))


def _sender_columns(address: str) -> dict[str, str | None]:
    """The columns of an envelope sender; without values if it is empty."""
    key = search_key(address) if address else None
    return {
        "sender": stored_text(address),
        "normalized_sender_address": key,
        "sender_domain": _domain_of(key),
    }


def _recipient_columns(address: str) -> dict[str, str | None]:
    """The columns of a recipient."""
    key = search_key(address)
    return {
        "address": stored_text(address),
        "normalized_address": key,
        "recipient_domain": _domain_of(key),
    }


def _domain_of(normalized_address: str | None) -> str | None:
    """The domain of a normalized address; None if it has none."""
    return normalized_address.rpartition("@")[2] or None if normalized_address else None


def submission_step_statements(
    environment: Environment, submission: Mapping[str, Any], recipients: Iterable[str]
) -> list[StatementWithValues]:
    """The inserts of one step for each recipient, for the transaction that queues a submission.

    `deliveryTrace` with a queue ID or Message-ID reads the submission itself, and only finds it by
    these steps.
    """
    if not environment.options.message_trace_retention:
        return []
    shared = {
        "at": environment.now(),
        "queue_id": submission["queue_id"],
        "message_id": submission["header_id"],
        "component": LogComponent.MTA,
        "event": (
            DeliveryTraceEventKind.QUEUED
            if submission["copy_of"] is None
            else DeliveryTraceEventKind.COPIED
        ),
        "submission_id": submission["id"],
        "stored_message_id": submission["message_id"],
        **_sender_columns(submission["envelope_from"]),
    }
    return [
        (_INSERT_STEP, {"id": environment.new_id(), **shared, **_recipient_columns(address)})
        for address in dict.fromkeys(recipients)
    ]


def _enqueue_or_drop_steps(environment: Environment, rows: Sequence[dict[str, Any]]) -> None:
    """Queue steps to be written soon. Steps beyond MAX_WAITING are counted and dropped."""
    if not (environment.options.message_trace_retention and rows):
        return
    waiting = _pending_steps(environment.database)
    room = max(0, MAX_WAITING - len(waiting.rows))
    if len(rows) > room:
        LOST_STEPS.add(amount=len(rows) - room)
        log.warning(
            "Message trace steps dropped; the queue is full", extra={"rows": len(rows) - room}
        )
    waiting.rows += rows[:room]
    if waiting.timer is None:
        loop = asyncio.get_running_loop()
        waiting.timer = loop.call_later(WRITE_DELAY, _start_writing_pending, environment, waiting)


def _start_writing_pending(environment: Environment, pending: _PendingSteps) -> None:
    pending.timer = None
    task = asyncio.create_task(_write_pending_or_log_loss(environment, pending))
    pending.tasks.add(task)
    task.add_done_callback(pending.tasks.discard)


async def _write_pending_or_log_loss(environment: Environment, pending: _PendingSteps) -> None:
    """Write the queued steps. If that fails, they are lost, counted and logged."""
    rows, pending.rows = pending.rows, []
    if not rows:
        return

    def insert_steps(transaction: DatabaseTransaction) -> None:
        transaction.connection.execute(insert(core_table(DeliveryTraceStep)), rows)

    try:
        await environment.run_transaction(insert_steps)
    except (
        Exception
    ):  # outermost code of a task: the message is stored, and later steps must be written
        LOST_STEPS.add(amount=len(rows))
        pending.lost_count += len(rows)
        log.exception("Could not write message trace steps", extra={"rows": len(rows)})


async def write_pending_trace_steps(environment: Environment) -> None:
    """Write all waiting steps: before they are read here, and before the database is closed."""
    waiting = _pending_steps(environment.database)
    if waiting.timer is not None:
        waiting.timer.cancel()
        waiting.timer = None
    await asyncio.gather(_write_pending_or_log_loss(environment, waiting), *waiting.tasks)


@dataclass(frozen=True, slots=True)
class PendingStepCounts:
    """The number of steps that wait to be written, and of those that could not be written."""

    waiting: int
    lost: int  # since the start of the process


def count_pending_trace_steps(environment: Environment) -> PendingStepCounts:
    """Count the steps of the delivery trace that wait in this process."""
    pending = _pending_steps(environment.database)
    return PendingStepCounts(len(pending.rows), pending.lost_count)
