"""Count failures of clients by network, and ban networks at the limit of the policy.

Failures are stored: each counts once for all processes, and a restart keeps them.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import case, delete, func, select, update
from sqlmodel import col

from mail.network.ip_networks import is_in_networks
from mail.throttling.ban_changes import (
    increment_and_lock_change_counter,
    refresh_refused_networks_from_database,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.throttling.networks import network_number, parse_ip_network_or_none
from models.throttling.policy import BAN_HISTORY, MAX_BANS, BanCause
from models.throttling.tables import NetworkBan, NetworkFailure

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewNetworkBan:
    """A ban to store. Without `duration` it lasts as long as the policy says."""

    network: str
    cause: BanCause
    failure_count: int = 0
    reason: str | None = None
    duration: timedelta | None = None


@dataclass(frozen=True, slots=True)
class StoredNetworkBan:
    """A ban that was stored."""

    id: int
    ends_at: datetime
    new_ban: NewNetworkBan

    @property
    def network(self) -> str:
        """The banned network."""
        return self.new_ban.network


async def count_failure_and_ban_at_limit(
    environment: Environment, ip: str | None, cause: BanCause
) -> StoredNetworkBan | None:
    """Count a failure for the network of this address; ban the network at the limit.

    Returns the ban if this failure caused one. Addresses that are never banned, in the allow list,
    in `sign_in_exempt_networks` or already refused are not counted. Uses transactions of its own,
    which no rollback undoes.
    """
    if is_in_networks(ip, environment.options.sign_in_exempt_networks):
        return None
    refused = environment.refused_networks
    if refused.counted_network_or_none(ip) is None:
        return None
    if refused.last_change < 0:
        await refresh_refused_networks_from_database(environment)
    network = refused.counted_network_or_none(ip)
    if network is None or refused.refuses(ip, environment.now):
        return None
    failure_count = await environment.run_transaction(
        partial(_count_failure_in_transaction, network=network)
    )
    if failure_count < refused.policy.max_attempts:
        return None
    new_ban = NewNetworkBan(network, cause, failure_count)
    bans = await environment.run_transaction(
        partial(_ban_unless_banned_with_journal_entry, new_ban=new_ban), PLATFORM
    )
    log_bans(bans)
    await refresh_refused_networks_from_database(environment)
    return bans[0] if bans else None


def log_bans(bans: list[StoredNetworkBan]) -> None:
    """Log bans, after the commit of their transaction."""
    for ban in bans:
        fields = {
            "network": ban.network,
            "cause": ban.new_ban.cause,
            "failures": ban.new_ban.failure_count,
            "until": ban.ends_at.isoformat(),
        }
        log.warning("Network banned", extra=fields)


def _count_failure_in_transaction(transaction: DatabaseTransaction, *, network: str) -> int:
    """Count a failure of a network, and return the number in the current window."""
    now = transaction.environment.now()
    window_ends_at = now + transaction.environment.refused_networks.policy.retry_window
    insert = insert_with_conflict(transaction.connection.dialect.name, NetworkFailure).values(
        network=network,
        **_ip_range_values(network),
        failure_count=1,
        window_ends_at=window_ends_at,
    )
    is_over = col(NetworkFailure.window_ends_at) <= now
    statement = insert.on_conflict_do_update(
        index_elements=["network"],
        set_={
            "failure_count": case((is_over, 1), else_=col(NetworkFailure.failure_count) + 1),
            "window_ends_at": case(
                (is_over, insert.excluded.window_ends_at),
                else_=col(NetworkFailure.window_ends_at),
            ),
        },
    ).returning(col(NetworkFailure.failure_count))
    return int(transaction.connection.execute(statement).scalar_one())


def _ban_unless_banned_with_journal_entry(
    transaction: DatabaseTransaction, *, new_ban: NewNetworkBan
) -> list[StoredNetworkBan]:
    """Store a ban and its journal entry, unless the network has a ban in force.

    The transaction locks the PLATFORM stream: of several processes that count the last failure,
    only one bans.
    """
    now = transaction.environment.now()
    in_force = select(col(NetworkBan.id)).where(
        col(NetworkBan.network) == new_ban.network, col(NetworkBan.ends_at) > now
    )
    if transaction.connection.execute(in_force).first() is not None:
        return []
    bans = insert_or_replace_bans(transaction, new_bans=[new_ban])
    entry = JournalEntry(EventType.BAN_CREATED, [ban.id for ban in bans])
    transaction.record_entry(PLATFORM, entry, at=now)
    return bans


def insert_or_replace_bans(
    transaction: DatabaseTransaction, *, new_bans: list[NewNetworkBan]
) -> list[StoredNetworkBan]:
    """Store bans in a transaction that locks the PLATFORM stream. The caller journals them.

    The former ban of a network is replaced, also a past one. A recent former ban makes the new one
    longer, unless the new one has a duration. The failures of the networks are deleted. If there
    are more than `MAX_BANS` bans in force, the oldest are ended.
    """
    now, policy = transaction.environment.now(), transaction.environment.refused_networks.policy
    networks = [new_ban.network for new_ban in new_bans]
    statement = select(*select_columns(NetworkBan)).where(col(NetworkBan.network).in_(networks))
    former_rows = {row.network: row for row in transaction.connection.execute(statement)}
    transaction.connection.execute(
        delete(NetworkFailure).where(col(NetworkFailure.network).in_(networks))
    )
    change_number = increment_and_lock_change_counter(transaction)
    stored_bans: list[StoredNetworkBan] = []
    rows: list[dict[str, Any]] = []
    for new_ban in new_bans:
        former = former_rows.get(new_ban.network)
        former_count = _former_ban_count(former, now)
        duration = new_ban.duration or policy.ban_duration(former_count)
        ban_id = former.id if former else transaction.environment.new_id()
        stored_bans.append(StoredNetworkBan(ban_id, now + duration, new_ban))
        rows.append(
            {
                "id": ban_id,
                "network": new_ban.network,
                **_ip_range_values(new_ban.network),
                "cause": new_ban.cause,
                "reason": new_ban.reason,
                "failure_count": new_ban.failure_count,
                "ban_count": former_count + 1,
                "started_at": now,
                "ends_at": stored_bans[-1].ends_at,
                "change_number": change_number,
            }
        )
    insert = insert_with_conflict(transaction.connection.dialect.name, NetworkBan)
    changed = {name: insert.excluded[name] for name in rows[0] if name not in {"id", "network"}}
    transaction.connection.execute(
        insert.on_conflict_do_update(index_elements=["network"], set_=changed), rows
    )
    _end_oldest_bans_above_limit(transaction, change_number, now)
    return stored_bans


def _former_ban_count(former: ColumnRow | None, now: datetime) -> int:
    """Return how many bans in a row precede a new one."""
    if former is None or former.ends_at + BAN_HISTORY <= now:
        return 0
    return int(former.ban_count)


def _end_oldest_bans_above_limit(
    transaction: DatabaseTransaction, change_number: int, now: datetime
) -> None:
    """End the oldest bans in force beyond MAX_BANS."""
    in_force = col(NetworkBan.ends_at) > now
    count = transaction.connection.execute(
        select(func.count()).select_from(NetworkBan).where(in_force)
    ).scalar_one()
    if count <= MAX_BANS:
        return
    oldest = (
        select(col(NetworkBan.id))
        .where(in_force)
        .order_by(col(NetworkBan.started_at), col(NetworkBan.id))
        .limit(count - MAX_BANS)
    )
    transaction.connection.execute(
        update(NetworkBan)
        .where(col(NetworkBan.id).in_(oldest))
        .values(ends_at=now, change_number=change_number)
        .execution_options(synchronize_session=False)
    )


def _ip_range_values(network: str) -> dict[str, str]:
    """Return the columns with the first and last address of a network."""
    parsed = parse_ip_network_or_none(network)
    assert parsed is not None  # noqa: S101 - the caller has parsed it
    first_ip, last_ip = network_number(parsed).first_and_last_digits
    return {"first_ip": first_ip, "last_ip": last_ip}
