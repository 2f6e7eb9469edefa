"""Test submissionReschedule: a new send time for queued messages."""

from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from mail.envelope.delivery_jobs import DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from mail.queue.delivery_results import record_results_and_report
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    load_queue_entries,
    load_submission_state,
    queue_message,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.other_processes import deregister_as_dead

PAYLOAD_FIELDS = "submissions { state sendAt recipients { nextAttemptAt state } }"


async def reschedule(client: GraphQLClient, submission_ids: list[int], send_at: Any) -> Any:
    global_id_list = [
        global_ids.encode("Submission", submission_id) for submission_id in submission_ids
    ]
    return await run_mailbox_mutation(
        client,
        "submissionReschedule",
        PAYLOAD_FIELDS,
        submissions=[{"id": global_id} for global_id in global_id_list],
        sendAt=send_at.isoformat(),
    )


def error_details(payload: Any) -> list[Any]:
    return [(error["code"], field_path(error), item_index(error)) for error in payload["errors"]]


async def test_rescheduled_submission_is_due_at_new_time(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    send_at = clock() + timedelta(days=10)
    (submission,) = (await reschedule(ada, [submission_id], send_at))["submissions"]
    assert submission["state"] == "SCHEDULED"
    assert submission["sendAt"] == submission["recipients"][0]["nextAttemptAt"]
    clock.tick(days=9)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0
    clock.tick(days=2)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 2
    assert {
        row.expires_at for row in (await load_queue_entries(environment, submission_id)).values()
    } == {send_at + timedelta(days=5)}


async def test_reschedule_to_past_queues_immediately(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    (submission,) = (await reschedule(ada, [submission_id], clock() - timedelta(days=1)))[
        "submissions"
    ]
    assert (submission["state"], submission["sendAt"]) == ("QUEUED", None)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 2


async def test_reschedule_keeps_undo_window(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await queue_message(ada, undo_window=timedelta(minutes=5))
    (submission,) = (await reschedule(ada, [submission_id], clock()))["submissions"]
    assert submission["state"] == "UNDOABLE"
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0
    (submission,) = (await reschedule(ada, [submission_id], clock() + timedelta(hours=1)))[
        "submissions"
    ]
    assert submission["state"] == "SCHEDULED"
    clock.tick(minutes=6)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0


async def test_reschedule_skips_leased_recipients(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await queue_message(
        ada, NamedAddress("carol@a.example"), NamedAddress("dave@b.example")
    )
    jobs = {
        job.domain: job
        for job in (
            await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
        ).jobs
    }
    dave_job = jobs["b.example"]
    results = {dave_job.recipients[0].delivery_id: DeliveryResult.from_refusal(450, "4.2.1 Later")}
    await record_results_and_report(environment, dave_job, results, b"")
    (submission,) = (await reschedule(ada, [submission_id], clock() + timedelta(days=1)))[
        "submissions"
    ]
    assert submission["state"] == "SENDING"
    clock.tick(hours=1)
    await deregister_as_dead(environment)
    # the lease of the dead process is stale
    claimed = await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    assert [job.domain for job in claimed.jobs] == ["a.example"]
    clock.tick(days=1)
    await deregister_as_dead(environment)
    assert {
        job.domain
        for job in (
            await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
        ).jobs
    } == {
        "a.example",
        "b.example",
    }


async def test_reschedule_is_all_or_none_and_hides_foreign_submissions(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    first = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    leased = await queue_message(ada)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 2
    send_at = clock() + timedelta(days=1)
    assert error_details(await reschedule(ada, [first, leased], send_at)) == [
        ("CONFLICT", ["submissions"], 1)
    ]
    assert error_details(await reschedule(bob, [first], send_at)) == [
        ("NOT_FOUND", ["submissions"], 0)
    ]
    too_late = clock() + timedelta(days=4000)
    assert error_details(await reschedule(ada, [first], too_late)) == [
        ("VALIDATION", ["sendAt"], None)
    ]
    clock.tick(hours=1)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count >= 2
    # it is due and was not rescheduled
    assert await load_submission_state(environment, first) == "QUEUED"


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
async def test_reschedule_to_calendar_limits_does_not_fail(
    ada: GraphQLClient, clock: ManualClock, text: str
) -> None:
    submission_id = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    submission_ref = {"id": global_ids.encode("Submission", submission_id)}
    arguments = {"submissions": [submission_ref], "sendAt": text}
    payload = await run_mailbox_mutation(ada, "submissionReschedule", PAYLOAD_FIELDS, **arguments)
    assert [e["code"] for e in payload["errors"]] in ([], ["VALIDATION"])
