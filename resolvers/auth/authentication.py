"""Authentication of requests by their credentials, and sign-in with a password."""

import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import case, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.ip_networks import is_in_networks
from models.auth.credentials import SECOND_FACTOR_TIMEOUT, AccessToken
from models.auth.security_log import SecurityEventAction, SecurityEventResult
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    InvalidInput,
    RateLimited,
    Unauthenticated,
)
from models.observability import metrics
from models.quantities import describe_duration
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.auth import (
    access_tokens,
    app_passwords,
    credential_cache,
    credential_status,
    security_log,
    throttles,
    token_scopes,
)
from resolvers.auth import sign_in as auth_sign_in
from resolvers.auth.access_tokens import NewAccessToken
from resolvers.auth.basic_auth import BASIC, authenticate_basic
from resolvers.auth.credential_cache import CachedCredential, cache_of_database
from resolvers.auth.credential_status import API_KEY_PREFIX, TOKEN_PREFIX
from resolvers.auth.passwords import password_hashes
from resolvers.auth.second_factors import second_factor_check
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.auth.sign_in import PasswordKind, PasswordProof, SignInEntry, SignInRequest
from resolvers.context import Context
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)

SECRET_PATTERN = re.compile(r"mg[tk]_[A-Za-z0-9_-]{43}")
SECRET_PREFIX_BY_HEADER = {
    "authorization": "",
    "x-access-token": TOKEN_PREFIX,
    "x-api-key": API_KEY_PREFIX,
    "token": "",
}

CREDENTIALS_REFUSED = metrics.counter("merganser_credentials_refused", "Refused tokens and keys.")
USE_RECORD_INTERVAL = timedelta(hours=1)  # between two records of a credential's use
MIN_TOKEN_LIFETIME = timedelta(minutes=1)

drop_cached_credentials = credential_cache.drop_cached_credentials
wait_for_background_tasks = credential_cache.wait_for_background_tasks
secret_digest = credential_status.secret_digest


async def authenticate_request(
    environment: Environment,
    headers: Mapping[str, str],
    params: Mapping[str, Any] | None = None,
    *,
    ip: str | None = None,
    bootstrap: str | None = None,
) -> Viewer:
    """Authenticate a request by its headers, or else by the parameters of `connection_init`.

    Header names are in lower case. Returns an anonymous viewer if there is no credential. Raises
    Unauthenticated if the credential is wrong or has ended, and RateLimited after too many wrong
    passwords. `bootstrap` is the key of the operator. Whether the credential can be used for a
    document or a path is checked by `refuse_own_password` and `refuse_operation_limited_key`.
    """
    secret_and_prefix = _secret_and_required_prefix_from_headers(
        headers
    ) or _secret_and_required_prefix_from_headers(
        {key.lower(): text for key, text in (params or {}).items()}
    )
    if secret_and_prefix is None:
        return Viewer()
    secret, prefix = secret_and_prefix
    if prefix == BASIC:
        return await authenticate_basic(environment, secret, ip)
    if bootstrap and hmac.compare_digest(_comparable_bytes(secret), _comparable_bytes(bootstrap)):
        return Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL}))
    is_well_formed = SECRET_PATTERN.fullmatch(secret) and secret.startswith(prefix)
    credential = await _load_valid_or_none(environment, secret) if is_well_formed else None
    networks = credential.viewer.allowed_networks if credential else ()
    if credential is None or (networks and not is_in_networks(ip, networks)):
        CREDENTIALS_REFUSED.add()
        log.info("Credential refused", extra={"ip": ip})
        if credential:
            _write_wrong_network_to_security_log(environment, credential, ip)
        raise Unauthenticated
    _record_use_in_background_if_due(environment, credential, ip)
    return credential.viewer


def refuse_own_password(viewer: Viewer) -> Viewer:
    """Return the viewer. Raises Forbidden if a user has signed in with their own password."""
    is_own_password = viewer.token_id is viewer.api_key_id is viewer.app_password_id is None
    if viewer.user_id and is_own_password:
        text = "GraphQL documents require an access token, an API key or an application password."
        raise Forbidden(text, requires="an application password")
    return viewer


def refuse_operation_limited_key(viewer: Viewer) -> Viewer:
    """Return the viewer. Raises Forbidden for a key that is limited to some operations."""
    if viewer.allowed_operations:
        raise Forbidden(
            "The API key is restricted to some operations.", requires="a key for all operations"
        )
    return viewer


