"""Second factors of users: turn on, turn off, prove and list."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from models.auth.second_factors import WebauthnKey
from models.auth.security_log import SecurityEventAction
from models.errors import AuthenticationFailed, Conflict, Forbidden, InvalidInput, NotFound
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.auth import authentication, security_log
from resolvers.auth.second_factors import recovery_codes, totp, webauthn
from resolvers.auth.second_factors.factor_changes import (
    FactorChange,
    disable_factors_with_secrets,
    enable_factor_and_end_other_sign_ins,
    has_factor_with_recovery_codes,
    require_factor_disabled,
    require_factor_enabled,
    require_user_in_transaction,
)
from resolvers.auth.second_factors.proof_requirements import (
    NO_PROOF,
    require_proof_from_owner_of_factors,
    require_proof_or_reason,
)
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    enabled_methods,
    verify_and_use_up_second_factor,
)
from resolvers.auth.second_factors.totp import NewTotpSecret
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.users.selection import require_managed_user
from resolvers.viewer import GuardRule

MANAGE_GUARD = GuardRule(scope=Scope.FULL)
UserId = int  # of the user whose factors a mutation has changed or checked


async def _load_managed_user_or_viewer(ctx: Context, user_id: int | None) -> ColumnRow:
    """Load a user that the viewer manages; None: the viewer's own."""
    return await require_managed_user(ctx, require_user_id(ctx) if user_id is None else user_id)


async def _require_pending_or_managed_user(ctx: Context, user_id: int | None) -> ColumnRow:
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


async def _disable_factor(
    ctx: Context,
    user_id: int | None,
    proof: SecondFactorProof,
    method: TwoFactorMethod,
    change: FactorChange,
) -> UserId:
    """Turn one factor off after a proof; return the user id. Raises Conflict if it is off."""
    user = await _load_managed_user_or_viewer(ctx, user_id)
    require_factor_enabled(user, method)
    await require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        require_factor_enabled(user, method)
        await disable_factors_with_secrets(ctx, session, user, [method], change)
    return int(user.id)


