"""Release and deletion of quarantined messages, and what happens to them with their account."""

import asyncio

import httpx
import pytest

from graph.types import global_ids
from mail.delivery.quarantine import QuarantineReason
from mail.maintenance import housekeeping
from models.events.event_types import EventType
from models.users.roles import AdminPermission
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import set_user_limits
from tests.support.operations.domain_operations import error_summary, run_mutation
from tests.support.operations.id_references import id_refs
from tests.support.operations.quarantine_operations import (
    CAROL_ADDRESS,
    QUARANTINE_DELETE,
    QUARANTINE_QUERY,
    QUARANTINE_RELEASE,
    QUARANTINE_RELEASE_ERRORS,
    SPAM_HEADERS,
    USER_UPDATE,
    deliver_message_to,
    delivery_header_fields,
    list_inbox_subjects,
    list_quarantined_subjects,
    load_quarantine_rows,
    make_mixed_message,
    quarantine_message,
    set_options,
    set_permissions_of_ada,
)
from tests.support.sample_mutations import MutationCall
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_released_message_is_stored_as_newly_received(
    ada: GraphQLClient, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    environment, raw = ada.environment, make_mixed_message()
    item_id = await quarantine_message(ada, raw)
    clock.tick(days=3)
    position = await load_stream_position(environment, ada.user.id)
    answer, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert errors == []
    assert answer["messages"] == [
        {
            "subject": "Mixed",
            "mailbox": {"path": "INBOX"},
            "seen": False,
            "envelope": {"from": CAROL_ADDRESS, "recipients": [{"value": ada.address}]},
        }
    ]
    assert [kind for kind, _ in await load_journal_entries(environment, ada.user.id, position)] == [
        EventType.MESSAGE_RECEIVED,
        EventType.QUARANTINE_RELEASED,
    ]
    assert (await load_quarantine_rows(environment), await list_quarantined_subjects(ada)) == (
        [],
        [],
    )
    source = "{ viewer { user { messages(first: 1) { nodes { sourceUrl receivedAt } } } } }"
    (node,) = (await ada(source))["viewer"]["user"]["messages"]["nodes"]
    assert (await http.get(node["sourceUrl"])).content == delivery_header_fields(ada) + raw
    assert node["receivedAt"] == "2030-01-04T00:00:00Z"
    # a repeated delivery: the released message is recognized
    await deliver_message_to(environment, ada, raw=raw)
    assert await list_inbox_subjects(ada) == ["Mixed"]
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["quarantineItems"], 0)


async def test_release_stores_all_messages_or_none(ada: GraphQLClient, bob: GraphQLClient) -> None:
    environment = ada.environment
    ada_item_id = await quarantine_message(ada, "a")
    bob_item_id = await quarantine_message(bob, "b")
    large_item_id = await quarantine_message(ada, raw_message("c", body="x" * 3000))
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": ada_item_id}, {"id": bob_item_id}]
    )
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["quarantineItems"], 1)
    await set_user_limits(ada, quota=2000)
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": ada_item_id}, {"id": large_item_id}]
    )
    assert (errors[0]["code"], field_path(errors[0]), item_index(errors[0])) == (
        "QUOTA_EXCEEDED", ["quarantineItems"], 1,
    )  # fmt: skip
    assert (await list_inbox_subjects(ada), len(await load_quarantine_rows(environment))) == ([], 3)
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=id_refs([ada_item_id] * 101)
    )
    assert error_summary(errors) == ("VALIDATION", ["quarantineItems"], None, "MAX")
    answer, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": ada_item_id}, {"id": ada_item_id}]
    )
    assert ([message["subject"] for message in answer["messages"]], errors) == (["a"], [])


async def test_concurrent_releases_store_message_once(ada: GraphQLClient) -> None:
    item_id = await quarantine_message(ada)
    results = await asyncio.gather(
        *(
            run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
            for _ in range(2)
        )
    )
    assert sorted(len(errors) for _, errors in results) == [0, 1]
    assert await list_inbox_subjects(ada) == ["Offer"]


async def test_message_with_virus_is_released_only_by_administrator(
    ada: GraphQLClient, admin_client: GraphQLClient, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_domain_admin(
        ada.environment, http, "chief", [AdminPermission.QUARANTINE]
    )
    item_id = await quarantine_message(ada, "Bill", QuarantineReason(0.0, (), "Eicar-Test"))
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert error_summary(errors)[::3] == ("FORBIDDEN", "DOMAIN_ADMIN")
    assert await list_inbox_subjects(ada) == []
    answer, errors = await run_mutation(
        domain_admin, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}]
    )
    # the administrator has no permission for ada's mailboxes
    assert (answer["messages"], errors) == ([], [])
    assert await list_inbox_subjects(ada) == ["Bill"]
    log = '{ auditLog(filter: {mutation: "quarantineRelease"}) { nodes { before } } }'
    (entry,) = (await admin_client(log))["auditLog"]["nodes"]
    assert entry["before"] == {"sender": CAROL_ADDRESS, "recipient": ada.address}


