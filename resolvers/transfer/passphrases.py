"""Passphrases that accounts in files are locked with: while a task needs one, it is sealed."""

from collections.abc import Mapping
from typing import Any

from models.errors import Invalid
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.users.roles import Scope
from resolvers.context import Context

LEAST, MOST = 12, 1024  # characters
NAME = "passphrase"  # in the order of a task


def checked(text: str | None) -> str | None:
    """A passphrase, as it is; None where none is given. Invalid."""
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
    """What the order of a task says of it; nothing where none is given.

    Forbidden for credentials that set no settings: a password that is stored opens another account.
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
    """What was sealed; None where nothing was. Invalid where the key of the vault is gone."""
    if NAME not in order:
        return None
    try:
        return world.vault.open(order[NAME], _place(user_id))
    except Sealed:
        words = "it cannot be opened any more: begin anew"
        raise Invalid(words, constraint="closed", path=[NAME]) from None


def without(order: Mapping[str, Any]) -> dict[str, Any]:
    """An order whose task has ended."""
    return {name: value for name, value in order.items() if name != NAME}


def _place(user_id: int) -> str:
    return f"passphrase:{user_id}"
