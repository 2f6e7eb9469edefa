"""The state of the queue worker: lanes, connections and pacing."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mail.envelope.delivery_jobs import (
    DeliveryJob,
    QueueLimits,
)
from mail.outbound.accepted_results import AcceptedResults
from mail.outbound.connection_pool import SmtpConnectionPool
from mail.outbound.destination_pacing import DestinationPacing
from mail.outbound.tls_client import TlsContexts
from mail.queue import recipient_leases
from mail.queue.destination_order import LineCursor
from mail.routing.mx_hosts import OutboundSettings
from mail.routing.route_snapshot import RouteCache
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction, Environment

DEFAULT_LIMITS = QueueLimits()


@dataclass(eq=False)
class DestinationLane:
    """Jobs for one domain, processed one after another."""

    domain: str
    jobs: list[DeliveryJob]  # unfinished jobs; the first one without recipients that have a result
    has_sent_dot: bool = False  # the final dot may be sent, so a stop must wait for the reply
    task: "asyncio.Task[None] | None" = None


@dataclass
class QueueWorker:
    """The state of a queue worker: lanes, connections and pacing."""

    environment: Environment
    route: OutboundSettings
    limits: QueueLimits = DEFAULT_LIMITS
    accepted_results: AcceptedResults = field(default_factory=AcceptedResults)
    lanes: set[DestinationLane] = field(default_factory=set)
    lane_slots: asyncio.Semaphore = field(init=False)
    is_stopping: bool = False
    has_blocked: bool = False  # the last poll left out due recipients, for lack of capacity
    lane_ended: asyncio.Event = field(default_factory=asyncio.Event)  # set when a lane ends
    cursor: LineCursor = field(default_factory=LineCursor)
    pool: SmtpConnectionPool = field(init=False)
    route_cache: RouteCache = field(init=False)
    pacing: DestinationPacing = field(
        default_factory=lambda: DestinationPacing(asyncio.get_running_loop().time)
    )

    def __post_init__(self) -> None:
        self.lane_slots = asyncio.Semaphore(self.limits.max_destinations)
        contexts = TlsContexts(self.route.trusted_context)
        self.pool = SmtpConnectionPool(
            self.environment, self.limits, contexts, lambda: len(self.lanes)
        )
        self.route_cache = RouteCache(self.environment, self.route)


@asynccontextmanager
async def process_registered_with_lane_leases(worker: QueueWorker) -> AsyncGenerator[None]:
    """Keep this process registered, and the leases of its lanes, until the end of the block."""

    def restore_leases(transaction: DatabaseTransaction) -> None:
        recipient_leases.restore_leases(
            transaction, [job for lane in worker.lanes for job in lane.jobs]
        )

    def leased_delivery_ids() -> list[int]:
        jobs = (job for lane in worker.lanes for job in lane.jobs)
        return [recipient.delivery_id for job in jobs for recipient in job.recipients]

    process = worker.environment.process
    process.restore_leases.append(restore_leases)
    process.sending_entry_ids.append(leased_delivery_ids)
    try:
        async with leases.keep_process_registered(worker.environment):
            yield
    finally:
        process.restore_leases.remove(restore_leases)
        process.sending_entry_ids.remove(leased_delivery_ids)
