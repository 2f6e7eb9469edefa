"""Write the results of delivery attempts, and report them to the sender."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import bindparam, case, func, null, select, update
from sqlmodel import col

from mail.addresses import srs
from mail.envelope.delivery_jobs import Action, Job, Result, To
from mail.envelope.dsn_parameters import On
from mail.queue import dsn_requests
from mail.queue.destination_order import LAST
from mail.queue.dsn_requests import FAILED, THERE
from mail.queue.dsn_writer import report
from mail.queue.enqueue import Sender, hand_in, handed
from mail.storage.blobs.blob_writer import Kept
from mail.storage.message_insert import Letter, Place, place
from mail.storage.received_messages import read, with_all
from models.errors import Invalid, OverQuota
from models.events.journal import ChangeKind, Entry
from models.mailboxes.tables import Mailbox, SpecialUse
from models.observability import metrics
from models.queue.tables import MIDDLE, Delivery, DeliveryState
from models.runtime.environment import Turn, World
from models.runtime.options import Options
from models.store.columns import table_of
from models.store.prepared_statements import Prepared, number
from models.submission.tables import Submission, SubmissionState

log = logging.getLogger(__name__)

BACKOFF = Options().queue_backoff
JITTER = 0.2  # of the retry delay, up or down
SHARE = 0.25  # of the age of a message; a longer delay comes only from the pause of its destination
SECOND = timedelta(seconds=1)

ATTEMPTS = metrics.counter(
    "merganser_queue_results", "What came of attempts to send, for each recipient.", "state"
)
UNSAFE = "4.7."  # security status codes (RFC 3463, section 3.8)
OPEN = frozenset({DeliveryState.PENDING, DeliveryState.DEFERRED})


async def settle(world: World, job: Job, results: Mapping[int, Result], raw: bytes) -> None:
    """Write the results of the recipients of a job, and send the DSNs that they require.

    Deliveries are written first, in their own transaction, so that a crash can't repeat them. Their
    success reports follow in a second transaction; until then they are marked as owed
    (mail/queue/pending_reports.py). Other results are written together with their reports. Failed
    copies of BCC rules are only logged.
    """
    now = world.now()
    for result in results.values():
        if result.alone is None:
            ATTEMPTS.add(result.state)
    there = {key: result for key, result in results.items() if result.state in THERE}
    owed = dsn_requests.due(world, job, there, now)
    if there:
        keys = owed.get(On.SUCCESS, ())
        held = await world.apply(
            lambda transaction: _write(transaction, job, there, now, owed=keys), job.stream
        )
        if owed:
            world.fault("owed")
            owed = owed if held else {}
    rest = {
        recipient.delivery_id: _aged(results[recipient.delivery_id], recipient, now)
        for recipient in job.recipients
        if recipient.delivery_id in results and recipient.delivery_id not in there
    }
    if job.copy and any(result.state in FAILED for result in rest.values()):
        log.warning("a copy was not taken", extra={"queue": job.queue_id})
    told = dsn_requests.due(world, job, rest, now) | owed
    if told:
        await reported(world, job, rest, told, raw)
    elif rest:
        await world.apply(lambda transaction: _write(transaction, job, rest, now), job.stream)


def _aged(result: Result, to: To, now: datetime) -> Result:
    """Turn a temporary failure into EXPIRED if the recipient's time in the queue is over."""
    if result.state is not DeliveryState.DEFERRED or now < to.expires_at:
        return result
    code, text = result.code, result.text
    if text.startswith(UNSAFE):  # no connection met the TLS requirement
        code, text = 550, f"5{text[1:]}"
    return replace(result, state=DeliveryState.EXPIRED, code=code, text=text, after_dot=False)


