"""Orders of message lists: their names in cursors, and their sort columns.

Only lists of one mailbox are sorted by date, sender, subject or size: each of these orders has an
index of the table of sort keys, which begins with the mailbox.
"""

from collections.abc import Collection
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from models.errors import InvalidInput
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message
from models.store.columns import core_table, select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.store.query_hints import implied_conditions
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_own_prepared
from resolvers.list_orders import SortColumn
from resolvers.pagination import PageForm

NEWEST_FIRST, OLDEST_FIRST = "received-", "received+"
SORT_KEYS = core_table(MessageSortKey).c
SORT_COLUMNS = {  # by the name of the order in cursors
    "date": SortColumn("sent_at", datetime),
    "from": SortColumn("sender_key", str),
    "size": SortColumn("size", int),
    "subject": SortColumn("subject_key", str),
}
CONTENT_SORT_COLUMNS = frozenset({"subject_key"})  # cursors have their values
_MESSAGE_COLUMNS = core_table(Message).c
MAX_REMEMBERED_ORDERINGS = 1000  # with the digests of filters


@lru_cache(maxsize=MAX_REMEMBERED_ORDERINGS)
def sort_column_of_ordering(ordering: str) -> SortColumn | None:
    """Return the column of the table of sort keys that an ordering sorts by; None if another."""
    return SORT_COLUMNS.get(_order_name(ordering)[:-1])


@lru_cache(maxsize=MAX_REMEMBERED_ORDERINGS)
def is_descending_ordering(ordering: str) -> bool:
    """True if the order of an ordering is descending."""
    return _order_name(ordering).endswith("-")


def _order_name(ordering: str) -> str:
    """Return the name of the order with its direction, without the digest of a filter."""
    return ordering.partition("~")[0]


def sort_key_of_column(sort_column: SortColumn) -> tuple[Any, Any]:
    """Return the two columns of the table of sort keys that a list is sorted by."""
    return SORT_KEYS[sort_column.name], SORT_KEYS.id


@cache  # few sort keys
def message_column_names(sort_key: tuple[Any, Any]) -> frozenset[str]:
    """Return the names of the columns of a sort key that messages have too."""
    return frozenset(column.key for column in sort_key if column.key in _MESSAGE_COLUMNS)


def select_with_sort_key(
    columns: Collection[str], sort_key: tuple[Any, Any]
) -> Select[*tuple[Any, ...]]:
    """Select columns of messages joined with their sort keys, and the columns of the sort key."""
    others = (column for column in sort_key if column.key not in _MESSAGE_COLUMNS)
    return select(*select_columns(Message, columns), *others).where(SORT_KEYS.id == col(Message.id))


@prepare_cached
def unfiltered_sorted_page_query(
    page_form: PageForm, sort_column: SortColumn
) -> Select[*tuple[Any, ...]]:
    """Select a page of one of the viewer's mailboxes in the order of a column of sort keys."""
    sort_key = sort_key_of_column(sort_column)
    rows = select_with_sort_key(page_form.columns, sort_key).where(
        SORT_KEYS.mailbox_id == integer_parameter("mailbox"),
        implied_conditions(is_own_prepared(Message)),
    )
    return pagination.page_select(rows, page_form, sort_key)


def one_mailbox_required() -> InvalidInput:
    """Return the error for a list of several mailboxes with an order that has no index for it."""
    return InvalidInput(
        "This order requires a list of one mailbox: `Mailbox.messages`, or a filter by `mailbox`.",
        constraint=ValidationConstraint.ORDER,
        path=["orderBy"],
        allowed_values=["RECEIVED_AT_DESC", "RECEIVED_AT_ASC"],
    )
