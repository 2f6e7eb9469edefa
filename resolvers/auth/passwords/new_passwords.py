"""New passwords: validate, generate and hash."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from models.errors import Invalid
from models.runtime.environment import World
from resolvers.auth.passwords import breached_passwords, foreign_hashes, password_hashes
from resolvers.auth.passwords.password_policy import KINDS, PasswordPolicy, classes
from resolvers.context import Context

# no two characters look alike
LETTERS = "23456789abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"
LENGTH, GROUP = 12, 4  # characters; between two hyphens
# Few chosen passwords have this form; only those cost a second hash at a sign-in.
GENERATED = re.compile(r"[A-Za-z0-9]{12}|[A-Za-z0-9]{4}(-[A-Za-z0-9]{4}){2,}(-[A-Za-z0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A password to set, or its hash."""

    text: str = field(repr=False)
    hashed: bool = False
    allow_unsafe: bool = True  # False: refuse passwords on a list of breached ones


async def checked(
    ctx: Context, new: NewPassword, policy: PasswordPolicy, at: Sequence[str] = ()
) -> NewPassword:
    """Validate a new password or hash and return it.

    Raises Invalid if it is too weak, breached, or a hash of an unknown format. Must not be called
    inside a transaction.
    """
    path = [*at, "password"]
    if new.hashed:
        if not new.allow_unsafe:
            text = "nobody can tell of a hash whether its password is known"
            raise Invalid(text, constraint="exclusive", path=[*at, "allowUnsafe"])
        return replace(new, text=foreign_hashes.checked(new.text, path=path))
    policy.check(new.text, path)
    if not new.allow_unsafe and await breached_passwords.known(ctx.world, new.text):
        text = "others have found this password out: take another"
        raise Invalid(text, constraint="breached", path=path)
    return new


async def stored(ctx: Context, new: NewPassword) -> str:
    """Return the hash to store of a validated password. Must not be called inside a transaction."""
    return new.text if new.hashed else await password_hashes.make(ctx.world, new.text)


def generated(world: World, policy: PasswordPolicy) -> str:
    """Return a random password that meets the policy and matches `GENERATED_PATTERN`.

    It has twelve letters and digits; more, with hyphens, if the policy needs it.
    """
    plain = policy.min_length <= LENGTH and policy.min_classes < KINDS
    grouped = (many for many in count(LENGTH) if many + (many - 1) // GROUP >= policy.min_length)
    many = LENGTH if plain else next(grouped)
    while True:
        signs = _signs(world, many)
        groups = (signs[start : start + GROUP] for start in range(0, many, GROUP))
        found = signs if plain else "-".join(groups)
        if classes(found) >= policy.min_classes:
            return found


def _signs(world: World, many: int) -> str:
    most = 256 - 256 % len(LETTERS)  # above it, some characters would be more likely
    found = ""
    while len(found) < many:
        found += "".join(LETTERS[one % len(LETTERS)] for one in world.random(many) if one < most)
    return found[:many]