async def record_use_and_return_has_ended_or_changed(
    environment: Environment, viewer: Viewer
) -> bool:
    """True if the viewer's credential has ended or lost rights. The call counts as a use of it."""
    if viewer.token_id:
        credential = await credential_status.load_token_if_valid(environment, id=viewer.token_id)
    elif viewer.api_key_id:
        credential = await credential_status.load_api_key_if_valid(
            environment, id=viewer.api_key_id
        )
    elif viewer.app_password_id:
        credential = await credential_status.load_app_password_for_http_if_valid(
            environment, viewer.app_password_id
        )
    elif viewer.user_id:
        return not await credential_status.is_unchanged_without_second_factor(
            environment, viewer.user_id, viewer.auth_version
        )
    else:
        return False
    if credential is None:
        return True
    _record_use_in_background_if_due(environment, credential, None)
    return not credential_status.has_same_rights(credential, viewer)


def _secret_and_required_prefix_from_headers(
    headers: Mapping[str, Any],
) -> tuple[str, str] | None:
    """Return the secret of a request and the prefix it must have, BASIC for a name and a password.

    Returns None without a credential. Raises Unauthenticated for a malformed header.
    """
    for name, prefix in SECRET_PREFIX_BY_HEADER.items():
        text = headers.get(name)
        if not text:
            continue
        if not isinstance(text, str):
            raise Unauthenticated
        if name != "authorization":
            return text, prefix
        scheme, _, secret = text.partition(" ")
        if scheme.lower() not in ("bearer", BASIC):
            raise Unauthenticated
        return secret.strip(), BASIC if scheme.lower() == BASIC else prefix
    return None


def _comparable_bytes(text: str) -> bytes:
    """Encode text for a comparison in constant time."""
    return text.encode(errors="surrogatepass")


async def _load_valid_or_none(environment: Environment, secret: str) -> CachedCredential | None:
    """Return the token or key of this secret from the cache or the database; None if not valid."""
    digest = credential_status.secret_digest(secret)
    if cached := await credential_cache.get_cached_if_still_valid(environment, digest):
        return cached
    load = (
        credential_status.load_token_if_valid
        if secret.startswith(TOKEN_PREFIX)
        else credential_status.load_api_key_if_valid
    )
    return await credential_cache.join_or_start_read_and_cache(
        environment, digest, partial(load, environment, digest=digest)
    )


def _write_wrong_network_to_security_log(
    environment: Environment, credential: CachedCredential, ip: str | None
) -> None:
    """Log that a key was used from a network it is not for: it may be stolen."""
    detail = {"key": str(credential.viewer.api_key_id)}
    event = NewSecurityEvent(
        SecurityEventAction.API_KEY_REFUSED,
        credential.owner_ids[0] or None,
        SecurityEventResult.FAILURE,
        detail=detail | {"reason": "network"},
    )
    ctx = Context(environment, Viewer(), client_ip=ip)
    security_log.log_event_in_background(ctx, event)


def _record_use_in_background_if_due(
    environment: Environment, credential: CachedCredential, ip: str | None
) -> None:
    """Record the use of a credential in the background.

    At most once an hour; four times in the idle lifetime of a token that would end earlier.
    """
    if (
        not (credential.viewer.token_id or credential.viewer.api_key_id)
        or credential.viewer.pending_user_id
    ):
        return
    now = environment.now()
    interval = (
        USE_RECORD_INTERVAL
        if credential.idle_lifetime is None
        else min(USE_RECORD_INTERVAL, credential.idle_lifetime / 4)
    )
    if credential.used_at is None or now - credential.used_at >= interval:
        recording = credential_status.record_use_and_extend_token(
            environment, replace(credential), now, ip
        )
        credential.used_at = now  # not again while the credential is cached
        cache = cache_of_database(environment.database)
        cache.write_in_background(
            cache.await_token_use_write_and_track(credential.owner_ids[0], now, recording)
        )


@dataclass(frozen=True, slots=True)
class AuthenticatedUser:
    """A signed-in user.

    With a token and entries in `requiredTwoFactorMethods`, a second factor is still missing.
    """

    user: ColumnRow
    scope: Scope
    password_change_required: bool
    required_two_factor_methods: list[TwoFactorMethod] = field(default_factory=list)
    token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    token_scopes: frozenset[Scope] = frozenset()
    app_password_id: int | None = None  # of the application password that was used


@dataclass(frozen=True, slots=True)
class _ProvenSignIn:
    """A sign-in with the right password, of a user that can sign in."""

    entry: SignInEntry
    user: ColumnRow
    proof: PasswordProof
    request: SignInRequest
    missing_factors: list[TwoFactorMethod]


