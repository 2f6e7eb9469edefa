"""Reference rows: what needs a blob says so, and the blob is there."""

from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, literal, select
from sqlmodel import col

from mail.verify.checks import Check, Rule
from mail.verify.queue import OPEN
from models.blobs import Blob, MessageBlob, SubmissionBlob
from models.columns import table_of
from models.messages import Message
from models.queue import Delivery
from models.submission import Submission

SUBJECT = "blobs"


def checks() -> list[Check]:
    """All checks of reference rows. What was lost with them cannot be told from SQL alone."""
    return [_messages(), _submissions()]


def under_way() -> ColumnElement[bool]:
    """That a submission has a recipient to whom it is not yet delivered."""
    mine = col(Delivery.submission_id) == col(Submission.id)
    return exists().where(mine, col(Delivery.state).in_(OPEN))


def _messages() -> Check:
    lost = select(func.count()).where(
        col(MessageBlob.message_id) == col(Message.id), ~_exists(MessageBlob)
    )
    rules = {
        "root_reference": Rule(
            literal("there"),
            _there(
                exists().where(
                    col(MessageBlob.message_id) == col(Message.id),
                    col(MessageBlob.blob_id) == col(Message.blob_id),
                )
            ),
        ),
        "root": Rule(
            literal("there"), _there(exists().where(col(Blob.id) == col(Message.blob_id)))
        ),
        "lost_references": Rule(literal(0), lost.scalar_subquery()),
    }
    table = table_of(Message)
    return Check(SUBJECT, Message, rules, table, col(Message.user_id))


def _submissions() -> Check:
    lost = select(func.count()).where(
        col(SubmissionBlob.submission_id) == col(Submission.id), ~_exists(SubmissionBlob)
    )
    rules = {
        "root_reference": Rule(
            literal("there"),
            _there(
                exists().where(
                    col(SubmissionBlob.submission_id) == col(Submission.id),
                    col(SubmissionBlob.blob_id) == col(Submission.blob_id),
                )
            ),
        ),
        "root": Rule(
            literal("there"), _there(exists().where(col(Blob.id) == col(Submission.blob_id)))
        ),
        "lost_references": Rule(literal(0), lost.scalar_subquery()),
    }
    table = table_of(Submission)
    where = [under_way()]
    return Check(SUBJECT, Submission, rules, table, col(Submission.user_id), where)


def _exists(reference: type[MessageBlob] | type[SubmissionBlob]) -> ColumnElement[bool]:
    return exists().where(col(Blob.id) == col(reference.blob_id))


def _there(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return case((condition, "there"), else_="missing")
