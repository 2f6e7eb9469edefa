"""Table of mailbox shares and their rights (RFC 4314)."""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import ColumnElement, Index, text
from sqlmodel import SQLModel, col

from models.store.columns import Int64, OptionalInt64, foreign_key


class ShareRight(StrEnum):
    """A right on a mailbox of another user (RFC 4314, section 2.1)."""

    LOOKUP = "LOOKUP"
    READ = "READ"
    SEEN = "SEEN"
    WRITE = "WRITE"
    INSERT = "INSERT"
    DELETE = "DELETE"
    EXPUNGE = "EXPUNGE"
    CREATE = "CREATE"
    ADMIN = "ADMIN"
    POST = "POST"


Rights = frozenset[ShareRight]
ALL_RIGHTS: Rights = frozenset(ShareRight)
_BITS = {right: 1 << nth for nth, right in enumerate(ShareRight)}


class MailboxShare(SQLModel, table=True):
    """The rights of a user on a mailbox of another user.

    The grantee gets the events of the mailbox after `since`, a position in the owner's stream.
    """

    __tablename__ = "mailbox_shares"
    __table_args__ = (
        Index("mailbox_shares_of_user", "user_id", "owner_id", "mailbox_id"),
        Index(
            "mailbox_shares_made_by",
            "made_by",
            sqlite_where=text("made_by IS NOT NULL"),
            postgresql_where=text("made_by IS NOT NULL"),
        ),
    )

    mailbox_id: int = foreign_key("mailboxes.id", primary_key=True, index=False)
    user_id: int = foreign_key("users.id", primary_key=True, index=False)  # the grantee
    owner_id: Int64
    rights: Int64  # one bit for each right
    since: Int64
    # users.id of the administrator of the owner who gave rights last; None: the owner, or a user
    # with the right ADMIN
    made_by: OptionalInt64 = None


def encode_rights(rights: Iterable[ShareRight]) -> int:
    """Return rights as the stored bits."""
    return sum(_BITS[right] for right in frozenset(rights))


def decode_rights(bits: int) -> Rights:
    """Return the rights of stored bits."""
    return frozenset(right for right, bit in _BITS.items() if bits & bit)


def has_right(right: ShareRight) -> ColumnElement[bool]:
    """Return SQL that is true for shares with this right."""
    bits: ColumnElement[int] = col(MailboxShare.rights).bitwise_and(_BITS[right])
    return bits != 0
