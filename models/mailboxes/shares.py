"""Folders that are shared with other accounts, and what these may do there (RFC 4314)."""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import ColumnElement, Index
from sqlmodel import SQLModel, col

from models.store.columns import Number, ref


class ShareRight(StrEnum):
    """What somebody may do in another's folder (RFC 4314, section 2.1)."""

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
ALL: Rights = frozenset(ShareRight)
_BITS = {right: 1 << nth for nth, right in enumerate(ShareRight)}


class MailboxShare(SQLModel, table=True):
    """What an account may do in a folder of another; without a row nothing.

    A grantee hears what happens to the folder behind `since`, a number in its owner's stream.
    """

    __tablename__ = "mailbox_shares"
    __table_args__ = (Index("mailbox_shares_of_user", "user_id", "owner_id", "mailbox_id"),)

    mailbox_id: int = ref("mailboxes.id", primary_key=True, index=False)
    user_id: int = ref("users.id", primary_key=True, index=False)  # with whom it is shared
    owner_id: Number
    rights: Number  # a bit for each
    since: Number


def written(rights: Iterable[ShareRight]) -> int:
    """These rights as they are stored."""
    return sum(_BITS[right] for right in frozenset(rights))


def rights_of(stored: int) -> Rights:
    """The rights that are stored so."""
    return frozenset(right for right, bit in _BITS.items() if stored & bit)


def holding(right: ShareRight) -> ColumnElement[bool]:
    """The WHERE clause for shares with this right."""
    bits: ColumnElement[int] = col(MailboxShare.rights).bitwise_and(_BITS[right])
    return bits != 0
