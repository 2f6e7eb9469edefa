"""Failures that are counted, and who has to wait because of them."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, delete, select
from sqlmodel import col

from models.auth import Throttle
from models.columns import Picked, insert_or, picked
from models.errors import RateLimited
from models.world import Turn, World
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class Limit:
    """So many failures in a window; the first one opens it."""

    failures: int
    window: timedelta


BY_NAME = Limit(12, timedelta(seconds=120))
BY_NETWORK = Limit(100, timedelta(seconds=300))

Limits = Mapping[str, Limit]  # by what is counted


def network(ip: str | None) -> str | None:
    """What counts as one neighbour: /24 of IPv4, /64 of IPv6; None where it is no address."""
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # no zone
    bits = 24 if address.version == 4 else 64  # noqa: PLR2004 - the two there are
    return str(ipaddress.ip_network((address, bits), strict=False))


async def check(ctx: Context, limits: Limits) -> None:
    """Raise RateLimited where one of these is used up."""
    now = ctx.world.now()
    running = select(col(Throttle.key), col(Throttle.failures), col(Throttle.until)).where(
        col(Throttle.key).in_(limits), col(Throttle.until) > now
    )
    full = [row for row in await ctx.read(running) if row.failures >= limits[row.key].failures]
    _refuse(full, now)


async def count(world: World, limits: Limits) -> None:
    """Count a failure, in a unit of its own: no rollback around takes it back.

    RateLimited where others, made at the same time, have used a limit up: the caller
    says that, and so not even the failure of this one is learnt.
    """
    now = world.now()
    rows = [
        {"key": key, "failures": 1, "until": now + limits[key].window}
        for key in sorted(limits)  # nobody deadlocks
    ]

    def unit(turn: Turn) -> list[Picked]:
        new = insert_or(turn.connection.dialect.name, Throttle).values(rows)
        over = col(Throttle.until) <= now
        changed = {
            "failures": case((over, 1), else_=col(Throttle.failures) + 1),
            "until": case((over, new.excluded.until), else_=col(Throttle.until)),
        }
        counted = new.on_conflict_do_update(index_elements=["key"], set_=changed)
        return list(turn.connection.execute(counted.returning(*picked(Throttle))))

    now_there = await world.apply(unit)
    _refuse([row for row in now_there if row.failures > limits[row.key].failures], now)


def _refuse(full: Sequence[Picked], now: datetime) -> None:
    if full:
        wait = max(row.until - now for row in full)
        raise RateLimited("too many failures, wait before the next try", retry_after=wait)


async def clear(ctx: Context, key: str) -> None:
    """Begin to count afresh."""
    async with ctx.write() as session:
        await (await session.connection()).execute(delete(Throttle).where(col(Throttle.key) == key))
