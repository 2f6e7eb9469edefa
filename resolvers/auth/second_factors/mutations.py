"""Second factors of users: turn on, turn off, prove and list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.auth.second_factors import TotpSecret, WebauthnKey
from models.auth.security_log import AuthEventAction
from models.errors import AuthenticationFailed, Conflict, Forbidden, InvalidInput, NotFound
from models.events.event_types import EventType
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_overseen_user, require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import authentication, security_log
from resolvers.auth.second_factors import recovery_codes, totp, webauthn
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    enabled_methods,
    verify_and_use_up_second_factor,
)
from resolvers.auth.second_factors.totp import NewTotpSecret
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Context, GuardRule
from resolvers.users.selection import load_managed_user

CUSTOM, TOTP, WEBAUTHN = TwoFactorMethod.CUSTOM, TwoFactorMethod.TOTP, TwoFactorMethod.WEBAUTHN
NO_PROOF = SecondFactorProof()
MANAGE_GUARD = GuardRule(scope=Scope.FULL)
UserId = int  # of the user whose factors a mutation has changed or checked


@dataclass(frozen=True, slots=True)
class EnabledFactor:
    """A second factor that is on, with the times it was turned on and last proved, if known."""

    method: TwoFactorMethod
    created_at: datetime | None = None
    last_used_at: datetime | None = None


async def _load_managed_user_or_viewer(ctx: Context, user_id: int | None) -> ColumnRow:
    """Load a user that the viewer manages; None: the viewer's own."""
    return await load_managed_user(ctx, require_user_id(ctx) if user_id is None else user_id)


async def _load_pending_or_managed_user(ctx: Context, user_id: int | None) -> ColumnRow:
    """Load the user of the pending sign-in, or else a managed user.

    Raises Unauthenticated for an anonymous viewer, NotFound for another user than the pending one.
    """
    pending_user_id = ctx.viewer.pending_user_id
    if not pending_user_id:
        ctx.viewer.require(MANAGE_GUARD)
        return await _load_managed_user_or_viewer(ctx, user_id)
    if user_id not in (None, pending_user_id):
        raise NotFound(str(user_id), path=["user"])
    statement = select(*select_columns(User)).where(
        col(User.id) == pending_user_id, col(User.deleted_at).is_(None)
    )
    for row in await ctx.read(statement):
        return row
    raise AuthenticationFailed


async def _require_proof_or_reason(ctx: Context, user: ColumnRow, proof: SecondFactorProof) -> None:
    """Check a proof of a second factor that is on, since the viewer's credential may be stolen.

    A viewer who is another user can give a reason instead of a proof. Raises AuthenticationFailed
    without a right proof, Invalid without a reason, and Forbidden if only the factor CUSTOM is on.
    """
    if proof.is_given:
        await verify_and_use_up_second_factor(ctx, user, proof)
    elif ctx.viewer.user_id != user.id:
        if not ctx.reason:
            raise InvalidInput(
                "A reason is required",
                constraint=ValidationConstraint.REQUIRED,
                path=["options", "reason"],
            )
    elif enabled_methods(user) == [CUSTOM]:
        text = "The application that checks this factor must turn it off"
        raise Forbidden(text, requires=Role.DOMAIN_ADMIN)
    else:
        raise AuthenticationFailed("A proof of a second factor that is on is required")


async def _require_proof_for_further_factor(
    ctx: Context, user: ColumnRow, proof: SecondFactorProof
) -> None:
    """Require a proof before a further factor is added: its owner could prove it from then on."""
    if enabled_methods(user) and (proof.is_given or ctx.viewer.user_id == user.id):
        await _require_proof_or_reason(ctx, user, proof)


@dataclass(frozen=True, slots=True)
class FactorChange:
    """A mutation with its action name in the security log."""

    mutation: str
    action: AuthEventAction
    target: str | None = None


async def _log_and_record_change(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    change: FactorChange,
    enabled_after: Sequence[str],
) -> None:
    """Write a change to the security log and the journal.

    Also to the admin log if by another user.
    """
    await security_log.log_event(
        ctx, session, NewSecurityEvent(change.action, user.id, target=change.target)
    )
    if enabled_methods(user) != [*enabled_after]:
        await ctx.record_change(session, user.id, EventType.USER_UPDATED, [user.id])
    if ctx.viewer.user_id == user.id:
        return
    old_values = {"twoFactorMethods": [*enabled_methods(user)]}
    admin_entry = NewAuditLogEntry(
        change.mutation,
        "User",
        user.id,
        user.domain_id,
        old_values,
        {"twoFactorMethods": [*enabled_after]},
    )
    await audit_log.log_changes(ctx, session, admin_entry)