async def test_release_with_allow_sender_creates_allow_rule(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    environment = ada.environment
    set_options(environment, spam_quarantine_score=50)
    for subject in ("One", "Two"):
        await deliver_message_to(
            environment,
            ada,
            raw=raw_message(subject, **SPAM_HEADERS),
            sender="bounce-1@lists.example",
        )
    item_ids = [
        global_ids.encode("QuarantineItem", row.id)
        for row in await load_quarantine_rows(environment)
    ]
    await set_permissions_of_ada(root, "QUARANTINE")
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=id_refs(item_ids), allowSender=True
    )
    assert error_summary(errors) == ("FORBIDDEN", ["allowSender"], None, "SENDER_RULES")
    await set_permissions_of_ada(root, "QUARANTINE", "SENDER_RULES")
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=id_refs(item_ids), allowSender=True
    )
    assert errors == []
    rules = "{ senderRules { nodes { action pattern scope { user { username } } } } }"
    (rule,) = (await ada(rules))["senderRules"]["nodes"]
    assert (rule["action"], rule["pattern"]) == ("ALLOW", CAROL_ADDRESS)
    await deliver_message_to(
        environment, ada, raw=raw_message("Three", **SPAM_HEADERS), sender="bounce-2@lists.example"
    )
    assert sorted(await list_inbox_subjects(ada)) == ["One", "Three", "Two"]
    odd_item_id = await quarantine_message(ada, raw_message("Odd", From="a b@"), sender="")
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": odd_item_id}], allowSender=True
    )
    assert [error["path"] for error in errors] in ([], [["allowSender"]])


async def test_deleted_quarantine_item_is_not_listed(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    environment = ada.environment
    item_id, other_id = await quarantine_message(ada, "a"), await quarantine_message(ada, "b")
    position = await load_stream_position(environment, ada.user.id)
    answer, errors = await run_mutation(ada, QUARANTINE_DELETE, quarantineItems=[{"id": item_id}])
    assert (answer["deletedIds"], errors) == ([item_id], [])
    assert await load_journal_entries(environment, ada.user.id, position) == [
        (EventType.QUARANTINE_DELETED, [global_ids.decode("QuarantineItem", item_id)])
    ]
    _, errors = await run_mutation(
        ada, QUARANTINE_DELETE, quarantineItems=[{"id": other_id}, {"id": item_id}]
    )
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["quarantineItems"], 1)
    assert await list_quarantined_subjects(ada) == ["b"]
    answer, errors = await run_mutation(
        admin_client, QUARANTINE_DELETE, quarantineItems=[{"id": other_id}]
    )
    assert errors == []
    assert (await list_quarantined_subjects(ada), await list_inbox_subjects(ada)) == ([], [])


async def test_quarantine_is_deleted_with_its_account(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    for subject in "ab":
        await quarantine_message(ada, subject)
    delete_input = {"users": {"usernames": ["ada"]}}
    assert (await MutationCall("userDelete", delete_input)(root))["errors"] == []
    assert await list_quarantined_subjects(root) == []
    clock.tick(days=90)
    await housekeeping.run_housekeeping_round(environment)
    while await tasks.run_next_task(environment):
        pass
    assert await load_quarantine_rows(environment) == []
    assert await select_rows(environment, "SELECT * FROM quarantine_blobs") == []


async def test_quarantine_item_follows_domain_rename(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await quarantine_message(ada)
    rename_input = {"domain": {"name": "example.org"}, "newName": "new.example"}
    payload = await MutationCall("domainRename", rename_input)(root)
    assert payload["errors"] == []
    (item,) = (await ada(QUARANTINE_QUERY))["quarantine"]["nodes"]
    assert (item["domain"], item["recipient"]) == ({"name": "new.example"}, "ada@example.org")


async def test_message_gets_no_reply_and_is_copied_only_on_release(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    environment = ada.environment
    set_options(environment, spam_quarantine_score=50)
    bcc_rule = {"match": ada.address, "bccTo": "copies@else.example", "direction": "RECIPIENT"}
    assert (await MutationCall("bccRuleCreate", bcc_rule)(root))["errors"] == []
    autoreply = {"set": {"enabled": True, "text": "I am away."}}
    assert (await MutationCall("autoreplySet", autoreply)(ada))["errors"] == []
    await deliver_message_to(environment, ada, raw=raw_message("Offer", **SPAM_HEADERS))
    assert await select_rows(environment, "SELECT recipient FROM queue_entries") == []
    item_id = global_ids.encode("QuarantineItem", (await load_quarantine_rows(environment))[0].id)
    _, errors = await run_mutation(
        ada,
        QUARANTINE_RELEASE_ERRORS,
        quarantineItems=[{"id": item_id}],
        options={"validateOnly": True},
    )
    assert errors == []
    assert await select_rows(environment, "SELECT recipient FROM queue_entries") == []
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert errors == []
    assert await select_rows(environment, "SELECT recipient FROM queue_entries") == [
        ("copies@else.example",)
    ]


async def test_quarantine_notification_frequency_is_set(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient
) -> None:
    answer, errors = await run_mutation(ada, USER_UPDATE, set={"quarantineNotification": "HOURLY"})
    assert (answer["users"], errors) == (
        [{"username": "ada", "quarantineNotification": "HOURLY"}], [],
    )  # fmt: skip
    _, errors = await run_mutation(
        ada, USER_UPDATE, users={"usernames": ["bob"]}, set={"quarantineNotification": "NEVER"}
    )
    assert errors[0]["code"] == "NOT_FOUND"
    answer, errors = await run_mutation(
        admin_client,
        USER_UPDATE,
        users={"usernames": ["bob"]},
        set={"quarantineNotification": "WEEKLY"},
    )
    assert [user["quarantineNotification"] for user in answer["users"]] == ["WEEKLY"]
    log = '{ auditLog(filter: {mutation: "userUpdate"}) { nodes { before after } } }'
    (entry,) = (await admin_client(log))["auditLog"]["nodes"]
    assert entry["after"] == {"quarantineNotification": "WEEKLY"}
    query = "{ viewer { user { quarantineNotification } } }"
    assert (await bob(query))["viewer"]["user"] == {"quarantineNotification": "WEEKLY"}
