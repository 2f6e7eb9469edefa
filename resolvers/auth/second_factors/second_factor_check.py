"""Check of a second factor: TOTP code, recovery code or WebAuthn signature."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import AuthenticationFailed
from models.store.columns import Picked
from resolvers.auth import security_log, throttles
from resolvers.auth.second_factors import recovery_codes, totp, webauthn
from resolvers.auth.security_log import Event
from resolvers.context import Context


class TwoFactorMethod(StrEnum):
    """A kind of second factor."""

    TOTP = "TOTP"
    CUSTOM = "CUSTOM"
    WEBAUTHN = "WEBAUTHN"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a client sends to prove a second factor."""

    totp: str | None = field(default=None, repr=False)  # a TOTP code or a recovery code
    # response of the authenticator
    webauthn: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def given(self) -> bool:
        """True if the client sent a proof."""
        return self.totp is not None or self.webauthn is not None


@dataclass(frozen=True, slots=True)
class Found:
    """A right proof, which must still be used up.

    `use_up` returns False if a concurrent request has used it.
    """

    method: TwoFactorMethod
    action: str
    spend: Callable[[AsyncSession], Awaitable[bool]]
    detail: Mapping[str, Any] = field(default_factory=dict)


def enabled(user: Picked) -> list[TwoFactorMethod]:
    """Return the factors in the column `second_factors` of a user row that are on."""
    return [method for method in TwoFactorMethod if method in user.second_factors]


async def check(ctx: Context, user: Picked, proof: Proof) -> TwoFactorMethod:
    """Check a proof and use it up; return the factor it proves.

    A recovery code counts as the first factor that is on. Must not be called inside a transaction
    that has written. Raises AuthenticationFailed if the proof fits no factor that is on, and
    RateLimited after too many failures; a counted failure stays counted.
    """
    limits = {f"factor:{user.id}": throttles.by_name(ctx.world.options)}
    await throttles.check(ctx, limits)
    found = await _found(ctx, user, proof)
    if found is None:
        try:
            await throttles.count(ctx.world, limits)
        finally:
            action = "totp check" if proof.totp is not None else "webauthn check"
            async with ctx.write(user.id) as session:
                await security_log.note(ctx, session, Event(action, user.id, "fail"))
        raise AuthenticationFailed("the second factor is wrong")
    async with ctx.write(user.id) as session:
        # Checked again now that the user is locked: of many concurrent guesses, the right one is
        # refused if the others have used up the limit.
        await throttles.check(ctx, limits)
        if not await found.spend(session):
            raise AuthenticationFailed("the second factor is wrong")  # a concurrent request used it
        for key in limits:
            await throttles.clear(ctx, key)
        await security_log.note(ctx, session, Event(found.action, user.id, detail=found.detail))
    return found.method


async def _found(ctx: Context, user: Picked, proof: Proof) -> Found | None:
    """Return the valid proof of a factor that is on; None if the proof is wrong."""
    on = enabled(user)
    if proof.totp is not None:
        return await _code(ctx, user.id, proof.totp, on)
    if proof.webauthn is not None and TwoFactorMethod.WEBAUTHN in on:
        made = await webauthn.asserted(ctx, user.id, proof.webauthn)
        if made is not None:
            spend = partial(_signed, ctx, made)
            detail = {"key": made.name}
            return Found(TwoFactorMethod.WEBAUTHN, "webauthn check", spend, detail)
    return None


async def _code(ctx: Context, user_id: int, code: str, on: list[TwoFactorMethod]) -> Found | None:
    """Return the valid proof of a TOTP or recovery code; None if the code is wrong."""
    if TwoFactorMethod.TOTP in on:
        step = await totp.step_for(ctx, user_id, code)
        if step is not None:
            spend = partial(totp.spend, user_id=user_id, step=step)
            return Found(TwoFactorMethod.TOTP, "totp check", spend)
    normal = recovery_codes.written(code)
    if on and normal and await recovery_codes.there(ctx, user_id, normal):
        return Found(on[0], "recovery code check", partial(_recovered, ctx, user_id, normal))
    return None


async def _signed(ctx: Context, made: webauthn.Asserted, session: AsyncSession) -> bool:
    return await webauthn.spend(ctx.world, session, made)


async def _recovered(ctx: Context, user_id: int, code: str, session: AsyncSession) -> bool:
    return await recovery_codes.spend(ctx.world, session, user_id, code)
