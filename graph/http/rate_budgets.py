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
from typing import NamedTuple

from mail.network.ip_networks import network_for_limits
from models.users.roles import Role
from resolvers.context import Context
from resolvers.viewer import Viewer

ADMIN_ROLES = frozenset(role for role in Role if role.includes(Role.ADMIN))
CAPACITY_SECONDS = 100  # a budget holds the points of this time
MAX_BUDGETS = 20_000
CHARACTERS_PER_POINT = 8  # of a document that is not cached
MAX_READING_POINTS = 5_000  # any budget can pay this
MIN_CAPACITY = 25_000  # points; enough for any operation of a user or an anonymous client
MIN_CAPACITY_OF_ADMINS = (
    125_000  # points; enough for the more expensive operations of administrators
)


@dataclass(frozen=True, slots=True)
class PointRates:
    """Points per second that refill a rate budget; 0 means no limit.

    A point is about ten microseconds of work.
    """

    anonymous: int = 250  # of one network
    users: int = 2_500  # of one user with all credentials
    admins: int = 50_000  # of a key of ADMIN or above, such as a front end

    def points_per_second_of_viewer(self, viewer: Viewer) -> int:
        """Return the points per second of a viewer."""
        if viewer.role is Role.USER:
            return self.users
        if viewer.role is Role.PUBLIC:
            return self.anonymous
        return self.admins if viewer.role in ADMIN_ROLES else self.users


def min_capacity_of_viewer(viewer: Viewer) -> int:
    """Return the lowest capacity, in points, of a viewer's rate budget."""
    return MIN_CAPACITY_OF_ADMINS if viewer.role.includes(Role.DOMAIN_ADMIN) else MIN_CAPACITY


def budget_capacity(rate: int, min_capacity: int = MIN_CAPACITY) -> int:
    """Return the capacity, in points, of a rate budget with this rate."""
    return max(rate * CAPACITY_SECONDS, min_capacity)


def payer_key(ctx: Context) -> str:
    """Return the key of the rate budget: of the credential's owner, or of an anonymous network."""
    if ctx.viewer.role is Role.PUBLIC:
        return anonymous_payer_key(ctx.client_ip)
    return ctx.viewer.principal


def read_owner_or_none(ctx: Context) -> str | None:
    """Return the owner of an operation's reads; None for a key of the platform.

    Such a key, as of a front end, can read for many users.
    """
    is_of_platform = not ctx.viewer.user_id and ctx.viewer.role is not Role.PUBLIC
    return None if is_of_platform else payer_key(ctx)


def anonymous_payer_key(client_ip: str | None) -> str:
    """Return the key of the rate budget that the anonymous clients of a network share."""
    return f"from:{network_key(client_ip)}"


@lru_cache(maxsize=4096)
def network_key(ip_address: str | None) -> str:
    """Return the IPv4 address or the IPv6 /64 network of an address."""
    if ip_address is None or ":" not in ip_address:
        return ip_address or ""
    return network_for_limits(ip_address) or ip_address


@dataclass(slots=True)
class RateBudget:
    """The points of one payer at a time."""

    points: float
    updated_at: float


class TakenPoints(NamedTuple):
    """The points that are left, and how long to wait if there were not enough."""

    points_left: float
    wait_seconds: float  # 0 if the points were taken


class RateBudgets:
    """The rate budgets of this process. `clock` returns seconds."""

    def __init__(
        self,
        rates: PointRates | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_budgets: int = MAX_BUDGETS,
    ) -> None:
        self.rates = rates or PointRates()
        self._clock = clock
        self._max_budgets = max_budgets
        self._budgets: OrderedDict[str, RateBudget] = OrderedDict()

    def __len__(self) -> int:
        return len(self._budgets)

    def take_points_if_enough(
        self, payer: str, rate: int, points: float, *, min_capacity: int = MIN_CAPACITY
    ) -> TakenPoints:
        """Take points from a payer's budget; return the remaining points and seconds to wait.

        The wait is 0 if the points were taken. Without enough points nothing is taken.
        """
        now, capacity = self._clock(), budget_capacity(rate, min_capacity)
        bucket = self._budgets.get(payer)
        if bucket is None:
            bucket = self._budgets[payer] = RateBudget(capacity, now)
            if len(self._budgets) > self._max_budgets:
                self._budgets.popitem(last=False)
        else:
            self._budgets.move_to_end(payer)
            bucket.points = min(bucket.points + (now - bucket.updated_at) * rate, capacity)
            bucket.updated_at = now
        if points > bucket.points:
            return TakenPoints(bucket.points, (points - bucket.points) / rate)
        bucket.points -= points
        return TakenPoints(bucket.points, 0.0)


def document_reading_points(document_text: str) -> int:
    """Return the points for parsing and validating a document that is not cached."""
    return min(len(document_text) // CHARACTERS_PER_POINT, MAX_READING_POINTS)
