"""Passwords that are set: long enough, not known to others, and hashed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from models.errors import Invalid
from resolvers import breaches, passwords
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A password to be set, or its hash."""

    text: str = field(repr=False)
    hashed: bool = False
    allow_unsafe: bool = True  # else it must be on no list of known ones


async def checked(ctx: Context, new: NewPassword, at: Sequence[str] = ()) -> NewPassword:
    """The password, once it can be set: Invalid where it is too short, known, or no hash at all.

    Never inside a unit.
    """
    path = [*at, "password"]
    if new.hashed:
        if not new.allow_unsafe:
            text = "nobody can tell of a hash whether its password is known"
            raise Invalid(text, constraint="exclusive", path=[*at, "allowUnsafe"])
        return replace(new, text=await passwords.imported(ctx.world, new.text, path=path))
    passwords.checked(new.text, path=path, least=ctx.world.options.password_min)
    if not new.allow_unsafe and await breaches.known(ctx.world, new.text):
        text = "others have found this password out: take another"
        raise Invalid(text, constraint="breached", path=path)
    return new


async def stored(ctx: Context, new: NewPassword) -> str:
    """The hash to store of one that was checked. Never inside a unit."""
    return new.text if new.hashed else await passwords.make(ctx.world, new.text)
