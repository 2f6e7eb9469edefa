"""Filters written as Sieve scripts, and the combined result of several filters."""

import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail import sieve
from mail.filters import filter_compiler, filter_evaluation
from mail.filters.filter_compiler import ScriptNames, sieve_test_from_query
from mail.filters.filter_evaluation import (
    CompiledFilter,
    FilterTestMessage,
    combined_result_of_matching_filters,
    evaluate_filters,
)
from mail.filters.filter_result import FilterReplyContent, FilterTarget
from mail.mime import parse_structure
from mail.sieve import ParsedSieveMessage, SieveEnvelope, SieveEnvironment
from tests.support.mail.sieve_runs import action_texts

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = ScriptNames({1: "Lists", 2: "Lists/A b", 3: "Größe"}, 7200)
RAW_MESSAGE = b"""\
From: =?utf-8?q?J=C3=BCrgen?= <JUERGEN@example.org>
Sender: robot@example.net
To: Ada <ada@example.org>
Cc: bob@example.org
Subject: The   first\r\n\tof "all" \\ words
List-Id: News <news.example.org>
X-Mark: yes
Content-Type: text/html; charset=utf-8

<p>Hello <b>big</b>
world</p>
"""
ATTACHMENT_MESSAGE = b"""\
Subject: one
Content-Type: application/pdf

x
"""


def filter_message(raw: bytes = RAW_MESSAGE) -> FilterTestMessage:
    return FilterTestMessage(ParsedSieveMessage(raw, parse_structure(raw)))


QUERIES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"from": "jürgen"}, True),
    ({"from": "JÜRGEN"}, True),
    ({"from": "juergen@EXAMPLE"}, True),
    ({"from": "robot@"}, True),  # Sender
    ({"from": "ada@"}, False),
    ({"to": "ada@example.org"}, True),
    ({"to": "BOB"}, True),  # Cc
    ({"to": "robot"}, False),
    ({"subject": 'the FIRST of "ALL" \\ Words'}, True),
    ({"subject": " first   of "}, True),
    ({"subject": "first all"}, False),
    ({"listId": "news.example"}, True),
    ({"text": "hello big world"}, True),
    ({"text": "<b>"}, False),
    ({"hasAttachment": False}, True),
    ({"hasAttachment": True}, False),
    ({"larger": 10}, True),
    ({"larger": len(RAW_MESSAGE)}, False),  # larger than
    ({"smaller": len(RAW_MESSAGE)}, False),
    ({"smaller": len(RAW_MESSAGE) + 1}, True),
    ({"header": {"key": "x-mark", "value": "YES"}}, True),
    ({"header": {"key": "X-Mark", "value": None}}, True),
    ({"header": {"key": "X-None", "value": None}}, False),
    ({"from": "jürgen", "to": "carol"}, False),  # all of them
    ({"any": [{"from": "carol"}, {"to": "bob", "listId": "news"}]}, True),
    ({"any": [{"from": "carol"}]}, False),
    ({"any": []}, True),
    ({"any": [{}]}, True),
    ({"all": [{"from": "jürgen"}, {"to": "bob"}]}, True),
    ({"all": [{"from": "jürgen"}, {"to": "carol"}]}, False),
    ({"all": [{"header": {"key": "X-Mark", "value": "y"}}], "any": [{"to": "carol"}]}, False),
    ({"regex": {"key": "subject", "pattern": '^the +first.*"all"'}}, True),
    ({"regex": {"key": "Subject", "pattern": "^first"}}, False),
    ({"regex": {"key": None, "pattern": "hello (big|small)[[:space:]]w"}}, True),
    ({"regex": {"key": None, "pattern": "<b>"}}, False),
    ({"regex": {"key": "X-None", "pattern": ".*"}}, False),
    ({"not": [{"from": "carol"}, {"to": "carol"}]}, True),
    ({"not": [{"from": "carol"}, {"to": "bob"}]}, False),
    ({"not": [{}]}, False),
    ({"not": [{"not": [{"any": [{"not": [{"not": [{"to": "bob"}]}]}]}]}]}, True),
]


@pytest.mark.parametrize(("query", "expected"), QUERIES)
def test_query_matches_message(query: dict[str, Any], expected: bool) -> None:
    assert filter_message().matches_and_steps(query)[0] is expected


def test_has_attachment_matches_true_and_false() -> None:
    assert [
        filter_message(ATTACHMENT_MESSAGE).matches_and_steps({"hasAttachment": has_attachment})[0]
        for has_attachment in (True, False)
    ] == [
        True,
        False,
    ]


