"""Writing down what came of an attempt, and telling the account."""

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
JITTER = 0.2  # of a pause, up or down
SHARE = 0.25  # of its age that a message is put off for at most, where its place is down for less
SECOND = timedelta(seconds=1)

ATTEMPTS = metrics.counter(
    "merganser_queue_results", "What came of attempts to send, for each recipient.", "state"
)
UNSAFE = "4.7."  # how answers begin that speak of security (RFC 3463, section 3.8)
OPEN = frozenset({DeliveryState.PENDING, DeliveryState.DEFERRED})


async def settle(world: World, job: Job, results: Mapping[int, Result], raw: bytes) -> None:
    """Write the results of these recipients, those delivered first: nothing may come between.

    What the sender is to be told of them (mail/queue/dsn_requests.py) is, in the unit that writes
    them;
    of those delivered in one of its own, behind it: till then it is owed
    (mail/queue/pending_reports.py). Of
    copies the log tells.
    """
    now = world.now()
    for result in results.values():
        if result.alone is None:
            ATTEMPTS.add(result.state)
    there = {key: result for key, result in results.items() if result.state in THERE}
    owed = dsn_requests.due(world, job, there, now)
    if there:
        keys = owed.get(On.SUCCESS, ())
        held = await world.apply(lambda turn: _write(turn, job, there, now, owed=keys), job.stream)
        if owed:
            world.fault("owed")
            owed = owed if held else {}
    rest = {
        to.delivery_id: _aged(results[to.delivery_id], to, now)
        for to in job.recipients
        if to.delivery_id in results and to.delivery_id not in there
    }
    if job.copy and any(result.state in FAILED for result in rest.values()):
        log.warning("a copy was not taken", extra={"queue": job.queue_id})
    told = dsn_requests.due(world, job, rest, now) | owed
    if told:
        await reported(world, job, rest, told, raw)
    elif rest:
        await world.apply(lambda turn: _write(turn, job, rest, now), job.stream)


def _aged(result: Result, to: To, now: datetime) -> Result:
    """A failure that may pass is final once the time is up."""
    if result.state is not DeliveryState.DEFERRED or now < to.expires_at:
        return result
    code, text = result.code, result.text
    if text.startswith(UNSAFE):  # there was no way as safe as was asked for
        code, text = 550, f"5{text[1:]}"
    return replace(result, state=DeliveryState.EXPIRED, code=code, text=text, after_dot=False)


async def reported(
    world: World,
    job: Job,
    rest: Mapping[int, Result],
    told: Mapping[On, Mapping[int, Result]],
    raw: bytes,
) -> None:
    """Write the results `rest`, and report to the sender what he is to be `told`, in one unit.

    An account finds the reports in its INBOX; whose mail the platform sent on is written to.
    """
    now, delayed = world.now(), told.get(On.DELAY, ())
    letters = {on: await read(report(world, job, of, raw, on)) for on, of in told.items()}

    def unit(turn: Turn, kept: Sequence[Kept]) -> None:
        held = not rest or _write(turn, job, rest, now)
        for (on, letter), safe in zip(letters.items(), kept, strict=True):
            if not (_given(turn, told[on]) if on is On.SUCCESS else held):
                continue
            if job.user_id is None:
                _send_back(turn, job, letter, safe)
            else:
                _file(turn, job, (letter, safe), job.user_id)
        if held and delayed:
            these = update(Delivery).where(col(Delivery.id).in_(delayed))
            turn.connection.execute(these.values(delay_told_at=now))

    await with_all(world, job.tenant_id, list(letters.values()), unit, job.stream)


def _given(turn: Turn, owed: Collection[int]) -> bool:
    """Note that the success of these is reported; False where somebody else has reported some."""
    ours = select(col(Delivery.id)).where(
        col(Delivery.id).in_(owed), col(Delivery.success_owed).is_not(None)
    )
    if len(turn.connection.execute(ours.with_for_update()).all()) < len(owed):
        return False
    these = update(Delivery).where(col(Delivery.id).in_(owed))
    turn.connection.execute(these.values(success_owed=None))
    return True


def _send_back(turn: Turn, job: Job, letter: Letter, kept: Kept) -> None:
    """Queue a report for the first sender, from nobody."""
    to, local = job.sender, job.sender.rpartition("@")[0]
    if srs.is_ours(local):
        with suppress(Invalid):  # it is another's, who sent it on to us
            to = srs.origin(turn.world, local)
    hand_in(turn, Sender(None, job.tenant_id), handed(turn, letter, kept, "", [to], ours=True))


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
    try:
        place(turn, *mail, to)
    except OverQuota:  # before anything was written; the state of the submission still tells
        log.warning("no room for a report", extra={"user": user_id, "queue": job.queue_id})


def _write(
    turn: Turn,
    job: Job,
    results: Mapping[int, Result],
    now: datetime,
    *,
    owed: Collection[int] = (),
) -> bool:
    """Write results as far as the lease still holds; whether it held for all of them.

    Of those `owed` a report of success has still to be made. The pause before a retry counts from
    the transaction, not from `now`: the clock may have been set in between.
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
    """What writes these columns of a delivery as long as its lease is held."""
    columns = table_of(Delivery).c
    held = update(Delivery).where(
        col(Delivery.id) == number("delivery"), col(Delivery.lease) == number("held")
    )
    values: dict[str, Any] = {
        name: bindparam(f"to_{name}", type_=columns[name].type) for name in names
    }
    values["hurried_at"] = null()
    values["rank"] = case((col(Delivery.rank) < MIDDLE, MIDDLE), else_=LAST)  # it had its chance
    return Prepared(held.values(values).returning(col(Delivery.id)))


def _values(result: Result, to: To, now: datetime, retry_at: datetime) -> dict[str, Any]:
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
        values["final_dot_at"] = None  # what came back was no: the message is not there
    return values


def _untried(result: Result, to: To, now: datetime, retry_at: datetime) -> dict[str, Any]:
    """The same where nobody was asked: that is no attempt, and what was said last still stands."""
    values = {**_values(result, to, now, retry_at), "attempts": to.attempts - 1}
    if result.state is DeliveryState.DEFERRED or to.attempts > 1:
        for name in ("last_code", "last_response", "mx", "tls"):
            del values[name]
    return values


def spared(alone: timedelta, age: timedelta, backoff: Sequence[timedelta] = BACKOFF) -> timedelta:
    """How long a message of this age is put off whose place is left `alone`.

    Until then, or a share of what it waits already: many that wait for long would else be looked
    at again and again.
    """
    return max(alone, min(age * SHARE, backoff[-1]), SECOND)


def pause(attempts: int, chance: float, backoff: Sequence[timedelta] = BACKOFF) -> timedelta:
    """How long to wait after so many attempts; `chance` is from 0 up to 1."""
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
    """Bring a submission's state up to its deliveries, and write its change into the journal."""
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
    """The state of a submission whose deliveries have these. Not begun it stays what it is."""
    found = set(states)
    if found & OPEN:
        begun = tried or DeliveryState.DEFERRED in found
        return SubmissionState.SENDING if begun else now
    if found <= {DeliveryState.CANCELLED}:
        return SubmissionState.CANCELLED
    if found <= THERE:
        return SubmissionState.SENT
    return SubmissionState.PARTIAL if found & THERE else SubmissionState.FAILED
