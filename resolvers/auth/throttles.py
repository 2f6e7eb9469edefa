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
from typing import NamedTuple

from sqlalchemy import UpdateBase, bindparam, delete, select, update
from sqlmodel import col

from mail.network.ip_networks import is_in_networks, network_for_limits
from models.auth.credentials import THROTTLE_RESET, AccessToken, Throttle
from models.auth.security_log import SecurityEvent, SecurityEventAction, SecurityEventResult
from models.errors import RateLimited
from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.options import Options
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.store.prepared_statements import PreparedStatement
from models.throttling.networks import network_number, parse_ip_network_or_none
from resolvers.context import Context

MAX_DOUBLINGS = 20  # longer waits would exceed any maximum


@dataclass(frozen=True, slots=True)
class ThrottleCounts:
    """The counts of a throttle row after a failure."""

    failures: int  # in the current window
    exhausted_windows: int
    until: datetime  # end of the window or of the wait
    wait_since: datetime | None  # when the limit was reached; None: it was not


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """A number of failures in a window, which the first failure opens. The next wait is limited."""

    max_failures: int
    window: timedelta
    max_wait: timedelta = timedelta(hours=1)
    exempts_known_networks: bool = False  # does not close networks that the user has signed in from

    def counts_after_failure(self, row: ColumnRow, now: datetime) -> ThrottleCounts:
        """Return the counts of this row after one more failure."""
        failures, times, until = row.failures, row.times, row.until
        wait_since = row.wait_since
        if until <= now:
            was_exhausted_lately = failures >= self.max_failures and now < until + THROTTLE_RESET
            failures, times, until = 0, times if was_exhausted_lately else 0, now + self.window
            wait_since = None
        failures += 1
        if failures == self.max_failures:
            wait_since = now
            if times:
                doubled_wait = self.window * 2 ** min(times, MAX_DOUBLINGS)
                until = max(until, now + min(doubled_wait, self.max_wait))
            times += 1
        return ThrottleCounts(failures, times, until, wait_since)


LimitsByKey = Mapping[str, FailureLimit]  # by throttle key

# Built once: building a statement costs more than running it, and a flood runs many.
_SELECT_THROTTLES = PreparedStatement(
    select(*select_columns(Throttle, ("key", "failures", "until"))).where(
        col(Throttle.key).in_([bindparam("one"), bindparam("two"), bindparam("three")])
    )
)
_UPDATE_THROTTLE = update(Throttle).where(col(Throttle.key) == bindparam("counted"))


def limit_of_name_and_network(options: Options) -> FailureLimit:
    """Return the limit of one user, or of an unknown name, from one network."""
    return FailureLimit(
        options.sign_in_max_failures, options.sign_in_failure_window, options.sign_in_max_lockout
    )


def limits_of_password(options: Options, name_key: str, ip: str | None) -> dict[str, FailureLimit]:
    """Return the limits of a password by throttle key: name with network, name, and network.

    `name_key` identifies what the password opens. There are at most three limits.
    """
    limit_of_all_networks = FailureLimit(
        options.sign_in_max_failures_per_account,
        options.sign_in_failure_window,
        options.sign_in_max_lockout,
        True,
    )
    limit_of_pair = {
        f"{name_key}@{network_for_limits(ip) or ''}": limit_of_name_and_network(options)
    }
    return {**limit_of_pair, name_key: limit_of_all_networks, **limits_of_network(options, ip)}


def limits_of_network(options: Options, ip: str | None) -> dict[str, FailureLimit]:
    """Return the limit of the network of this IP address; empty if it is exempt or invalid."""
    ip_network = network_for_limits(ip)
    if ip_network is None or is_in_networks(ip, options.sign_in_exempt_networks):
        return {}
    limit = FailureLimit(
        options.sign_in_max_failures_per_network,
        options.sign_in_network_failure_window,
        options.sign_in_max_lockout,
    )
    return {f"network:{ip_network}": limit}


