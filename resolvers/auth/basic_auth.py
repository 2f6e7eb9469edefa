"""HTTP Basic authentication (RFC 7617) by application passwords, or the user's own for paths."""

import base64
import binascii
from datetime import timedelta

from sqlalchemy import update
from sqlmodel import col

from models.auth.security_log import AuthProtocol
from models.errors import Forbidden, Unauthenticated
from models.metrics.usage_recorder import UsageCaller
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.users.roles import Role, Scope, UserPermission
from models.users.tables import User
from resolvers.auth import app_passwords, credential_status, security_log, sign_in, throttles
from resolvers.auth.credential_cache import CachedCredential, cache_of_database
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.password_check_cache import CachingPasswordCheck
from resolvers.auth.sign_in import PasswordKind, PasswordProof, SignInEntry, SignInRequest
from resolvers.context import Context
from resolvers.viewer import ShareVisibility, Viewer

BASIC = "basic"
HTTP_SIGN_IN = SignInRequest(protocol=AuthProtocol.HTTP)
USE_RECORD_INTERVAL = timedelta(hours=1)  # between two records of a password's use
REQUIRED_CREDENTIAL = "an application password"


async def authenticate_basic(
    environment: Environment, encoded_credentials: str, ip: str | None
) -> Viewer:
    """Authenticate a name and a password in UTF-8, as sent in base64.

    An application password gets those of MAIL_READ, MAIL and SUBMIT that it has. The own password
    of a user without second factors gets all scopes. The viewer is cached for a second, the result
    of the hash for 60 s while the stored hash is unchanged. Raises Unauthenticated if the password
    is wrong, Forbidden if it can't be used here, and RateLimited as `authenticate` does.
    """
    name, password = _decode_name_and_password(encoded_credentials)
    cache, now = cache_of_database(environment.database), environment.now()
    digest = cache.password_digest(f"{name}\0{password}")
    credential = cache.get(digest, now)
    if credential is None:
        drop_count, checks = cache.drop_count, CachingPasswordCheck(cache, digest, now)
        credential = await _check_password_and_log_sign_in(
            Context(environment, Viewer(), client_ip=ip), name, password, checks
        )
        checks.store_results(credential.viewer.user_id)
        cache.add_unless_dropped(digest, credential, drop_count)
    return credential.viewer


def _decode_name_and_password(encoded_credentials: str) -> tuple[str, str]:
    """Decode name and password. Raises Unauthenticated if they are malformed."""
    try:
        text = base64.b64decode(encoded_credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        raise Unauthenticated from None
    name, colon, password = text.partition(":")
    if not colon or not name or not password_hashes.is_possible_password(password):
        raise Unauthenticated
    return name, password


async def _check_password_and_log_sign_in(
    ctx: Context, name: str, password: str, checks: CachingPasswordCheck
) -> CachedCredential:
    """Check the password and return its credential, with the failures counted."""
    environment = ctx.environment
    entry, proof = await sign_in.check_name_and_password(
        ctx, name, password, allow_app_passwords=True, check=checks.check_password
    )
    user = entry.user
    if user is None or proof is None or not entry.can_sign_in:
        await sign_in.count_and_log_failed_sign_in(ctx, entry, HTTP_SIGN_IN, proof)
        raise Unauthenticated
    # again: concurrent guesses may have reached it
    await throttles.require_not_throttled(ctx, entry.limits, user.id)
    try:
        credential = _require_http_credential_of_proof(environment, user, proof)
    except Forbidden as refusal:
        sign_in.log_failure_in_background(ctx, entry, HTTP_SIGN_IN, proof, refusal.message)
        raise
    environment.usage.count_sign_in(UsageCaller(user.id, ctx.client_ip), has_failed=False)
    if entry.throttle_key in entry.keys_with_failures:
        await throttles.delete_failures(ctx, entry.throttle_key)
    last_used_at = proof.app_password.last_used_at if proof.app_password else user.last_login_at
    if last_used_at is None or environment.now() - last_used_at >= USE_RECORD_INTERVAL:
        cache_of_database(environment.database).write_in_background(
            _log_sign_in_and_use(ctx, entry, proof)
        )
    return credential


def _require_http_credential_of_proof(
    environment: Environment, user: ColumnRow, proof: PasswordProof
) -> CachedCredential:
    """Return the credential of a right password. Raises Forbidden if it can't be used over HTTP."""
    if proof.app_password is not None:
        if credential := credential_status.app_password_credential_for_http_or_none(
            environment, proof.app_password, user
        ):
            return credential
        raise Forbidden("The application password has no scope for HTTP.", requires=Scope.MAIL_READ)
    sign_in.require_password_sign_in_allowed(user, proof.kind)
    if proof.kind is PasswordKind.TEMPORARY or user.second_factors or not user.webmail_access:
        raise Forbidden(
            f"Basic authentication of this user requires {REQUIRED_CREDENTIAL}.",
            requires=REQUIRED_CREDENTIAL,
        )
    viewer = Viewer(
        user.id,
        Role.USER,
        frozenset({Scope.FULL}),
        frozenset(map(UserPermission, user.permissions)),
        auth_version=user.auth_version,
        share_visibility=ShareVisibility(has_shared_mailboxes=True),
    )
    return CachedCredential(viewer, environment.now(), None, None, owner_ids=(user.id,))


async def _log_sign_in_and_use(ctx: Context, entry: SignInEntry, proof: PasswordProof) -> None:
    """Write the sign-in to the user's security log, and the time of use to its row."""
    assert entry.user is not None  # noqa: S101 - it has signed in
    user_id, app_password = entry.user.id, proof.app_password
    async with ctx.write_session(user_id) as session:
        event_id = await security_log.log_event_and_queue_notice(
            ctx, session, sign_in.sign_in_event(entry, HTTP_SIGN_IN, proof)
        )
        if app_password:
            await app_passwords.record_use_and_extend_unless_changed(
                ctx, session, app_password, event_id
            )
        else:
            statement = update(User).where(col(User.id) == user_id)
            await (await session.connection()).execute(
                statement.values(last_login_at=ctx.environment.now())
            )
