"""Claims of queue entries: the order of destinations and the shares of ranks."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import insert, update
from sqlmodel import col

from mail.compose.message_draft import Priority
from mail.envelope.delivery_jobs import MAX_TRANSACTION_RECIPIENTS, DeliveryJob, DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import bulk_updates, recipient_leases
from mail.queue.delivery_results import record_results_and_report
from mail.queue.destination_order import LAST_RANK, ClaimCapacity, LineCursor
from mail.queue.recipient_leases import ClaimedJobs
from models.errors import Conflict
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime import leases
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission import mutations as submission_mutations
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    load_queue_entries,
    queue_message,
)
from tests.support.stores.other_processes import deregister_as_dead

CAPACITY = ClaimCapacity(max_recipients=100, max_destinations=20, max_last_rank=20)


async def add_queue_entries(
    ada: GraphQLClient, counts: dict[str, int], *, rank: int = 1, due_in_seconds: int = 0
) -> None:
    """Add this number of queue entries for each domain."""
    environment = ada.environment
    submission_id = await queue_message(ada, send_at=environment.now() + timedelta(days=300))
    due_at = environment.now() + timedelta(seconds=due_in_seconds)
    rows = [
        {
            "id": environment.new_id(),
            "user_id": ada.user.id,
            "submission_id": submission_id,
            "recipient": f"n{nth}@{domain}",
            "domain": domain,
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "next_at": due_at,
            "ready_at": None if due_in_seconds else due_at,
            "rank": rank,
            "created_at": environment.now(),
            "expires_at": environment.now() + timedelta(days=5),
        }
        for domain, count in counts.items()
        for nth in range(count)
    ]
    async with environment.write_session(ada.user.id) as session:
        connection = await session.connection()
        await connection.execute(insert(QueueEntry), rows)
        statement = (
            update(Submission).where(col(Submission.id) == submission_id).values(release_at=None)
        )
        await connection.execute(statement)


def recipient_counts(claimed: ClaimedJobs) -> Counter[str]:
    """Recipients by destination."""
    counts = Counter[str]()
    for job in claimed.jobs:
        counts[job.domain] += len(job.recipients)
    return counts


async def test_each_destination_is_claimed_in_turn(
    ada: GraphQLClient, environment: Environment
) -> None:
    small = {f"d{nth:02}.example": 3 for nth in range(30)}
    await add_queue_entries(ada, {"big.example": 3000, **small})
    capacity = replace(CAPACITY, max_destinations=10)
    cursor = LineCursor()
    claimed_counts = Counter[str]()
    for _ in range(4):
        claimed = await recipient_leases.release_held_and_claim_due_jobs(
            environment, WORKER_LIMITS, capacity, cursor
        )
        assert claimed.recipient_count <= 100 + MAX_TRANSACTION_RECIPIENTS
        claimed_counts |= recipient_counts(claimed)
    assert claimed_counts.keys() == {"big.example", *small}


async def test_busy_destination_is_skipped_without_extra_statements(
    ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    await add_queue_entries(ada, {"a.example": 5, "big.example": 2000, "z.example": 5})
    await leases.ensure_process_registered(environment)
    del statements[:]
    claimed = await recipient_leases.release_held_and_claim_due_jobs(
        environment, WORKER_LIMITS, replace(CAPACITY, busy_domains=["big.example"]), LineCursor()
    )
    assert recipient_counts(claimed) == {"a.example": 5, "z.example": 5}
    assert claimed.has_more_blocked
    assert len(statements) <= 7


async def test_entries_are_claimed_when_due(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await add_queue_entries(ada, {"a.example": 250, "b.example": 3}, due_in_seconds=60)
    first_claim = await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    assert (first_claim.recipient_count, first_claim.has_more) == (0, False)
    assert first_claim.next_at == environment.now() + timedelta(seconds=60)
    clock.tick(seconds=61)
    claimed_counts = Counter[str]()
    for _ in range(4):
        claimed = await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
        claimed_counts += recipient_counts(claimed)
    assert claimed_counts == {"a.example": 250, "b.example": 3}


async def test_entries_of_same_message_and_destination_are_one_job(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_queue_entries(
        ada, {"a.example": 1, "big.example": 130, "c.example": 90, "d.example": 1}
    )
    await add_queue_entries(ada, {"big.example": 4})  # of another message
    jobs, cursor = list[DeliveryJob](), LineCursor()
    for _ in range(6):
        jobs += (
            await recipient_leases.release_held_and_claim_due_jobs(
                environment, WORKER_LIMITS, replace(CAPACITY, max_recipients=8), cursor
            )
        ).jobs
    large_jobs = [(job.domain, len(job.recipients)) for job in jobs if len(job.recipients) > 1]
    assert large_jobs == [
        ("big.example", 100),
        ("c.example", 90),
        ("big.example", 30),
        ("big.example", 4),
    ]


@pytest.mark.parametrize("counts", [{"a.example": 100}, {"a.example": 99, "b.example": 40}])
async def test_entries_due_at_same_time_are_one_job(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, counts: dict[str, int]
) -> None:
    await add_queue_entries(ada, counts, due_in_seconds=60)
    await add_queue_entries(ada, {"z.example": 500}, due_in_seconds=60)
    clock.tick(seconds=61)
    jobs, cursor = list[DeliveryJob](), LineCursor()
    for _ in range(3):
        jobs += (
            await recipient_leases.release_held_and_claim_due_jobs(
                environment, WORKER_LIMITS, replace(CAPACITY, max_recipients=8), cursor
            )
        ).jobs
    assert jobs[0].domain == "a.example"
    assert len(jobs[0].recipients) == counts["a.example"]


async def test_claim_statement_count_does_not_grow_with_queue(
    ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    await leases.ensure_process_registered(environment)

    async def count_claim_statements() -> int:
        del statements[:]
        await recipient_leases.release_held_and_claim_due_jobs(
            environment, WORKER_LIMITS, replace(CAPACITY, max_recipients=4)
        )
        return len(statements)

    await add_queue_entries(ada, {f"d{nth}.example": 1 for nth in range(5)})
    statement_count = await count_claim_statements()
    for _ in range(3):
        await add_queue_entries(ada, {f"d{nth}.example": 1 for nth in range(40)})
    # One statement looks for held messages to release.
    assert await count_claim_statements() <= statement_count <= 7


async def test_high_rank_is_claimed_first_without_starving_low_rank(
    ada: GraphQLClient, environment: Environment
) -> None:
    for rank in (0, 1, 2):
        await add_queue_entries(
            ada, {f"r{rank}-{nth:03}.example": 3 for nth in range(200)}, rank=rank
        )
    capacity = replace(CAPACITY, max_recipients=10, max_destinations=10)
    cursor = LineCursor()
    ranks = Counter[int]()
    for _ in range(14):
        claimed = await recipient_leases.release_held_and_claim_due_jobs(
            environment, WORKER_LIMITS, capacity, cursor
        )
        ranks.update(job.rank for job in claimed.jobs)
    assert ranks[0] > ranks[2] > 0
    assert ranks[1] > ranks[2]


async def test_low_rank_is_claimed_within_one_destination(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_queue_entries(ada, {"one.example": 500}, rank=0)
    await add_queue_entries(ada, {"one.example": 5}, rank=2)
    cursor, ranks = LineCursor(), list[int]()
    for _ in range(7):
        claimed = await recipient_leases.release_held_and_claim_due_jobs(
            environment,
            WORKER_LIMITS,
            replace(CAPACITY, max_recipients=10, max_destinations=1),
            cursor,
        )
        ranks += [job.rank for job in claimed.jobs]
    assert set(ranks) == {0, 2}


async def test_last_rank_leaves_capacity_for_new_entries(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_queue_entries(ada, {f"dead{nth}.example": 1 for nth in range(50)}, rank=LAST_RANK)
    claimed = await recipient_leases.release_held_and_claim_due_jobs(
        environment, WORKER_LIMITS, replace(CAPACITY, max_last_rank=6), LineCursor()
    )
    assert (len(claimed.jobs), claimed.has_more_blocked, claimed.has_more) == (6, True, False)
    await add_queue_entries(ada, {"alive.example": 1})
    claimed = await recipient_leases.release_held_and_claim_due_jobs(
        environment,
        WORKER_LIMITS,
        replace(CAPACITY, max_destinations=5, max_last_rank=0),
        LineCursor(),
    )
    assert recipient_counts(claimed) == {"alive.example": 1}


@pytest.mark.parametrize(
    ("priority", "ranks"),
    [(Priority.HIGH, [0, 1, 2]), (Priority.NORMAL, [1, 2, 2]), (Priority.LOW, [2, 2, 2])],
)
async def test_rank_is_lowered_after_attempt(
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    priority: Priority,
    ranks: Sequence[int],
) -> None:
    key = await queue_message(ada, NamedAddress("carol@example.net"), priority=priority)
    claimed_ranks = []
    for _ in ranks:
        (job,) = (
            await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
        ).jobs
        claimed_ranks.append(job.rank)
        await record_results_and_report(
            environment,
            job,
            {job.recipients[0].delivery_id: DeliveryResult.from_refusal(450, "No")},
            b"",
        )
        clock.tick(days=1)
    assert claimed_ranks == list(ranks)
    assert (await load_queue_entries(environment, key))["carol"].attempts == 3


async def test_concurrent_workers_claim_each_entry_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_queue_entries(ada, {f"d{nth}.example": 20 for nth in range(20)})
    claimed_ids = list[int]()

    async def claim_until_empty() -> None:
        cursor = LineCursor()
        while (
            claimed := await recipient_leases.release_held_and_claim_due_jobs(
                environment, WORKER_LIMITS, replace(CAPACITY, max_destinations=4), cursor
            )
        ).recipient_count:
            claimed_ids.extend(
                recipient.delivery_id for job in claimed.jobs for recipient in job.recipients
            )

    await asyncio.gather(*(claim_until_empty() for _ in range(4)))
    for _ in range(5):  # claims entries that were skipped because another worker had them locked
        await claim_until_empty()
    assert sorted(claimed_ids) == sorted(set(claimed_ids))
    assert len(claimed_ids) == 400


async def test_stale_lease_is_replaced_by_next_claim(
    ada: GraphQLClient, environment: Environment
) -> None:
    await queue_message(ada)
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    await deregister_as_dead(environment)
    (new_job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    assert new_job.lease != job.lease
    entry_ids = [recipient.delivery_id for recipient in job.recipients]
    assert not await recipient_leases.mark_final_dot_if_leased(environment, job, entry_ids)
    assert await recipient_leases.mark_final_dot_if_leased(environment, new_job, entry_ids)


async def test_uncertain_deliveries_are_counted(
    ada: GraphQLClient, environment: Environment
) -> None:
    count_before = uncertain_count()
    await queue_message(ada)
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    assert await recipient_leases.mark_final_dot_if_leased(
        environment, job, [recipient.delivery_id for recipient in job.recipients]
    )
    await deregister_as_dead(environment)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).uncertain_count == 2
    assert uncertain_count() == count_before + 2


def uncertain_count() -> float:
    (point,) = recipient_leases.UNCERTAIN_COUNTER.family().points
    return point.value


async def test_concurrent_send_and_cancel_exclude_each_other(
    ada: GraphQLClient, environment: Environment
) -> None:
    final_states = set[str]()
    for nth in range(20):
        key = await queue_message(ada, NamedAddress("carol@example.net"))

        async def try_send(yield_count: int) -> bool:
            for _ in range(yield_count):
                await asyncio.sleep(0)
            jobs = (
                await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
            ).jobs
            if not jobs:
                return False
            (job,) = jobs
            ids = [recipient.delivery_id for recipient in job.recipients]
            if not await recipient_leases.mark_final_dot_if_leased(environment, job, ids):
                return False
            await record_results_and_report(
                environment, job, {ids[0]: DeliveryResult(State.RELAYED, 250, "OK")}, b""
            )
            return True

        async def try_cancel(key: int, yield_count: int) -> bool:
            for _ in range(yield_count):
                await asyncio.sleep(0)
            try:
                await submission_mutations.cancel_submissions(client_context(ada), [key])
            except Conflict:
                return False
            return True

        is_sent, is_cancelled = await asyncio.gather(
            try_send(nth % 5), try_cancel(key, 4 - nth % 5)
        )
        assert is_sent is not is_cancelled
        row = (await load_queue_entries(environment, key))["carol"]
        assert row.state is (State.RELAYED if is_sent else State.CANCELLED)
        final_states.add(row.state)
    assert final_states


async def test_stale_lease_cannot_send_cancelled_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    key = await queue_message(ada)
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    with pytest.raises(Conflict):
        await submission_mutations.cancel_submissions(client_context(ada), [key])
    await deregister_as_dead(environment)
    await submission_mutations.cancel_submissions(client_context(ada), [key])
    assert not await recipient_leases.mark_final_dot_if_leased(
        environment, job, [recipient.delivery_id for recipient in job.recipients]
    )


async def test_held_entries_do_not_block_others(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_queue_entries(ada, {"a.example": 50})
    async with environment.write_session(ada.user.id) as session:
        statement = update(QueueEntry).where(col(QueueEntry.domain) == "a.example")
        await (await session.connection()).execute(
            statement.values(held_at=environment.now(), ready_at=None, next_at=environment.now())
        )
    await add_queue_entries(ada, {"b.example": 5})
    assert recipient_counts(
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ) == {"b.example": 5}
    assert bulk_updates.MAX_SUBMISSIONS <= 1000
