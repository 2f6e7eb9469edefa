"""Checks of reference rows: each owner of a blob has one, and the blob exists."""

from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, literal, select
from sqlmodel import col

from mail.consistency.checks import Check, Rule
from mail.consistency.queue_entries import OPEN
from models.events.journal import PLATFORM
from models.files.blobs import Blob, MessageBlob, SubmissionBlob
from models.messages.tables import Message
from models.queue.tables import Delivery
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import table_of
from models.submission.tables import Submission

SUBJECT = "blobs"


def checks() -> list[Check]:
    """All checks of reference rows. They have no repair: SQL cannot tell the lost references."""
    return [
        _of(Message, MessageBlob, col(MessageBlob.message_id)),
        _of(Submission, SubmissionBlob, col(SubmissionBlob.submission_id), under_way()),
        _of(QuarantineItem, QuarantineBlob, col(QuarantineBlob.item_id)),
    ]


def under_way() -> ColumnElement[bool]:
    """SQL: true if a submission has a recipient that is not yet delivered."""
    mine = col(Delivery.submission_id) == col(Submission.id)
    return exists().where(mine, col(Delivery.state).in_(OPEN))


def _of(table: Any, blobs: Any, key: Any, *where: ColumnElement[bool]) -> Check:
    """The check of an owner table and its reference rows, which name the owner in `owner_id`."""
    mine = key == col(table.id)
    lost = select(func.count()).where(mine, ~_exists(blobs))
    known = exists().where(mine, col(blobs.blob_id) == col(table.blob_id))
    rules = {
        "root_reference": Rule(literal("there"), _there(known)),
        "root": Rule(literal("there"), _there(exists().where(col(Blob.id) == col(table.blob_id)))),
        "lost_references": Rule(literal(0), lost.scalar_subquery()),
    }
    stream = func.coalesce(col(table.user_id), PLATFORM)
    return Check(SUBJECT, table, rules, table_of(table), stream, list(where))


def _there(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return case((condition, "there"), else_="missing")


def _exists(reference: Any) -> ColumnElement[bool]:
    return exists().where(col(Blob.id) == col(reference.blob_id))
