"""Test the query text of a search: parsing to a filter, and writing from a filter."""

from datetime import UTC, datetime
from typing import Any

from graphql import GraphQLInputObjectType
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.schema import schema
from resolvers.search.query_keys import DAY_FIELDS, DOVEADM_KEYS, KNOWN_KEYS
from resolvers.search.query_parser import MAX_QUERY_LENGTH, parse_search_query
from resolvers.search.query_printer import query_from_fields
from tests.support.case_loop import each_case
from tests.support.lists.extreme_search_values import EXTREME_SEARCH_VALUES

NOW = datetime(2030, 1, 31, 12, 30, tzinfo=UTC)


def at_midnight(day: str) -> dict[str, str]:
    return {"at": f"{day}T00:00:00Z"}


QUERY_CASES: list[tuple[str, dict[str, Any]]] = [
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
    ('"C:\\tmp\\a_b.txt"', {"query": '"C:\\tmp\\a_b.txt"'}),
    ('subject:"C:\\tmp"', {"subject": "C:\\tmp"}),
    ('filename:"a\\\\"', {"attachment": {"filename": "a\\"}}),
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
            "receivedSince": at_midnight("2026-01-01"),
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
    (
        "on:yesterday",
        {"receivedSince": at_midnight("2030-01-30"), "receivedBefore": at_midnight("2030-01-31")},
    ),
    ("tier:cold -tier:HOT", {"tier": "COLD", "not": {"tier": "HOT"}}),
    ("pattern:W* pattern:%x", {"mailboxPatterns": ["W*", "%x"]}),
    (
        'header:"X-Spam: yes" header:Cc',
        {"header": {"name": "X-Spam", "contains": "yes"}, "and": [{"header": {"name": "Cc"}}]},
    ),
    ("filename:bill filetype:pdf", {"attachment": {"filename": "bill", "contentType": "pdf"}}),
    ("attachment:bill", {"attachment": {"filename": "bill"}}),
    ("modseq:7 smaller:1k", {"modifiedSince": 7, "smaller": 1024}),
    ("submission:scheduled", {"submissionStates": ["SCHEDULED"]}),
    ("submission:SENT submission:undoable", {"submissionStates": ["SENT", "UNDOABLE"]}),
    ("-submission:sent duck", {"not": {"submissionStates": ["SENT"]}, "query": "duck"}),
    ("SEEN FLAGGED NOT DELETED", {"seen": True, "flagged": True, "not": {"deleted": True}}),
    ("UNSEEN UNANSWERED", {"seen": False, "answered": False}),
    ("FROM ann TO bob CC cy BCC di", {"from": "ann", "to": "bob", "cc": "cy", "bcc": "di"}),
    (
        "SINCE 01-Feb-2026 BEFORE 2026-03-01",
        {"receivedSince": at_midnight("2026-02-01"), "receivedBefore": at_midnight("2026-03-01")},
    ),
    (
        "SENTSINCE 30d SENTON 2026-01-01",
        {
            "sentSince": {"ago": "P30D"},
            "and": [{"sentSince": at_midnight("2026-01-01")}],
            "sentBefore": at_midnight("2026-01-02"),
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
        {"thread": {"id": "abc"}, "body": "x", "text": "y", "subject": "z"},
    ),
    (
        "( FROM ann OR FROM bob ) SMALLER 10",
        {"or": [{"from": "ann"}, {"from": "bob"}], "smaller": 10},
    ),
    ("NOT ( FROM ann SEEN )", {"not": {"from": "ann", "seen": True}}),
    ("since Seen", {"query": "since Seen"}),
]


def test_query_text_is_parsed_to_filter_and_back() -> None:
    for text, fields in QUERY_CASES:
        assert parse_search_query(text, NOW) == (
            parse_search_query(text, NOW).__class__(fields, [])
        ), text
        assert parse_search_query(query_from_fields(fields, NOW), NOW).fields == fields, text


PROBLEM_CASES = [
    (
        "foo:bar",
        "'foo' at position 1: Unknown search key. To search for the words, "
        "put them in quotation marks.",
    ),
    (
        "duck -foo:bar",
        "'-foo' at position 6: Unknown search key. To search for the words, "
        "put them in quotation marks.",
    ),
    ('duck "pond', "'\"pond' at position 6: The closing quotation mark is missing."),
    ("(a OR b", "'(' at position 1: The closing bracket is missing."),
    ("a) b", "')' at position 2: The opening bracket is missing."),
    ("a OR", "End of the text: A term is missing before it."),
    ("OR a", "'OR' at position 1: A term is missing before it."),
    ("from:", "'from:' at position 1: The value is missing."),
    ('a from:"x', "'from' at position 3: The closing quotation mark is missing."),
    ("()", "')' at position 2: A term is missing before it."),
    ("is:odd", "'is' at position 1: The value must be one of"),
    ("after:soon", "'after' at position 1: The value must be a time such as"),
    ("after:2026-02-30", "'after' at position 1: The value must be a time such as"),
    ("before:999999y", "'before' at position 1: The value must be a time such as"),
    ("submission:never", "'submission' at position 1: The value must be a state of a submission"),
    ("larger:much", "'larger' at position 1: The value must be a number"),
    ("on:30d", "'on' at position 1: The value must be a day"),
    ("FROM", "'FROM' at position 1: The value is missing."),
    ("HEADER Subject", "'HEADER' at position 1: The value is missing."),
    ("from:(a)", "'from' at position 1: The value is missing."),
    ("RECENT", "'RECENT' at position 1: \\Recent is not supported."),
    ("NOT", "'NOT' at position 1: The value is missing."),
    ("(" * 9 + "a" + ")" * 9, "Brackets are nested at most 8 levels deep."),
    ("NOT " * 20 + "a", "Brackets are nested at most 8 levels deep."),
    ("-(" * 20 + "a" + ")" * 20, "Brackets are nested at most 8 levels deep."),
    ("or:(" * 20 + "a" + ")" * 20, "Brackets are nested at most 8 levels deep."),
    ("a " * 300, "The search text has at most 250 terms."),
    ("x" * (MAX_QUERY_LENGTH + 1), f"The search text has at most {MAX_QUERY_LENGTH} characters."),
]


def test_invalid_query_reports_problem_with_position() -> None:
    for case in each_case(PROBLEM_CASES):
        with case as (text, problem):
            parsed = parse_search_query(text, NOW)
            assert problem in str(parsed.problems[0])


@settings(max_examples=300)
@given(
    st.text(max_size=60)
    | st.text(alphabet='ab:-()" \\,ORNT*SEN', max_size=40)
    | st.lists(st.sampled_from([text for text, _ in QUERY_CASES]), max_size=4).map(" ".join)
)
def test_random_query_text_survives_round_trip(text: str) -> None:
    parsed = parse_search_query(text, NOW)
    if not parsed.problems:
        reparsed = parse_search_query(query_from_fields(parsed.fields, NOW), NOW)
        assert (reparsed.fields, reparsed.problems) == (parsed.fields, [])


words = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["ann", "a b", '"', "\\", "OR", "-x", "ALL", ":", ","]
)
moments = st.sampled_from(
    [
        at_midnight("2026-01-01"),
        {"at": "2026-01-01T08:30:00.250000Z"},
        {"ago": "P30D"},
        {"ago": "PT90S"},
    ]
)
flags = st.booleans()
sizes = st.integers(0, 2**53 - 1)
mailbox_refs = (
    words.map(lambda path: {"path": path})
    | st.sampled_from(["TRASH", "INBOX"]).map(lambda use: {"specialUse": use})
    | st.just({"id": "TWFpbA"})
)
header_names = st.text(alphabet="ab-C", min_size=1, max_size=8)
CONDITION_VALUES = {
    **dict.fromkeys(["query", "text", "body", "from", "to", "toOrCc", "cc", "bcc"], words),
    **dict.fromkeys(
        ["anyRecipient", "subject", "listId", "messageIdHeader", "keyword", "uids"], words
    ),
    **dict.fromkeys(["seen", "flagged", "answered", "draft", "deleted", "forwarded"], flags),
    **dict.fromkeys(["searchable", "snoozed", "hasAttachment"], flags),
    **dict.fromkeys(["receivedSince", "receivedBefore", "sentSince", "savedBefore"], moments),
    **dict.fromkeys(["sentBefore", "savedSince", "expiresBefore"], moments),
    **dict.fromkeys(["larger", "smaller", "modifiedSince"], sizes),
    "tier": st.sampled_from(["HOT", "COLD"]),
    "mailbox": mailbox_refs,
    "mailboxes": st.lists(mailbox_refs, min_size=1, max_size=3),
    "mailboxPatterns": st.lists(words, min_size=1, max_size=3),
    "emailIds": st.lists(st.sampled_from(["0" * 32, "f" * 32]), min_size=1, max_size=3),
    "header": st.builds(lambda name: {"name": name}, header_names)
    | st.builds(
        lambda name, part: {"name": name, "contains": part}, header_names, st.text(max_size=6)
    ),
    "attachment": st.dictionaries(st.sampled_from(["filename", "contentType"]), words, min_size=1),
}
conditions = st.lists(st.sampled_from(sorted(CONDITION_VALUES)), max_size=4, unique=True).flatmap(
    lambda chosen: st.fixed_dictionaries({name: CONDITION_VALUES[name] for name in chosen})
)
filters = st.recursive(
    conditions,
    lambda inner: st.builds(
        lambda fields, groups: {**fields, **groups},
        conditions,
        st.fixed_dictionaries(
            {},
            optional={
                "and": st.lists(inner, max_size=3),
                "or": st.lists(inner, max_size=3),
                "not": inner,
            },
        ),
    ),
    max_leaves=6,
)


