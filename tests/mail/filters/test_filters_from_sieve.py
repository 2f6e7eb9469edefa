"""Scripts that become filters: what is written comes back, and what people's scripts say."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from mail import sieve
from mail.filters import filter_compiler
from mail.filters.filter_compiler import (
    GROUP_NAMES,
    CompiledFilter,
    FilterTestMessage,
    ScriptNames,
    filter_result,
)
from mail.filters.filter_result import FilterTarget
from mail.filters.sieve_import import SieveImport, import_script
from mail.filters.sieve_to_actions import MailboxName
from mail.mime import parse_structure
from mail.sieve import (
    FileInto,
    Keep,
    ParsedSieveMessage,
    Redirect,
    SieveEnvelope,
    SieveEnvironment,
    SieveError,
)
from tests.support.mail.random_sieve_scripts import SCRIPTS, SOUPS

BOXES = {1: "Lists", 2: "Lists/A b", 3: "Größe"}
DAY = 86_400
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HEAD = """require ["fileinto", "copy", "imap4flags", "body", "regex", "vacation", "mailbox",
  "special-use", "vnd.merganser.attachments", "comparator-i;ascii-numeric", "relational",
  "variables", "envelope", "date", "reject", "subaddress", "index", "mime"];"""  # one line each
LINES = HEAD.count("\n") + 1


def reading(text: str, *, most: int = 400) -> SieveImport:
    return import_script(f"{HEAD}\n{text}", reply_interval=DAY, max_filters=most)


def forms(text: str) -> list[tuple[str, Any, Any]]:
    """What is read where nothing is wrong: names, queries, and actions with paths."""
    found = reading(text)
    assert found.errors == []
    return [(one.name, one.query, plain(one.action)) for one in found.filters]


def plain(action: Any) -> Any:
    """An action with folders by their paths; those that are named by their use in brackets."""

    def path(value: Any) -> Any:
        if isinstance(value, MailboxName):
            return f"<{value.special_use}>" if value.special_use else value.path
        return [path(one) for one in value] if isinstance(value, list) else value

    return {name: path(value) for name, value in action.items()}


def query_of(test: str) -> Any:
    ((_, query, action),) = forms(f"if {test} {{ discard; }}")
    assert action == {"delete": True}
    return query


def action_of(commands: str) -> Any:
    ((_, query, action),) = forms(commands)
    assert query == {}
    return action


# ---------------------------------------------------------------- what we write comes back

words = some.text(
    some.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=20
).filter(lambda text: bool(text.strip()))
keys = some.from_regex(r"X-[A-Za-z0-9-]{1,10}", fullmatch=True)
headers = some.builds(lambda key, value: {"key": key, "value": value}, keys, some.none() | words)
regexes = some.builds(
    lambda key, pattern: {"key": key, "pattern": pattern},
    some.none() | keys,
    some.sampled_from(["^a.*b$", "[0-9]+", "x|y", r"\$\.\\"]),
)
plain_tests = {
    **dict.fromkeys(("from", "to", "subject", "listId", "text"), words),
    "hasAttachment": some.booleans(),
    "size": some.integers(1, 1 << 40) | some.integers(-(1 << 40), -1),
    "header": headers,
    "regex": regexes,
}
leaves: Any = some.fixed_dictionaries({}, optional=plain_tests)


def _is_plain_no(query: Any) -> bool:
    """Whether `not` of it is a test of its own."""
    return list(query) == ["hasAttachment"]


def _grouped(inner: Any) -> Any:
    return some.fixed_dictionaries(
        {},
        optional={
            **plain_tests,
            "any": some.lists(inner, min_size=2, max_size=3),
            "not": some.lists(inner.filter(lambda one: not _is_plain_no(one)), min_size=1,
                              max_size=2),
        },
    )  # fmt: skip


queries = some.recursive(leaves, _grouped, max_leaves=8)
labels = some.lists(some.sampled_from(["news", "größe", "$Label1", "a.b", "c", "d"]), unique=True,
                    min_size=2, max_size=6)  # fmt: skip
texts = some.text(some.characters(codec="utf-8", exclude_characters="\0\r"), max_size=30)
replies = some.fixed_dictionaries(
    {"subject": texts.map(lambda text: text.strip()), "text": texts, "html": texts}
).filter(lambda one: bool(one["text"] or one["html"]))


@some.composite
def actions(draw: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("seen", "flag"):
        if (value := draw(some.sampled_from([None, True, False]))) is not None:
            found[name] = value
    if draw(some.booleans()):
        these = draw(labels)
        found |= {"labels": these[: len(these) // 2], "removeLabels": these[len(these) // 2 :]}
    place = draw(some.sampled_from([{}, {"delete": True}, {"spam": True}, {"mailbox": 1}]))
    found |= place
    if "delete" not in place and draw(some.booleans()):
        found["copyTo"] = draw(some.sampled_from([[2], [3, 2]]))
    if draw(some.booleans()):
        found["targets"] = draw(
            some.sampled_from([["a@b.example"], ["a@b.example", "c@d.example"]])
        )
    if draw(some.booleans()):
        found["reply"] = draw(replies)
    if draw(some.booleans()):
        found["stop"] = True
    return found


@settings(max_examples=150, deadline=None)
@given(queries, actions().filter(bool))
def test_what_a_filter_is_as_sieve_reads_back_as_the_filter(query: Any, action: Any) -> None:
    script = sieve.print_script(
        filter_compiler.script_from_filter(1, query, action, ScriptNames(BOXES, 7200))
    )
    (found,) = (whole := import_script(script, reply_interval=7200, max_filters=1)).filters
    assert (whole.errors, whole.warnings) == ([], [])
    boxes = {path: key for key, path in BOXES.items()}
    back = plain(found.action)
    if "mailbox" in back:
        back["mailbox"] = boxes[back["mailbox"]]
    if "copyTo" in back:
        back["copyTo"] = [boxes[path] for path in back["copyTo"]]
    assert (found.query, back) == (query, action)


@settings(max_examples=100, deadline=None)
@given(
    some.recursive(
        leaves,
        lambda inner: some.fixed_dictionaries(
            {name: some.lists(inner, min_size=1, max_size=2) for name in GROUP_NAMES}
        ),
        max_leaves=8,
    )
)
@example({"all": [{"all": [{}], "any": [{}, {}], "not": [{}]}], "any": [{}, {"from": "0"}]})
def test_what_reads_as_less_means_the_same(query: Any) -> None:
    names = ScriptNames({})
    first = sieve.print_script(
        filter_compiler.script_from_filter(1, query, {"delete": True}, names)
    )
    (once,) = import_script(first, reply_interval=DAY, max_filters=1).filters
    again = sieve.print_script(
        filter_compiler.script_from_filter(1, once.query, {"delete": True}, names)
    )
    (twice,) = import_script(again, reply_interval=DAY, max_filters=1).filters
    assert twice.query == once.query


# ---------------------------------------------------------------- what people's scripts say

QUERIES: list[tuple[str, Any]] = [
    ("true", {}),
    ("not true", {"not": [{}]}),
    ('header :contains ["Sender", "from"] "ada"', {"from": "ada"}),
    ('header :contains "From" "ada"', {"header": {"key": "From", "value": "ada"}}),
    ('header :contains ["to", "cc"] ["a", "b"]', {"any": [{"to": "a"}, {"to": "b"}]}),
    (
        'header :contains ["to", "cc", "bcc"] "a"',
        {"any": [{"to": "a"}, {"header": {"key": "bcc", "value": "a"}}]},
    ),
    ('header :contains "Subject" "a"', {"subject": "a"}),
    ('header :contains "X-A" ""', {"header": {"key": "X-A", "value": None}}),
    ('header "Subject" "a.b*"', {"regex": {"key": "Subject", "pattern": r"^a\.b\*$"}}),
    ('header :is "From" "<a@b>"', {"regex": {"key": "From", "pattern": "^<a@b>$"}}),
    ('header :matches "Subject" "*[x] \\\\*y*"', {"subject": "[x] *y"}),
    ('header :matches "Subject" "a?b*"', {"regex": {"key": "Subject", "pattern": "^a.b"}}),
    ('header :matches "Subject" "*a"', {"regex": {"key": "Subject", "pattern": "a$"}}),
    ('header :matches "Subject" "*"', {"header": {"key": "Subject", "value": None}}),
    ('header :regex "Subject" "^a+"', {"regex": {"key": "Subject", "pattern": "^a+"}}),
    ('body :contains "a"', {"text": "a"}),
    ('body :text :matches "*a*"', {"text": "a"}),
    ('body :is "a"', {"regex": {"key": None, "pattern": "^a$"}}),
    (
        'exists ["X-A", "X-B"]',
        {
            "header": {"key": "X-A", "value": None},
            "all": [{"header": {"key": "X-B", "value": None}}],
        },
    ),
    ("size :under 2K", {"size": -2048}),
    ("size :over 0", {}),
    ("size :under 0", {"not": [{}]}),
    ("not hasattachment", {"hasAttachment": False}),
    ('allof (not header :contains "subject" "a", not size :over 1)',
     {"not": [{"subject": "a"}, {"size": 1}]}),
    ('not anyof (size :over 1, header :contains "subject" "a")',
     {"not": [{"any": [{"size": 1}, {"subject": "a"}]}]}),
    ('allof (header :contains "subject" "a", header :contains "subject" "b")',
     {"subject": "a", "all": [{"subject": "b"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("test", "query"), QUERIES)
def test_tests_become_queries(test: str, query: Any) -> None:
    assert query_of(test) == query


ADDRESSES: list[tuple[str, str, bool]] = [
    (':is "from" "ada@example.org"', "From: ada@example.org", True),
    (':is "from" "ada@example.org"', "From: Ada <ADA@example.org>", True),
    (':is "from" "ada@example.org"', "From: xada@example.org", False),
    (':is "from" "ada@example.org"', "From: ada@example.org <eve@example.net>", False),
    (':is "from" "ada@example.org"', 'From: "x <ada@example.org>" <eve@example.net>', False),
    (':is "to" "ada@example.org"', "To: bob@example.net, Ada <ada@example.org>, c@d.example", True),
    (':is "to" "ada@example.org"', "To: ada@example.org,bob@example.net", True),
    (':is "to" "ada@example.org"', "To: ada@example.org.example", False),
    (':is "to" "ada@example.org"', "To: friends: ada@example.org;", True),
    (':domain "from" "example.org"', "From: Ada <ada@example.org>", True),
    (':domain "from" "example.org"', "From: Ada <ada@sub.example.org>", False),
    (':domain :matches "from" "*.example.org"', "From: Ada <ada@sub.example.org>", True),
    (':domain :contains "to" "example"', "To: a@b.net, Ada <ada@sub.example.org>", True),
    (':domain :contains "to" "example"', "To: example <a@b.net>", False),
    (':localpart "from" "ada"', "From: ada@example.org", True),
    (':localpart "from" "ada"', "From: ada.b@example.org", False),
    (':matches "from" "*@example.org"', "From: Ada <ada@example.org>", True),
    (':matches "from" "?@example.org"', "From: Ada <ada@example.org>", False),
]


@pytest.mark.parametrize(("test", "field", "fits"), ADDRESSES)
def test_tests_of_addresses_say_the_same_of_fields(test: str, field: str, fits: bool) -> None:
    raw = f"{field}\r\n\r\n".encode()
    script = f"{HEAD}\nif address {test} {{ discard; }}"
    letter = ParsedSieveMessage(raw, parse_structure(raw))
    plan = sieve.run_script(
        sieve.compile_script(script), letter, SieveEnvelope("", ""), SieveEnvironment(NOW)
    )
    assert any(isinstance(one, sieve.Discard) for one in plan.actions) is fits
    assert FilterTestMessage(letter).evaluate(query_of(f"address {test}"))[0] is fits


ACTIONS: list[tuple[str, Any]] = [
    ('fileinto "A";', {"mailbox": "A"}),
    ('fileinto :create "inbox";', {"mailbox": "INBOX"}),
    ('fileinto "A"; fileinto "B"; fileinto "A";', {"mailbox": "A", "copyTo": ["B"]}),
    ('fileinto :copy "A"; keep;', {"copyTo": ["A"]}),
    ('fileinto "A"; keep;', {"copyTo": ["A"]}),
    ('fileinto :copy "A"; discard;', {"mailbox": "A"}),
    ('fileinto "A"; discard;', {"mailbox": "A"}),
    ('fileinto :specialuse "\\\\Junk" "Spam"; stop;', {"spam": True, "stop": True}),
    ('fileinto :specialuse "\\\\Archive" "Old";', {"mailbox": "<\\archive>"}),
    ('fileinto :flags ["\\\\Seen", "x y"] "A";', {"mailbox": "A", "seen": True,
                                                 "labels": ["x", "y"]}),
    ('keep :flags "\\\\Flagged"; stop;', {"flag": True, "stop": True}),
    ('addflag "a"; setflag ["b", "\\\\SEEN"]; removeflag "b";',
     {"seen": True, "removeLabels": ["b"]}),
    ('redirect "a@b.example";', {"targets": ["a@b.example"], "delete": True}),
    ('redirect "a@b.example"; keep;', {"targets": ["a@b.example"]}),
    ('redirect "a@b.example"; fileinto "A";', {"targets": ["a@b.example"], "mailbox": "A"}),
    ('redirect :copy "a@b.example"; redirect :copy "a@b.example";', {"targets": ["a@b.example"]}),
    ("discard; stop;", {"delete": True, "stop": True}),
    ("keep; stop;", {"stop": True}),
    ('vacation :days 1 :subject " Away " "Back soon";',
     {"reply": {"subject": "Away", "text": "Back soon", "html": ""}}),
    ('vacation :days 1 :mime text:\nContent-Type: text/html\n\n<b>x</b>\n.\n;',
     {"reply": {"subject": "", "text": "", "html": "<b>x</b>\n"}}),
]  # fmt: skip


@pytest.mark.parametrize(("commands", "action"), ACTIONS)
def test_commands_become_actions(commands: str, action: Any) -> None:
    assert action_of(commands) == action


def test_a_branch_behind_others_holds_where_they_do_not() -> None:
    found = forms("""
        # Big
        if size :over 1M { fileinto "A"; }
        /* From the list */
        elsif header :contains "subject" "x" { fileinto "B"; stop; }
        elsif header :contains "subject" "y" { if size :under 9 { keep; stop; } fileinto "C"; }
        else { discard; }
    """)
    big, small = {"size": 1 << 20}, {"size": -9}
    assert found == [
        ("Big", big, {"mailbox": "A"}),
        ("From the list", {"not": [big], "subject": "x"}, {"mailbox": "B", "stop": True}),
        ("", {"not": [big], "subject": "y", **small}, {"stop": True}),
        ("", {"not": [big], "subject": "y"}, {"mailbox": "C"}),
        ("", {"not": [big, {"subject": "y"}]}, {"delete": True}),
    ]


def test_comments_are_names() -> None:
    found = forms("""
        # rule:[Größe: 10%]
        # by the assistant
        if size :over 9 { discard; stop; }

        # not this

        if size :over 8 { discard; stop; }
        # Sieve does not say: a webhook is called
        if size :over 7 { discard; stop; }
        #
        ## last\tone ##
        discard;
    """)
    assert [name for name, _, _ in found] == ["Größe: 10%", "", "", "last one ##"]
    ((name, _, _),) = forms(f"# {'x' * 300}\ndiscard;")
    assert name == "x" * 255


FAULTS = [
    ('set "a" "b";', 1, "set"),
    ('reject "no";', 1, "reject"),
    ('if envelope "from" "a" { keep; }', 4, "envelope"),
    ('if currentdate "year" "2030" { keep; }', 4, "currentdate"),
    ('if header :count "gt" :comparator "i;ascii-numeric" "to" "3" { keep; }', 4, ":count"),
    ('if header :comparator "i;ascii-numeric" "x" "3" { keep; }', 4, "number"),
    ('if header :index 1 "x" "3" { keep; }', 4, ":index"),
    ('if header :mime "x" "3" { keep; }', 4, ":mime"),
    ('if header "x" "${a}" { keep; }', 4, "variables"),
    ('if address :user "from" "a" { keep; }', 4, ":user"),
    ('if address :regex "from" "a" { keep; }', 4, "expressions"),
    ('if address "from" "" { keep; }', 4, "empty"),
    ('if body :raw :contains "a" { keep; }', 4, ":raw"),
    ('if body :contains "" { keep; }', 4, "whether there is a text"),
    ('addflag "a" "b";', 1, "variables"),
    ('fileinto "${a}";', 1, "variables"),
    ('vacation "a"; vacation "b";', 15, "once"),
    ('vacation :mime "Content-Type: image/png\\n\\nx";', 1, "text"),
    ('discard; if size :over 2 { fileinto "A"; }', 1, f"line {LINES + 1} cannot store"),
    ('redirect "a@b.example"; if size :over 2 { keep; }', 1, "write stop"),
]


@pytest.mark.parametrize(("text", "column", "words"), FAULTS)
def test_what_no_filter_can_say_is_told_with_its_place(text: str, column: int, words: str) -> None:
    (fault,) = reading(text.replace("\\n", "\n")).errors
    assert (fault.line, fault.column) == (LINES + 1, column)
    assert words in fault.message


def test_all_faults_are_told_up_to_a_number() -> None:
    found = reading('if anyof (envelope "to" "a", size :over 1, currentdate "year" "1") { keep; }')
    assert [one.column for one in found.errors] == [11, 44]
    many = reading('redirect "a@b.example"; set "a" "b";\n' * 30)
    assert [one.line for one in many.errors] == list(range(LINES + 1, LINES + 21))
    with pytest.raises(SieveError) as refused:
        reading("if {")
    assert refused.value.line == LINES + 1
    (fault,) = reading("if size :over 1 { discard; stop; }\n" * 3, most=2).errors
    assert (fault.line, fault.message) == (LINES + 3, "a script becomes at most 2 filters")


WARNINGS = [
    ("discard; stop; keep;", "nothing comes here"),
    ("# Sieve does not say: a webhook is called\ndiscard;", "what no script says"),
    ("if false { discard; }", "never so"),
    ('if header :comparator "i;octet" :contains "x" "y" { stop; }', "any case"),
    ('if address :contains "from" "y" { stop; }', "names"),
    ('fileinto "A"; addflag "\\\\Seen";', "flags"),
    ('vacation :days 3 "x";', "86400 seconds"),
    ('vacation :days 1 :from "a@b.example" "x";', "no others"),
    ('if size :over 1 { fileinto "A"; } if size :over 2 { fileinto "B"; }', "as well"),
    ('if size :over 1 { fileinto :copy "A"; } if size :over 2 { discard; }', "besides the copy"),
    ('if size :over 1 { addflag "x"; } setflag "y";', "which counts"),
    ('if size :over 1 { fileinto :copy "A"; } if size :over 2 { addflag "x"; }', "stores, too"),
]


ALIKE = [
    "if size :over 1 { keep; } if size :over 2 { keep; }",
    'if size :over 1 { fileinto "A"; } if size :over 2 { fileinto "A"; }',
    'if size :over 1 { fileinto "A"; } else { fileinto "B"; }',
    'if size :over 1 { fileinto "A"; stop; } if size :over 2 { fileinto "B"; }',
    'if size :over 1 { if size :over 2 { fileinto "A"; } else { discard; } }',
]


@pytest.mark.parametrize("text", ALIKE)
def test_where_they_do_the_same_nothing_is_told(text: str) -> None:
    found = reading(text)
    assert (found.errors, found.warnings) == ([], [])


@pytest.mark.parametrize(("text", "words"), WARNINGS)
def test_what_filters_do_otherwise_is_told(text: str, words: str) -> None:
    found = reading(text)
    assert found.errors == []
    (warning,) = found.warnings
    assert words in warning.message


def test_comments_and_branches_without_end_are_read_at_once() -> None:
    one = "if size:over 1{discard;}"
    lines = "#\n" * 15_000
    assert len(reading(lines + one * 1_000, most=1_000).filters) == 1_000
    chain = "if size :over 1 {discard;} " + "elsif size :over 1 {discard;} " * 1_000
    assert len(reading(chain, most=2_000).filters) == 1_001
    same = reading('fileinto "A"; if true { addflag "x"; }\n' * 500, most=1_000)
    assert (len(same.filters), len(same.warnings)) == (1_000, 20)


# ---------------------------------------------------------------- both say the same of mail

LETTERS = [
    f"From: {who}\r\nSubject: {what}\r\nX-A: 1\r\n\r\n{'x' * size}".encode()
    for who in ("ada@example.org", "Bob <bob@example.net>")
    for what in ("news of today", "Re: [list] x", "")
    for size in (0, 500)
]
tests_ = some.recursive(
    some.sampled_from([
        "true", "size :over 300", 'header :contains "subject" "news"', 'exists ["x-a", "x-b"]',
        'header :matches "subject" "*[list]*"', 'address :domain "from" "example.org"',
        'header "subject" "news of today"', 'address "from" "bob@example.net"',
        'header "subject" ""',
        'header :matches "subject" "?e*"', 'header :contains ["x-a", "from"] "ada"',
    ]),
    lambda inner: some.builds("not {}".format, inner)
    | some.builds("anyof ({}, {})".format, inner, inner)
    | some.builds("allof ({}, {})".format, inner, inner),
    max_leaves=4,
)  # fmt: skip
commands_ = some.lists(
    some.sampled_from([
        'addflag "one";', 'addflag "\\\\Seen";', 'removeflag "one";', 'fileinto "A";',
        'fileinto "B";', 'fileinto :copy "C";', "keep;", "discard;", "stop;",
        'redirect "a@b.example";', 'redirect :copy "c@d.example";',
    ]),
    min_size=1, max_size=4, unique=True,
).map(" ".join)  # fmt: skip
chains = some.builds(
    lambda heads, last: " elsif ".join(f"{test} {{ {block} }}" for test, block in heads) + last,
    some.lists(some.tuples(tests_, commands_), min_size=1, max_size=3),
    some.just("") | commands_.map(" else {{ {} }}".format),
).map("if {}".format)


@settings(max_examples=150, deadline=None)
@given(some.lists(chains | commands_, min_size=1, max_size=3).map("\n".join))
def test_without_a_warning_filters_do_what_the_script_does(text: str) -> None:
    found = reading(text)
    assert all("cannot store" in one.message for one in found.errors)
    if found.errors or found.warnings:
        return
    boxes = {"A": 1, "B": 2, "C": 3}
    rules = []
    for nth, one in enumerate(found.filters):
        action = plain(one.action)
        if "mailbox" in action:
            action["mailbox"] = boxes[action["mailbox"]]
        action["copyTo"] = [boxes[path] for path in action.get("copyTo", ())]
        targets = [FilterTarget(nth, to, to) for to in action.get("targets", ())]
        rules.append(CompiledFilter(nth, one.query, action, targets))
    program = sieve.compile_script(f"{HEAD}\n{text}")
    for raw in LETTERS:
        letter = ParsedSieveMessage(raw, parse_structure(raw))
        plan = sieve.run_script(program, letter, SieveEnvelope("", ""), SieveEnvironment(NOW))
        stored = {0 if isinstance(one, Keep) else boxes[one.mailbox]
                  for one in plan.actions if isinstance(one, Keep | FileInto)}  # fmt: skip
        decision = filter_result(rules, FilterTestMessage(letter))
        ours = (
            set() if decision.is_deleted else {decision.mailbox_id or 0, *decision.copy_mailbox_ids}
        )
        assert ours == stored
        sent = {one.address for one in plan.actions if isinstance(one, Redirect)}
        assert {to.public_url for to in decision.targets} == sent
        for done in plan.actions:
            if isinstance(done, Keep | FileInto):
                own = [*decision.added_keywords, *(["\\Seen"] if decision.is_seen else [])]
                assert set(own) == set(done.flags)


@settings(max_examples=200, deadline=None)
@given(SCRIPTS.map(sieve.print_script) | SOUPS)
def test_any_script_is_read_or_told_of(text: str) -> None:
    try:
        found = import_script(text, reply_interval=DAY, max_filters=400)
    except SieveError:
        return
    if found.errors:
        return
    for one in found.filters:
        action = {**one.action, "mailbox": 1, "copyTo": [2]}
        script = sieve.print_script(
            filter_compiler.script_from_filter(1, one.query, action, ScriptNames(BOXES))
        )
        assert sieve.compile_script(script)
