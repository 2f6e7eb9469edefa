"""Deletion of queue entries: selection, rights, notices and tasks."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from graph.types import global_ids
from mail.envelope.delivery_jobs import DeliveryJob
from mail.queue import bulk_updates, held_messages, recipient_leases, removal
from mail.queue.delivery_results import record_results_and_report
from models.admin.audit_log import AuditLogEntry
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    load_inbox_rows,
    load_queue_entries,
    load_submission_state,
    queue_message,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.queue.queue_entry_operations import (
    enqueue_platform_message,
    list_entries,
    load_queue_id,
    send_deferred,
)
from tests.support.stores.counter_check import assert_store_consistent

MATCH_ALL_FILTER = {"since": "2000-01-01T00:00:00Z"}  # a filter that matches all entries


async def load_logged_deletions(environment: Environment) -> list[int | None]:
    """Return the target IDs of queueDelete entries of the audit log."""
    statement = select(col(AuditLogEntry.target_id)).where(
        col(AuditLogEntry.mutation) == "queueDelete"
    )
    return [
        row.target_id
        for row in await environment.database.read(statement.order_by(col(AuditLogEntry.id)))
    ]


async def run_all_tasks(client: GraphQLClient) -> None:
    while await tasks.run_next_task(client.environment):
        pass


async def test_user_deletes_own_entries_only(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    submission_ids = [await queue_message(ada), await queue_message(bob)]
    submission_ids.append(await enqueue_platform_message(environment, submission_ids[0]))
    own_id, bobs_id, platform_queue_id = [
        await load_queue_id(environment, submission_id) for submission_id in submission_ids
    ]
    for other_id in (bobs_id, platform_queue_id, "nothing"):
        refused = await run_mailbox_mutation(
            ada,
            "queueDelete",
            "deletedCount",
            queueEntries=[{"queueId": own_id}, {"queueId": other_id}],
        )
        assert [(e["code"], e["path"]) for e in refused["errors"]] == [
            ("NOT_FOUND", ["queueEntries", "1"])
        ]
    for selection in ({"all": True}, {"filter": {"users": {"all": True}}}):
        refused = await run_mailbox_mutation(ada, "queueDelete", "deletedCount", **selection)
        assert [e["code"] for e in refused["errors"]] == ["FORBIDDEN"]
    payload = await run_mailbox_mutation(
        ada, "queueDelete", "deletedCount task { id }", filter=MATCH_ALL_FILTER
    )
    assert (payload["deletedCount"], payload["task"], payload["errors"]) == (2, None, [])
    assert await list_entries(ada) == []
    assert [
        await load_submission_state(environment, submission_id) for submission_id in submission_ids
    ] == [
        "CANCELLED",
        "QUEUED",
        "QUEUED",
    ]
    (blob_row,) = await environment.database.read(
        select(func.count().label("many")).where(
            col(SubmissionBlob.submission_id) == submission_ids[0]
        )
    )
    assert blob_row.many == 0
    refused = await run_mailbox_mutation(
        ada, "queueDelete", "deletedCount", queueEntries=[{"queueId": own_id}]
    )
    assert [e["code"] for e in refused["errors"]] == ["NOT_FOUND"]
    assert await load_logged_deletions(environment) == []
    await assert_store_consistent(environment)


async def test_empty_filter_deletes_nothing(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    submission_id = await queue_message(ada)
    empty_filters: list[Any] = [{}, {"users": {}}, {"recipient": ""}]
    for arguments in ({"filter": empty_filter} for empty_filter in empty_filters):
        refused = await run_mailbox_mutation(
            admin_client, "queueDelete", "deletedCount", **arguments
        )
        assert [e["code"] for e in refused["errors"]] == ["VALIDATION"]
    refused = await run_mailbox_mutation(
        admin_client, "queueDelete", "deletedCount", queueEntries=[]
    )
    assert [(e["code"], e["path"]) for e in refused["errors"]] == [("VALIDATION", ["queueEntries"])]
    payload = await run_mailbox_mutation(
        admin_client,
        "queueDelete",
        "deletedCount task { id }",
        filter={"users": {"usernames": []}},
    )
    assert (payload["deletedCount"], payload["task"], payload["errors"]) == (0, None, [])
    assert await load_submission_state(ada.environment, submission_id) == "QUEUED"


async def test_exactly_one_selection_is_required(admin_client: GraphQLClient) -> None:
    cases: list[Any] = [
        {},
        {"all": True, "queueEntries": [{"queueId": "x"}]},
        {"filter": MATCH_ALL_FILTER, "all": True},
    ]
    for case in each_case(cases):
        with case as arguments:
            for name, count in (("queueDelete", "deletedCount"), ("queueFlush", "scheduledCount")):
                refused = await run_mailbox_mutation(admin_client, name, count, **arguments)
                assert [e["path"] for e in refused["errors"]] == [["queueEntries"]]


async def test_active_entry_is_not_deleted(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    submission_id = await queue_message(ada)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 2
    entry_id = await load_queue_id(environment, submission_id)
    payload = await run_mailbox_mutation(
        admin_client, "queueDelete", "deletedCount", queueEntries=[{"queueId": entry_id}]
    )
    assert (payload["deletedCount"], payload["errors"]) == (0, [])
    assert {
        row.state for row in (await load_queue_entries(environment, submission_id)).values()
    } == {"PENDING"}


async def test_deletion_can_notify_the_sender(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    submission_id, other_id = await send_deferred(ada), await queue_message(bob)
    entry_id = await load_queue_id(environment, submission_id)
    payload = await run_mailbox_mutation(
        admin_client,
        "queueDelete",
        "deletedCount task { kind }",
        queueEntries=[{"queueId": entry_id}],
        notifySender=True,
    )
    assert (payload["deletedCount"], payload["task"]) == (0, {"kind": "QUEUE_DELETE"})
    await run_all_tasks(ada)
    assert {
        row.state for row in (await load_queue_entries(environment, submission_id)).values()
    } == {"BOUNCED"}
    assert await load_submission_state(environment, submission_id) == "FAILED"
    (report,) = await load_inbox_rows(ada)
    assert "carol@example.net" in report.preview
    assert await load_inbox_rows(bob) == []
    assert await load_submission_state(environment, other_id) == "QUEUED"
    await assert_store_consistent(environment)


async def load_copies(client: GraphQLClient) -> list[Any]:
    """The special use of the mailbox of each message outside INBOX, and whether it is a draft."""
    data = await client(
        """{ viewer { user { mailboxes(first: 20, filter: {showHidden: true}) { nodes {
          specialUse messages { nodes { draft } } } } } } }"""
    )
    return [
        (mailbox["specialUse"], message["draft"])
        for mailbox in data["viewer"]["user"]["mailboxes"]["nodes"]
        for message in mailbox["messages"]["nodes"]
        if mailbox["specialUse"] != "INBOX"
    ]


@pytest.mark.parametrize("ends_hold", [False, True])
async def test_scheduled_copy_of_deleted_entry_becomes_draft_when_sender_is_notified(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, ends_hold: bool
) -> None:
    """Also if the process dies after the report: then at the end of the hold."""
    submission_id = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    if ends_hold:
        lease = environment.new_id()
        jobs = await removal._lease_open_entries(environment, [submission_id], lease)  # noqa: SLF001
        results = {
            recipient.delivery_id: removal.REMOVED_RESULT
            for job in jobs
            for recipient in job.recipients
        }
        for job in jobs:
            await record_results_and_report(environment, job, results, b"")
        assert await load_copies(ada) == [("SCHEDULED", False)]
        clock.tick(hours=2)
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    else:
        await removal.bounce_unleased_queue_entries(environment, [submission_id])
    assert await load_copies(ada) == [("DRAFTS", True)]
    assert await load_submission_state(environment, submission_id) == "FAILED"
    assert len(await load_inbox_rows(ada)) == 1
    await assert_store_consistent(environment)


@pytest.mark.parametrize("copy_place", ["SCHEDULED", "TRASH", "purged"])
async def test_every_hold_ends_at_its_time_and_wakes_no_worker_again(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, copy_place: str
) -> None:
    """Bounced submissions keep `release_at` if the process dies after the report."""
    kinds = ("open", "cancelled", "bounced", "half bounced", "bounced during the hold", "leased")
    send_at, leased_jobs = clock() + timedelta(hours=1), list[DeliveryJob]()
    for kind in kinds:
        submission_id = await queue_message(ada, send_at=send_at)
        if copy_place != "SCHEDULED":
            await delete_copy(ada, submission_id, is_permanent=copy_place == "purged")
        if kind == "bounced during the hold":
            entry_id = await load_queue_id(environment, submission_id)
            payload = await run_mailbox_mutation(
                ada,
                "queueDelete",
                "task { id }",
                queueEntries=[{"queueId": entry_id}],
                notifySender=True,
            )
            assert payload["errors"] == []
            await run_all_tasks(ada)
        elif kind == "cancelled":
            await run_mailbox_mutation(
                ada,
                "submissionCancel",
                "submissions { state }",
                submissions=[{"id": global_ids.encode("Submission", submission_id)}],
            )
        elif kind != "open":
            jobs = await removal._lease_open_entries(  # noqa: SLF001
                environment, [submission_id], environment.new_id()
            )
            if kind == "leased":
                leased_jobs += jobs
            elif kind == "half bounced":
                (job,) = jobs
                await bounce(environment, [replace(job, recipients=job.recipients[:1])])
                await end_leases(environment, submission_id)
            else:
                await bounce(environment, jobs)
    clock.tick(hours=2)
    with environment.wakeups.follow([QUEUE]) as wake_up:
        await held_messages.release_or_cancel_due_submission_batch(environment)
        wake_up.clear()
        left_count = await held_messages.release_or_cancel_due_submission_batch(environment)
        assert left_count == (0 if copy_place == "SCHEDULED" else 1)  # the leased one
        assert not wake_up.is_set()
        await bounce(environment, leased_jobs)
        await held_messages.release_or_cancel_due_submission_batch(environment)
        assert await held_messages.release_or_cancel_due_submission_batch(environment) == 0
    held = select(col(Submission.id)).where(col(Submission.release_at).is_not(None))
    assert await environment.database.read(held) == []
    await assert_store_consistent(environment)


async def end_leases(environment: Environment, submission_id: int) -> None:
    """End the leases as if their process had died."""
    entries = update(QueueEntry).where(col(QueueEntry.submission_id) == submission_id)
    await environment.run_transaction(
        lambda transaction: transaction.connection.execute(entries.values(lease=None, holder=None))
    )


async def bounce(environment: Environment, jobs: Sequence[DeliveryJob]) -> None:
    """Record that the recipients of leased jobs were removed from the queue."""
    for job in jobs:
        results = {recipient.delivery_id: removal.REMOVED_RESULT for recipient in job.recipients}
        await record_results_and_report(environment, job, results, b"")


async def delete_copy(client: GraphQLClient, submission_id: int, *, is_permanent: bool) -> None:
    """Delete the copy of a submission, or move it to Trash."""
    statement = select(col(Submission.message_id)).where(col(Submission.id) == submission_id)
    (row,) = await client.environment.database.read(statement)
    payload = await run_mailbox_mutation(
        client,
        "messageDelete",
        "task { id }",
        permanent=is_permanent,
        select={"ids": [global_ids.encode("Message", row.message_id)]},
    )
    assert payload["errors"] == []


async def test_administrator_deletes_any_entry_and_it_is_logged(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    submission_ids = [await queue_message(ada), await queue_message(bob)]
    submission_ids.append(await enqueue_platform_message(environment, submission_ids[0]))
    domain_admin = await make_domain_admin(environment, http, "chief")
    entry_id = await load_queue_id(environment, submission_ids[0])
    payload = await run_mailbox_mutation(
        domain_admin, "queueDelete", "deletedCount", queueEntries=[{"queueId": entry_id}]
    )
    assert (payload["deletedCount"], payload["errors"]) == (2, [])
    for arguments in (
        {"queueEntries": [{"queueId": await load_queue_id(environment, submission_ids[2])}]},
        {"all": True},
    ):
        refused = await run_mailbox_mutation(
            domain_admin, "queueDelete", "deletedCount", **arguments
        )
        assert len(refused["errors"]) == 1
    payload = await run_mailbox_mutation(admin_client, "queueDelete", "deletedCount", all=True)
    assert (payload["deletedCount"], payload["errors"]) == (3, [])
    assert await load_logged_deletions(environment) == submission_ids
    assert await list_entries(admin_client) == []


async def test_large_deletion_runs_as_a_task(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_options(environment, bulk_max_items=2)
    monkeypatch.setattr(bulk_updates, "MAX_SUBMISSIONS", 2)
    submission_ids = [await queue_message(ada) for _ in range(5)]
    payload = await run_mailbox_mutation(
        admin_client, "queueDelete", "deletedCount task { kind totalCount }", all=True
    )
    assert (payload["deletedCount"], payload["task"]) == (
        0,
        {"kind": "QUEUE_DELETE", "totalCount": 5},
    )
    await run_all_tasks(admin_client)
    assert {
        await load_submission_state(environment, submission_id) for submission_id in submission_ids
    } == {"CANCELLED"}
    await assert_store_consistent(environment)
