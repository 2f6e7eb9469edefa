"""New passwords: validate, generate and hash."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint
from resolvers.auth.passwords import breached_passwords, foreign_hashes, password_hashes
from resolvers.auth.passwords.password_policy import (
    CHARACTER_CLASS_COUNT,
    EffectivePasswordPolicy,
    count_character_classes,
)
from resolvers.context import Context

# no two characters look alike
GENERATED_CHARACTERS = "23456789abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"
GENERATED_LENGTH, GROUP_LENGTH = 12, 4  # characters; between two hyphens
# Few chosen passwords have this form; only those cost a second hash at a sign-in.
GENERATED_PATTERN = re.compile(
    r"[A-Za-z0-9]{12}|[A-Za-z0-9]{4}(-[A-Za-z0-9]{4}){2,}(-[A-Za-z0-9]{1,3})?"
)


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A password to set, or its hash."""

    password_or_hash: str = field(repr=False)
    is_hash: bool = False
    allow_unsafe: bool = True  # False: refuse passwords on a list of breached ones


async def validate_new_password(
    ctx: Context,
    new_password: NewPassword,
    policy: EffectivePasswordPolicy,
    path_prefix: Sequence[str] = (),
) -> NewPassword:
    """Validate a new password or hash and return it.

    Raises InvalidInput if it is too weak, breached, or a hash of an unknown format. Must not be
    called inside a transaction.
    """
    path = [*path_prefix, "password"]
    if new_password.is_hash:
        if not new_password.allow_unsafe:
            text = "A hash can't be checked against breached passwords: omit this field."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=[*path_prefix, "allowUnsafe"]
            )
        return replace(
            new_password,
            password_or_hash=foreign_hashes.validate_foreign_hash(
                new_password.password_or_hash, path=path
            ),
        )
    policy.require_strong(new_password.password_or_hash, path)
    if not new_password.allow_unsafe and await breached_passwords.is_breached(
        ctx.environment, new_password.password_or_hash
    ):
        text = "The password is in a list of breached passwords: choose another one."
        raise InvalidInput(text, constraint=ValidationConstraint.BREACHED, path=path)
    return new_password


async def hash_new_password_unless_hash(ctx: Context, new_password: NewPassword) -> str:
    """Return the hash to store of a validated password. Must not be called inside a transaction."""
    return (
        new_password.password_or_hash
        if new_password.is_hash
        else await password_hashes.hash_password(ctx.environment, new_password.password_or_hash)
    )


def generate_password(environment: Environment, policy: EffectivePasswordPolicy) -> str:
    """Return a random password that meets the policy and matches `GENERATED_PATTERN`.

    It has twelve letters and digits; more, with hyphens, if the policy needs it.
    """
    is_ungrouped = (
        policy.min_length <= GENERATED_LENGTH and policy.min_classes < CHARACTER_CLASS_COUNT
    )
    grouped_lengths = (
        length
        for length in count(GENERATED_LENGTH)
        if length + (length - 1) // GROUP_LENGTH >= policy.min_length
    )
    length = GENERATED_LENGTH if is_ungrouped else next(grouped_lengths)
    while True:
        characters = _random_characters(environment, length)
        groups = (
            characters[start : start + GROUP_LENGTH] for start in range(0, length, GROUP_LENGTH)
        )
        password = characters if is_ungrouped else "-".join(groups)
        if count_character_classes(password) >= policy.min_classes:
            return password


def _random_characters(environment: Environment, count: int) -> str:
    # above it, some characters would be more likely
    unbiased_limit = 256 - 256 % len(GENERATED_CHARACTERS)
    characters = ""
    while len(characters) < count:
        characters += "".join(
            GENERATED_CHARACTERS[byte % len(GENERATED_CHARACTERS)]
            for byte in environment.random_bytes(count)
            if byte < unbiased_limit
        )
    return characters[:count]
