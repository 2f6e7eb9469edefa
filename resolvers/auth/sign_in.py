"""Check of names and passwords at sign-in. The caller does not learn why it failed.

A refusal costs the same for all names: one hash, for users with an Argon2 password and for unknown
names alike, and a second one if the text has the form of a temporary or application password, even
if the user has none. An imported hash is compared in addition to an Argon2 hash: until the first
sign-in it takes longer, but never shorter. Failures are logged in the background.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import MAX_ADDRESS, normalized_address, username_key
from mail.network.ip_networks import is_in_networks
from mail.recipients.address_resolution import SIGN_IN_USER_ID, sign_in_parameters
from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.errors import Forbidden
from models.metrics.usage_recorder import NO_USER, UsageCaller
from models.observability import metrics
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import PreparedStatement
from models.throttling.policy import BanCause
from models.users.roles import Scope
from models.users.tables import User
from resolvers.auth import (
    app_password_validation,
    app_passwords,
    guess_alerts,
    security_log,
    throttles,
)
from resolvers.auth.credential_cache import cache_of_database
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.new_passwords import GENERATED_PATTERN
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.auth.throttles import LimitsByKey
from resolvers.context import Context
from resolvers.identity_providers.provider_records import (
    ACCESS_ENDED_COLUMN,
    PASSWORD_SIGN_IN_COLUMN,
    user_columns_with_password_rule,
)
from resolvers.throttling import client_failures

log = logging.getLogger(__name__)

SIGN_INS = metrics.counter("merganser_sign_ins", "Sign-ins with a password by result.", "result")
OWN_HASH_PREFIX = "$argon2"  # hashes with another prefix are imported
REQUIRED_PROVIDER = "the identity provider of the domain"
MAX_LOGGED_NAME_LENGTH = 128  # characters

_SELECT_USER_BY_LOGIN = PreparedStatement(
    select(*user_columns_with_password_rule()).where(col(User.id) == SIGN_IN_USER_ID)
)


class PasswordKind(StrEnum):
    """The kind of password that proved a user."""

    FULL = "master"
    TEMPORARY = "temporary"
    APP = "application password"


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """What a sign-in asks for: scope, protocol, token and second factor."""

    scope: Scope = Scope.FULL
    protocol: AuthProtocol = AuthProtocol.API
    token: bool = False
    ttl: timedelta | None = None  # the token ends if it is not used for this time
    proof: SecondFactorProof = field(default_factory=SecondFactorProof)
    stays_pending: bool = False  # the token has no use, but it ends with the tokens of the user
    token_scopes: frozenset[Scope] | None = None  # the token has at most these; None: no limit

    def __post_init__(self) -> None:
        """Raise ValueError for a token of a scope that takes application passwords."""
        if self.token and self.scope is not Scope.FULL:
            raise ValueError("A token requires the scope FULL.")

    @property
    def can_set_password(self) -> bool:
        """True if a token from a temporary password could set a new password."""
        return self.token_scopes is None or Scope.SETTINGS in self.token_scopes


@dataclass(frozen=True, slots=True)
class SignInEntry:
    """The user a name resolves to, with the throttles that count its failures."""

    name: str  # as the client sent it
    user: ColumnRow | None
    throttle_key: str  # key of name and network; a success deletes its failures
    limits: LimitsByKey
    keys_with_failures: frozenset[str]  # keys of `limits` that have any

    @property
    def can_sign_in(self) -> bool:
        """True if there is a user that can sign in."""
        user = self.user
        return user is not None and user.active and not (user.suspended or user.deleted_at)


@dataclass(frozen=True, slots=True)
class PasswordProof:
    """A password that was right: which kind it is, and its row if it is an application password."""

    kind: PasswordKind
    app_password: ColumnRow | None = None  # the row of the application password


class CheckedPassword(NamedTuple):
    """The security log entry of a sign-in, and the proof of the right password."""

    entry: SignInEntry
    proof: PasswordProof | None  # None for a wrong name or password


async def check_name_and_password(
    ctx: Context,
    username: str,
    password: str,
    *,
    allow_app_passwords: bool,
    check: password_hashes.PasswordCheck | None = None,
) -> CheckedPassword:
    """Resolve a name and check its password; the proof is None if the password is wrong.

    `allow_app_passwords` also checks application passwords. `check` compares passwords with hashes.
    Raises RateLimited, before any hashing, if the name or network must wait. Must not be called
    inside a transaction.
    """
    with password_hashes.sign_in_slot(ctx.environment):
        entry = await resolve_name_unless_throttled(ctx, username)
        return CheckedPassword(
            entry,
            await _check_password(
                ctx.environment,
                entry.user,
                password,
                check or password_hashes.check_password,
                allow_app_passwords=allow_app_passwords,
            ),
        )


async def resolve_name_unless_throttled(ctx: Context, username: str) -> SignInEntry:
    """Resolve a name to its user and check its throttles. Raises RateLimited if it must wait."""
    environment = ctx.environment
    is_possible_name = len(username) <= MAX_ADDRESS and "\0" not in username
    parameters = sign_in_parameters(environment, username if is_possible_name else "")
    user = next(
        iter(await environment.database.read_prepared(_SELECT_USER_BY_LOGIN, parameters)), None
    )
    name_key = (
        f"user:{user.id}"
        if user
        else f"name:{_unknown_name_digest(username, is_possible_name=is_possible_name)}"
    )
    limits = throttles.limits_of_password(environment.options, name_key, ctx.client_ip)
    state = await throttles.require_not_throttled(ctx, limits, user.id if user else 0)
    return SignInEntry(username, user, next(iter(limits)), state.limits, state.keys_with_failures)


def _unknown_name_digest(username: str, *, is_possible_name: bool) -> str:
    """Return the digest under which failures of a name that belongs to no user are counted."""
    name = (
        "@".join(normalized_address(username))
        if "@" in username and is_possible_name
        else username_key(username)
    )
    # hashed: the name can be long, or be a password that was typed in the wrong field
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


async def _check_password(
    environment: Environment,
    user: ColumnRow | None,
    password: str,
    check: password_hashes.PasswordCheck,
    *,
    allow_app_passwords: bool,
) -> PasswordProof | None:
    """Check the password against the user's own, temporary and application passwords.

    Returns None if it matches none. All branches compute the same number of hashes.
    """
    stored = user.password if user else None
    is_own_password = await check(environment, stored, password)
    if stored and not stored.startswith(OWN_HASH_PREFIX):
        await check(environment, None, password)
    if GENERATED_PATTERN.fullmatch(password):
        temporary_password = (
            user.temporary_password
            if user and _is_temporary_password_unexpired(user, environment.now())
            else None
        )
        if await check(environment, temporary_password, password) and not is_own_password:
            return PasswordProof(PasswordKind.TEMPORARY)
    elif allow_app_passwords and app_password_validation.normalize_app_password(password):
        if user is None:
            await check(environment, None, password)
        elif app_password := await app_passwords.find_app_password(
            environment, user.id, password, check
        ):
            return PasswordProof(PasswordKind.APP, app_password)
    return PasswordProof(PasswordKind.FULL) if is_own_password else None


def _is_temporary_password_unexpired(user: ColumnRow, now: datetime) -> bool:
    """True if the temporary password has not expired."""
    valid_until: datetime | None = user.temporary_until
    return valid_until is None or now < valid_until


def require_sign_in_allowed(
    ctx: Context, user: ColumnRow, proof: PasswordProof, sign_in_request: SignInRequest
) -> None:
    """Raise Forbidden if the proven password does not allow what the sign-in asks for."""
    scope, source, now = sign_in_request.scope, proof.kind, ctx.environment.now()
    if source is PasswordKind.TEMPORARY and user.temporary_from and now < user.temporary_from:
        raise Forbidden("The temporary password is not valid yet.")
    if source is PasswordKind.TEMPORARY and not sign_in_request.can_set_password:
        text = "A temporary password only sets a new password, which requires the scope SETTINGS."
        raise Forbidden(text, requires=Scope.SETTINGS, path=["scopes"])
    require_protocol_allowed(ctx, user, scope)
    require_password_sign_in_allowed(user, source)
    if scope is Scope.FULL:
        if sign_in_request.token and not user.webmail_access:
            raise Forbidden("The user can't get an access token.", requires="webmailAccess")
    elif proof.app_password is not None:
        if scope not in app_passwords.scopes_of_app_password(proof.app_password.scopes):
            raise Forbidden(
                f"The application password does not have the scope {scope}.", requires=scope
            )
    elif source is PasswordKind.TEMPORARY or user.second_factors:
        required = "an application password"
        raise Forbidden(f"{scope} requires {required} for this user.", requires=required)


def require_password_sign_in_allowed(user: ColumnRow, kind: PasswordKind) -> None:
    """Raise Forbidden if the user must sign in at the identity provider of its domain."""
    if kind is PasswordKind.APP:
        return
    if getattr(user, ACCESS_ENDED_COLUMN):
        text = "The identity provider has ended the access of this account: sign in there again."
        raise Forbidden(text, requires=REQUIRED_PROVIDER)
    if not getattr(user, PASSWORD_SIGN_IN_COLUMN):
        text = "The domain requires sign-in at its identity provider, or an application password."
        raise Forbidden(text, requires=REQUIRED_PROVIDER)


def require_protocol_allowed(ctx: Context, user: ColumnRow, scope: Scope) -> None:
    """Raise Forbidden if the protocol of a scope is turned off for the user or this network."""
    if scope in user.disabled_scopes:
        raise Forbidden(f"{scope} is turned off for this user.", requires=scope)
    allowed_networks = tuple(user.smtp_allowed_networks)
    if (
        scope is Scope.SMTP
        and allowed_networks
        and not is_in_networks(ctx.client_ip, allowed_networks)
    ):
        raise Forbidden("SMTP is not allowed from this network.", requires="smtpAllowedNetworks")


def sign_in_event(
    entry: SignInEntry,
    sign_in_request: SignInRequest,
    proof: PasswordProof | None,
    **extra_detail: object,
) -> NewSecurityEvent:
    """Build the event of a sign-in for the security log; `result` is success unless given."""
    user, detail = entry.user, {"scope": sign_in_request.scope.value}
    if proof:
        detail["source"] = proof.kind.value
    if proof and proof.app_password:
        detail["application"] = proof.app_password.description
    if user is None:
        detail["username"] = (
            entry.name[:MAX_LOGGED_NAME_LENGTH].replace("\0", "").encode(errors="replace").decode()
        )
    result = SecurityEventResult(str(extra_detail.pop("result", SecurityEventResult.SUCCESS)))
    full_detail = {**detail, **extra_detail}
    return NewSecurityEvent(
        SecurityEventAction.SIGN_IN_ATTEMPTED,
        user.id if user else None,
        result,
        sign_in_request.protocol,
        detail=full_detail,
    )


def count_sign_in(ctx: Context, user_id: int) -> None:
    """Count a sign-in with a right password in the metrics."""
    SIGN_INS.add("signed in")
    caller = UsageCaller(user_id, ctx.client_ip)
    ctx.environment.usage.count_sign_in(caller, has_failed=False)


async def count_and_log_failed_sign_in(
    ctx: Context, entry: SignInEntry, sign_in_request: SignInRequest, proof: PasswordProof | None
) -> None:
    """Count and log a failed sign-in, and alert the user if a limit was reached.

    Raises RateLimited if concurrent failures have reached the limit.
    """
    SIGN_INS.add("failed")
    user_id = entry.user.id if entry.user else None
    log_fields = {"user": user_id, "protocol": sign_in_request.protocol, "ip": ctx.client_ip}
    log.info("Sign-in failed", extra=log_fields)
    await client_failures.count_failure_and_log_ban(ctx, BanCause.SIGN_IN, user_id)
    reached_keys = await throttles.count_failure_return_reached_keys(ctx.environment, entry.limits)
    log_failure_in_background(ctx, entry, sign_in_request, proof)
    if entry.can_sign_in and any(
        key.startswith(entry.throttle_key.rpartition("@")[0]) for key in reached_keys
    ):
        cache_of_database(ctx.environment.database).write_in_background(
            guess_alerts.log_guessing_and_alert_user(ctx, user_id or 0)
        )


def log_failure_in_background(
    ctx: Context,
    entry: SignInEntry,
    sign_in_request: SignInRequest,
    proof: PasswordProof | None,
    reason: str = "",
) -> None:
    """Count a failed sign-in, and write it to the security log in the background.

    `reason` is the refusal.
    """
    user, result = entry.user, SecurityEventResult.FAILURE
    if user is not None and not entry.can_sign_in:
        result = (
            SecurityEventResult.SUSPENDED
            if user.suspended and user.active
            else SecurityEventResult.DISABLED
        )
    caller = UsageCaller(user.id if user else NO_USER, ctx.client_ip)
    ctx.environment.usage.count_sign_in(caller, has_failed=True)
    extra_detail = {"reason": reason} if reason else {}
    security_log.log_event_in_background(
        ctx, sign_in_event(entry, sign_in_request, proof, result=result, **extra_detail)
    )
