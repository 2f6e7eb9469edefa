"""Registration of the own server as a node, and its heartbeat every second."""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col

from models.cluster.nodes import AdministrativeNodeState, ClusterNode, NodeKind
from models.cluster.own_node import NodeAddress
from models.events.event_types import EventType, ids_by_event_type
from models.events.journal import PLATFORM, JournalEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.installed_version import installed_version
from models.runtime.machine_addresses import machine_ip_addresses
from models.runtime.server_processes import ServerProcess
from models.store.columns import ColumnRow, select_columns

log = logging.getLogger(__name__)

UNREACHABLE_AFTER_SECONDS = 5.0  # without a heartbeat
HEARTBEAT_SECONDS = 1.0
OBSERVE_SECONDS = 0.25  # between two looks at the heartbeat of another server with the same name
MAX_TRIES = 5  # of the registration, while other servers change the same row


class NodeNameInUse(Exception):
    """Another server, or a load balancer, is registered with the same host and port."""


class _RegistrationChanged(Exception):
    """Another transaction changed the row meanwhile."""


async def register_node(environment: Environment, address: NodeAddress) -> int:
    """Register the server of this process as a node; return the id of the node.

    State, weight and tag of an existing node with this name stay. If another server has the name,
    its heartbeat is observed for up to UNREACHABLE_AFTER_SECONDS. Raises NodeNameInUse if it runs,
    or if a load balancer has the name.
    """
    for _ in range(MAX_TRIES):
        former = await _load_node(environment, address)
        if former is not None:
            await _require_name_free(environment, address, former)
        work = partial(_store_registration_if_unchanged, address=address, former=former)
        try:
            return await environment.run_transaction(work, PLATFORM)
        except _RegistrationChanged:
            continue
    raise NodeNameInUse(f"Other servers register as {address} at the same time.")


async def _load_node(environment: Environment, address: NodeAddress) -> ColumnRow | None:
    statement = select(*select_columns(ClusterNode)).where(
        col(ClusterNode.host) == address.host, col(ClusterNode.port) == address.port
    )
    rows = await environment.database.read(statement)
    return rows[0] if rows else None


async def _require_name_free(
    environment: Environment, address: NodeAddress, former: ColumnRow
) -> None:
    """Raise NodeNameInUse if the node belongs to a load balancer or to another running server."""
    if former.kind == NodeKind.FRONT:
        raise NodeNameInUse(f"{address} is registered as a load balancer (FRONT).")
    if former.server in (None, environment.process.server_id):
        return
    processes = select(func.count()).where(col(ServerProcess.server) == former.server)
    heartbeat = select(col(ClusterNode.heartbeat_count)).where(col(ClusterNode.id) == former.id)
    deadline = time.monotonic() + UNREACHABLE_AFTER_SECONDS
    while (await environment.database.read(processes))[0][0]:
        rows = await environment.database.read(heartbeat)
        if rows and rows[0].heartbeat_count != former.heartbeat_count:
            raise NodeNameInUse(f"Another server runs as node {address}.")
        if not rows or time.monotonic() > deadline:
            return
        await asyncio.sleep(OBSERVE_SECONDS)


def _store_registration_if_unchanged(
    transaction: DatabaseTransaction, *, address: NodeAddress, former: ColumnRow | None
) -> int:
    """Store the registration; return the id of the node.

    Raises _RegistrationChanged if the row is not as it was read.
    """
    environment, connection = transaction.environment, transaction.connection
    now, server = environment.now(), environment.process.server_id
    values: dict[str, Any] = {
        "server": server,
        "version": installed_version(),
        "smtp_port": address.smtp_port,
        "submission_port": address.submission_port,
        "ip_addresses": machine_ip_addresses(),
        "last_heartbeat_at": now,
        "unreachable_at": None,
    }
    current = connection.execute(
        select(
            col(ClusterNode.id), col(ClusterNode.server), col(ClusterNode.heartbeat_count)
        ).where(col(ClusterNode.host) == address.host, col(ClusterNode.port) == address.port)
    ).first()
    if (current and (current.id, current.server)) != (former and (former.id, former.server)):
        raise _RegistrationChanged
    if current is None:
        node_id = environment.new_id()
        connection.execute(
            insert(ClusterNode),
            {
                "id": node_id,
                "host": address.host,
                "port": address.port,
                "kind": NodeKind.BACKEND,
                "state": AdministrativeNodeState.UP,
                "state_changed_at": now,
                "created_at": now,
                **values,
            },
        )
    else:
        node_id = int(current.id)
        values["heartbeat_count"] = current.heartbeat_count + 1
        connection.execute(
            update(ClusterNode).where(col(ClusterNode.id) == node_id).values(**values)
        )
    types_by_id = _delete_or_detach_other_nodes_of_server(transaction, node_id)
    is_new = current is None
    types_by_id[node_id] = (
        EventType.CLUSTER_NODE_CREATED if is_new else EventType.CLUSTER_NODE_UPDATED
    )
    for event_type, node_ids in ids_by_event_type(types_by_id):
        transaction.record_entry(PLATFORM, JournalEntry(event_type, node_ids), at=now)
    return node_id


