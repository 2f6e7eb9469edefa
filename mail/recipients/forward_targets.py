"""Where a forwarding address sends its mail: addresses, relays and pages.

What is stored in `targets` is fit to be shown. The password of a relay stands there as `***`;
the whole address of each such relay lies sealed in `relays`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from models.runtime.environment import World

HIDDEN = "***"  # what stands for a password


@dataclass(frozen=True, slots=True)
class Via:
    """A relay or page that mail for an address of ours goes to."""

    recipient: str  # the address
    shown: str  # without a password
    whole: str = field(repr=False)


def place_of(key: int) -> str:
    """What the relays of an address are sealed for."""
    return f"relays:{key}"


def sealed(world: World, key: int, relays: Mapping[str, str]) -> str | None:
    """Whole relays by how they are shown, as they are stored; None where there are none."""
    if not relays:
        return None
    return world.vault.seal(orjson.dumps(relays).decode(), place_of(key))


def opened(world: World, key: int, relays: str | None) -> dict[str, str]:
    """What `sealed` has sealed. Raises Sealed where it cannot be opened."""
    if relays is None:
        return {}
    found: dict[str, str] = orjson.loads(world.vault.open(relays, place_of(key)))
    return found


def whole(world: World, address: Any) -> list[str]:
    """The targets of an address as they are used, with their passwords; raises Sealed.

    The row has `id`, `targets` and `relays`.
    """
    known = opened(world, address.id, address.relays)
    return [known.get(target, target) for target in address.targets]
