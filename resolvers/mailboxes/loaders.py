"""Loading, finding and creating mailboxes."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, or_, select
from sqlmodel import col

from mail.mailboxes.paths import tree_sort_key
from models.errors import Forbidden, NotFound
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import prepare_cached, raw_values, rows_at
from resolvers.access import (
    can_see_mail_of_others,
    can_see_managed_mail_records,
    is_own_prepared,
    is_shared,
    is_visible_or_managed,
    require_user_id,
)
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.owners import LockedAccounts
from resolvers.pagination import MAX_SEPARATE_PAGES, read_by_keys

SELECTOR_FIELDS = ("id", "path", "special_use", "object_id")  # each of them identifies a mailbox
OBJECT_ID_PATTERN = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class MailboxSelector:
    """One mailbox of a user, by exactly one of these fields."""

    id: int | None = None
    path: str | None = None
    special_use: SpecialUse | None = None
    object_id: str | None = None

    def __str__(self) -> str:
        """Return the name that people know; "" if the mailbox is selected by ID."""
        return self.path or self.special_use or self.object_id or ""


@dataclass(frozen=True, slots=True)
class MailboxTreeKey:
    """The key of a batch: all mailboxes of a user, with the columns that are read."""

    user_id: int
    columns: frozenset[str]
    path_pattern: str | None = None  # of their paths, from mail/mailboxes/paths.py


async def load_visible_mailboxes_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Sequence[ColumnRow]:
    """Load the mailboxes of a user that the viewer can see, in tree order with INBOX first.

    Mailboxes with the attribute `hidden` are included.
    """
    return await ctx.load(load_visible_trees, MailboxTreeKey(user_id, frozenset(columns)))


async def load_visible_trees(
    ctx: Context, tree_keys: list[MailboxTreeKey]
) -> list[Sequence[ColumnRow]]:
    """Load the visible mailboxes of these users, each list in tree order."""
    patterns = {key.path_pattern for key in tree_keys}
    if len(patterns) > 1:
        parts = [[key for key in tree_keys if key.path_pattern == pattern] for pattern in patterns]
        trees_by_key = {
            key: rows for part in parts for key, rows in await _load_trees_with_pattern(ctx, part)
        }
        return [trees_by_key[key] for key in tree_keys]
    return [rows for _, rows in await _load_trees_with_pattern(ctx, tree_keys)]


async def _load_trees_with_pattern(
    ctx: Context, tree_keys: list[MailboxTreeKey]
) -> list[tuple[MailboxTreeKey, Sequence[ColumnRow]]]:
    """Load the mailboxes of these users. All keys have the same path pattern."""
    pattern = tree_keys[0].path_pattern
    columns = frozenset({"id", "user_id", "path", "hidden"}).union(
        *(key.columns for key in tree_keys)
    )
    if (
        len(tree_keys) == 1
        and pattern is None
        and _can_use_prepared_select(ctx, tree_keys[0].user_id)
    ):
        if tree_keys[0].user_id != ctx.viewer.user_id:
            return [(tree_keys[0], [])]
        rows = await ctx.read_prepared(_own_tree_query(columns))
        sort_keys = [tree_sort_key(path) for path in raw_values(rows, "path")]
        return [(tree_keys[0], rows_at(rows, sorted(range(len(rows)), key=sort_keys.__getitem__)))]
    statement = select(*select_columns(Mailbox, columns)).where(
        col(Mailbox.user_id).in_({key.user_id for key in tree_keys}),
        is_visible_or_managed(ctx, Mailbox),
    )
    if pattern is not None:
        statement = statement.where(matches_pattern_sql(ctx, pattern))
    rows_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in sorted(await ctx.read(statement), key=lambda row: tree_sort_key(row.path)):
        rows_by_user[row.user_id].append(row)
    return [(key, rows_by_user[key.user_id]) for key in tree_keys]


def matches_pattern_sql(ctx: Context, pattern: str) -> ColumnElement[bool]:
    """Build the condition that a path matches this pattern of `mail/mailboxes/paths.py`."""
    if ctx.environment.database.dialect == "postgresql":
        pattern = pattern.replace("(?>", "(?:")
    condition: ColumnElement[bool] = col(Mailbox.path).regexp_match(pattern)
    return condition


def _can_use_prepared_select(ctx: Context, user_id: int) -> bool:
    """True if the prepared select of the viewer's own mailboxes is enough for this user.

    It is for the viewer, and for other users if the viewer can't see their mailboxes.
    """
    return user_id == ctx.viewer.user_id or not can_see_mail_of_others(ctx)


@prepare_cached
def _own_tree_query(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Mailbox, columns)).where(is_own_prepared(Mailbox))


async def load_visible_by_ids(ctx: Context, mailbox_ids: list[int]) -> list[ColumnRow | None]:
    """Load the mailboxes with these IDs, in this order. None if the viewer can't see one."""
    statement = select(*select_columns(Mailbox)).where(is_visible_or_managed(ctx, Mailbox))
    return await read_by_keys(ctx, statement, col(Mailbox.id), mailbox_ids)


async def load_shared_by_ids(ctx: Context, mailbox_ids: list[int]) -> list[ColumnRow | None]:
    """Load the mailboxes with these IDs that others share with the viewer, in this order."""
    if not ctx.viewer.share_visibility.has_shared_mailboxes:
        return [None for _ in mailbox_ids]
    statement = select(*select_columns(Mailbox)).where(is_shared(ctx, Mailbox))
    return await read_by_keys(ctx, statement, col(Mailbox.id), mailbox_ids)