def _delete_or_detach_other_nodes_of_server(
    transaction: DatabaseTransaction, node_id: int
) -> dict[int, EventType]:
    """Remove the server from its nodes with other names; return the types of their events by id.

    A node that an administrator added stays, without a server.
    """
    connection, server = transaction.connection, transaction.environment.process.server_id
    others = (col(ClusterNode.server) == server, col(ClusterNode.id) != node_id)
    statement = select(col(ClusterNode.id), col(ClusterNode.is_added)).where(*others)
    rows = connection.execute(statement).all()
    if rows:
        connection.execute(delete(ClusterNode).where(*others, ~col(ClusterNode.is_added)))
        connection.execute(
            update(ClusterNode)
            .where(*others)
            .values(server=None, unreachable_at=transaction.environment.now())
        )
    return {
        row.id: EventType.CLUSTER_NODE_UPDATED if row.is_added else EventType.CLUSTER_NODE_DELETED
        for row in rows
    }


async def increment_heartbeat_and_load_nodes(
    environment: Environment, address: NodeAddress, columns: Collection[str]
) -> Sequence[ColumnRow]:
    """Increase the heartbeat of the own node, and load all nodes as they were before.

    If an administrator has removed the node, it is registered again with initial values. A node
    that was unreachable is reachable again, which is recorded in the journal. `columns` must have
    `id` and `unreachable_at`.
    """
    own_node, is_registered = environment.own_node, False
    select_nodes = select(*select_columns(ClusterNode, columns))

    def increment_heartbeat_and_read_nodes(transaction: DatabaseTransaction) -> Sequence[ColumnRow]:
        nonlocal is_registered
        rows = transaction.connection.execute(select_nodes).all()
        now, server = environment.now(), environment.process.server_id
        processes = select(func.count()).where(col(ServerProcess.server) == server)
        statement = (
            update(ClusterNode)
            .where(col(ClusterNode.id) == own_node.node_id, col(ClusterNode.server) == server)
            .values(
                heartbeat_count=ClusterNode.heartbeat_count + 1,
                last_heartbeat_at=now,
                unreachable_at=None,
                process_count=processes.scalar_subquery(),
                applied_change_number=own_node.applied_change_number,
            )
        )
        is_registered = bool(transaction.connection.execute(statement).rowcount)
        return rows

    rows = await environment.run_heartbeat_transaction(increment_heartbeat_and_read_nodes)
    if not is_registered:
        own_node.node_id = await register_node(environment, address)
        log.info("Node registered again", extra={"node": str(address)})
    elif any(row.id == own_node.node_id and row.unreachable_at for row in rows):
        await journal_node_changes(environment, [own_node.node_id or 0])
        log.info("Node is reachable again", extra={"node": str(address)})
    return rows


async def journal_node_changes(environment: Environment, node_ids: list[int]) -> None:
    """Record in the journal that the state of these nodes has changed."""

    def record(transaction: DatabaseTransaction) -> None:
        entry = JournalEntry(EventType.CLUSTER_NODE_UPDATED, node_ids)
        transaction.record_entry(PLATFORM, entry, at=environment.now())

    await environment.run_transaction(record, PLATFORM)


async def mark_own_node_stopped(environment: Environment) -> None:
    """Show the own node as unreachable from now on, when its server stops."""

    def set_unreachable_and_journal(transaction: DatabaseTransaction) -> None:
        now = environment.now()
        statement = (
            update(ClusterNode)
            .where(
                col(ClusterNode.id) == environment.own_node.node_id,
                col(ClusterNode.server) == environment.process.server_id,
            )
            .values(unreachable_at=now)
        )
        if transaction.connection.execute(statement).rowcount:
            entry = JournalEntry(
                EventType.CLUSTER_NODE_UPDATED, [environment.own_node.node_id or 0]
            )
            transaction.record_entry(PLATFORM, entry, at=now)

    await environment.run_transaction(set_unreachable_and_journal, PLATFORM)
