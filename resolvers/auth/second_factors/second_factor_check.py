"""Second factors: what is proved beside the password."""

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
    """How a second factor is proved."""

    TOTP = "TOTP"
    CUSTOM = "CUSTOM"
    WEBAUTHN = "WEBAUTHN"


@dataclass(frozen=True, slots=True)
class Proof:
    """What somebody shows as a second factor."""

    totp: str | None = field(default=None, repr=False)  # a code by time, or a recovery code
    webauthn: Mapping[str, Any] | None = field(default=None, repr=False)  # what a key has signed

    @property
    def given(self) -> bool:
        """Whether anything is shown."""
        return self.totp is not None or self.webauthn is not None


@dataclass(frozen=True, slots=True)
class Found:
    """A proof that is right, and yet to be used up: `spend` says whether it still could be."""

    method: TwoFactorMethod
    action: str
    spend: Callable[[AsyncSession], Awaitable[bool]]
    detail: Mapping[str, Any] = field(default_factory=dict)


def enabled(user: Picked) -> list[TwoFactorMethod]:
    """The factors that are on for this account, whose row has `second_factors`."""
    return [method for method in TwoFactorMethod if method in user.second_factors]


async def check(ctx: Context, user: Picked, proof: Proof) -> TwoFactorMethod:
    """The factor that this proves; a recovery code stands for the first that is on.

    Never inside a unit that has begun to write. AuthenticationFailed where it proves none that
    is on, RateLimited after too many failures: nothing takes a counted one back.
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
        # Once more, now that we hold the account: of many guesses made at once, one that is
        # right counts for nothing when the others have used up the limit meanwhile.
        await throttles.check(ctx, limits)
        if not await found.spend(session):
            raise AuthenticationFailed("the second factor is wrong")  # somebody was quicker
        for key in limits:
            await throttles.clear(ctx, key)
        await security_log.note(ctx, session, Event(found.action, user.id, detail=found.detail))
    return found.method


async def _found(ctx: Context, user: Picked, proof: Proof) -> Found | None:
    """What the proof is of; None where it proves nothing that is on."""
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
