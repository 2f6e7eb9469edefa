"""Create, update, test and delete push channels, which notify users of new mail."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, Select, bindparam, delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import parse_http_target
from mail.text.bounded_regex import BoundedRegex
from models.auth.security_log import SecurityEventAction
from models.errors import ErrorCollector, InvalidInput, NotFound
from models.events.event_types import EventType
from models.events.journal import Stream
from models.events.wakeups import PUSHES
from models.notifications.push_channels import PushChannel, PushKind
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.prepared_statements import PreparedStatement
from models.users.roles import AdminPermission, Role
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_prepared
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.mailboxes.loaders import MailboxSelector, require_mailbox_of_each
from resolvers.mailboxes.owners import LockedAccounts
from resolvers.notifications import web_push
from resolvers.notifications.push_leases import CHANGED_FIELDS
from resolvers.notifications.push_requests import (
    MAX_TEXT_LENGTH,
    MAX_TITLE_LENGTH,
    decrypt_target,
    secret_purpose,
)
from resolvers.pagination import read_all_by_keys, read_by_keys
from resolvers.submission.sender_patterns import validated_sender_pattern
from resolvers.users import managed_objects
from resolvers.users.selection import UserSelector, require_selected_users
from resolvers.viewer import GuardRule

MAX_SENDERS = 100  # patterns of a channel
MAX_MAILBOXES = 100  # of a channel
MAX_CREDENTIAL_LENGTH = 512  # characters
TARGET_PARTS = {  # required and optional parts by kind
    PushKind.PUSHOVER: (("key", "token"), ()),
    PushKind.WEB_PUSH: (("endpoint",), ()),
    PushKind.HTTP: (("endpoint",), ("token",)),
}
IMMUTABLE_COLUMNS = ("id", "user_id", "kind", "created_at")
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(PushChannel)) - {
    "target",
    "lease",
    "holder",
}
_OWN_CHANNELS = PreparedStatement(
    select(*select_columns(PushChannel, VISIBLE_COLUMNS))
    .where(is_own_prepared(PushChannel))
    .order_by(col(PushChannel.kind))
)
LOGGED_COLUMNS = (
    "kind", "active", "title", "text", "senders", "senders_regex", "high_priority_only",
    "pass_priority",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PushChannelChange:
    """New settings of a push channel of a kind. Absent settings stay unchanged.

    `target` can have key, token and endpoint; None removes one.
    """

    kind: PushKind
    values: Mapping[str, Any] = field(default_factory=dict)  # by column
    target: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mailbox_refs: Sequence[MailboxSelector] | None = None


async def create_or_update_channels(
    ctx: Context, users: UserSelector, change: PushChannelChange
) -> list[int]:
    """Create or update the channel of a kind of each of these accounts; returns the channel ids.

    Raises InvalidInput, NotFound if an account or mailbox does not exist, and Forbidden if the
    viewer may not read the mail of these accounts.
    """
    rows = await require_selected_users(ctx, users)
    _require_permissions(ctx, [row.id for row in rows])
    values, target_parts = _validated_columns_and_target_parts(ctx, change)
    user_ids = [row.id for row in rows]
    async with ctx.write_session(*user_ids) as session:
        channel_by_user = await _lock_channels_by_user(session, user_ids, change.kind)
        mailbox_ids_by_user = await _require_mailbox_ids_by_user(
            LockedAccounts(ctx, session, rows), change.mailbox_refs
        )
        positions = await _read_stream_positions(ctx, user_ids)
        rows_with_previous, log_entries = [], []
        for user in rows:
            before = channel_by_user.get(user.id)
            channel_values = (
                values
                if mailbox_ids_by_user is None
                else {**values, "mailboxes": mailbox_ids_by_user[user.id]}
            )
            row = _push_channel_row(
                ctx,
                (user.id, change.kind),
                before,
                (channel_values, target_parts),
                positions[user.id],
            )
            rows_with_previous.append((before, row))
            logged_before = None if before is None else _logged_values(before._asdict())
            log_entries.append(
                NewAuditLogEntry(
                    "pushChannelSet",
                    "PushChannel",
                    row["id"],
                    user.domain_id,
                    logged_before,
                    _logged_values(row),
                )
            )
        await _write_push_channel_rows(session, rows_with_previous)
        await _journal_and_log_push_channel_changes(
            ctx, session, user_ids, change.kind, log_entries
        )
    _wake_worker(ctx)
    return [row["id"] for _, row in rows_with_previous]


def _require_permissions(ctx: Context, user_ids: Sequence[int]) -> None:
    """Raise Forbidden if the viewer may not manage channels of these users."""
    if any(user != ctx.viewer.user_id for user in user_ids):
        for permission in (AdminPermission.PUSH_CHANNELS, AdminPermission.IMPERSONATE):
            ctx.viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=permission))


class _ValidatedChannelChange(NamedTuple):
    """The new columns of a push channel, and the new parts of its target."""

    columns: dict[str, Any]
    target_parts: dict[str, Any]


def _validated_columns_and_target_parts(
    ctx: Context, change: PushChannelChange
) -> _ValidatedChannelChange:
    """Return the new columns and the new parts of the target.

    Raises InvalidInput with all that is wrong.
    """
    problems, values, target_parts = ErrorCollector(), dict(change.values), dict(change.target)
    required, optional = TARGET_PARTS[change.kind]
    for name, part in change.target.items():
        with problems.collecting():
            if name not in (*required, *optional):
                text = f"A channel of the kind {change.kind} does not have this field."
                raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=[name])
            if part is not None:
                target_parts[name] = _validate_target_part(ctx, change.kind, name, part)
    for name, max_length in (("title", MAX_TITLE_LENGTH), ("text", MAX_TEXT_LENGTH)):
        with problems.collecting():
            _require_valid_template(values.get(name), name, max_length)
    with problems.collecting():
        if values.get("senders") is not None:
            values["senders"] = _validate_senders(values["senders"])
    with problems.collecting():
        if values.get("senders_regex") is not None:
            BoundedRegex(values["senders_regex"])
    with problems.collecting():
        if change.mailbox_refs is not None and len(change.mailbox_refs) > MAX_MAILBOXES:
            raise InvalidInput(
                f"At most {MAX_MAILBOXES} mailboxes are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["mailboxes"],
            )
    problems.raise_collected()
    return _ValidatedChannelChange(values, target_parts)


def _validate_target_part(ctx: Context, kind: PushKind, name: str, part: Any) -> Any:
    """Return a valid part of a push target. Raises InvalidInput."""
    private = ctx.environment.options.push_allow_private_networks
    if name != "endpoint":
        if (
            not 0 < len(part) <= MAX_CREDENTIAL_LENGTH
            or not part.isascii()
            or not part.isprintable()
        ):
            text = f"Must have from 1 to {MAX_CREDENTIAL_LENGTH} printable ASCII characters."
            raise InvalidInput(text, constraint=ValidationConstraint.FORMAT, path=[name])
        return part
    if kind is PushKind.WEB_PUSH:
        return web_push.validate_subscription(part, allow_private=private)
    if not isinstance(part, str):
        raise InvalidInput(
            "Must be a URL as a string.", constraint=ValidationConstraint.FORMAT, path=[name]
        )
    parse_http_target(part, allow_private=private, error_path=[name])
    return part


def _require_valid_template(text: str | None, field_name: str, max_length: int) -> None:
    if text is not None and not (0 < len(text) <= max_length and text.strip()):
        raise InvalidInput(
            f"Must have from 1 to {max_length} characters.",
            constraint=ValidationConstraint.LENGTH,
            path=[field_name],
        )
    if text is not None and not text.replace("\n", "").isprintable():
        raise InvalidInput(
            "Must not contain control characters.",
            constraint=ValidationConstraint.PATTERN,
            path=[field_name],
        )


def _validate_senders(senders: Sequence[str]) -> list[str]:
    if len(senders) > MAX_SENDERS:
        raise InvalidInput(
            f"At most {MAX_SENDERS} senders are allowed.",
            constraint=ValidationConstraint.MAX,
            path=["senders"],
        )
    patterns = (
        validated_sender_pattern(sender, ["senders"], index) for index, sender in enumerate(senders)
    )
    return list(dict.fromkeys(patterns))


async def _lock_channels_by_user(
    session: AsyncSession, user_ids: Sequence[int], kind: PushKind
) -> dict[int, ColumnRow]:
    """Read and lock the channels of this kind, by user."""
    statement = select(*select_columns(PushChannel)).where(
        col(PushChannel.user_id).in_(user_ids), col(PushChannel.kind) == kind
    )
    statement_locked = statement.order_by(col(PushChannel.id)).with_for_update()
    rows = (await (await session.connection()).execute(statement_locked)).all()
    return {row.user_id: row for row in rows}


async def _require_mailbox_ids_by_user(
    locked_users: LockedAccounts, mailbox_refs: Sequence[MailboxSelector] | None
) -> dict[int, list[int]] | None:
    """Return the ids of the named mailboxes of each account.

    Raises NotFound if an account lacks one.
    """
    if mailbox_refs is None:
        return None
    ids_by_user: defaultdict[int, list[int]] = defaultdict(list)
    for index, mailbox_ref in enumerate(mailbox_refs):
        try:
            mailboxes = await require_mailbox_of_each(locked_users, mailbox_ref)
        except NotFound as refusal:
            raise NotFound(refusal.ref, path=["mailboxes"], index=index) from None
        for mailbox in mailboxes:
            if mailbox.id not in ids_by_user[mailbox.user_id]:
                ids_by_user[mailbox.user_id].append(mailbox.id)
    return ids_by_user


async def _read_stream_positions(ctx: Context, user_ids: Sequence[int]) -> dict[int, int]:
    """Return the last position in the journal of each account."""
    statement = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(user_ids))
    return {row.id: row.last for row in await ctx.read(statement)}


def _push_channel_row(
    ctx: Context,
    user_id_and_kind: tuple[int, PushKind],
    before: ColumnRow | None,
    values_and_target: tuple[Mapping[str, Any], Mapping[str, Any]],
    stream_position: int,
) -> dict[str, Any]:
    """Return the columns of a new or changed channel.

    A new or reactivated channel starts at `stream_position`, so that earlier mail is not pushed.
    """
    values, target_parts = values_and_target
    now = ctx.environment.now()
    row: dict[str, Any] = {
        "id": ctx.environment.new_id(),
        "user_id": user_id_and_kind[0],
        "kind": user_id_and_kind[1],
        "active": True,
        "title": None,
        "text": None,
        "senders": [],
        "senders_regex": None,
        "high_priority_only": False,
        "pass_priority": False,
        "mailboxes": [],
        "number": stream_position,
        "test_at": None,
        "last_push_at": None,
        "window_at": None,
        "pushed": 0,
        "created_at": now,
    }
    if before is not None:
        row |= before._asdict()
    row |= values
    if before is not None and row["active"] and not before.active:
        row["number"] = stream_position
    reset_values = {"failures": 0, "retry_at": None, "last_error": None, "updated_at": now}
    released_lease = {"lease": None, "holder": None}  # a worker that serves the channel stops
    encrypted_target = _merge_and_encrypt_target(ctx, row, before, target_parts)
    return {**row, **reset_values, **released_lease, "target": encrypted_target}


def _merge_and_encrypt_target(
    ctx: Context,
    channel_row: Mapping[str, Any],
    before: ColumnRow | None,
    new_parts: Mapping[str, Any],
) -> str:
    """Return the encrypted target. Raises InvalidInput if a required part is missing."""
    target_parts: dict[str, Any] = {}
    if before is not None:
        try:
            target_parts = decrypt_target(ctx.environment, before)
        except DecryptionError:
            target_parts = {}  # all parts must be given again
    target_parts = {
        name: part for name, part in {**target_parts, **new_parts}.items() if part is not None
    }
    for name in TARGET_PARTS[channel_row["kind"]][0]:
        if name not in target_parts:
            raise InvalidInput(
                f"A channel of this kind requires {name}.",
                constraint=ValidationConstraint.REQUIRED,
                path=[name],
            )
    return ctx.environment.secret_box.encrypt(
        orjson.dumps(target_parts).decode(), secret_purpose(channel_row["id"])
    )


async def _write_push_channel_rows(
    session: AsyncSession, rows_with_previous: Sequence[tuple[Any, dict[str, Any]]]
) -> None:
    connection = await session.connection()
    new_rows = [row for before, row in rows_with_previous if before is None]
    if new_rows:
        await connection.execute(insert(PushChannel), new_rows)
    table = core_table(PushChannel)
    column_names = [column.name for column in table.c if column.name not in IMMUTABLE_COLUMNS]
    statement = update(table).where(table.c.id == bindparam("its_id"))
    statement = statement.values({name: bindparam(f"its_{name}") for name in column_names})
    changed_rows = [
        {
            f"its_{name}": value
            for name, value in row.items()
            if name == "id" or name in column_names
        }
        for before, row in rows_with_previous
        if before is not None
    ]
    if changed_rows:
        await connection.execute(statement, changed_rows)


async def _journal_and_log_push_channel_changes(
    ctx: Context,
    session: AsyncSession,
    user_ids: Sequence[int],
    kind: str,
    log_entries: Sequence[NewAuditLogEntry],
) -> None:
    """Record the changes in journals, security logs and, for other users, in the audit log."""
    journal_entries = {user: [(EventType.USER_UPDATED, [user])] for user in user_ids}
    await ctx.record_changes(session, journal_entries, changed=[CHANGED_FIELDS])
    events = [
        NewSecurityEvent(SecurityEventAction.PUSH_CHANNEL_SET, user, target=kind)
        for user in user_ids
    ]
    await security_log.insert_security_events_and_queue_notices(ctx, session, events)
    entries_for_others = [
        entry
        for entry, user in zip(log_entries, user_ids, strict=True)
        if user != ctx.viewer.user_id
    ]
    await audit_log.insert_audit_log_entries(ctx, session, *entries_for_others)


def _logged_values(channel_row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: channel_row[name] for name in LOGGED_COLUMNS}


def _wake_worker(ctx: Context) -> None:
    """Wake the push worker after the transaction."""
    ctx.call_after_commit_or_now(lambda: ctx.environment.wakeups.announce({PUSHES: 0}))


async def request_test_notifications(ctx: Context, ids: Sequence[int]) -> None:
    """Push a test notification to these channels, also to inactive ones.

    Raises NotFound or Forbidden.
    """
    owner_ids = await _owner_ids(ctx, ids)
    async with ctx.write_session(*owner_ids) as session:
        rows = await _load_channels_in_transaction(ctx, session, ids)
        statement = update(PushChannel).where(col(PushChannel.id).in_(ids))
        values = {"test_at": ctx.environment.now(), "retry_at": None}
        await (await session.connection()).execute(statement.values(values))
        await audit_log.insert_audit_log_entries(
            ctx, session, *_log_entries_for_others(ctx, rows, "pushChannelTest")
        )
    _wake_worker(ctx)


async def delete_channels(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these channels, all or none. Raises NotFound or Forbidden."""
    owner_ids = await _owner_ids(ctx, ids)
    async with ctx.write_session(*owner_ids) as session:
        rows = await _load_channels_in_transaction(ctx, session, ids)
        statement = delete(PushChannel).where(col(PushChannel.id).in_(ids))
        await (await session.connection()).execute(statement)
        journal_entries = {user: [(EventType.USER_UPDATED, [user])] for user in owner_ids}
        await ctx.record_changes(session, journal_entries, changed=[CHANGED_FIELDS])
        events = [
            NewSecurityEvent(SecurityEventAction.PUSH_CHANNEL_DELETED, row.user_id, target=row.kind)
            for row in rows
        ]
        await security_log.insert_security_events_and_queue_notices(ctx, session, events)
        await audit_log.insert_audit_log_entries(
            ctx, session, *_log_entries_for_others(ctx, rows, "pushChannelDelete")
        )


