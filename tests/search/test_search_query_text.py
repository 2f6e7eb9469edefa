"""The text form of a search: read, written, and both."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resolvers.search.query_parser import MAX_QUERY_LENGTH, parse_search_query
from resolvers.search.query_printer import query_from_fields

NOW = datetime(2030, 1, 31, 12, 30, tzinfo=UTC)


def at(day: str) -> dict[str, str]:
    return {"at": f"{day}T00:00:00Z"}


TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("ALL", {}),
    ("duck", {"query": "duck"}),
    ('duck "exact words" begin*', {"query": 'duck "exact words" begin*'}),
    ("12:30 a_b", {"query": "12:30 a_b"}),
    ("-duck", {"not": {"query": "duck"}}),
    ("-A:", {"not": {"query": "A:"}}),
    ('-"the duck"', {"not": {"query": '"the duck"'}}),
    ('query:"-duck"', {"query": "-duck"}),
    ("from:ann from:bob", {"from": "ann", "and": [{"from": "bob"}]}),
    ('FROM:"Ann \\"A\\" B"', {"from": 'Ann "A" B'}),
    ("subject:re:hello", {"subject": "re:hello"}),
    (
        "has:attachment -in:trash",
        {"hasAttachment": True, "not": {"mailbox": {"specialUse": "TRASH"}}},
    ),
    (
        "in:Work/Old in:spam",
        {"mailbox": {"path": "Work/Old"}, "and": [{"mailbox": {"specialUse": "JUNK"}}]},
    ),
    (
        'from:ann has:attachment -in:trash (subject:bill OR larger:5M) after:2026-01-01 "exact w"',
        {
            "from": "ann",
            "hasAttachment": True,
            "not": {"mailbox": {"specialUse": "TRASH"}},
            "or": [{"subject": "bill"}, {"larger": 5 << 20}],
            "receivedSince": at("2026-01-01"),
            "query": '"exact w"',
        },
    ),
    ("a OR b c", {"or": [{"query": "a"}, {"query": "b c"}]}),
    ("(a) b", {"and": [{"query": "a"}], "query": "b"}),
    (
        "(a OR b) (c OR d)",
        {"or": [{"query": "a"}, {"query": "b"}], "and": [{"or": [{"query": "c"}, {"query": "d"}]}]},
    ),
    ("-(is:seen OR is:flagged)", {"not": {"or": [{"seen": True}, {"flagged": True}]}}),
    ("or:(is:seen)", {"or": [{"seen": True}]}),
    ("and:(is:seen , ALL)", {"and": [{"seen": True}, {}]}),
    ("is:unread is:starred", {"seen": False, "flagged": True}),
    ("forwarded:no searchable:yes", {"forwarded": False, "searchable": True}),
    ("before:30d since:P1W", {"receivedBefore": {"ago": "P30D"}, "receivedSince": {"ago": "P7D"}}),
    ("after:2026-01-31T08:00+01:00", {"receivedSince": {"at": "2026-01-31T07:00:00Z"}}),
    ("after:1700000000", {"receivedSince": {"at": "2023-11-14T22:13:20Z"}}),
    ("on:yesterday", {"receivedSince": at("2030-01-30"), "receivedBefore": at("2030-01-31")}),
    ("mask:W* mask:%x", {"mailboxMasks": ["W*", "%x"]}),
    (
        'header:"X-Spam: yes" header:Cc',
        {"header": {"name": "X-Spam", "contains": "yes"}, "and": [{"header": {"name": "Cc"}}]},
    ),
    ("filename:bill filetype:pdf", {"attachment": {"filename": "bill", "contentType": "pdf"}}),
    ("attachment:bill", {"attachment": {"filename": "bill"}}),
    ("modseq:7 smaller:1k", {"modifiedSince": 7, "smaller": 1024}),
    ("submission:scheduled", {"submissionStates": ["SCHEDULED"]}),
    ("submission:SENT submission:held_for_undo", {"submissionStates": ["SENT", "HELD_FOR_UNDO"]}),
    ("-submission:sent duck", {"not": {"submissionStates": ["SENT"]}, "query": "duck"}),
    ("SEEN FLAGGED NOT DELETED", {"seen": True, "flagged": True, "not": {"deleted": True}}),
    ("UNSEEN UNANSWERED", {"seen": False, "answered": False}),
    ("FROM ann TO bob CC cy BCC di", {"from": "ann", "toOnly": "bob", "cc": "cy", "bcc": "di"}),
    (
        "SINCE 01-Feb-2026 BEFORE 2026-03-01",
        {"receivedSince": at("2026-02-01"), "receivedBefore": at("2026-03-01")},
    ),
    (
        "SENTSINCE 30d SENTON 2026-01-01",
        {
            "sentSince": {"ago": "P30D"},
            "and": [{"sentSince": at("2026-01-01")}],
            "sentBefore": at("2026-01-02"),
        },
    ),
    ("SAVEDBEFORE 2d", {"savedBefore": {"ago": "P2D"}}),
    (
        'HEADER Subject "a bill" LARGER 5M',
        {"header": {"name": "Subject", "contains": "a bill"}, "larger": 5 << 20},
    ),
    ('HEADER List-Id ""', {"header": {"name": "List-Id"}}),
    ("MAILBOX INBOX UID 1:5,9:*", {"mailbox": {"path": "INBOX"}, "uids": "1:5,9:*"}),
    ("KEYWORD $Forwarded UNKEYWORD junk", {"keyword": "$Forwarded", "not": {"keyword": "junk"}}),
    (
        "INTHREAD abc BODY x TEXT y SUBJECT z",
        {"thread": "abc", "body": "x", "text": "y", "subject": "z"},
    ),
    (
        "( FROM ann OR FROM bob ) SMALLER 10",
        {"or": [{"from": "ann"}, {"from": "bob"}], "smaller": 10},
    ),
    ("NOT ( FROM ann SEEN )", {"not": {"from": "ann", "seen": True}}),
    ("since Seen", {"query": "since Seen"}),
]


def test_a_text_says_what_a_filter_says() -> None:
    for text, fields in TEXTS:
        assert parse_search_query(text, NOW) == (
            parse_search_query(text, NOW).__class__(fields, [])
        ), text
        assert parse_search_query(query_from_fields(fields, NOW), NOW).fields == fields, text


WRONG = [
    ("foo:bar", "'foo' at 1: there is no such key; put quotation marks around words"),
    ("duck -foo:bar", "'-foo' at 6: there is no such key; put quotation marks around words"),
    ('duck "pond', "'\"pond' at 6: a quotation mark that is not closed"),
    ("(a OR b", "'(' at 1: a bracket that is not closed"),
    ("a) b", "')' at 2: there is no bracket that it closes"),
    ("a OR", "the end: something is missing before it"),
    ("OR a", "'OR' at 1: something is missing before it"),
    ("from:", "'from:' at 1: its value is missing"),
    ('a from:"x', "'from' at 3: a quotation mark that is not closed"),
    ("()", "')' at 2: something is missing before it"),
    ("is:odd", "'is' at 1: it takes one of"),
    ("after:soon", "'after' at 1: it takes a time such as"),
    ("after:2026-02-30", "'after' at 1: it takes a time such as"),
    ("before:999999y", "'before' at 1: it takes a time such as"),
    ("submission:never", "'submission' at 1: it takes a state of a submission"),
    ("larger:much", "'larger' at 1: it takes a number"),
    ("on:30d", "'on' at 1: it takes a day"),
    ("FROM", "'FROM' at 1: its value is missing"),
    ("HEADER Subject", "'HEADER' at 1: its value is missing"),
    ("from:(a)", "'from' at 1: its value is missing"),
    ("RECENT", "'RECENT' at 1: \\Recent is not known here"),
    ("NOT", "'NOT' at 1: it says not what"),
    ("(" * 9 + "a" + ")" * 9, "brackets go 8 levels deep"),
    ("NOT " * 20 + "a", "brackets go 8 levels deep"),
    ("-(" * 20 + "a" + ")" * 20, "brackets go 8 levels deep"),
    ("or:(" * 20 + "a" + ")" * 20, "brackets go 8 levels deep"),
    ("a " * 300, "at most 250 terms"),
    ("x" * (MAX_QUERY_LENGTH + 1), f"a search has at most {MAX_QUERY_LENGTH} characters"),
]


@pytest.mark.parametrize(("text", "problem"), WRONG)
def test_what_is_not_understood_is_told_with_its_place(text: str, problem: str) -> None:
    found = parse_search_query(text, NOW)
    assert problem in str(found.problems[0])


@settings(max_examples=300, deadline=None)
@given(
    some.text(max_size=60)
    | some.text(alphabet='ab:-()" \\,ORNT*SEN', max_size=40)
    | some.lists(some.sampled_from([text for text, _ in TEXTS]), max_size=4).map(" ".join)
)
def test_no_text_breaks_it_and_what_is_read_is_written_as_the_same(text: str) -> None:
    found = parse_search_query(text, NOW)
    if not found.problems:
        again = parse_search_query(query_from_fields(found.fields, NOW), NOW)
        assert (again.fields, again.problems) == (found.fields, [])


words = some.text(min_size=1, max_size=12) | some.sampled_from(
    ["ann", "a b", '"', "\\", "OR", "-x", "ALL", ":", ","]
)
moments = some.sampled_from(
    [at("2026-01-01"), {"at": "2026-01-01T08:30:00.250000Z"}, {"ago": "P30D"}, {"ago": "PT90S"}]
)
flags = some.booleans()
sizes = some.integers(0, 2**53 - 1)
boxes = (
    words.map(lambda path: {"path": path})
    | some.sampled_from(["TRASH", "INBOX"]).map(lambda use: {"specialUse": use})
    | some.just({"id": "TWFpbA"})
)
names = some.text(alphabet="ab-C", min_size=1, max_size=8)
PLAIN = {
    **dict.fromkeys(["query", "text", "body", "from", "to", "toOnly", "cc", "bcc"], words),
    **dict.fromkeys(["recipient", "subject", "listId", "messageId", "keyword", "uids"], words),
    **dict.fromkeys(["seen", "flagged", "answered", "draft", "deleted", "forwarded"], flags),
    **dict.fromkeys(["searchable", "hasAttachment"], flags),
    **dict.fromkeys(["receivedSince", "receivedBefore", "sentSince", "savedBefore"], moments),
    **dict.fromkeys(["sentBefore", "savedSince", "expiresBefore"], moments),
    **dict.fromkeys(["larger", "smaller", "modifiedSince"], sizes),
    "mailbox": boxes,
    "mailboxes": some.lists(boxes, min_size=1, max_size=3),
    "mailboxMasks": some.lists(words, min_size=1, max_size=3),
    "guids": some.lists(some.sampled_from(["0" * 32, "f" * 32]), min_size=1, max_size=3),
    "header": some.builds(lambda name: {"name": name}, names)
    | some.builds(
        lambda name, part: {"name": name, "contains": part}, names, some.text(max_size=6)
    ),
    "attachment": some.dictionaries(
        some.sampled_from(["filename", "contentType"]), words, min_size=1
    ),
}
plain = some.lists(some.sampled_from(sorted(PLAIN)), max_size=4, unique=True).flatmap(
    lambda chosen: some.fixed_dictionaries({name: PLAIN[name] for name in chosen})
)
filters = some.recursive(
    plain,
    lambda inner: some.builds(
        lambda fields, groups: {**fields, **groups},
        plain,
        some.fixed_dictionaries(
            {},
            optional={
                "and": some.lists(inner, max_size=3),
                "or": some.lists(inner, max_size=3),
                "not": inner,
            },
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(filters)
def test_a_filter_that_is_written_is_read_as_itself(fields: dict[str, Any]) -> None:
    text = query_from_fields(fields, NOW)
    found = parse_search_query(text, NOW)
    if len(text) <= MAX_QUERY_LENGTH and not any(
        "levels deep" in problem.message for problem in found.problems
    ):
        assert (found.fields, found.problems) == (fields, []), text
