"""Passwords that are set: long enough, not known to others, and hashed."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import Invalid
from resolvers import breaches, passwords
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A password to be set, or its hash."""

    text: str
    hashed: bool = False
    allow_unsafe: bool = True  # else it must be on no list of known ones


async def hashed(ctx: Context, new: NewPassword, at: Sequence[str] = ()) -> str:
    """The hash to store; Invalid where the password is too short, known, or no hash at all."""
    path = [*at, "password"]
    if new.hashed:
        if not new.allow_unsafe:
            text = "nobody can tell of a hash whether its password is known"
            raise Invalid(text, constraint="exclusive", path=[*at, "allowUnsafe"])
        return await passwords.imported(ctx.world, new.text, path=path)
    passwords.checked(new.text, path=path, least=ctx.world.options.password_min)
    if not new.allow_unsafe and await breaches.known(ctx.world, new.text):
        text = "others have found this password out: take another"
        raise Invalid(text, constraint="breached", path=path)
    return await passwords.make(ctx.world, new.text)
