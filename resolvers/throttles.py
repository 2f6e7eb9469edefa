"""Failures that are counted, and who has to wait because of them.

They lie in the store: all processes count together, and a new start forgives nothing. Each
window that is used up makes the next wait twice as long, until a day goes by in peace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlmodel import col

from mail.networks import network, within
from models.auth import CALM, Throttle
from models.columns import Picked, insert_or, picked
from models.errors import RateLimited
from models.options import Options
from models.prepared import Prepared
from models.world import Turn, World
from resolvers.context import Context

DOUBLED = 20  # times at most: no wait is that long


@dataclass(frozen=True, slots=True)
class Limit:
    """So many failures in a window; the first one opens it. Then one waits, at most `longest`."""

    failures: int
    window: timedelta
    longest: timedelta = timedelta(hours=1)

    def counted(self, was: Picked, now: datetime) -> tuple[int, int, datetime]:
        """Failures, times and end, with one failure more."""
        failures, times, until = was.failures, was.times, was.until
        if until <= now:
            lately = failures >= self.failures and now < until + CALM
            failures, times, until = 0, times if lately else 0, now + self.window
        failures += 1
        if failures == self.failures:
            if times:
                longer = self.window * 2 ** min(times, DOUBLED)
                until = max(until, now + min(longer, self.longest))
            times += 1
        return failures, times, until


Limits = Mapping[str, Limit]  # by what is counted

# Made once: building a statement costs more than running it, and a flood runs many.
_BOTH = Prepared(
    select(*picked(Throttle, ("key", "failures", "until"))).where(
        col(Throttle.key).in_([bindparam("one"), bindparam("two")])
    )
)
_COUNT = update(Throttle).where(col(Throttle.key) == bindparam("counted"))


def by_name(options: Options) -> Limit:
    """What an account allows, or a name that nobody has."""
    return Limit(options.login_failures, options.login_window, options.login_wait)


def by_network(options: Options, ip: str | None) -> dict[str, Limit]:
    """What the network of this address allows; nothing where it is never closed, or is none."""
    near = network(ip)
    if near is None or within(ip, options.login_allow):
        return {}
    limit = Limit(options.network_failures, options.network_window, options.login_wait)
    return {f"network:{near}": limit}


async def check(ctx: Context, limits: Limits) -> frozenset[str]:
    """Raise RateLimited where one of these is used up; returns those that have failures."""
    now = ctx.world.now()
    one, two = limits if len(limits) > 1 else (*limits, None)
    rows = await ctx.find(_BOTH, one=one, two=two)
    running = [row for row in rows if row.until > now]
    _refuse([row for row in running if row.failures >= limits[row.key].failures], now)
    return frozenset(row.key for row in rows)


async def count(world: World, limits: Limits) -> None:
    """Count a failure, in a unit of its own: no rollback around takes it back.

    RateLimited where others, made at the same time, have used a limit up: the caller
    says that, and so not even the failure of this one is learnt.
    """
    now = world.now()

    def unit(turn: Turn) -> list[datetime]:
        return _counted(turn.connection, limits, now)

    if late := await world.apply(unit):
        raise _too_many(late, now)


def _counted(connection: Connection, limits: Limits, now: datetime) -> list[datetime]:
    """Count one failure more; the ends of the waits that there were before it."""
    none = {"failures": 0, "times": 0, "until": now}
    new = [{"key": key, **none} for key in sorted(limits)]  # no deadlock
    held = connection.execute(_held(connection.dialect.name), new).all()
    made = {row.key: limits[row.key].counted(row, now) for row in held}
    connection.execute(
        _COUNT,
        [
            {"counted": key, "failures": failures, "times": times, "until": until}
            for key, (failures, times, until) in sorted(made.items())
        ],
    )
    return [until for key, (many, _, until) in made.items() if many > limits[key].failures]


@cache
def _held(dialect: str) -> Any:
    """Have rows that nobody else counts on until the unit ends."""
    new = insert_or(dialect, Throttle)
    same = {"key": new.excluded.key}
    return new.on_conflict_do_update(index_elements=["key"], set_=same).returning(*picked(Throttle))


def _refuse(full: Sequence[Picked], now: datetime) -> None:
    if full:
        raise _too_many([row.until for row in full], now)


def _too_many(until: Sequence[datetime], now: datetime) -> RateLimited:
    wait = max(until) - now
    return RateLimited("too many failures, wait before the next try", retry_after=wait)


async def clear(ctx: Context, key: str) -> None:
    """Begin to count afresh."""
    async with ctx.write() as session:
        await (await session.connection()).execute(delete(Throttle).where(col(Throttle.key) == key))
