"""Leases of queue entries: which process attempts which recipient."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, select, update
from sqlalchemy.sql.dml import UpdateBase
from sqlmodel import col

from mail.envelope.delivery_jobs import Job, Pace, To
from mail.envelope.dsn_parameters import Wish, kept
from mail.queue import held_messages
from mail.queue.destination_order import Chosen, Room, Round, choose, waits_until
from models.observability import metrics
from models.queue.tables import Delivery, DeliveryState
from models.runtime import leases
from models.runtime.environment import Turn, World
from models.store.columns import Instant, Picked
from models.store.prepared_statements import Prepared, among, number, prepared
from models.submission.tables import Submission
from models.users.tables import User

PAUSE_AFTER_ERROR = 120.0  # until a recipient is retried whose result could not be written
OPEN_STATES = (DeliveryState.PENDING, DeliveryState.DEFERRED)

UNCERTAIN = metrics.counter(
    "merganser_queue_uncertain",
    "Recipients tried again though they may have the message: after its end no answer was written "
    "down.",
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The jobs that a process has leased, and when more are due."""

    jobs: Sequence[Job]
    next_at: datetime | None
    many: int
    uncertain: int  # recipients that may already have the message
    more: bool = False  # more can be taken at once
    left: bool = False  # more are due, but exceed the capacity


async def claim(
    world: World, pace: Pace, room: Room | None = None, round_: Round | None = None
) -> Claimed:
    """Lease recipients that are due, in the order of mail/queue/destination_order.py.

    By default it leases as many as `limits` allows. A lease ends when its result is written, or
    when the heartbeat of this process stops.
    """
    await held_messages.release(world)
    lease, process_id = world.key(), await leases.ensure_registered(world)
    room = room or Room(pace.claim, pace.at_once, pace.at_once)

    def lease_recipients(turn: Turn) -> tuple[Chosen, Sequence[Any], datetime | None]:
        chosen = choose(turn, room, round_ or Round())
        rows: Sequence[Any] = []
        if chosen.ids:
            given = {"ids": chosen.ids, "new_lease": lease, "process": process_id}
            turn.send([(_taken(turn.connection.dialect.name), given)])
            rows = _rows(turn, lease)
        return chosen, rows, None if chosen.more else waits_until(turn)

    chosen, rows, later = await world.apply(lease_recipients)
    uncertain = sum(row.final_dot_at is not None for row in rows)
    if uncertain:
        UNCERTAIN.add(by=uncertain)
    return Claimed(jobs(rows, lease), later, len(rows), uncertain, chosen.more, chosen.left)


@prepared
def _taken(dialect: str) -> UpdateBase:
    """Prepared statement that leases deliveries to a registered process."""
    return (
        update(Delivery)
        .where(among(dialect, col(Delivery.id), "ids"), leases.is_registered(number("process")))
        .values(
            lease=number("new_lease"),
            holder=number("process"),
            turn_at=None,
            attempts=Delivery.attempts + 1,
        )
    )


RECIPIENTS = (  # the columns that jobs are made of
    select(
        col(Delivery.id),
        col(Delivery.recipient),
        col(Delivery.domain),
        col(Delivery.attempts),
        col(Delivery.expires_at),
        col(Delivery.final_dot_at),
        col(Delivery.via),
        col(Delivery.secret),
        col(Delivery.rank),
        col(Delivery.notify),
        col(Delivery.orcpt),
        col(Delivery.delay_told_at),
        col(Delivery.hurried_at),
        col(Submission.id).label("submission_id"),
        col(Submission.queue_id),
        col(Submission.user_id),
        col(Submission.blob_id),
        col(Submission.envelope_from),
        col(Submission.created_at),
        col(Submission.tenant_id),
        col(Submission.copy_of),
        col(User.tls_enforce_out),
        col(Submission.envid),
        col(Submission.ret),
        col(Submission.header_id),
        col(Submission.send_time),
        col(Submission.undo_until),
        col(Submission.ours),
    )
    .join(Submission, col(Submission.id) == col(Delivery.submission_id))
    .outerjoin(User, col(User.id) == col(Submission.user_id))
)
_OURS = Prepared(
    RECIPIENTS.where(col(Delivery.lease) == number("lease")).order_by(col(Delivery.id))
)


def held_under(turn: Turn, lease: int) -> list[Job]:
    """Load the jobs with all recipients that are held under a lease."""
    return jobs(_rows(turn, lease), lease)


