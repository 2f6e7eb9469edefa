"""Check of a second factor: TOTP code, recovery code or WebAuthn signature."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.security_log import SecurityEventAction, SecurityEventResult
from models.errors import AuthenticationFailed
from models.store.columns import ColumnRow
from models.throttling.policy import BanCause
from resolvers.auth import security_log, throttles
from resolvers.auth.second_factors import recovery_codes, totp, webauthn
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.throttling import client_failures


class TwoFactorMethod(StrEnum):
    """A kind of second factor."""

    TOTP = "TOTP"
    EXTERNAL = "EXTERNAL"
    WEBAUTHN = "WEBAUTHN"


@dataclass(frozen=True, slots=True)
class SecondFactorProof:
    """What a client sends to prove a second factor."""

    totp: str | None = field(default=None, repr=False)  # a TOTP code or a recovery code
    # response of the authenticator
    webauthn: Mapping[str, Any] | None = field(default=None, repr=False)
    path: Sequence[str] = ()  # of the proof in the input

    @property
    def is_given(self) -> bool:
        """True if the client sent a proof."""
        return self.totp is not None or self.webauthn is not None


@dataclass(frozen=True, slots=True)
class ValidProof:
    """A right proof, which must still be used up.

    `use_up` returns False if a concurrent request has used it.
    """

    method: TwoFactorMethod
    action: SecurityEventAction
    use_up: Callable[[AsyncSession], Awaitable[bool]]
    detail: Mapping[str, Any] = field(default_factory=dict)


def enabled_methods(user: ColumnRow) -> list[TwoFactorMethod]:
    """Return the factors in the column `second_factors` of a user row that are on."""
    return [method for method in TwoFactorMethod if method in user.second_factors]


async def verify_and_use_up_second_factor(
    ctx: Context, user: ColumnRow, proof: SecondFactorProof
) -> TwoFactorMethod:
    """Check a proof and use it up; return the factor it proves.

    A recovery code counts as the first factor that is on. Must not be called inside a transaction
    that has written. Raises AuthenticationFailed if the proof fits no factor that is on, and
    RateLimited after too many failures; a counted failure stays counted.
    """
    limits = {f"factor:{user.id}": throttles.limit_of_name_and_network(ctx.environment.options)}
    await throttles.require_not_throttled(ctx, limits)
    valid_proof = await _verify_proof_or_none(ctx, user, proof)
    if valid_proof is None:
        await client_failures.count_failure_and_log_ban(ctx, BanCause.SECOND_FACTOR, user.id)
        try:
            await throttles.count_failure_return_reached_keys(ctx.environment, limits)
        finally:
            action = (
                SecurityEventAction.TOTP_CHECKED
                if proof.totp is not None
                else SecurityEventAction.WEBAUTHN_CHECKED
            )
            async with ctx.write_session(user.id) as session:
                await security_log.log_event_and_queue_notice(
                    ctx, session, NewSecurityEvent(action, user.id, SecurityEventResult.FAILURE)
                )
        raise AuthenticationFailed("The second factor is wrong.", path=proof.path)
    async with ctx.write_session(user.id) as session:
        # Checked again now that the user is locked: of many concurrent guesses, the right one is
        # refused if the others have used up the limit.
        await throttles.require_not_throttled(ctx, limits)
        if not await valid_proof.use_up(session):
            # a concurrent request used it
            raise AuthenticationFailed("The second factor is wrong.", path=proof.path)
        for key in limits:
            await throttles.delete_failures(ctx, key)
        await security_log.log_event_and_queue_notice(
            ctx, session, NewSecurityEvent(valid_proof.action, user.id, detail=valid_proof.detail)
        )
    return valid_proof.method


async def _verify_proof_or_none(
    ctx: Context, user: ColumnRow, proof: SecondFactorProof
) -> ValidProof | None:
    """Return the valid proof of a factor that is on; None if the proof is wrong."""
    methods = enabled_methods(user)
    if proof.totp is not None:
        return await _verify_totp_or_recovery_code(ctx, user.id, proof.totp, methods)
    if proof.webauthn is not None and TwoFactorMethod.WEBAUTHN in methods:
        assertion = await webauthn.verify_assertion_or_delete_challenge(
            ctx, user.id, proof.webauthn
        )
        if assertion is not None:
            use_up = partial(_try_use_up_assertion, ctx, assertion)
            detail = {"key": assertion.name}
            return ValidProof(
                TwoFactorMethod.WEBAUTHN, SecurityEventAction.WEBAUTHN_CHECKED, use_up, detail
            )
    return None


async def _verify_totp_or_recovery_code(
    ctx: Context, user_id: int, code: str, methods: list[TwoFactorMethod]
) -> ValidProof | None:
    """Return the valid proof of a TOTP or recovery code; None if the code is wrong."""
    if TwoFactorMethod.TOTP in methods:
        step = await totp.find_step_of_unused_code(ctx, user_id, code)
        if step is not None:
            use_up = partial(totp.try_use_up_totp_step, user_id=user_id, step=step)
            return ValidProof(TwoFactorMethod.TOTP, SecurityEventAction.TOTP_CHECKED, use_up)
    normalized = recovery_codes.normalize_recovery_code_or_none(code)
    if methods and normalized and await recovery_codes.is_unused_code(ctx, user_id, normalized):
        return ValidProof(
            methods[0],
            SecurityEventAction.RECOVERY_CODE_USED,
            partial(_try_use_up_recovery_code, ctx, user_id, normalized),
        )
    return None


async def _try_use_up_assertion(
    ctx: Context, assertion: webauthn.VerifiedAssertion, session: AsyncSession
) -> bool:
    return await webauthn.try_use_up_assertion(ctx.environment, session, assertion)


async def _try_use_up_recovery_code(
    ctx: Context, user_id: int, code: str, session: AsyncSession
) -> bool:
    return await recovery_codes.try_use_up_recovery_code(ctx.environment, session, user_id, code)