def _log_entries_for_others(
    ctx: Context, rows: Sequence[ColumnRow], mutation: str
) -> list[NewAuditLogEntry]:
    return [
        NewAuditLogEntry(mutation, "PushChannel", row.id, row.domain_id, {"kind": row.kind})
        for row in rows
        if row.user_id != ctx.viewer.user_id
    ]


async def _owner_ids(ctx: Context, ids: Sequence[int]) -> list[int]:
    return managed_objects.require_owner_ids_of_rows(
        ids, await load_visible_channels_by_id(ctx, list(ids))
    )


async def _load_channels_in_transaction(
    ctx: Context, session: AsyncSession, ids: Sequence[int]
) -> list[ColumnRow]:
    return await managed_objects.require_managed_rows_in_transaction(
        ctx, session, PushChannel, VISIBLE_COLUMNS, (ids, _is_visible(ctx))
    )


def _is_visible(ctx: Context) -> ColumnElement[bool]:
    return managed_objects.is_visible_sql(ctx, PushChannel, AdminPermission.PUSH_CHANNELS)


def _visible_channels(ctx: Context) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(PushChannel, VISIBLE_COLUMNS)).where(_is_visible(ctx))


async def load_visible_channels_by_user(
    ctx: Context, user_ids: list[int]
) -> list[Sequence[ColumnRow]]:
    """Load the channels of each account, sorted by kind."""
    if user_ids == [ctx.viewer.user_id]:
        return [await ctx.read_prepared(_OWN_CHANNELS)]
    rows = _visible_channels(ctx).order_by(col(PushChannel.kind))
    return await read_all_by_keys(ctx, rows, col(PushChannel.user_id), user_ids)


async def load_visible_channels_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load channels, in the order of the ids; None if the viewer does not see one."""
    return await read_by_keys(ctx, _visible_channels(ctx), col(PushChannel.id), ids)
