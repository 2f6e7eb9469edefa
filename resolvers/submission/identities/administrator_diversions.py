"""Blind copies and replies of identities that administrators divert to other addresses.

They are in the security log of the user, and end when the administrator loses the right to them.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.security_log import SecurityEventAction
from models.events.event_types import EventType
from models.store.columns import select_columns
from models.submission.identities import Identity
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.credential_makers import load_owner_id_of_viewer
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.users.remaining_rights import RemainingRights, is_user_beyond_rights

DIVERTING_FIELDS = frozenset({"bcc", "reply_to"})  # they send copies or replies to another person
MAX_LOGGED_ADDRESSES = 10  # in an event of the security log
NO_DIVERSION: Mapping[str, Any] = {"bcc": [], "reply_to": None, "diverted_by": None}


async def load_owner_id_of_viewer_if_diverting(
    ctx: Context, values: Mapping[str, Any]
) -> int | None:
    """Return the user of the viewer, or of its API key, if `values` divert copies or replies.

    None for other values. `diversion_columns` decides whether the user counts as an administrator.
    """
    return await load_owner_id_of_viewer(ctx) if DIVERTING_FIELDS & values.keys() else None


def changed_diversions(
    values: Mapping[str, Any], values_before: Mapping[str, Any]
) -> frozenset[str]:
    """Return the names of `bcc` and `reply_to` that `values` change."""
    names = DIVERTING_FIELDS & values.keys()
    return frozenset(name for name in names if values[name] != values_before[name])


def diversion_columns(
    values: Mapping[str, Any],
    values_before: Mapping[str, Any],
    administrator_id: int | None,
    *,
    is_own: bool,
) -> dict[str, Any]:
    """Return the column with the administrator who diverts mail; empty if it stays.

    The diversion of an own identity is no longer the administrator's when the user has set both
    `bcc` and `replyTo`; an empty one need not be set. An administrator takes over a diversion with
    a new value, but not by clearing one.
    """
    if is_own:
        kept_names = DIVERTING_FIELDS - values.keys()
        sets_all = not any(values_before[name] for name in kept_names)
        return {"diverted_by": None} if DIVERTING_FIELDS & values.keys() and sets_all else {}
    if any(values[name] for name in changed_diversions(values, values_before)):
        return {"diverted_by": administrator_id}
    return {}


async def log_diversions_and_queue_notices(
    ctx: Context,
    session: AsyncSession,
    values: Mapping[str, Any],
    users_and_addresses: Sequence[tuple[int, str]],
) -> None:
    """Log new values of `bcc` and `replyTo` to the security logs of the users, and notify them.

    `users_and_addresses` has the user and the address of each identity that another changed. The
    users are locked.
    """
    events = [_security_event(user_id, address, values) for user_id, address in users_and_addresses]
    await security_log.insert_security_events_and_queue_notices(ctx, session, events)


def _security_event(user_id: int, address: str, values: Mapping[str, Any]) -> NewSecurityEvent:
    detail = {}
    if "bcc" in values:
        detail["bcc"] = ", ".join(values["bcc"][:MAX_LOGGED_ADDRESSES])
    if "reply_to" in values:
        detail["replyTo"] = values["reply_to"] or ""
    action = SecurityEventAction.IDENTITY_BCC_CHANGED
    return NewSecurityEvent(action, user_id, target=address, detail=detail)


async def end_diversions_without_right(
    ctx: Context, maker_ids: Collection[int], rights: RemainingRights
) -> None:
    """Remove `bcc` and `replyTo` that administrators set and may no longer set for the users.

    The change is in the audit log, and in the security logs of the users.
    """
    if rights.role is Role.ROOT:
        return
    statement = (
        select(*select_columns(Identity), col(User.domain_id).label("domain_id"))
        .join(User, col(User.id) == col(Identity.user_id))
        .where(
            col(Identity.diverted_by).in_(maker_ids),
            is_user_beyond_rights(rights, AdminPermission.BCC_RULES),
        )
        .order_by(col(Identity.id))
    )
    found_rows = await ctx.read(statement)
    if not found_rows:
        return
    statement = statement.where(col(Identity.id).in_([row.id for row in found_rows]))
    async with ctx.write_session(*{row.user_id for row in found_rows}) as session:
        connection = await session.connection()
        rows = (await connection.execute(statement)).all()
        ids = [row.id for row in rows]
        values = {**NO_DIVERSION, "updated_at": ctx.environment.now()}
        await connection.execute(update(Identity).where(col(Identity.id).in_(ids)).values(values))
        changed_ids: defaultdict[int, list[int]] = defaultdict(list)
        for row in rows:
            changed_ids[row.user_id].append(row.id)
        changes = {user: [(EventType.IDENTITY_UPDATED, ids)] for user, ids in changed_ids.items()}
        if changes:
            await ctx.record_changes(session, changes)
        entries = [
            NewAuditLogEntry(
                "identityUpdate",
                "Identity",
                row.id,
                row.domain_id,
                {"address": row.display_address, "bcc": row.bcc, "reply_to": row.reply_to},
                {"address": row.display_address, "bcc": [], "reply_to": None},
            )
            for row in rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
        users_and_addresses = [(row.user_id, row.display_address) for row in rows]
        await log_diversions_and_queue_notices(ctx, session, NO_DIVERSION, users_and_addresses)
