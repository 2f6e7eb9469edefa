"""Forward targets of users: validate, store and log."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mail.addresses.address_syntax import normal
from mail.recipients import forward_targets
from mail.recipients.batch_resolution import resolve_all
from models.errors import Invalid
from models.runtime.secret_box import Sealed
from models.store.columns import Picked
from resolvers.addresses.targets import Targets, checked_targets
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context
from resolvers.users.user_locks import Held

TOLD = 10  # in an event of the security log
LONGEST = 200  # characters


def checked(ctx: Context, row: Picked, texts: Sequence[str], path: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a user with these targets. Raises Invalid for an unusable target."""
    try:
        known = forward_targets.opened(ctx.world, row.id, row.relays)
    except Sealed:  # the key is lost: the caller must send the relay passwords again
        known = {}
    found = checked_targets(ctx, texts, known, path)
    columns: dict[str, Any] = {"targets": list(found.shown)}
    if dict(found.relays) != known:
        columns["relays"] = forward_targets.sealed(ctx.world, row.id, found.relays)
    return columns


def new(
    ctx: Context, key: int, found: Targets, address: str | None, path: Sequence[str]
) -> dict[str, Any]:
    """Return the target columns of a new user with this main address.

    Raises Invalid if the user would forward to the own address.
    """
    if address is not None:
        own = normal(address)
        _refuse(found.shown, {one for one in found.shown if normal(one) == own}, path)
    sealed = forward_targets.sealed(ctx.world, key, found.relays)
    return {"targets": list(found.shown), "relays": sealed}


async def set_(ctx: Context, held: Held, texts: Sequence[str], path: Sequence[str]) -> None:
    """Set the targets of locked users and log the change to their security logs.

    Raises Invalid if a target is one of the user's own addresses or aliases.
    """
    made = {row.id: checked(ctx, row, texts, path) for row in held.rows}
    named = {one for each in made.values() for one in each["targets"] if "://" not in one}
    owners = await _owners(ctx, named)
    events = []
    for row in held.rows:
        shown = made[row.id]["targets"]
        _refuse(shown, {one for one in shown if owners.get(one) == row.id}, path)
        if held.set(row, **made[row.id]):
            events.append(_event(row.id, [one for one in shown if one not in row.targets]))
    await security_log.note_all(ctx, held.session, events)


async def _owners(ctx: Context, named: Collection[str]) -> Mapping[str, int | None]:
    """Load the user ids that these addresses deliver to."""
    found = await resolve_all(ctx.world, named, ctx.read)
    return {text: row.user_id for text, row in found.items()}


def _refuse(shown: Sequence[str], own: Collection[str], path: Sequence[str]) -> None:
    """Raise Invalid if a target is an own address."""
    for index, one in enumerate(shown):
        if one in own:
            words = "an account does not forward to itself"
            raise Invalid(words, constraint="self", path=path, index=index)


def _event(user_id: int, added: Sequence[str]) -> Event:
    told = [one[:LONGEST] for one in added[:TOLD]]
    return Event("forwarding change", user_id, detail={"added": told} if told else {})
