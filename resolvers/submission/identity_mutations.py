"""Create, update and delete the rows of identities."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import mime
from mail.addresses.address_syntax import normalized_address
from mail.compose import message_builder
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    require_all_found,
)
from models.events.event_types import EventType
from models.mailboxes.tables import HOLDING_USES
from models.store.columns import ColumnRow, select_columns
from models.submission.identities import Identity
from models.users.roles import AdminPermission, Role
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context, GuardRule
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission import identities
from resolvers.submission.identities import AccountIdentities, SenderIdentity, id_from_address
from resolvers.submission.sender_authorization import read_sender_grants
from resolvers.users.selection import load_managed_users

MAX_IDENTITIES = 100  # of one account
MAX_BCC = 20  # addresses of one identity
MAX_SIGNATURE_BYTES = 64 << 10  # of the text and of the HTML
DIVERTING_FIELDS = frozenset({"bcc", "reply_to"})  # they send copies or replies to another person
DEFAULT_VALUES: dict[str, Any] = {  # of a new row
    "name": None, "preferred": False, "reply_to": None, "bcc": [], "signature_text": None,
    "signature_html": None, "mailbox_id": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class IdentityChanges:
    """New values of an identity by column. A column that is absent stays unchanged.

    If `changes_mailbox`, `mailbox_ref` is the new mailbox for copies, and None removes it.
    """

    values: Mapping[str, Any]
    mailbox_ref: mailbox_loaders.MailboxSelector | None = None
    changes_mailbox: bool = False
    input_path: Sequence[str] = ()


async def create_identity(
    ctx: Context, user_id: int | None, address: str, changes: IdentityChanges
) -> int:
    """Create the row of an identity and return its id. The default user is the viewer.

    Raises Forbidden if the user may not send as the address, Conflict if it has a row,
    LimitReached at 100 identities, Invalid, and NotFound if the viewer does not manage the user.
    """
    return await _create_or_update_identity(
        ctx,
        require_user_id(ctx) if user_id is None else user_id,
        address,
        changes,
        must_be_new=True,
    )


async def set_own_identity(ctx: Context, address: str, changes: IdentityChanges) -> int:
    """Create or update the row of an identity of the viewer and return its id.

    Raises Forbidden if the viewer may not send as the address, LimitReached and Invalid.
    """
    return await _create_or_update_identity(
        ctx, require_user_id(ctx), address, changes, must_be_new=False
    )


async def _create_or_update_identity(
    ctx: Context, user_id: int, address: str, changes: IdentityChanges, *, must_be_new: bool
) -> int:
    address = message_builder.validate_address(address, "address")
    if "*" in address:
        raise InvalidInput(
            "a sender is no pattern", constraint=ValidationConstraint.PATTERN, path=["address"]
        )
    _require_permission_to_divert(ctx, [user_id], changes)
    changes = await _validate_changes(changes)
    async with ctx.write_session(user_id) as session:
        (user,) = await load_managed_users(ctx, [user_id], path="user")
        (account_identities,) = [
            one for one in await identities.load_identities_by_user(ctx, [user_id]) if one
        ]
        identity = await _identity_of_address(ctx, account_identities, address)
        if must_be_new and identity.has_row:
            raise Conflict("there is an identity of this address", path=["address"])
        await _write_identities(
            ctx,
            session,
            [IdentityTarget(user, account_identities, identity)],
            changes,
            "identityCreate",
        )
    return identity.id


async def _identity_of_address(
    ctx: Context, account_identities: AccountIdentities, address: str
) -> SenderIdentity:
    """Return the present or future identity of an address.

    Raises Forbidden if the user can't send so.
    """
    (grant,) = await read_sender_grants(ctx, [(account_identities.account, address)])
    if grant is None:
        raise Forbidden("the user may not send as this address", path=["address"])
    normal_address, own_row = (
        normalized_address(address),
        grant.own_address_row(account_identities.account.id, address),
    )
    for one in account_identities.by_address.values():
        if one.normal_address == normal_address or (own_row and one.address_id == own_row.id):
            return one
    if own_row:
        return account_identities.identity_of_own_address(own_row)
    return SenderIdentity(
        id_from_address(account_identities.account.id, normal_address),
        account_identities.account.id,
        normal_address,
        address,
        None,
    )


async def update_identities(ctx: Context, ids: Sequence[int], changes: IdentityChanges) -> None:
    """Update these identities, all or none. Raises NotFound, Invalid, Forbidden or LimitReached."""
    if not changes.values and not changes.changes_mailbox:
        raise InvalidInput(
            "say what to change", constraint=ValidationConstraint.REQUIRED, path=changes.input_path
        )
    unique_ids = list(dict.fromkeys(ids))
    user_ids = {one.user_id for one in await _read_identities(ctx, ids)}
    _require_permission_to_divert(ctx, user_ids, changes)
    changes = await _validate_changes(changes)
    async with ctx.write_session(*user_ids) as session:
        users = {
            user.id: user for user in await load_managed_users(ctx, user_ids, path="identities")
        }
        identities_to_change = await _read_identities(ctx, unique_ids)
        if changes.values.get("preferred") and len(identities_to_change) > len(users):
            text = "one identity of a user is the default"
            raise InvalidInput(
                text,
                constraint=ValidationConstraint.EXCLUSIVE,
                path=[*changes.input_path, "default"],
            )
        identities_by_user = await identities.load_identities_by_user(ctx, list(users))
        identities_of_user = {one.account.id: one for one in identities_by_user if one}
        targets = [
            IdentityTarget(users[one.user_id], identities_of_user[one.user_id], one)
            for one in identities_to_change
        ]
        await _write_identities(ctx, session, targets, changes, "identityUpdate")


async def _read_identities(ctx: Context, ids: Sequence[int]) -> list[SenderIdentity]:
    found = [one for one in await identities.load_visible_identities_by_id(ctx, list(ids)) if one]
    require_all_found(ids, {one.id for one in found}, path=["identities"])
    return found


async def delete_identities(ctx: Context, ids: Sequence[int]) -> None:
    """Delete the rows of these identities, all or none. What follows from an address alone stays.

    Raises NotFound, and Conflict if an identity has no row.
    """
    user_ids = {one.user_id for one in await _read_identities(ctx, ids)}
    async with ctx.write_session(*user_ids) as session:
        users = {
            user.id: user for user in await load_managed_users(ctx, user_ids, path="identities")
        }
        identities_to_delete = await _read_identities(ctx, ids)
        for index, one in enumerate(identities_to_delete):
            if not one.has_row:
                text = "nothing was said of it: it is there as long as one may send as it"
                raise Conflict(text, path=["identities", str(index)])
        statement = delete(Identity).where(col(Identity.id).in_(ids))
        await (await session.connection()).execute(statement)
        changed_ids: dict[int, set[int]] = {user: set() for user in users}
        for one in identities_to_delete:
            changed_ids[one.user_id].add(one.id)
        log_entries = {
            one.id: _log_entry("identityDelete", users[one.user_id], one, _values_for_log(one))
            for one in identities_to_delete
        }
        await _record_changes(ctx, session, changed_ids, log_entries)


def _require_permission_to_divert(
    ctx: Context, user_ids: Collection[int], changes: IdentityChanges
) -> None:
    """Raise Forbidden if the viewer may not divert copies or replies of other users."""
    other_ids = set(user_ids) - {ctx.viewer.user_id}
    if other_ids and any(changes.values.get(name) for name in DIVERTING_FIELDS):
        permission = AdminPermission.BCC_RULES
        ctx.viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=permission))


async def _validate_changes(changes: IdentityChanges) -> IdentityChanges:
    """Return the changes in stored form. Raises Invalid with all that is wrong."""
    problems, values, input_path = ErrorCollector(), dict(changes.values), changes.input_path
    with problems.collecting():
        if values.get("name") is not None:
            text = values["name"].strip()
            values["name"] = (
                message_builder.validate_line(
                    text, [*input_path, "name"], message_builder.MAX_NAME_BYTES
                )
                or None
            )
    with problems.collecting():
        if values.get("reply_to") is not None:
            values["reply_to"] = _validate_address(values["reply_to"], [*input_path, "replyTo"])
    with problems.collecting():
        if "bcc" in values:
            values["bcc"] = _validate_bcc(values["bcc"] or (), [*input_path, "bcc"])
    for name, path in (("signature_text", "signatureText"), ("signature_html", "signatureHtml")):
        with problems.collecting():
            if values.get(name) is not None:
                values[name] = (
                    message_builder.validate_text(
                        values[name], [*input_path, path], MAX_SIGNATURE_BYTES
                    )
                    or None
                )
    problems.raise_collected()
    if html := values.get("signature_html"):
        values["signature_html"] = await asyncio.to_thread(_sanitize_signature, html)
    return replace(changes, values=values)


def _validate_address(text: str, path: Sequence[str], index: int | None = None) -> str:
    try:
        return message_builder.validate_address(text, path[-1], index)
    except InvalidInput as error:
        raise InvalidInput(
            error.message, constraint=error.constraint, path=path, index=index
        ) from error


def _validate_bcc(addresses: Sequence[str], path: Sequence[str]) -> list[str]:
    if len(addresses) > MAX_BCC:
        raise InvalidInput(
            f"at most {MAX_BCC} addresses", constraint=ValidationConstraint.MAX, path=path
        )
    found: dict[str, str] = {}
    for index, text in enumerate(addresses):
        address = _validate_address(text, path, index)
        found.setdefault(address.casefold(), address)
    return list(found.values())


def _sanitize_signature(html: str) -> str:
    """Return the HTML without scripts and other active content. Images stay, also remote ones."""
    return mime.sanitize_html(
        html, allow_remote_images=True, url_for_content_id=lambda cid: f"cid:{cid}"
    ).html


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
    mailbox_ids = await _sent_mailbox_ids(ctx, targets, changes)
    connection = await session.connection()
    rows_before = await _read_rows_by_id(ctx, targets)
    changed_ids: dict[int, set[int]] = {each.user.id: set() for each in targets}
    if changes.values.get("preferred"):
        await _clear_other_defaults(session, changed_ids, targets)
    new_rows, log_entries = [], {}
    for target in targets:
        sender, row = target.identity, rows_before.get(target.identity.id)
        new_values = _new_values(ctx, target, changes, mailbox_ids)
        if row is None:
            new_rows.append(new_values)
        elif all(
            getattr(row, name) == new_values[name] for name in new_values if name != "updated_at"
        ):
            continue
        else:
            statement = update(Identity).where(col(Identity.id) == sender.id)
            await connection.execute(statement.values(new_values))
        changed_ids[target.user.id].add(sender.id)
        old = _values_for_log(sender) if sender.has_row else None
        log_entries[sender.id] = _log_entry(
            mutation, target.user, sender, old, dict(changes.values)
        )
    if new_rows:
        await _make_room_for_rows(ctx, session, changed_ids, targets, new_rows)
        await connection.execute(insert(Identity), new_rows)
    await _record_changes(ctx, session, changed_ids, log_entries)


def _new_values(
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
        "shown": identity.address,
    }
    return {**values, **address_values, "updated_at": now}


async def _read_rows_by_id(ctx: Context, targets: Sequence[IdentityTarget]) -> dict[int, ColumnRow]:
    identity_ids = [each.identity.id for each in targets]
    statement = select(*select_columns(Identity)).where(col(Identity.id).in_(identity_ids))
    return {row.id: row for row in await ctx.read(statement)}


async def _sent_mailbox_ids(
    ctx: Context, targets: Sequence[IdentityTarget], changes: IdentityChanges
) -> dict[int, int | None]:
    """Return the mailbox for copies of each account.

    Raises NotFound if an account has none such.
    """
    users = sorted({each.user.id for each in targets})
    if changes.mailbox_ref is None:
        return dict.fromkeys(users)
    mailbox_ref = changes.mailbox_ref
    rows = await mailbox_loaders.load_by_selectors(ctx, [(user, mailbox_ref) for user in users])
    for row in rows:
        if row is None:
            raise NotFound(str(mailbox_ref), path=[*changes.input_path, "sentMailbox"])
        if row.special_use in HOLDING_USES:  # its messages are moved at a set time
            text = "this mailbox holds snoozed or scheduled messages: choose another one"
            raise InvalidInput(
                text,
                constraint=ValidationConstraint.SPECIAL_USE,
                path=[*changes.input_path, "sentMailbox"],
            )
    return {user: row.id if row else None for user, row in zip(users, rows, strict=True)}


async def _clear_other_defaults(
    session: AsyncSession, changed_ids: Mapping[int, set[int]], targets: Sequence[IdentityTarget]
) -> None:
    """Clear the default of the other identities of these users, since a user has one."""
    identity_ids = [each.identity.id for each in targets]
    update_statement = (
        update(Identity)
        .where(
            col(Identity.user_id).in_(changed_ids),
            col(Identity.preferred),
            col(Identity.id).not_in(identity_ids),
        )
        .values(preferred=False)
        .returning(col(Identity.id), col(Identity.user_id))
    )
    for row in await (await session.connection()).execute(update_statement):
        changed_ids[row.user_id].add(row.id)


async def _make_room_for_rows(
    ctx: Context,
    session: AsyncSession,
    changed_ids: Mapping[int, set[int]],
    targets: Sequence[IdentityTarget],
    new_rows: Sequence[Mapping[str, Any]],
) -> None:
    """Raise LimitReached if there are too many rows.

    Rows of addresses that the user may no longer send as are deleted first.
    """
    statement = select(*select_columns(Identity, {"id", "user_id"})).where(
        col(Identity.user_id).in_(changed_ids)
    )
    row_ids_by_user: dict[int, set[int]] = {user: set() for user in changed_ids}
    for row in await ctx.read(statement):
        row_ids_by_user[row.user_id].add(row.id)
    for user, rows in row_ids_by_user.items():
        new_count = sum(row["user_id"] == user for row in new_rows)
        if len(rows) + new_count <= MAX_IDENTITIES:
            continue
        usable_identities = next(
            each.account_identities.by_address for each in targets if each.user.id == user
        )
        unusable_ids = rows - {one.id for one in usable_identities.values()}
        statement_delete = delete(Identity).where(col(Identity.id).in_(unusable_ids))
        await (await session.connection()).execute(statement_delete)
        changed_ids[user].update(unusable_ids)
        if (used := len(rows - unusable_ids)) + new_count > MAX_IDENTITIES:
            raise LimitReached(
                f"at most {MAX_IDENTITIES} identities",
                limit=MAX_IDENTITIES,
                used=used,
                path=["user"],
            )


async def _record_changes(
    ctx: Context,
    session: AsyncSession,
    changed_ids: Mapping[int, Collection[int]],
    log_entries: Mapping[int, NewAuditLogEntry],
) -> None:
    """Record the changes in the journals and, for other users' identities, in the admin log."""
    journal_entries = {
        user: [(EventType.IDENTITY_CHANGED, sorted(ids))]
        for user, ids in changed_ids.items()
        if ids
    }
    if journal_entries:
        await ctx.record_changes(session, journal_entries)
    own_ids = changed_ids.get(ctx.viewer.user_id, ())
    await audit_log.log_changes(
        ctx, session, *(entry for key, entry in log_entries.items() if key not in own_ids)
    )


def _log_entry(
    mutation: str, user: ColumnRow, identity: SenderIdentity, before: Any, after: Any = None
) -> NewAuditLogEntry:
    values_after = None if after is None else {"address": identity.address, **after}
    return NewAuditLogEntry(mutation, "Identity", identity.id, user.domain_id, before, values_after)


def _values_for_log(sender: SenderIdentity) -> dict[str, Any]:
    return {"address": sender.address, "name": sender.name}
