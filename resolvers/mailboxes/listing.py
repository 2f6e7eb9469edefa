"""Lists of mailboxes: filtered for one account, and paged for several accounts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from mail.mailboxes import paths
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest, PageSizes
from models.store.prepared_statements import raw_values, rows_at
from models.users.tables import User
from resolvers import pagination
from resolvers.access import is_visible_or_managed
from resolvers.context import Context
from resolvers.mailboxes.loaders import (
    MailboxTreeKey,
    load_visible_by_ids,
    load_visible_trees,
    matches_pattern_sql,
)
from resolvers.pagination import PageScan
from resolvers.users.selection import UserSelector, selection_condition

CURSOR_KIND = "mailboxes"
TREE_ORDERING = "mailbox-tree"  # of the mailboxes of one user
TREE_PAGE_SIZES = PageSizes(default=250, max=1500)  # a client can read a whole tree in one page


@dataclass(frozen=True, slots=True)
class MailboxConditions:
    """Which mailboxes of an account are listed. All conditions must hold."""

    path_patterns: tuple[str, ...] | None = None  # any of them
    has_special_use: bool = False  # with a role
    include_hidden: bool = False  # hidden ones too
    is_subscribed: bool | None = None

    @property
    def path_pattern(self) -> str | None:
        """The regular expression that the paths must match, or None."""
        return (
            None
            if self.path_patterns is None
            else paths.patterns_regex_with_atomic_groups(self.path_patterns)
        )


class MailboxSums(NamedTuple):
    """Sums of the counters of several mailboxes. The size is in bytes."""

    message_count: int
    unseen_count: int
    size: int


async def list_mailboxes_of_user(
    ctx: Context, user_id: int, columns: Collection[str], conditions: MailboxConditions
) -> Sequence[ColumnRow]:
    """List a user's mailboxes: INBOX and its children first, then in tree order."""
    needed_columns = {"special_use"} if conditions.has_special_use else set()
    needed_columns |= {"subscribed"} if conditions.is_subscribed is not None else set()
    rows = await ctx.load(
        load_visible_trees,
        MailboxTreeKey(user_id, frozenset({*columns, *needed_columns}), conditions.path_pattern),
    )
    indexes = list(range(len(rows)))
    if not conditions.include_hidden:
        hidden = raw_values(rows, "hidden")
        indexes = [at for at in indexes if not hidden[at]]
    if conditions.has_special_use:
        roles = raw_values(rows, "special_use")
        indexes = [at for at in indexes if roles[at]]
    if conditions.is_subscribed is not None:
        subscribed = raw_values(rows, "subscribed")
        indexes = [at for at in indexes if bool(subscribed[at]) is conditions.is_subscribed]
    return rows if len(indexes) == len(rows) else rows_at(rows, indexes)


def page_of_tree(rows: Sequence[ColumnRow], page_request: PageRequest) -> Page[ColumnRow]:
    """Return the page of mailboxes that are in tree order. The sort value of a cursor is a path.

    The cursor's mailbox need not exist any more.
    """
    if cursor := page_request.cursor:
        sort_keys = [paths.tree_sort_key(path) for path in raw_values(rows, "path")]
        cursor_key = paths.tree_sort_key(str(cursor.sort_value))
        rows = pagination.rows_beyond_cursor(
            rows, sort_keys, cursor_key, is_backward=page_request.is_backward
        )
    return page_request.page_from_rows(rows)


async def load_page_of_visible_ids(
    ctx: Context, mailbox_ids: Sequence[int], page_request: PageRequest
) -> Page[ColumnRow]:
    """Load a page of the mailboxes with these IDs, which are in ascending order."""
    if cursor := page_request.cursor:
        mailbox_ids = pagination.rows_beyond_cursor(
            mailbox_ids, mailbox_ids, cursor.id, is_backward=page_request.is_backward
        )
    page = page_request.page_from_rows(mailbox_ids)
    rows = await ctx.load_many(load_visible_by_ids, page.rows)
    return Page([row for row in rows if row], page.has_next, page.has_previous)


async def sum_counters(ctx: Context, user_id: int, conditions: MailboxConditions) -> MailboxSums:
    """Sum the counters of a user's listed mailboxes."""
    rows = await list_mailboxes_of_user(ctx, user_id, MailboxSums._fields, conditions)
    return MailboxSums(*(sum(raw_values(rows, name)) for name in MailboxSums._fields))


async def _list_conditions(
    ctx: Context, users: UserSelector, conditions: MailboxConditions
) -> list[ColumnElement[bool]]:
    statement = select(col(User.id)).where(await selection_condition(ctx, users))
    terms = [col(Mailbox.user_id).in_(statement), is_visible_or_managed(ctx, Mailbox)]
    if not conditions.include_hidden:
        terms.append(~col(Mailbox.hidden))
    if conditions.has_special_use:
        terms.append(col(Mailbox.special_use).is_not(None))
    if conditions.is_subscribed is not None:
        terms.append(col(Mailbox.subscribed).is_(conditions.is_subscribed))
    if conditions.path_pattern is not None:
        terms.append(matches_pattern_sql(ctx, conditions.path_pattern))
    return terms


async def load_mailbox_page_of_users(
    ctx: Context,
    users: UserSelector,
    conditions: MailboxConditions,
    page_request: PageRequest,
    columns: Collection[str],
) -> Page[ColumnRow]:
    """Load a page of the mailboxes of these users, by user and creation."""
    rows = select(*select_columns(Mailbox, {"id", "user_id", *columns}))
    rows = rows.where(*await _list_conditions(ctx, users, conditions))
    order_columns: tuple[Any, Any] = (col(Mailbox.user_id), col(Mailbox.id))
    return await pagination.read_page(
        ctx, PageScan(rows, page_request, order_columns, is_descending=False)
    )


async def count_mailboxes_of_users(
    ctx: Context, users: UserSelector, conditions: MailboxConditions
) -> int:
    """Count the mailboxes of the list that `load_mailbox_page_of_users` reads."""
    statement = select(func.count().label("many")).select_from(Mailbox)
    (row,) = await ctx.read(statement.where(*await _list_conditions(ctx, users, conditions)))
    return int(row.many)
