"""How strong a password must be that is set: what the domain says, or else the platform."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import checked_domain
from models.domains.tables import Domain
from models.errors import Invalid
from models.runtime.environment import World
from models.users.tables import User
from resolvers.access import visible_users
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders

KINDS = 4  # of characters: lower case, upper case, digits, all else


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """What holds, and what of it the domain says itself: None is inherited from the platform.

    Nothing here is asked of hashes of other systems, nor of a password that is there.
    """

    min_length: int  # characters
    min_classes: int  # kinds of characters
    own_min_length: int | None = None
    own_min_classes: int | None = None

    def check(self, password: str, path: Sequence[str]) -> None:
        """Raise Invalid where the password cannot be one, or is too weak."""
        written = password_hashes.checked(password, path=path, least=self.min_length)
        if classes(written) < self.min_classes:
            text = f"lower case, upper case, digits, others: at least {self.min_classes} of these"
            raise Invalid(text, constraint="classes", path=path)


def classes(password: str) -> int:
    """How many kinds of characters are in it."""
    return len({(sign.islower(), sign.isupper(), sign.isdecimal()) for sign in password})


def of(world: World, domain: Any) -> PasswordPolicy:
    """The policy of accounts of this domain, or of none."""
    options = world.options
    length, kinds = (domain.password_min, domain.password_classes) if domain else (None, None)
    return PasswordPolicy(
        options.password_min if length is None else length,
        options.password_classes if kinds is None else kinds,
        length,
        kinds,
    )


async def of_users(ctx: Context, keys: list[int]) -> list[PasswordPolicy]:
    """The policies of these accounts, in this order; of one that is not seen, the platform's."""
    asked = (
        select(col(User.id), col(Domain.password_min), col(Domain.password_classes))
        .outerjoin(Domain, col(Domain.id) == col(User.domain_id))
        .where(col(User.id).in_(keys), visible_users(ctx))
    )
    found = {row.id: row for row in await ctx.read(asked)}
    return [of(ctx.world, found.get(key)) for key in keys]


async def of_address(ctx: Context, address: str) -> PasswordPolicy:
    """The policy of an account to be made, by its address.

    The platform's, where that is in no domain which the viewer administers.
    """
    domain = None
    with suppress(Invalid):
        domain = await domain_loaders.named(ctx, checked_domain(address.rpartition("@")[2]))
    return of(ctx.world, domain)
