"""Passwords that are set: strong enough, not known to others, and hashed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from models.errors import Invalid
from models.runtime.environment import World
from resolvers.auth.passwords import breached_passwords, foreign_hashes, password_hashes
from resolvers.auth.passwords.password_policy import KINDS, PasswordPolicy, classes
from resolvers.context import Context

LETTERS = "23456789abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"  # none looks like another
LENGTH, GROUP = 12, 4  # letters, and those between two hyphens
# Few passwords that people choose have this form: only those cost a second hash at a sign-in.
GENERATED = re.compile(r"[A-Za-z0-9]{12}|[A-Za-z0-9]{4}(-[A-Za-z0-9]{4}){2,}(-[A-Za-z0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A password to be set, or its hash."""

    text: str = field(repr=False)
    hashed: bool = False
    allow_unsafe: bool = True  # else it must be on no list of known ones


async def checked(
    ctx: Context, new: NewPassword, policy: PasswordPolicy, at: Sequence[str] = ()
) -> NewPassword:
    """The password, once it can be set: Invalid where it is too weak, known, or no hash at all.

    Never inside a unit.
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
    """The hash to store of one that was checked. Never inside a unit."""
    return new.text if new.hashed else await password_hashes.make(ctx.world, new.text)


def generated(world: World, policy: PasswordPolicy) -> str:
    """A password by chance that the policy takes, and `GENERATED` knows.

    It has twelve letters and digits; more, and hyphens, where that would not do.
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
    most = 256 - 256 % len(LETTERS)  # above, some letters would come more often
    found = ""
    while len(found) < many:
        found += "".join(LETTERS[one % len(LETTERS)] for one in world.random(many) if one < most)
    return found[:many]
