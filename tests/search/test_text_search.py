"""Searching by text, in one account and in many; relevance, and what is shown of what was found."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.search import index_worker
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.mailboxes.loaders import NewMailboxes, create_mailboxes
from tests.conftest import Client, Clock, context, make_client, raw_message, receive
from tests.support.operations.search_operations import SEARCH_QUERY, search_subjects

RECORDS = """
query ($users: UserSelection, $query: String, $first: Int, $after: String, $before: String,
       $last: Int) {
  messages(users: $users, query: $query, first: $first, after: $after, before: $before,
           last: $last) {
    nodes { uid user { username } size } totalCount
    pageInfo { startCursor endCursor hasNextPage hasPreviousPage } } }
"""
PARSE = """
query ($query: String, $filter: MessageFilter) {
  searchParse(query: $query, filter: $filter) { text filter usesIndex problems } }
"""
SET_FLAG = """
mutation ($select: MessageSelection!) {
  messageUpdate(input: {select: $select, set: {flagged: true}}) {
    updatedCount errors { code path } } }
"""


@pytest.fixture
async def post(ada: Client, bob: Client, clock: Clock, world: Environment) -> Client:
    await create_mailboxes(context(ada), NewMailboxes(["Work"]))
    for subject, body in (
        ("Bill", "You owe us nothing. " * 3),
        ("Lunch", "The bill is on me, <b>dear</b> Ann & Bob. The duck was good."),
        ("Duck", "Nothing to see."),
    ):
        await receive(ada, raw_message(subject, body=body))
        clock.tick(hours=1)
    await receive(bob, raw_message("Secret", body="the bill of a duck"))
    await index_worker.index_next_batch(world)
    return ada


async def test_a_search_is_a_text(post: Client, bob: Client) -> None:
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
        assert await search_subjects(post, query) == expected, query
    assert await search_subjects(post, "bill", filter={"subject": "lun"}) == ["Lunch"]
    assert await search_subjects(bob, "bill") == ["Secret"]


PROBLEMS = """
query ($query: String, $filter: MessageFilter, $orderBy: MessageOrder! = RECEIVED_DESC) {
  messages(query: $query, filter: $filter, orderBy: $orderBy) {
    nodes { subject } totalCount queryProblems { term position message } }
  viewer { user { username } } }
