"""Keywords are compared without case (RFC 9051, section 2.3.2), and keep their first spelling."""

from mail.connectors.remote_server import RemoteMessage
from mail.storage.message_flags import unique_keywords, without_keywords
from resolvers.connectors.message_storage import local_flags
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.mail.stored_messages import message_flags
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import DELIVERED_REPLY, deliver_without_queue_id
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.operations.filter_operations import add_filter
from tests.support.stores.counter_check import select_rows


def test_keywords_that_differ_in_ascii_case_are_one() -> None:
    assert unique_keywords(["Blue", "blue", "a", "BLUE", "É", "é"]) == ["Blue", "a", "É", "é"]
    assert without_keywords(["Blue", "BLUE", "a"], ["blue"]) == ["a"]


def test_fetched_message_has_each_keyword_once() -> None:
    flags = frozenset({"\\Seen", "NonJunk", "nonjunk", "$Forwarded", "Perso/Travail"})
    assert local_flags(RemoteMessage("1", 9, flags, None)) == [
        "\\Seen", "$Forwarded", "NonJunk", "Perso/Travail",
    ]  # fmt: skip


async def test_imported_message_has_each_keyword_once(ada: GraphQLClient) -> None:
    answer = await run_message_mutation(
        ada,
        "messageImport",
        mailbox={"path": "INBOX"},
        raw=raw_message("One").decode(),
        keywords=["Blue", "blue", "BLUE", "red"],
    )
    assert answer["errors"] == []
    (row,) = await select_rows(ada.environment, "SELECT keywords FROM messages")
    assert row[0] in ('["Blue", "red"]', '["Blue","red"]', ["Blue", "red"])


async def test_filters_give_each_keyword_once(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    for name, keywords in (("a", ["Blue"]), ("b", ["blue", "red", "BLUE"])):
        await add_filter(ada, {}, {"keywords": keywords}, name=name)
    await add_filter(ada, {}, {"removeKeywords": ["RED"]}, name="c")
    assert await deliver_without_queue_id(lmtp_client, raw_message("One")) == [DELIVERED_REPLY]
    assert await message_flags(ada, "INBOX") == [["Blue"]]


async def test_forwarded_keyword_is_recognized_in_any_case(ada: GraphQLClient) -> None:
    await deliver_to(ada, raw_message("One"))
    answer = await run_message_mutation(
        ada, "messageUpdate", select=inbox_selection("1"), set={"addFlags": ["$FORWARDED"]}
    )
    assert answer["messages"][0]["imap"]["flags"] == ["$FORWARDED"]
    document = "{ viewer { user { messages(first: 1) { nodes { forwarded } } } } }"
    (node,) = (await ada(document))["viewer"]["user"]["messages"]["nodes"]
    assert node == {"forwarded": True}