def test_too_costly_query_does_not_match() -> None:
    many_recipients = filter_message(b"To: a@example.org\n" * 6000 + b"Subject: b\n\nx")
    stopped = (False, sieve.limits.MAX_STEPS, True)
    assert many_recipients.matches_and_steps({"to": "b@"}) == stopped
    rules = [CompiledFilter(number, {"to": "b@"}, {"flag": True}) for number in range(100)]
    assert not any(one.matches for one in evaluate_filters(rules, many_recipients))
    result = combined_result_of_matching_filters(rules, many_recipients)
    assert result.stopped_filter_ids == list(range(100))
    assert many_recipients.matches_and_steps({"subject": "b"})[0]
    long_subject = filter_message(b"Subject: " + b"a" * 200_000 + b"\n\nx")
    costly_regex = {"key": "subject", "pattern": "(a|b|ab){20}(a?b){20}$"}
    assert long_subject.matches_and_steps({"regex": costly_regex}) == stopped
    long_query = {"any": [{"subject": f"{number:0255}"} for number in range(99)]}
    rules = [CompiledFilter(number, long_query, {"flag": True}) for number in range(400)]
    result = combined_result_of_matching_filters(rules, filter_message())
    assert result.stopped_filter_ids == list(range(result.stopped_filter_ids[0], 400))
    assert 1 < result.stopped_filter_ids[0] < 20


class DecodeCountingSieveMessage(ParsedSieveMessage):
    """A message that counts how often its texts are decoded."""

    decode_count = 0

    def _texts(self) -> Iterator[str]:
        self.decode_count += 1
        return super()._texts()


def test_texts_are_decoded_once_for_all_filters_of_a_message() -> None:
    message = DecodeCountingSieveMessage(RAW_MESSAGE, parse_structure(RAW_MESSAGE))
    test_message = FilterTestMessage(message)
    for number in range(50):
        assert not test_message.matches_and_steps({"text": f"word {number}"})[0]
    assert message.decode_count == 1


WORDS = ["", "a", "first", "ada", 'q"uo\\te', "${x}", "ünï", "line\r\nbreak", "*", "?", "[x]"]
HEADER_NAMES = ["X-Mark", "Subject", "x-none"]
PATTERNS = ["^the", "a|b", "[[:upper:]]{2}", "y.s$", 'of "', r"\\"]
WORD = st.sampled_from(WORDS[1:])
FIELD_TESTS: dict[str, st.SearchStrategy[Any]] = {
    "from": WORD, "to": WORD, "subject": WORD, "listId": WORD, "text": WORD,
    "hasAttachment": st.booleans(), "larger": st.integers(1, 1000),
    "smaller": st.integers(1, 1000),
    "header": st.fixed_dictionaries(
        {"key": st.sampled_from(HEADER_NAMES), "value": st.none() | WORD}
    ),
    "regex": st.fixed_dictionaries(
        {"key": st.none() | st.sampled_from(HEADER_NAMES), "pattern": st.sampled_from(PATTERNS)}
    ),
}  # fmt: skip
LEAF_QUERY: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({}, optional=FIELD_TESTS)


def nested_queries(
    inner_queries: st.SearchStrategy[dict[str, Any]],
) -> st.SearchStrategy[dict[str, Any]]:
    query_lists = st.lists(inner_queries, max_size=3)
    return st.fixed_dictionaries(
        {}, optional={**FIELD_TESTS, **dict.fromkeys(filter_compiler.GROUP_NAMES, query_lists)}
    )


QUERY = st.recursive(LEAF_QUERY, nested_queries, max_leaves=6).filter(
    lambda query: filter_compiler.nested_query_levels(query) <= 5
)
REPLY = st.fixed_dictionaries(
    {"subject": st.sampled_from(WORDS[:3]), "text": st.sampled_from(["", "Hi", "a\n--b--"]),
     "html": st.sampled_from(["<b>x</b>", "--=_alternative"])}
)  # fmt: skip
MAILBOX_ID = st.integers(1, 4)
LABEL = st.sampled_from(["news", "$Label1", "größe"])
TARGET = st.sampled_from(["eve@example.net", "x@example.net", "smtp://h.example", "https://h/"])
ACTION = st.fixed_dictionaries(
    {},
    optional={
        "seen": st.booleans(), "flag": st.booleans(), "delete": st.booleans(),
        "spam": st.booleans(), "mailbox": MAILBOX_ID,
        "copyTo": st.lists(MAILBOX_ID, min_size=1, max_size=3, unique=True),
        "forwardTo": st.lists(TARGET, min_size=1, max_size=4, unique=True),
        "keywords": st.lists(LABEL, min_size=1, max_size=2, unique=True),
        "removeKeywords": st.lists(LABEL, min_size=1, max_size=2, unique=True),
        "reply": REPLY, "webhook": st.integers(1, 2), "stop": st.just(True),
    },
)  # fmt: skip


