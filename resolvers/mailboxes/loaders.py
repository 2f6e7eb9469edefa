"""Loading, finding and creating mailboxes."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, or_, select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.paths import missing_paths_with_parents, tree_sort_key, validate_path
from models.errors import Conflict, Forbidden, InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import prepare_cached, raw_values, rows_at
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
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
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_log_change
from resolvers.pagination import MAX_SEPARATE_PAGES, read_by_keys
from resolvers.users.selection import VIEWER_ONLY, UserSelector

SELECTOR_FIELDS = ("id", "path", "special_use", "object_id")  # each of them identifies a mailbox
OBJECT_ID_PATTERN = re.compile("[0-9a-f]{32}")
MAX_RETENTION = timedelta(days=36_500)  # the longest retention of messages


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


@dataclass(frozen=True, slots=True)
class NewMailboxes:
    """Mailboxes to create."""

    paths: Sequence[str]
    is_hidden: bool = False
    retention: timedelta | None = None  # None: that of the user; zero: unlimited
    is_subscribed: bool = True
    special_use: SpecialUse | None = None
    object_id: str | None = None  # only for one mailbox of one account
    encrypt_messages: bool = False  # new messages, with the user's OpenPGP key


async def load_all_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Sequence[ColumnRow]:
    """Load a user's mailboxes, also hidden ones: INBOX and its children, then in tree order."""
    return await ctx.load(load_trees, MailboxTreeKey(user_id, frozenset(columns)))


async def load_trees(ctx: Context, tree_keys: list[MailboxTreeKey]) -> list[Sequence[ColumnRow]]:
    """Load the mailboxes of these users, each list in the order of `load_all_of_user`."""
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
    found: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in sorted(await ctx.read(statement), key=lambda row: tree_sort_key(row.path)):
        found[row.user_id].append(row)
    return [(key, found[key.user_id]) for key in tree_keys]


def matches_pattern_sql(ctx: Context, pattern: str) -> ColumnElement[bool]:
    """Build the condition that a path matches this pattern of `mail/mailboxes/paths.py`."""
    if ctx.environment.database.dialect == "postgresql":
        pattern = pattern.replace("(?>", "(?:")
    found: ColumnElement[bool] = col(Mailbox.path).regexp_match(pattern)
    return found


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


async def load_by_selectors(
    ctx: Context, user_ids_and_selectors: list[tuple[int, MailboxSelector]]
) -> list[ColumnRow | None]:
    """Load mailboxes by user ID and selector, in this order. None if there is no such mailbox."""
    if len(user_ids_and_selectors) <= MAX_SEPARATE_PAGES and all(
        _can_use_prepared_select(ctx, user_id) for user_id, _ in user_ids_and_selectors
    ):
        return [await _load_own(ctx, *key) for key in user_ids_and_selectors]
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


async def _load_own(ctx: Context, user_id: int, selector: MailboxSelector) -> ColumnRow | None:
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
        load_by_selectors, [(user, MailboxSelector(path=path)) for user, path in user_ids_and_paths]
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
    row = await ctx.load(load_by_selectors, (require_user_id(ctx), selector))
    if row is None and right is not None:
        row = await _find_shared_with_right(ctx, selector, right, path_in_input)
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
            await ctx.load(load_by_selectors, (ctx.viewer.user_id, selector))
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
        load_by_selectors, (require_user_id(ctx) if user_id is None else user_id, selector)
    )


async def _find_shared_with_right(
    ctx: Context, selector: MailboxSelector, right: ShareRight, path_in_input: Sequence[str]
) -> ColumnRow | None:
    """Return a mailbox that is shared with the viewer. Raises Forbidden without this right."""
    row = await ctx.load(load_shared_by_ids, selector.id) if selector.id is not None else None
    if row and right not in await ctx.load(mailbox_rights.load_rights, (row.user_id, row.id)):
        raise Forbidden(
            f"this needs the right {right} in the folder", requires=right, path=path_in_input
        )
    return row


def build_mailbox_with_next_uid_validity(
    ctx: Context, user: User, path: str, special_use: SpecialUse | None
) -> Mailbox:
    """Build a mailbox of a user with a locked row. UIDVALIDITY and GUID are new."""
    at = ctx.environment.now()
    user.uid_validity = max(user.uid_validity + 1, int(at.timestamp()))
    key = ctx.environment.new_id()
    return Mailbox(
        id=key,
        user_id=user.id,
        path=path,
        object_id=ctx.environment.random_bytes(16).hex(),
        special_use=special_use,
        uid_validity=user.uid_validity,
        retention=user.retention,
        created_at=at,
    )


