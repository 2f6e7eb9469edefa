"""Sign-in at a provider: the request that a browser is sent away with, and the response to it.

The parameter `state` is the encrypted state of the page (resolvers/oauth/page_states.py). It can
only be read together with the cookie of the browser, and holds the nonce and the PKCE verifier.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.base64url import encode_base64url
from models.events.journal import PLATFORM
from models.identity_providers import IdentityProvider
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Scope
from models.users.tables import User
from resolvers.auth import security_log
from resolvers.auth import sign_in as auth_sign_in
from resolvers.auth.access_tokens import NewAccessToken, create_access_token
from resolvers.auth.credential_status import secret_digest
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.identity_providers.account_checks import store_refresh_token_and_schedule_check
from resolvers.identity_providers.account_end import (
    store_provider_session,
    suspend_user_and_end_access,
)
from resolvers.identity_providers.accounts import (
    find_or_create_user_or_refuse_sign_in,
    load_user_with_link,
    provider_context,
    require_can_sign_in,
    require_linked_user_of_ended_account,
    store_link,
    sync_admin_role_by_group_and_return_has_role,
)
from resolvers.identity_providers.claims import (
    ProviderIdentity,
    identity_from_claims,
    wanted_claim_names,
)
from resolvers.identity_providers.errors import ProviderFailure, SignInRefusal, SignInRefused
from resolvers.identity_providers.provider_metadata import get_cached_or_fetch_provider
from resolvers.identity_providers.provider_records import ProviderConfig
from resolvers.identity_providers.sign_in_time import sign_in_time_from_claims
from resolvers.identity_providers.signed_tokens import verify_id_token
from resolvers.identity_providers.single_use import mark_token_used_or_raise_used_before
from resolvers.identity_providers.token_exchange import (
    ProviderTokens,
    ReceivedCode,
    exchange_code,
    fetch_and_add_missing_userinfo_claims,
)
from resolvers.oauth.page_states import ProviderStep
from resolvers.oauth.sign_in_conditions import Prompt, SignInConditions

MAX_URL_LENGTH = 8000  # characters; servers refuse longer ones
RANDOM_BYTES = 32
MAX_CODE_LENGTH = 8 << 10  # characters
# `consent` is about the client of this server, and `none` never leads to a provider.
PROMPTS_OF_PROVIDER = (Prompt.LOGIN, Prompt.SELECT_ACCOUNT)


@dataclass(frozen=True, slots=True)
class ProviderSignIn:
    """A user who has signed in at the provider."""

    user: ColumnRow
    token_digest: str  # of the pending token, which ends with the tokens of the user
    family_id: int  # of the tokens that the sign-in leads to
    authenticated_at: datetime  # of the sign-in at the provider; now if it sent no `auth_time`


@dataclass(frozen=True, slots=True)
class AnsweredSignIn:
    """The answer of a provider: its tokens, and the account that they are about."""

    tokens: ProviderTokens
    identity: ProviderIdentity
    authenticated_at: datetime


def new_provider_step(
    environment: Environment, provider: ProviderConfig, conditions: SignInConditions
) -> ProviderStep:
    """Return the step of a page that sends its user to the provider."""
    prompts = [prompt for prompt in PROMPTS_OF_PROVIDER if prompt in conditions.prompts]
    return ProviderStep(
        provider.id,
        provider.issuer,
        provider.client_id,
        _random_text(environment),
        _random_text(environment),
        environment.now().timestamp(),
        " ".join(prompts),
        conditions.max_age,
    )


def _random_text(environment: Environment) -> str:
    return encode_base64url(environment.random_bytes(RANDOM_BYTES))


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """An authorization request to a provider. `state` is the encrypted text of the page state."""

    step: ProviderStep
    state: str = field(repr=False)
    redirect_uri: str
    login_hint: str


async def sign_in_url(
    environment: Environment, provider: ProviderConfig, request: ProviderRequest
) -> str:
    """Return the URL of the provider that the browser goes to. Raises ProviderFailure."""
    cached = await get_cached_or_fetch_provider(environment, provider.issuer)
    challenge = hashlib.sha256(request.step.verifier.encode()).digest()
    parameters = {
        "response_type": "code",
        "client_id": provider.row.client_id,
        "redirect_uri": request.redirect_uri,
        "scope": " ".join(provider.row.scopes),
        "state": request.state,
        "nonce": request.step.nonce,
        "code_challenge": encode_base64url(challenge),
        "code_challenge_method": "S256",
        "login_hint": request.login_hint,
    }
    if request.step.prompt:
        parameters["prompt"] = request.step.prompt
    if request.step.max_age is not None:
        parameters["max_age"] = str(request.step.max_age)
    endpoint = cached.metadata.authorization_endpoint
    url = f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(parameters)}"
    if len(url) > MAX_URL_LENGTH:
        raise ProviderFailure("The authorization request is too long to be sent to the provider.")
    return url


async def finish_sign_in(
    ctx: Context,
    provider: ProviderConfig,
    step: ProviderStep,
    parameters: Mapping[str, str],
    redirect_uri: str,
) -> ProviderSignIn:
    """Return the user of an authorization response of the provider, and log the sign-in.

    Raises ProviderFailure if the provider fails or its answer is not valid, SignInRefused if no
    user can sign in with it. A refused sign-in of a known user is logged.
    """
    answer = await _exchange_code_and_verify_claims(ctx, provider, step, parameters, redirect_uri)
    try:
        if answer.identity.is_ended:
            user = await require_linked_user_of_ended_account(ctx, provider, answer.identity)
            reason = "claim of the identity provider"
            await suspend_user_and_end_access(ctx, provider, user.id, reason)
            raise SignInRefused(SignInRefusal.ENDED, user_id=user.id)
        user = await find_or_create_user_or_refuse_sign_in(ctx, provider, answer.identity)
        return await _store_sign_in(ctx, provider, user, answer)
    except SignInRefused as refused:
        _write_refusal_to_security_log(ctx, provider, refused)
        raise


def _write_refusal_to_security_log(
    ctx: Context, provider: ProviderConfig, refused: SignInRefused
) -> None:
    auth_sign_in.SIGN_INS.add("failed")
    if refused.user_id is not None:
        detail = {
            "source": "identity provider",
            "issuer": provider.issuer,
            "reason": refused.reason.value,
        }
        event = NewSecurityEvent(
            SecurityEventAction.SIGN_IN_ATTEMPTED,
            refused.user_id,
            SecurityEventResult.FAILURE,
            AuthProtocol.HTTP,
            detail=detail,
        )
        security_log.log_event_in_background(ctx, event)


async def _exchange_code_and_verify_claims(
    ctx: Context,
    provider: ProviderConfig,
    step: ProviderStep,
    parameters: Mapping[str, str],
    redirect_uri: str,
) -> AnsweredSignIn:
    """Return the checked answer of the provider. Raises ProviderFailure and SignInRefused."""
    environment = ctx.environment
    cached = await get_cached_or_fetch_provider(environment, provider.issuer)
    _require_successful_response_of_provider(
        provider, parameters, sends_issuer=cached.metadata.sends_issuer
    )
    code = parameters.get("code", "")
    if not 0 < len(code) <= MAX_CODE_LENGTH:
        raise ProviderFailure("The response of the provider has no code.")
    await mark_token_used_or_raise_used_before(environment, step.nonce)
    received = ReceivedCode(code, step.verifier, redirect_uri)
    tokens = await exchange_code(environment, provider, cached.metadata, received)
    claims: dict[str, Any] = await verify_id_token(
        environment, provider, tokens.id_token, step.nonce
    )
    authenticated_at = sign_in_time_from_claims(environment, step, claims)
    claims = await fetch_and_add_missing_userinfo_claims(
        environment, cached.metadata, tokens, claims, wanted_claim_names(provider)
    )
    return AnsweredSignIn(tokens, identity_from_claims(provider, claims), authenticated_at)


def _require_successful_response_of_provider(
    provider: ProviderConfig, parameters: Mapping[str, str], *, sends_issuer: bool
) -> None:
    """Raise ProviderFailure if the response is of another provider (RFC 9207), or is an error."""
    issuer = parameters.get("iss")
    if issuer != provider.issuer and (issuer is not None or sends_issuer):
        raise ProviderFailure("The authorization response is from another provider.")
    error = parameters.get("error")
    if error == "access_denied":
        raise SignInRefused(SignInRefusal.DENIED)
    if error is not None:
        shown = error if error.isascii() and error.isprintable() else "an error"
        raise ProviderFailure(f"The provider answered {shown[:60]}.")


async def _store_sign_in(
    ctx: Context, provider: ProviderConfig, found_user: ColumnRow, answer: AnsweredSignIn
) -> ProviderSignIn:
    """Store link, role and time of the sign-in, and write it to the security log.

    Everything is checked again now that the user is locked. Raises SignInRefused.
    """
    now, identity = ctx.environment.now(), answer.identity
    streams = {PLATFORM, found_user.id, provider.row.domain_id}
    try:
        async with ctx.combined_transaction(), ctx.write_session(*streams) as session:
            await _require_unchanged_provider(ctx, provider)
            user = require_can_sign_in(
                provider, await load_user_with_link(ctx, found_user.id), identity
            )
            if user.auth_version != found_user.auth_version:  # ended in between
                raise SignInRefused(SignInRefusal.EXPIRED, user_id=user.id)
            auth_sign_in.require_protocol_allowed(ctx, user, Scope.FULL)
            is_admin = bool(user.is_admin_by_group)
            if provider.row.admin_groups or is_admin:
                is_admin = await sync_admin_role_by_group_and_return_has_role(
                    provider_context(ctx, provider), provider, user, is_admin=identity.is_admin
                )
            statement = update(User).where(col(User.id) == user.id).values(last_login_at=now)
            returned = statement.returning(*select_columns(User))
            row = (await (await session.connection()).execute(returned)).one()
            values = {
                "provider_id": provider.id,
                "issuer": provider.issuer,
                "client_id": provider.client_id,
                "subject": identity.subject,
                "is_admin_by_group": is_admin,
                "last_sign_in_at": now,
                "access_ended_at": None,
            }
            link_id = await store_link(ctx, session, row, values)
            await store_refresh_token_and_schedule_check(
                ctx, session, link_id, answer.tokens.refresh_token
            )
            signed_in = await _create_pending_token(ctx, session, row, answer.authenticated_at)
            if identity.session_id:
                await store_provider_session(
                    ctx, session, link_id, identity.session_id, signed_in.family_id
                )
            is_new = not provider.is_same_client(user.link_issuer, user.link_client_id)
            await _write_sign_in_to_security_log(ctx, session, provider, row.id, is_new=is_new)
    except IntegrityError as problem:  # another user was linked to the account in between
        raise SignInRefused(SignInRefusal.OTHER_SUBJECT, user_id=found_user.id) from problem
    auth_sign_in.SIGN_INS.add("signed in")
    return signed_in


async def _require_unchanged_provider(ctx: Context, provider: ProviderConfig) -> None:
    """Raise SignInRefused if the provider was replaced or deleted since the request to it."""
    is_unchanged = (
        col(IdentityProvider.id) == provider.id,
        col(IdentityProvider.issuer) == provider.issuer,
        col(IdentityProvider.client_id) == provider.client_id,
    )
    if not await ctx.read(select(col(IdentityProvider.id)).where(*is_unchanged)):
        raise SignInRefused(SignInRefusal.EXPIRED)


async def _create_pending_token(
    ctx: Context, session: AsyncSession, user: ColumnRow, authenticated_at: datetime
) -> ProviderSignIn:
    """Create the pending token of a sign-in, which ends with the user's session at the provider."""
    family_id = ctx.environment.new_id()
    new_token = NewAccessToken(
        user,
        ctx.environment.options.tokens_idle_timeout,
        AuthProtocol.HTTP,
        pending=True,
        oauth_family_id=family_id,
    )
    created = await create_access_token(ctx, session, new_token)
    return ProviderSignIn(user, secret_digest(created.secret), family_id, authenticated_at)


async def _write_sign_in_to_security_log(
    ctx: Context, session: AsyncSession, provider: ProviderConfig, user_id: int, *, is_new: bool
) -> None:
    detail = {"source": "identity provider", "issuer": provider.issuer}
    if is_new:
        detail["linked"] = "true"
    event = NewSecurityEvent(
        SecurityEventAction.SIGN_IN_ATTEMPTED,
        user_id,
        SecurityEventResult.SUCCESS,
        AuthProtocol.HTTP,
        detail=detail,
    )
    await security_log.log_event_and_queue_notice(ctx, session, event)
