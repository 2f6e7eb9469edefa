"""The schedule of a new submission: send time and undo window."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.submission.tables import SubmissionState
from models.validation_constraints import ValidationConstraint
from resolvers.submission.outgoing_messages import SendRequest, future_send_at_within_limit

MAX_UNDO_WINDOW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SubmissionSchedule:
    """When a submission is first sent, its state until then, and the end of its undo window."""

    first_attempt_at: datetime
    state: SubmissionState
    undoable_until: datetime | None


def validated_schedule(environment: Environment, request: SendRequest) -> SubmissionSchedule:
    """Return the schedule of a new submission.

    Raises InvalidInput if the undo window is longer than a day.
    """
    now, scheduled_at = environment.now(), future_send_at_within_limit(environment, request)
    undo_window = request.undo_window or timedelta()
    if not timedelta() <= undo_window <= MAX_UNDO_WINDOW:
        raise InvalidInput(
            "`undoWindow` must be from PT0S to P1D.",
            constraint=ValidationConstraint.RANGE,
            path=["undoWindow"],
        )
    undoable_until = now + undo_window if undo_window else None
    if scheduled_at:
        first_attempt_at = max(scheduled_at, undoable_until or scheduled_at)
        return SubmissionSchedule(first_attempt_at, SubmissionState.SCHEDULED, undoable_until)
    if undoable_until:
        return SubmissionSchedule(undoable_until, SubmissionState.UNDOABLE, undoable_until)
    return SubmissionSchedule(now, SubmissionState.QUEUED, None)


def is_held(environment: Environment, request: SendRequest) -> bool:
    """True if the message is sent later: at a scheduled time, or after its undo window."""
    return validated_schedule(environment, request).state is not SubmissionState.QUEUED