async def require_mailbox_of_each(
    locked: LockedAccounts, selector: MailboxSelector
) -> list[ColumnRow]:
    """Return the mailbox of each locked account. Raises NotFound if an account has none."""
    rows = await locked.ctx.load_many(
        load_by_selectors, [(user, selector) for user in locked.user_ids]
    )
    for user, row in zip(locked.user_ids, rows, strict=True):
        if row is None:
            raise NotFound(
                locked.prefix_username_unless_viewer(user, str(selector)), path=["mailbox"]
            )
    return [row for row in rows if row]


async def load_refreshed_users(
    locked: LockedAccounts, user_ids: Collection[int]
) -> dict[int, User]:
    """Load users inside the transaction, by ID. Cached instances are refreshed."""
    statement = instances(User).where(col(User.id).in_(user_ids)).order_by(col(User.id))
    refresh_statement = statement.execution_options(populate_existing=True)
    return {user.id: user for user in (await locked.session.exec(refresh_statement)).all()}


def require_openpgp_keys(
    locked: LockedAccounts,
    users: Iterable[User],
    path_in_input: Sequence[str] = ("encryptMessages",),
) -> None:
    """Raise InvalidInput if one of these users has no OpenPGP key to encrypt mail to."""
    for user in users:
        if not user.openpgp_public_key:
            text = locked.prefix_username_unless_viewer(
                user.id, "this takes an OpenPGP key of the account"
            )
            raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=path_in_input)


async def create_mailboxes(
    ctx: Context, new_mailboxes: NewMailboxes, users: UserSelector = VIEWER_ONLY
) -> list[Mailbox]:
    """Create mailboxes at these paths with their missing parents: all of them or none.

    Returns the requested mailboxes, by account in the order of the paths. Raises InvalidInput,
    Conflict or LimitReached.
    """
    validated_paths = [
        validate_path(p, input_path=["paths"], index=nth)
        for nth, p in enumerate(new_mailboxes.paths)
    ]
    async with lock_mail_owners_and_log_change(ctx, users, "mailboxCreate") as locked_owners:
        found, _ = await create_with_parents_in_transaction(
            locked_owners, validated_paths, new_mailboxes
        )
    return found


async def create_with_parents_in_transaction(
    locked: LockedAccounts, paths: Sequence[str], new_mailboxes: NewMailboxes
) -> tuple[list[Mailbox], list[Mailbox]]:
    """Create mailboxes in a transaction.

    Returns the requested mailboxes, and all that were created.
    """
    _validate_new_mailboxes(new_mailboxes, locked.user_ids)
    accounts = list((await load_refreshed_users(locked, locked.user_ids)).values())
    if new_mailboxes.encrypt_messages:
        require_openpgp_keys(locked, accounts)
    existing_by_user = await _load_existing_by_user(locked.session, locked.user_ids)
    plans_by_user = {
        user.id: _build_with_parents(locked, user, paths, new_mailboxes, existing_by_user[user.id])
        for user in accounts
    }
    found = []
    for mailboxes in plans_by_user.values():
        by_path = {mailbox.path: mailbox for mailbox in mailboxes}
        found += [by_path[path] for path in paths]
    for mailbox in found:
        mailbox.object_id = new_mailboxes.object_id or mailbox.object_id
        mailbox.hidden, mailbox.subscribed = new_mailboxes.is_hidden, new_mailboxes.is_subscribed
        mailbox.encrypt_messages = new_mailboxes.encrypt_messages
        if new_mailboxes.retention is not None:
            mailbox.retention = retention_seconds(new_mailboxes.retention)
        mailbox.special_use = new_mailboxes.special_use
    await insert_mailboxes(locked, accounts, plans_by_user)
    return found, [mailbox for mailboxes in plans_by_user.values() for mailbox in mailboxes]


async def insert_mailboxes(
    locked: LockedAccounts,
    users: Sequence[User],
    mailboxes_by_user: Mapping[int, Sequence[Mailbox]],
) -> None:
    """Insert the mailboxes, take over subscriptions to their paths, and record the changes."""
    before = await subscriptions.load_folderless_subscriptions(
        locked.session, list(mailboxes_by_user)
    )
    after = {
        user: before[user] - {mailbox.path for mailbox in mailboxes}
        for user, mailboxes in mailboxes_by_user.items()
    }
    for user, mailboxes in mailboxes_by_user.items():
        for mailbox in mailboxes:
            mailbox.subscribed = mailbox.subscribed or mailbox.path in before[user]
    locked.session.add_all(
        [*users, *(mailbox for mailboxes in mailboxes_by_user.values() for mailbox in mailboxes)]
    )
    await locked.session.flush()
    await subscriptions.write_changed_folderless_subscriptions(locked.session, before, after)
    event_type = EventType.MAILBOX_CREATED
    await locked.record_changes(
        {
            user: locked.ctx.journal_entries(
                event_type,
                [mailbox.id for mailbox in mailboxes],
                path=[mailbox.path for mailbox in mailboxes],
            )
            for user, mailboxes in mailboxes_by_user.items()
        }
    )


