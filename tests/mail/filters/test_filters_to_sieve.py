"""What filters are as Sieve, and what several of them say of a message."""

import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mail import sieve
from mail.filters import filter_compiler
from mail.filters.filter_compiler import (
    CompiledFilter,
    FilterTestMessage,
    ScriptNames,
    evaluate_filters,
    filter_result,
    sieve_test_from_query,
)
from mail.filters.filter_result import FilterReplyContent, FilterTarget
from mail.mime import parse_structure
from mail.sieve import ParsedSieveMessage, SieveEnvelope, SieveEnvironment
from tests.support.mail.sieve_runs import told

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = ScriptNames({1: "Lists", 2: "Lists/A b", 3: "Größe"}, 7200)
RAW = b"""\
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
FILE = b"""\
Subject: one
Content-Type: application/pdf

x
"""


def looked(raw: bytes = RAW) -> FilterTestMessage:
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
    ({"size": 10}, True),
    ({"size": len(RAW)}, False),  # larger than
    ({"size": -len(RAW)}, False),
    ({"size": -len(RAW) - 1}, True),
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


@pytest.mark.parametrize(("query", "holds"), QUERIES)
def test_queries(query: dict[str, Any], holds: bool) -> None:
    assert looked().evaluate(query)[0] is holds


def test_files_count_both_ways() -> None:
    assert [looked(FILE).evaluate({"hasAttachment": want})[0] for want in (True, False)] == [
        True,
        False,
    ]


def test_what_takes_too_long_does_not_fit_and_ends() -> None:
    many = looked(b"To: a@example.org\n" * 6000 + b"Subject: b\n\nx")
    assert many.evaluate({"to": "b@"}) == (False, sieve.limits.MAX_STEPS)
    rules = [CompiledFilter(nth, {"to": "b@"}, {"flag": True}) for nth in range(100)]
    assert (
        len(evaluate_filters(rules, many))
        == filter_compiler.MAX_STEPS // sieve.limits.MAX_STEPS + 1
    )
    assert many.evaluate({"subject": "b"})[0]
    slow = looked(b"Subject: " + b"a" * 200_000 + b"\n\nx")
    wide = {"key": "subject", "pattern": "(a|b|ab){20}(a?b){20}$"}
    assert slow.evaluate({"regex": wide}) == (False, sieve.limits.MAX_STEPS)
    long = {"any": [{"subject": f"{nth:0255}"} for nth in range(99)]}
    rules = [CompiledFilter(nth, long, {"flag": True}) for nth in range(400)]
    assert len(evaluate_filters(rules, looked())) < 20


class Counting(ParsedSieveMessage):
    """Counts how often its texts are decoded."""

    decoded = 0

    def _texts(self) -> Iterator[str]:
        self.decoded += 1
        return super()._texts()


def test_texts_are_decoded_once_for_all_filters() -> None:
    letter = Counting(RAW, parse_structure(RAW))
    seen = FilterTestMessage(letter)
    for nth in range(50):
        assert not seen.evaluate({"text": f"word {nth}"})[0]
    assert letter.decoded == 1


# ---------------------------------------------------------------- as Sieve

WORDS = ["", "a", "first", "ada", 'q"uo\\te', "${x}", "ünï", "line\r\nbreak", "*", "?", "[x]"]
KEYS = ["X-Mark", "Subject", "x-none"]
PATTERNS = ["^the", "a|b", "[[:upper:]]{2}", "y.s$", 'of "', r"\\"]
WORD = some.sampled_from(WORDS[1:])
PLAIN: dict[str, some.SearchStrategy[Any]] = {
    "from": WORD, "to": WORD, "subject": WORD, "listId": WORD, "text": WORD,
    "hasAttachment": some.booleans(), "size": some.integers(1, 1000) | some.integers(-1000, -1),
    "header": some.fixed_dictionaries(
        {"key": some.sampled_from(KEYS), "value": some.none() | WORD}
    ),
    "regex": some.fixed_dictionaries(
        {"key": some.none() | some.sampled_from(KEYS), "pattern": some.sampled_from(PATTERNS)}
    ),
}  # fmt: skip
LEAF: some.SearchStrategy[dict[str, Any]] = some.fixed_dictionaries({}, optional=PLAIN)


def _nested(inner: some.SearchStrategy[dict[str, Any]]) -> some.SearchStrategy[dict[str, Any]]:
    listed = some.lists(inner, max_size=3)
    return some.fixed_dictionaries(
        {}, optional={**PLAIN, **dict.fromkeys(filter_compiler.GROUP_NAMES, listed)}
    )


QUERY = some.recursive(LEAF, _nested, max_leaves=6).filter(
    lambda one: filter_compiler.nesting_depth(one) <= 5
)
REPLY = some.fixed_dictionaries(
    {"subject": some.sampled_from(WORDS[:3]), "text": some.sampled_from(["", "Hi", "a\n--b--"]),
     "html": some.sampled_from(["<b>x</b>", "--=_alternative"])}
)  # fmt: skip
BOX = some.integers(1, 4)
LABEL = some.sampled_from(["news", "$Label1", "größe"])
TARGET = some.sampled_from(["eve@example.net", "x@example.net", "smtp://h.example", "https://h/"])
ACTION = some.fixed_dictionaries(
    {},
    optional={
        "seen": some.booleans(), "flag": some.booleans(), "delete": some.booleans(),
        "spam": some.booleans(), "mailbox": BOX,
        "copyTo": some.lists(BOX, min_size=1, max_size=3, unique=True),
        "targets": some.lists(TARGET, min_size=1, max_size=4, unique=True),
        "labels": some.lists(LABEL, min_size=1, max_size=2, unique=True),
        "removeLabels": some.lists(LABEL, min_size=1, max_size=2, unique=True),
        "reply": REPLY, "webhook": some.integers(1, 2), "stop": some.just(True),
    },
)  # fmt: skip


@settings(deadline=None)
@given(QUERY, ACTION)
def test_a_filter_reads_as_a_script_that_does_the_same(
    query: dict[str, Any], action: dict[str, Any]
) -> None:
    tree = filter_compiler.script_from_filter(5, query, action, NAMES)
    script = sieve.print_script(tree)
    assert sieve.parse_script(script) == tree
    envelope = SieveEnvelope("eve@example.net", "ada@example.org")
    circumstances = SieveEnvironment(NOW, addresses=["ada@example.org"])
    message = ParsedSieveMessage(RAW, parse_structure(RAW))
    plan = sieve.run_script(sieve.compile_script(script), message, envelope, circumstances)
    fits = looked().evaluate(query)[0]
    assert set(told(plan)) == set(_expected(action) if fits else ["keep"])


def _expected(action: Mapping[str, Any]) -> list[str]:
    """What a script of this action does with RAW, as `told` says it: a list is not answered."""
    named = {"\\Seen": action.get("seen"), "\\Flagged": action.get("flag")}
    flags = [*(flag for flag, said in named.items() if said), *action.get("labels", ())]
    words = "".join(f" {one}" for one in flags if one not in action.get("removeLabels", ()))
    path = {**NAMES.mailbox_paths, 4: "INBOX"}
    copies = [path[box] for box in action.get("copyTo", ()) if not action.get("delete")]
    place = _stored(action, path)
    done = [f"to {to} :copy" for to in action.get("targets", ()) if "@" in to]
    done += [f"into {box} :copy{words}" for box in copies if place != f"into {box}"]
    if place and place != "discard":
        done.append(f"{place}{words}")
    elif place:
        done.append(place)
    elif "INBOX" not in copies:
        done.append(f"keep{words}")
    return done


def _stored(action: Mapping[str, Any], path: Mapping[int, str]) -> str:
    """Where the message itself goes; "": where it would."""
    if action.get("delete"):
        return "discard"
    if action.get("spam"):
        return "into INBOX \\Junk"
    if "mailbox" in action:
        return f"into {path[action['mailbox']]}"
    return "into INBOX" if action.get("spam") is False else ""


def test_an_answer_is_a_vacation_of_its_own() -> None:
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


def test_the_deepest_query_is_a_script_still() -> None:
    query: dict[str, Any] = {"from": "a", "to": "b"}
    for _ in range(filter_compiler.MAX_DEPTH):
        query = {"from": "a", "any": [query, {"to": "b", "subject": "c"}], "not": [query]}
    assert filter_compiler.nesting_depth(query) == filter_compiler.MAX_DEPTH
    sieve.compile_script(
        sieve.print_script(filter_compiler.script_from_filter(5, query, {"mailbox": 1}, NAMES))
    )


# ---------------------------------------------------------------- several of them


def _reference(rules: Sequence[CompiledFilter], fit: Sequence[bool]) -> dict[str, Any]:
    """What `decided` says, the slow way: a question at a time."""
    heard: list[CompiledFilter] = []
    for rule, fits in zip(rules, fit, strict=True):
        if fits:
            heard.append(rule)
            if rule.action.get("stop"):
                break

    removed = _all_of(heard, "removeLabels")
    return {
        "is_deleted": _first(heard, "delete") is True,
        "is_spam": _first(heard, "spam"),
        "mailbox_id": _first(heard, "mailbox"),
        "copy_mailbox_ids": () if _first(heard, "delete") else _all_of(heard, "copyTo"),
        "is_seen": _first(heard, "seen") is True,
        "is_flagged": _first(heard, "flag") is True,
        "added_keywords": [one for one in _all_of(heard, "labels") if one not in removed],
        "removed_keywords": removed,
        "targets": _all_of(heard, "targets"),
        "replies": [rule.filter_id for rule in heard if "reply" in rule.action],
        "webhook_ids": list(
            dict.fromkeys(rule.action["webhook"] for rule in heard if "webhook" in rule.action)
        ),
        "matched_filter_ids": [rule.filter_id for rule in heard],
    }


def _first(heard: Sequence[CompiledFilter], name: str) -> Any:
    return next((rule.action[name] for rule in heard if name in rule.action), None)


def _all_of(heard: Sequence[CompiledFilter], name: str) -> list[Any]:
    found: list[Any] = []
    for rule in heard:
        for one in rule.action.get(name, []):
            if one not in found:
                found.append(one)
    return found


@settings(deadline=None)
@given(some.lists(some.tuples(some.sampled_from(QUERIES), ACTION), max_size=6))
def test_together_they_decide_as_the_slow_way_does(
    chosen: list[tuple[tuple[dict[str, Any], bool], dict[str, Any]]],
) -> None:
    rules = [
        CompiledFilter(
            nth, query, action, [FilterTarget(nth, to, to) for to in action.get("targets", ())]
        )
        for nth, ((query, _), action) in enumerate(chosen)
    ]
    found = filter_result(rules, looked())
    expected = _reference(rules, [fits for (_, fits), _ in chosen])
    names = {name: getattr(found, name) for name in expected}
    names["targets"] = [to.secret_url for to in found.targets]
    names["replies"] = [reply.filter_id for reply in found.replies]
    assert names == expected


def test_what_is_hidden_by_something_before_it_does_not_act() -> None:
    rules = [
        CompiledFilter(1, {}, {"mailbox": 1, "seen": True}),
        CompiledFilter(2, {"from": "nobody"}, {"delete": True}),
        CompiledFilter(3, {}, {"spam": True, "seen": False, "mailbox": 2, "stop": True}),
        CompiledFilter(4, {}, {"delete": True}),
    ]
    found = evaluate_filters(rules, looked(), after_stop=True)
    assert [(one.matches, one.effective_actions) for one in found] == [
        (True, ("seen",)),
        (False, ()),
        (True, ("spam", "stop")),
        (True, ()),
    ]
    assert filter_result(rules, looked()).is_deleted is False
    assert filter_result(rules, looked()).is_spam is True
    assert filter_result(rules, looked()).matched_filter_ids == [1, 3]


def test_more_places_than_a_message_may_have_are_left_out() -> None:
    rules = [
        CompiledFilter(nth, {}, {"copyTo": list(range(nth * 9, nth * 9 + 9))}) for nth in range(9)
    ]
    assert filter_result(rules, looked()).copy_mailbox_ids == list(
        range(filter_compiler.MAX_PLACES)
    )


def test_answers_have_what_the_form_says() -> None:
    rules = [CompiledFilter(1, {}, {"reply": {"subject": "", "text": "a", "html": "<b>"}})]
    assert filter_result(rules, looked()).replies == [FilterReplyContent(1, "", "a", "<b>")]


def test_an_entity_keeps_its_parts_apart() -> None:
    chance = random.Random(1)  # noqa: S311
    for _ in range(20):
        text = "\r\n".join(chance.choice(["--=_alternative", "=", "x"]) for _ in range(9))
        raw = filter_compiler.reply_body(text, f"<p>{text}</p>").encode()
        parts = parse_structure(b"MIME-Version: 1.0\r\n" + raw).parts
        assert [part.content_type for part in parts] == ["text/plain", "text/html"]
    assert sieve_test_from_query({"size": 1}).name == "size"
