"""Checks of reference rows: each owner of a blob has one, and the blob exists."""

from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, literal, select
from sqlmodel import col

from mail.consistency.checks import ConsistencyCheck, EqualityRule
from mail.consistency.queue_entries import OPEN_STATES
from models.events.journal import PLATFORM
from models.files.blobs import Blob, MessageBlob, SubmissionBlob
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import core_table
from models.submission.tables import Submission

SUBJECT = "blobs"


def missing_reference_checks() -> list[ConsistencyCheck]:
    """All checks of reference rows. They have no repair: SQL cannot tell the lost references."""
    return [
        _reference_check(Message, MessageBlob, col(MessageBlob.message_id)),
        _reference_check(
            Submission, SubmissionBlob, col(SubmissionBlob.submission_id), has_open_queue_entry()
        ),
        _reference_check(QuarantineItem, QuarantineBlob, col(QuarantineBlob.item_id)),
    ]


def has_open_queue_entry() -> ColumnElement[bool]:
    """SQL: true if a submission has a recipient that is not yet delivered."""
    is_of_submission = col(QueueEntry.submission_id) == col(Submission.id)
    return exists().where(is_of_submission, col(QueueEntry.state).in_(OPEN_STATES))


def _reference_check(
    owner_table: Any, reference_table: Any, owner_id: Any, *conditions: ColumnElement[bool]
) -> ConsistencyCheck:
    """The check of an owner table and its reference rows, which name the owner in `owner_id`."""
    is_of_owner = owner_id == col(owner_table.id)
    missing_count = select(func.count()).where(is_of_owner, ~_blob_exists(reference_table))
    is_referenced = exists().where(
        is_of_owner, col(reference_table.blob_id) == col(owner_table.blob_id)
    )
    rules = {
        "root_reference": EqualityRule(literal("there"), _there_or_missing(is_referenced)),
        "root": EqualityRule(
            literal("there"),
            _there_or_missing(exists().where(col(Blob.id) == col(owner_table.blob_id))),
        ),
        "lost_references": EqualityRule(literal(0), missing_count.scalar_subquery()),
    }
    stream = func.coalesce(col(owner_table.user_id), PLATFORM)
    return ConsistencyCheck(
        SUBJECT, owner_table, rules, core_table(owner_table), stream, list(conditions)
    )


def _there_or_missing(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return case((condition, "there"), else_="missing")


def _blob_exists(reference_table: Any) -> ColumnElement[bool]:
    return exists().where(col(Blob.id) == col(reference_table.blob_id))
