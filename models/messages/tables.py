"""Stored mail."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    plain,
    ref,
)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _arrival(inserted: Any) -> datetime:
    at: datetime = inserted.get_current_parameters()["received_at"]
    return at


class Message(Owned, table=True):
    """One message. Pages run newest first, by (listed_at, id).

    A message keeps its id for life. In no mailbox it lies in the archive, from where it
    can be brought back until `purge_at`. Everything a list shows is here; its bytes are
    the blob `blob_id` and those that its reference rows name.
    """

    __tablename__ = "messages"
    __table_args__ = (
        Index("messages_by_age", "mailbox_id", "listed_at", "id"),
        Index("messages_by_uid", "mailbox_id", "uid", unique=True),
        Index("messages_unseen", "mailbox_id", "listed_at", "id", **_where("NOT seen")),
        Index("messages_of_user", "user_id", "listed_at", "id", **_where("archived_at IS NULL")),
        Index("messages_to_index", "id", **_where("NOT indexed")),
        # with a column that is always the same: SQLite would else take just any of an account
        Index("messages_waiting", "user_id", "indexed", "id", **_where("NOT indexed")),
        Index(
            "messages_archived", "user_id", "archived_at", "id", **_where("archived_at IS NOT NULL")
        ),
        Index("messages_to_purge", "purge_at", **_where("purge_at IS NOT NULL")),
        Index("messages_to_expire", "expires", **_where("expires IS NOT NULL")),
        Index("messages_to_wake", "snoozed_until", **_where("snoozed_until IS NOT NULL")),
        # with a column that is always the same, as above
        Index(
            "messages_snoozed",
            *("user_id", "archived_at", "listed_at", "id"),
            **_where("snoozed_until IS NOT NULL"),
        ),
        Index("messages_with_keywords", "user_id", "archived_at", **_where("keywords <> '[]'")),
    )

    mailbox_id: int | None = ref("mailboxes.id", index=False, ondelete="RESTRICT", default=None)
    uid: Number
    modseq: Number
    thread_id: int = ref("threads.id", ondelete="RESTRICT")
    blob_id: Number  # what is left of it without large attachments; its reference rows hold it
    digest: str  # SHA-256 of the whole message, hex
    received_at: Moment
    # where it stands in lists: its arrival, or when it came back from being snoozed
    listed_at: datetime = Field(sa_type=Instant, sa_column_kwargs={"default": _arrival})
    saved_at: Moment  # put into this folder
    date: MaybeMoment = None
    expires: MaybeMoment = None
    snoozed_until: MaybeMoment = None  # it lies in the folder of what is snoozed until then
    snoozed_from: MaybeNumber = None  # the folder it goes back to, which may be gone since
    size: Number  # bytes, as received
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    deleted: bool = False
    keywords: list[str] = plain(list)
    subject: str = ""
    from_name: str | None = None
    from_address: str | None = None
    sender: list[str | None] | None = plain()  # [name, address], where it is not From
    reply_to: list[list[str | None]] = plain(list)
    to: list[list[str | None]] = plain(list)
    cc: list[list[str | None]] = plain(list)
    bcc: list[list[str | None]] = plain(list)
    message_id: str | None = None
    in_reply_to: str | None = None
    references: list[str] = plain(list)
    mailing_list: dict[str, Any] | None = plain()  # id, unsubscribe, url, one_click
    preview: str = ""  # at most 255 characters of text
    content_type: str = "text/plain"
    content_params: dict[str, str] = plain(dict)
    encrypted: bool = False
    attachment_count: Number = 0
    attachments: list[dict[str, Any]] = plain(list)
    structure: bytes = Field(sa_type=LargeBinary)  # the MIME tree: mail/messages
    envelope_from: str | None = None  # None: it did not come by SMTP
    envelope_to: list[str] = plain(list)
    meta_data: dict[str, Any] | None = plain()
    verification: dict[str, Any] | None = plain()  # spf, dkim, dmarc, arc, results; on arrival
    # what scanners found: score, required, action, symbols [name, score, description], virus
    spam: dict[str, Any] | None = plain()
    filters: list[int] | None = plain()  # that acted on it as it came, which may be gone since
    # where it was sent on to as it came, as shown: without passwords; None: nowhere
    forwarded_to: list[str] | None = plain()
    reference_id: MaybeNumber = None  # the message it answers or forwards, which may be gone
    reference_action: str | None = None
    archived_at: MaybeMoment = None
    archived_from: str | None = None  # path of the folder it was deleted from
    archived_mailbox_id: MaybeNumber = None  # that folder, which may be gone since
    purge_at: MaybeMoment = None
    indexed: bool = False  # its words are in the text index


class Thread(Owned, table=True):
    """A conversation."""

    __tablename__ = "threads"

    subject: str = ""  # of its first message
    created_at: Moment
    muted: bool = False  # what is received of it is seen from the beginning


class ThreadRef(SQLModel, table=True):
    """A Message-ID with the subject it was seen under, and the conversation it belongs to."""

    __tablename__ = "thread_refs"

    user_id: int = ref("users.id", primary_key=True, index=False)
    key: str = Field(primary_key=True)  # hash: mail/messages
    thread_id: int = ref("threads.id")


class Receipt(SQLModel, table=True):
    """A delivery that was done, kept for a day: a repeat after a lost reply is known by it."""

    __tablename__ = "receipts"

    digest: str = Field(primary_key=True)  # of envelope sender, recipient, whole message
    message_id: Number
    at: datetime = Field(sa_type=Instant, index=True)