async def _reload_user(session: AsyncSession, user: ColumnRow) -> ColumnRow:
    """Read the user inside the transaction that locks it. Raises NotFound if it was deleted."""
    statement = select(*select_columns(User)).where(
        col(User.id) == user.id, col(User.deleted_at).is_(None)
    )
    row = (await (await session.connection()).execute(statement)).first()
    if row is None:
        raise NotFound(str(user.id), path=["user"])
    return row


async def _enable_factor_and_end_sign_ins(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    method: TwoFactorMethod,
    change: FactorChange,
) -> None:
    """Add a factor to those that are on; other sign-ins of the user end."""
    enabled_before = enabled_methods(user)
    enabled_after = [each for each in TwoFactorMethod if each in {*enabled_before, method}]
    connection = await session.connection()
    if method not in enabled_before:
        statement = (
            update(User)
            .where(col(User.id) == user.id)
            .values(
                second_factors=[each.value for each in enabled_after],
                auth_version=User.auth_version + 1,
                updated_at=ctx.environment.now(),
            )
            .returning(col(User.auth_version))
        )
        version = (await connection.execute(statement)).scalar_one()
        is_current_token = (col(AccessToken.id) == (ctx.viewer.token_id or 0)) & (
            col(AccessToken.user_id) == user.id
        )
        await connection.execute(
            update(AccessToken).where(is_current_token).values(auth_version=version)
        )
    await _log_and_record_change(ctx, session, user, change, enabled_after)


def _has_factor_with_recovery_codes(user: ColumnRow) -> bool:
    """True if a factor is on that this server checks: such users have recovery codes."""
    return bool({TOTP, WEBAUTHN}.intersection(enabled_methods(user)))


async def _disable_factors(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    methods: Sequence[TwoFactorMethod],
    change: FactorChange,
) -> None:
    """Remove factors from those that are on, with their secrets, keys and recovery codes."""
    enabled_after = [each for each in enabled_methods(user) if each not in methods]
    connection = await session.connection()
    values: dict[str, Any] = {
        "second_factors": [each.value for each in enabled_after],
        "updated_at": ctx.environment.now(),
    }
    await connection.execute(update(User).where(col(User.id) == user.id).values(values))
    if TOTP in methods:
        await totp.delete_totp_secrets(session, user.id)
    if WEBAUTHN in methods:
        await webauthn.delete_keys_and_count_remaining(session, user.id)
    if not {TOTP, WEBAUTHN}.intersection(enabled_after):
        await recovery_codes.delete_recovery_codes(session, user.id)
    await _log_and_record_change(ctx, session, user, change, enabled_after)


def _require_enabled(user: ColumnRow, method: TwoFactorMethod) -> None:
    """Raise Conflict if the factor is off."""
    if method not in enabled_methods(user):
        raise Conflict(f"{method} is off")


def _require_disabled(user: ColumnRow, method: TwoFactorMethod) -> None:
    """Raise Conflict if the factor is on."""
    if method in enabled_methods(user):
        raise Conflict(f"{method} is already on")


async def _disable_factor(
    ctx: Context,
    user_id: int | None,
    proof: SecondFactorProof,
    method: TwoFactorMethod,
    change: FactorChange,
) -> UserId:
    """Turn one factor off after a proof; return the user id. Raises Conflict if it is off."""
    user = await _load_managed_user_or_viewer(ctx, user_id)
    _require_enabled(user, method)
    await _require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        _require_enabled(user, method)
        await _disable_factors(ctx, session, user, [method], change)
    return int(user.id)


