"""What each may spend: a bucket of cost points for each credential and each address.

A bucket is full at first and fills again all the time. Who empties it waits; nobody else does.
Buckets lie in the memory of this process, as many as there is room for: one that was forgotten
is a full one.
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
BURST = 100  # seconds of its rate that a bucket holds
BUCKETS = 20_000
READING = 8  # characters of an unknown document that are read for a point
READING_MAX = 5_000  # points: the dearest document to be read, and no more than any bucket holds
LEAST = 25_000  # points of the smallest bucket: it pays for any operation of a stranger or a user
LEAST_OF_ADMINS = 125_000  # the same for those whose operations may cost more


@dataclass(frozen=True, slots=True)
class Rates:
    """Points that buckets get back in a second; 0: whoever it is spends as they like.

    A point is about ten microseconds of work.
    """

    strangers: int = 250  # those of one address who have not signed in
    users: int = 2_500  # each user, by all credentials together
    admins: int = 50_000  # front ends: keys of ADMIN and above, which speak for many

    def of(self, viewer: Viewer) -> int:
        """The rate of this viewer."""
        if viewer.role is Role.USER:
            return self.users
        if viewer.role is Role.PUBLIC:
            return self.strangers
        return self.admins if viewer.role in FOR_MANY else self.users


def least(viewer: Viewer) -> int:
    """The points of the smallest bucket that this viewer may have."""
    return LEAST_OF_ADMINS if viewer.role.includes(Role.DOMAIN_ADMIN) else LEAST


def capacity(rate: int, least: int = LEAST) -> int:
    """What a bucket of this rate holds, `least` or more."""
    return max(rate * BURST, least)


def payer(ctx: Context) -> str:
    """Who pays for what is asked: the credential's owner, else the address."""
    if ctx.viewer.role is Role.PUBLIC:
        return f"from:{place(ctx.client_ip)}"
    return ctx.viewer.principal


@lru_cache(maxsize=4096)
def place(address: str | None) -> str:
    """What counts as one address: that of IPv4, /64 of IPv6. Who has a /64 has them all."""
    if address is None or ":" not in address:
        return address or ""
    return network(address) or address


@dataclass(slots=True)
class Bucket:
    """What was left, and when."""

    left: float
    at: float


class Budgets:
    """The buckets. `clock` counts seconds."""

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
        """Pay from the bucket of `who`: what is left, and the seconds to wait, 0 where it is paid.

        Where there is not enough nothing is taken. The bucket holds `least` points or more.
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
    """The points that reading an unknown document costs, before anything of it is run."""
    return min(len(text) // READING, READING_MAX)
