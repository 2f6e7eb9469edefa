"""Throttles: counted failures, and the waits they cause.

Failures are stored, so all processes count together and a restart keeps them. Each window in which
the limit is reached doubles the next wait, until a day has passed without one.

Wrong passwords are counted by user and network, by user, and by network. So a stranger who guesses
closes an account for the stranger's network only. The count of the user bounds guesses from many
networks: it closes the account for networks from which its user has not signed in.
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

DOUBLED = 20  # longer waits would exceed any maximum


@dataclass(frozen=True, slots=True)
class Limit:
    """A number of failures in a window, which the first failure opens. The next wait is limited."""

    failures: int
    window: timedelta
    longest: timedelta = timedelta(hours=1)
    spares_known: bool = False  # does not close networks that the user has signed in from

    def counted(self, was: Picked, now: datetime) -> tuple[int, int, datetime]:
        """Return failures, exhausted windows and end of the wait after one more failure."""
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


Limits = Mapping[str, Limit]  # by throttle key

# Built once: building a statement costs more than running it, and a flood runs many.
_ALL = Prepared(
    select(*picked(Throttle, ("key", "failures", "until"))).where(
        col(Throttle.key).in_([bindparam("one"), bindparam("two"), bindparam("three")])
    )
)
_COUNT = update(Throttle).where(col(Throttle.key) == bindparam("counted"))


def by_name(options: Options) -> Limit:
    """Return the limit of one user, or of an unknown name, from one network."""
    return Limit(options.login_failures, options.login_window, options.login_wait)


def by_name_and_network(options: Options, counted: str, ip: str | None) -> dict[str, Limit]:
    """Return the limits of a password by throttle key: name with network, name, and network.

    `name_key` identifies what the password opens. There are at most three limits.
    """
    everywhere = Limit(options.account_failures, options.login_window, options.login_wait, True)
    pair = {f"{counted}@{network(ip) or ''}": by_name(options)}
    return {**pair, counted: everywhere, **by_network(options, ip)}


def by_network(options: Options, ip: str | None) -> dict[str, Limit]:
    """Return the limit of the network of this IP address; empty if it is exempt or invalid."""
    near = network(ip)
    if near is None or within(ip, options.login_allow):
        return {}
    limit = Limit(options.network_failures, options.network_window, options.login_wait)
    return {f"network:{near}": limit}


@dataclass(frozen=True, slots=True)
class FailureState:
    """Throttles of a sign-in that is allowed."""

    failed: frozenset[str]  # keys with failures
    limits: Limits  # to count a failure by


async def check(ctx: Context, limits: Limits, user_id: int = 0) -> FailureState:
    """Raise RateLimited if one of these limits is reached; return the state of the throttles.

    For networks from which the user has signed in before, a limit that exempts them is left out.
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

    Looks in the security log and the valid access tokens.
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
    """Return the lowest and the highest `AuthEvent.ip_key` of a network in CIDR notation."""
    block = ip_network(near)
    mapped = 0xFFFF_0000_0000 if block.version == 4 else 0  # noqa: PLR2004 - as ::ffff:a.b.c.d
    ends = int(block.network_address), int(block.broadcast_address)
    return f"{mapped | ends[0]:032x}", f"{mapped | ends[1]:032x}"


async def count(world: World, limits: Limits) -> frozenset[str]:
    """Count a failure in a separate transaction that no rollback undoes.

    Returns the keys of the limits that this failure reached. Raises RateLimited if concurrent
    failures reached one before: then the caller does not learn of this failure.
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
    """Count one more failure in the open transaction.

    Returns the ends of the waits that began before it, and the keys of the limits that it reached.
    """
    none = {"failures": 0, "times": 0, "until": now}
    new = [{"key": key, **none} for key in sorted(limits)]  # one order: no deadlock
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
    """SQL: insert or lock the throttle rows until the transaction ends, and return them."""
    new = insert_or(dialect, Throttle)
    same = {"key": new.excluded.key}
    return new.on_conflict_do_update(index_elements=["key"], set_=same).returning(*picked(Throttle))


def _refuse(full: Sequence[Picked], now: datetime) -> None:
    """Raise RateLimited if there are exhausted throttles."""
    if full:
        raise _too_many([row.until for row in full], now)


def _too_many(until: Sequence[datetime], now: datetime) -> RateLimited:
    """Return the error with the time until the last of these waits ends."""
    wait = max(until) - now
    return RateLimited("too many failures, wait before the next try", retry_after=wait)


async def clear(ctx: Context, key: str) -> None:
    """Delete the failure count of a throttle key."""
    async with ctx.write() as session:
        await (await session.connection()).execute(delete(Throttle).where(col(Throttle.key) == key))
