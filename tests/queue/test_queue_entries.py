"""Queue entries: lists, rights, indexes, flush and hold."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueEntryConditions, QueueName
from resolvers.users.selection import UserSelector
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    load_queue_entries,
    load_submission_state,
    queue_message,
)
from tests.support.queue.queue_entry_operations import (
    QUEUE,
    enqueue_platform_message,
    list_entries,
    load_queue_id,
    send_deferred,
)
from tests.support.stores.query_plans import record_query_plans

NODE = "query ($id: ID!) { node(id: $id) { id ... on QueueEntry { queueName } } }"


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
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0
    released = await run_mailbox_mutation(
        admin_client,
        "queueRelease",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    assert released["queueEntries"] == [{"queueName": "DEFERRED"}]
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
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
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    entry_id = await load_queue_id(environment, submission_id)
    await run_mailbox_mutation(
        admin_client,
        "queueHold",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    await recipient_leases.release_unattempted(environment, [job])
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0
    clock.tick(days=1)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0
    await run_mailbox_mutation(
        admin_client,
        "queueRelease",
        "queueEntries { queueName }",
        queueEntries=[{"queueId": entry_id}],
    )
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 2


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
                    queue_loaders.read_visible_waiting_entry_page(
                        ctx, conditions, page_request, {"id"}
                    ),
                    "submissions",
                    containing="ORDER BY",
                )
                if environment.database.dialect == "sqlite":
                    assert "INDEX submissions_waiting" in plan
                    assert "SCAN submissions\n" not in plan
                    assert conditions.user_selection.is_given or "TEMP B-TREE" not in plan
            for queue_name in QueueName:
                plan = await plans.explain_select(
                    queue_loaders.read_visible_waiting_entry_page(
                        ctx, QueueEntryConditions(queue_name), page_request, {"id"}
                    ),
                    "submissions",
                    containing="ORDER BY",
                )
                if environment.database.dialect == "sqlite":
                    assert "SCAN deliveries\n" not in f"{plan}\n"
    with record_query_plans(environment) as plans:
        for plan in await plans.explain_statements(
            recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS),
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
        query = queue_loaders.read_visible_waiting_entry_page(
            client_context(admin_client),
            QueueEntryConditions(QueueName.DEFERRED),
            PageRequest("queue", 20),
            {"id"},
        )
        plan, _ = await plans.explain_selects(query, "queue_entries", containing="LIMIT")
        if environment.database.dialect == "sqlite":
            assert "INDEX queue_entries_deferred" in plan


async def test_flush_makes_deferred_entries_due(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    submission_id = await send_deferred(ada)
    scheduled_id = await queue_message(ada, send_at=clock() + timedelta(hours=1))
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).recipient_count == 0
    payload = await run_mailbox_mutation(
        admin_client, "queueFlush", "scheduledCount task { id }", all=True
    )
    assert (payload["scheduledCount"], payload["task"], payload["errors"]) == (2, None, [])
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
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