def test_each_field_of_a_filter_has_a_key() -> None:
    filter_type = schema._schema.type_map["MessageFilter"]  # noqa: SLF001 - no public access
    assert isinstance(filter_type, GraphQLInputObjectType)
    examples: dict[str, Any] = {"submissionStates": ["SENT"], "seqs": "1", "thread": {"id": "x"}}
    assert {*filter_type.fields} == {*CONDITION_VALUES, *examples, "and", "or", "not"}
    for name, value in examples.items():
        assert parse_search_query(query_from_fields({name: value}, NOW), NOW).fields == {
            name: value
        }


@settings(max_examples=400)
@given(filters)
def test_random_filter_survives_round_trip(fields: dict[str, Any]) -> None:
    text = query_from_fields(fields, NOW)
    parsed = parse_search_query(text, NOW)
    if len(text) <= MAX_QUERY_LENGTH and not any(
        "levels deep" in problem.message for problem in parsed.problems
    ):
        assert (parsed.fields, parsed.problems) == (fields, []), text


def test_each_key_accepts_or_refuses_extreme_values() -> None:
    for key in sorted({f"{key}:" for key in KNOWN_KEYS} | {f"{key} " for key in DOVEADM_KEYS}):
        for value in EXTREME_SEARCH_VALUES:
            for text in (f"{key}{value}", f"{key}{value} {value}"):
                parsed = parse_search_query(text[:MAX_QUERY_LENGTH], NOW)
                query_from_fields(parsed.fields, NOW)
    for key in (*DAY_FIELDS, *map(str.upper, DAY_FIELDS)):
        text = f"{key}:9999-12-31" if key in DAY_FIELDS else f"{key} 31-Dec-9999"
        (problem,) = parse_search_query(text, NOW).problems
        assert "must be a day before 9999-12-31" in str(problem), text
