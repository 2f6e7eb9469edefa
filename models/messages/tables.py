"""Tables of messages, threads and delivery receipts."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
    json_column,
)

# Columns by the name of their indexes. `messages_deleted` has messages without a mailbox.
FLAGS_WITH_INDEXES = {
    "flagged": "flagged",
    "answered": "answered",
    "draft": "draft",
    "marked_deleted": "deleted",
}


def _index_condition(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _true_condition(column: str) -> dict[str, Any]:
    """Return the condition as SQLAlchemy writes it in a select, since SQLite compares the texts."""
    return {
        "sqlite_where": text(f"{column} IS 1"),
        "postgresql_where": text(f"{column} IS true"),
    }


def _state_indexes(name: str, condition: dict[str, Any]) -> tuple[Index, Index]:
    """Return the indexes of the messages in a state: of a mailbox, and of all of a user's.

    The column `deleted_at` is constant in lists: without it, SQLite might choose another index of
    the user.
    """
    return (
        Index(f"messages_{name}", "mailbox_id", "listed_at", "id", **condition),
        Index(f"messages_{name}_of_user", "user_id", "deleted_at", "listed_at", "id", **condition),
    )


def _received_at(inserted: Any) -> datetime:
    at: datetime = inserted.get_current_parameters()["received_at"]
    return at


class MessageRelationKind(StrEnum):
    """How a message is related to the message that it replies to or forwards."""

    REPLY = "REPLY"
    REPLY_ALL = "REPLY_ALL"
    FORWARD = "FORWARD"


class Message(UserOwnedRow, table=True):
    """A message. Pages are in descending order of (listed_at, id).

    Its id never changes. A message without a mailbox is a deleted message, which can be restored
    until `purge_at`. The row has all that lists show; the bytes are in the blob `blob_id` and in
    those of its reference rows.
    """

    __tablename__ = "messages"
    __table_args__ = (
        Index("messages_by_age", "mailbox_id", "listed_at", "id"),
        Index("messages_by_uid", "mailbox_id", "uid", unique=True),
        *_state_indexes("unseen", _index_condition("NOT seen")),
        *(
            index
            for name, flag in FLAGS_WITH_INDEXES.items()
            for index in _state_indexes(name, _true_condition(flag))
        ),
        Index("messages_by_message_id", "user_id", "message_id"),
        Index(
            "messages_of_user",
            "user_id",
            "listed_at",
            "id",
            **_index_condition("deleted_at IS NULL"),
        ),
        Index("messages_to_index", "id", **_index_condition("NOT indexed")),
        # with a constant column: otherwise SQLite might choose another index of the user
        Index("messages_waiting", "user_id", "indexed", "id", **_index_condition("NOT indexed")),
        Index(
            "messages_deleted",
            "user_id",
            "deleted_at",
            "id",
            **_index_condition("deleted_at IS NOT NULL"),
        ),
        Index("messages_to_purge", "purge_at", **_index_condition("purge_at IS NOT NULL")),
        Index("messages_to_expire", "expires_at", **_index_condition("expires_at IS NOT NULL")),
        Index("messages_to_wake", "snoozed_until", **_index_condition("snoozed_until IS NOT NULL")),
        # with a constant column, as above
        Index(
            "messages_snoozed",
            *("user_id", "deleted_at", "listed_at", "id"),
            **_index_condition("snoozed_until IS NOT NULL"),
        ),
        Index(
            "messages_with_keywords",
            "user_id",
            "deleted_at",
            **_index_condition("keywords <> '[]'"),
        ),
    )

    mailbox_id: int | None = foreign_key(
        "mailboxes.id", index=False, ondelete="RESTRICT", default=None
    )
    uid: Int64
    modseq: Int64
    thread_id: int = foreign_key("threads.id", ondelete="RESTRICT")
    blob_id: Int64  # the message without large attachments; a reference row keeps it
    sha256: str  # SHA-256 of the whole message, hex
    received_at: Timestamp
    # its time in lists: the arrival, or the end of the snooze
    listed_at: datetime = Field(sa_type=UtcDateTime, sa_column_kwargs={"default": _received_at})
    saved_at: Timestamp  # when it was put into this mailbox
    date: OptionalTimestamp = None
    expires_at: OptionalTimestamp = None
    snoozed_until: OptionalTimestamp = None  # it is in the SNOOZED mailbox until then
    snoozed_from: OptionalInt64 = None  # the mailbox it returns to, which may be deleted
    size: Int64  # bytes, as received
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    deleted: bool = False
    keywords: list[str] = json_column(list)
    subject: str = ""
    from_name: str | None = None
    from_address: str | None = None
    sender: list[str | None] | None = json_column()  # [name, address], if it is not From
    reply_to: list[list[str | None]] = json_column(list)
    to: list[list[str | None]] = json_column(list)
    cc: list[list[str | None]] = json_column(list)
    bcc: list[list[str | None]] = json_column(list)
    message_id: str | None = None
    in_reply_to: str | None = None
    references: list[str] = json_column(list)
    mailing_list: dict[str, Any] | None = json_column()  # id, unsubscribe, url, one_click, signers
    preview: str = ""  # at most 255 characters of text
    content_type: str = "text/plain"
    content_params: dict[str, str] = json_column(dict)
    encrypted: bool = False
    attachment_count: Int64 = 0
    attachments: list[dict[str, Any]] = json_column(list)
    mime_structure: bytes = Field(sa_type=LargeBinary)  # the MIME tree: mail/messages
    envelope_from: str | None = None  # None: it was not received over SMTP
    envelope_to: list[str] = json_column(list)
    public_metadata: dict[str, Any] | None = json_column()
    # spf, dkim, dmarc, arc, results; on arrival
    authentication: dict[str, Any] | None = json_column()
    # results of scanners: score, required, action, symbols [name, score, description], virus
    spam_report: dict[str, Any] | None = json_column()
    filters: list[int] | None = json_column()  # that acted on it at delivery; they may be deleted
    # targets it was forwarded to at delivery, without passwords; None: none
    forwarded_to: list[str] | None = json_column()
    source_id: OptionalInt64 = None  # the message it replies to or forwards, which may be deleted
    source_relation: str | None = None
    deleted_at: OptionalTimestamp = None
    deleted_from: str | None = None  # path of the mailbox it was deleted from
    deleted_mailbox_id: OptionalInt64 = None  # that mailbox, which may be deleted
    purge_at: OptionalTimestamp = None
    indexed: bool = False  # its words are in the text index


class Thread(UserOwnedRow, table=True):
    """The messages of one conversation."""

    __tablename__ = "threads"

    subject: str = ""  # of its first message
    created_at: Timestamp
    muted: bool = False  # its new messages are stored as seen


class ThreadKey(SQLModel, table=True):
    """A Message-ID with a normalized subject, and the thread it belongs to."""

    __tablename__ = "thread_keys"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    key: str = Field(primary_key=True)  # hash: mail/messages
    thread_id: int = foreign_key("threads.id")


class DeliveryReceipt(SQLModel, table=True):
    """A finished delivery, kept for a day: it identifies a repeat after a lost reply."""

    __tablename__ = "delivery_receipts"

    digest: str = Field(primary_key=True)  # of envelope sender, recipient, whole message
    message_id: Int64
    at: datetime = Field(sa_type=UtcDateTime, index=True)
