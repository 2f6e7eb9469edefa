"""Password policy: the strength of new passwords, set for the platform or a domain."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalize_and_validate_domain
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_visible_user
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders

CHARACTER_CLASS_COUNT = 4  # lower case, upper case, digits, others


@dataclass(frozen=True, slots=True)
class EffectivePasswordPolicy:
    """The policy in force, with the domain's own values; None is inherited from the platform.

    It does not apply to imported hashes or to existing passwords.
    """

    min_length: int  # characters
    min_classes: int  # classes of characters
    own_min_length: int | None = None
    own_min_classes: int | None = None

    def require_strong(self, password: str, path: Sequence[str]) -> None:
        """Raise InvalidInput if the text is no password, is too short, or has too few classes."""
        normalized = password_hashes.validate_password(
            password, path=path, min_length=self.min_length
        )
        if count_character_classes(normalized) < self.min_classes:
            text = (
                f"The password must have at least {self.min_classes} of these classes: "
                "lower case, upper case, digits, others."
            )
            raise InvalidInput(text, constraint=ValidationConstraint.CHARACTER_CLASSES, path=path)


def count_character_classes(password: str) -> int:
    """Count the classes of characters in a password."""
    return len({(sign.islower(), sign.isupper(), sign.isdecimal()) for sign in password})


def policy_of_domain(environment: Environment, domain: Any) -> EffectivePasswordPolicy:
    """Return the policy of users of this domain; None: of users without a domain."""
    options = environment.options
    own_min_length, own_min_classes = (
        (domain.password_min, domain.password_classes) if domain else (None, None)
    )
    return EffectivePasswordPolicy(
        options.passwords_min_length if own_min_length is None else own_min_length,
        options.passwords_min_character_classes if own_min_classes is None else own_min_classes,
        own_min_length,
        own_min_classes,
    )


async def load_policies_of_users(
    ctx: Context, user_ids: list[int]
) -> list[EffectivePasswordPolicy]:
    """Load the policies of users, in this order; the platform's for a user that is not visible."""
    statement = (
        select(col(User.id), col(Domain.password_min), col(Domain.password_classes))
        .outerjoin(Domain, col(Domain.id) == col(User.domain_id))
        .where(col(User.id).in_(user_ids), is_visible_user(ctx))
    )
    rows = {row.id: row for row in await ctx.read(statement)}
    return [policy_of_domain(ctx.environment, rows.get(user_id)) for user_id in user_ids]


async def load_policy_of_address(ctx: Context, address: str) -> EffectivePasswordPolicy:
    """Load the policy for a new user with this address.

    Returns the platform's if the viewer administers no domain of the address.
    """
    domain = None
    with suppress(InvalidInput):
        domain = await domain_loaders.find_administered_domain(
            ctx, normalize_and_validate_domain(address.rpartition("@")[2])
        )
    return policy_of_domain(ctx.environment, domain)