@given(QUERY, ACTION)
def test_filter_script_does_what_the_filter_does(
    query: dict[str, Any], action: dict[str, Any]
) -> None:
    tree = filter_compiler.script_from_filter(5, query, action, NAMES)
    script = sieve.print_script(tree)
    assert sieve.parse_script(script) == tree
    envelope = SieveEnvelope("eve@example.net", "ada@example.org")
    environment = SieveEnvironment(NOW, addresses=["ada@example.org"])
    message = ParsedSieveMessage(RAW_MESSAGE, parse_structure(RAW_MESSAGE))
    plan = sieve.run_script(sieve.compile_script(script), message, envelope, environment)
    matches = filter_message().matches_and_steps(query)[0]
    assert set(action_texts(plan)) == set(expected_steps(action) if matches else ["keep"])


def expected_steps(action: Mapping[str, Any]) -> list[str]:
    """Expected steps of the action's script for RAW_MESSAGE. A mailing list gets no reply."""
    system_flags = {"\\Seen": action.get("seen"), "\\Flagged": action.get("flag")}
    flags = [
        *(flag for flag, is_set in system_flags.items() if is_set),
        *action.get("keywords", ()),
    ]
    flag_suffix = "".join(
        f" {flag}" for flag in flags if flag not in action.get("removeKeywords", ())
    )
    mailbox_paths = {**NAMES.mailbox_paths, 4: "INBOX"}
    copies = [
        mailbox_paths[mailbox_id]
        for mailbox_id in action.get("copyTo", ())
        if not action.get("delete")
    ]
    destination = expected_destination(action, mailbox_paths)
    steps = [f"to {target} :copy" for target in action.get("forwardTo", ()) if "@" in target]
    steps += [
        f"into {mailbox_id} :copy{flag_suffix}"
        for mailbox_id in copies
        if destination != f"into {mailbox_id}"
    ]
    if destination and destination != "discard":
        steps.append(f"{destination}{flag_suffix}")
    elif destination:
        steps.append(destination)
    elif "INBOX" not in copies:
        steps.append(f"keep{flag_suffix}")
    return steps


def expected_destination(action: Mapping[str, Any], mailbox_paths: Mapping[int, str]) -> str:
    """Where the message itself is stored, or "" if the action does not decide it."""
    if action.get("delete"):
        return "discard"
    if action.get("spam"):
        return "into INBOX \\Junk"
    if "mailbox" in action:
        return f"into {mailbox_paths[action['mailbox']]}"
    return "into INBOX" if action.get("spam") is False else ""


def test_reply_becomes_vacation_with_its_own_handle() -> None:
    action = {"reply": {"subject": "Gone", "text": "Later", "html": ""}, "stop": True}
    assert sieve.print_script(
        filter_compiler.script_from_filter(5, {"from": "eve"}, action, NAMES)
    ) == (
        'require ["comparator-vnd.merganser.plain", "vacation-seconds"];\n'
        'if header :contains :comparator "vnd.merganser.plain" ["from", "sender"] "eve" {\n'
        '    vacation :seconds 7200 :handle "filter:5" :subject "Gone" "Later";\n'
        "    stop;\n"
        "}\n"
    )


def test_deepest_query_compiles_as_script() -> None:
    query: dict[str, Any] = {"from": "a", "to": "b"}
    for _ in range(filter_compiler.MAX_DEPTH):
        query = {"from": "a", "any": [query, {"to": "b", "subject": "c"}], "not": [query]}
    assert filter_compiler.nested_query_levels(query) == filter_compiler.MAX_DEPTH
    sieve.compile_script(
        sieve.print_script(filter_compiler.script_from_filter(5, query, {"mailbox": 1}, NAMES))
    )


