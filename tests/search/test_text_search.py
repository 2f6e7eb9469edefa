"""Test text search in one account and in many: query syntax, relevance and snippets."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.search import index_worker
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from resolvers.search.query_keys import DOVEADM_KEYS, KNOWN_KEYS
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_client,
    raw_message,
)
from tests.support.case_loop import each_case
from tests.support.lists.extreme_search_values import EXTREME_SEARCH_VALUES
from tests.support.operations.search_operations import SEARCH_QUERY, search_subjects

METADATA_QUERY = """
query ($users: UserSelection, $query: String, $first: Int, $after: String, $before: String,
       $last: Int) {
  messages(users: $users, query: $query, first: $first, after: $after, before: $before,
           last: $last) {
    nodes { imap { uid } user { username } size } totalCount
    pageInfo { startCursor endCursor hasNextPage hasPreviousPage } } }
"""
PARSE_QUERY = """
query ($query: String, $filter: MessageFilter) {
  searchParse(query: $query, filter: $filter) { text filter usesIndex problems problemCount } }
"""
FLAG_MESSAGES = """
mutation ($select: MessageSelection!, $flagged: Boolean! = true) {
  messageUpdate(input: {select: $select, set: {flagged: $flagged}}) {
    updatedCount errors { code path } } }
"""


@pytest.fixture
async def ada_with_messages(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock, environment: Environment
) -> GraphQLClient:
    await create_mailboxes(client_context(ada), NewMailboxes(["Work"]))
    for subject, body in (
        ("Bill", "You owe us nothing. " * 3),
        ("Lunch", "The bill is on me, <b>dear</b> Ann & Bob. The duck was good."),
        ("Duck", "Nothing to see."),
    ):
        await deliver_to(ada, raw_message(subject, body=body))
        clock.tick(hours=1)
    await deliver_to(bob, raw_message("Secret", body="the bill of a duck"))
    await index_worker.index_next_batch_and_record_contacts(environment)
    return ada


async def test_query_text_finds_messages(
    ada_with_messages: GraphQLClient, bob: GraphQLClient
) -> None:
    for query, expected in (
        ("", ["Duck", "Lunch", "Bill"]),
        ("bill", ["Lunch", "Bill"]),
        ("bill -duck", ["Bill"]),
        ("in:inbox subject:l", ["Lunch", "Bill"]),
        ("-in:inbox", []),
        ("in:Work", []),
        ("(subject:bill OR subject:duck) after:2030-01-01", ["Duck", "Bill"]),
        ('"on me" OR see', ["Duck", "Lunch"]),
        ("NOT ( BODY duck OR SUBJECT duck )", ["Bill"]),
        ("SINCE 2030-01-01 HEADER Subject unch", ["Lunch"]),
        ("MAILBOX INBOX UID 2:*", ["Duck", "Lunch"]),
        ("is:unread has:attachment", []),
    ):
        assert await search_subjects(ada_with_messages, query) == expected, query
    assert await search_subjects(ada_with_messages, "bill", filter={"subject": "lun"}) == ["Lunch"]
    assert await search_subjects(bob, "bill") == ["Secret"]


PROBLEMS_QUERY = """
query ($query: String, $filter: MessageFilter, $orderBy: MessageOrder! = RECEIVED_AT_DESC) {
  messages(query: $query, filter: $filter, orderBy: $orderBy) {
    nodes { subject } totalCount queryProblems { term position message } }
  viewer { user { username } } }
