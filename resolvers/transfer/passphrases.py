"""Passphrases that encrypt exported passwords. Tasks store them in the secret box."""

from collections.abc import Mapping
from typing import Any

from models.errors import Invalid
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.users.roles import Scope
from resolvers.context import Context

LEAST, MOST = 12, 1024  # characters
NAME = "passphrase"  # in the order of a task, and in input paths


def checked(text: str | None) -> str | None:
    """Return a valid passphrase unchanged; None if none is given. Raises Invalid."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Invalid("it is no text", constraint="text", path=[NAME]) from None
    if not LEAST <= len(text) <= MOST:
        words = f"{LEAST} to {MOST} characters"
        raise Invalid(words, constraint="length", path=[NAME])
    return text


def sealed(ctx: Context, user_id: int, text: str | None, *, settings: bool) -> dict[str, str]:
    """Return the sealed passphrase as a field of a task order; empty if none is given.

    Raises Forbidden for credentials that can't change settings, since a stored password opens
    another account. Raises Invalid if settings are left out.
    """
    passphrase = checked(text)
    if passphrase is None:
        return {}
    ctx.viewer.require_scope(Scope.SETTINGS)
    if not settings:
        words = "passwords are part of the settings, and these are left out"
        raise Invalid(words, constraint="exclusive", path=[NAME])
    return {NAME: ctx.world.vault.seal(passphrase, _place(user_id))}


def opened(world: World, user_id: int, order: Mapping[str, Any]) -> str | None:
    """Return the passphrase of a task order; None if it has none.

    Raises Invalid if the key it was sealed with no longer exists.
    """
    if NAME not in order:
        return None
    try:
        return world.vault.open(order[NAME], _place(user_id))
    except Sealed:
        words = "it cannot be opened any more: begin anew"
        raise Invalid(words, constraint="closed", path=[NAME]) from None


def without(order: Mapping[str, Any]) -> dict[str, Any]:
    """Return the order of a finished task without the passphrase."""
    return {name: value for name, value in order.items() if name != NAME}


def _place(user_id: int) -> str:
    """Return the context that binds a sealed passphrase to its user."""
    return f"passphrase:{user_id}"
