"""Whose turn it is: destinations one after the other, and ranks in their shares."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import insert, update
from sqlmodel import col

from mail.compose.message_builder import Priority
from mail.envelope.delivery_jobs import MAX_TRANSACTION_RECIPIENTS, DeliveryJob, DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import bulk_updates as many
from mail.queue import recipient_leases
from mail.queue.delivery_results import record_results
from mail.queue.destination_order import LAST_RANK, ClaimCapacity, LineCursor
from mail.queue.recipient_leases import ClaimedJobs
from models.errors import Conflict
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime import leases
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission import mutations as submission_mutations
from tests.conftest import Client, Clock, context
from tests.support.mail_servers.queue_worker import PACE, State, deliveries, send
from tests.support.stores.other_processes import taken_for_dead

ROOM = ClaimCapacity(max_recipients=100, max_destinations=20, max_last_rank=20)


async def waiting(ada: Client, wanted: dict[str, int], *, rank: int = 1, later: int = 0) -> None:
    """So many rows for each of these domains, which are due, or will be in so many seconds."""
    world = ada.world
    key = await send(ada, send_time=world.now() + timedelta(days=300))
    at = world.now() + timedelta(seconds=later)
    rows = [
        {
            "id": world.new_id(),
            "user_id": ada.user.id,
            "submission_id": key,
            "recipient": f"n{nth}@{domain}",
            "domain": domain,
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "next_at": at,
            "turn_at": None if later else at,
            "rank": rank,
            "created_at": world.now(),
            "expires_at": world.now() + timedelta(days=5),
        }
        for domain, many in wanted.items()
        for nth in range(many)
    ]
    async with world.write_session(ada.user.id) as session:
        connection = await session.connection()
        await connection.execute(insert(QueueEntry), rows)
        released = update(Submission).where(col(Submission.id) == key).values(release_at=None)
        await connection.execute(released)


def taken(claimed: ClaimedJobs) -> Counter[str]:
    """Recipients by destination."""
    found = Counter[str]()
    for job in claimed.jobs:
        found[job.domain] += len(job.recipients)
    return found


async def test_each_destination_has_its_turn(ada: Client, world: Environment) -> None:
    small = {f"d{nth:02}.example": 3 for nth in range(30)}
    await waiting(ada, {"big.example": 3000, **small})
    room, round_, seen = replace(ROOM, max_destinations=10), LineCursor(), Counter[str]()
    for _ in range(4):
        claimed = await recipient_leases.claim_due_jobs(world, PACE, room, round_)
        assert claimed.recipient_count <= 100 + MAX_TRANSACTION_RECIPIENTS
        seen |= taken(claimed)
    assert seen.keys() == {"big.example", *small}


async def test_a_busy_destination_is_passed_over_and_costs_nothing(
    ada: Client, world: Environment, statements: list[str]
) -> None:
    await waiting(ada, {"a.example": 5, "big.example": 2000, "z.example": 5})
    await leases.ensure_registered(world)
    del statements[:]
    claimed = await recipient_leases.claim_due_jobs(
        world, PACE, replace(ROOM, busy_domains=["big.example"]), LineCursor()
    )
    assert taken(claimed) == {"a.example": 5, "z.example": 5}
    assert claimed.has_more_blocked
    assert len(statements) <= 7


async def test_what_falls_due_joins_the_line(ada: Client, world: Environment, clock: Clock) -> None:
    await waiting(ada, {"a.example": 250, "b.example": 3}, later=60)
    first = await recipient_leases.claim_due_jobs(world, PACE)
    assert (first.recipient_count, first.has_more) == (0, False)
    assert first.next_at == world.now() + timedelta(seconds=60)
    clock.tick(seconds=61)
    seen = Counter[str]()
    for _ in range(4):
        claimed = await recipient_leases.claim_due_jobs(world, PACE)
        seen += taken(claimed)
    assert seen == {"a.example": 250, "b.example": 3}


async def test_what_goes_to_one_place_is_taken_together(ada: Client, world: Environment) -> None:
    await waiting(ada, {"a.example": 1, "big.example": 130, "c.example": 90, "d.example": 1})
    await waiting(ada, {"big.example": 4})  # of another message
    jobs, round_ = list[DeliveryJob](), LineCursor()
    for _ in range(6):
        jobs += (
            await recipient_leases.claim_due_jobs(
                world, PACE, replace(ROOM, max_recipients=8), round_
            )
        ).jobs
    many = [(job.domain, len(job.recipients)) for job in jobs if len(job.recipients) > 1]
    assert many == [
        ("big.example", 100),
        ("c.example", 90),
        ("big.example", 30),
        ("big.example", 4),
    ]


@pytest.mark.parametrize("wanted", [{"a.example": 100}, {"a.example": 99, "b.example": 40}])
async def test_what_falls_due_together_is_taken_together(
    ada: Client, world: Environment, clock: Clock, wanted: dict[str, int]
) -> None:
    await waiting(ada, wanted, later=60)
    await waiting(ada, {"z.example": 500}, later=60)
    clock.tick(seconds=61)
    jobs, round_ = list[DeliveryJob](), LineCursor()
    for _ in range(3):
        jobs += (
            await recipient_leases.claim_due_jobs(
                world, PACE, replace(ROOM, max_recipients=8), round_
            )
        ).jobs
    assert jobs[0].domain == "a.example"
    assert len(jobs[0].recipients) == wanted["a.example"]


async def test_a_claim_costs_the_same_however_many_wait(
    ada: Client, world: Environment, statements: list[str]
) -> None:
    await leases.ensure_registered(world)

    async def cost() -> int:
        del statements[:]
        await recipient_leases.claim_due_jobs(world, PACE, replace(ROOM, max_recipients=4))
        return len(statements)

    await waiting(ada, {f"d{nth}.example": 1 for nth in range(5)})
    few = await cost()
    for _ in range(3):
        await waiting(ada, {f"d{nth}.example": 1 for nth in range(40)})
    assert await cost() <= few <= 7  # one of them looks for held mail to release


async def test_who_hurries_goes_first_and_nobody_waits_for_ever(
    ada: Client, world: Environment
) -> None:
    for rank in (0, 1, 2):
        await waiting(ada, {f"r{rank}-{nth:03}.example": 3 for nth in range(200)}, rank=rank)
    room, round_, ranks = (
        replace(ROOM, max_recipients=10, max_destinations=10),
        LineCursor(),
        Counter[int](),
    )
    for _ in range(14):
        claimed = await recipient_leases.claim_due_jobs(world, PACE, room, round_)
        ranks.update(job.rank for job in claimed.jobs)
    assert ranks[0] > ranks[2] > 0
    assert ranks[1] > ranks[2]


async def test_within_a_destination_a_low_one_comes_too(ada: Client, world: Environment) -> None:
    await waiting(ada, {"one.example": 500}, rank=0)
    await waiting(ada, {"one.example": 5}, rank=2)
    round_, ranks = LineCursor(), list[int]()
    for _ in range(7):
        claimed = await recipient_leases.claim_due_jobs(
            world, PACE, replace(ROOM, max_recipients=10, max_destinations=1), round_
        )
        ranks += [job.rank for job in claimed.jobs]
    assert set(ranks) == {0, 2}


async def test_what_was_tried_leaves_room_for_what_was_not(ada: Client, world: Environment) -> None:
    await waiting(ada, {f"dead{nth}.example": 1 for nth in range(50)}, rank=LAST_RANK)
    claimed = await recipient_leases.claim_due_jobs(
        world, PACE, replace(ROOM, max_last_rank=6), LineCursor()
    )
    assert (len(claimed.jobs), claimed.has_more_blocked, claimed.has_more) == (6, True, False)
    await waiting(ada, {"alive.example": 1})
    claimed = await recipient_leases.claim_due_jobs(
        world, PACE, replace(ROOM, max_destinations=5, max_last_rank=0), LineCursor()
    )
    assert taken(claimed) == {"alive.example": 1}


@pytest.mark.parametrize(
    ("priority", "ranks"),
    [(Priority.HIGH, [0, 1, 2]), (Priority.NORMAL, [1, 2, 2]), (Priority.LOW, [2, 2, 2])],
)
async def test_who_had_a_chance_goes_behind(
    ada: Client, world: Environment, clock: Clock, priority: Priority, ranks: Sequence[int]
) -> None:
    key = await send(ada, NamedAddress("carol@example.net"), priority=priority)
    found = []
    for _ in ranks:
        (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
        found.append(job.rank)
        await record_results(
            world, job, {job.recipients[0].delivery_id: DeliveryResult.from_refusal(450, "No")}, b""
        )
        clock.tick(days=1)
    assert found == list(ranks)
    assert (await deliveries(world, key))["carol"].attempts == 3


async def test_several_workers_take_each_row_once(ada: Client, world: Environment) -> None:
    await waiting(ada, {f"d{nth}.example": 20 for nth in range(20)})
    seen = list[int]()

    async def worker() -> None:
        round_ = LineCursor()
        while (
            claimed := await recipient_leases.claim_due_jobs(
                world, PACE, replace(ROOM, max_destinations=4), round_
            )
        ).recipient_count:
            seen.extend(to.delivery_id for job in claimed.jobs for to in job.recipients)

    await asyncio.gather(*(worker() for _ in range(4)))
    for _ in range(5):  # what was passed over, since another was just at it
        await worker()
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 400


async def test_the_end_of_a_lease_is_found_by_whoever_looks_next(
    ada: Client, world: Environment
) -> None:
    await send(ada)
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    await taken_for_dead(world)
    (again,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    assert again.lease != job.lease
    keys = [to.delivery_id for to in job.recipients]
    assert not await recipient_leases.mark_final_dot(world, job, keys)
    assert await recipient_leases.mark_final_dot(world, again, keys)


async def test_doubles_that_may_be_are_counted(ada: Client, world: Environment) -> None:
    before = _uncertain()
    await send(ada)
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    assert await recipient_leases.mark_final_dot(
        world, job, [to.delivery_id for to in job.recipients]
    )
    await taken_for_dead(world)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).uncertain_count == 2
    assert _uncertain() == before + 2


def _uncertain() -> float:
    (point,) = recipient_leases.UNCERTAIN_COUNTER.family().points
    return point.value


async def test_taking_back_at_the_moment_of_sending_is_one_or_the_other(
    ada: Client, world: Environment
) -> None:
    ended = set[str]()
    for nth in range(20):
        key = await send(ada, NamedAddress("carol@example.net"))

        async def sending(pause: int) -> bool:
            for _ in range(pause):
                await asyncio.sleep(0)
            jobs = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
            if not jobs:
                return False
            (job,) = jobs
            ids = [to.delivery_id for to in job.recipients]
            if not await recipient_leases.mark_final_dot(world, job, ids):
                return False
            await record_results(
                world, job, {ids[0]: DeliveryResult(State.RELAYED, 250, "OK")}, b""
            )
            return True

        async def taking_back(key: int, pause: int) -> bool:
            for _ in range(pause):
                await asyncio.sleep(0)
            try:
                await submission_mutations.cancel_submissions(context(ada), [key])
            except Conflict:
                return False
            return True

        sent, back = await asyncio.gather(sending(nth % 5), taking_back(key, 4 - nth % 5))
        assert sent is not back
        row = (await deliveries(world, key))["carol"]
        assert row.state is (State.RELAYED if sent else State.CANCELLED)
        ended.add(row.state)
    assert ended


async def test_a_worker_whose_lease_is_over_cannot_send_what_was_taken_back(
    ada: Client, world: Environment
) -> None:
    key = await send(ada)
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    with pytest.raises(Conflict):
        await submission_mutations.cancel_submissions(context(ada), [key])
    await taken_for_dead(world)
    await submission_mutations.cancel_submissions(context(ada), [key])
    assert not await recipient_leases.mark_final_dot(
        world, job, [to.delivery_id for to in job.recipients]
    )


async def test_held_rows_do_not_hinder_others(ada: Client, world: Environment) -> None:
    await waiting(ada, {"a.example": 50})
    async with world.write_session(ada.user.id) as session:
        held = update(QueueEntry).where(col(QueueEntry.domain) == "a.example")
        await (await session.connection()).execute(
            held.values(held_at=world.now(), turn_at=None, next_at=world.now())
        )
    await waiting(ada, {"b.example": 5})
    assert taken(await recipient_leases.claim_due_jobs(world, PACE)) == {"b.example": 5}
    assert many.MAX_SUBMISSIONS <= 1000
