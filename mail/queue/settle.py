"""Writing down what came of an attempt, and telling the account."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlmodel import col

from mail import srs
from mail.delivery import Letter, Place, place, read, with_bytes
from mail.keeping import Kept
from mail.queue.bounces import report
from mail.queue.entering import Sender, hand_in, handed
from mail.queue.jobs import Job, Result, To
from models import meters
from models.errors import Invalid, OverQuota
from models.journal import ChangeKind, Entry
from models.mailboxes import Mailbox, SpecialUse
from models.queue import Delivery, DeliveryState
from models.submission import Submission, SubmissionState
from models.world import Turn, World

log = logging.getLogger(__name__)

BACKOFF = tuple(timedelta(minutes=each) for each in (1, 5, 15, 30, 60, 120, 240))  # then the last
JITTER = 0.2  # of a pause, up or down

ATTEMPTS = meters.counter(
    "merganser_queue_results", "What came of attempts to send, for each recipient.", "state"
)
OPEN = frozenset({DeliveryState.PENDING, DeliveryState.DEFERRED})
THERE = frozenset({DeliveryState.DELIVERED, DeliveryState.RELAYED})
FAILED = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED})


async def settle(world: World, job: Job, results: Mapping[int, Result], raw: bytes) -> None:
    """Write the results of these recipients, those delivered first: nothing may come between.

    Failures for good are reported to the sender, in the unit that writes them; nothing is
    reported to nobody, so a report is never answered by another. Of copies the log tells.
    """
    now = world.now()
    for result in results.values():
        ATTEMPTS.add(result.state)
    there = {key: result for key, result in results.items() if result.state in THERE}
    if there:
        await world.apply(lambda turn: _write(turn, job, there, now), job.stream)
    rest = {
        to.delivery_id: _aged(results[to.delivery_id], to, now)
        for to in job.recipients
        if to.delivery_id in results and to.delivery_id not in there
    }
    failed = {key: result for key, result in rest.items() if result.state in FAILED}
    if failed and job.copy:
        log.warning("a copy was not taken", extra={"queue": job.queue_id})
    if failed and job.sender and not job.copy:
        letter = await read(report(world, job, failed, raw))
        await _reported(world, job, rest, letter)
    elif rest:
        await world.apply(lambda turn: _write(turn, job, rest, now), job.stream)


def _aged(result: Result, to: To, now: datetime) -> Result:
    """A failure that may pass is final once the time is up."""
    if result.state is not DeliveryState.DEFERRED or now < to.expires_at:
        return result
    return Result(DeliveryState.EXPIRED, result.code, result.text, result.mx, result.tls)


async def _reported(world: World, job: Job, rest: Mapping[int, Result], letter: Letter) -> None:
    """Write the results, and report to the sender, in one unit.

    An account finds the report in its INBOX; whose mail the platform sent on is written to.
    """
    now = world.now()

    def unit(turn: Turn, kept: Kept) -> None:
        if _write(turn, job, rest, now):
            if job.user_id is None:
                _send_back(turn, job, letter, kept)
            else:
                _file(turn, job, (letter, kept), job.user_id)

    await with_bytes(world, job.tenant_id, letter, unit, job.stream)


def _send_back(turn: Turn, job: Job, letter: Letter, kept: Kept) -> None:
    """Queue a report for the first sender, from nobody."""
    to, local = job.sender, job.sender.rpartition("@")[0]
    if srs.is_ours(local):
        with suppress(Invalid):  # it is another's, who sent it on to us
            to = srs.origin(turn.world, local)
    hand_in(turn, Sender(None, job.tenant_id), handed(turn, letter, kept, "", [to]))


def _file(turn: Turn, job: Job, mail: tuple[Letter, Kept], user_id: int) -> None:
    inbox = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == SpecialUse.INBOX
    )
    mailbox_id = turn.connection.execute(inbox).scalar()
    if mailbox_id is None:
        log.warning("no INBOX for a report", extra={"user": user_id, "queue": job.queue_id})
        return
    to = Place(
        user_id,
        mailbox_id,
        turn.world.now(),
        envelope_from="",
        envelope_to=[job.sender],
    )
    before = dict(turn.reached)
    try:
        with turn.connection.begin_nested():
            place(turn, *mail, to)
    except OverQuota:  # the state of the submission still tells
        turn.reached.clear()
        turn.reached.update(before)  # its number went back
        log.warning("no room for a report", extra={"user": user_id, "queue": job.queue_id})


def _write(turn: Turn, job: Job, results: Mapping[int, Result], now: datetime) -> bool:
    """Write results as far as the lease still holds; whether it held for all of them."""
    chance = int.from_bytes(turn.world.random(4)) / 2**32
    written = 0
    for to in job.recipients:
        if result := results.get(to.delivery_id):
            held = update(Delivery).where(
                col(Delivery.id) == to.delivery_id, col(Delivery.lease) == job.lease
            )
            values = _values(result, to, now, chance)
            written += turn.connection.execute(held.values(**values)).rowcount
    if written < len(results):
        lost = len(results) - written
        log.warning("a lease was lost", extra={"queue": job.queue_id, "recipients": lost})
    if written:
        announce(turn, job.stream, job.submission_id, at=now)
    return written == len(results)


def _values(result: Result, to: To, now: datetime, chance: float) -> dict[str, object]:
    deferred = result.state is DeliveryState.DEFERRED
    values: dict[str, object] = {
        "state": result.state,
        "lease": None,
        "leased_until": None,
        "next_at": min(now + pause(to.attempts, chance), to.expires_at) if deferred else None,
        "last_code": result.code,
        "last_response": result.text,
        "mx": result.mx,
        "tls": result.tls,
        "delivered_at": now if result.state in THERE else None,
    }
    if not (result.after_dot or result.state in THERE):
        values["final_dot_at"] = None  # what came back was no: the message is not there
    return values


def pause(attempts: int, chance: float) -> timedelta:
    """How long to wait after so many attempts; `chance` is from 0 up to 1."""
    usual = BACKOFF[min(attempts, len(BACKOFF)) - 1]
    return usual * (1 - JITTER + 2 * JITTER * chance)


def announce(turn: Turn, stream: int, submission_id: int, *, at: datetime) -> SubmissionState:
    """Bring a submission's state up to its deliveries, and write its change into the journal."""
    theirs = select(col(Delivery.state), col(Delivery.attempts)).where(
        col(Delivery.submission_id) == submission_id
    )
    rows = turn.connection.execute(theirs).all()
    asked = select(col(Submission.state)).where(col(Submission.id) == submission_id)
    now = turn.connection.execute(asked).scalar_one()
    state = summed([row.state for row in rows], now, tried=any(row.attempts for row in rows))
    this = update(Submission).where(col(Submission.id) == submission_id)
    turn.connection.execute(this.values(state=state))
    entry = Entry(ChangeKind.SUBMISSION_CHANGED, [submission_id], {"state": state.value})
    turn.record(stream, entry, at=at)
    return state


def summed(
    states: Sequence[DeliveryState], now: SubmissionState, *, tried: bool
) -> SubmissionState:
    """The state of a submission whose deliveries have these. Untried it stays what it is."""
    found = set(states)
    if found & OPEN:
        return SubmissionState.SENDING if tried else now
    if found <= {DeliveryState.CANCELLED}:
        return SubmissionState.CANCELLED
    if found <= THERE:
        return SubmissionState.SENT
    return SubmissionState.PARTIAL if found & THERE else SubmissionState.FAILED
