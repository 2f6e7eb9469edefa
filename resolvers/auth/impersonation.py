"""Act as a user: an administrator's token for the user's mail, without access to credentials."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.errors import Conflict, Forbidden, InvalidInput, NotFound
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_managed_user, is_visible_user, require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import access_tokens, credential_status, security_log
from resolvers.auth.access_tokens import NewAccessToken
from resolvers.auth.authentication import AuthenticatedUser
from resolvers.auth.credential_makers import MAX_LIFETIME, platform_admin_key_id_or_none
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context

MIN_IMPERSONATION_LIFETIME = timedelta(minutes=1)
DEFAULT_IMPERSONATION_LIFETIME = timedelta(minutes=30)
MAX_IMPERSONATION_LIFETIME = MAX_LIFETIME


def log_refused_grant_in_background(ctx: Context, mutation: str, path: Sequence[str]) -> None:
    """Log that the viewer, who acts as a user, tried to give others access to the user's mail.

    `path` is the field of the input; empty: the whole mutation. Positions in lists are left out,
    so that the log has at most one row for each field, address and 6 hours. The event is written
    even if the request is rolled back.
    """
    names = [name for name in path if not name.isdecimal()]
    event = NewSecurityEvent(
        SecurityEventAction.ACCESS_GRANT_REFUSED,
        ctx.viewer.user_id,
        SecurityEventResult.FAILURE,
        target=f"{mutation}: {'.'.join(names)}" if names else mutation,
    )
    security_log.log_event_in_background(ctx, event)


async def create_impersonation_token(
    ctx: Context, user_id: int, ttl: timedelta | None = None
) -> AuthenticatedUser:
    """Create a token with which the viewer acts as this user for `ttl`. Uses do not extend it.

    It ends earlier with either user, with the key that made it, or with the permission. The user's
    security log and the audit log name the administrator or key. Raises Forbidden for a key of a
    domain, which belongs to no user, InvalidInput for a lifetime out of range, and NotFound or
    Conflict if the user is not visible or can't sign in.
    """
    actor_key_id = platform_admin_key_id_or_none(ctx.viewer)
    ttl = DEFAULT_IMPERSONATION_LIFETIME if ttl is None else ttl
    actor_id = require_user_id(ctx) if actor_key_id is None else None
    if not MIN_IMPERSONATION_LIFETIME <= ttl <= MAX_IMPERSONATION_LIFETIME:
        text = "The lifetime must be from PT1M to PT4H."
        raise InvalidInput(
            text,
            constraint=ValidationConstraint.MAX
            if ttl > MAX_IMPERSONATION_LIFETIME
            else ValidationConstraint.MIN,
            path=["ttl"],
        )
    if ctx.viewer.is_acting:
        raise Forbidden(
            "A token of userImpersonate can't impersonate another user.", requires=Scope.FULL
        )
    user = await _require_user_to_impersonate(ctx, user_id)
    if user_id == actor_id:
        raise InvalidInput(
            "The user must be another one than the signed-in user.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["user"],
        )
    async with ctx.write_session(user_id) as session:
        new_token = NewAccessToken(
            user, ttl, protocol=AuthProtocol.API, scope=Scope.MAIL, actor_id=actor_id
        )
        new_token = replace(new_token, actor_key_id=actor_key_id)
        token = await access_tokens.create_access_token(ctx, session, new_token)
        detail = {"until": token.expires_at.isoformat()} | (
            {"reason": ctx.reason} if ctx.reason else {}
        )
        await security_log.log_event_and_queue_notice(
            ctx,
            session,
            NewSecurityEvent(SecurityEventAction.IMPERSONATION_STARTED, user_id, detail=detail),
        )
        admin_entry = NewAuditLogEntry(
            "userImpersonate", "User", user_id, user.domain_id, after={"until": token.expires_at}
        )
        await audit_log.insert_audit_log_entries(ctx, session, admin_entry)
    return AuthenticatedUser(
        user,
        Scope.MAIL,
        password_change_required=False,
        token=token.secret,
        expires_at=token.expires_at,
        token_scopes=token.scopes,
    )


async def _require_user_to_impersonate(ctx: Context, user_id: int) -> ColumnRow:
    """Load the user to act as. Raises NotFound, Forbidden or Conflict if that is not possible."""
    statement = select(
        *select_columns(User),
        is_managed_user(ctx).label("free"),
        credential_status.is_user_enabled_sql().label("open"),
    )
    for row in await ctx.read(statement.where(col(User.id) == user_id, is_visible_user(ctx))):
        if not row.free:
            raise Forbidden(f"Requires the role {row.role}.", requires=row.role, path=["user"])
        if not row.open:
            raise Conflict("The user is disabled or suspended.", path=["user"])
        return row
    raise NotFound(str(user_id), path=["user"])
