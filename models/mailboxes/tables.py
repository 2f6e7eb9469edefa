"""Folders of messages."""

from enum import StrEnum

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from models.store.columns import Big, Moment, Number, Owned, choice, ref


class SpecialUse(StrEnum):
    """Role of a folder (RFC 6154)."""

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


# Mailboxes that messages leave again at a time: nothing else is stored there by rules or imports.
HOLDING_USES = frozenset({SpecialUse.SNOOZED, SpecialUse.SCHEDULED})


class Mailbox(Owned, table=True):
    """A folder. `path` is unique per user, its levels divided by "/".

    The counters are columns, kept in the unit that changes what they count.
    """

    __tablename__ = "mailboxes"
    __table_args__ = (
        # on PostgreSQL of the path's MD5: a row of an index has 2.7 KB there, and a path may more
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
    guid: str  # 32 hex digits
    special_use: SpecialUse | None = choice(SpecialUse, default=None, nullable=True)
    uid_validity: Number  # rises per user even when a path comes again
    uid_next: Number = 1  # RFC 9051, section 2.3.1.1
    modseq: Number = 0  # number, in the account's stream, of its newest change of messages
    modify_index: Number = 0  # the same, changes of the folder itself included
    total: Number = 0  # messages
    unseen: Number = 0
    size: Number = 0  # bytes
    subscribed: bool = True
    hidden: bool = False
    encrypt_messages: bool = False  # to the key of the account, what arrives here
    retention: int | None = Field(default=None, sa_type=Big)  # seconds that new messages live
    created_at: Moment


class Subscription(SQLModel, table=True):
    """A path that is subscribed to without a folder; a folder itself says whether it is."""

    __tablename__ = "mailbox_subscriptions"

    user_id: int = ref("users.id", primary_key=True, index=False)
    digest: str = Field(primary_key=True)  # SHA-256 of the path, hex: an index takes no longer one
    path: str


class MailboxEntry(SQLModel, table=True):
    """An annotation of a folder (RFC 5464)."""

    __tablename__ = "mailbox_metadata"

    mailbox_id: int = ref("mailboxes.id", primary_key=True, index=False)
    key: str = Field(primary_key=True)  # lower case, such as /private/comment
    value: str
