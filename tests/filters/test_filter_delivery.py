"""Mail that comes in by LMTP is run through the filters of its account."""

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from tests.conftest import Client, Clock, make_client, raw_message
from tests.support.accounts.user_operations import id_of, run
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import message_flags, subjects_by_mailbox
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.filter_operations import change, listed, made, remove
from tests.support.operations.sieve_operations import put
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")


async def counts(client: Client) -> list[tuple[str, int]]:
    return [(one["name"], one["matchCount"]) for one in (await listed(client))["nodes"]]


async def test_filters_say_where_mail_goes_and_how_it_lies_there(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A", "B"]}) { errors { code } } }')
    await made(ada, {"subject": "one"}, {"mailbox": {"path": "A"}, "seen": True}, name="first")
    copied = {"mailbox": {"path": "B"}, "copyTo": [{"path": "B"}], "labels": ["news", "x"]}
    await made(ada, {}, copied, name="second")
    await made(ada, {"from": "nobody"}, {"delete": True}, name="never")
    await made(ada, {}, {"removeLabels": ["x"], "flag": True, "stop": True}, name="third")
    await made(ada, {}, {"delete": True}, name="behind")
    assert await deliver_without_queue_id(neighbour, raw_message("One")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"A": ["One"], "B": ["One"]}
    for path in ("A", "B"):
        assert await message_flags(ada, path) == [["\\Flagged", "\\Seen", "news"]]
    assert await deliver_without_queue_id(neighbour, raw_message("Two")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"A": ["One"], "B": ["One", "Two"]}
    assert await counts(ada) == [
        ("first", 1), ("second", 2), ("never", 0), ("third", 2), ("behind", 0)
    ]  # fmt: skip


async def acted(client: Client) -> dict[str, list[str]]:
    """The names of the filters that acted on each message, by its subject."""
    document = "{ viewer { user { messages(first: 50) { nodes { subject filters { name } } } } } }"
    nodes = (await client(document))["viewer"]["user"]["messages"]["nodes"]
    return {node["subject"]: [one["name"] for one in node["filters"]] for node in nodes}


async def test_a_message_knows_the_filters_that_acted_on_it(
    ada: Client, neighbour: Neighbour, statements: list[str]
) -> None:
    news = await made(ada, {"subject": "news"}, {"flag": True}, name="news")
    await made(ada, {"size": 1}, {"labels": ["x"]}, name="all")
    await made(ada, {}, {"seen": True}, name="off", active=False)
    assert await deliver_without_queue_id(neighbour, raw_message("News")) == [DELIVERED_REPLY]
    del statements[:]
    assert await acted(ada) == {"News": ["news", "all"]}
    many = len(statements)
    for nth in range(19):
        assert await deliver_without_queue_id(neighbour, raw_message(f"No {nth}")) == [
            DELIVERED_REPLY
        ]
    del statements[:]
    assert len(await acted(ada)) == 20
    assert len(statements) == many
    await remove(ada, news["id"])
    assert (await acted(ada))["News"] == ["all"]


async def test_what_is_deleted_is_nowhere_and_was_taken(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    gone = {"delete": True, "copyTo": [{"path": "Sent"}], "targets": ["eve@example.net"]}
    await made(ada, {"subject": "gone"}, gone, name="gone")
    assert await deliver_without_queue_id(neighbour, raw_message("Gone")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {}
    ((_, to),) = await queued_envelopes(world)
    assert to == "eve@example.net"
    assert await counts(ada) == [("gone", 1)]


async def test_spam_goes_to_junk_and_what_is_none_stays_out(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await made(ada, {"subject": "bad"}, {"spam": True, "mailbox": {"path": "Sent"}})
    await made(ada, {"subject": "good"}, {"spam": False})
    scored = {"X-Spam-Flag": "YES"}
    assert await deliver_without_queue_id(neighbour, raw_message("Bad")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(neighbour, raw_message("Good", **scored)) == [
        DELIVERED_REPLY
    ]
    assert await deliver_without_queue_id(neighbour, raw_message("Else", **scored)) == [
        DELIVERED_REPLY
    ]
    found = await subjects_by_mailbox(world, ada)
    assert found.pop("INBOX") == ["Good"]
    assert sorted(*found.values()) == ["Bad", "Else"]


async def test_a_level_of_a_hundred_keeps_all_out_of_junk(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await ada("mutation { userUpdate(input: {set: {spamLevel: 100}}) { errors { code message } } }")
    await made(ada, {}, {"spam": True})
    assert await deliver_without_queue_id(neighbour, raw_message("Bad")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Bad"]}


async def test_each_target_is_sent_to_once_a_relay_with_its_password(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    relay = "smtp://user:secret-word@relay.example:2525"
    await made(ada, {}, {"targets": ["eve@example.net", relay]})
    await made(ada, {}, {"targets": ["EVE@example.net"]})
    assert await deliver_without_queue_id(neighbour, raw_message("One")) == [DELIVERED_REPLY]
    assert sorted(to for _, to in await queued_envelopes(world)) == [
        "ada@example.org",
        "eve@example.net",
    ]
    ((shown,),) = await rows(world, "SELECT via FROM deliveries WHERE via IS NOT NULL")
    assert "secret-word" not in str(shown)
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["One"]}


async def test_a_filter_answers_once_and_no_list(
    ada: Client, world: Environment, neighbour: Neighbour, clock: Clock
) -> None:
    await made(ada, {"subject": "ask"}, {"reply": {"text": "So it is", "html": "<b>So</b>"}})
    for nth in range(2):
        assert await deliver_without_queue_id(
            neighbour, raw_message(f"Ask {nth}", To="ada@example.org")
        ) == [DELIVERED_REPLY]
    assert await queued_envelopes(world) == [("", "carol@example.com")]
    listed_ = {"To": "ada@example.org", "List-Id": "<a.example>"}
    await deliver_without_queue_id(
        neighbour, raw_message("Ask", **listed_), sender="dan@example.com"
    )
    await deliver_without_queue_id(
        neighbour, raw_message("Ask", To="team@example.net"), sender="dan@example.com"
    )
    assert len(await queued_envelopes(world)) == 1
    clock.tick(days=2)
    assert await deliver_without_queue_id(
        neighbour, raw_message("Ask 3", To="ada@example.org")
    ) == [DELIVERED_REPLY]
    assert len(await queued_envelopes(world)) == 2


async def test_a_webhook_is_called_with_the_message(
    ada: Client, root: Client, world: Environment, neighbour: Neighbour
) -> None:
    hooks = []
    for nth in range(2):
        given = {"types": ["limit.*"], "url": f"https://h.example/{nth}", "user": id_ref(ada)}
        hook = (await run(root, "webhookCreate", "webhook { id }", **given))["webhook"]["id"]
        hooks.append(hook)
    one = await made(ada, {}, {"webhook": hooks[0]})
    other = await made(ada, {"subject": "gone"}, {"webhook": hooks[0], "delete": True})
    await made(ada, {"subject": "never"}, {"webhook": hooks[1]})
    assert await deliver_without_queue_id(neighbour, raw_message("Hello")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(neighbour, raw_message("Gone")) == [DELIVERED_REPLY]
    document = """{ webhooks { nodes { url deliveries { nodes { type state body } } } } }"""
    nodes = (await root(document))["webhooks"]["nodes"]
    posts = {node["url"]: node["deliveries"]["nodes"] for node in nodes}
    assert posts["https://h.example/1"] == []
    late, early = posts["https://h.example/0"]
    (message,) = (await rows(world, "SELECT id FROM messages"))[0]
    key = global_ids.encode("Message", message)
    (told,) = early["body"]["objects"]
    assert (early["type"], early["body"]["user"]["username"]) == ("filter.matched", "ada")
    assert told == {"id": one["id"], "message": key, "size": told["size"]}
    found = [(told["id"], told["message"]) for told in late["body"]["objects"]]
    assert found == [(one["id"], None), (other["id"], None)]
    assert {late["state"], early["state"]} == {"WAITING"}


def id_ref(client: Client) -> dict[str, str]:
    return {"id": id_of(client)}


async def test_filters_are_the_default_of_a_script(
    ada: Client, world: Environment, neighbour: Neighbour
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A", "B"]}) { errors { code } } }')
    await made(ada, {}, {"mailbox": {"path": "A"}, "labels": ["x"]})
    script = 'require "fileinto"; if header :contains "subject" "two" { fileinto "B"; }'
    await put(ada, script)
    assert await deliver_without_queue_id(neighbour, raw_message("One")) == [DELIVERED_REPLY]
    assert await deliver_without_queue_id(neighbour, raw_message("Two")) == [DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"A": ["One"], "B": ["Two"]}
    assert await message_flags(ada, "A") == [["x"]]


async def test_another_users_filters_are_none_of_ours(
    ada: Client, bob: Client, world: Environment, neighbour: Neighbour
) -> None:
    await made(bob, {}, {"delete": True})
    (one,) = (await listed(bob))["nodes"]
    recipients = ("ada@example.org", "bob@example.org")
    replies = await deliver_without_queue_id(neighbour, raw_message("One"), *recipients)
    assert replies == [DELIVERED_REPLY, DELIVERED_REPLY]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["One"]}
    assert await subjects_by_mailbox(world, bob) == {}
    await change(bob, one["id"], active=False)
    assert await deliver_without_queue_id(neighbour, raw_message("Two"), "bob@example.org") == [
        DELIVERED_REPLY
    ]
    assert await subjects_by_mailbox(world, bob) == {"INBOX": ["Two"]}


async def test_many_recipients_ask_the_store_for_filters_once(
    ada: Client, world: Environment, neighbour: Neighbour, statements: list[str]
) -> None:
    others = [await make_client(world, ada.http, f"user{nth}") for nth in range(20)]
    del statements[:]
    await deliver_without_queue_id(neighbour, raw_message("None"), *(one.address for one in others))
    assert not [one for one in statements if "FROM filters" in one and "EXISTS" not in one]
    for one in (ada, *others):
        await made(one, {"subject": "x"}, {"flag": True})

    async def cost(*to: str) -> int:
        del statements[:]
        assert set(await deliver_without_queue_id(neighbour, raw_message("One"), *to)) == {
            DELIVERED_REPLY
        }
        return len([one for one in statements if "FROM filters" in one and "EXISTS" not in one])

    assert await cost(ada.address) == 1
    assert await cost(*(one.address for one in others)) == 1
