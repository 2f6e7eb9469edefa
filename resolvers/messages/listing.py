"""Lists of messages: which page is requested, of which messages, in which order."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement
from sqlmodel import col

from models.messages.keywords import MessageKeyword
from models.messages.tables import Message
from models.store.columns import ColumnRow
from models.store.keyset_pages import PageRequest, SortValue
from models.store.query_hints import implied_conditions
from resolvers.access import is_own_prepared
from resolvers.list_orders import SortColumn
from resolvers.messages.filters.indexed_conditions import selects_all_unseen
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.message_orders import (
    is_descending_ordering,
    sort_column_of_ordering,
    sort_key_of_column,
)

SORT_KEY = (col(Message.listed_at), col(Message.id))
KEYWORD_SORT_KEY = (col(MessageKeyword.listed_at), col(MessageKeyword.id))  # of the same values
THREAD_SORT_KEY = (col(Message.received_at), col(Message.id))
ALL_MESSAGES = MessageConditions()
NO_MESSAGE = MessageConditions(email_ids=())


@dataclass(frozen=True, slots=True)
class MessageListing:
    """A page of a user's messages, with the columns that are read.

    It is of one mailbox or one thread, or of all messages that are not deleted.
    """

    user_id: int
    page_request: PageRequest
    columns: frozenset[str]
    mailbox_id: int | None = None
    thread_id: int | None = None
    conditions: MessageConditions = ALL_MESSAGES
    is_narrowed: bool = False  # the mailbox that the filter requires was looked up
    is_read_logged: bool = False  # the user's security log has this read of ROOT

    @property
    def is_descending(self) -> bool:
        """True if the order is descending, such as that of the newest message first."""
        return is_descending_ordering(self.page_request.ordering)

    @property
    def sort_column(self) -> SortColumn | None:
        """The column of the table of sort keys that the listing is sorted by, if any."""
        return sort_column_of_ordering(self.page_request.ordering)

    @property
    def sort_key(self) -> tuple[Any, Any]:
        """The sort key: arrival for a thread, even of messages that were snoozed."""
        if self.sort_column is not None:
            return sort_key_of_column(self.sort_column)
        return SORT_KEY if self.thread_id is None else THREAD_SORT_KEY

    def cursor_values_of_row(self, row: ColumnRow) -> tuple[SortValue, int]:
        """Return the values of the sort key in a row."""
        at, key = self.sort_key
        return getattr(row, at.key), getattr(row, key.key)

    @property
    def counter_name(self) -> str:
        """The column of mailboxes that counts the messages of the listing; empty if none does."""
        if self.thread_id is not None:
            return ""
        if self.conditions.is_empty:
            return "message_count"
        return "unseen_count" if selects_all_unseen(self.conditions) else ""


def cursor_values(row: ColumnRow) -> tuple[datetime, int]:
    """Return the values of SORT_KEY in a row."""
    return row.listed_at, row.id


def is_not_deleted_sql() -> ColumnElement[bool]:
    """Build the condition that a message is in a mailbox, not deleted."""
    return col(Message.deleted_at).is_(None)


def list_conditions(
    mailbox_id: ColumnElement[int] | int | None, thread_id: ColumnElement[int] | int | None
) -> list[ColumnElement[bool]]:
    """Build the conditions of a list of messages: its mailbox, or not deleted, and its thread."""
    conditions = [
        is_not_deleted_sql() if mailbox_id is None else col(Message.mailbox_id) == mailbox_id
    ]
    if thread_id is not None:
        conditions.append(col(Message.thread_id) == thread_id)
    return conditions


def own_list_conditions(
    mailbox_id: ColumnElement[int] | None, thread_id: ColumnElement[int] | None
) -> list[ColumnElement[bool]]:
    """Build the conditions of a list of the viewer's own messages, in prepared selects."""
    is_own = is_own_prepared(Message)
    is_of_all_mailboxes = mailbox_id is None and thread_id is None
    return [
        is_own if is_of_all_mailboxes else implied_conditions(is_own),
        *list_conditions(mailbox_id, thread_id),
    ]
