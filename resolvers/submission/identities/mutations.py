"""Create, update and delete the rows of identities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose import draft_validation
from models.errors import (
    Conflict,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
)
from models.events.event_types import EventType, ids_by_event_type
from models.mailboxes.tables import HOLDING_USES
from models.store.columns import ColumnRow, select_columns
from models.submission.identities import Identity
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_full_scope_for_other_users, require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission.identities import loaders as identity_loaders
from resolvers.submission.identities.administrator_diversions import (
    changed_diversions,
    diversion_columns,
    load_owner_id_of_viewer_if_diverting,
    log_diversions_and_queue_notices,
)
from resolvers.submission.identities.loaders import (
    AccountIdentities,
    SenderIdentity,
)
from resolvers.submission.identities.validation import (
    IdentityChanges,
    require_permission_to_divert,
    require_sendable_identity_of_address,
    validate_identity_changes,
)
from resolvers.users.selection import require_managed_users

MAX_IDENTITIES = 100  # of one account
DEFAULT_VALUES: dict[str, Any] = {  # of a new row
    "name": None, "preferred": False, "reply_to": None, "bcc": [], "signature_text": None,
    "signature_html": None, "mailbox_id": None, "diverted_by": None,
}  # fmt: skip

EventTypesByUser = dict[int, dict[int, EventType]]  # by user id and identity id


async def create_identity(
    ctx: Context, user_id: int | None, address: str, changes: IdentityChanges
) -> int:
    """Create the row of an identity and return its id. The default user is the viewer.

    Raises Forbidden if the user may not send as the address, or if the viewer may not change
    another user's identities. Raises Conflict if the address has stored values, LimitReached at
    100 identities, InvalidInput, and NotFound if the viewer does not manage the user.
    """
    return await _create_or_update_identity(
        ctx,
        require_user_id(ctx) if user_id is None else user_id,
        address,
        changes,
        _require_no_stored_values,
    )


def _require_no_stored_values(identity: SenderIdentity) -> None:
    if identity.has_row:
        text = "The address already has stored values: change its identity instead."
        raise Conflict(text, path=["address"])


async def set_own_identity(ctx: Context, address: str, changes: IdentityChanges) -> int:
    """Create or update the row of an identity of the viewer and return its id.

    Raises Forbidden if the viewer may not send as the address, LimitReached and InvalidInput.
    """
    return await _create_or_update_identity(
        ctx, require_user_id(ctx), address, changes, lambda _identity: None
    )


async def _create_or_update_identity(
    ctx: Context,
    user_id: int,
    address: str,
    changes: IdentityChanges,
    require_allowed: Callable[[SenderIdentity], None],
) -> int:
    """Write the row of an identity and return its id.

    `require_allowed` raises an error if the identity can't be written. Raises the other errors of
    `create_identity`.
    """
    require_full_scope_for_other_users(ctx, [user_id])
    address = draft_validation.normalize_and_validate_address_with_index(address, "address")
    if "*" in address:
        raise InvalidInput(
            "The address of an identity can't be a pattern.",
            constraint=ValidationConstraint.PATTERN,
            path=["address"],
        )
    require_permission_to_divert(ctx, [user_id], changes)
    changes = await validate_identity_changes(changes)
    async with ctx.write_session(user_id) as session:
        (user,) = await require_managed_users(ctx, [user_id], path="user")
        (account_identities,) = [
            identity
            for identity in await identity_loaders.load_visible_identities_by_user(ctx, [user_id])
            if identity
        ]
        identity = await require_sendable_identity_of_address(ctx, account_identities, address)
        require_allowed(identity)
        await _write_identities(
            ctx,
            session,
            [IdentityTarget(user, account_identities, identity)],
            changes,
            "identityCreate",
        )
    return identity.id


async def update_identities(ctx: Context, ids: Sequence[int], changes: IdentityChanges) -> None:
    """Update these identities, all or none.

    Raises NotFound, InvalidInput, Forbidden or LimitReached.
    """
    if not changes.values and not changes.changes_mailbox:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=changes.input_path,
        )
    unique_ids = list(dict.fromkeys(ids))
    user_ids = [identity.user_id for identity in await _require_visible_sender_identities(ctx, ids)]
    require_full_scope_for_other_users(ctx, user_ids)
    require_permission_to_divert(ctx, user_ids, changes)
    changes = await validate_identity_changes(changes)
    async with ctx.write_session(*user_ids) as session:
        users = {
            user.id: user for user in await require_managed_users(ctx, user_ids, path="identities")
        }
        identities_to_change = await _require_visible_sender_identities(ctx, unique_ids)
        if changes.values.get("preferred") and len(identities_to_change) > len(users):
            text = "Only one identity of a user can be the default."
            raise InvalidInput(
                text,
                constraint=ValidationConstraint.EXCLUSIVE,
                path=[*changes.input_path, "default"],
            )
        identities_by_user = await identity_loaders.load_visible_identities_by_user(
            ctx, list(users)
        )
        identities_of_user = {
            identity.account.id: identity for identity in identities_by_user if identity
        }
        targets = [
            IdentityTarget(users[identity.user_id], identities_of_user[identity.user_id], identity)
            for identity in identities_to_change
        ]
        try:
            await _write_identities(ctx, session, targets, changes, "identityUpdate")
        except LimitReached as error:
            raise error.copy_with_path(["identities"]) from None


async def _require_visible_sender_identities(
    ctx: Context, ids: Sequence[int]
) -> list[SenderIdentity]:
    identities = [
        identity
        for identity in await identity_loaders.load_visible_identities_by_id(ctx, list(ids))
        if identity
    ]
    require_all_found(ids, {identity.id for identity in identities}, path=["identities"])
    return identities


async def delete_identities(ctx: Context, ids: Sequence[int]) -> None:
    """Delete the rows of these identities, all or none. What follows from an address alone stays.

    Raises NotFound, Forbidden, and Conflict if an identity has no row.
    """
    user_ids = [identity.user_id for identity in await _require_visible_sender_identities(ctx, ids)]
    require_full_scope_for_other_users(ctx, user_ids)
    async with ctx.write_session(*user_ids) as session:
        users = {
            user.id: user for user in await require_managed_users(ctx, user_ids, path="identities")
        }
        identities_to_delete = await _require_visible_sender_identities(ctx, ids)
        for index, identity in enumerate(identities_to_delete):
            if not identity.has_row:
                text = (
                    "The identity follows from an address of the user, and can't be "
                    "deleted: it exists while the user may send as the address."
                )
                raise Conflict(text, path=["identities", str(index)])
        statement = delete(Identity).where(col(Identity.id).in_(ids))
        await (await session.connection()).execute(statement)
        event_types: EventTypesByUser = {user: {} for user in users}
        for identity in identities_to_delete:
            event_types[identity.user_id][identity.id] = EventType.IDENTITY_DELETED
        log_entries = {
            identity.id: _log_entry(
                "identityDelete", users[identity.user_id], identity, _values_for_log(identity)
            )
            for identity in identities_to_delete
        }
        await _journal_and_audit_identity_changes(ctx, session, event_types, log_entries)


@dataclass(frozen=True, slots=True)
class IdentityTarget:
    """An identity to write and its account. The stream of the account is locked."""

    user: ColumnRow
    account_identities: AccountIdentities
    identity: SenderIdentity


async def _write_identities(
    ctx: Context,
    session: AsyncSession,
    targets: Sequence[IdentityTarget],
    changes: IdentityChanges,
    mutation: str,
) -> None:
    """Insert or update the rows, and record those that changed."""
    administrator_id = await load_owner_id_of_viewer_if_diverting(ctx, changes.values)
    mailbox_ids = await _require_sent_mailbox_ids_by_user(ctx, targets, changes)
    connection = await session.connection()
    rows_before = await _read_rows_by_id(ctx, targets)
    event_types: EventTypesByUser = {target.user.id: {} for target in targets}
    if changes.values.get("preferred"):
        await _clear_other_defaults(session, event_types, targets)
    new_rows, log_entries, diverted = [], {}, []
    for target in targets:
        sender, row = target.identity, rows_before.get(target.identity.id)
        new_values = _new_identity_columns(ctx, target, changes, mailbox_ids)
        values_before = DEFAULT_VALUES if row is None else row._asdict()
        is_own = target.user.id == ctx.viewer.user_id and not ctx.viewer.is_acting
        new_values |= diversion_columns(
            changes.values, values_before, administrator_id, is_own=is_own
        )
        if row is None:
            new_rows.append(new_values)
        elif all(
            getattr(row, name) == new_values[name] for name in new_values if name != "updated_at"
        ):
            continue
        else:
            statement = update(Identity).where(col(Identity.id) == sender.id)
            await connection.execute(statement.values(new_values))
        event_types[target.user.id][sender.id] = (
            EventType.IDENTITY_CREATED if row is None else EventType.IDENTITY_UPDATED
        )
        if not is_own and changed_diversions(changes.values, values_before):
            diverted.append((target.user.id, sender.address))
        old = _values_for_log(sender) if sender.has_row else None
        log_entries[sender.id] = _log_entry(
            mutation, target.user, sender, old, dict(changes.values)
        )
    if new_rows:
        await _delete_unusable_rows_or_raise_limit(ctx, session, event_types, targets, new_rows)
        await connection.execute(insert(Identity), new_rows)
    await log_diversions_and_queue_notices(ctx, session, changes.values, diverted)
    await _journal_and_audit_identity_changes(ctx, session, event_types, log_entries)


def _new_identity_columns(
    ctx: Context,
    target: IdentityTarget,
    changes: IdentityChanges,
    mailbox_ids: Mapping[int, int | None],
) -> dict[str, Any]:
    """Return the new column values; all columns if the identity has no row."""
    identity, now = target.identity, ctx.environment.now()
    values = dict(changes.values)
    if changes.changes_mailbox:
        values["mailbox_id"] = mailbox_ids[target.user.id]
    if not identity.has_row:  # a row that exists is of an address that was lost
        values = {
            **DEFAULT_VALUES,
            **values,
            "id": identity.id,
            "user_id": target.user.id,
            "created_at": now,
        }
    address_values = {
        "local": identity.normal_address.local_part,
        "domain": identity.normal_address.domain,
        "display_address": identity.address,
    }
    return {**values, **address_values, "updated_at": now}


async def _read_rows_by_id(ctx: Context, targets: Sequence[IdentityTarget]) -> dict[int, ColumnRow]:
    identity_ids = [target.identity.id for target in targets]
    statement = select(*select_columns(Identity)).where(col(Identity.id).in_(identity_ids))
    return {row.id: row for row in await ctx.read(statement)}


async def _require_sent_mailbox_ids_by_user(
    ctx: Context, targets: Sequence[IdentityTarget], changes: IdentityChanges
) -> dict[int, int | None]:
    """Return the mailbox for copies of each account.

    Raises NotFound if an account has none such.
    """
    users = sorted({target.user.id for target in targets})
    if changes.mailbox_ref is None:
        return dict.fromkeys(users)
    mailbox_ref = changes.mailbox_ref
    rows = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(user, mailbox_ref) for user in users]
    )
    for row in rows:
        if row is None:
            raise NotFound(str(mailbox_ref), path=[*changes.input_path, "sentMailbox"])
        if row.special_use in HOLDING_USES:  # its messages are moved at a set time
            text = "This mailbox is reserved for snoozed or scheduled messages: choose another one."
            raise InvalidInput(
                text,
                constraint=ValidationConstraint.SPECIAL_USE,
                path=[*changes.input_path, "sentMailbox"],
            )
    return {user: row.id if row else None for user, row in zip(users, rows, strict=True)}


async def _clear_other_defaults(
    session: AsyncSession, event_types: EventTypesByUser, targets: Sequence[IdentityTarget]
) -> None:
    """Clear the default of the other identities of these users, since a user has one."""
    identity_ids = [target.identity.id for target in targets]
    update_statement = (
        update(Identity)
        .where(
            col(Identity.user_id).in_(event_types),
            col(Identity.preferred),
            col(Identity.id).not_in(identity_ids),
        )
        .values(preferred=False)
        .returning(col(Identity.id), col(Identity.user_id))
    )
    for row in await (await session.connection()).execute(update_statement):
        event_types[row.user_id][row.id] = EventType.IDENTITY_UPDATED


async def _delete_unusable_rows_or_raise_limit(
    ctx: Context,
    session: AsyncSession,
    event_types: EventTypesByUser,
    targets: Sequence[IdentityTarget],
    new_rows: Sequence[Mapping[str, Any]],
) -> None:
    """Raise LimitReached if there are too many rows.

    Rows of addresses that the user may no longer send as are deleted first.
    """
    statement = select(*select_columns(Identity, {"id", "user_id"})).where(
        col(Identity.user_id).in_(event_types)
    )
    row_ids_by_user: dict[int, set[int]] = {user: set() for user in event_types}
    for row in await ctx.read(statement):
        row_ids_by_user[row.user_id].add(row.id)
    for user, rows in row_ids_by_user.items():
        new_count = sum(row["user_id"] == user for row in new_rows)
        if len(rows) + new_count <= MAX_IDENTITIES:
            continue
        usable_identities = next(
            target.account_identities.by_address for target in targets if target.user.id == user
        )
        unusable_ids = rows - {identity.id for identity in usable_identities.values()}
        statement_delete = delete(Identity).where(col(Identity.id).in_(unusable_ids))
        await (await session.connection()).execute(statement_delete)
        event_types[user].update(dict.fromkeys(unusable_ids, EventType.IDENTITY_DELETED))
        if (used := len(rows - unusable_ids)) + new_count > MAX_IDENTITIES:
            raise LimitReached(
                f"At most {MAX_IDENTITIES} identities are allowed.",
                limit=MAX_IDENTITIES,
                used=used,
                path=["user"],
            )


async def _journal_and_audit_identity_changes(
    ctx: Context,
    session: AsyncSession,
    event_types: EventTypesByUser,
    log_entries: Mapping[int, NewAuditLogEntry],
) -> None:
    """Record the changes in the journals and, for other users' identities, in the audit log."""
    journal_entries = {
        user: ids_by_event_type(types_by_id)
        for user, types_by_id in event_types.items()
        if types_by_id
    }
    if journal_entries:
        await ctx.record_changes(session, journal_entries)
    own_ids = {} if ctx.viewer.user_id is None else event_types.get(ctx.viewer.user_id, {})
    await audit_log.insert_audit_log_entries(
        ctx, session, *(entry for key, entry in log_entries.items() if key not in own_ids)
    )


def _log_entry(
    mutation: str, user: ColumnRow, identity: SenderIdentity, before: Any, after: Any = None
) -> NewAuditLogEntry:
    values_after = None if after is None else {"address": identity.address, **after}
    return NewAuditLogEntry(mutation, "Identity", identity.id, user.domain_id, before, values_after)


def _values_for_log(sender: SenderIdentity) -> dict[str, Any]:
    return {"address": sender.address, "name": sender.name}
