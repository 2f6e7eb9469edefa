"""Leases: who works at which recipient, and until when."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlmodel import col

from mail.queue.jobs import Job, Pace, To
from models.columns import Picked
from models.queue import Delivery
from models.submission import Submission
from models.world import Turn, World


@dataclass(frozen=True, slots=True)
class Claimed:
    """What is ours to do now, and when there is more."""

    jobs: Sequence[Job]
    next_at: datetime | None
    many: int  # recipients
    uncertain: int  # of them, those that may have the message already


async def claim(world: World, pace: Pace, busy: Collection[str] = ()) -> Claimed:
    """Take recipients that are due, the oldest first, passing over those of `busy` domains.

    While a lease lasts its end is the row's `next_at`: who died leaves it to the next claim.
    """
    lease, now = world.key(), world.now()
    until = now + pace.lease

    def unit(turn: Turn) -> Claimed:
        due = (
            select(col(Delivery.id))
            .where(col(Delivery.next_at) <= now, col(Delivery.domain).not_in(busy))
            .order_by(col(Delivery.next_at), col(Delivery.id))
            .limit(pace.claim)
            .with_for_update(skip_locked=True)
        )
        ids = turn.connection.execute(due).scalars().all()
        if ids:
            taken = update(Delivery).where(col(Delivery.id).in_(ids))
            turn.connection.execute(
                taken.values(
                    lease=lease,
                    leased_until=until,
                    next_at=until,
                    attempts=Delivery.attempts + 1,
                )
            )
        rows = turn.connection.execute(_OURS.where(col(Delivery.lease) == lease)).all()
        later = select(func.min(col(Delivery.next_at))).where(col(Delivery.domain).not_in(busy))
        uncertain = sum(row.final_dot_at is not None for row in rows)
        return Claimed(
            _jobs(rows, lease), turn.connection.execute(later).scalar(), len(rows), uncertain
        )

    return await world.apply(unit)


_OURS: Select[*tuple[Any, ...]] = (
    select(
        col(Delivery.id),
        col(Delivery.recipient),
        col(Delivery.domain),
        col(Delivery.attempts),
        col(Delivery.expires_at),
        col(Delivery.final_dot_at),
        col(Delivery.via),
        col(Delivery.secret),
        col(Submission.id).label("submission_id"),
        col(Submission.queue_id),
        col(Submission.user_id),
        col(Submission.blob_id),
        col(Submission.envelope_from),
        col(Submission.created_at),
        col(Submission.tenant_id),
        col(Submission.copy_of),
    )
    .join(Submission, col(Submission.id) == col(Delivery.submission_id))
    .order_by(col(Delivery.id))
)


def _jobs(rows: Sequence[Picked], lease: int) -> list[Job]:
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
            recipients=[To(r.id, r.recipient, r.attempts, r.expires_at, r.secret) for r in group],
            via=group[0].via,
            copy=group[0].copy_of is not None,
        )
        for (submission_id, domain), group in groups.items()
    ]


async def extend(world: World, pace: Pace, leases: Collection[int]) -> None:
    """Hold what these leases hold for another while."""
    until = world.now() + pace.lease

    def unit(turn: Turn) -> None:
        held = update(Delivery).where(col(Delivery.lease).in_(leases))
        turn.connection.execute(held.values(leased_until=until, next_at=until))

    await world.apply(unit)


async def hand_back(world: World, jobs: Sequence[Job]) -> None:
    """Give up what was not begun: it is due at once, and this was no attempt."""
    now = world.now()

    def unit(turn: Turn) -> None:
        for job in jobs:
            held = update(Delivery).where(
                col(Delivery.lease) == job.lease,
                col(Delivery.id).in_([to.delivery_id for to in job.recipients]),
            )
            turn.connection.execute(
                held.values(
                    lease=None,
                    leased_until=None,
                    next_at=now,
                    final_dot_at=None,
                    attempts=Delivery.attempts - 1,
                )
            )

    await world.apply(unit)


async def still_held(world: World, job: Job, ids: Sequence[int]) -> bool:
    """Write that the dot is about to be sent; False where the lease was lost meanwhile.

    Whoever finds that mark after a crash knows: the other side may have the message.
    """
    now = world.now()

    def unit(turn: Turn) -> bool:
        held = update(Delivery).where(
            col(Delivery.id).in_(ids),
            col(Delivery.lease) == job.lease,
            col(Delivery.leased_until) > now,
        )
        return bool(turn.connection.execute(held.values(final_dot_at=now)).rowcount == len(ids))

    return await world.apply(unit)
