"""Check accounts at their provider again and again, with the refresh token of the last sign-in.

The claim that ends accounts suspends the account. If the provider refuses the refresh token
(`invalid_grant`), the tokens and sessions end, and the user must sign in again: the reason can be
a new password or a changed policy of the provider. A provider that can't be reached changes
nothing.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.identity_providers import IdentityLink, IdentityProvider
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.runtime.worker_stop import is_worker_stopping, sleep_until_worker_stops
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from resolvers.context import Context
from resolvers.identity_providers.account_end import (
    end_sessions,
    is_user_of_provider_sql,
    suspend_user_and_end_access,
)
from resolvers.identity_providers.claims import is_ended_by_claims
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_metadata import get_cached_or_fetch_provider
from resolvers.identity_providers.provider_records import (
    ProviderConfig,
    find_provider_by_id,
    refresh_token_purpose,
)
from resolvers.identity_providers.signed_tokens import verify_refreshed_id_token
from resolvers.identity_providers.token_exchange import (
    ProviderTokens,
    TokenRefused,
    fetch_and_add_missing_userinfo_claims,
    use_refresh_token,
)
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

RETRY_INTERVAL = timedelta(minutes=5)  # after a provider could not be reached
ENDED_GRANT = "invalid_grant"
POLL_INTERVAL = 15.0  # seconds
CLAIM_TIME = timedelta(minutes=2)  # no other process checks a link for this time
CONCURRENT_CHECKS = 8  # of one process


async def store_refresh_token_and_schedule_check(
    ctx: Context, session: AsyncSession, link_id: int, refresh_token: str | None
) -> None:
    """Store the refresh token of a sign-in and the time of the first check.

    Without a new one the stored token stays.
    """
    if refresh_token is None:
        return
    statement = update(IdentityLink).where(col(IdentityLink.id) == link_id)
    values = _values_of_refresh_token(ctx.environment, link_id, refresh_token)
    await (await session.connection()).execute(statement.values(values))


def _values_of_refresh_token(
    environment: Environment, link_id: int, refresh_token: str
) -> dict[str, Any]:
    purpose = refresh_token_purpose(link_id)
    return {
        "refresh_token": environment.secret_box.encrypt(refresh_token, purpose),
        "check_due_at": environment.now() + environment.options.identity_providers_check_interval,
        "is_checking": False,
    }


async def reserve_links_due_for_check(
    environment: Environment, limit: int = CONCURRENT_CHECKS
) -> list[ColumnRow]:
    """Return the links whose checks are most overdue, and postpone them for other processes.

    In a row `is_checking` is true if an earlier check did not end: its process was killed, or the
    answer of the provider was lost. Links of users who are not checked lose their check.
    """
    now = environment.now()
    is_checked = is_user_of_provider_sql(col(IdentityProvider.domain_id)) & ~col(User.suspended)
    statement = (
        select(*select_columns(IdentityLink), is_checked.label("is_checked"))
        .join(User, col(User.id) == col(IdentityLink.user_id))
        .join(IdentityProvider, col(IdentityProvider.id) == col(IdentityLink.provider_id))
        .where(col(IdentityLink.check_due_at) <= now)
        .order_by(col(IdentityLink.check_due_at))
        .limit(limit)
    )
    claimed = []
    for row in await environment.database.read(statement):
        values: dict[str, Any] = {"check_due_at": None}
        if row.is_checked:
            values = {"check_due_at": now + CLAIM_TIME, "is_checking": True}
        if await _update_unless_changed(environment, row, values) and row.is_checked:
            claimed.append(row)
    return claimed


async def _update_unless_changed(
    environment: Environment, link: ColumnRow, values: dict[str, Any]
) -> bool:
    """Update a link if its refresh token and the time of its check are still those of the row."""
    is_unchanged = col(IdentityLink.check_due_at) == link.check_due_at
    return await _update_if_token_unchanged(environment, link, is_unchanged, values)


async def _update_if_token_unchanged(
    environment: Environment,
    link: ColumnRow,
    condition: Any,
    values: dict[str, Any],
) -> bool:
    """Update a link that has the refresh token of the row and meets the condition."""
    conditions = (
        col(IdentityLink.id) == link.id,
        col(IdentityLink.refresh_token) == link.refresh_token,
        condition,
    )
    async with environment.write_session() as session:
        statement = update(IdentityLink).where(*conditions).values(values)
        return bool((await (await session.connection()).execute(statement)).rowcount)


async def check_account_and_end_access_if_ended(environment: Environment, link: ColumnRow) -> None:
    """Check the account of a claimed link, and end its access if the provider has ended it."""
    try:
        provider = await find_provider_by_id(environment, link.provider_id)
        if provider is None or not provider.is_same_client(link.issuer, link.client_id):
            await _set_next_check(environment, link, None)
            return
        await _refresh_tokens_and_suspend_if_ended(environment, provider, link)
    except TokenRefused as refusal:
        await _postpone_check_or_end_sessions(environment, link, refusal)
    except (ProviderFailure, DecryptionError) as problem:
        await _postpone_checks_of_provider(environment, link, problem)


async def _refresh_tokens_and_suspend_if_ended(
    environment: Environment, provider: ProviderConfig, link: ColumnRow
) -> None:
    """Use the refresh token, store the next one at once, and look at the claims."""
    refresh_token = environment.secret_box.decrypt(
        link.refresh_token, refresh_token_purpose(link.id)
    )
    cached = await get_cached_or_fetch_provider(environment, provider.issuer)
    tokens = await use_refresh_token(environment, provider, cached.metadata, refresh_token)
    next_token = tokens.refresh_token or refresh_token
    values = _values_of_refresh_token(environment, link.id, next_token)
    if not await _update_if_claimed(environment, link, values):
        return  # the user has signed in again
    claims = await _collect_claims_of_refresh_response(environment, provider, link, tokens)
    if is_ended_by_claims(provider, claims):
        ctx = Context(environment, Viewer())
        await suspend_user_and_end_access(
            ctx, provider, link.user_id, "claim of the identity provider"
        )


async def _collect_claims_of_refresh_response(
    environment: Environment, provider: ProviderConfig, link: ColumnRow, tokens: ProviderTokens
) -> dict[str, Any]:
    """Return the claims of a refresh response, after its ID token is verified, if it has one.

    If a claim can end the account's access and is missing, it is read from userinfo.
    """
    claims: dict[str, Any] = {"sub": link.subject}
    if tokens.id_token is not None:
        claims = await verify_refreshed_id_token(
            environment, provider, tokens.id_token, link.subject
        )
    cached = await get_cached_or_fetch_provider(environment, provider.issuer)
    wanted = (provider.row.active_claim,) if provider.row.active_claim else ()
    return await fetch_and_add_missing_userinfo_claims(
        environment, cached.metadata, tokens, claims, wanted
    )


async def _postpone_check_or_end_sessions(
    environment: Environment, link: ColumnRow, refusal: TokenRefused
) -> None:
    if refusal.error != ENDED_GRANT:
        await _postpone_checks_of_provider(environment, link, refusal)
        return
    is_claimed = await _set_next_check(environment, link, None)
    # an earlier check can have used the token and lost the next one
    if is_claimed and not link.is_checking:
        ctx = Context(environment, Viewer())
        await end_sessions(ctx, link.user_id, "refused by the identity provider")


async def _update_if_claimed(
    environment: Environment, link: ColumnRow, values: dict[str, Any]
) -> bool:
    """Update a link that is still claimed for this check. Returns False after a new sign-in."""
    is_claimed = col(IdentityLink.is_checking)
    return await _update_if_token_unchanged(environment, link, is_claimed, values)


async def _set_next_check(
    environment: Environment, link: ColumnRow, due_at: datetime | None
) -> bool:
    return await _update_if_claimed(environment, link, {"check_due_at": due_at})


async def _postpone_checks_of_provider(
    environment: Environment, link: ColumnRow, problem: Exception
) -> None:
    """Repeat the check later, and those of all other due accounts of the provider.

    The check stays marked as begun: the provider may have used the refresh token.
    """
    fields = {"user": link.user_id, "error": str(problem)}
    log.warning("Account not checked at the identity provider", extra=fields)
    due_at = environment.now() + RETRY_INTERVAL
    await _set_next_check(environment, link, due_at)
    others = update(IdentityLink).where(
        col(IdentityLink.provider_id) == link.provider_id,
        col(IdentityLink.check_due_at) <= environment.now(),
    )
    async with environment.write_session() as session:
        await (await session.connection()).execute(others.values(check_due_at=due_at))


async def check_accounts_forever(environment: Environment) -> None:
    """Check accounts that are due until the worker stops."""
    while not is_worker_stopping():
        links: Sequence[ColumnRow] = []
        try:
            links = await reserve_links_due_for_check(environment)
            await asyncio.gather(
                *(check_account_and_end_access_if_ended(environment, link) for link in links)
            )
        except Exception:  # the next round may succeed
            log.exception("Could not check accounts at identity providers")
        if not links:
            await sleep_until_worker_stops(POLL_INTERVAL)