def decide_step_by_step(
    rules: Sequence[CompiledFilter], matching: Sequence[bool]
) -> dict[str, Any]:
    """The reference for `combined_result_of_matching_filters`: one filter at a time."""
    applied: list[CompiledFilter] = []
    for rule, matches in zip(rules, matching, strict=True):
        if matches:
            applied.append(rule)
            if rule.action.get("stop"):
                break

    removed = distinct_values(applied, "removeKeywords")
    return {
        "is_deleted": first_value(applied, "delete") is True,
        "is_spam": first_value(applied, "spam"),
        "mailbox_id": first_value(applied, "mailbox"),
        "copy_mailbox_ids": ()
        if first_value(applied, "delete")
        else distinct_values(applied, "copyTo"),
        "is_seen": first_value(applied, "seen") is True,
        "is_flagged": first_value(applied, "flag") is True,
        "added_keywords": [
            keyword for keyword in distinct_values(applied, "keywords") if keyword not in removed
        ],
        "removed_keywords": removed,
        "targets": distinct_values(applied, "forwardTo"),
        "replies": [rule.filter_id for rule in applied if "reply" in rule.action],
        "webhook_ids": list(
            dict.fromkeys(rule.action["webhook"] for rule in applied if "webhook" in rule.action)
        ),
        "matched_filter_ids": [rule.filter_id for rule in applied],
    }


def first_value(applied: Sequence[CompiledFilter], name: str) -> Any:
    return next((rule.action[name] for rule in applied if name in rule.action), None)


def distinct_values(applied: Sequence[CompiledFilter], name: str) -> list[Any]:
    values: list[Any] = []
    for rule in applied:
        for value in rule.action.get(name, []):
            if value not in values:
                values.append(value)
    return values


@given(st.lists(st.tuples(st.sampled_from(QUERIES), ACTION), max_size=6))
def test_filter_result_equals_the_step_by_step_result(
    queries_and_actions: list[tuple[tuple[dict[str, Any], bool], dict[str, Any]]],
) -> None:
    rules = [
        CompiledFilter(
            number,
            query,
            action,
            [FilterTarget(number, target, target) for target in action.get("forwardTo", ())],
        )
        for number, ((query, _), action) in enumerate(queries_and_actions)
    ]
    result = combined_result_of_matching_filters(rules, filter_message())
    expected = decide_step_by_step(rules, [matches for (_, matches), _ in queries_and_actions])
    actual = {name: getattr(result, name) for name in expected}
    actual["targets"] = [target.secret_url for target in result.targets]
    actual["replies"] = [reply.filter_id for reply in result.replies]
    assert actual == expected


def test_action_overridden_by_an_earlier_filter_has_no_effect() -> None:
    rules = [
        CompiledFilter(1, {}, {"mailbox": 1, "seen": True}),
        CompiledFilter(2, {"from": "nobody"}, {"delete": True}),
        CompiledFilter(3, {}, {"spam": True, "seen": False, "mailbox": 2, "stop": True}),
        CompiledFilter(4, {}, {"delete": True}),
    ]
    result = evaluate_filters(rules, filter_message(), continue_after_stop=True)
    assert [(evaluation.matches, evaluation.effective_actions) for evaluation in result] == [
        (True, ("seen",)),
        (False, ()),
        (True, ("spam", "stop")),
        (True, ()),
    ]
    assert combined_result_of_matching_filters(rules, filter_message()).is_deleted is False
    assert combined_result_of_matching_filters(rules, filter_message()).is_spam is True
    assert combined_result_of_matching_filters(rules, filter_message()).matched_filter_ids == [1, 3]


def test_copies_beyond_the_mailbox_limit_are_dropped() -> None:
    rules = [
        CompiledFilter(number, {}, {"copyTo": list(range(number * 9, number * 9 + 9))})
        for number in range(9)
    ]
    assert combined_result_of_matching_filters(rules, filter_message()).copy_mailbox_ids == list(
        range(filter_evaluation.MAX_PLACES)
    )


def test_reply_has_the_content_of_the_filter() -> None:
    rules = [CompiledFilter(1, {}, {"reply": {"subject": "", "text": "a", "html": "<b>"}})]
    assert combined_result_of_matching_filters(rules, filter_message()).replies == [
        FilterReplyContent(1, "", "a", "<b>")
    ]


def test_reply_body_has_a_boundary_that_no_part_contains() -> None:
    generator = random.Random(1)  # noqa: S311
    for _ in range(20):
        text = "\r\n".join(generator.choice(["--=_alternative", "=", "x"]) for _ in range(9))
        raw = filter_compiler.reply_body_of_text_and_html(text, f"<p>{text}</p>").encode()
        parts = parse_structure(b"MIME-Version: 1.0\r\n" + raw).parts
        assert [part.content_type for part in parts] == ["text/plain", "text/html"]
    assert sieve_test_from_query({"larger": 1}).name == "size"
