"""Test filters at delivery by LMTP."""

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation, user_global_id
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import message_flags, subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.filter_operations import (
    add_filter,
    delete_filters,
    list_filters,
    run_filter_test,
    try_update_filters,
)
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_match_counts(client: GraphQLClient) -> list[tuple[str, int]]:
    return [
        (filter_["name"], filter_["matchCount"])
        for filter_ in (await list_filters(client))["nodes"]
    ]


async def test_filters_choose_mailboxes_and_flags(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A", "B"]}) { errors { code } } }')
    await add_filter(
        ada, {"subject": "one"}, {"mailbox": {"path": "A"}, "seen": True}, name="first"
    )
    copied = {"mailbox": {"path": "B"}, "copyTo": [{"path": "B"}], "keywords": ["news", "x"]}
    await add_filter(ada, {}, copied, name="second")
    await add_filter(ada, {"from": "nobody"}, {"delete": True}, name="never")
    await add_filter(ada, {}, {"removeKeywords": ["x"], "flag": True, "stop": True}, name="third")
    await add_filter(ada, {}, {"delete": True}, name="behind")
    assert await deliver_without_queue_id(lmtp_client, raw_message("One")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"A": ["One"], "B": ["One"]}
    for path in ("A", "B"):
        assert await message_flags(ada, path) == [["\\Flagged", "\\Seen", "news"]]
    assert await deliver_without_queue_id(lmtp_client, raw_message("Two")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"A": ["One"], "B": ["One", "Two"]}
    assert await load_match_counts(ada) == [
        ("first", 1), ("second", 2), ("never", 0), ("third", 2), ("behind", 0)
    ]  # fmt: skip


async def load_filter_names(client: GraphQLClient) -> dict[str, list[str]]:
    """Load the names of the filters that acted on each message, by subject."""
    document = (
        "{ viewer { user { messages(first: 50) { nodes { subject matchedFilters { name } } } } } }"
    )
    nodes = (await client(document))["viewer"]["user"]["messages"]["nodes"]
    return {
        node["subject"]: [filter_["name"] for filter_ in node["matchedFilters"]] for node in nodes
    }


async def test_message_lists_filters_that_acted_on_it(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, statements: list[str]
) -> None:
    news = await add_filter(ada, {"subject": "news"}, {"flag": True}, name="news")
    await add_filter(ada, {"larger": 1}, {"keywords": ["x"]}, name="all")
    await add_filter(ada, {}, {"seen": True}, name="off", active=False)
    assert await deliver_without_queue_id(lmtp_client, raw_message("News")) == [DELIVERED_REPLY]
    del statements[:]
    assert await load_filter_names(ada) == {"News": ["news", "all"]}
    expected = len(statements)
    for nth in range(19):
        assert await deliver_without_queue_id(lmtp_client, raw_message(f"No {nth}")) == [
            DELIVERED_REPLY
        ]
    del statements[:]
    assert len(await load_filter_names(ada)) == 20
    assert len(statements) == expected
    await delete_filters(ada, news["id"])
    assert (await load_filter_names(ada))["News"] == ["all"]


async def test_deleting_filter_accepts_message_and_stores_nothing(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    action = {"delete": True, "copyTo": [{"path": "Sent"}], "forwardTo": ["eve@example.net"]}
    await add_filter(ada, {"subject": "gone"}, action, name="gone")
    assert await deliver_without_queue_id(lmtp_client, raw_message("Gone")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {}
    ((_, recipient),) = await queued_envelopes(environment)
    assert recipient == "eve@example.net"
    assert await load_match_counts(ada) == [("gone", 1)]


async def test_spam_action_decides_between_junk_and_inbox(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await add_filter(ada, {"subject": "bad"}, {"spam": True, "mailbox": {"path": "Sent"}})
    await add_filter(ada, {"subject": "good"}, {"spam": False})
    spam_header = {"X-Spam-Flag": "YES"}
    assert await deliver_without_queue_id(lmtp_client, raw_message("Bad")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(lmtp_client, raw_message("Good", **spam_header)) == [
        DELIVERED_REPLY
    ]
    assert await deliver_without_queue_id(lmtp_client, raw_message("Else", **spam_header)) == [
        DELIVERED_REPLY
    ]
    subjects = await subjects_by_mailbox(environment, ada)
    assert subjects.pop("INBOX") == ["Good"]
    assert sorted(*subjects.values()) == ["Bad", "Else"]


async def test_spam_level_100_keeps_mail_out_of_junk(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await ada(
        "mutation { userUpdate(input: {set: {spam: {level: 100}}}) { errors { code message } } }"
    )
    await add_filter(ada, {}, {"spam": True})
    assert await deliver_without_queue_id(lmtp_client, raw_message("Bad")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Bad"]}


async def test_filter_redirects_once_per_target_and_hides_relay_password(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    relay = "smtp://user:secret-word@relay.example:2525"
    await add_filter(ada, {}, {"forwardTo": ["eve@example.net", relay]})
    await add_filter(ada, {}, {"forwardTo": ["EVE@example.net"]})
    assert await deliver_without_queue_id(lmtp_client, raw_message("One")) == [DELIVERED_REPLY]
    assert sorted(recipient for _, recipient in await queued_envelopes(environment)) == [
        "ada@example.org",
        "eve@example.net",
    ]
    ((via,),) = await select_rows(
        environment, "SELECT via FROM queue_entries WHERE via IS NOT NULL"
    )
    assert "secret-word" not in str(via)
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["One"]}


async def test_filter_replies_once_per_sender_and_not_to_lists(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await add_filter(ada, {"subject": "ask"}, {"reply": {"text": "So it is", "html": "<b>So</b>"}})
    for nth in range(2):
        assert await deliver_without_queue_id(
            lmtp_client, raw_message(f"Ask {nth}", To="ada@example.org")
        ) == [DELIVERED_REPLY]
    assert await queued_envelopes(environment) == [("", "carol@example.com")]
    list_header = {"To": "ada@example.org", "List-Id": "<a.example>"}
    await deliver_without_queue_id(
        lmtp_client, raw_message("Ask", **list_header), sender="dan@example.com"
    )
    await deliver_without_queue_id(
        lmtp_client, raw_message("Ask", To="team@example.net"), sender="dan@example.com"
    )
    assert len(await queued_envelopes(environment)) == 1
    clock.tick(days=2)
    assert await deliver_without_queue_id(
        lmtp_client, raw_message("Ask 3", To="ada@example.org")
    ) == [DELIVERED_REPLY]
    assert len(await queued_envelopes(environment)) == 2


async def test_filter_calls_webhook_with_message(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    webhook_ids = []
    for nth in range(2):
        arguments = {
            "types": ["LIMIT_REACHED"],
            "url": f"https://h.example/{nth}",
            "user": user_reference(ada),
        }
        webhook_id = (await execute_mutation(root, "webhookCreate", "webhook { id }", **arguments))[
            "webhook"
        ]["id"]
        webhook_ids.append(webhook_id)
    first_filter = await add_filter(ada, {}, {"webhook": {"id": webhook_ids[0]}})
    second_filter = await add_filter(
        ada, {"subject": "gone"}, {"webhook": {"id": webhook_ids[0]}, "delete": True}
    )
    await add_filter(ada, {"subject": "never"}, {"webhook": {"id": webhook_ids[1]}})
    assert await deliver_without_queue_id(lmtp_client, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(lmtp_client, raw_message("Gone")) == [DELIVERED_REPLY]
    document = """{ webhooks { nodes { url deliveries { nodes { type state body } } } } }"""
    nodes = (await root(document))["webhooks"]["nodes"]
    deliveries_by_url = {node["url"]: node["deliveries"]["nodes"] for node in nodes}
    assert deliveries_by_url["https://h.example/1"] == []
    latest, earliest = deliveries_by_url["https://h.example/0"]
    (row_id,) = (await select_rows(environment, "SELECT id FROM messages"))[0]
    message_id = global_ids.encode("Message", row_id)
    (entry,) = earliest["body"]["objects"]
    assert (earliest["type"], earliest["body"]["user"]["username"]) == ("FILTER_MATCHED", "ada")
    assert entry == {"id": first_filter["id"], "message": message_id, "size": entry["size"]}
    references = [(entry["id"], entry["message"]) for entry in latest["body"]["objects"]]
    assert references == [(first_filter["id"], None), (second_filter["id"], None)]
    assert {latest["state"], earliest["state"]} == {"PENDING"}


async def test_filter_calls_webhook_of_domain_admin_only_while_the_account_is_in_reach(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    keeper = await make_domain_admin(environment, ada.http, "keeper")
    arguments = {"url": "https://h.example/", "user": user_reference(ada)}
    created = await execute_mutation(keeper, "webhookCreate", "webhook { id }", **arguments)
    await add_filter(ada, {}, {"webhook": {"id": created["webhook"]["id"]}})
    for subject, role in (("One", "DOMAIN_ADMIN"), ("Two", "USER"), ("Three", "USER")):
        assert await deliver_without_queue_id(lmtp_client, raw_message(subject)) == [
            DELIVERED_REPLY
        ]
        users = {"ids": [user_global_id(ada)]}
        payload = await execute_mutation(root, "userRoleSet", "", users=users, role=role)
        assert payload["errors"] == []
    sizes = "SELECT count(*) FROM webhook_deliveries WHERE type = 'FILTER_MATCHED'"
    assert await select_rows(environment, sizes) == [(2,)]


def user_reference(client: GraphQLClient) -> dict[str, str]:
    return {"id": user_global_id(client)}


async def test_filters_replace_implicit_keep_of_script(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A", "B"]}) { errors { code } } }')
    await add_filter(ada, {}, {"mailbox": {"path": "A"}, "keywords": ["x"]})
    script = 'require "fileinto"; if header :contains "subject" "two" { fileinto "B"; }'
    await put_sieve_script(ada, script)
    assert await deliver_without_queue_id(lmtp_client, raw_message("One")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(lmtp_client, raw_message("Two")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"A": ["One"], "B": ["Two"]}
    assert await message_flags(ada, "A") == [["x"]]


async def test_filters_apply_only_to_mail_of_their_user(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await add_filter(bob, {}, {"delete": True})
    (bob_filter,) = (await list_filters(bob))["nodes"]
    recipients = ("ada@example.org", "bob@example.org")
    replies = await deliver_without_queue_id(lmtp_client, raw_message("One"), *recipients)
    assert replies == [DELIVERED_REPLY, DELIVERED_REPLY]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["One"]}
    assert await subjects_by_mailbox(environment, bob) == {}
    await try_update_filters(bob, bob_filter["id"], active=False)
    assert await deliver_without_queue_id(lmtp_client, raw_message("Two"), "bob@example.org") == [
        DELIVERED_REPLY
    ]
    assert await subjects_by_mailbox(environment, bob) == {"INBOX": ["Two"]}


async def test_filters_of_many_recipients_are_read_once(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, statements: list[str]
) -> None:
    others = [await make_client(environment, ada.http, f"user{nth}") for nth in range(20)]
    del statements[:]
    await deliver_without_queue_id(
        lmtp_client, raw_message("None"), *(item.address for item in others)
    )
    assert not [item for item in statements if "FROM filters" in item and "EXISTS" not in item]
    for item in (ada, *others):
        await add_filter(item, {"subject": "x"}, {"flag": True})

    async def count_filter_queries(*recipients: str) -> int:
        del statements[:]
        assert set(
            await deliver_without_queue_id(lmtp_client, raw_message("One"), *recipients)
        ) == {DELIVERED_REPLY}
        return len([item for item in statements if "FROM filters" in item and "EXISTS" not in item])

    assert await count_filter_queries(ada.address) == 1
    assert await count_filter_queries(*(item.address for item in others)) == 1


async def test_filters_beyond_step_limit_are_named_in_log_and_filter_test(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, caplog: pytest.LogCaptureFixture
) -> None:
    costly = await add_filter(ada, {"toOrCc": "b@"}, {"flag": True}, name="costly")
    await add_filter(ada, {"subject": "many"}, {"seen": True}, name="cheap")
    inactive = await add_filter(
        ada, {"toOrCc": "c@"}, {"flag": True}, name="inactive", active=False
    )
    recipients = b"".join(b"To: a%d@example.org\r\n" % number for number in range(6000))
    message = recipients + raw_message("Many")
    assert await deliver_without_queue_id(lmtp_client, message) == [DELIVERED_REPLY]
    (record,) = [record for record in caplog.records if "too many steps" in record.message]
    assert vars(record)["filters"] == [global_ids.decode("Filter", costly["id"])]
    assert await message_flags(ada, "INBOX") == [["\\Seen"]]
    results = await run_filter_test(ada, message={"raw": message.decode()})
    assert [
        (result["filter"]["name"], result["matches"], result["stepLimitReached"])
        for result in results
    ] == [("costly", False, True), ("cheap", True, False), (inactive["name"], False, True)]
