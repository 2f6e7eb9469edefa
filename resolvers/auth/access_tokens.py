"""Access tokens: create, list and revoke."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, or_, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import PENDING, AccessToken
from models.errors import all_found
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.access import visible
from resolvers.auth.credential_cache import forget
from resolvers.auth.credential_status import TOKEN, digest_of, new_secret
from resolvers.auth.security_log import Event, note
from resolvers.context import Context, Needs
from resolvers.pagination import all_by_keys, by_keys


@dataclass(frozen=True, slots=True)
class NewToken:
    """An access token to create. The row of its user has the current `auth_version`."""

    user: Picked
    idle: timedelta  # the token ends if it is not used for this time
    protocol: str = "API"
    scope: Scope = Scope.MASTER
    pending: bool = False  # a second factor is outstanding
    actor_id: int | None = None
    actor_key_id: int | None = None
    temporary: bool = False  # signed in with a temporary password


async def create(ctx: Context, session: AsyncSession, new: NewToken) -> tuple[str, datetime]:
    """Create a token in a transaction that locks the user.

    Returns its secret, which is not stored, and its end.
    """
    now = ctx.world.now()
    secret = new_secret(ctx.world, TOKEN)
    ends = now + min(new.idle, ctx.world.options.token_life)
    session.add(
        AccessToken(
            id=ctx.world.key(),
            user_id=new.user.id,
            digest=digest_of(secret),
            auth_version=new.user.auth_version,
            scope=new.scope,
            protocol=new.protocol,
            ip=ctx.client_ip,
            pending=new.pending,
            actor_id=new.actor_id,
            actor_key_id=new.actor_key_id,
            temporary=new.temporary,
            created_at=now,
            last_used_at=now,
            expires_at=ends,  # also while pending: it keeps the idle lifetime
        )
    )
    return secret, min(ends, now + PENDING) if new.pending else ends


async def revoke(ctx: Context, ids: Collection[int] | None = None, *, all: bool = False) -> int:
    """Revoke tokens of the viewer: these ids, all, or else the current one. Return their number.

    Without a credential nothing is revoked. Raises NotFound if an id is not the viewer's.
    """
    viewer = ctx.viewer
    owner = viewer.pending_for or viewer.user_id
    which: ColumnElement[bool] = col(AccessToken.user_id) == owner
    if ids is not None or all:
        if viewer.role is Role.PUBLIC:
            return 0
        viewer.require(Needs(scope=Scope.MASTER))
    elif viewer.token_id is None:
        return 0
    else:
        which &= col(AccessToken.id) == viewer.token_id
    if ids is not None and not all:
        which &= col(AccessToken.id).in_(ids)
    async with ctx.write(owner) as session:
        deleted = await (await session.connection()).execute(
            delete(AccessToken).where(which).returning(col(AccessToken.id))
        )
        gone = set(deleted.scalars())
        all_found(ids or (), gone)
        if gone and owner:
            await note(ctx, session, Event("token revoke", owner, detail={"tokens": len(gone)}))
    forget(ctx.world, owner)
    return len(gone)


async def tokens_of(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """Load the valid tokens of these users, newest first; `current` marks that of the request.

    A viewer sees only the viewer's own tokens.
    """
    order = col(AccessToken.created_at).desc(), col(AccessToken.id).desc()
    newest = _listed(ctx).order_by(*order)
    return await all_by_keys(ctx, newest, col(AccessToken.user_id), user_ids)


async def tokens_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's tokens by id, in this order; None if missing."""
    return await by_keys(ctx, _listed(ctx), col(AccessToken.id), ids)


def _listed(ctx: Context) -> Select[*tuple[Any, ...]]:
    """SQL: the valid tokens of the viewer, with the column `current`."""
    shown = [column for column in picked(AccessToken) if column.name != "digest"]
    now, this = ctx.world.now(), col(AccessToken.id) == (ctx.viewer.token_id or 0)
    good = (
        col(AccessToken.expires_at) > now,
        col(AccessToken.auth_version) == col(User.auth_version),
        or_(~col(AccessToken.pending), col(AccessToken.created_at) > now - PENDING),
    )
    owned = select(*shown, this.label("current"))
    owned = owned.join(User, col(User.id) == col(AccessToken.user_id))
    return owned.where(or_(visible(ctx, AccessToken), this), *good)