@dataclass(frozen=True, slots=True)
class FailureState:
    """Throttles of a sign-in that is allowed."""

    keys_with_failures: frozenset[str]  # keys with failures
    limits: LimitsByKey  # to count a failure by


async def require_not_throttled(
    ctx: Context, limits: LimitsByKey, user_id: int = 0
) -> FailureState:
    """Raise RateLimited if one of these limits is reached; return the state of the throttles.

    For networks from which the user has signed in before, a limit that exempts them is left out.
    """
    now = ctx.environment.now()
    keys = [*limits, None, None][:3]
    rows = await ctx.read_prepared(_SELECT_THROTTLES, one=keys[0], two=keys[1], three=keys[2])
    open_windows = [row for row in rows if row.until > now]
    exhausted = [row for row in open_windows if row.failures >= limits[row.key].max_failures]
    exempt_keys = {row.key for row in exhausted if limits[row.key].exempts_known_networks}
    if exempt_keys and not await is_known_network(ctx, user_id):
        exempt_keys = set()
    reached = [row for row in exhausted if row.key not in exempt_keys]
    if reached:
        _write_throttled_attempt_to_log_store(ctx, [row.until for row in reached], user_id)
    _raise_if_throttled(reached, now)
    remaining_limits = {key: limit for key, limit in limits.items() if key not in exempt_keys}
    return FailureState(frozenset(row.key for row in rows), remaining_limits)


def _write_throttled_attempt_to_log_store(
    ctx: Context, wait_ends: Sequence[datetime], user_id: int
) -> None:
    """Write an attempt that is refused because of earlier failures to the log store.

    The entry has the latest of `wait_ends`. Does nothing if the level is not recorded.
    """
    level = LogLevel.WARNING
    if not ctx.environment.logs.is_recorded(LogComponent.THROTTLE, level):
        return
    ctx.environment.logs.enqueue_or_drop_entry(
        NewLogEntry(
            ctx.environment.now(),
            LogComponent.THROTTLE,
            level,
            __name__,
            "Attempt refused after too many failures",
            {"ip": ctx.client_ip, "until": max(wait_ends).isoformat()},
            user_id=user_id or None,
            correlation_id=ctx.request_id or None,
        )
    )


async def is_known_network(ctx: Context, user_id: int) -> bool:
    """True if the user has signed in from the caller's network before.

    Looks in the security log and the valid access tokens.
    """
    caller_network = network_for_limits(ctx.client_ip)
    if caller_network is None:
        return False
    lowest, highest = ip_key_range(caller_network)
    sign_ins = select(col(SecurityEvent.id)).where(
        col(SecurityEvent.user_id) == user_id,
        col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED,
        col(SecurityEvent.result) == SecurityEventResult.SUCCESS,
        col(SecurityEvent.ip_key).between(lowest, highest),
    )
    if await ctx.read(sign_ins.limit(1)):
        return True
    tokens = select(col(AccessToken.ip)).where(
        col(AccessToken.user_id) == user_id,
        ~col(AccessToken.pending),
        col(AccessToken.oauth_grant_id).is_(None),  # its IP address is that of the client
        col(AccessToken.expires_at) > ctx.environment.now(),
    )
    return any(network_for_limits(row.ip) == caller_network for row in await ctx.read(tokens))


def ip_key_range(network: str) -> tuple[str, str]:
    """Return the lowest and the highest `SecurityEvent.ip_key` of a network in CIDR notation."""
    block = ip_network(network)
    ipv4_prefix = 0xFFFF_0000_0000 if block.version == 4 else 0  # noqa: PLR2004 - as ::ffff:a.b.c.d
    first_and_last = int(block.network_address), int(block.broadcast_address)
    return f"{ipv4_prefix | first_and_last[0]:032x}", f"{ipv4_prefix | first_and_last[1]:032x}"


class _CountedFailure(NamedTuple):
    """The result of a counted failure."""

    earlier_wait_ends: list[datetime]  # of the waits that began before it
    reached_keys: frozenset[str]  # of the limits that it reached


