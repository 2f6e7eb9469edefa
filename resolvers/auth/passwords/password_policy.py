"""Password policy: the strength of new passwords, set for the platform or a domain."""

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

KINDS = 4  # lower case, upper case, digits, others


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """The policy in force, with the domain's own values; None is inherited from the platform.

    It does not apply to imported hashes or to existing passwords.
    """

    min_length: int  # characters
    min_classes: int  # classes of characters
    own_min_length: int | None = None
    own_min_classes: int | None = None

    def check(self, password: str, path: Sequence[str]) -> None:
        """Raise Invalid if the text can't be a password, or is too short or has too few classes."""
        written = password_hashes.checked(password, path=path, least=self.min_length)
        if classes(written) < self.min_classes:
            text = f"lower case, upper case, digits, others: at least {self.min_classes} of these"
            raise Invalid(text, constraint="classes", path=path)


def classes(password: str) -> int:
    """Count the classes of characters in a password."""
    return len({(sign.islower(), sign.isupper(), sign.isdecimal()) for sign in password})


def of(world: World, domain: Any) -> PasswordPolicy:
    """Return the policy of users of this domain; None: of users without a domain."""
    options = world.options
    length, kinds = (domain.password_min, domain.password_classes) if domain else (None, None)
    return PasswordPolicy(
        options.password_min if length is None else length,
        options.password_classes if kinds is None else kinds,
        length,
        kinds,
    )


async def of_users(ctx: Context, keys: list[int]) -> list[PasswordPolicy]:
    """Load the policies of users, in this order; the platform's for a user that is not visible."""
    asked = (
        select(col(User.id), col(Domain.password_min), col(Domain.password_classes))
        .outerjoin(Domain, col(Domain.id) == col(User.domain_id))
        .where(col(User.id).in_(keys), visible_users(ctx))
    )
    found = {row.id: row for row in await ctx.read(asked)}
    return [of(ctx.world, found.get(key)) for key in keys]


async def of_address(ctx: Context, address: str) -> PasswordPolicy:
    """Load the policy for a new user with this address.

    Returns the platform's if the viewer administers no domain of the address.
    """
    domain = None
    with suppress(Invalid):
        domain = await domain_loaders.named(ctx, checked_domain(address.rpartition("@")[2]))
    return of(ctx.world, domain)
