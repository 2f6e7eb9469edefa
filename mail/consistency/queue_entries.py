"""Checks of the queue: the state of submissions, and that open entries are retried."""

from typing import Any

from sqlalchemy import ColumnElement, Subquery, case, func, literal, select
from sqlmodel import col

from mail.consistency.checks import ConsistencyCheck, EqualityRule, is_in_key_range, whole_sum
from mail.consistency.repair import expected_values_repair
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.queue.tables import DeliveryState, QueueEntry
from models.store.columns import core_table
from models.submission.tables import Submission, SubmissionState

SUBJECT = "queue"
OPEN_STATES = (DeliveryState.PENDING, DeliveryState.DEFERRED)
DELIVERED_STATES = (DeliveryState.DELIVERED, DeliveryState.RELAYED)
UNFINISHED_STATES = (
    SubmissionState.SCHEDULED,
    SubmissionState.UNDOABLE,
    SubmissionState.QUEUED,
    SubmissionState.SENDING,
)


def queue_checks() -> list[ConsistencyCheck]:
    """All checks of the queue."""
    return [_submission_state_check(), _next_attempt_check()]


def _submission_state_check() -> ConsistencyCheck:
    counted = (
        select(
            col(QueueEntry.submission_id).label("submission_id"),
            func.count().label("every"),
            _count_in_states(*OPEN_STATES).label("open"),
            _count_in_states(*DELIVERED_STATES).label("there"),
            _count_in_states(DeliveryState.CANCELLED).label("cancelled"),
            func.max(col(QueueEntry.attempts)).label("attempts"),
        )
        .where(is_in_key_range(col(QueueEntry.submission_id)))
        .group_by(col(QueueEntry.submission_id))
        .subquery()
    )
    is_unfinished = col(Submission.state).in_(UNFINISHED_STATES)
    expected_state = case((is_unfinished & counted.c.every.is_(None), "some"), else_="any")
    table = core_table(Submission)
    return ConsistencyCheck(
        SUBJECT,
        Submission,
        {
            "state": EqualityRule(
                _state_from_deliveries(counted), col(Submission.state), is_repairable=True
            ),
            "deliveries": EqualityRule(expected_state, literal("any")),
        },
        table.outerjoin(counted, counted.c.submission_id == table.c.id),
        func.coalesce(col(Submission.user_id), PLATFORM),
        repair=expected_values_repair(EventType.SUBMISSION_UPDATED),
    )


def _count_in_states(*states: DeliveryState) -> ColumnElement[int]:
    return whole_sum(case((col(QueueEntry.state).in_(states), 1), else_=0))


def _state_from_deliveries(counted: Subquery) -> ColumnElement[Any]:
    """SQL: the state that follows from the queue entries.

    While an entry is open, several states are possible.
    """
    state = col(Submission.state)

    def state_literal(value: SubmissionState) -> ColumnElement[Any]:
        return literal(value, core_table(Submission).c.state.type)

    begun = case(
        (state.in_(UNFINISHED_STATES), state),
        (counted.c.attempts > 0, state_literal(SubmissionState.SENDING)),
        else_=state_literal(SubmissionState.QUEUED),
    )
    return case(
        (counted.c.every.is_(None), state),
        (counted.c.open > 0, begun),
        (counted.c.cancelled == counted.c.every, state_literal(SubmissionState.CANCELLED)),
        (counted.c.there == counted.c.every, state_literal(SubmissionState.SENT)),
        (counted.c.there > 0, state_literal(SubmissionState.PARTIAL)),
        else_=state_literal(SubmissionState.FAILED),
    )


def _next_attempt_check() -> ConsistencyCheck:
    """The check that each open queue entry has a time of its next attempt."""
    planned = case((col(QueueEntry.next_at).is_not(None), "planned"), else_="never")
    return ConsistencyCheck(
        SUBJECT,
        QueueEntry,
        {"next_attempt": EqualityRule(literal("planned"), planned)},
        core_table(QueueEntry),
        func.coalesce(col(QueueEntry.user_id), PLATFORM),
        [col(QueueEntry.state).in_(OPEN_STATES)],
    )