async def count_failure_return_reached_keys(
    environment: Environment, limits: LimitsByKey
) -> frozenset[str]:
    """Count a failure in a separate transaction that no rollback undoes.

    Returns the keys of the limits that this failure reached. Raises RateLimited if concurrent
    failures reached one before: then the caller does not learn of this failure.
    """
    now = environment.now()

    def count_in_transaction(
        transaction: DatabaseTransaction,
    ) -> _CountedFailure:
        return _count_failure_in_transaction(transaction, limits, now)

    wait_ends, reached_keys = await environment.run_transaction(count_in_transaction)
    if wait_ends:
        raise _rate_limited_error(wait_ends, now)
    return reached_keys


def _count_failure_in_transaction(
    transaction: DatabaseTransaction, limits: LimitsByKey, now: datetime
) -> _CountedFailure:
    """Count one more failure in the open transaction.

    Returns the ends of the waits that began before it, and the keys of the limits that it reached.
    """
    connection = transaction.connection
    new_rows = [
        {"id": transaction.environment.new_id(), **_initial_row_values(key, now)}
        for key in sorted(limits)  # one order: no deadlock
    ]
    locked_rows = connection.execute(
        _insert_or_lock_rows_sql(connection.dialect.name), new_rows
    ).all()
    counts_by_key = {row.key: limits[row.key].counts_after_failure(row, now) for row in locked_rows}
    connection.execute(
        _UPDATE_THROTTLE,
        [
            {
                "counted": key,
                "failures": counts.failures,
                "times": counts.exhausted_windows,
                "until": counts.until,
                "wait_since": counts.wait_since,
            }
            for key, counts in sorted(counts_by_key.items())
        ],
    )
    wait_ends = [
        counts.until
        for key, counts in counts_by_key.items()
        if counts.failures > limits[key].max_failures
    ]
    return _CountedFailure(
        wait_ends,
        frozenset(
            key
            for key, counts in counts_by_key.items()
            if counts.failures == limits[key].max_failures
        ),
    )


def _initial_row_values(throttle_key: str, now: datetime) -> dict[str, object]:
    """Return the column values of a new throttle row, without its id."""
    kind, _, name = throttle_key.partition(":")
    network = name if kind == "network" else name.rpartition("@")[2] if "@" in name else ""
    parsed = parse_ip_network_or_none(network)
    first_ip, last_ip = network_number(parsed).first_and_last_digits if parsed else (None, None)
    return {
        "key": throttle_key,
        "failures": 0,
        "times": 0,
        "until": now,
        "wait_since": None,
        "network": str(parsed) if parsed else None,
        "first_ip": first_ip,
        "last_ip": last_ip,
    }


@cache
def _insert_or_lock_rows_sql(dialect: str) -> UpdateBase:
    """SQL: insert or lock the throttle rows until the transaction ends, and return them."""
    new_rows = insert_with_conflict(dialect, Throttle)
    unchanged = {"key": new_rows.excluded.key}
    return new_rows.on_conflict_do_update(index_elements=["key"], set_=unchanged).returning(
        *select_columns(Throttle)
    )


def _raise_if_throttled(exhausted: Sequence[ColumnRow], now: datetime) -> None:
    """Raise RateLimited if there are exhausted throttles."""
    if exhausted:
        raise _rate_limited_error([row.until for row in exhausted], now)


def _rate_limited_error(wait_ends: Sequence[datetime], now: datetime) -> RateLimited:
    """Return the error with the time until the last of these waits ends."""
    wait = max(wait_ends) - now
    return RateLimited("Too many failed attempts: wait before you retry.", retry_after=wait)


async def delete_failures(ctx: Context, throttle_key: str) -> None:
    """Delete the failure count of a throttle key."""
    async with ctx.write_session() as session:
        await (await session.connection()).execute(
            delete(Throttle).where(col(Throttle.key) == throttle_key)
        )
