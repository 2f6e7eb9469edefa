"""Annotations of mailboxes (RFC 5464)."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select, true
from sqlmodel import col

from mail.storage.quota import require_quota_for_growth
from models.errors import InvalidInput, LimitReached
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox, MailboxAnnotation
from models.store.columns import ColumnRow, insert_with_conflict
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_of_managed_user, is_visible_or_managed
from resolvers.context import Context
from resolvers.mailboxes.loaders import MailboxSelector, require_mailbox_of_each
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.users.selection import VIEWER_ONLY, UserSelector

MAX_KEY_LENGTH = 255  # characters
MAX_ANNOTATIONS = 100  # of one mailbox
# RFC 5464, section 3.2: printable ASCII without wildcards, no part of it empty
_KEY_PATTERN = re.compile(r"/(?:private|shared)(?:/[ !-$&-)+-.0-~]+)+")


def validate_annotation_key(key: str) -> str:
    """Return the key in lower case, since keys ignore case.

    Raises InvalidInput if it is malformed.
    """
    if len(key) > MAX_KEY_LENGTH or not _KEY_PATTERN.fullmatch(key.lower()):
        text = (
            "A name begins with /private/ or /shared/, and has at most "
            f"{MAX_KEY_LENGTH} ASCII characters, without * and %."
        )
        raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=["key"])
    return key.lower()


async def set_annotation_in_each_account(
    ctx: Context,
    selector: MailboxSelector,
    key_and_value: tuple[str, str],
    users: UserSelector = VIEWER_ONLY,
) -> list[tuple[str, str]]:
    """Set an annotation of this mailbox of each account. Returns key and value for each mailbox.

    Raises InvalidInput, NotFound, LimitReached or OverQuota.
    """
    key, value = validate_annotation_key(key_and_value[0]), key_and_value[1]
    max_size = ctx.environment.options.metadata_max_size
    if len(value.encode(errors="surrogatepass")) > max_size:
        raise InvalidInput(
            f"A value has at most {max_size} bytes.",
            constraint=ValidationConstraint.MAX,
            path=["value"],
        )
    async with lock_mail_owners_and_audit_change(
        ctx, users, "mailboxAnnotationSet"
    ) as locked_owners:
        mailboxes = await require_mailbox_of_each(locked_owners, selector)
        counts_and_values = await _annotation_counts_and_values(locked_owners, mailboxes, key)
        for mailbox in mailboxes:
            annotation_count, old_value = counts_and_values.get(mailbox.id, (0, None))
            if old_value is None and annotation_count >= MAX_ANNOTATIONS:
                text = locked_owners.prefix_username_unless_viewer(
                    mailbox.user_id, f"A mailbox has at most {MAX_ANNOTATIONS} annotations."
                )
                raise LimitReached(text, limit=MAX_ANNOTATIONS, used=annotation_count, path=["key"])
        new = [
            mailbox
            for mailbox in mailboxes
            if counts_and_values.get(mailbox.id, (0, None))[1] != value
        ]
        if new:
            rows = [{"mailbox_id": mailbox.id, "key": key, "value": value} for mailbox in new]
            upsert = insert_with_conflict(ctx.environment.database.dialect, MailboxAnnotation)
            upsert = upsert.on_conflict_do_update(
                index_elements=["mailbox_id", "key"], set_={"value": upsert.excluded.value}
            )
            await _require_quota(locked_owners, new, counts_and_values, (key, value))
            await (await locked_owners.session.connection()).execute(upsert, rows)
            await _journal_mailbox_updates(locked_owners, new)
    return [(key, value) for _ in mailboxes]


async def _require_quota(
    locked: LockedAccounts,
    mailboxes: Sequence[ColumnRow],
    counts_and_values: Mapping[int, tuple[int, str | None]],
    key_and_value: tuple[str, str],
) -> None:
    """Raise OverQuota if the annotation of these mailboxes doesn't fit into an account."""
    key, value = key_and_value
    growth_by_user = Counter[int]()
    for mailbox in mailboxes:
        _, old_value = counts_and_values.get(mailbox.id, (0, None))
        old_size = 0 if old_value is None else len(key) + len(old_value.encode())
        growth_by_user[mailbox.user_id] += len(key) + len(value.encode()) - old_size
    for user_id, growth in growth_by_user.items():
        check = partial(require_quota_for_growth, user_id=user_id, byte_count=growth)
        await locked.ctx.environment.run_in_session(locked.session, check)