def _validate_new_mailboxes(new_mailboxes: NewMailboxes, user_ids: Sequence[int]) -> None:
    """Raise InvalidInput if the values contradict each other."""
    if not new_mailboxes.paths:
        raise InvalidInput(
            "name at least one path", constraint=ValidationConstraint.REQUIRED, path=["paths"]
        )
    if new_mailboxes.special_use and len(new_mailboxes.paths) > 1:
        raise InvalidInput(
            "one folder has the role",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["specialUse"],
        )
    if new_mailboxes.object_id is not None and (len(new_mailboxes.paths) > 1 or len(user_ids) > 1):
        raise InvalidInput(
            "one folder has the object ID",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["objectId"],
        )
    if new_mailboxes.object_id is not None and not OBJECT_ID_PATTERN.fullmatch(
        new_mailboxes.object_id
    ):
        raise InvalidInput(
            "an object ID has 32 hex digits",
            constraint=ValidationConstraint.PATTERN,
            path=["objectId"],
        )


async def _load_existing_by_user(
    session: AsyncSession, user_ids: Sequence[int]
) -> Mapping[int, Sequence[ColumnRow]]:
    """Load the values of the users' mailboxes that must be unique."""
    names = ("user_id", "path", "object_id", "special_use")
    statement = select(*select_columns(Mailbox, names)).where(col(Mailbox.user_id).in_(user_ids))
    found: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in (await (await session.connection()).execute(statement)).all():
        found[row.user_id].append(row)
    return found


def require_mailbox_capacity(
    locked: LockedAccounts, user_id: int, existing_count: int, new_count: int, *, path_in_input: str
) -> None:
    """Raise LimitReached if an account with this many mailboxes can't get this many more."""
    limit = locked.ctx.environment.options.mailboxes_max_per_user
    if new_count and existing_count + new_count > limit:
        text = locked.prefix_username_unless_viewer(user_id, "too many folders")
        raise LimitReached(text, limit=limit, used=existing_count, path=[path_in_input])


def retention_seconds(
    retention: timedelta, path_in_input: Sequence[str] = ("retention",)
) -> int | None:
    """Return the retention in seconds, in its stored form. None means unlimited.

    Raises InvalidInput if it is not between a second and a hundred years.
    """
    if not retention:
        return None
    if not timedelta(seconds=1) <= retention <= MAX_RETENTION:
        raise InvalidInput(
            "a life is between a second and a hundred years",
            constraint=ValidationConstraint.RANGE,
            path=path_in_input,
        )
    return int(retention.total_seconds())


def _build_with_parents(
    locked: LockedAccounts,
    user: User,
    new_paths: Sequence[str],
    new_mailboxes: NewMailboxes,
    existing: Sequence[ColumnRow],
) -> list[Mailbox]:
    """Build the mailboxes of one user, with missing parents. Raises Conflict or LimitReached."""
    paths = {row.path for row in existing}
    for index, path in enumerate(new_paths):
        if path in paths or path in new_paths[:index]:
            text = locked.prefix_username_unless_viewer(
                user.id, "there is already a folder of this path"
            )
            raise Conflict(text, path=["paths"], index=index)
    if new_mailboxes.special_use and any(
        row.special_use == new_mailboxes.special_use for row in existing
    ):
        text = locked.prefix_username_unless_viewer(user.id, "another folder has this role")
        raise Conflict(text, path=["specialUse"])
    if new_mailboxes.object_id and any(
        row.object_id == new_mailboxes.object_id for row in existing
    ):
        raise Conflict(
            locked.prefix_username_unless_viewer(user.id, "another folder has this object ID"),
            path=["objectId"],
        )
    missing = missing_paths_with_parents(new_paths, paths)
    require_mailbox_capacity(locked, user.id, len(existing), len(missing), path_in_input="paths")
    return [build_mailbox_with_next_uid_validity(locked.ctx, user, path, None) for path in missing]