async def authenticate_user_by_password(
    ctx: Context, username: str, password: str, sign_in_request: SignInRequest | None = None
) -> AuthenticatedUser:
    """Sign in by username or address. Must not be called inside a transaction that has written.

    Raises AuthenticationFailed, with the same text and after the same time, for unknown names,
    wrong passwords and users that can't sign in. Raises RateLimited before any hashing, after too
    many failures under the name or from the network; a counted failure stays counted. Raises
    Forbidden if the password is right but does not have the scope.
    """
    environment = ctx.environment
    sign_in_request = _validate_and_set_default_lifetime(
        ctx.environment, sign_in_request or SignInRequest()
    )
    if not password_hashes.is_possible_password(password):
        raise AuthenticationFailed
    allow_app_passwords = sign_in_request.scope is not Scope.FULL
    entry, proof = await auth_sign_in.check_name_and_password(
        ctx, username, password, allow_app_passwords=allow_app_passwords
    )
    user = entry.user
    if user is None or proof is None or not entry.can_sign_in:
        await auth_sign_in.count_and_log_failed_sign_in(ctx, entry, sign_in_request, proof)
        raise AuthenticationFailed
    try:
        auth_sign_in.require_sign_in_allowed(ctx, user, proof, sign_in_request)
        outstanding = await _use_up_proof_and_return_missing_factors(ctx, user, sign_in_request)
    except (AuthenticationFailed, Forbidden) as refusal:
        auth_sign_in.log_failure_in_background(ctx, entry, sign_in_request, proof, refusal.message)
        raise
    sign_in = _ProvenSignIn(entry, user, proof, sign_in_request, outstanding)
    is_own_password = proof.kind is PasswordKind.FULL
    password_hash = (
        await _rehash_if_outdated(environment, user.password, password)
        if is_own_password
        else user.password
    )
    async with ctx.write_session(user.id) as session:
        # Checked again now that the user is locked: of many concurrent guesses, the right one is
        # refused if the others have used up the limit.
        await throttles.require_not_throttled(ctx, entry.limits, user.id)
        await throttles.delete_failures(ctx, entry.throttle_key)
        authenticated_user = await _store_sign_in_with_token(ctx, session, sign_in, password_hash)
    auth_sign_in.count_sign_in(ctx, user.id)
    log_fields = {"user": user.id, "protocol": sign_in_request.protocol, "ip": ctx.client_ip}
    log.info("Signed in", extra=log_fields)
    return authenticated_user


