"""Test filters whose query is a search text."""

from typing import Any

from resolvers.filters import transfer
from resolvers.filters.search_query import NO_TEST_MESSAGE, NOT_AT_DELIVERY_MESSAGE
from tests.conftest import GraphQLClient, client_context, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.filter_operations import (
    FILTER_TEST_QUERY,
    add_filter,
    list_filters,
    summary_pairs,
    try_create_filter,
    try_update_filters,
)

RAW_MESSAGE = raw_message(
    "Re: Big bill", From="Ann Ü <ann@example.net>", To="bob@example.org", body="The duck is late."
)
MATCH_CASES = [
    ("subject:bill", True),
    ("subject:x", False),
    ("from:ANN subject:big", True),
    ("from:ann -subject:big", False),
    ("subject:x OR to:bob@", True),
    ("from:ann (subject:x OR body:duck)", True),
    ("NOT ( FROM ann SUBJECT x )", True),
    ("duck", True),
    ("duck bill Ü", True),
    ('"duck is" lat*', True),
    ('"is duck"', False),
    ("-goose", True),
    ("-duck", False),
    ("has:attachment", False),
    ("attachment:no smaller:1M", True),
    ("larger:1M", False),
    ("smaller:0", False),
    ("larger:0 ALL", True),
    ("header:From", True),
    ('header:"X-None: y"', False),
    ("toonly:bob cc:carol", False),
    ("or:() OR or:(subject:bill , subject:x)", True),
]


async def load_matches(client: GraphQLClient, message: bytes) -> dict[str, bool]:
    tests = (await client(FILTER_TEST_QUERY, message={"raw": message.decode()}))["filterTest"]
    return {outcome["filter"]["name"]: outcome["matches"] for outcome in tests}


async def test_filter_matches_by_search_text(ada: GraphQLClient) -> None:
    for text, _ in MATCH_CASES:
        filter_ = await add_filter(ada, {"query": text}, {"seen": True}, name=text)
        assert filter_["query"]["query"] == text
    assert await load_matches(ada, RAW_MESSAGE) == dict(MATCH_CASES)


async def test_search_text_is_combined_with_other_conditions(ada: GraphQLClient) -> None:
    query = {"query": "subject:bill", "from": "ann", "all": [{"query": "body:duck"}]}
    filter_ = await add_filter(ada, query, {"seen": True}, name="n")
    assert summary_pairs(filter_["querySummary"]) == [
        ["From", "ann"],
        ["Subject", "bill"],
        ["Text", "duck"],
    ]
    assert filter_["sieve"].count(":contains") == 3
    assert await load_matches(ada, RAW_MESSAGE) == {"n": True}
    ((after,), errors) = await try_update_filters(ada, filter_["id"], query={"query": "subject:x"})
    assert (errors, after["query"]["from"]) == ([], "ann")
    assert await load_matches(ada, RAW_MESSAGE) == {"n": False}
    ((after,), _) = await try_update_filters(ada, filter_["id"], query={"query": None})
    assert (after["query"]["query"], await load_matches(ada, RAW_MESSAGE)) == (None, {"n": True})


INVALID_QUERIES = [
    ("", "LENGTH", "Must have at least 1 character. Null removes the test."),
    (
        'subject:bill from:"x',
        "SYNTAX",
        "'from' at position 14: The closing quotation mark is missing.",
    ),
    ("form:ann", "SYNTAX", "'form' at position 1: Unknown search key."),
    (
        "subject:" + "x" * 256,
        "SYNTAX",
        "Must have from 1 to 255 characters, not only white space. Null removes the test.",
    ),
    (
        "-(" * 7 + "a" + ")" * 7,
        "SYNTAX",
        "Groups (all, any, not) are nested at most 5 levels deep.",
    ),
    ("a b c d e f g h i j k l m", "MAX", "A filter has at most 100 tests and groups."),
    (
        "from:ann mailbox:Work",
        "UNSUPPORTED",
        f"'mailbox:Work' at position 10: {NOT_AT_DELIVERY_MESSAGE}",
    ),
    ("in:trash", "UNSUPPORTED", f"'in:trash' at position 1: {NOT_AT_DELIVERY_MESSAGE}"),
    ("-keyword:news", "UNSUPPORTED", f"'-keyword:news' at position 1: {NOT_AT_DELIVERY_MESSAGE}"),
    ("label:news", "UNSUPPORTED", f"'label:news' at position 1: {NOT_AT_DELIVERY_MESSAGE}"),
    ("a OR is:seen", "UNSUPPORTED", f"'is:seen' at position 6: {NOT_AT_DELIVERY_MESSAGE}"),
    ("uid:1", "UNSUPPORTED", f"'uid:1' at position 1: {NOT_AT_DELIVERY_MESSAGE}"),
    (
        "(thread:x after:30d)",
        "UNSUPPORTED",
        f"'thread:x' at position 2: {NOT_AT_DELIVERY_MESSAGE} "
        f"'after:30d' at position 11: {NOT_AT_DELIVERY_MESSAGE}",
    ),
    (
        "mailboxes:(in:a , in:b)",
        "UNSUPPORTED",
        f"'in:a' at position 12: {NOT_AT_DELIVERY_MESSAGE} "
        f"'in:b' at position 19: {NOT_AT_DELIVERY_MESSAGE}",
    ),
    ("UNSEEN", "UNSUPPORTED", f"'UNSEEN' at position 1: {NOT_AT_DELIVERY_MESSAGE}"),
    ("filename:bill", "UNSUPPORTED", f"'filename:bill' at position 1: {NO_TEST_MESSAGE}"),
    ("recipient:bob", "UNSUPPORTED", f"'recipient:bob' at position 1: {NO_TEST_MESSAGE}"),
    ("TEXT duck", "UNSUPPORTED", f"'TEXT duck' at position 1: {NO_TEST_MESSAGE}"),
    ("sentsince:30d", "UNSUPPORTED", f"'sentsince:30d' at position 1: {NO_TEST_MESSAGE}"),
]


async def test_unsupported_search_term_is_reported(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_QUERIES):
        with case as (text, constraint, message):
            filter_, errors = await try_create_filter(
                ada, {"any": [{"from": "a"}, {"query": text}]}, {"seen": True}
            )
            path = ["query"] if constraint == "MAX" else ["query", "any", "1", "query"]
            assert filter_ is None
            assert [(error["code"], error["path"]) for error in errors] == [("VALIDATION", path)]
            assert message in errors[0]["message"]
            assert errors[0]["constraint"] == constraint
            assert (await list_filters(ada))["totalCount"] == 0


async def test_search_text_survives_export_and_import(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    query: dict[str, Any] = {"any": [{"query": "subject:bill OR duck"}, {"toOrCc": "x"}]}
    await add_filter(ada, query, {"seen": True}, name="n")
    (entry,) = await transfer.export_filters(client_context(ada), ada.user.id)
    assert entry["query"] == {"any": [query["any"][0], {"to": "x"}]}  # as it is stored
    assert (
        await transfer.import_filter_returning_targets_without_password(
            client_context(bob), entry, []
        )
        == []
    )
    assert await load_matches(bob, RAW_MESSAGE) == {"n": True}
