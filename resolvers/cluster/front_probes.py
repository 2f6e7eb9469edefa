"""Probes of load balancers (FRONT nodes): a TCP connection every five seconds."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from mail.network.outbound_http import resolve_by_system
from models.cluster.nodes import ClusterNode
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow

log = logging.getLogger(__name__)

PROBE_INTERVAL_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 2.0  # for DNS and the connection together
MAX_PROBES = 20  # at once
MAX_ADDRESSES = 64  # of one host


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of a probe. `failure` is None if the load balancer accepted the connection."""

    addresses: Sequence[str]
    failure: str | None


async def probe_and_store_results(environment: Environment, rows: Sequence[ColumnRow]) -> None:
    """Probe load balancers, and store the results. Logs errors of the database."""
    slots = asyncio.Semaphore(MAX_PROBES)
    try:
        results = await asyncio.gather(*(_probe_in_slot(slots, row) for row in rows))
        await _store_probe_results(environment, list(zip(rows, results, strict=True)))
    except Exception:  # the next probes repeat it
        log.exception("Could not store the probes of load balancers")


async def _probe_in_slot(slots: asyncio.Semaphore, row: ColumnRow) -> ProbeResult:
    async with slots:
        return await probe_address(row.host, row.port)


async def probe_address(host: str, port: int) -> ProbeResult:
    """Connect to an address, and close the connection. The addresses are empty if DNS fails."""
    addresses: list[str] = []
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            addresses = sorted(set(await resolve_by_system(host, port)))[:MAX_ADDRESSES]
            _, writer = await asyncio.open_connection(addresses[0] if addresses else host, port)
    except TimeoutError:
        return ProbeResult(addresses, "No response within 2 seconds.")
    except OSError as problem:
        return ProbeResult(addresses, f"{problem.strerror or problem}.".replace("..", "."))
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            await writer.wait_closed()
    return ProbeResult(addresses, None)


async def _store_probe_results(
    environment: Environment, results: Sequence[tuple[ColumnRow, ProbeResult]]
) -> None:
    changed = [
        row for row, result in results if (row.unreachable_at is None) != (not result.failure)
    ]

    def update_nodes_and_journal_changes(transaction: DatabaseTransaction) -> None:
        now = environment.now()
        for row, result in results:
            statement = update(ClusterNode).where(col(ClusterNode.id) == row.id)
            transaction.connection.execute(statement.values(_probe_values(row, result, now)))
        if changed:
            entry = JournalEntry(EventType.CLUSTER_NODE_UPDATED, [row.id for row in changed])
            transaction.record_entry(PLATFORM, entry, at=now)

    if changed:
        await environment.run_transaction(update_nodes_and_journal_changes, PLATFORM)
    else:
        await environment.run_heartbeat_transaction(update_nodes_and_journal_changes)
    results_by_id = {row.id: result for row, result in results}
    for row in changed:
        extra = {"node": f"{row.host}:{row.port}", "reason": results_by_id[row.id].failure}
        if results_by_id[row.id].failure:
            log.warning("Load balancer is unreachable", extra=extra)
        else:
            log.info("Load balancer is reachable", extra=extra)


def _probe_values(row: ColumnRow, result: ProbeResult, now: Any) -> dict[str, Any]:
    """Return the columns to store after a probe. If DNS fails, the last addresses stay."""
    values: dict[str, Any] = {}
    usable = [text for text in result.addresses if _is_host_address(text)]
    if usable and usable != row.ip_addresses:  # the last addresses stay if DNS fails
        values["ip_addresses"] = usable
    if result.failure is None:
        return {**values, "last_heartbeat_at": now, "unreachable_at": None}
    return {
        **values,
        "unreachable_at": row.unreachable_at or now,
        "last_failure_at": now,
        "last_failure": result.failure[:255],
    }


def _is_host_address(text: str) -> bool:
    """True for the address of a single host: neither unspecified nor multicast."""
    address = ip_address(text.partition("%")[0])
    return not (address.is_unspecified or address.is_multicast)
