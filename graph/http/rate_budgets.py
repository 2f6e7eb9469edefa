"""Rate budgets: cost points of each user or key, and of each network of anonymous clients.

A budget is full at first and refills all the time. An empty budget only delays its own payer.
The budgets are in the memory of this process, in a limited number: a dropped budget is full when
it is used again.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mail.network.ip_networks import network
from models.users.roles import Role
from resolvers.context import Context, Viewer

FOR_MANY = frozenset(role for role in Role if role.includes(Role.ADMIN))
BURST = 100  # a budget holds the points of this time
BUCKETS = 20_000
READING = 8  # of a document that is not cached
READING_MAX = 5_000  # any budget can pay this
LEAST = 25_000  # points; enough for any operation of a user or an anonymous client
LEAST_OF_ADMINS = 125_000  # points; enough for the more expensive operations of administrators


@dataclass(frozen=True, slots=True)
class Rates:
    """Points per second that refill a rate budget; 0 means no limit.

    A point is about ten microseconds of work.
    """

    strangers: int = 250  # of one network
    users: int = 2_500  # of one user with all credentials
    admins: int = 50_000  # of a key of ADMIN or above, such as a front end

    def of(self, viewer: Viewer) -> int:
        """Return the points per second of a viewer."""
        if viewer.role is Role.USER:
            return self.users
        if viewer.role is Role.PUBLIC:
            return self.strangers
        return self.admins if viewer.role in FOR_MANY else self.users


def least(viewer: Viewer) -> int:
    """Return the lowest capacity, in points, of a viewer's rate budget."""
    return LEAST_OF_ADMINS if viewer.role.includes(Role.DOMAIN_ADMIN) else LEAST


def capacity(rate: int, least: int = LEAST) -> int:
    """Return the capacity, in points, of a rate budget with this rate."""
    return max(rate * BURST, least)


def payer(ctx: Context) -> str:
    """Return the key of the rate budget: of the credential's owner, or of an anonymous network."""
    if ctx.viewer.role is Role.PUBLIC:
        return f"from:{place(ctx.client_ip)}"
    return ctx.viewer.principal


@lru_cache(maxsize=4096)
def place(address: str | None) -> str:
    """Return the IPv4 address or the IPv6 /64 network of an address."""
    if address is None or ":" not in address:
        return address or ""
    return network(address) or address


@dataclass(slots=True)
class Bucket:
    """The points of one payer at a time."""

    left: float
    at: float


class Budgets:
    """The rate budgets of this process. `clock` returns seconds."""

    def __init__(
        self,
        rates: Rates | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        entries: int = BUCKETS,
    ) -> None:
        self.rates = rates or Rates()
        self._clock = clock
        self._entries = entries
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(
        self, who: str, rate: int, points: float, *, least: int = LEAST
    ) -> tuple[float, float]:
        """Take points from a payer's budget; return the remaining points and seconds to wait.

        The wait is 0 if the points were taken. Without enough points nothing is taken.
        """
        now, most = self._clock(), capacity(rate, least)
        bucket = self._buckets.get(who)
        if bucket is None:
            bucket = self._buckets[who] = Bucket(most, now)
            if len(self._buckets) > self._entries:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(who)
            bucket.left = min(bucket.left + (now - bucket.at) * rate, most)
            bucket.at = now
        if points > bucket.left:
            return bucket.left, (points - bucket.left) / rate
        bucket.left -= points
        return bucket.left, 0.0


def reading(text: str) -> int:
    """Return the points for parsing and validating a document that is not cached."""
    return min(len(text) // READING, READING_MAX)
