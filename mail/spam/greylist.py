"""Greylisting: refuse an unknown sender, network and recipient for some minutes.

A retry after the delay is accepted, and so is later mail until the entry expires unused. Most
programs that send spam don't retry.
"""

import hashlib
import math
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from mail.limits.rate_counter import HourlyCounter
from mail.network.ip_networks import is_in_networks, network_for_limits
from models.runtime.environment import DatabaseTransaction, Environment
from models.spam.greylist import GreylistEntry
from models.store.columns import insert_with_conflict
from models.store.prepared_statements import PreparedStatement

RETRY_WINDOW = timedelta(days=2)  # in which a retry must come
MAX_NEW_ROWS = 1000  # rows per network and hour

_SELECT_GREYLISTED = PreparedStatement(
    select(col(GreylistEntry.since), col(GreylistEntry.until)).where(
        col(GreylistEntry.key) == bindparam("known")
    )
)


class Greylist:
    """The check of sender, network and recipient. Allowed networks are never refused."""

    def __init__(
        self,
        environment: Environment,
        delay: timedelta,
        entry_lifetime: timedelta,
        allowed_networks: tuple[str, ...] = (),
    ) -> None:
        self._world = environment
        self._delay = delay
        self._entry_lifetime = entry_lifetime
        self._allowed_networks = allowed_networks
        self._new_rows = HourlyCounter(MAX_NEW_ROWS, environment.now)

    async def record_attempt_and_get_wait_seconds(
        self, ip: str | None, envelope_sender: str, recipient: str
    ) -> int:
        """Return the seconds until these three are accepted; 0 if they are accepted now."""
        network = network_for_limits(ip)
        if network is None or is_in_networks(ip, self._allowed_networks):
            return 0
        triplet = "\0".join([network, envelope_sender.casefold(), recipient.casefold()])
        key = hashlib.sha256(triplet.encode(errors="surrogatepass")).hexdigest()
        now = self._world.now()
        row = next(
            iter(await self._world.database.read_prepared(_SELECT_GREYLISTED, {"known": key})), None
        )
        if row is not None and row.until > now:
            return await self._get_wait_and_extend_known(key, row.since, row.until)
        if not self._new_rows.is_limit_reached(network):
            self._new_rows.count_event(network)
            await self._insert_or_replace_expired_row(key, now)
        return math.ceil(self._delay.total_seconds())

    async def _get_wait_and_extend_known(
        self, entry_key: str, accepted_from: datetime, expires_at: datetime
    ) -> int:
        """Return the seconds left of a known entry and extend an accepted one."""
        now = self._world.now()
        if accepted_from > now:
            return math.ceil((accepted_from - now).total_seconds())
        if expires_at - now < self._entry_lifetime / 2:  # write only once per half lifetime

            def extend_in_transaction(transaction: DatabaseTransaction) -> None:
                longer = update(GreylistEntry).where(col(GreylistEntry.key) == entry_key)
                transaction.connection.execute(longer.values(until=now + self._entry_lifetime))

            await self._world.run_transaction(extend_in_transaction)
        return 0

    async def _insert_or_replace_expired_row(self, entry_key: str, now: datetime) -> None:
        """Insert an entry. It expires if there is no retry within RETRY_WINDOW."""
        row = {
            "key": entry_key,
            "since": now + self._delay,
            "until": now + self._delay + RETRY_WINDOW,
        }

        def insert_in_transaction(transaction: DatabaseTransaction) -> None:
            new = insert_with_conflict(transaction.connection.dialect.name, GreylistEntry)
            fresh = {name: new.excluded[name] for name in ("since", "until")}
            over = col(GreylistEntry.until) <= now  # another process can have inserted it just now
            upsert = new.on_conflict_do_update(index_elements=["key"], set_=fresh, where=over)
            transaction.connection.execute(upsert, row)

        await self._world.run_transaction(insert_in_transaction)