"""


async def valid_part(client: Client, query: str, **more: Any) -> tuple[list[str], list[Any]]:
    """Subjects that a text finds, and terms that were left out, with places and reasons."""
    answer = await client(PROBLEMS, query=query, **more)
    assert answer["viewer"]["user"]["username"] == client.user.username
    found = answer["messages"]
    assert found["totalCount"] == len(found["nodes"])
    problems = [tuple(one.values()) for one in found["queryProblems"]]
    return [node["subject"] for node in found["nodes"]], problems


UNCLOSED = "a quotation mark that is not closed"
MISSING = "its value is missing"
VALID_PARTS: list[tuple[str, list[str], tuple[str, int, str]]] = [
    ('bill from:"x', ["Lunch", "Bill"], ('from:"x', 6, UNCLOSED)),
    ('from:"x y bill', [], ('from:"x y bill', 1, UNCLOSED)),
    ('-duck bill -"du', ["Bill"], ('-"du', 12, UNCLOSED)),
    ("duck from:", ["Duck", "Lunch"], ("from:", 6, MISSING)),
    ("from:", [], ("from:", 1, MISSING)),
    ("bill (duck OR see", ["Lunch"], ("(duck OR see", 6, "a bracket that is not closed")),
    ("duck OR", ["Duck", "Lunch"], ("", 8, "something is missing before it")),
    ("OR duck", ["Duck", "Lunch"], ("OR", 1, "something is missing before it")),
    ("duck OR foo:x", ["Duck", "Lunch"], ("foo:x", 9, "there is no such key; put quotation")),
    ("bill -foo:x", ["Lunch", "Bill"], ("-foo:x", 6, "there is no such key; put quotation")),
    ("bill NOT", ["Lunch", "Bill"], ("NOT", 6, "it says not what")),
    ("bill -(is:od)", ["Lunch", "Bill"], ("is:od", 8, "it takes one of")),
    ("bill FROM", ["Lunch", "Bill"], ("FROM", 6, MISSING)),
    ("bill in:Wor", ["Lunch", "Bill"], ("in:Wor", 6, "there is no folder 'Wor'")),
    ("bill -in:Wor", ["Lunch", "Bill"], ("-in:Wor", 6, "there is no folder 'Wor'")),
    ("bill uid:1:", ["Lunch", "Bill"], ("uid:1:", 6, "uids go with a mailbox")),
    ("bill uid:1: in:inbox", ["Lunch", "Bill"], ("uid:1:", 6, 'a set of numbers is like "1,3')),
    ("bill thread:zz", ["Lunch", "Bill"], ("thread:zz", 6, "not the id of a Thread")),
    ("bill guid:12", ["Lunch", "Bill"], ("guid:12", 6, "a guid has 32 hex digits")),
    ("subject:bill !!! ???", ["Bill"], ("!!!", 14, "a search has words, in at most 1024")),
    ("a " * 40 + "is:unread", ["Duck", "Lunch", "Bill"], ("a", 1, "a search has at most 32 words")),
    ("bill after:soo", ["Lunch", "Bill"], ("after:soo", 6, "it takes a time such as")),
    ("(is:seen OR " * 9 + "bill", [], ("is", 98, "brackets go 8 levels deep")),
    ("is:seen OR " * 249 + "is:seen", [], ("is:seen", 1, "a filter has at most 250")),
    ("x" * 5000, [], ("x" * 5000, 1, "a search has at most 4096 characters")),
]


@pytest.mark.parametrize(("query", "found", "problem"), VALID_PARTS)
async def test_a_half_typed_search_finds_what_its_valid_part_says(
    post: Client, query: str, found: list[str], problem: tuple[str, int, str]
) -> None:
    subjects_, problems = await valid_part(post, query)
    assert subjects_ == found
    term, position, message = problems[0]
    assert (term.startswith(problem[0]), position) == (True, problem[1])
    assert message.startswith(problem[2])


async def test_a_whole_search_has_no_problems(post: Client) -> None:
    assert await valid_part(post, "bill -duck") == (["Bill"], [])
    listed = "{ mailbox(by: {specialUse: INBOX}) { messages { queryProblems { term } } } }"
    assert (await post(listed))["mailbox"]["messages"]["queryProblems"] == []


async def test_each_problem_is_told_with_its_place(post: Client) -> None:
    found, problems = await valid_part(post, 'is:odd in:Nope bill after:x subject:"l')
    assert found == ["Lunch", "Bill"]
    assert [problem[:2] for problem in problems] == [
        ("is:odd", 1), ("in:Nope", 8), ("after:x", 21), ('subject:"l', 29),
    ]  # fmt: skip


async def test_the_filter_beside_a_half_typed_search_holds(post: Client) -> None:
    asked = {"subject": "lun"}
    assert (await valid_part(post, "bill from:", filter=asked))[0] == ["Lunch"]
    assert (await valid_part(post, "from:", filter=asked))[0] == []


async def test_a_half_typed_search_can_be_ordered_by_relevance(post: Client) -> None:
    found, problems = await valid_part(post, 'is:unread "bil', orderBy="RELEVANCE")
    assert (found, len(problems)) == (["Duck", "Lunch", "Bill"], 1)
    assert await valid_part(post, "from:", orderBy="RELEVANCE") == ([], [("from:", 1, MISSING)])


async def test_a_problem_of_a_search_names_no_key_of_the_database(post: Client) -> None:
    key = 77_777
    for query in (f"mailboxid:{global_ids.encode('Mailbox', key)}", "in:Wrk"):
        _, [problem] = await valid_part(post, query)
        assert str(key) not in problem[2]
    assert (await valid_part(post, f"bill mailboxid:{global_ids.encode('Mailbox', key)}"))[1][0][
        2
    ] == ("there is no folder with this id")


@pytest.mark.parametrize(
    "text",
    [
        "subject:bill", "from:carol -subject:duck", "bill OR duck", "(bill OR lunch) larger:1",
        "NOT bill", "is:unread", "in:INBOX duck", '"bill is"', "-bill",
    ],
)  # fmt: skip
async def test_query_of_a_filter_has_the_language_of_a_search(post: Client, text: str) -> None:
    expected = await search_subjects(post, text)
    assert await search_subjects(post, "", filter={"query": text}) == expected
    rest = await search_subjects(post, "", filter={"not": {"query": text}})
    assert sorted([*expected, *rest]) == ["Bill", "Duck", "Lunch"]
    answer = await post(SET_FLAG, select={"filter": {"query": text}})
    assert answer["messageUpdate"]["updatedCount"] == len(expected)
    parsed = (await post(PARSE, filter={"query": text}))["searchParse"]
    assert await search_subjects(post, parsed["text"]) == expected
    assert await search_subjects(post, "", filter=parsed["filter"]) == expected


@pytest.mark.parametrize("text", ["subject:bill from:", "ALL", "in:", "(from:bill", "NOT"])
async def test_query_of_a_filter_is_refused_unless_all_of_it_is_valid(
    post: Client, text: str
) -> None:
    answer = await post(SET_FLAG, select={"filter": {"query": text}})
    (error,) = answer["messageUpdate"]["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["filter", "query"])
    assert answer["messageUpdate"]["updatedCount"] == 0
    assert len(await search_subjects(post, "is:flagged")) == 0


async def test_both_forms_are_told(post: Client) -> None:
    async def parsed(**asked: Any) -> Any:
        return (await post(PARSE, **asked))["searchParse"]

    assert await parsed(query='from:ann "a b" has:attachment before:30d') == {
        "text": 'from:ann "a b" has:attachment before:P30D',
        "filter": {
            "from": "ann",
            "query": '"a b"',
            "hasAttachment": True,
            "receivedBefore": {"ago": "P30D"},
        },
        "usesIndex": False,
        "problems": [],
    }
    assert (await parsed(query="duck (pond OR lake)"))["usesIndex"]
    assert not (await parsed(query="-duck"))["usesIndex"]
    assert (await parsed(query="duck from:"))["problems"] == ["'from:' at 6: its value is missing"]
    wrong = await parsed(query="foo:bar UID 1")
    assert wrong["problems"] == [
        "'foo' at 1: there is no such key; put quotation marks around words",
        "uids go with a mailbox",
    ]
    box = await post.box()
    filters: list[dict[str, Any]] = [
        {"mailbox": {"id": global_ids.encode("Mailbox", box.id)}, "uids": "1:*", "seen": False},
        {"mailboxes": [{"path": "trash"}, {"specialUse": "TRASH"}], "searchable": True},
        {"or": [{"query": "-a"}, {"not": {"subject": 'x "y" \\'}}]},
        {"receivedSince": {"at": "2026-01-01T00:00:00Z"}, "sentBefore": {"ago": "P7D"}},
        {"header": {"name": "X-A"}, "attachment": {"contentType": "pdf"}, "larger": 5000},
        {"guids": ["0" * 32], "mailboxMasks": ["a*", "%"], "modifiedSince": 7},
    ]
    for filter_ in filters:
        told = await parsed(filter=filter_)
        assert told["filter"] == filter_
        again = await parsed(query=told["text"])
        assert (again["filter"], again["problems"]) == (filter_, []), told["text"]
    assert (await parsed())["text"] == "ALL"
    both = await parsed(query="a", filter={"seen": True})
    assert both["text"] == "(a) (is:seen)"


async def test_what_was_searched_for_is_shown(post: Client) -> None:
    (lunch, bill) = (await post(SEARCH_QUERY, query='"the bill" OR owe OR ann'))["messages"][
        "nodes"
    ]
    assert lunch["snippet"].startswith("The bill is on me, <b>dear</b> Ann & Bob.")
    assert lunch["marked"] == (
        "<mark>The</mark> <mark>bill</mark> is on me, &lt;b&gt;dear&lt;/b&gt; <mark>Ann</mark> "
        "&amp; Bob. <mark>The</mark> duck was good."
    )
    assert bill["marked"].startswith("You <mark>owe</mark> us nothing.")
    (duck, *_) = (await post(SEARCH_QUERY, query="subject:duck"))["messages"]["nodes"]
    assert duck["snippet"] == duck["marked"] == "Nothing to see."
    body = "filler " * 100 + "Grüße an 北京大学 " + "filler " * 100
    plain = "text/plain; charset=utf-8"
    await receive(post, raw_message("Far", body=body, Content_Type=plain))
    (far,) = (await post(SEARCH_QUERY, query="grusse 京大"))["messages"]["nodes"]
    assert "<mark>Grüße</mark> an 北<mark>京大</mark>学 filler" in far["marked"]
    assert far["snippet"].startswith("…filler")
    assert far["snippet"].endswith("…")


async def test_what_others_or_other_lists_were_searched_for_is_not_shown(post: Client) -> None:
    document = """query ($one: String, $two: String) {
      one: messages(query: $one, first: 1) { nodes { snippet(marked: true) } }
      two: messages(query: $two, first: 1) { nodes { snippet(marked: true) } } }"""

    async def shown(**words: str) -> list[str]:
        found = await post(document, **words)
        return [found[name]["nodes"][0]["snippet"] for name in ("one", "two")]

    bill = (
        "The <mark>bill</mark> is on me, &lt;b&gt;dear&lt;/b&gt; Ann &amp; Bob. The duck was good."
    )
    duck = bill.replace("<mark>bill</mark>", "bill").replace("duck", "<mark>duck</mark>")
    assert await shown(one="lunch bill", two="lunch duck") == [bill, duck]
    assert await shown(one="subject:lunch", two="lunch bill") == [
        bill.replace("<mark>bill</mark>", "bill"),
        bill,
    ]


async def test_the_most_relevant_come_first(post: Client, clock: Clock) -> None:
    clock.tick(hours=1)
    await receive(post, raw_message("Last", body="x " * 500 + " bill"))
    await receive(post, raw_message("Person", From="Bill <bill@example.com>", body="-"))
    asked: dict[str, Any] = {"query": "bill", "orderBy": "RELEVANCE"}
    assert await search_subjects(post, **asked) == ["Bill", "Person", "Lunch", "Last"]
    page = (await post(SEARCH_QUERY, first=2, **asked))["messages"]
    assert page["pageInfo"]["hasNextPage"]
    rest = (await post(SEARCH_QUERY, after=page["pageInfo"]["endCursor"], **asked))["messages"]
    assert [node["subject"] for node in rest["nodes"]] == ["Lunch", "Last"]
    assert rest["pageInfo"]["hasPreviousPage"]
    assert not rest["pageInfo"]["hasNextPage"]
    back = (await post(SEARCH_QUERY, last=1, before=rest["pageInfo"]["startCursor"], **asked))[
        "messages"
    ]
    assert [node["subject"] for node in back["nodes"]] == ["Person"]
    answer = await post.raw(SEARCH_QUERY, query="is:unread", orderBy="RELEVANCE")
    assert answer["errors"][0]["message"] == "the order RELEVANCE is for searches with words"


async def test_administrators_find_records_in_many_accounts(
    post: Client, bob: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    admin = await make_client(world, http, "adam", role=Role.ADMIN)
    users = {"usernames": [post.user.username, bob.user.username]}
    found = (await admin(RECORDS, users=users, query="bill"))["messages"]
    assert [node["user"]["username"] for node in found["nodes"]] == ["bob", "ada", "ada"]
    assert found["totalCount"] == 3
    one = (await admin(RECORDS, users=users, query="bill", first=2))["messages"]
    assert one["pageInfo"]["hasNextPage"]
    two = await admin(RECORDS, users=users, query="bill", after=one["pageInfo"]["endCursor"])
    assert [node["uid"] for node in two["messages"]["nodes"]] == [1]
    back = await admin(
        RECORDS, users=users, query="bill", last=1, before=one["pageInfo"]["endCursor"]
    )
    assert [node["user"]["username"] for node in back["messages"]["nodes"]] == ["bob"]
    refused = await admin.raw(SEARCH_QUERY, users=users, query="bill")
    assert refused["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    read = await admin.raw(RECORDS, users=users, query="body:bill")
    assert read["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    for query in ("bill", ""):
        others = await bob.raw(RECORDS, users={"usernames": ["ada"]}, query=query)
        assert others["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        assert "errors" in await bob.raw(RECORDS, users={"all": True}, query=query)


@pytest.mark.usefixtures("post")
async def test_many_accounts_take_as_many_statements_as_two(
    world: Environment, http: httpx.AsyncClient, statements: list[str]
) -> None:
    admin = await make_client(world, http, "adam", role=Role.ADMIN)
    for nth in range(18):
        await make_client(world, http, f"user{nth}")
    counts = []
    for masks in (["ada", "bob"], ["*"]):
        await admin(RECORDS, users={"masks": masks}, query="bill")
        del statements[:]
        found = await admin(RECORDS, users={"masks": masks}, query="bill")
        counts.append(len(statements))
        assert found["messages"]["totalCount"] == 3
    assert counts[0] == counts[1]
