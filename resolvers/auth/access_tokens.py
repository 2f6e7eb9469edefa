"""Access tokens: create, list and revoke."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, bindparam, delete, or_, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import SECOND_FACTOR_TIMEOUT, AccessToken
from models.auth.security_log import AuthProtocol, SecurityEventAction
from models.errors import require_all_found
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.keyset_pages import Page
from models.store.prepared_statements import integer_parameter
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers import pagination
from resolvers.access import is_own_or_shared, is_own_prepared
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_status import TOKEN_PREFIX, generate_secret, secret_digest
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.auth.security_log import log_event_and_queue_notice
from resolvers.auth.token_scopes import names_in_order, scopes_of_token
from resolvers.context import Context
from resolvers.list_orders import (
    OwnerPageKey,
    list_orders,
    read_owner_pages,
    read_whole_own_list,
)
from resolvers.oauth.refresh_token_end import (
    delete_refresh_tokens_of_grants,
    delete_refresh_tokens_of_users,
)
from resolvers.pagination import read_by_keys
from resolvers.viewer import GuardRule


class AccessTokenOrder(StrEnum):
    """The order of a list of access tokens; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(AccessTokenOrder)
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(AccessToken)) - {"digest"}


@dataclass(frozen=True, slots=True)
class NewAccessToken:
    """An access token to create. The row of its user has the current `auth_version`."""

    user: ColumnRow
    idle_lifetime: timedelta  # the token ends if it is not used for this time
    protocol: AuthProtocol = AuthProtocol.API
    scope: Scope = Scope.FULL
    scopes: frozenset[Scope] | None = None  # at most these; None: all that `scope` allows
    pending: bool = False  # a second factor is outstanding
    actor_id: int | None = None
    actor_key_id: int | None = None
    is_temporary_password: bool = False  # signed in with a temporary password
    oauth_family_id: int | None = None  # of the OAuth tokens that the sign-in can lead to


class CreatedAccessToken(NamedTuple):
    """The secret of a new access token, which is not stored, its expiry and its scopes."""

    secret: str
    expires_at: datetime
    scopes: frozenset[Scope]


async def create_access_token(
    ctx: Context, session: AsyncSession, new_token: NewAccessToken
) -> CreatedAccessToken:
    """Create a token in a transaction that locks the user.

    Returns its secret, which is not stored, its end and its scopes.
    """
    now = ctx.environment.now()
    secret = generate_secret(ctx.environment, TOKEN_PREFIX)
    expires_at = now + min(new_token.idle_lifetime, ctx.environment.options.tokens_max_age)
    token = AccessToken(
        id=ctx.environment.new_id(),
        user_id=new_token.user.id,
        digest=secret_digest(secret),
        auth_version=new_token.user.auth_version,
        scope=new_token.scope,
        scopes=None if new_token.scopes is None else names_in_order(new_token.scopes),
        protocol=new_token.protocol,
        ip=ctx.client_ip,
        pending=new_token.pending,
        actor_id=new_token.actor_id,
        actor_key_id=new_token.actor_key_id,
        temporary=new_token.is_temporary_password,
        oauth_family_id=new_token.oauth_family_id,
        created_at=now,
        last_used_at=now,
        expires_at=expires_at,  # also while pending: it keeps the idle lifetime
    )
    scopes = scopes_of_token(token)
    session.add(token)
    return CreatedAccessToken(secret, end_of_unused_token(token), scopes)


def end_of_unused_token(token: AccessToken | ColumnRow) -> datetime:
    """Return when a token ends that is not used, and whose second factor is not proved."""
    ends = [token.expires_at]
    if token.pending:
        ends.append(token.created_at + SECOND_FACTOR_TIMEOUT)
    return min(ends)


async def revoke_own_access_tokens_and_count(
    ctx: Context, ids_or_current: Collection[int] | None = None, *, all: bool = False
) -> int:
    """Revoke tokens of the viewer: these ids, all, or else the current one. Return their number.

    The refresh tokens of the OAuth clients that had one of the tokens end as well. Without a
    credential nothing is revoked. Raises NotFound if an id is not the viewer's.
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
        columns = col(AccessToken.id), col(AccessToken.oauth_grant_id)
        result = await (await session.connection()).execute(
            delete(AccessToken).where(condition).returning(*columns)
        )
        deleted_rows = result.all()
        deleted_ids = {row.id for row in deleted_rows}
        require_all_found(ids_or_current or (), deleted_ids)
        if all and owner_id:
            await delete_refresh_tokens_of_users(session, [owner_id])
        else:
            grant_ids = {row.oauth_grant_id for row in deleted_rows} - {None}
            await delete_refresh_tokens_of_grants(session, grant_ids)
        if deleted_ids and owner_id:
            await log_event_and_queue_notice(
                ctx,
                session,
                NewSecurityEvent(
                    SecurityEventAction.TOKEN_REVOKED, owner_id, detail={"tokens": len(deleted_ids)}
                ),
            )
    drop_cached_credentials(ctx.environment, owner_id)
    return len(deleted_ids)


async def load_own_token_pages(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the valid tokens of users; `current` marks that of the request.

    A viewer sees only the viewer's own tokens.
    """
    now = ctx.environment.now()
    own_pages = await read_whole_own_list(
        ctx,
        AccessToken,
        page_keys,
        _select_own_tokens,
        current=ctx.viewer.token_id or 0,
        now=now,
        pending_since=now - SECOND_FACTOR_TIMEOUT,
    )
    return own_pages or await read_owner_pages(ctx, AccessToken, page_keys, _select_of_user)


def _select_own_tokens(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    now, pending_since = (bindparam(name, type_=UtcDateTime) for name in ("now", "pending_since"))
    is_current = col(AccessToken.id) == integer_parameter("current")
    return _select_valid_tokens(columns, is_current, now, pending_since).where(
        is_own_prepared(AccessToken)
    )


async def count_own_tokens(ctx: Context, page_keys: list[OwnerPageKey]) -> list[int]:
    """Count the valid tokens of the users that the viewer sees, in the order of the keys."""
    statements = [_select_of_user(ctx, key.owner_id, {"id"}) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


def _select_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return _select_valid_tokens_marking_current(ctx, columns).where(
        col(AccessToken.user_id) == user_id
    )


async def load_own_tokens_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's tokens by id, in this order; None if missing."""
    return await read_by_keys(
        ctx, _select_valid_tokens_marking_current(ctx), col(AccessToken.id), ids
    )


def _select_valid_tokens_marking_current(
    ctx: Context, names: Collection[str] = VISIBLE_COLUMNS
) -> Select[*tuple[Any, ...]]:
    """SQL: the valid tokens of the viewer with these columns and the column `current`."""
    now, is_current = ctx.environment.now(), col(AccessToken.id) == (ctx.viewer.token_id or 0)
    return _select_valid_tokens(names, is_current, now, now - SECOND_FACTOR_TIMEOUT).where(
        or_(is_own_or_shared(ctx, AccessToken), is_current)
    )


def _select_valid_tokens(
    names: Collection[str], is_current: ColumnElement[bool], now: Any, pending_since: Any
) -> Select[*tuple[Any, ...]]:
    """SQL: the tokens of all users that are valid at a time, with the column `current`."""
    return (
        select(
            *select_columns(AccessToken, VISIBLE_COLUMNS.intersection(names)),
            is_current.label("current"),
        )
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            col(AccessToken.expires_at) > now,
            col(AccessToken.auth_version) == col(User.auth_version),
            or_(~col(AccessToken.pending), col(AccessToken.created_at) > pending_since),
        )
    )
