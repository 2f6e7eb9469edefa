"""Delivery of queue entries to recipients on this server, without SMTP."""

from collections.abc import Mapping
from dataclasses import replace

from mail.compose.message_builder import without_bcc
from mail.delivery import pipeline, success_dsn
from mail.delivery.plan_execution import Rejected
from mail.envelope.delivery_jobs import Job, Result, To
from mail.inbound.incoming_message import Mail
from mail.queue import dsn_requests
from mail.recipients import recipient_routes
from mail.recipients.recipient_routes import Loop
from mail.storage.message_trace import Way
from mail.storage.received_messages import read
from models.errors import NotFound, OverQuota, RateLimited, Unavailable
from models.queue.tables import DeliveryState
from models.runtime.environment import World

REFUSALS: tuple[tuple[type[Exception], int, str], ...] = (
    (NotFound, 550, "5.1.1 Nobody has this address"),
    (OverQuota, 452, "4.2.2 The mailbox is full"),
    (RateLimited, 450, "4.2.1 Too much mail for it now"),
    (Unavailable, 451, "4.3.0 It cannot be taken now"),
    (Loop, 554, "5.4.6 It goes in circles"),
)


async def deliver(world: World, job: Job, raw: bytes) -> dict[int, Result]:
    """Deliver a message of the queue to its local recipients; return results by delivery ID.

    Recipients of other servers have no result; pass the job to `job_without_delivered` for them. A
    repeated delivery is recognized and stores nothing.
    """
    source = without_bcc(raw)
    mail = Mail(
        source,
        replace(await read(source), ours=job.ours),
        job.sender,
        way=Way(job.queue_id),
        copied=not job.copy,
        submission_id=job.submission_id,
    )
    found = {to.delivery_id: await _one(world, mail, job, to) for to in job.recipients}
    return {key: result for key, result in found.items() if result is not None}


def left(job: Job, results: Mapping[int, Result]) -> Job:
    """Return the job with only the recipients that have no result."""
    return replace(job, recipients=[to for to in job.recipients if to.delivery_id not in results])


async def _one(world: World, mail: Mail, job: Job, to: To) -> Result | None:
    """Deliver to one recipient. Returns None if the message must go to another server."""
    host = world.options.hostname
    outcome: object
    try:
        taken = await recipient_routes.accept(world, to.address, mail.sender)
        taken = replace(taken, wish=dsn_requests.of(world, job, to))
        if taken.leaves:
            return None
        (outcome,) = await pipeline.deliver(world, mail, [taken])
    except tuple(kind for kind, _, _ in REFUSALS) as refusal:
        outcome = refusal
    if isinstance(outcome, Rejected):
        return Result.refused(550, f"5.7.1 {outcome.words}", host)
    for kind, code, text in REFUSALS:
        if isinstance(outcome, kind):
            return Result.refused(code, text, host)
    if isinstance(outcome, BaseException):
        raise outcome
    done = Result(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", host)
    how = success_dsn.ends(taken)
    return replace(done, told_there=how is None, here=how)
