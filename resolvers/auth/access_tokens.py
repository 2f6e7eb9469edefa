"""Access tokens: create, list and revoke."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, or_, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import SECOND_FACTOR_TIMEOUT, AccessToken
from models.auth.security_log import AuthEventAction, AuthProtocol
from models.errors import require_all_found
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.access import is_visible
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_status import TOKEN_PREFIX, generate_secret, secret_digest
from resolvers.auth.security_log import NewSecurityEvent, log_event
from resolvers.context import Context, GuardRule
from resolvers.pagination import read_all_by_keys, read_by_keys


@dataclass(frozen=True, slots=True)
class NewAccessToken:
    """An access token to create. The row of its user has the current `auth_version`."""

    user: ColumnRow
    idle_lifetime: timedelta  # the token ends if it is not used for this time
    protocol: AuthProtocol = AuthProtocol.API
    scope: Scope = Scope.FULL
    pending: bool = False  # a second factor is outstanding
    actor_id: int | None = None
    actor_key_id: int | None = None
    is_temporary_password: bool = False  # signed in with a temporary password


async def create_access_token(
    ctx: Context, session: AsyncSession, new_token: NewAccessToken
) -> tuple[str, datetime]:
    """Create a token in a transaction that locks the user.

    Returns its secret, which is not stored, and its end.
    """
    now = ctx.environment.now()
    secret = generate_secret(ctx.environment, TOKEN_PREFIX)
    expires_at = now + min(new_token.idle_lifetime, ctx.environment.options.tokens_max_age)
    session.add(
        AccessToken(
            id=ctx.environment.new_id(),
            user_id=new_token.user.id,
            digest=secret_digest(secret),
            auth_version=new_token.user.auth_version,
            scope=new_token.scope,
            protocol=new_token.protocol,
            ip=ctx.client_ip,
            pending=new_token.pending,
            actor_id=new_token.actor_id,
            actor_key_id=new_token.actor_key_id,
            temporary=new_token.is_temporary_password,
            created_at=now,
            last_used_at=now,
            expires_at=expires_at,  # also while pending: it keeps the idle lifetime
        )
    )
    return secret, min(expires_at, now + SECOND_FACTOR_TIMEOUT) if new_token.pending else expires_at


async def revoke_own_access_tokens(
    ctx: Context, ids_or_current: Collection[int] | None = None, *, all: bool = False
) -> int:
    """Revoke tokens of the viewer: these ids, all, or else the current one. Return their number.

    Without a credential nothing is revoked. Raises NotFound if an id is not the viewer's.
    """
    viewer = ctx.viewer
    owner_id = viewer.pending_user_id or viewer.user_id
    condition: ColumnElement[bool] = col(AccessToken.user_id) == owner_id
    if ids_or_current is not None or all:
        if viewer.role is Role.PUBLIC:
            return 0
        viewer.require(GuardRule(scope=Scope.FULL))
    elif viewer.token_id is None:
        return 0
    else:
        condition &= col(AccessToken.id) == viewer.token_id
    if ids_or_current is not None and not all:
        condition &= col(AccessToken.id).in_(ids_or_current)
    async with ctx.write_session(owner_id) as session:
        result = await (await session.connection()).execute(
            delete(AccessToken).where(condition).returning(col(AccessToken.id))
        )
        deleted_ids = set(result.scalars())
        require_all_found(ids_or_current or (), deleted_ids)
        if deleted_ids and owner_id:
            await log_event(
                ctx,
                session,
                NewSecurityEvent(
                    AuthEventAction.TOKEN_REVOKE, owner_id, detail={"tokens": len(deleted_ids)}
                ),
            )
    drop_cached_credentials(ctx.environment, owner_id)
    return len(deleted_ids)


async def load_own_tokens_by_user(ctx: Context, user_ids: list[int]) -> list[list[ColumnRow]]:
    """Load the valid tokens of these users, newest first; `current` marks that of the request.

    A viewer sees only the viewer's own tokens.
    """
    order = col(AccessToken.created_at).desc(), col(AccessToken.id).desc()
    statement = _select_own_valid_tokens(ctx).order_by(*order)
    return await read_all_by_keys(ctx, statement, col(AccessToken.user_id), user_ids)


async def load_own_tokens_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's tokens by id, in this order; None if missing."""
    return await read_by_keys(ctx, _select_own_valid_tokens(ctx), col(AccessToken.id), ids)


def _select_own_valid_tokens(ctx: Context) -> Select[*tuple[Any, ...]]:
    """SQL: the valid tokens of the viewer, with the column `current`."""
    columns = [column for column in select_columns(AccessToken) if column.name != "digest"]
    now, is_current = ctx.environment.now(), col(AccessToken.id) == (ctx.viewer.token_id or 0)
    conditions = (
        col(AccessToken.expires_at) > now,
        col(AccessToken.auth_version) == col(User.auth_version),
        or_(~col(AccessToken.pending), col(AccessToken.created_at) > now - SECOND_FACTOR_TIMEOUT),
    )
    statement = select(*columns, is_current.label("current"))
    statement = statement.join(User, col(User.id) == col(AccessToken.user_id))
    return statement.where(or_(is_visible(ctx, AccessToken), is_current), *conditions)
