"""Tables of mailboxes, subscriptions and annotations."""

from enum import StrEnum

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    Timestamp,
    UserOwnedRow,
    enum_column,
    foreign_key,
)


class SpecialUse(StrEnum):
    """The special use of a mailbox (RFC 6154)."""

    INBOX = "INBOX"
    DRAFTS = "DRAFTS"
    JUNK = "JUNK"
    SENT = "SENT"
    TRASH = "TRASH"
    ARCHIVE = "ARCHIVE"
    FLAGGED = "FLAGGED"
    ALL = "ALL"
    SNOOZED = "SNOOZED"
    SCHEDULED = "SCHEDULED"


# Mailboxes that messages leave at a set time. Rules and imports don't store messages there.
HOLDING_USES = frozenset({SpecialUse.SNOOZED, SpecialUse.SCHEDULED})


class Mailbox(UserOwnedRow, table=True):
    """A mailbox. `path` is unique for each user; "/" separates its levels.

    The counters are columns, updated in the transaction that changes the messages.
    """

    __tablename__ = "mailboxes"
    __table_args__ = (
        # on PostgreSQL over the path's MD5: an index row is limited to 2.7 KB, a path is not
        UniqueConstraint("user_id", "path"),
        Index(
            "uq_mailboxes_special_use",
            "user_id",
            "special_use",
            unique=True,
            sqlite_where=text("special_use IS NOT NULL"),
            postgresql_where=text("special_use IS NOT NULL"),
        ),
    )

    path: str
    object_id: str  # 32 hex digits
    special_use: SpecialUse | None = enum_column(SpecialUse, default=None, nullable=True)
    uid_validity: Int64  # increases for each user, also if a path is used again
    uid_next: Int64 = 1  # RFC 9051, section 2.3.1.1
    modseq: Int64 = 0  # HIGHESTMODSEQ (RFC 7162): position of the newest change of its messages
    message_count: Int64 = 0
    unseen_count: Int64 = 0
    size: Int64 = 0  # bytes
    subscribed: bool = True
    hidden: bool = False
    encrypt_messages: bool = False  # new messages are encrypted to the user's key
    # seconds until new messages are deleted; None: they are kept for ever
    retention: int | None = Field(default=None, sa_type=BIG_INTEGER)
    retention_inherited: bool = True  # `retention` is that of the user, and changes with it
    created_at: Timestamp


class MailboxSubscription(SQLModel, table=True):
    """A subscribed path without a mailbox; `Mailbox.subscribed` is for mailboxes."""

    __tablename__ = "mailbox_subscriptions"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    digest: str = Field(primary_key=True)  # SHA-256 of the path, hex: an index row is limited
    path: str


class MailboxAnnotation(SQLModel, table=True):
    """An annotation of a mailbox (RFC 5464)."""

    __tablename__ = "mailbox_annotations"

    mailbox_id: int = foreign_key("mailboxes.id", primary_key=True, index=False)
    key: str = Field(primary_key=True)  # lower case, such as /private/comment
    value: str
