"""Checks of the queue: the state of submissions, and that open entries are retried."""

from typing import Any

from sqlalchemy import ColumnElement, Subquery, case, func, literal, select
from sqlmodel import col

from mail.consistency.checks import Check, Rule, total, within
from mail.consistency.repair import rewriting
from models.events.journal import PLATFORM, ChangeKind
from models.queue.tables import Delivery, DeliveryState
from models.store.columns import table_of
from models.submission.tables import Submission, SubmissionState

SUBJECT = "queue"
OPEN = (DeliveryState.PENDING, DeliveryState.DEFERRED)
THERE = (DeliveryState.DELIVERED, DeliveryState.RELAYED)
GOING = (
    SubmissionState.SCHEDULED,
    SubmissionState.HELD_FOR_UNDO,
    SubmissionState.QUEUED,
    SubmissionState.SENDING,
)


def checks() -> list[Check]:
    """All checks of the queue."""
    return [_states(), _dates()]


def _states() -> Check:
    counted = (
        select(
            col(Delivery.submission_id).label("submission_id"),
            func.count().label("every"),
            _many(*OPEN).label("open"),
            _many(*THERE).label("there"),
            _many(DeliveryState.CANCELLED).label("cancelled"),
            func.max(col(Delivery.attempts)).label("attempts"),
        )
        .where(within(col(Delivery.submission_id)))
        .group_by(col(Delivery.submission_id))
        .subquery()
    )
    going = col(Submission.state).in_(GOING)
    lost = case((going & counted.c.every.is_(None), "some"), else_="any")
    table = table_of(Submission)
    return Check(
        SUBJECT,
        Submission,
        {
            "state": Rule(_summed(counted), col(Submission.state), cured=True),
            "deliveries": Rule(lost, literal("any")),
        },
        table.outerjoin(counted, counted.c.submission_id == table.c.id),
        func.coalesce(col(Submission.user_id), PLATFORM),
        cure=rewriting(ChangeKind.SUBMISSION_CHANGED),
    )


def _many(*states: DeliveryState) -> ColumnElement[int]:
    return total(case((col(Delivery.state).in_(states), 1), else_=0))


def _summed(counted: Subquery) -> ColumnElement[Any]:
    """SQL: the state that follows from the queue entries.

    While an entry is open, several states are possible.
    """
    state = col(Submission.state)

    def named(value: SubmissionState) -> ColumnElement[Any]:
        return literal(value, table_of(Submission).c.state.type)

    begun = case(
        (state.in_(GOING), state),
        (counted.c.attempts > 0, named(SubmissionState.SENDING)),
        else_=named(SubmissionState.QUEUED),
    )
    return case(
        (counted.c.every.is_(None), state),
        (counted.c.open > 0, begun),
        (counted.c.cancelled == counted.c.every, named(SubmissionState.CANCELLED)),
        (counted.c.there == counted.c.every, named(SubmissionState.SENT)),
        (counted.c.there > 0, named(SubmissionState.PARTIAL)),
        else_=named(SubmissionState.FAILED),
    )


def _dates() -> Check:
    """The check that each open queue entry has a time of its next attempt."""
    planned = case((col(Delivery.next_at).is_not(None), "planned"), else_="never")
    return Check(
        SUBJECT,
        Delivery,
        {"next_attempt": Rule(literal("planned"), planned)},
        table_of(Delivery),
        func.coalesce(col(Delivery.user_id), PLATFORM),
        [col(Delivery.state).in_(OPEN)],
    )