async def delete_annotation_where_present(
    ctx: Context, selector: MailboxSelector, key: str, users: UserSelector = VIEWER_ONLY
) -> list[str]:
    """Delete an annotation of this mailbox of each account.

    Returns the key for each deleted one.
    """
    key = validate_annotation_key(key)
    async with lock_mail_owners_and_audit_change(
        ctx, users, "mailboxAnnotationDelete"
    ) as locked_owners:
        mailboxes = await require_mailbox_of_each(locked_owners, selector)
        keys = [mailbox.id for mailbox in mailboxes]
        is_annotation = (
            col(MailboxAnnotation.mailbox_id).in_(keys),
            col(MailboxAnnotation.key) == key,
        )
        statement = (
            delete(MailboxAnnotation)
            .where(*is_annotation)
            .returning(col(MailboxAnnotation.mailbox_id))
        )
        deleted_keys = set(
            (await (await locked_owners.session.connection()).execute(statement)).scalars()
        )
        await _journal_mailbox_updates(
            locked_owners, [mailbox for mailbox in mailboxes if mailbox.id in deleted_keys]
        )
    return [key for _ in deleted_keys]


async def _annotation_counts_and_values(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow], key: str
) -> dict[int, tuple[int, str | None]]:
    """Return the number of annotations of each mailbox, and the value of the one with this key."""
    has_key = col(MailboxAnnotation.key) == key
    statement = (
        select(
            col(MailboxAnnotation.mailbox_id),
            func.count(),
            func.max(col(MailboxAnnotation.value)).filter(has_key),
        )
        .where(col(MailboxAnnotation.mailbox_id).in_([mailbox.id for mailbox in mailboxes]))
        .group_by(col(MailboxAnnotation.mailbox_id))
    )
    rows = (await (await locked.session.connection()).execute(statement)).all()
    return {mailbox: (count, value) for mailbox, count, value in rows}


async def _journal_mailbox_updates(locked: LockedAccounts, mailboxes: Sequence[ColumnRow]) -> None:
    mailbox_ids_by_user: defaultdict[int, list[int]] = defaultdict(list)
    for mailbox in mailboxes:
        mailbox_ids_by_user[mailbox.user_id].append(mailbox.id)
    event_type = EventType.MAILBOX_UPDATED
    await locked.record_changes(
        {
            user: locked.ctx.journal_entries(event_type, ids)
            for user, ids in mailbox_ids_by_user.items()
        }
    )


def _visible_annotations_query(
    ctx: Context, mailbox_ids: Sequence[int]
) -> Select[*tuple[Any, ...]]:
    return (
        select(
            col(MailboxAnnotation.mailbox_id),
            col(MailboxAnnotation.key),
            col(MailboxAnnotation.value),
        )
        .join(Mailbox, col(Mailbox.id) == col(MailboxAnnotation.mailbox_id))
        .where(
            col(MailboxAnnotation.mailbox_id).in_(mailbox_ids),
            is_visible_or_managed(ctx, Mailbox),
            _is_visible_annotation_sql(ctx),
        )
        .order_by(col(MailboxAnnotation.key))
    )


def _is_visible_annotation_sql(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see an annotation.

    Only the owner, and administrators of the owner, see those below /private/ (RFC 5464, section
    3.3).
    """
    if not ctx.viewer.share_visibility.has_shared_mailboxes:
        return true()
    is_own_mailbox = col(Mailbox.user_id) == ctx.viewer.user_id
    is_managed = is_of_managed_user(ctx, Mailbox)
    return is_own_mailbox | is_managed | col(MailboxAnnotation.key).startswith("/shared/")


async def load_visible_annotations_by_mailbox(
    ctx: Context, mailbox_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the annotations of these mailboxes, in their order, each list sorted by key."""
    rows_by_mailbox: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(_visible_annotations_query(ctx, mailbox_ids)):
        rows_by_mailbox[row.mailbox_id].append(row)
    return [rows_by_mailbox[key] for key in mailbox_ids]


async def load_visible_annotations_by_key(
    ctx: Context, mailbox_ids_and_keys: list[tuple[int, str]]
) -> list[ColumnRow | None]:
    """Load annotations by mailbox ID and key, in this order. None if there is none."""
    names = {name for _, name in mailbox_ids_and_keys}
    statement = _visible_annotations_query(ctx, [key for key, _ in mailbox_ids_and_keys]).where(
        col(MailboxAnnotation.key).in_(names)
    )
    rows_by_key = {(row.mailbox_id, row.key): row for row in await ctx.read(statement)}
    return [rows_by_key.get(key) for key in mailbox_ids_and_keys]
