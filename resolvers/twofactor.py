"""Second factors: what is proved beside the password."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from models.columns import Picked
from models.errors import AuthenticationFailed
from resolvers.context import Context


class TwoFactorMethod(StrEnum):
    """How a second factor is proved."""

    TOTP = "TOTP"
    CUSTOM = "CUSTOM"
    WEBAUTHN = "WEBAUTHN"


@dataclass(frozen=True, slots=True)
class Proof:
    """What somebody shows as a second factor."""

    totp: str | None = None  # a code by time, or a recovery code
    webauthn: Mapping[str, Any] | None = None  # what a security key has signed

    @property
    def given(self) -> bool:
        """Whether anything is shown."""
        return self.totp is not None or self.webauthn is not None


def enabled(user: Picked) -> list[TwoFactorMethod]:
    """The factors that are on for this account, whose row has `second_factors`."""
    return [method for method in TwoFactorMethod if method in user.second_factors]


async def check(ctx: Context, user: Picked, proof: Proof) -> TwoFactorMethod:
    """The factor that this proves. Never inside a unit that has begun to write.

    AuthenticationFailed where it proves none that is on, RateLimited after too many failures.
    """
    raise AuthenticationFailed