async def load_visible_by_selectors(
    ctx: Context, user_ids_and_selectors: list[tuple[int, MailboxSelector]]
) -> list[ColumnRow | None]:
    """Load mailboxes by user ID and selector, in this order. None if there is no such mailbox."""
    if len(user_ids_and_selectors) <= MAX_SEPARATE_PAGES and all(
        _can_use_prepared_select(ctx, user_id) for user_id, _ in user_ids_and_selectors
    ):
        return [
            await _load_own_mailbox_if_user_is_viewer(ctx, *key) for key in user_ids_and_selectors
        ]
    users = {user_id for user_id, _ in user_ids_and_selectors}
    statement = select(*select_columns(Mailbox)).where(
        col(Mailbox.user_id).in_(users),
        is_visible_or_managed(ctx, Mailbox),
        or_(
            *(
                getattr(Mailbox, field_name).in_(
                    _selector_values(field_name, user_ids_and_selectors)
                )
                for field_name in SELECTOR_FIELDS
            )
        ),
    )
    rows_by_selector: dict[tuple[int, str, Any], ColumnRow] = {}
    for row in await ctx.read(statement):
        rows_by_selector |= {
            (row.user_id, field_name, getattr(row, field_name)): row
            for field_name in SELECTOR_FIELDS
        }
    return [
        rows_by_selector.get((user_id, _selector_field(name), getattr(name, _selector_field(name))))
        for user_id, name in user_ids_and_selectors
    ]


async def _load_own_mailbox_if_user_is_viewer(
    ctx: Context, user_id: int, selector: MailboxSelector
) -> ColumnRow | None:
    if user_id != ctx.viewer.user_id:
        return None
    field_name = _selector_field(selector)
    return next(
        iter(
            await ctx.read_prepared(
                _own_by_field_query(field_name), name=getattr(selector, field_name)
            )
        ),
        None,
    )


async def load_by_paths(
    ctx: Context, user_ids_and_paths: list[tuple[int, str]]
) -> list[ColumnRow | None]:
    """Load mailboxes by user ID and path, in this order. None if there is no such mailbox."""
    return await ctx.load_many(
        load_visible_by_selectors,
        [(user, MailboxSelector(path=path)) for user, path in user_ids_and_paths],
    )


def _selector_field(selector: MailboxSelector) -> str:
    """Return the field by which the mailbox is selected."""
    return next(
        (field_name for field_name in SELECTOR_FIELDS if getattr(selector, field_name) is not None),
        "id",
    )


def _selector_values(
    field_name: str, user_ids_and_selectors: Sequence[tuple[int, MailboxSelector]]
) -> set[Any]:
    return {getattr(name, field_name) for _, name in user_ids_and_selectors} - {None}


@prepare_cached
def _own_by_field_query(field_name: str) -> Select[*tuple[Any, ...]]:
    column = getattr(Mailbox, field_name)
    return select(*select_columns(Mailbox)).where(
        is_own_prepared(Mailbox),
        column == bindparam("name", type_=column.type),
    )


async def require_own_or_shared_mailbox(
    ctx: Context,
    selector: MailboxSelector,
    right: ShareRight | None = None,
    *,
    path_in_input: Sequence[str] = ("mailbox",),
) -> ColumnRow:
    """Return the viewer's mailbox. Raises NotFound.

    With `right`, a mailbox of another user can be selected by ID. Raises Forbidden if it is shared
    without that right.
    """
    row = await ctx.load(load_visible_by_selectors, (require_user_id(ctx), selector))
    if row is None and right is not None:
        row = await _find_shared_requiring_right(ctx, selector, right, path_in_input)
    if row is None:
        raise NotFound(str(selector), path=path_in_input)
    return row


async def find_visible(
    ctx: Context, selector: MailboxSelector, user_id: int | None = None
) -> ColumnRow | None:
    """Return the mailbox, or None if the viewer can't see it, not even as a record.

    The mailbox belongs to `user_id`. Without `user_id`, an ID selects a mailbox of any account, and
    another selector one of the viewer's.
    """
    if user_id is None and selector.id is not None:
        own_row = (
            await ctx.load(load_visible_by_selectors, (ctx.viewer.user_id, selector))
            if ctx.viewer.user_id
            else None
        )
        row = own_row or await ctx.load(load_shared_by_ids, selector.id)
        return row or (
            await ctx.load(load_visible_by_ids, selector.id)
            if can_see_managed_mail_records(ctx)
            else None
        )
    return await ctx.load(
        load_visible_by_selectors, (require_user_id(ctx) if user_id is None else user_id, selector)
    )


async def _find_shared_requiring_right(
    ctx: Context, selector: MailboxSelector, right: ShareRight, path_in_input: Sequence[str]
) -> ColumnRow | None:
    """Return a mailbox that is shared with the viewer. Raises Forbidden without this right."""
    row = await ctx.load(load_shared_by_ids, selector.id) if selector.id is not None else None
    if row and right not in await ctx.load(
        mailbox_rights.load_viewer_rights, (row.user_id, row.id)
    ):
        raise Forbidden(
            f"Requires the right {right} in the mailbox.", requires=right, path=path_in_input
        )
    return row


async def require_mailbox_of_each(
    locked: LockedAccounts, selector: MailboxSelector
) -> list[ColumnRow]:
    """Return the mailbox of each locked account. Raises NotFound if an account has none."""
    rows = await locked.ctx.load_many(
        load_visible_by_selectors, [(user, selector) for user in locked.user_ids]
    )
    for user, row in zip(locked.user_ids, rows, strict=True):
        if row is None:
            raise NotFound(
                locked.prefix_username_unless_viewer(user, str(selector)), path=["mailbox"]
            )
    return [row for row in rows if row]
