"""Load the second factors that are on for users."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlmodel import col

from models.auth.second_factors import TotpSecret, WebauthnKey
from models.store.columns import select_columns
from models.users.tables import User
from resolvers.access import is_overseen_user
from resolvers.auth.second_factors import totp
from resolvers.auth.second_factors.second_factor_check import (
    TwoFactorMethod,
    enabled_methods,
)
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class EnabledFactor:
    """A second factor that is on, with the times it was turned on and last proved, if known."""

    method: TwoFactorMethod
    created_at: datetime | None = None
    last_used_at: datetime | None = None


async def load_visible_enabled_factors(
    ctx: Context, user_ids: list[int]
) -> list[list[EnabledFactor]]:
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
        # a fast clock uses steps of the future
        last_used_at = last_used_at and min(last_used_at, ctx.environment.now())
        factors = {
            TwoFactorMethod.TOTP: EnabledFactor(TwoFactorMethod.TOTP, row.enabled_at, last_used_at),
            TwoFactorMethod.EXTERNAL: EnabledFactor(TwoFactorMethod.EXTERNAL),
            TwoFactorMethod.WEBAUTHN: EnabledFactor(
                TwoFactorMethod.WEBAUTHN, *(key_times[1:] if key_times else ())
            ),
        }
        factors_by_user[row.id] = [factors[method] for method in enabled_methods(row)]
    return [factors_by_user.get(key, []) for key in user_ids]