async def reported(
    world: World,
    job: Job,
    rest: Mapping[int, Result],
    told: Mapping[On, Mapping[int, Result]],
    raw: bytes,
) -> None:
    """Write results and store the DSNs for the sender, in one transaction.

    `reports` maps each NOTIFY condition to the results to report. A user gets the DSN in INBOX; for
    other senders it is queued.
    """
    now, delayed = world.now(), told.get(On.DELAY, ())
    letters = {on: await read(report(world, job, of, raw, on)) for on, of in told.items()}

    def write(turn: Turn, blobs: Sequence[Kept]) -> None:
        held = not rest or _write(turn, job, rest, now)
        for (on, letter), report_blobs in zip(letters.items(), blobs, strict=True):
            if not (_given(turn, told[on]) if on is On.SUCCESS else held):
                continue
            if job.user_id is None:
                _send_back(turn, job, letter, report_blobs)
            else:
                _file(turn, job, (letter, report_blobs), job.user_id)
        if held and delayed:
            these = update(Delivery).where(col(Delivery.id).in_(delayed))
            turn.connection.execute(these.values(delay_told_at=now))

    await with_all(world, job.tenant_id, list(letters.values()), write, job.stream)


def _given(turn: Turn, owed: Collection[int]) -> bool:
    """Mark the success reports of these deliveries as sent.

    Returns False, and changes nothing, if another process has sent one of them.
    """
    ours = select(col(Delivery.id)).where(
        col(Delivery.id).in_(owed), col(Delivery.success_owed).is_not(None)
    )
    if len(turn.connection.execute(ours.with_for_update()).all()) < len(owed):
        return False
    these = update(Delivery).where(col(Delivery.id).in_(owed))
    turn.connection.execute(these.values(success_owed=None))
    return True


def _send_back(turn: Turn, job: Job, letter: Letter, kept: Kept) -> None:
    """Queue a DSN with an empty envelope sender for the sender of the job.

    If that is an SRS address of this server, the DSN goes to the original sender.
    """
    to, local = job.sender, job.sender.rpartition("@")[0]
    if srs.is_ours(local):
        with suppress(Invalid):  # an SRS address of another server
            to = srs.origin(turn.world, local)
    hand_in(turn, Sender(None, job.tenant_id), handed(turn, letter, kept, "", [to], ours=True))


def _file(turn: Turn, job: Job, mail: tuple[Letter, Kept], user_id: int) -> None:
    """Store a DSN in the INBOX of a user. Logs a warning if there is no INBOX or no quota left."""
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
    try:
        place(turn, *mail, to)
    except OverQuota:  # raised before any write; the submission's state shows the result
        log.warning("no room for a report", extra={"user": user_id, "queue": job.queue_id})


def _write(
    turn: Turn,
    job: Job,
    results: Mapping[int, Result],
    now: datetime,
    *,
    owed: Collection[int] = (),
) -> bool:
    """Write the results of recipients that this job still leases. True if it leases all.

    Deliveries in `owed_report_ids` are marked as owing a success report. The retry delay counts
    from the start of the transaction, not from `finished_at`, since the clock can be changed
    between them.
    """
    started = turn.world.now()
    chance = int.from_bytes(turn.world.random(4)) / 2**32
    backoff = turn.world.options.queue_backoff
    age = now - (job.begun_at or job.created_at)
    written = 0
    for to in job.recipients:
        if result := results.get(to.delivery_id):
            if result.alone is None:
                retry_at = started + pause(to.attempts, chance, backoff)
                values = _values(result, to, now, retry_at)
            else:
                retry_at = started + spared(result.alone, age, backoff)
                values = _untried(result, to, now, retry_at)
            if result.state is DeliveryState.DEFERRED:
                values["next_at"] = dsn_requests.next_at(turn.world, job, to, values["next_at"])
            if to.delivery_id in owed:
                values["success_owed"] = result.here or Action.RELAYED
            given = {f"to_{name}": value for name, value in values.items()}
            statement = _writing(tuple(sorted(values)))
            written += len(
                turn.fetched(statement, delivery=to.delivery_id, held=job.lease, **given)
            )
    if written < len(results):
        lost = len(results) - written
        log.warning("a lease was lost", extra={"queue": job.queue_id, "recipients": lost})
    if written:
        announce(turn, job.stream, job.submission_id, at=now)
    return written == len(results)


