"""Queue entries: lists, rights, removal, flush, hold and subscriptions."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from sqlmodel import col

from mail.maintenance import restore_mark
from mail.mime.header_encoding import NamedAddress
from mail.queue import bulk_updates, recipient_leases
from mail.queue.enqueue import NewSubmission, SubmissionOwner, enqueue
from models.admin.audit_log import AuditLogEntry
from models.files.blobs import SubmissionBlob
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.submission.tables import Submission
from resolvers.admin import tasks
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueEntryConditions, QueueName
from resolvers.users.selection import UserSelector
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    load_inbox_rows,
    load_queue_entries,
    load_submission_state,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.quarantine_operations import set_options
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.counter_check import assert_store_consistent
from tests.support.stores.query_plans import record_query_plans

QUEUE = """query ($filter: QueueFilter, $first: Int, $after: String) {
  queue(filter: $filter, first: $first, after: $after) {
    totalCount pageInfo { hasNextPage endCursor } nodes {
      id queueId queueName sender size arrivedAt nextAttemptAt lastError
      user { username } submission { id }
      recipients { recipient state queueName nextAttemptAt attempts } } } }"""
NODE = "query ($id: ID!) { node(id: $id) { id ... on QueueEntry { queueName } } }"
CHANGES = """subscription ($filter: QueueFilter) { queueEntryChanged(filter: $filter) {
  queueId queueName recipients { recipient state attempts } } }"""
TEMPORARY_REPLIES = {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"}

MATCH_ALL_FILTER = {"since": "2000-01-01T00:00:00Z"}  # a filter that matches all entries


async def list_entries(client: GraphQLClient, **arguments: Any) -> list[Any]:
    return list((await client(QUEUE, **arguments))["queue"]["nodes"])


async def load_queue_id(environment: Environment, submission_id: int) -> str:
    (row,) = await environment.database.read(
        select(col(Submission.queue_id)).where(col(Submission.id) == submission_id)
    )
    return str(row.queue_id)


async def enqueue_platform_message(
    environment: Environment, template_id: int, sender: str = ""
) -> int:
    """Enqueue a message of the platform with the bytes of another submission."""
    (row,) = await environment.database.read(
        select(col(Submission.blob_id), col(Submission.tenant_id), col(Submission.size)).where(
            col(Submission.id) == template_id
        )
    )
    submission = NewSubmission(
        sender, ["eve@example.net"], row.size, row.blob_id, [row.blob_id], None, environment.now()
    )
    return await environment.run_transaction(
        lambda transaction: enqueue(transaction, SubmissionOwner(None, row.tenant_id), submission),
        0,
    )


async def load_logged_deletions(environment: Environment) -> list[int | None]:
    """Return the target IDs of queueDelete entries of the admin log."""
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


async def send_deferred(client: GraphQLClient, *recipients: NamedAddress) -> int:
    """Send a message that is deferred after one attempt."""
    async with (
        run_smtp_server(FakeSmtpServer(dict(TEMPORARY_REPLIES))) as smtp_server,
        run_queue_worker(client.environment, relay_settings(smtp_server)),
    ):
        submission_id = await queue_message(client, *recipients)
        await wait_until_tried(client.environment, submission_id)
    return submission_id


async def test_role_decides_which_entries_are_listed(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    root: GraphQLClient,
    http: httpx.AsyncClient,
) -> None:
    environment = ada.environment
    submission_ids = [await queue_message(ada), await queue_message(bob)]
    submission_ids.append(await enqueue_platform_message(environment, submission_ids[0]))
    queue_ids = [
        await load_queue_id(environment, submission_id) for submission_id in submission_ids
    ]
    domain_admin = await make_domain_admin(environment, http, "chief")
    other_admin = await make_domain_admin(environment, http, "other", domains=())
    expected_ids = {
        "ada": queue_ids[:1],
        "bob": queue_ids[1:2],
        "chief": queue_ids[:2],
        "other": [],
    }
    for client in (ada, bob, domain_admin, other_admin):
        entries = await list_entries(client)
        assert [entry["queueId"] for entry in entries] == expected_ids[client.user.username]
        for entry in entries:
            assert (await client(NODE, id=entry["id"]))["node"]["queueName"] == "INCOMING"
    for client in (admin_client, root):
        entries = await list_entries(client)
        assert [entry["queueId"] for entry in entries] == queue_ids
        assert [entry["user"] and entry["user"]["username"] for entry in entries] == [
            "ada",
            "bob",
            None,
        ]
        assert [entry["submission"] for entry in entries] == [None] * 3
    (own_entry,) = await list_entries(ada)
    assert own_entry["submission"] is not None
    assert (own_entry["sender"], own_entry["queueName"]) == ("ada@example.org", "INCOMING")
    assert own_entry["nextAttemptAt"] == own_entry["arrivedAt"]
    assert own_entry["size"] > 0
    (bobs_entry,) = await list_entries(bob)
    assert (await ada(NODE, id=bobs_entry["id"]))["node"] is None


async def test_queue_name_and_next_attempt_follow_the_state(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await send_deferred(ada)
    (entry,) = await list_entries(ada)
    assert (entry["queueName"], entry["lastError"]) == ("DEFERRED", "450 4.2.1 Later")
    assert {to["queueName"] for to in entry["recipients"]} == {"DEFERRED"}
    assert entry["nextAttemptAt"] in [to["nextAttemptAt"] for to in entry["recipients"]]
    entry_id = entry["queueId"]
    held = await run_mailbox_mutation(
        admin_client,
        "queueHold",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    assert held["queueEntries"] == [{"queueName": "HOLD"}]
    (entry,) = await list_entries(ada)
    assert (entry["queueName"], entry["nextAttemptAt"]) == ("HOLD", None)
    assert {to["nextAttemptAt"] for to in entry["recipients"]} == {None}
    clock.tick(days=6)
    assert (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).recipient_count == 0
    released = await run_mailbox_mutation(
        admin_client,
        "queueRelease",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    assert released["queueEntries"] == [{"queueName": "DEFERRED"}]
    assert (
        await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 2  # its lifetime starts again, although it was held for days
    assert {
        row.expires_at for row in (await load_queue_entries(environment, submission_id)).values()
    } == {environment.now() + timedelta(days=5)}
    (entry,) = await list_entries(ada)
    assert (entry["queueName"], entry["nextAttemptAt"]) == ("ACTIVE", None)
    for queue_name in QueueName:
        entries = await list_entries(ada, filter={"queueName": queue_name.value})
        assert len(entries) == (queue_name is QueueName.ACTIVE)


async def test_entry_held_during_an_attempt_is_not_retried(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await queue_message(ada)
    (job,) = (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).jobs
    entry_id = await load_queue_id(environment, submission_id)
    await run_mailbox_mutation(
        admin_client,
        "queueHold",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    await recipient_leases.release_unattempted(environment, [job])
    assert (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).recipient_count == 0
    clock.tick(days=1)
    assert (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).recipient_count == 0
    await run_mailbox_mutation(
        admin_client,
        "queueRelease",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    assert (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).recipient_count == 2


async def test_list_is_filtered_and_paged(
    ada: GraphQLClient, admin_client: GraphQLClient, clock: ManualClock
) -> None:
    queue_ids = []
    for number in range(5):
        submission_id = await queue_message(ada, NamedAddress(f"n{number}@example{number % 2}.net"))
        queue_ids.append(await load_queue_id(ada.environment, submission_id))
        clock.tick(seconds=1)
    platform_id = await enqueue_platform_message(ada.environment, submission_id)
    platform_queue_id = await load_queue_id(ada.environment, platform_id)

    async def find_queue_ids(client: GraphQLClient, **filter: Any) -> list[str]:
        return [entry["queueId"] for entry in await list_entries(client, filter=filter or None)]

    assert await find_queue_ids(ada, recipient="@EXAMPLE1") == queue_ids[1::2]
    assert await find_queue_ids(ada, sender="ADA@") == queue_ids
    assert await find_queue_ids(admin_client, sender="") == [platform_queue_id]
    assert await find_queue_ids(admin_client, users={"usernames": ["ada"]}) == queue_ids
    assert await find_queue_ids(ada, queueName="INCOMING", recipient="n3") == queue_ids[3:4]
    assert (
        await find_queue_ids(ada, since=(clock() - timedelta(seconds=2)).isoformat())
        == queue_ids[3:]
    )
    times = {
        "since": (clock() - timedelta(seconds=4)).isoformat(),
        "before": (clock() - timedelta(seconds=2)).isoformat(),
    }
    assert await find_queue_ids(ada, **times) == queue_ids[1:3]
    first = (await admin_client(QUEUE, first=4))["queue"]
    assert (first["totalCount"], first["pageInfo"]["hasNextPage"]) == (6, True)
    rest = (await admin_client(QUEUE, first=4, after=first["pageInfo"]["endCursor"]))["queue"]
    assert [entry["queueId"] for entry in first["nodes"] + rest["nodes"]] == [
        *queue_ids,
        platform_queue_id,
    ]


async def test_list_needs_a_constant_number_of_statements(
    ada: GraphQLClient, admin_client: GraphQLClient, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await list_entries(admin_client)
        return len(statements)

    await queue_message(ada)
    await cost()  # fills the credential cache
    expected_count = await cost()
    for _ in range(20):
        await queue_message(ada)
    assert await cost() == expected_count


async def test_lists_and_claims_use_indexes_of_waiting_entries(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    await send_deferred(ada)
    for client in (ada, admin_client):
        ctx, page_request = client_context(client), PageRequest("queue", 20)
        with record_query_plans(environment) as plans:
            for conditions in (
                QueueEntryConditions(),
                QueueEntryConditions(user_selection=UserSelector(ids=(ada.user.id,))),
            ):
                plan = await plans.explain_select(
                    queue_loaders.read_entry_page(ctx, conditions, page_request, {"id"}),
                    "submissions",
                    containing="ORDER BY",
                )
                if environment.database.dialect == "sqlite":
                    assert "INDEX submissions_waiting" in plan
                    assert "SCAN submissions\n" not in plan
                    assert conditions.user_selection.is_given or "TEMP B-TREE" not in plan
            for queue_name in QueueName:
                plan = await plans.explain_select(
                    queue_loaders.read_entry_page(
                        ctx, QueueEntryConditions(queue_name), page_request, {"id"}
                    ),
                    "submissions",
                    containing="ORDER BY",
                )
                if environment.database.dialect == "sqlite":
                    assert "SCAN deliveries\n" not in f"{plan}\n"
    with record_query_plans(environment) as plans:
        for plan in await plans.explain_statements(
            recipient_leases.claim_due_jobs(environment, WORKER_LIMITS),
            lambda statement: "SELECT" in statement,
        ):
            if environment.database.dialect == "sqlite":
                assert "SCAN deliveries\n" not in f"{plan}\n"
                assert "SCAN waiting" not in plan


@pytest.mark.parametrize("max_ids", [0, 1000])
async def test_deferred_entries_are_found_with_few_or_many(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
    max_ids: int,
) -> None:
    monkeypatch.setattr(queue_loaders, "MAX_DEFERRED_IDS", max_ids)
    submission_ids = [await send_deferred(client) for client in (ada, bob, ada)]
    for client in (ada, bob):
        await queue_message(client)
    deferred_ids = [
        await load_queue_id(ada.environment, submission_id) for submission_id in submission_ids
    ]
    deferred_filter = {"queueName": "DEFERRED"}
    assert [
        entry["queueId"] for entry in await list_entries(bob, filter=deferred_filter)
    ] == deferred_ids[1:2]
    first = (await admin_client(QUEUE, first=2, filter=deferred_filter))["queue"]
    assert (first["totalCount"], first["pageInfo"]["hasNextPage"]) == (3, True)
    after = first["pageInfo"]["endCursor"]
    rest = (await admin_client(QUEUE, first=2, filter=deferred_filter, after=after))["queue"]
    assert [entry["queueId"] for entry in first["nodes"] + rest["nodes"]] == deferred_ids


async def test_deferred_entries_are_found_by_index(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    with record_query_plans(environment) as plans:
        query = queue_loaders.read_entry_page(
            client_context(admin_client),
            QueueEntryConditions(QueueName.DEFERRED),
            PageRequest("queue", 20),
            {"id"},
        )
        plan, _ = await plans.explain_selects(query, "deliveries", containing="LIMIT")
        if environment.database.dialect == "sqlite":
            assert "INDEX deliveries_deferred" in plan


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
    empty_selections: list[dict[str, Any]] = [
        {"queueEntries": []},
        {"filter": {"users": {"usernames": []}}},
    ]
    for selection in empty_selections:
        payload = await run_mailbox_mutation(
            admin_client, "queueDelete", "deletedCount task { id }", **selection
        )
        assert (payload["deletedCount"], payload["task"], payload["errors"]) == (0, None, [])
    assert await load_submission_state(ada.environment, submission_id) == "QUEUED"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"all": True, "queueEntries": [{"queueId": "x"}]},
        {"filter": MATCH_ALL_FILTER, "all": True},
    ],
)
async def test_exactly_one_selection_is_required(
    admin_client: GraphQLClient, arguments: Any
) -> None:
    for name, count in (("queueDelete", "deletedCount"), ("queueFlush", "scheduledCount")):
        refused = await run_mailbox_mutation(admin_client, name, count, **arguments)
        assert [e["path"] for e in refused["errors"]] == [["queueEntries"]]


async def test_active_entry_is_not_deleted(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    submission_id = await queue_message(ada)
    assert (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).recipient_count == 2
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
        admin_client, "queueDelete", "deletedCount task { kind total }", all=True
    )
    assert (payload["deletedCount"], payload["task"]) == (0, {"kind": "QUEUE_DELETE", "total": 5})
    await run_all_tasks(admin_client)
    assert {
        await load_submission_state(environment, submission_id) for submission_id in submission_ids
    } == {"CANCELLED"}
    await assert_store_consistent(environment)


async def test_flush_makes_deferred_entries_due(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await send_deferred(ada)
    scheduled_id = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    assert (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).recipient_count == 0
    payload = await run_mailbox_mutation(
        admin_client, "queueFlush", "scheduledCount task { id }", all=True
    )
    assert (payload["scheduledCount"], payload["task"], payload["errors"]) == (2, None, [])
    (job,) = (await recipient_leases.claim_due_jobs(environment, WORKER_LIMITS)).jobs
    assert (job.submission_id, job.recipients[0].attempts) == (submission_id, 2)
    assert await load_submission_state(environment, scheduled_id) == "SCHEDULED"
    repeated = await run_mailbox_mutation(admin_client, "queueFlush", "scheduledCount", all=True)
    assert repeated["scheduledCount"] == 0  # it is active


async def test_flush_and_hold_need_an_administrator(
    ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    submission_id = await queue_message(ada)
    entry_id = await load_queue_id(environment, submission_id)
    domain_admin = await make_domain_admin(environment, http, "chief")
    cases = (
        ("queueFlush", "scheduledCount", {"all": True}),
        ("queueHold", "queueEntries { id }", {"queueEntries": [{"queueId": entry_id}]}),
    )
    for client in (ada, domain_admin):
        for mutation, selection, arguments in cases:
            refused = await run_mailbox_mutation(client, mutation, selection, **arguments)
            assert [e["code"] for e in refused["errors"]] == ["FORBIDDEN"]


async def test_subscription_reports_arrivals_and_attempts_in_order(
    live_server: LiveServer,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
) -> None:
    follower = await live_server.follow(admin_client, CHANGES)
    held_follower = await live_server.follow(admin_client, CHANGES, filter={"queueName": "HOLD"})

    def last_change() -> Any:
        return follower.results[-1] if follower.results else {"recipients": [], "queueName": ""}

    async with (
        run_smtp_server(FakeSmtpServer({"dave": "450 4.2.1 Later"})) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await wait_until_tried(environment, await queue_message(ada))
        expected_states = ["RELAYED", "DEFERRED"]
        await wait_until(
            lambda: (
                [recipient["state"] for recipient in last_change()["recipients"]] == expected_states
            )
        )
        assert [recipient["attempts"] for recipient in last_change()["recipients"]] == [1, 1]
        refs = [{"queueId": last_change()["queueId"]}]
        await run_mailbox_mutation(
            admin_client, "queueHold", "queueEntries { id }", queueEntries=refs
        )
        await wait_until(lambda: last_change()["queueName"] == "HOLD")
        await run_mailbox_mutation(
            admin_client, "queueRelease", "queueEntries { id }", queueEntries=refs
        )
        del smtp_server.rcpt_replies["dave"]
        clock.tick(hours=1)
        wake_queue_worker(environment)
        await wait_until(lambda: last_change()["queueName"] is None)
        assert {recipient["state"] for recipient in last_change()["recipients"]} == {"RELAYED"}
    await wait_until(
        lambda: held_follower.results and held_follower.results[-1]["queueName"] is None
    )
    assert held_follower.results[0]["queueName"] == "HOLD"
    assert await live_server.follow_until_refused(ada, CHANGES) == "FORBIDDEN"
    for subscription in (follower, held_follower):
        await subscription.unsubscribe()


async def test_subscription_continues_after_a_restore(
    live_server: LiveServer,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
) -> None:
    follower = await live_server.follow(admin_client, CHANGES)
    async with asyncio.timeout(10):
        while not follower.results:  # the subscription starts before the first event
            await queue_message(ada)
            await asyncio.sleep(0.05)
    await restore_mark.begin_after_consistent_restore(environment)
    entry_id = await load_queue_id(environment, await queue_message(ada))
    await wait_until(lambda: entry_id in {change["queueId"] for change in follower.results}, 20)
    await follower.unsubscribe()


async def test_subscription_misses_no_entry(
    live_server: LiveServer,
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
) -> None:
    follower = await live_server.follow(admin_client, CHANGES)
    async with asyncio.timeout(10):
        while not follower.results:  # the subscription starts before the first event
            await queue_message(ada)
            await asyncio.sleep(0.05)
    submission_ids = []
    for _ in range(30):
        submission_ids += [await queue_message(ada), await queue_message(bob)]
        submission_ids.append(await enqueue_platform_message(environment, submission_ids[0]))
    queue_ids = {
        await load_queue_id(environment, submission_id) for submission_id in submission_ids
    }
    await wait_until(lambda: queue_ids <= {change["queueId"] for change in follower.results})
    received_ids = [change["queueId"] for change in follower.results]
    adas_ids = [
        await load_queue_id(environment, submission_id) for submission_id in submission_ids[::3]
    ]
    assert [entry_id for entry_id in received_ids if entry_id in adas_ids] == adas_ids
    await follower.unsubscribe()
