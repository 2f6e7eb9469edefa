"""Act as a user: an administrator's token for the user's mail, without access to credentials."""

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import select
from sqlmodel import col

from models.errors import Conflict, Forbidden, Invalid, NotFound
from models.store.columns import Picked, picked
from models.users.roles import Scope
from models.users.tables import User
from resolvers.access import managed_users, own, visible_users
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import access_tokens, credential_status, security_log
from resolvers.auth.access_tokens import NewToken
from resolvers.auth.authentication import Authenticated
from resolvers.auth.credential_makers import LONGEST, key_of
from resolvers.auth.security_log import Event
from resolvers.context import Context

LEAST, USUAL, MOST = timedelta(minutes=1), timedelta(minutes=30), LONGEST


async def act_as(ctx: Context, user_id: int, ttl: timedelta | None = None) -> Authenticated:
    """Create a token with which the viewer acts as this user for `ttl`. Uses do not extend it.

    It ends earlier with either user, with the key that made it, or with the permission. The user's
    security log and the admin log name the administrator or key. Raises Forbidden for a key of a
    domain, which belongs to no user, Invalid for a lifetime out of range, and NotFound or Conflict
    if the user is not visible or can't sign in.
    """
    key, ttl = key_of(ctx.viewer), USUAL if ttl is None else ttl
    actor = own(ctx) if key is None else None
    if not LEAST <= ttl <= MOST:
        text = "from a minute to four hours"
        raise Invalid(text, constraint="max" if ttl > MOST else "min", path=["ttl"])
    if ctx.viewer.acting:
        raise Forbidden("who acts as somebody acts as nobody else", requires=Scope.MASTER)
    user = await _target(ctx, user_id)
    if user_id == actor:
        raise Invalid("that is yourself", constraint="exclusive", path=["user"])
    async with ctx.write(user_id) as session:
        new = NewToken(user, ttl, protocol="API", scope=Scope.MAIL, actor_id=actor)
        new = replace(new, actor_key_id=key)
        secret, ends = await access_tokens.create(ctx, session, new)
        detail = {"until": ends.isoformat()} | ({"reason": ctx.reason} if ctx.reason else {})
        await security_log.note(ctx, session, Event("act as", user_id, detail=detail))
        done = Done("actAs", "User", user_id, user.domain_id, after={"until": ends})
        await admin_log.note(ctx, session, done)
    return Authenticated(
        user, Scope.MAIL, require_password_change=False, token=secret, expires_at=ends
    )


async def _target(ctx: Context, user_id: int) -> Picked:
    """Load the user to act as. Raises NotFound, Forbidden or Conflict if that is not possible."""
    asked = select(
        *picked(User),
        managed_users(ctx).label("free"),
        credential_status.open_users().label("open"),
    )
    for row in await ctx.read(asked.where(col(User.id) == user_id, visible_users(ctx))):
        if not row.free:
            raise Forbidden(f"this needs the role {row.role}", requires=row.role, path=["user"])
        if not row.open:
            raise Conflict("the account is switched off", path=["user"])
        return row
    raise NotFound(str(user_id), path=["user"])
