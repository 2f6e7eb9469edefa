"""What is to be sent at another time."""

from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from mail.envelope.delivery_jobs import DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from mail.queue.delivery_results import record_results
from models.runtime.environment import Environment
from tests.conftest import Client, Clock
from tests.support.accounts.shared_mailboxes import mutate
from tests.support.mail_servers.queue_worker import PACE, deliveries, send, state
from tests.support.stores.other_processes import taken_for_dead

SELECT = "submissions { state sendTime recipients { nextAttemptAt state } }"


async def moved(client: Client, keys: list[int], at: Any) -> Any:
    given = [global_ids.encode("Submission", key) for key in keys]
    return await mutate(client, "submissionReschedule", SELECT, ids=given, sendTime=at.isoformat())


def codes(payload: Any) -> list[Any]:
    return [(e["code"], e["path"], e["index"]) for e in payload["errors"]]


async def test_it_goes_at_the_new_time(ada: Client, world: Environment, clock: Clock) -> None:
    key = await send(ada, send_time=clock() + timedelta(hours=1))
    at = clock() + timedelta(days=10)
    (one,) = (await moved(ada, [key], at))["submissions"]
    assert one["state"] == "SCHEDULED"
    assert one["sendTime"] == one["recipients"][0]["nextAttemptAt"]
    clock.tick(days=9)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0
    clock.tick(days=2)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 2
    assert {row.expires_at for row in (await deliveries(world, key)).values()} == {
        at + timedelta(days=5)
    }


async def test_a_past_time_means_now(ada: Client, world: Environment, clock: Clock) -> None:
    key = await send(ada, send_time=clock() + timedelta(hours=1))
    (one,) = (await moved(ada, [key], clock() - timedelta(days=1)))["submissions"]
    assert (one["state"], one["sendTime"]) == ("QUEUED", None)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 2


async def test_what_can_be_taken_back_can_be_until_then(
    ada: Client, world: Environment, clock: Clock
) -> None:
    key = await send(ada, undo_window=timedelta(minutes=5))
    (one,) = (await moved(ada, [key], clock()))["submissions"]
    assert one["state"] == "HELD_FOR_UNDO"
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0
    (one,) = (await moved(ada, [key], clock() + timedelta(hours=1)))["submissions"]
    assert one["state"] == "SCHEDULED"
    clock.tick(minutes=6)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0


async def test_those_being_served_stay_and_others_wait(
    ada: Client, world: Environment, clock: Clock
) -> None:
    key = await send(ada, NamedAddress("carol@a.example"), NamedAddress("dave@b.example"))
    jobs = {job.domain: job for job in (await recipient_leases.claim_due_jobs(world, PACE)).jobs}
    dave = jobs["b.example"]
    refused = {dave.recipients[0].delivery_id: DeliveryResult.from_refusal(450, "4.2.1 Later")}
    await record_results(world, dave, refused, b"")
    (one,) = (await moved(ada, [key], clock() + timedelta(days=1)))["submissions"]
    assert one["state"] == "SENDING"
    clock.tick(hours=1)
    await taken_for_dead(world)
    again = await recipient_leases.claim_due_jobs(world, PACE)  # whose lease is over
    assert [job.domain for job in again.jobs] == ["a.example"]
    clock.tick(days=1)
    await taken_for_dead(world)
    assert {job.domain for job in (await recipient_leases.claim_due_jobs(world, PACE)).jobs} == {
        "a.example",
        "b.example",
    }


async def test_all_or_none_and_others_see_nothing(
    ada: Client, bob: Client, world: Environment, clock: Clock
) -> None:
    first = await send(ada, send_time=clock() + timedelta(hours=1))
    gone = await send(ada)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 2
    at = clock() + timedelta(days=1)
    assert codes(await moved(ada, [first, gone], at)) == [("CONFLICT", ["ids"], 1)]
    assert codes(await moved(bob, [first], at)) == [("NOT_FOUND", ["ids"], 0)]
    far = clock() + timedelta(days=4000)
    assert codes(await moved(ada, [first], far)) == [("VALIDATION", ["sendTime"], None)]
    clock.tick(hours=1)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count >= 2
    assert await state(world, first) == "QUEUED"  # its time has come, and it was not changed


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
async def test_times_at_the_ends_of_the_calendar(ada: Client, clock: Clock, text: str) -> None:
    key = await send(ada, send_time=clock() + timedelta(hours=1))
    given = {"ids": [global_ids.encode("Submission", key)], "sendTime": text}
    payload = await mutate(ada, "submissionReschedule", SELECT, **given)
    assert [e["code"] for e in payload["errors"]] in ([], ["VALIDATION"])
