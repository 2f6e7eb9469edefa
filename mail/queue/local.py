"""Recipients who are here: no SMTP between us and ourselves."""

from mail import pipeline, routes
from mail.compose import without_bcc
from mail.delivery import read
from mail.messagetrace import Way
from mail.performing import Rejected
from mail.pipeline import Mail
from mail.queue.jobs import Job, Result, To
from mail.routes import Loop
from models.errors import NotFound, OverQuota, RateLimited, Unavailable
from models.queue import DeliveryState
from models.world import World

REFUSALS: tuple[tuple[type[Exception], int, str], ...] = (
    (NotFound, 550, "5.1.1 Nobody has this address"),
    (OverQuota, 452, "4.2.2 The mailbox is full"),
    (RateLimited, 450, "4.2.1 Too much mail for it now"),
    (Unavailable, 451, "4.3.0 It cannot be taken now"),
    (Loop, 554, "5.4.6 It goes in circles"),
)


async def deliver(world: World, job: Job, raw: bytes) -> dict[int, Result]:
    """Put the message where each address leads; one that was put there before is known."""
    source = without_bcc(raw)
    mail = Mail(
        source,
        await read(source),
        job.sender,
        way=Way(job.queue_id),
        copied=not job.copy,
        submission_id=job.submission_id,
    )
    return {to.delivery_id: await _one(world, mail, to) for to in job.recipients}


async def _one(world: World, mail: Mail, to: To) -> Result:
    host = world.options.hostname
    outcome: object
    try:
        taken = await routes.accept(world, to.address, mail.sender)
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
    return Result(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", host)