async def set_up_totp(
    ctx: Context, user_id: int | None, label: str | None, issuer: str | None
) -> NewTotpSecret:
    """Create a TOTP secret for the user, which is used only once it is proved.

    Raises Conflict if TOTP is on.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        _require_disabled(user, TOTP)
        new_secret = await totp.create_pending_secret(ctx, session, user, label, issuer)
        await security_log.log_event(
            ctx, session, NewSecurityEvent(AuthEventAction.TOTP_SETUP, user.id)
        )
    return new_secret


async def enable_totp(
    ctx: Context, user_id: int | None, code: str, proof: SecondFactorProof = NO_PROOF
) -> tuple[UserId, list[str]]:
    """Turn TOTP on by a code of the new secret. Returns the user id and new recovery codes.

    Raises AuthenticationFailed for a wrong code, Conflict if TOTP is on or no secret is pending.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    _require_disabled(user, TOTP)
    await _require_proof_for_further_factor(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        _require_disabled(user, TOTP)
        await totp.enable_pending_secret(ctx, session, user.id, code)
        await _enable_factor_and_end_sign_ins(
            ctx, session, user, TOTP, FactorChange("totpEnable", AuthEventAction.TOTP_ENABLE)
        )
        codes = await recovery_codes.replace_recovery_codes(ctx.environment, session, user.id)
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return user.id, codes


async def enable_imported_totp(ctx: Context, user_id: int, encoded_secret: str) -> UserId:
    """Turn TOTP on by a secret that the user's authenticator has from another system.

    Returns the user id. Raises Invalid for a malformed secret, Conflict if TOTP is on.
    """
    user, secret = (
        await _load_managed_user_or_viewer(ctx, user_id),
        totp.decode_secret(encoded_secret),
    )
    await _require_proof_for_further_factor(ctx, user, NO_PROOF)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        _require_disabled(user, TOTP)
        await totp.enable_imported_secret(ctx, session, user.id, secret)
        await _enable_factor_and_end_sign_ins(
            ctx, session, user, TOTP, FactorChange("totpImport", AuthEventAction.TOTP_ENABLE)
        )
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return int(user.id)


async def disable_totp(ctx: Context, user_id: int | None, proof: SecondFactorProof) -> UserId:
    """Turn TOTP off, and no other factor. Returns the user id."""
    return await _disable_factor(
        ctx, user_id, proof, TOTP, FactorChange("totpDisable", AuthEventAction.TOTP_DISABLE)
    )


async def prove_second_factor(
    ctx: Context, user_id: int | None, proof: SecondFactorProof
) -> UserId:
    """Prove a second factor of the user; a pending sign-in is completed. Returns the user id.

    Raises Conflict if no factor is on, AuthenticationFailed for a wrong proof.
    """
    user = await _load_pending_or_managed_user(ctx, user_id)
    if not enabled_methods(user):
        raise Conflict("No second factor is on")
    await verify_and_use_up_second_factor(ctx, user, proof)
    if ctx.viewer.pending_user_id:
        async with ctx.write_session(user.id) as session:
            await authentication.complete_pending_token(ctx, session)
    return int(user.id)


async def enable_custom_factor(ctx: Context, user_id: int | None) -> UserId:
    """Turn on the factor CUSTOM, which an application checks. Returns the user id."""
    user = await _load_managed_user_or_viewer(ctx, user_id)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        _require_disabled(user, CUSTOM)
        change = FactorChange("externalTwoFactorEnable", AuthEventAction.EXTERNAL_TWO_FACTOR_ENABLE)
        await _enable_factor_and_end_sign_ins(ctx, session, user, CUSTOM, change)
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return int(user.id)


async def disable_custom_factor(
    ctx: Context, user_id: int | None, proof: SecondFactorProof
) -> UserId:
    """Turn off the factor CUSTOM. Returns the user id."""
    change = FactorChange("externalTwoFactorDisable", AuthEventAction.EXTERNAL_TWO_FACTOR_DISABLE)
    return await _disable_factor(ctx, user_id, proof, CUSTOM, change)


async def create_webauthn_challenge(
    ctx: Context, user_id: int | None, ceremony: Ceremony | None
) -> dict[str, Any]:
    """Create a challenge to register a security key, or to prove one for a pending sign-in.

    Raises Forbidden if a pending sign-in asks to register a key.
    """
    user = await _load_pending_or_managed_user(ctx, user_id)
    if ctx.viewer.pending_user_id:
        if ceremony is Ceremony.REGISTRATION:
            raise Forbidden(
                "A key can be registered after the sign-in is complete", requires=Role.USER
            )
        ceremony = Ceremony.AUTHENTICATION
    return await webauthn.create_challenge_options(ctx, user, ceremony or Ceremony.REGISTRATION)


async def register_webauthn_key(
    ctx: Context,
    user_id: int | None,
    name: str,
    response: Mapping[str, Any],
    proof: SecondFactorProof = NO_PROOF,
) -> tuple[WebauthnKey, list[str]]:
    """Register a security key. Returns it, and recovery codes if it is the first factor."""
    name, user = webauthn.validate_key_name(name), await _load_managed_user_or_viewer(ctx, user_id)
    await _require_proof_for_further_factor(ctx, user, proof)
    new_key = await webauthn.verify_registration(ctx, user.id, response)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        row = await webauthn.store_key_and_delete_challenge(ctx, session, user.id, name, new_key)
        change = FactorChange("webauthnRegister", AuthEventAction.WEBAUTHN_REGISTER, target=name)
        is_first_factor = not _has_factor_with_recovery_codes(user)
        await _enable_factor_and_end_sign_ins(ctx, session, user, WEBAUTHN, change)
        codes = (
            await recovery_codes.replace_recovery_codes(ctx.environment, session, user.id)
            if is_first_factor
            else []
        )
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return row, codes


async def delete_webauthn_keys(ctx: Context, ids: Sequence[int], proof: SecondFactorProof) -> None:
    """Delete security keys of one user, all or none. The last one turns the factor off.

    Raises NotFound for a key that the viewer does not see, Invalid for keys of several users.
    """
    rows = await webauthn.load_visible_keys_by_id(ctx, list(ids))
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
    keys = [row for row in rows if row]
    if not keys:
        return
    if len({row.user_id for row in keys}) > 1:
        raise InvalidInput(
            "All keys must belong to one user",
            constraint=ValidationConstraint.UNSUPPORTED,
            path=["ids"],
        )
    user = await _load_managed_user_or_viewer(ctx, keys[0].user_id)
    await _require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        remaining_count = await webauthn.delete_keys_and_count_remaining(session, user.id, ids)
        names = {row.id: row.name for row in keys}.values()
        change = FactorChange(
            "webauthnDelete", AuthEventAction.WEBAUTHN_DELETE, target=", ".join(names)
        )
        await _disable_factors(ctx, session, user, [] if remaining_count else [WEBAUTHN], change)


async def disable_all_factors(
    ctx: Context, user_id: int | None, proof: SecondFactorProof
) -> UserId:
    """Turn all factors off and delete secrets, keys and recovery codes. Returns the user id.

    Raises Conflict if no factor is on.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    if not enabled_methods(user):
        raise Conflict("No second factor is on")
    await _require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await _reload_user(session, user)
        change = FactorChange("twoFactorDisable", AuthEventAction.TWO_FACTOR_DISABLE)
        await _disable_factors(ctx, session, user, list(TwoFactorMethod), change)
    return int(user.id)


async def require_reason_to_disable_factors(
    ctx: Context, user: ColumnRow, path: Sequence[str]
) -> None:
    """Require that another user turns all factors of a user off, and gives a reason.

    Does nothing if no factor is on. Raises AuthenticationFailed for the viewer's own account, which
    must use `disable_all_factors`; errors get this `path`.
    """
    if not enabled_methods(user):
        return
    try:
        await _require_proof_or_reason(ctx, user, NO_PROOF)
    except (AuthenticationFailed, Forbidden) as refusal:
        refusal.path = [*path]
        raise


async def delete_secrets_of_all_factors(
    ctx: Context, session: AsyncSession, user: ColumnRow
) -> None:
    """Delete secrets, keys and recovery codes of a user that is locked, and log it.

    The caller changes `User.second_factors`.
    """
    await totp.delete_totp_secrets(session, user.id)
    await webauthn.delete_keys_and_count_remaining(session, user.id)
    await recovery_codes.delete_recovery_codes(session, user.id)
    await security_log.log_event(
        ctx, session, NewSecurityEvent(AuthEventAction.TWO_FACTOR_DISABLE, user.id)
    )


async def renew_recovery_codes(ctx: Context, proof: SecondFactorProof) -> list[str]:
    """Replace the viewer's recovery codes and return the new ones.

    Raises Conflict if neither TOTP nor WebAuthn is on.
    """
    user = await _load_managed_user_or_viewer(ctx, require_user_id(ctx))
    if not _has_factor_with_recovery_codes(user):
        raise Conflict("Neither TOTP nor WebAuthn is on")
    await _require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        codes = await recovery_codes.replace_recovery_codes(ctx.environment, session, user.id)
        await security_log.log_event(
            ctx, session, NewSecurityEvent(AuthEventAction.RECOVERY_CODES_CREATE, user.id)
        )
    return codes


async def load_enabled_factors(ctx: Context, user_ids: list[int]) -> list[list[EnabledFactor]]:
    """Load the factors that are on for these users; none for users the viewer can't oversee."""
    statement = (
        select(
            *select_columns(User, ("id", "second_factors")),
            *select_columns(TotpSecret, ("enabled_at", "last_step")),
        )
        .outerjoin(TotpSecret, col(TotpSecret.user_id) == col(User.id))
        .where(col(User.id).in_(user_ids), is_overseen_user(ctx))
    )
    owner_id = col(WebauthnKey.user_id)
    keys = select(
        owner_id,
        func.min(col(WebauthnKey.created_at)).label("created_at"),
        func.max(col(WebauthnKey.last_used_at)).label("last_used_at"),
    ).where(owner_id.in_(user_ids))
    key_times_by_user = {row.user_id: row for row in await ctx.read(keys.group_by(owner_id))}
    factors_by_user = {}
    for row in await ctx.read(statement):
        key_times = key_times_by_user.get(row.id)
        last_used_at = row.last_step and datetime.fromtimestamp(
            row.last_step * totp.STEP_SECONDS, UTC
        )
        last_used_at = last_used_at and min(
            last_used_at, ctx.environment.now()
        )  # a fast clock uses steps of the future
        factors = {
            TOTP: EnabledFactor(TOTP, row.enabled_at, last_used_at),
            CUSTOM: EnabledFactor(CUSTOM),
            WEBAUTHN: EnabledFactor(WEBAUTHN, *(key_times[1:] if key_times else ())),
        }
        factors_by_user[row.id] = [factors[method] for method in enabled_methods(row)]
    return [factors_by_user.get(key, []) for key in user_ids]
