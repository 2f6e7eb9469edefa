"""End the access of a user whom the provider has ended: tokens, sessions, application passwords."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.auth.security_log import SecurityEventAction
from models.identity_providers import IdentityLink, IdentitySession
from models.oauth.tables import OauthAuthorizationCode, OauthGrant, OauthRefreshToken
from models.users.tables import User
from resolvers.auth import security_log
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_end import delete_application_passwords_and_api_keys
from resolvers.auth.credential_status import secret_digest
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.identity_providers.accounts import provider_context
from resolvers.identity_providers.provider_records import ROLES_WITH_PROVIDER, ProviderConfig
from resolvers.identity_providers.signed_tokens import LogoutRequest
from resolvers.oauth.refresh_token_end import delete_tokens_of_users
from resolvers.users.selection import UserSelector
from resolvers.users.update import UserChanges, update_users


async def store_provider_session(
    ctx: Context, session: AsyncSession, link_id: int, session_id: str, family_id: int
) -> None:
    """Store which family of tokens begins in a session (`sid`) of a provider."""
    statement = insert(IdentitySession).values(
        id=ctx.environment.new_id(),
        link_id=link_id,
        session_digest=secret_digest(session_id),
        family_id=family_id,
        created_at=ctx.environment.now(),
    )
    await (await session.connection()).execute(statement)


def is_user_of_provider_sql(domain_id: Any) -> ColumnElement[bool]:
    """SQL: the user belongs to this domain and to its directory, and is no platform admin."""
    return and_(
        col(User.domain_id) == domain_id,
        col(User.role).in_(ROLES_WITH_PROVIDER),
        ~col(User.allow_local),
        col(User.active),
        col(User.deleted_at).is_(None),
    )


async def end_credentials_and_sessions(
    ctx: Context, provider: ProviderConfig, user_id: int, reason: str
) -> None:
    """End all credentials and sessions of a user of the provider.

    Its password remains, but is refused until the next sign-in at the provider. `reason` is for the
    security log.
    """
    admin_ctx = provider_context(ctx, provider)
    async with admin_ctx.write_session(user_id) as session:
        is_user = (col(User.id) == user_id, is_user_of_provider_sql(provider.row.domain_id))
        if not await admin_ctx.read(select(col(User.id)).where(*is_user)):
            return
        connection = await session.connection()
        await delete_application_passwords_and_api_keys(session, user_id)
        await _delete_tokens_and_end_sessions(
            admin_ctx, session, user_id, reason, passwordSignIn=False
        )
        links = update(IdentityLink).where(col(IdentityLink.user_id) == user_id)
        ended = {"access_ended_at": ctx.environment.now()}
        await connection.execute(links.values(refresh_token=None, check_due_at=None, **ended))
    drop_cached_credentials(ctx.environment, user_id)


async def end_sessions(ctx: Context, user_id: int, reason: str) -> None:
    """End the tokens and sessions of a user. Application passwords and API keys remain."""
    async with ctx.write_session(user_id) as session:
        await _delete_tokens_and_end_sessions(ctx, session, user_id, reason)
    drop_cached_credentials(ctx.environment, user_id)


async def _delete_tokens_and_end_sessions(
    ctx: Context, session: AsyncSession, user_id: int, reason: str, **log_detail: bool
) -> None:
    connection, now = await session.connection(), ctx.environment.now()
    await delete_tokens_of_users(session, [user_id])
    # the version ends sessions with the password, and pages that wait for consent
    ended = {"auth_version": col(User.auth_version) + 1, "sessions_ended_at": now}
    await connection.execute(update(User).where(col(User.id) == user_id).values(ended))
    detail = {"tokens": True, "reason": reason, **log_detail}
    event = NewSecurityEvent(SecurityEventAction.SESSION_TERMINATED, user_id, detail=detail)
    await security_log.log_event_and_queue_notice(ctx, session, event)


async def suspend_user_and_end_access(
    ctx: Context, provider: ProviderConfig, user_id: int, reason: str
) -> None:
    """Suspend a user and end its access, in one transaction. The user still receives mail."""
    is_user = (col(User.id) == user_id, is_user_of_provider_sql(provider.row.domain_id))
    if not await ctx.read(select(col(User.id)).where(*is_user)):
        return
    selector = UserSelector(is_reference=True, ids=(user_id,))
    async with ctx.combined_transaction():
        admin_ctx = provider_context(ctx, provider)
        await update_users(admin_ctx, selector, UserChanges({"suspended": True}))
        await end_credentials_and_sessions(ctx, provider, user_id, reason)
    drop_cached_credentials(ctx.environment, user_id)


async def end_access_by_logout_request(
    ctx: Context, provider: ProviderConfig, request: LogoutRequest
) -> None:
    """End what a logout token names. Without the user or session nothing happens.

    A session id ends the tokens that began in that session; a subject alone ends the whole access
    of its user.
    """
    statement = select(col(IdentityLink.id), col(IdentityLink.user_id))
    statement = statement.join(User, col(User.id) == col(IdentityLink.user_id)).where(
        col(IdentityLink.provider_id) == provider.id,
        col(IdentityLink.issuer) == provider.issuer,
        col(IdentityLink.client_id) == provider.client_id,
        is_user_of_provider_sql(provider.row.domain_id),
    )
    if request.subject is not None:
        statement = statement.where(col(IdentityLink.subject) == request.subject)
    if request.session_id is None:
        for row in await ctx.read(statement):
            await end_credentials_and_sessions(ctx, provider, row.user_id, "back-channel logout")
        return
    digest = secret_digest(request.session_id)
    sessions = select(col(IdentitySession.link_id)).where(
        col(IdentitySession.session_digest) == digest
    )
    for row in await ctx.read(statement.where(col(IdentityLink.id).in_(sessions))):
        await _delete_tokens_of_provider_session(ctx, provider, row.user_id, row.id, digest)


async def _delete_tokens_of_provider_session(
    ctx: Context, provider: ProviderConfig, user_id: int, link_id: int, digest: str
) -> None:
    """End the tokens of a user that began in one session of the provider."""
    admin_ctx = provider_context(ctx, provider)
    is_session = (
        col(IdentitySession.link_id) == link_id,
        col(IdentitySession.session_digest) == digest,
    )
    async with admin_ctx.write_session(user_id) as session:
        connection = await session.connection()
        families = select(col(IdentitySession.family_id)).where(*is_session)
        family_ids = list((await connection.execute(families)).scalars())
        await _delete_token_families(session, user_id, family_ids)
        await connection.execute(delete(IdentitySession).where(*is_session))
        event = NewSecurityEvent(
            SecurityEventAction.SESSION_TERMINATED,
            user_id,
            detail={"tokens": True, "reason": "back-channel logout"},
        )
        await security_log.log_event_and_queue_notice(admin_ctx, session, event)
    drop_cached_credentials(ctx.environment, user_id)


async def _delete_token_families(
    session: AsyncSession, user_id: int, family_ids: Sequence[int]
) -> None:
    """Delete the codes and tokens of these families of a user, also of open sign-ins."""
    connection = await session.connection()
    code, refresh, access = OauthAuthorizationCode, OauthRefreshToken, AccessToken
    grant_ids = select(col(OauthGrant.id)).where(col(OauthGrant.user_id) == user_id)
    for table, *conditions in (
        (code, col(code.id).in_(family_ids)),
        (refresh, col(refresh.grant_id).in_(grant_ids), col(refresh.family_id).in_(family_ids)),
        (access, col(access.user_id) == user_id, col(access.oauth_family_id).in_(family_ids)),
    ):
        await connection.execute(delete(table).where(*conditions))
