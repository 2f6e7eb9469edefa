"""The work of one process of each server: heartbeat, observation of other nodes, and probes."""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, select, update
from sqlmodel import col

from models.cluster.nodes import ClusterNode, NodeKind, UserAffinity
from models.cluster.own_node import NodeAddress
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.registration import Heartbeat, HeartbeatObserver
from models.store.columns import ColumnRow
from resolvers.cluster.front_probes import PROBE_INTERVAL_SECONDS, probe_and_store_results
from resolvers.cluster.registration import (
    HEARTBEAT_SECONDS,
    UNREACHABLE_AFTER_SECONDS,
    increment_heartbeat_and_load_nodes,
)

log = logging.getLogger(__name__)

CLEANUP_INTERVAL_SECONDS = 60.0
NO_HEARTBEAT = "No heartbeat for 5 seconds."
_COLUMNS = frozenset(
    {"id", "kind", "server", "host", "port", "heartbeat_count", "unreachable_at",
     "last_heartbeat_at", "last_failure", "ip_addresses"}
)  # fmt: skip


async def keep_node_registered_forever(environment: Environment, address: NodeAddress) -> None:
    """Write the heartbeat of the own node every second, and watch the other nodes.

    Exactly one process of a server runs it, until it is cancelled. Without a database it tries
    again each second.
    """
    worker = _NodeWorker(environment, address)
    try:
        while True:
            began_at = time.monotonic()
            await worker.run_once_and_log_failures()
            spent_seconds = time.monotonic() - began_at
            await asyncio.sleep(max(HEARTBEAT_SECONDS - spent_seconds, HEARTBEAT_SECONDS / 4))
    finally:
        await worker.cancel_probes()


class _NodeWorker:
    """The nodes as one server observes them."""

    def __init__(self, environment: Environment, address: NodeAddress) -> None:
        self._environment = environment
        self._address = address
        self._observer = HeartbeatObserver(HEARTBEAT_SECONDS, UNREACHABLE_AFTER_SECONDS)
        self._probe_task: asyncio.Task[None] | None = None
        self._next_probe_at = 0.0  # seconds of the monotonic clock
        self._next_cleanup_at = time.monotonic() + CLEANUP_INTERVAL_SECONDS
        self._is_failing = False

    async def run_once_and_log_failures(self) -> None:
        """Write a heartbeat, and look at the other nodes once."""
        try:
            await self._run_once()
            self._is_failing = False
        except Exception:  # in a database outage: the next round repeats it
            if not self._is_failing:
                log.exception("Could not write the heartbeat of the node")
            self._is_failing = True

    async def cancel_probes(self) -> None:
        """Cancel running probes, and wait for their end."""
        if self._probe_task is not None:
            self._probe_task.cancel()
            await asyncio.wait([self._probe_task])

    async def _run_once(self) -> None:
        environment = self._environment
        rows = await increment_heartbeat_and_load_nodes(environment, self._address, _COLUMNS)
        own_id = environment.own_node.node_id
        await self._mark_unreachable_nodes([row for row in rows if row.id != own_id])
        self._start_probes_if_due(rows)
        if time.monotonic() >= self._next_cleanup_at:
            self._next_cleanup_at = time.monotonic() + CLEANUP_INTERVAL_SECONDS
            await delete_stale_nodes_and_ended_pins(environment)

    async def _mark_unreachable_nodes(self, other_rows: Sequence[ColumnRow]) -> None:
        rows_by_id = {row.id: row for row in other_rows if row.kind == NodeKind.BACKEND}
        heartbeats = [Heartbeat(row.id, row.heartbeat_count, "", 0) for row in rows_by_id.values()]
        for dead in self._observer.note_heartbeats_and_find_dead(heartbeats, is_one_machine=False):
            row = rows_by_id[dead.process_id]
            if row.unreachable_at is None and await _mark_unreachable_unless_heartbeat_changed(
                self._environment, row
            ):
                extra = {"node": f"{row.host}:{row.port}", "reason": NO_HEARTBEAT}
                log.warning("Node is unreachable", extra=extra)

    def _start_probes_if_due(self, rows: Sequence[ColumnRow]) -> None:
        """Start the probes of load balancers in the background.

        Only the reachable server with the lowest id runs them. A new load balancer is probed at
        once.
        """
        fronts = [row for row in rows if row.kind == NodeKind.FRONT]
        is_new = any(not row.last_heartbeat_at and not row.last_failure for row in fronts)
        is_busy = self._probe_task is not None and not self._probe_task.done()
        if not fronts or is_busy or not (is_new or time.monotonic() >= self._next_probe_at):
            return
        own_id = self._environment.own_node.node_id or 0
        server_ids = [row.id for row in rows if row.server and row.unreachable_at is None]
        if own_id == min([own_id, *server_ids]):
            self._next_probe_at = time.monotonic() + PROBE_INTERVAL_SECONDS
            self._probe_task = asyncio.create_task(
                probe_and_store_results(self._environment, fronts)
            )


async def _mark_unreachable_unless_heartbeat_changed(
    environment: Environment, row: ColumnRow
) -> bool:
    """Mark a node as unreachable unless its heartbeat has changed; return True if it was marked."""

    def mark_unless_heartbeat_changed(transaction: DatabaseTransaction) -> bool:
        now = environment.now()
        statement = (
            update(ClusterNode)
            .where(
                col(ClusterNode.id) == row.id,
                col(ClusterNode.heartbeat_count) == row.heartbeat_count,
                col(ClusterNode.unreachable_at).is_(None),
            )
            .values(unreachable_at=now, last_failure_at=now, last_failure=NO_HEARTBEAT)
        )
        if not transaction.connection.execute(statement).rowcount:
            return False
        entry = JournalEntry(EventType.CLUSTER_NODE_UPDATED, [row.id])
        transaction.record_entry(PLATFORM, entry, at=now)
        return True

    return await environment.run_transaction(mark_unless_heartbeat_changed, PLATFORM)


async def delete_stale_nodes_and_ended_pins(environment: Environment) -> None:
    """Delete nodes of servers that stopped long ago, and pins whose time is over.

    Nodes that an administrator added stay.
    """
    retention: timedelta = environment.options.cluster_node_retention

    def delete_and_journal_nodes_and_pins(transaction: DatabaseTransaction) -> list[int]:
        now, connection = environment.now(), transaction.connection
        is_stale = ~col(ClusterNode.is_added), col(ClusterNode.unreachable_at) < now - retention
        ids = list(connection.execute(select(col(ClusterNode.id)).where(*is_stale)).scalars())
        if ids:
            connection.execute(delete(ClusterNode).where(*is_stale))
            entry = JournalEntry(EventType.CLUSTER_NODE_DELETED, ids)
            transaction.record_entry(PLATFORM, entry, at=now)
        connection.execute(delete(UserAffinity).where(col(UserAffinity.expires_at) <= now))
        return ids

    if ids := await environment.run_transaction(delete_and_journal_nodes_and_pins, PLATFORM):
        log.info("Stale nodes deleted", extra={"count": len(ids)})