def _validate_and_set_default_lifetime(
    environment: Environment, sign_in_request: SignInRequest
) -> SignInRequest:
    """Validate a sign-in request and fill in its default lifetime. Raises InvalidInput."""
    idle_lifetime, path = sign_in_request.ttl, ["tokenTtl"]
    if idle_lifetime is None:
        return replace(sign_in_request, ttl=environment.options.tokens_idle_timeout)
    if idle_lifetime < MIN_TOKEN_LIFETIME:
        text = "The lifetime must be at least PT1M."
        raise InvalidInput(text, constraint=ValidationConstraint.MIN, path=path)
    if idle_lifetime > (max_lifetime := environment.options.tokens_max_age):
        raise InvalidInput(
            f"The lifetime must be at most {describe_duration(max_lifetime)}.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return sign_in_request


async def _use_up_proof_and_return_missing_factors(
    ctx: Context, user: ColumnRow, sign_in_request: SignInRequest
) -> list[TwoFactorMethod]:
    """Return the second factors of which one must still be proved; empty if none.

    Checks the proof of the request, if there is one. Raises AuthenticationFailed if it is wrong.
    """
    factors = (
        second_factor_check.enabled_methods(user) if sign_in_request.scope is Scope.FULL else []
    )
    if not factors or not sign_in_request.proof.is_given:
        return factors
    try:
        await second_factor_check.verify_and_use_up_second_factor(ctx, user, sign_in_request.proof)
    except AuthenticationFailed as error:
        error.required_two_factor_methods = [*factors]
        raise
    return []


def _is_checked_by_front_end(ctx: Context, factors: list[TwoFactorMethod]) -> bool:
    """True if the only factor is EXTERNAL and the caller is a front end that checks it."""
    return factors == [TwoFactorMethod.EXTERNAL] and ctx.viewer.is_trusted_front_end


async def _rehash_if_outdated(environment: Environment, password_hash: str, password: str) -> str:
    """Return the hash to store: a new one if the hash settings changed and a worker is free."""
    if password_hashes.is_outdated(environment, password_hash):
        try:
            return await password_hashes.hash_password(environment, password)
        except RateLimited:
            log.info("Password not rehashed; the hash workers are busy")
    return password_hash


async def _store_sign_in_with_token(
    ctx: Context, session: AsyncSession, sign_in: _ProvenSignIn, password_hash: str | None
) -> AuthenticatedUser:
    """Update the user, create the token that the sign-in asks for, and log the sign-in.

    Raises AuthenticationFailed if the user has changed since the password was checked.
    """
    proof, sign_in_request = sign_in.proof, sign_in.request
    is_temporary_password = proof.kind is PasswordKind.TEMPORARY
    is_checked_later = sign_in_request.stays_pending or _is_checked_by_front_end(
        ctx, sign_in.missing_factors
    )
    is_pending = bool(sign_in.missing_factors) and sign_in_request.token and not is_checked_later
    changes: dict[str, Any] = {} if is_pending else {"last_login_at": ctx.environment.now()}
    if is_temporary_password:
        changes["password_change_required"] = True
    user = await _require_unchanged_and_update_user(session, sign_in.user, password_hash, changes)
    token_values: tuple[str | None, datetime | None, frozenset[Scope]] = (None, None, frozenset())
    if sign_in_request.token:
        new_token = NewAccessToken(
            user,
            sign_in_request.ttl or ctx.environment.options.tokens_idle_timeout,
            sign_in_request.protocol,
            scopes=sign_in_request.token_scopes,
            pending=is_pending or sign_in_request.stays_pending,
            is_temporary_password=is_temporary_password,
        )
        token_values = await access_tokens.create_access_token(ctx, session, new_token)
    log_detail: dict[str, Any] = (
        {"requiredTwoFactorMethods": sign_in.missing_factors} if sign_in.missing_factors else {}
    )
    if sign_in_request.token_scopes is not None:
        log_detail["scopes"] = token_scopes.names_in_order(sign_in_request.token_scopes)
    event = auth_sign_in.sign_in_event(sign_in.entry, sign_in_request, proof, **log_detail)
    await _log_sign_in_and_record_use_or_refuse(ctx, session, event, proof.app_password)
    return AuthenticatedUser(
        user,
        sign_in_request.scope,
        user.password_change_required,
        sign_in.missing_factors,
        *token_values,
        app_password_id=proof.app_password.id if proof.app_password else None,
    )


async def _require_unchanged_and_update_user(
    session: AsyncSession, user: ColumnRow, password_hash: str | None, changes: dict[str, Any]
) -> ColumnRow:
    """Store the sign-in on the user's row and return the row.

    Raises AuthenticationFailed if the user has changed since the password was checked.
    """
    password_column = col(User.password)
    result = await (await session.connection()).execute(
        update(User)
        .where(
            col(User.id) == user.id,
            col(User.auth_version) == user.auth_version,
            credential_status.is_user_enabled_sql(),
        )
        .values(
            password=case((password_column == user.password, password_hash), else_=password_column),
            **changes,
        )
        .returning(*select_columns(User))
    )
    row = result.first()
    if row is None:
        raise AuthenticationFailed
    return row


async def _log_sign_in_and_record_use_or_refuse(
    ctx: Context, session: AsyncSession, event: NewSecurityEvent, app_password: ColumnRow | None
) -> None:
    """Write the sign-in to the user's security log, and the use of the application password.

    Raises AuthenticationFailed if the application password has changed since it was checked.
    """
    event_id = await security_log.log_event_and_queue_notice(ctx, session, event)
    if app_password and not await app_passwords.record_use_and_extend_unless_changed(
        ctx, session, app_password, event_id
    ):
        raise AuthenticationFailed  # it has changed since we looked


async def complete_pending_token_and_log(ctx: Context, session: AsyncSession) -> None:
    """Make the viewer's pending token valid, after the second factor was proved.

    Must be called inside the transaction that proves it and locks the user. Does nothing if no
    factor is missing. Raises AuthenticationFailed if the token or the user has ended.
    """
    viewer, environment = ctx.viewer, ctx.environment
    if not viewer.pending_user_id:
        return
    now, connection = environment.now(), await session.connection()
    statement = (
        select(*select_columns(AccessToken))
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            col(AccessToken.id) == viewer.token_id,
            col(AccessToken.pending),
            col(AccessToken.created_at) > now - SECOND_FACTOR_TIMEOUT,
            col(AccessToken.auth_version) == col(User.auth_version),
            credential_status.is_user_enabled_sql(),
        )
    )
    row = (await connection.execute(statement)).first()
    if row is None:
        raise AuthenticationFailed
    expires_at = min(
        now + (row.expires_at - row.last_used_at),
        row.created_at + environment.options.tokens_max_age,
    )
    token_values = {"pending": False, "last_used_at": now, "expires_at": expires_at}
    update_token = update(AccessToken).where(col(AccessToken.id) == row.id)
    await connection.execute(update_token.values(**token_values))
    update_user = update(User).where(col(User.id) == row.user_id)
    await connection.execute(update_user.values(last_login_at=now))
    action, detail = SecurityEventAction.SIGN_IN_ATTEMPTED, {"completed": True}
    event = NewSecurityEvent(action, row.user_id, protocol=row.protocol, detail=detail)
    await security_log.log_event_and_queue_notice(ctx, session, event)
    ctx.call_after_commit_or_now(partial(drop_cached_credentials, environment, row.user_id))
