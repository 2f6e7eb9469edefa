"""Failures that are counted, and who has to wait because of them.

They are stored: all processes count together, and a restart forgets nothing. Each window that
is used up makes the next wait twice as long, until a day without one.

Passwords are counted by account and network, by account, and by network. So a stranger who
guesses closes an account for the own network only. The count of the account bounds guesses from
many networks: it closes the account for networks from which its user has not signed in before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from ipaddress import ip_network
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlmodel import col

from mail.network.ip_networks import network, within
from models.auth.credentials import CALM, AccessToken, Throttle
from models.auth.security_log import AuthEvent
from models.errors import RateLimited
from models.runtime.environment import Turn, World
from models.runtime.options import Options
from models.store.columns import Picked, insert_or, picked
from models.store.prepared_statements import Prepared
from resolvers.context import Context

DOUBLED = 20  # times at most: no wait is that long


@dataclass(frozen=True, slots=True)
class Limit:
    """So many failures in a window; the first one opens it. Then one waits, at most `longest`."""

    failures: int
    window: timedelta
    longest: timedelta = timedelta(hours=1)
    spares_known: bool = False  # does not close networks that the user has signed in from

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
_ALL = Prepared(
    select(*picked(Throttle, ("key", "failures", "until"))).where(
        col(Throttle.key).in_([bindparam("one"), bindparam("two"), bindparam("three")])
    )
)
_COUNT = update(Throttle).where(col(Throttle.key) == bindparam("counted"))


def by_name(options: Options) -> Limit:
    """The failures that one account, or a name that nobody has, allows from one network."""
    return Limit(options.login_failures, options.login_window, options.login_wait)


def by_name_and_network(options: Options, counted: str, ip: str | None) -> dict[str, Limit]:
    """The limits of a password, by what is counted: at most three.

    `counted` stands for what the password opens.
    """
    everywhere = Limit(options.account_failures, options.login_window, options.login_wait, True)
    pair = {f"{counted}@{network(ip) or ''}": by_name(options)}
    return {**pair, counted: everywhere, **by_network(options, ip)}


def by_network(options: Options, ip: str | None) -> dict[str, Limit]:
    """What the network of this address allows; nothing where it is never closed, or is none."""
    near = network(ip)
    if near is None or within(ip, options.login_allow):
        return {}
    limit = Limit(options.network_failures, options.network_window, options.login_wait)
    return {f"network:{near}": limit}


@dataclass(frozen=True, slots=True)
class FailureState:
    """What is counted of a password that may be tried."""

    failed: frozenset[str]  # what has failures
    limits: Limits  # what a failure is counted by


async def check(ctx: Context, limits: Limits, user_id: int = 0) -> FailureState:
    """Raise RateLimited if one of these limits is used up.

    For networks from which this user has signed in before, a limit that spares them is left out.
    """
    now = ctx.world.now()
    keys = [*limits, None, None][:3]
    rows = await ctx.find(_ALL, one=keys[0], two=keys[1], three=keys[2])
    running = [row for row in rows if row.until > now]
    full = [row for row in running if row.failures >= limits[row.key].failures]
    spared = {row.key for row in full if limits[row.key].spares_known}
    if spared and not await is_known_network(ctx, user_id):
        spared = set()
    _refuse([row for row in full if row.key not in spared], now)
    left = {key: limit for key, limit in limits.items() if key not in spared}
    return FailureState(frozenset(row.key for row in rows), left)


async def is_known_network(ctx: Context, user_id: int) -> bool:
    """True if the user has signed in from the caller's network before.

    The security log and the tokens that have not expired say so.
    """
    near = network(ctx.client_ip)
    if near is None:
        return False
    lowest, highest = ip_keys(near)
    seen = select(col(AuthEvent.id)).where(
        col(AuthEvent.user_id) == user_id,
        col(AuthEvent.action) == "authenticate",
        col(AuthEvent.result) == "success",
        col(AuthEvent.ip_key).between(lowest, highest),
    )
    if await ctx.read(seen.limit(1)):
        return True
    tokens = select(col(AccessToken.ip)).where(
        col(AccessToken.user_id) == user_id,
        ~col(AccessToken.pending),
        col(AccessToken.expires_at) > ctx.world.now(),
    )
    return any(network(row.ip) == near for row in await ctx.read(tokens))


def ip_keys(near: str) -> tuple[str, str]:
    """The lowest and the highest `AuthEvent.ip_key` of a network."""
    block = ip_network(near)
    mapped = 0xFFFF_0000_0000 if block.version == 4 else 0  # noqa: PLR2004 - as ::ffff:a.b.c.d
    ends = int(block.network_address), int(block.broadcast_address)
    return f"{mapped | ends[0]:032x}", f"{mapped | ends[1]:032x}"


async def count(world: World, limits: Limits) -> frozenset[str]:
    """Count a failure, in a unit of its own that no rollback takes back.

    Returns the limits that this failure has used up. Raises RateLimited if others, made at the
    same time, have used one up before: then the caller does not learn of this failure.
    """
    now = world.now()

    def unit(turn: Turn) -> tuple[list[datetime], frozenset[str]]:
        return _counted(turn.connection, limits, now)

    late, closed = await world.apply(unit)
    if late:
        raise _too_many(late, now)
    return closed


def _counted(
    connection: Connection, limits: Limits, now: datetime
) -> tuple[list[datetime], frozenset[str]]:
    """Count one failure more.

    Returns the ends of the waits that began before it, and the limits that it has used up.
    """
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
    late = [until for key, (many, _, until) in made.items() if many > limits[key].failures]
    return late, frozenset(key for key in made if made[key][0] == limits[key].failures)


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