def _rows(turn: Turn, lease: int) -> Sequence[Any]:
    return turn.fetched(_OURS, lease=lease)


def jobs(rows: Sequence[Any], lease: int) -> list[Job]:
    """Make one job for the rows of each submission and domain."""
    groups: defaultdict[tuple[int, str], list[Picked]] = defaultdict(list)
    for row in rows:
        groups[row.submission_id, row.domain].append(row)
    return [
        Job(
            lease=lease,
            submission_id=submission_id,
            queue_id=group[0].queue_id,
            user_id=group[0].user_id,
            tenant_id=group[0].tenant_id,
            blob_id=group[0].blob_id,
            sender=group[0].envelope_from,
            domain=domain,
            created_at=group[0].created_at,
            recipients=[_to(row) for row in group],
            via=group[0].via,
            copy=group[0].copy_of is not None,
            rank=group[0].rank,
            tls=bool(group[0].tls_enforce_out),
            header_id=group[0].header_id,
            begun_at=_begun(group[0]),
            hurried_at=max((row.hurried_at for row in group if row.hurried_at), default=None),
            ours=group[0].ours,
        )
        for (submission_id, domain), group in groups.items()
    ]


def _to(row: Picked) -> To:
    """The job recipient of a row."""
    wish = Wish(kept(row.notify), row.orcpt, row.envid, row.ret)
    told = row.delay_told_at is not None
    return To(row.id, row.recipient, row.attempts, row.expires_at, row.secret, wish, told)


def _begun(row: Picked) -> datetime:
    """Time of the first attempt: creation, scheduled time or end of the undo period."""
    found: datetime = max(
        at for at in (row.created_at, row.send_time, row.undo_until) if at is not None
    )
    return found


def take_back(turn: Turn, jobs: Sequence[Job]) -> None:
    """Lease the recipients of these jobs again, after this process lost its registration.

    Recipients that another process has attempted or leased since then are left out.
    """
    for job in jobs:
        for to in job.recipients:
            untouched = update(Delivery).where(
                col(Delivery.id) == to.delivery_id,
                col(Delivery.lease).is_(None),
                col(Delivery.attempts) == to.attempts,
                col(Delivery.state).in_(OPEN_STATES),
            )
            values = {"lease": job.lease, "holder": turn.world.process.id, "turn_at": None}
            turn.connection.execute(untouched.values(values))


def abandon(world: World, job: Job) -> None:
    """End the leases of a job that failed here. Its recipients are retried after a pause."""
    ids = [recipient.delivery_id for recipient in job.recipients]
    where = col(Delivery.lease) == job.lease, col(Delivery.id).in_(ids)
    leases.abandon(world, Delivery, *where, after=PAUSE_AFTER_ERROR)


async def hand_back(
    world: World, jobs: Sequence[Job], *, later: Sequence[float] | None = None
) -> None:
    """End the leases of jobs that were not attempted. The attempt is not counted.

    They are due now, or after the seconds in `delays`, one value for each job.
    """
    now = world.now()
    pauses = later or [0.0] * len(jobs)

    def release(turn: Turn) -> None:
        for job, pause in zip(jobs, pauses, strict=True):
            held = update(Delivery).where(
                col(Delivery.lease) == job.lease,
                col(Delivery.id).in_([recipient.delivery_id for recipient in job.recipients]),
            )
            turn.connection.execute(
                held.values(
                    lease=None,
                    holder=None,
                    next_at=now + timedelta(seconds=pause),
                    turn_at=None if pause else case((col(Delivery.held_at).is_(None), now)),
                    final_dot_at=None,
                    attempts=Delivery.attempts - 1,
                )
            )

    await world.apply(release)


async def still_held(world: World, job: Job, ids: Sequence[int]) -> bool:
    """Record that the final dot of DATA is about to be sent. False if a lease was lost.

    After a crash, the mark shows that the other server may have the message.
    """
    now = world.now()

    def mark(turn: Turn) -> bool:
        held = [
            turn.fetched(_DOTTED, delivery=delivery_id, held=job.lease, now=now)
            for delivery_id in ids
        ]
        return all(held)

    return await world.apply(mark)


_NOW = bindparam("now", type_=Instant())
_DOTTED = Prepared(
    update(Delivery)
    .where(
        col(Delivery.id) == number("delivery"),
        col(Delivery.lease) == number("held"),
    )
    .values(final_dot_at=_NOW)
    .returning(col(Delivery.id))
)
