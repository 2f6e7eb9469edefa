"""The queue worker: leases due recipients and delivers to several destinations at once."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mail.delivery import local_delivery
from mail.envelope.delivery_jobs import (
    MAX_TRANSACTION_RECIPIENTS,
    DeliveryJob,
    DeliveryResult,
    QueueLimits,
    split_into_batches,
)
from mail.outbound import destination_pacing, local_sink, relay_delivery, smtp_client
from mail.outbound.accepted_results import AcceptedResults
from mail.outbound.dkim_signing import sign_if_submitted_here
from mail.outbound.smtp_client import LeaseLost, ServerFailed
from mail.outbound.wire_format import WireMessage
from mail.outbound.wire_message import load_wire_message
from mail.outbound.worker_state import (
    DEFAULT_LIMITS,
    DestinationLane,
    QueueWorker,
    process_registered_with_lane_leases,
)
from mail.queue import dsn_requests, message_body, pending_reports, recipient_leases
from mail.queue.delivery_results import record_results_and_report
from mail.queue.destination_order import LAST_RANK, ClaimCapacity
from mail.recipients import recipient_routes
from mail.routing import route_selection, tls_requirements
from mail.routing.mx_hosts import NextHop, OutboundSettings, Unroutable
from mail.routing.route_snapshot import RouteCache
from mail.runtime.background_loops import run_loop_in_background_during_block
from mail.storage.blobs.errors import CorruptBlob
from models.events.wakeups import QUEUE
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.store.outages import StorageUnavailable

log = logging.getLogger(__name__)

MIN_PAUSE = 0.05  # seconds; due recipients may be locked by another worker
FIRST_WRITE_RETRY, MAX_WRITE_RETRY = 0.2, 5.0  # seconds between attempts to write results
LEASE_LOST_TEXT = "Lease passed to another worker"


async def run_until_stopped(
    environment: Environment,
    route: OutboundSettings,
    *,
    stop: asyncio.Event,
    limits: QueueLimits = DEFAULT_LIMITS,
    accepted_results_path: Path | None = None,
) -> None:
    """Deliver queued mail until `stop` is set. Then unattempted recipients return to the queue.

    It polls after a wake-up, at the time of the next attempt, and every `poll_interval` seconds.
    """
    with (
        closing(AcceptedResults(accepted_results_path)) as accepted_results,
        environment.wakeups.follow([QUEUE]) as wake_up,
    ):
        worker = QueueWorker(environment, route, limits, accepted_results)
        async with (
            process_registered_with_lane_leases(worker),
            run_loop_in_background_during_block(
                pending_reports.send_owed_reports_forever(environment, limits)
            ),
        ):
            try:
                while not stop.is_set():
                    wake_up.clear()  # before the poll, so that a later wake-up is not lost
                    worker.lane_ended.clear()
                    seconds = await _start_due_jobs_and_get_wait_seconds(worker)
                    await _wait_for_work(worker, (wake_up, stop), seconds)
            finally:
                await _stop_lanes(worker, is_graceful=stop.is_set())


async def _start_due_jobs_and_get_wait_seconds(worker: QueueWorker) -> float:
    """Lease due recipients and start lanes for them. Returns the seconds until the next poll."""
    limits = worker.limits
    worker.has_blocked = len(worker.lanes) >= limits.max_destinations
    if worker.has_blocked:
        return limits.poll_interval
    try:
        claimed = await recipient_leases.release_held_and_claim_due_jobs(
            worker.environment, limits, _free_capacity(worker), worker.cursor
        )
    except Exception:  # the database may be available at the next poll
        log.exception("Could not read the queue")
        return limits.poll_interval
    if claimed.uncertain_count:
        log.warning(
            "Messages may be delivered twice", extra={"recipients": claimed.uncertain_count}
        )
    worker.has_blocked = claimed.has_more_blocked
    by_domain: defaultdict[str, list[DeliveryJob]] = defaultdict(list)
    for job in claimed.jobs:
        by_domain[job.domain].append(job)
    if by_domain:
        # reads changed routes again
        worker.route_cache = RouteCache(worker.environment, worker.route)
    for domain, jobs in by_domain.items():
        lane = DestinationLane(domain, jobs)
        lane.task = asyncio.create_task(_run_lane(worker, lane))
        worker.lanes.add(lane)
    if claimed.has_more:
        return 0.0
    if claimed.next_at is None:
        return limits.poll_interval
    seconds_until_next = (claimed.next_at - worker.environment.now()).total_seconds()
    return min(max(seconds_until_next, MIN_PAUSE), limits.poll_interval)


def _free_capacity(worker: QueueWorker) -> ClaimCapacity:
    """The capacity for new jobs. A quarter of the lanes is kept for ranks other than the last."""
    limits = worker.limits
    last_rank_count = sum(lane.jobs[0].rank == LAST_RANK for lane in worker.lanes if lane.jobs)
    return ClaimCapacity(
        limits.claim_size,
        limits.max_destinations - len(worker.lanes),
        max(limits.max_destinations - limits.max_destinations // 4 - last_rank_count, 0),
        _domains_at_connection_limit(worker),
    )


def _domains_at_connection_limit(worker: QueueWorker) -> list[str]:
    """Domains that have as many connections as allowed."""
    if worker.route.next_hop:
        return []
    lane_counts = Counter(lane.domain for lane in worker.lanes)
    configured_maximum = worker.environment.options.outbound_connections_per_domain
    max_connections = worker.limits.max_connections_per_domain or configured_maximum
    return [domain for domain, count in lane_counts.items() if count >= max_connections]


async def _wait_for_work(
    worker: QueueWorker, events: Sequence[asyncio.Event], timeout_seconds: float
) -> None:
    """Wait for an event, the timeout, or the end of a lane if there is no capacity left."""
    is_full = worker.has_blocked or len(worker.lanes) >= worker.limits.max_destinations
    awaited = [*events, worker.lane_ended] if is_full else events
    waits = [asyncio.ensure_future(event.wait()) for event in awaited]
    try:
        await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()


async def _run_lane(worker: QueueWorker, lane: DestinationLane) -> None:
    """Process the jobs of a lane in order."""
    try:
        async with worker.lane_slots:
            while lane.jobs and not worker.is_stopping:
                await _attempt_job(worker, lane, lane.jobs[0])
                lane.has_sent_dot = False
                lane.jobs.pop(0)
    finally:
        if not lane.jobs:
            worker.lanes.discard(lane)
            worker.lane_ended.set()


async def _attempt_job(worker: QueueWorker, lane: DestinationLane, job: DeliveryJob) -> None:
    """Attempt a job. Errors defer its recipients and are logged."""
    try:
        await _deliver_job(worker, lane, job)
    except LeaseLost:
        log.warning(LEASE_LOST_TEXT, extra={"queue": job.queue_id})
    except CorruptBlob as damage:  # a repair or restore is possible before the message expires
        extra = {"queue": job.queue_id, "damage": str(damage)}
        log.warning("A queued message is damaged", extra=extra)
        await _defer_current_job(worker, lane, "4.3.0 The stored message is damaged")
    except Exception:  # a failing message must not stop the others
        log.exception("Delivery failed with an internal error", extra={"queue": job.queue_id})
        await _defer_current_job(worker, lane, "4.3.0 Internal error")


async def _defer_current_job(worker: QueueWorker, lane: DestinationLane, reason: str) -> None:
    """Defer all recipients of the current job of a lane."""
    job = lane.jobs[0]
    result = DeliveryResult(DeliveryState.DEFERRED, 451, reason, is_uncertain=lane.has_sent_dot)
    try:
        await _record_and_remove_recipients(worker, lane, _same_result_for_all(job, result), b"")
    except Exception:  # the database does not answer
        log.exception("Could not write the delivery results", extra={"queue": job.queue_id})
        recipient_leases.schedule_release_after_error(worker.environment, lane.jobs[0])


async def _deliver_job(worker: QueueWorker, lane: DestinationLane, job: DeliveryJob) -> None:
    """Deliver a job: locally, to the sink, to a webhook, or by SMTP over each route."""
    environment = worker.environment
    if job.endpoint_url is None and (
        job.has_arrival_record  # its domain was local, and may have been deleted
        or await worker.route_cache.load_unless_recently_loaded(
            "ours", job.domain, lambda: recipient_routes.is_local_domain(environment, job.domain)
        )
    ):
        raw_message = await message_body.read_message(environment, job)
        await _record_and_remove_recipients(
            worker,
            lane,
            await local_delivery.deliver_to_local_recipients(environment, job, raw_message),
            raw_message,
        )
        job = lane.jobs[0]
        if not job.recipients:
            return
    sink_folder = environment.options.offline_sink
    if sink_folder is not None or relay_delivery.is_webhook(job):
        message = await sign_if_submitted_here(
            environment, job, await load_wire_message(environment, job)
        )
        if sink_folder is not None:
            result = await local_sink.store_message(sink_folder, job, message)
        else:
            policy = relay_delivery.forward_network_policy(
                environment, worker.route.trusted_context
            )
            result = await relay_delivery.post_to_webhook(environment, job, message, policy)
        await _record_and_remove_recipients(
            worker, lane, _same_result_for_all(job, result), message.header_or_whole_message_bytes
        )
        return
    parts = await _group_by_route_and_wait_for_slots(worker, job)
    if not parts:
        return
    message = await sign_if_submitted_here(
        environment, job, await load_wire_message(environment, job)
    )
    for part in parts:
        is_whole_job = len(part.recipients) == len(job.recipients)
        part_job = job if is_whole_job else replace(job, recipients=part.recipients)
        await _send_route_part_to_first_accepting_host(worker, lane, part_job, (part, message))


async def _record_and_remove_recipients(
    worker: QueueWorker,
    lane: DestinationLane,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    raw_message: bytes,
) -> None:
    """Record results of the current job and remove these recipients from it."""
    if results_by_delivery_id:
        await _record_with_retries(worker, lane.jobs[0], results_by_delivery_id, raw_message)
        lane.jobs[0] = local_delivery.job_without_results(lane.jobs[0], results_by_delivery_id)


async def _record_with_retries(
    worker: QueueWorker,
    job: DeliveryJob,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    raw_message: bytes,
) -> None:
    """Record results, and repeat that while the database is unavailable.

    Otherwise a message that another server accepted would be sent a second time.
    """
    seconds = FIRST_WRITE_RETRY
    while True:
        try:
            await record_results_and_report(
                worker.environment, job, results_by_delivery_id, raw_message
            )
        except StorageUnavailable:
            log.warning(
                "Delivery results are waiting for the database", extra={"queue": job.queue_id}
            )
            await asyncio.sleep(seconds)
            seconds = min(seconds * 2, MAX_WRITE_RETRY)
        else:
            return


def _without_recorded(lane: DestinationLane, job: DeliveryJob) -> DeliveryJob:
    """The job, or part of the current job, without recipients that have a recorded result."""
    if job is lane.jobs[0]:
        return job
    remaining_ids = {recipient.delivery_id for recipient in lane.jobs[0].recipients}
    return replace(
        job,
        recipients=[
            recipient for recipient in job.recipients if recipient.delivery_id in remaining_ids
        ],
    )


async def _group_by_route_and_wait_for_slots(
    worker: QueueWorker, job: DeliveryJob
) -> list[route_selection.RoutePart]:
    """Group the recipients of a job by route, and wait for their delivery slots.

    Recipients with a slot that is too late return to the queue.
    """
    if job.endpoint_url is None:
        parts = await route_selection.group_recipients_by_route(worker.route_cache, job)
    else:
        parts = [await _forward_relay_route_part(worker, job)]
    environment = worker.environment
    rate = environment.options.outbound_messages_per_minute_per_domain
    if not rate:
        return parts
    ready: list[route_selection.RoutePart] = []
    for part in parts:
        seconds = 0.0
        if isinstance(part.route, route_selection.RecipientRoute) and part.route.destination:
            seconds = await destination_pacing.reserve_slot_and_get_wait_seconds(
                environment, part.route.destination, rate
            )
        if seconds >= destination_pacing.MAX_SLOT_WAIT:
            postponed_job = replace(job, recipients=part.recipients)
            await recipient_leases.release_unattempted(
                environment, [postponed_job], delays=[seconds]
            )
            continue
        if seconds:
            await asyncio.sleep(seconds)
        ready.append(part)
    return ready


async def _forward_relay_route_part(
    worker: QueueWorker, job: DeliveryJob
) -> route_selection.RoutePart:
    """The route part of a job that goes to the relay of a forward."""
    policy = relay_delivery.forward_network_policy(worker.environment, worker.route.trusted_context)
    try:
        hosts = await relay_delivery.resolve_relay(worker.environment, job, policy)
    except Unroutable as problem:
        return route_selection.RoutePart(job.recipients, problem)
    servers = tls_requirements.enforce_sender_tls(hosts, [], requires_tls=job.requires_tls)
    return route_selection.RoutePart(
        job.recipients, route_selection.RecipientRoute(servers, destination=str(job.endpoint_url))
    )


async def _send_route_part_to_first_accepting_host(
    worker: QueueWorker,
    lane: DestinationLane,
    job: DeliveryJob,
    part_and_message: tuple[route_selection.RoutePart, WireMessage],
) -> None:
    """Send a part of a job to the first host of its route that accepts it."""
    part, message = part_and_message
    if isinstance(part.route, Unroutable):
        last_result = DeliveryResult.from_refusal(part.route.reply_code, part.route.reply_text)
        await _record_and_remove_recipients(
            worker,
            lane,
            _same_result_for_all(job, last_result),
            message.header_or_whole_message_bytes,
        )
        return
    destination, started_at = part.route.destination, worker.environment.now()
    # no attempt is made while the destination is paused
    if paused_result := worker.pacing.paused_result_or_none(destination, job.flushed_at):
        await _record_and_remove_recipients(
            worker,
            lane,
            _same_result_for_all(job, paused_result),
            message.header_or_whole_message_bytes,
        )
        return
    last_result = DeliveryResult.from_refusal(451, "4.4.1 No MX host responded")
    failures = list[ServerFailed]()
    for host in part.route.next_hops:
        try:
            await _send_to_host(worker, lane, job, (host, message))
        except ServerFailed as problem:  # the next host may accept it
            last_result = problem.deferred_result(host.name)
            failures.append(problem)
        else:
            worker.pacing.end_pause(destination)
            return
    if failures and all(problem.accepts_no_mail for problem in failures):
        last_result = replace(last_result, state=DeliveryState.BOUNCED)
    elif all(problem.is_unreachable for problem in failures):
        worker.pacing.pause_destination(destination, last_result, started_at)
    await _record_and_remove_recipients(
        worker,
        lane,
        _same_result_for_all(_without_recorded(lane, job), last_result),
        message.header_or_whole_message_bytes,
    )


async def _send_to_host(
    worker: QueueWorker,
    lane: DestinationLane,
    job: DeliveryJob,
    host_and_message: tuple[NextHop, WireMessage],
) -> None:
    """Send the remaining recipients of a job to a host. Raises ServerFailed.

    If a reused connection fails, or one that has delivered a part, it connects again.
    """
    host, message = host_and_message
    has_failed = False
    while True:
        message_count, remaining_job = 0, _without_recorded(lane, job)
        try:
            async with worker.pool.lease_connection(host) as channel:
                message_count = channel.message_count
                await _transmit_and_record_job(worker, lane, channel, (remaining_job, message))
                return
        except ServerFailed:
            has_progress = len(_without_recorded(lane, job).recipients) < len(
                remaining_job.recipients
            )
            if not (message_count or has_progress):
                raise
            if has_failed and not has_progress:
                error_text = f"4.4.2 {host.name} closes new connections"
                raise ServerFailed(451, error_text, is_unreachable=True) from None
            has_failed = not has_progress
            await worker.pool.discard_idle(host)


async def _transmit_and_record_job(
    worker: QueueWorker,
    lane: DestinationLane,
    channel: smtp_client.SmtpConnection,
    job_and_message: tuple[DeliveryJob, WireMessage],
) -> None:
    """Send a job over a connection, in batches, and record the results after each batch.

    Raises ServerFailed if the server ends the session, and LeaseLost.
    """
    job, message = job_and_message

    async def mark_before_final_dot(delivery_ids: Sequence[int]) -> None:
        if not await recipient_leases.mark_final_dot_if_leased(
            worker.environment, job, delivery_ids
        ):
            raise LeaseLost
        worker.environment.reach_fault_point("dot")
        lane.has_sent_dot = True

    dsn_parameters = (
        dsn_requests.mail_from_parameters(worker.environment, job)
        if channel.has_extension("dsn")
        else None
    )
    batches = [
        (part, dsn_parameters)
        for part in split_into_batches(job.recipients, MAX_TRANSACTION_RECIPIENTS)
    ]
    while batches:
        recipients, parameters = batches.pop(0)
        results = await smtp_client.transmit_message(
            channel, message, recipients, mark_before_final_dot, parameters
        )
        worker.accepted_results.add(job.lease, results)
        worker.environment.reach_fault_point("sent")
        await _record_and_remove_recipients(
            worker, lane, results, message.header_or_whole_message_bytes
        )
        worker.accepted_results.remove(results)
        lane.has_sent_dot = False
        if unanswered := [
            recipient for recipient in recipients if recipient.delivery_id not in results
        ]:
            # the server refuses the DSN parameters that it offers
            batches.insert(0, (unanswered, None))
        if batches and not await channel.try_reset_for_next_message():
            raise ServerFailed(451, f"4.4.2 {channel.host.name} closed the connection")


def _same_result_for_all(job: DeliveryJob, result: DeliveryResult) -> dict[int, DeliveryResult]:
    """The result for every recipient of a job, by delivery id."""
    return {recipient.delivery_id: result for recipient in job.recipients}


async def _stop_lanes(worker: QueueWorker, *, is_graceful: bool) -> None:
    """Stop all lanes and close the connections.

    If graceful, lanes that have sent the final dot wait for the reply, and unattempted recipients
    return to the queue.
    """
    worker.is_stopping = True
    lanes = list(worker.lanes)
    for lane in lanes:
        if lane.task and not (is_graceful and lane.has_sent_dot):
            lane.task.cancel()
    await asyncio.gather(*(lane.task for lane in lanes if lane.task), return_exceptions=True)
    await worker.pool.close()
    unfinished_jobs = [job for lane in lanes for job in lane.jobs]
    if unfinished_jobs and is_graceful:
        await recipient_leases.release_unattempted(worker.environment, unfinished_jobs)