async def create_pending_totp_secret(
    ctx: Context, user_id: int | None, label: str | None, issuer: str | None
) -> NewTotpSecret:
    """Create a TOTP secret for the user, which is used only once it is proved.

    Raises Conflict if TOTP is on.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        require_factor_disabled(user, TwoFactorMethod.TOTP)
        new_secret = await totp.create_pending_secret(ctx, session, user, label, issuer)
        await security_log.log_event_and_queue_notice(
            ctx, session, NewSecurityEvent(SecurityEventAction.TOTP_SECRET_CREATED, user.id)
        )
    return new_secret


class EnabledTotp(NamedTuple):
    """The user whose TOTP was turned on, with new recovery codes."""

    user_id: UserId
    recovery_codes: list[str]


async def enable_totp(
    ctx: Context, user_id: int | None, code: str, proof: SecondFactorProof = NO_PROOF
) -> EnabledTotp:
    """Turn TOTP on by a code of the new secret. Returns the user id and new recovery codes.

    Raises AuthenticationFailed for a wrong code, Conflict if TOTP is on or no secret is pending.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    require_factor_disabled(user, TwoFactorMethod.TOTP)
    await require_proof_from_owner_of_factors(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        require_factor_disabled(user, TwoFactorMethod.TOTP)
        await totp.enable_pending_secret(ctx, session, user.id, code)
        await enable_factor_and_end_other_sign_ins(
            ctx,
            session,
            user,
            TwoFactorMethod.TOTP,
            FactorChange("totpEnable", SecurityEventAction.TOTP_ENABLED),
        )
        codes = await recovery_codes.replace_recovery_codes(ctx.environment, session, user.id)
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return EnabledTotp(user.id, codes)


async def enable_imported_totp(
    ctx: Context, user_id: int, encoded_secret: str, proof: SecondFactorProof = NO_PROOF
) -> UserId:
    """Turn TOTP on by a secret that the user's authenticator has from another system.

    Returns the user id. Raises InvalidInput for a malformed secret, Conflict if TOTP is on, and
    AuthenticationFailed if the viewer adds a factor to the own account without a right proof.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    secret = totp.decode_secret(encoded_secret)
    require_factor_disabled(user, TwoFactorMethod.TOTP)  # before a proof is used up
    await require_proof_from_owner_of_factors(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        require_factor_disabled(user, TwoFactorMethod.TOTP)
        await totp.enable_imported_secret(ctx, session, user.id, secret)
        await enable_factor_and_end_other_sign_ins(
            ctx,
            session,
            user,
            TwoFactorMethod.TOTP,
            FactorChange("totpImport", SecurityEventAction.TOTP_ENABLED),
        )
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return int(user.id)


async def disable_totp(ctx: Context, user_id: int | None, proof: SecondFactorProof) -> UserId:
    """Turn TOTP off, and no other factor. Returns the user id."""
    return await _disable_factor(
        ctx,
        user_id,
        proof,
        TwoFactorMethod.TOTP,
        FactorChange("totpDisable", SecurityEventAction.TOTP_DISABLED),
    )


async def prove_second_factor_and_complete_sign_in(
    ctx: Context, user_id: int | None, proof: SecondFactorProof
) -> UserId:
    """Prove a second factor of the user; a pending sign-in is completed. Returns the user id.

    Raises Conflict if no factor is on, AuthenticationFailed for a wrong proof.
    """
    user = await _require_pending_or_managed_user(ctx, user_id)
    if not enabled_methods(user):
        raise Conflict("No second factor is on.")
    await verify_and_use_up_second_factor(ctx, user, proof)
    if ctx.viewer.pending_user_id:
        async with ctx.write_session(user.id) as session:
            await authentication.complete_pending_token_and_log(ctx, session)
    return int(user.id)


async def enable_external_factor(ctx: Context, user_id: int | None) -> UserId:
    """Turn on the factor EXTERNAL, which an application checks. Returns the user id."""
    user = await _load_managed_user_or_viewer(ctx, user_id)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        require_factor_disabled(user, TwoFactorMethod.EXTERNAL)
        change = FactorChange(
            "externalTwoFactorEnable", SecurityEventAction.EXTERNAL_TWO_FACTOR_ENABLED
        )
        await enable_factor_and_end_other_sign_ins(
            ctx, session, user, TwoFactorMethod.EXTERNAL, change
        )
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return int(user.id)


async def disable_external_factor(
    ctx: Context, user_id: int | None, proof: SecondFactorProof
) -> UserId:
    """Turn off the factor EXTERNAL. Returns the user id."""
    change = FactorChange(
        "externalTwoFactorDisable", SecurityEventAction.EXTERNAL_TWO_FACTOR_DISABLED
    )
    return await _disable_factor(ctx, user_id, proof, TwoFactorMethod.EXTERNAL, change)


async def create_webauthn_challenge(
    ctx: Context, user_id: int | None, ceremony: Ceremony | None
) -> dict[str, Any]:
    """Create a challenge to register a security key, or to prove one for a pending sign-in.

    Raises Forbidden if a pending sign-in asks to register a key.
    """
    user = await _require_pending_or_managed_user(ctx, user_id)
    if ctx.viewer.pending_user_id:
        if ceremony is Ceremony.REGISTRATION:
            raise Forbidden(
                "A key can be registered after the sign-in is complete.", requires=Role.USER
            )
        ceremony = Ceremony.AUTHENTICATION
    return await webauthn.create_challenge_options(ctx, user, ceremony or Ceremony.REGISTRATION)


class RegisteredWebauthnKey(NamedTuple):
    """A registered security key, with new recovery codes if it is the first factor."""

    row: WebauthnKey
    recovery_codes: list[str]


async def register_webauthn_key(
    ctx: Context,
    user_id: int | None,
    name: str,
    response: Mapping[str, Any],
    proof: SecondFactorProof = NO_PROOF,
) -> RegisteredWebauthnKey:
    """Register a security key. Returns it, and recovery codes if it is the first factor."""
    name, user = webauthn.validate_key_name(name), await _load_managed_user_or_viewer(ctx, user_id)
    await require_proof_from_owner_of_factors(ctx, user, proof)
    new_key = await webauthn.verify_registration_or_delete_challenge(ctx, user.id, response)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        row = await webauthn.store_key_and_delete_challenge(ctx, session, user.id, name, new_key)
        change = FactorChange(
            "webauthnRegister", SecurityEventAction.WEBAUTHN_REGISTERED, target=name
        )
        is_first_factor = not has_factor_with_recovery_codes(user)
        await enable_factor_and_end_other_sign_ins(
            ctx, session, user, TwoFactorMethod.WEBAUTHN, change
        )
        codes = (
            await recovery_codes.replace_recovery_codes(ctx.environment, session, user.id)
            if is_first_factor
            else []
        )
    authentication.drop_cached_credentials(ctx.environment, user.id)
    return RegisteredWebauthnKey(row, codes)


async def delete_webauthn_keys(ctx: Context, ids: Sequence[int], proof: SecondFactorProof) -> None:
    """Delete security keys of one user, all or none. The last one turns the factor off.

    Raises NotFound for a key that the viewer does not see, InvalidInput for keys of several users.
    """
    rows = await webauthn.load_visible_keys_by_id(ctx, list(ids))
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
    keys = [row for row in rows if row]
    if len({row.user_id for row in keys}) > 1:
        raise InvalidInput(
            "All keys must belong to one user.",
            constraint=ValidationConstraint.UNSUPPORTED,
            path=["ids"],
        )
    user = await _load_managed_user_or_viewer(ctx, keys[0].user_id)
    await require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        remaining_count = await webauthn.delete_keys_with_challenges_and_count_remaining(
            session, user.id, ids
        )
        names = {row.id: row.name for row in keys}.values()
        change = FactorChange(
            "webauthnDelete", SecurityEventAction.WEBAUTHN_DELETED, target=", ".join(names)
        )
        await disable_factors_with_secrets(
            ctx, session, user, [] if remaining_count else [TwoFactorMethod.WEBAUTHN], change
        )


async def disable_all_factors(
    ctx: Context, user_id: int | None, proof: SecondFactorProof
) -> UserId:
    """Turn all factors off and delete secrets, keys and recovery codes. Returns the user id.

    Raises Conflict if no factor is on.
    """
    user = await _load_managed_user_or_viewer(ctx, user_id)
    if not enabled_methods(user):
        raise Conflict("No second factor is on.")
    await require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        user = await require_user_in_transaction(session, user)
        change = FactorChange("twoFactorDisable", SecurityEventAction.TWO_FACTOR_DISABLED)
        await disable_factors_with_secrets(ctx, session, user, list(TwoFactorMethod), change)
    return int(user.id)


async def renew_recovery_codes(ctx: Context, proof: SecondFactorProof) -> list[str]:
    """Replace the viewer's recovery codes and return the new ones.

    Raises Conflict if neither TOTP nor WebAuthn is on.
    """
    user = await _load_managed_user_or_viewer(ctx, require_user_id(ctx))
    if not has_factor_with_recovery_codes(user):
        raise Conflict("Neither TOTP nor WebAuthn is on.")
    await require_proof_or_reason(ctx, user, proof)
    async with ctx.write_session(user.id) as session:
        codes = await recovery_codes.replace_recovery_codes(ctx.environment, session, user.id)
        await security_log.log_event_and_queue_notice(
            ctx, session, NewSecurityEvent(SecurityEventAction.RECOVERY_CODES_CREATED, user.id)
        )
    return codes
