"""Reading of bans and policy into memory."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select, union_all
from sqlmodel import col

from models.cluster.nodes import ClusterNode
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.server_processes import ServerProcess
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.store.database import current_transaction
from models.store.prepared_statements import PreparedStatement
from models.throttling.policy import POLICY_ID, BanPolicyValues
from models.throttling.tables import BanChangeCounter, BanListHost, BanPolicy, NetworkBan

log = logging.getLogger(__name__)

_SELECT_LAST_CHANGE = PreparedStatement(select(col(BanChangeCounter.last_change)))
_ADDRESSES_OF_SERVERS_AND_NODES = union_all(
    select(col(ServerProcess.ip_addresses)), select(col(ClusterNode.ip_addresses))
).subquery()
_SELECT_PLATFORM_ADDRESSES = select(_ADDRESSES_OF_SERVERS_AND_NODES.c.ip_addresses)


def policy_from_row(row: ColumnRow) -> BanPolicyValues:
    """Return the values of the stored policy."""
    return BanPolicyValues(
        timedelta(seconds=row.ban_seconds),
        row.ban_time_increment,
        row.max_attempts,
        timedelta(seconds=row.retry_window_seconds),
        row.netmask_ipv4,
        row.netmask_ipv6,
        tuple(row.allowlist),
        tuple(row.denylist),
    )


def increment_and_lock_change_counter(transaction: DatabaseTransaction) -> int:
    """Count a change of bans, policy or host addresses; return its number.

    Locks the counter until the transaction ends, so that numbers become visible in their order.
    """
    dialect = transaction.connection.dialect.name
    row = insert_with_conflict(dialect, BanChangeCounter).values(id=POLICY_ID, last_change=1)
    statement = row.on_conflict_do_update(
        index_elements=["id"], set_={"last_change": BanChangeCounter.last_change + 1}
    ).returning(col(BanChangeCounter.last_change))
    return int(transaction.connection.execute(statement).scalar_one())


async def refresh_refused_networks_from_database(environment: Environment) -> None:
    """Read what has changed since the last call into `environment.refused_networks`.

    Without changes it reads one row. Does nothing inside a transaction of a request, which would
    read changes that can still be rolled back.
    """
    if current_transaction.get() is not None:
        return
    refused, now = environment.refused_networks, environment.now()
    rows = await environment.database.read_prepared(_SELECT_LAST_CHANGE, {})
    last_change = rows[0].last_change if rows else 0
    if last_change == refused.last_change:
        return
    is_first_read = not 0 <= refused.last_change < last_change  # or the database was restored
    bans: Any = select(col(NetworkBan.network), col(NetworkBan.ends_at))
    bans = (
        bans.where(col(NetworkBan.ends_at) > now)
        if is_first_read
        else bans.where(col(NetworkBan.change_number) > refused.last_change)
    )
    ban_rows = await environment.database.read(bans)
    policies = await environment.database.read(select(*select_columns(BanPolicy)))
    hosts = await environment.database.read(
        select(col(BanListHost.name), col(BanListHost.addresses))
    )
    refused.use_policy(
        policy_from_row(policies[0]) if policies else BanPolicyValues(),
        {row.name: row.addresses for row in hosts},
    )
    if is_first_read:
        refused.clear_bans()
    _set_bans(environment, ban_rows)
    refused.last_change = last_change


def _set_bans(environment: Environment, rows: Sequence[Any]) -> None:
    """Apply changed bans to the networks that this process refuses."""
    now = environment.now()
    for row in rows:
        environment.refused_networks.set_or_remove_ban(row.network, row.ends_at, now)
    environment.refused_networks.remove_expired_bans_if_due(now)


async def apply_server_addresses(environment: Environment) -> None:
    """Read the addresses of the platform's servers and load balancers, which are never refused."""
    rows = await environment.database.read(_SELECT_PLATFORM_ADDRESSES)
    environment.refused_networks.replace_never_refused_addresses(
        servers={address for row in rows for address in row.ip_addresses}
    )
