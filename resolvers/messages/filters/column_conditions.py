"""SQL conditions of message filters on the columns of a message."""

import json
import re
from typing import Any

from sqlalchemy import ColumnElement, String, cast, func, not_, select
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlmodel import col

from mail.storage.blobs.tier_move import is_in_tier
from mail.storage.message_flags import FORWARDED_KEYWORD, fold_keyword
from models.errors import InvalidInput
from models.files.blobs import Blob, StorageTier
from models.messages.tables import Message
from models.store.columns import core_table
from models.store.text_folding import AsciiLower
from models.submission.tables import Submission
from models.validation_constraints import ValidationConstraint
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.sql_text import contains_text_sql

MAX_EMAIL_IDS = 1000
EMAIL_ID_PATTERN = re.compile("[0-9a-fA-F]{32}")
MAX_MESSAGE_ID = (1 << 63) - 1  # of a 64-bit ID
FLAG_COLUMNS = ("seen", "flagged", "answered", "draft", "deleted")
RECIPIENT_COLUMNS = {
    "to": (Message.to,),
    "to_or_cc": (Message.to, Message.cc),
    "cc": (Message.cc,),
    "bcc": (Message.bcc,),
    "any_recipient": (Message.to, Message.cc, Message.bcc, Message.envelope_to),
}
TIME_COLUMNS = {
    "received": col(Message.listed_at),
    "sent": col(Message.date),
    "saved": col(Message.saved_at),
    "expires": col(Message.expires_at),
}
_NOT = custom_op[Any]("NOT")  # as in the index of unseen messages: SQLite compares the SQL text


def people_text_sql(*columns: Any) -> ColumnElement[str]:
    """Build one SQL text of all people in these columns. A missing name is not the text "null"."""
    listed: list[Any] = [
        func.replace(cast(col(column), String), "[null,", "[", type_=String) for column in columns
    ]
    text_sql: ColumnElement[str] = listed[0]
    for column in listed[1:]:
        text_sql = text_sql + column
    return text_sql


def text_conditions(message_conditions: MessageConditions) -> list[ColumnElement[bool]]:
    """Build the conditions on senders, recipients, subject, list and message identifiers.

    Raises InvalidInput for a malformed EMAILID.
    """
    terms: list[ColumnElement[bool]] = []
    if message_conditions.from_:
        name, address = col(Message.from_name), col(Message.from_address)
        sender = func.coalesce(name, "") + " " + func.coalesce(address, "")
        terms.append(contains_text_sql(sender, message_conditions.from_))
    for field_, columns in RECIPIENT_COLUMNS.items():
        if value := getattr(message_conditions, field_):
            terms.append(contains_text_sql(people_text_sql(*columns), _json_text(value)))
    if message_conditions.subject:
        terms.append(contains_text_sql(col(Message.subject), message_conditions.subject))
    if message_conditions.list_id:
        stored_value: Any = col(Message.mailing_list)
        terms.append(
            contains_text_sql(
                func.coalesce(stored_value["id"].as_string(), ""), message_conditions.list_id
            )
        )
    if message_conditions.message_id_header:
        terms.append(col(Message.message_id) == message_conditions.message_id_header)
    if message_conditions.email_ids is not None:
        terms.append(
            col(Message.id).in_(
                [
                    message_id_from_email_id_or_raise(text, nth)
                    for nth, text in enumerate(message_conditions.email_ids)
                ]
            )
        )
    return terms


def message_id_from_email_id_or_raise(text: str, index: int) -> int:
    """Return the message ID that an EMAILID encodes. Raises InvalidInput."""
    if index >= MAX_EMAIL_IDS:
        raise InvalidInput(
            f"At most {MAX_EMAIL_IDS} email IDs are allowed.",
            constraint=ValidationConstraint.MAX,
            path=["filter", "emailIds"],
        )
    if not EMAIL_ID_PATTERN.fullmatch(text):
        error_text = "An EMAILID must have 32 hexadecimal digits."
        raise InvalidInput(
            error_text,
            constraint=ValidationConstraint.PATTERN,
            path=["filter", "emailIds"],
            index=index,
        )
    return min(int(text, 16), MAX_MESSAGE_ID)


def _json_text(text: str) -> str:
    """Return the text in its form inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def flag_conditions(message_conditions: MessageConditions) -> list[ColumnElement[bool]]:
    """Build the conditions on flags, keywords and other properties that a message has or not."""
    terms: list[Any] = []
    for name in FLAG_COLUMNS:
        value = getattr(message_conditions, name)
        if value is not None:
            flag: Any = col(getattr(Message, name))
            terms.append(flag.is_(True) if value else UnaryExpression(flag, operator=_NOT))
    if message_conditions.keyword:
        terms.append(_has_keyword_sql(message_conditions.keyword))
    if message_conditions.forwarded is not None:
        forwarded = _has_keyword_sql(FORWARDED_KEYWORD)
        terms.append(forwarded if message_conditions.forwarded else not_(forwarded))
    if message_conditions.snoozed is not None:
        until = col(Message.snoozed_until)
        terms.append(until.is_not(None) if message_conditions.snoozed else until.is_(None))
    if message_conditions.submission_states is not None:
        sent_submissions = select(col(Submission.id)).where(
            col(Submission.message_id) == col(Message.id),
            col(Submission.state).in_(message_conditions.submission_states),
        )
        terms.append(sent_submissions.correlate(Message).exists())
    if message_conditions.tier is not None:
        is_blob_of_message = col(Blob.id) == col(Message.blob_id)
        cold_blobs = (
            select(col(Blob.id))
            .where(is_blob_of_message, is_in_tier(cold=True))
            .correlate(Message)
            .exists()
        )
        terms.append(
            cold_blobs if message_conditions.tier is StorageTier.COLD else not_(cold_blobs)
        )
    if message_conditions.has_attachment is not None:
        terms.append(
            has_attachments_sql()
            if message_conditions.has_attachment
            else not_(has_attachments_sql())
        )
    return terms


def _has_keyword_sql(keyword: str) -> ColumnElement[bool]:
    """Build the condition that a message has a keyword. ASCII letters are compared without case."""
    keywords = AsciiLower(cast(col(Message.keywords), String))
    quoted = f'"{_json_text(fold_keyword(keyword))}"'
    return keywords.contains(quoted, autoescape=True)


def has_attachments_sql() -> ColumnElement[bool]:
    """Build the condition that a message has attachments."""
    return col(Message.attachment_count) > 0


def range_conditions(message_conditions: MessageConditions) -> list[ColumnElement[bool]]:
    """Build the conditions on times, size and MODSEQ."""
    terms: list[ColumnElement[bool]] = []
    for name, moment in TIME_COLUMNS.items():
        if since := getattr(message_conditions, f"{name}_since", None):
            terms.append(moment >= since)
        if before := getattr(message_conditions, f"{name}_before"):
            terms.append(moment < before)
    if message_conditions.larger is not None:
        terms.append(col(Message.size) > message_conditions.larger)
    if message_conditions.smaller is not None:
        terms.append(col(Message.size) < message_conditions.smaller)
    if message_conditions.modified_since is not None:
        terms.append(col(Message.modseq) > message_conditions.modified_since)
    return terms


def highest_uid_sql() -> Any:
    """Build the highest UID in the mailbox of a message, as a correlated subquery."""
    other = core_table(Message).alias("other")
    return (
        select(func.max(other.c.uid))
        .where(other.c.mailbox_id == col(Message.mailbox_id))
        .correlate(Message)
        .scalar_subquery()
    )
