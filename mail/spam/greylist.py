"""Greylisting: refuse an unknown sender, network and recipient for some minutes.

A retry after the delay is accepted, and so is later mail until the entry expires unused. Most
programs that send spam don't retry.
"""

import hashlib
import math
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from mail.limits.rate_counter import Rates
from mail.network.ip_networks import network, within
from models.runtime.environment import Turn, World
from models.spam.greylist import Greylisted
from models.store.columns import insert_or
from models.store.prepared_statements import Prepared

RETURN = timedelta(days=2)  # in which a retry must come
NEW = 1000  # rows per network and hour

_SEEN = Prepared(
    select(col(Greylisted.since), col(Greylisted.until)).where(
        col(Greylisted.key) == bindparam("known")
    )
)


class Greylist:
    """The check of sender, network and recipient. Allowed networks are never refused."""

    def __init__(
        self, world: World, delay: timedelta, lifetime: timedelta, allow: tuple[str, ...] = ()
    ) -> None:
        self._world = world
        self._delay = delay
        self._lifetime = lifetime
        self._allow = allow
        self._new = Rates(NEW, world.now)

    async def wait(self, ip: str | None, sender: str, recipient: str) -> int:
        """Return the seconds until these three are accepted; 0 if they are accepted now."""
        near = network(ip)
        if near is None or within(ip, self._allow):
            return 0
        told = "\0".join([near, sender.casefold(), recipient.casefold()])
        key = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()
        now = self._world.now()
        row = next(iter(await self._world.database.find(_SEEN, {"known": key})), None)
        if row is not None and row.until > now:
            return await self._again(key, row.since, row.until)
        if not self._new.full(near):
            self._new.add(near)
            await self._begin(key, now)
        return math.ceil(self._delay.total_seconds())

    async def _again(self, key: str, since: datetime, until: datetime) -> int:
        """Return the seconds left of a known entry and extend an accepted one."""
        now = self._world.now()
        if since > now:
            return math.ceil((since - now).total_seconds())
        if until - now < self._lifetime / 2:  # write only once per half lifetime

            def unit(turn: Turn) -> None:
                longer = update(Greylisted).where(col(Greylisted.key) == key)
                turn.connection.execute(longer.values(until=now + self._lifetime))

            await self._world.apply(unit)
        return 0

    async def _begin(self, key: str, now: datetime) -> None:
        """Insert an entry. It expires if there is no retry within RETRY_WINDOW."""
        row = {"key": key, "since": now + self._delay, "until": now + self._delay + RETURN}

        def unit(turn: Turn) -> None:
            new = insert_or(turn.connection.dialect.name, Greylisted)
            fresh = {name: new.excluded[name] for name in ("since", "until")}
            over = col(Greylisted.until) <= now  # another process can have inserted it just now
            again = new.on_conflict_do_update(index_elements=["key"], set_=fresh, where=over)
            turn.connection.execute(again, row)

        await self._world.apply(unit)