@lru_cache
def _writing(names: tuple[str, ...]) -> Prepared:
    """Prepared statement that sets these columns of a delivery if its lease is held."""
    columns = table_of(Delivery).c
    held = update(Delivery).where(
        col(Delivery.id) == number("delivery"), col(Delivery.lease) == number("held")
    )
    values: dict[str, Any] = {
        name: bindparam(f"to_{name}", type_=columns[name].type) for name in names
    }
    values["hurried_at"] = null()
    values["rank"] = case(
        (col(Delivery.rank) < MIDDLE, MIDDLE), else_=LAST
    )  # after its first attempt it yields to new messages
    return Prepared(held.values(values).returning(col(Delivery.id)))


def _values(result: Result, to: To, now: datetime, retry_at: datetime) -> dict[str, Any]:
    """Column values of a delivery for its result."""
    deferred = result.state is DeliveryState.DEFERRED
    values: dict[str, Any] = {
        "state": result.state,
        "lease": None,
        "holder": None,
        "next_at": min(retry_at, to.expires_at) if deferred else None,
        "turn_at": None,
        **({} if deferred else {"held_at": None}),
        "last_code": result.code,
        "last_response": result.text,
        "mx": result.mx,
        "tls": result.tls,
        "delivered_at": now if result.state in THERE else None,
    }
    if not (result.after_dot or result.state in THERE):
        values["final_dot_at"] = None  # the server refused the message, so it does not have it
    return values


def _untried(result: Result, to: To, now: datetime, retry_at: datetime) -> dict[str, Any]:
    """Column values for a result without an attempt, since the destination was paused.

    The attempt is not counted, and the last reply is kept.
    """
    values = {**_values(result, to, now, retry_at), "attempts": to.attempts - 1}
    if result.state is DeliveryState.DEFERRED or to.attempts > 1:
        for name in ("last_code", "last_response", "mx", "tls"):
            del values[name]
    return values


def spared(alone: timedelta, age: timedelta, backoff: Sequence[timedelta] = BACKOFF) -> timedelta:
    """Delay before the next attempt if the destination is paused.

    It is the remaining pause, or a share of the message's age if that is longer, so that old
    messages are not looked at again and again.
    """
    return max(alone, min(age * SHARE, backoff[-1]), SECOND)


def pause(attempts: int, chance: float, backoff: Sequence[timedelta] = BACKOFF) -> timedelta:
    """Delay before the next attempt, after this number of attempts.

    `jitter_fraction` is random, from 0 up to 1.
    """
    usual = backoff[min(attempts, len(backoff)) - 1]
    return usual * (1 - JITTER + 2 * JITTER * chance)


_THIS = col(Submission.id) == number("submission")
_THEIRS = Prepared(
    select(
        col(Delivery.state),
        func.max(col(Delivery.attempts)).label("attempts"),
        col(Submission.state).label("now"),
    )
    .join(Submission, col(Submission.id) == col(Delivery.submission_id))
    .where(col(Delivery.submission_id) == number("submission"))
    .group_by(col(Delivery.state), col(Submission.state))
)
_SUMMED = Prepared(
    update(Submission)
    .where(_THIS)
    .values(state=bindparam("to_state", type_=table_of(Submission).c.state.type))
)


def announce(turn: Turn, stream: int, submission_id: int, *, at: datetime) -> SubmissionState:
    """Set the state of a submission from its deliveries, and journal the change."""
    rows = turn.fetched(_THEIRS, submission=submission_id)
    tried = any(row.attempts for row in rows)
    state = summed([row.state for row in rows], rows[0].now, tried=tried)
    entry = Entry(ChangeKind.SUBMISSION_CHANGED, [submission_id], {"state": state.value})
    _, told = turn.told(stream, [entry], at=at)
    turn.send([(_SUMMED, {"submission": submission_id, "to_state": state}), *told])
    return state


def summed(
    states: Sequence[DeliveryState], now: SubmissionState, *, tried: bool
) -> SubmissionState:
    """State of a submission, from the states of its deliveries.

    It keeps its current state until the first attempt.
    """
    found = set(states)
    if found & OPEN:
        begun = tried or DeliveryState.DEFERRED in found
        return SubmissionState.SENDING if begun else now
    if found <= {DeliveryState.CANCELLED}:
        return SubmissionState.CANCELLED
    if found <= THERE:
        return SubmissionState.SENT
    return SubmissionState.PARTIAL if found & THERE else SubmissionState.FAILED
