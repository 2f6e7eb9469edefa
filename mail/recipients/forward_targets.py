"""The targets of a forwarding address: addresses, relays and webhooks.

The stored `targets` can be shown: the password of a relay is replaced by `***`. The URLs with
passwords are encrypted in `relays`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from models.runtime.environment import World

HIDDEN = "***"  # replaces a password


@dataclass(frozen=True, slots=True)
class Via:
    """A relay or webhook that an address forwards to."""

    recipient: str  # the address
    shown: str  # without a password
    whole: str = field(repr=False)


def place_of(key: int) -> str:
    """Return the context that the relays of an address are encrypted for."""
    return f"relays:{key}"


def sealed(world: World, key: int, relays: Mapping[str, str]) -> str | None:
    """Return the encrypted secret URLs by public URL, None if there are none."""
    if not relays:
        return None
    return world.vault.seal(orjson.dumps(relays).decode(), place_of(key))


def opened(world: World, key: int, relays: str | None) -> dict[str, str]:
    """Return the secret URLs by public URL. Raises Sealed if they can't be decrypted."""
    if relays is None:
        return {}
    found: dict[str, str] = orjson.loads(world.vault.open(relays, place_of(key)))
    return found


def whole(world: World, address: Any) -> list[str]:
    """Return the targets of an address with passwords. Raises Sealed if they can't be decrypted.

    The row has `id`, `targets` and `relays`.
    """
    known = opened(world, address.id, address.relays)
    return [known.get(target, target) for target in address.targets]