"""


async def search_valid_part(
    client: GraphQLClient, query: str, **extra: Any
) -> tuple[list[str], list[Any]]:
    """Return the subjects found, and the terms left out with their position and reason."""
    answer = await client(PROBLEMS_QUERY, query=query, **extra)
    assert answer["viewer"]["user"]["username"] == client.user.username
    connection = answer["messages"]
    assert connection["totalCount"] == len(connection["nodes"])
    problems = [tuple(problem.values()) for problem in connection["queryProblems"]]
    return [node["subject"] for node in connection["nodes"]], problems


UNCLOSED_QUOTE = "The closing quotation mark is missing."
MISSING_VALUE = "The value is missing."
VALID_PART_CASES: list[tuple[str, list[str], tuple[str, int, str]]] = [
    ('bill from:"x', ["Lunch", "Bill"], ('from:"x', 6, UNCLOSED_QUOTE)),
    ('from:"x y bill', [], ('from:"x y bill', 1, UNCLOSED_QUOTE)),
    ('-duck bill -"du', ["Bill"], ('-"du', 12, UNCLOSED_QUOTE)),
    ("duck from:", ["Duck", "Lunch"], ("from:", 6, MISSING_VALUE)),
    ("from:", [], ("from:", 1, MISSING_VALUE)),
    ("bill (duck OR see", ["Lunch"], ("(duck OR see", 6, "The closing bracket is missing.")),
    ("duck OR", ["Duck", "Lunch"], ("", 8, "A term is missing before it.")),
    ("OR duck", ["Duck", "Lunch"], ("OR", 1, "A term is missing before it.")),
    (
        "duck OR foo:x",
        ["Duck", "Lunch"],
        ("foo:x", 9, "Unknown search key. To search for the words, put them in quotation"),
    ),
    (
        "bill -foo:x",
        ["Lunch", "Bill"],
        ("-foo:x", 6, "Unknown search key. To search for the words, put them in quotation"),
    ),
    ("bill NOT", ["Lunch", "Bill"], ("NOT", 6, "The value is missing.")),
    ("bill -(is:od)", ["Lunch", "Bill"], ("is:od", 8, "The value must be one of")),
    ("bill FROM", ["Lunch", "Bill"], ("FROM", 6, MISSING_VALUE)),
    ("bill in:Wor", ["Lunch", "Bill"], ("in:Wor", 6, "Mailbox not found: Wor.")),
    ("bill -in:Wor", ["Lunch", "Bill"], ("-in:Wor", 6, "Mailbox not found: Wor.")),
    ("bill uid:1:", ["Lunch", "Bill"], ("uid:1:", 6, "`uids` requires a mailbox.")),
    (
        "bill uid:1: in:inbox",
        ["Lunch", "Bill"],
        ("uid:1:", 6, 'Must be a set of numbers such as "1,3'),
    ),
    ("bill thread:zz", ["Lunch", "Bill"], ("thread:zz", 6, "Not the global ID of a Thread.")),
    (
        "bill emailid:12",
        ["Lunch", "Bill"],
        ("emailid:12", 6, "An EMAILID must have 32 hexadecimal digits."),
    ),
    (
        "subject:bill !!! ???",
        ["Bill"],
        ("!!!", 14, "The search text must have at least one word, and at most 1024"),
    ),
    (
        "a " * 40 + "is:unread",
        ["Duck", "Lunch", "Bill"],
        ("a", 1, "The search text has at most 32 words"),
    ),
    ("bill after:soo", ["Lunch", "Bill"], ("after:soo", 6, "The value must be a time such as")),
    ("(is:seen OR " * 9 + "bill", [], ("is", 98, "Brackets are nested at most 8 levels deep.")),
    ("is:seen OR " * 249 + "is:seen", [], ("is:seen", 1, "A filter has at most 250")),
    ("x" * 5000, [], ("x" * 5000, 1, "The search text has at most 4096 characters.")),
]


async def test_incomplete_query_searches_its_valid_part(ada_with_messages: GraphQLClient) -> None:
    for case in each_case(VALID_PART_CASES):
        with case as (query, expected, problem):
            subjects, problems = await search_valid_part(ada_with_messages, query)
            assert subjects == expected
            term, position, message = problems[0]
            assert (term.startswith(problem[0]), position) == (True, problem[1])
            assert message.startswith(problem[2])


async def test_complete_query_has_no_problems(ada_with_messages: GraphQLClient) -> None:
    assert await search_valid_part(ada_with_messages, "bill -duck") == (["Bill"], [])
    document = "{ mailbox(by: {specialUse: INBOX}) { messages { queryProblems { term } } } }"
    assert (await ada_with_messages(document))["mailbox"]["messages"]["queryProblems"] == []


async def test_each_query_problem_has_its_position(ada_with_messages: GraphQLClient) -> None:
    subjects, problems = await search_valid_part(
        ada_with_messages, 'is:odd in:Nope bill after:x subject:"l'
    )
    assert subjects == ["Lunch", "Bill"]
    assert [problem[:2] for problem in problems] == [
        ("is:odd", 1), ("in:Nope", 8), ("after:x", 21), ('subject:"l', 29),
    ]  # fmt: skip


async def test_filter_applies_next_to_incomplete_query(ada_with_messages: GraphQLClient) -> None:
    filter_ = {"subject": "lun"}
    assert (await search_valid_part(ada_with_messages, "bill from:", filter=filter_))[0] == [
        "Lunch"
    ]
    assert (await search_valid_part(ada_with_messages, "from:", filter=filter_))[0] == []


async def test_incomplete_query_can_be_ordered_by_relevance(
    ada_with_messages: GraphQLClient,
) -> None:
    subjects, problems = await search_valid_part(
        ada_with_messages, 'is:unread "bil', orderBy="RELEVANCE"
    )
    assert (subjects, len(problems)) == (["Duck", "Lunch", "Bill"], 1)
    assert await search_valid_part(ada_with_messages, "from:", orderBy="RELEVANCE") == (
        [],
        [("from:", 1, MISSING_VALUE)],
    )


async def test_query_problem_shows_no_database_key(ada_with_messages: GraphQLClient) -> None:
    database_key = 77_777
    for query in (f"mailboxid:{global_ids.encode('Mailbox', database_key)}", "in:Wrk"):
        _, [problem] = await search_valid_part(ada_with_messages, query)
        assert str(database_key) not in problem[2]
    assert (
        await search_valid_part(
            ada_with_messages, f"bill mailboxid:{global_ids.encode('Mailbox', database_key)}"
        )
    )[1][0][2] == ("Mailbox not found.")


FILTER_QUERIES: list[str] = [
    "subject:bill", "from:carol -subject:duck", "bill OR duck", "(bill OR lunch) larger:1",
    "NOT bill", "is:unread", "in:INBOX duck", '"bill is"', "-bill",
]  # fmt: skip


async def test_query_in_filter_accepts_search_syntax(ada_with_messages: GraphQLClient) -> None:
    for case in each_case(FILTER_QUERIES):
        with case as text:
            expected = await search_subjects(ada_with_messages, text)
            assert await search_subjects(ada_with_messages, "", filter={"query": text}) == expected
            rest = await search_subjects(ada_with_messages, "", filter={"not": {"query": text}})
            assert sorted([*expected, *rest]) == ["Bill", "Duck", "Lunch"]
            answer = await ada_with_messages(FLAG_MESSAGES, select={"filter": {"query": text}})
            assert answer["messageUpdate"]["updatedCount"] == len(expected)
            await ada_with_messages(
                FLAG_MESSAGES, select={"filter": {"flagged": True}}, flagged=False
            )
            parsed = (await ada_with_messages(PARSE_QUERY, filter={"query": text}))["searchParse"]
            assert await search_subjects(ada_with_messages, parsed["text"]) == expected
            assert await search_subjects(ada_with_messages, "", filter=parsed["filter"]) == expected


INVALID_FILTER_QUERIES: list[str] = ["subject:bill from:", "ALL", "in:", "(from:bill", "NOT"]


async def test_invalid_query_in_filter_is_refused(ada_with_messages: GraphQLClient) -> None:
    for case in each_case(INVALID_FILTER_QUERIES):
        with case as text:
            answer = await ada_with_messages(FLAG_MESSAGES, select={"filter": {"query": text}})
            (error,) = answer["messageUpdate"]["errors"]
            assert (error["code"], error["path"]) == ("VALIDATION", ["select", "filter", "query"])
            assert answer["messageUpdate"]["updatedCount"] == 0
            assert len(await search_subjects(ada_with_messages, "is:flagged")) == 0


async def test_search_parse_returns_text_and_filter(ada_with_messages: GraphQLClient) -> None:
    async def parse(**arguments: Any) -> Any:
        return (await ada_with_messages(PARSE_QUERY, **arguments))["searchParse"]

    assert await parse(query='from:ann "a b" has:attachment before:30d') == {
        "text": 'from:ann "a b" has:attachment before:P30D',
        "filter": {
            "from": "ann",
            "query": '"a b"',
            "hasAttachment": True,
            "receivedBefore": {"ago": "P30D"},
        },
        "usesIndex": False,
        "problems": [],
        "problemCount": 0,
    }
    assert (await parse(query="duck (pond OR lake)"))["usesIndex"]
    assert not (await parse(query="-duck"))["usesIndex"]
    assert (await parse(query="duck from:"))["problems"] == [
        "'from:' at position 6: The value is missing."
    ]
    invalid = await parse(query="foo:bar UID 1")
    assert invalid["problems"] == [
        "'foo' at position 1: Unknown search key. To search for the words, "
        "put them in quotation marks.",
        "'UID' at position 9: `uids` requires a mailbox.",
    ]
    mailbox = await ada_with_messages.load_mailbox()
    filters: list[dict[str, Any]] = [
        {"mailbox": {"id": global_ids.encode("Mailbox", mailbox.id)}, "uids": "1:*", "seen": False},
        {"mailboxes": [{"path": "trash"}, {"specialUse": "TRASH"}], "searchable": True},
        {"or": [{"query": "-a"}, {"not": {"subject": 'x "y" \\'}}]},
        {"receivedSince": {"at": "2026-01-01T00:00:00Z"}, "sentBefore": {"ago": "P7D"}},
        {"header": {"name": "X-A"}, "attachment": {"contentType": "pdf"}, "larger": 5000},
        {"emailIds": ["0" * 32], "mailboxPatterns": ["a*", "%"], "modifiedSince": 7},
    ]
    for filter_ in filters:
        from_filter = await parse(filter=filter_)
        assert from_filter["filter"] == filter_
        from_text = await parse(query=from_filter["text"])
        assert (from_text["filter"], from_text["problems"]) == (filter_, []), from_filter["text"]
    assert (await parse())["text"] == "ALL"
    combined = await parse(query="a", filter={"seen": True})
    assert combined["text"] == "(a) (is:seen)"


async def test_search_parse_counts_the_problems_that_it_leaves_out(ada: GraphQLClient) -> None:
    parsed = (await ada(PARSE_QUERY, query=") " * 300))["searchParse"]
    assert (len(parsed["problems"]), parsed["problemCount"]) == (250, 600)
    parsed = (await ada(PARSE_QUERY, query="duck from:"))["searchParse"]
    assert (len(parsed["problems"]), parsed["problemCount"]) == (1, 1)


PARSED_QUERIES: list[tuple[str, list[str]]] = [
    ("from:", []),
    ("foo:bar UID 1", []),
    ("x" * 4097, []),
    ('"bill', []),
    ("", ["Duck", "Lunch", "Bill"]),
    ("ALL", ["Duck", "Lunch", "Bill"]),
    ("(ALL)", ["Duck", "Lunch", "Bill"]),
    ("NOT ALL", []),
    ("ALL OR bill", ["Duck", "Lunch", "Bill"]),
    ("-(or:())", ["Duck", "Lunch", "Bill"]),
    ("bill from:", ["Lunch", "Bill"]),
]


async def test_search_parse_returns_accepted_filter(ada_with_messages: GraphQLClient) -> None:
    for case in each_case(PARSED_QUERIES):
        with case as (text, subjects):
            for extra, expected in (
                ({}, subjects),
                ({"filter": {"subject": "bill"}}, [name for name in subjects if name == "Bill"]),
            ):
                assert await search_subjects(ada_with_messages, text, **extra) == expected
                parsed = (await ada_with_messages(PARSE_QUERY, query=text, **extra))["searchParse"]
                found = await search_subjects(ada_with_messages, "", filter=parsed["filter"])
                assert found == expected


async def test_snippet_marks_search_words(ada_with_messages: GraphQLClient) -> None:
    (lunch, bill) = (await ada_with_messages(SEARCH_QUERY, query='"the bill" OR owe OR ann'))[
        "messages"
    ]["nodes"]
    assert lunch["snippet"].startswith("The bill is on me, <b>dear</b> Ann & Bob.")
    assert lunch["marked"] == (
        "<mark>The</mark> <mark>bill</mark> is on me, &lt;b&gt;dear&lt;/b&gt; <mark>Ann</mark> "
        "&amp; Bob. <mark>The</mark> duck was good."
    )
    assert bill["marked"].startswith("You <mark>owe</mark> us nothing.")
    (duck, *_) = (await ada_with_messages(SEARCH_QUERY, query="subject:duck"))["messages"]["nodes"]
    assert duck["snippet"] == duck["marked"] == "Nothing to see."
    body = "filler " * 100 + "Grüße an 北京大学 " + "filler " * 100
    content_type = "text/plain; charset=utf-8"
    await deliver_to(ada_with_messages, raw_message("Far", body=body, Content_Type=content_type))
    (distant,) = (await ada_with_messages(SEARCH_QUERY, query="grusse 京大"))["messages"]["nodes"]
    assert "<mark>Grüße</mark> an 北<mark>京大</mark>学 filler" in distant["marked"]
    assert distant["snippet"].startswith("…filler")
    assert distant["snippet"].endswith("…")


async def test_snippet_marks_only_words_of_its_own_query(ada_with_messages: GraphQLClient) -> None:
    document = """query ($one: String, $two: String) {
      one: messages(query: $one, first: 1) { nodes { snippet(marked: true) } }
      two: messages(query: $two, first: 1) { nodes { snippet(marked: true) } } }"""

    async def load_snippets(**queries: str) -> list[str]:
        answer = await ada_with_messages(document, **queries)
        return [answer[name]["nodes"][0]["snippet"] for name in ("one", "two")]

    bill = (
        "The <mark>bill</mark> is on me, &lt;b&gt;dear&lt;/b&gt; Ann &amp; Bob. The duck was good."
    )
    duck = bill.replace("<mark>bill</mark>", "bill").replace("duck", "<mark>duck</mark>")
    assert await load_snippets(one="lunch bill", two="lunch duck") == [bill, duck]
    assert await load_snippets(one="subject:lunch", two="lunch bill") == [
        bill.replace("<mark>bill</mark>", "bill"),
        bill,
    ]


async def test_most_relevant_messages_come_first(
    ada_with_messages: GraphQLClient, clock: ManualClock
) -> None:
    clock.tick(hours=1)
    await deliver_to(ada_with_messages, raw_message("Last", body="x " * 500 + " bill"))
    await deliver_to(
        ada_with_messages, raw_message("Person", From="Bill <bill@example.com>", body="-")
    )
    arguments: dict[str, Any] = {"query": "bill", "orderBy": "RELEVANCE"}
    assert await search_subjects(ada_with_messages, **arguments) == [
        "Bill",
        "Person",
        "Lunch",
        "Last",
    ]
    page = (await ada_with_messages(SEARCH_QUERY, first=2, **arguments))["messages"]
    assert page["pageInfo"]["hasNextPage"]
    rest = (
        await ada_with_messages(SEARCH_QUERY, after=page["pageInfo"]["endCursor"], **arguments)
    )["messages"]
    assert [node["subject"] for node in rest["nodes"]] == ["Lunch", "Last"]
    assert rest["pageInfo"]["hasPreviousPage"]
    assert not rest["pageInfo"]["hasNextPage"]
    previous_page = (
        await ada_with_messages(
            SEARCH_QUERY, last=1, before=rest["pageInfo"]["startCursor"], **arguments
        )
    )["messages"]
    assert [node["subject"] for node in previous_page["nodes"]] == ["Person"]
    answer = await ada_with_messages.execute(SEARCH_QUERY, query="is:unread", orderBy="RELEVANCE")
    assert answer["errors"][0]["message"] == "The order RELEVANCE requires a search with words."


async def test_admin_searches_metadata_of_several_users(
    ada_with_messages: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    admin = await make_client(environment, http, "adam", role=Role.ADMIN)
    users = {"usernames": [ada_with_messages.user.username, bob.user.username]}
    query = "from:carol"
    result = (await admin(METADATA_QUERY, users=users, query=query))["messages"]
    assert [node["user"]["username"] for node in result["nodes"]] == ["bob", *["ada"] * 3]
    assert result["totalCount"] == 4
    first_page = (await admin(METADATA_QUERY, users=users, query=query, first=2))["messages"]
    assert first_page["pageInfo"]["hasNextPage"]
    second_page = await admin(
        METADATA_QUERY, users=users, query=query, after=first_page["pageInfo"]["endCursor"]
    )
    assert [node["imap"]["uid"] for node in second_page["messages"]["nodes"]] == [2, 1]
    previous_page = await admin(
        METADATA_QUERY,
        users=users,
        query=query,
        last=1,
        before=first_page["pageInfo"]["endCursor"],
    )
    assert [node["user"]["username"] for node in previous_page["messages"]["nodes"]] == ["bob"]
    refused = await admin.execute(SEARCH_QUERY, users=users, query=query)
    assert refused["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    for query in ("bill", "body:bill", "subject:bill", "filename:bill"):
        answer = await admin.execute(METADATA_QUERY, users=users, query=query)
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    for query in ("bill", ""):
        foreign = await bob.execute(METADATA_QUERY, users={"usernames": ["ada"]}, query=query)
        assert foreign["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        assert "errors" in await bob.execute(METADATA_QUERY, users={"all": True}, query=query)


@pytest.mark.usefixtures("ada_with_messages")
async def test_search_statement_count_is_independent_of_users(
    environment: Environment, http: httpx.AsyncClient, statements: list[str]
) -> None:
    admin = await make_client(environment, http, "adam", role=Role.ADMIN)
    for nth in range(6):
        await make_client(environment, http, f"user{nth}")
    counts = []
    for patterns in (["ada", "bob"], ["*"]):
        await admin(METADATA_QUERY, users={"patterns": patterns}, query="from:carol")
        del statements[:]
        result = await admin(METADATA_QUERY, users={"patterns": patterns}, query="from:carol")
        counts.append(len(statements))
        assert result["messages"]["totalCount"] == 4
    assert counts[0] == counts[1]


async def test_each_key_with_an_extreme_value_is_searched_or_refused(ada: GraphQLClient) -> None:
    await deliver_to(ada, "Hello duck")
    for prefix in [*(f"{key}:" for key in KNOWN_KEYS), *(f"{key} " for key in DOVEADM_KEYS)]:
        variables = {
            f"q{number}": f"{prefix}{value}" for number, value in enumerate(EXTREME_SEARCH_VALUES)
        }
        field = "messages(query: ${0}, first: 1) {{ totalCount }}"
        fields = " ".join(f"a{name}: {field.format(name)}" for name in variables)
        types = ", ".join(f"${name}: String" for name in variables)
        response = await ada.execute(f"query ({types}) {{ {fields} }}", **variables)
        codes = {error["extensions"]["code"] for error in response.get("errors", ())}
        assert codes <= {"BAD_USER_INPUT"}, (prefix, response["errors"])
