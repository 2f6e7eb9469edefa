"""Passwords of single programs."""

from models.columns import Picked
from models.world import World


async def matching(world: World, user_id: int, password: str) -> Picked | None:
    """The account's active password that this is, found by one hash check at most; else None.

    Whatever it is good for: the caller looks at its `scopes`. Never inside a unit.
    """
    return None
