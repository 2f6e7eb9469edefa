"""Sieve scripts that users import as filters."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail import sieve
from mail.filters.filter_evaluation import (
    CompiledFilter,
    FilterTestMessage,
    combined_result_of_matching_filters,
)
from mail.filters.filter_result import FilterTarget
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
from tests.support.mail.imported_filters import REQUIRE, import_text, plain_action

NOW = datetime(2030, 1, 1, tzinfo=UTC)
REQUIRE_LINE_COUNT = REQUIRE.count("\n") + 1


def imported_filters(text: str) -> list[tuple[str, Any, Any]]:
    """Names, queries and plain actions of the filters of a script without errors."""
    imported = import_text(text)
    assert imported.errors == []
    return [
        (filter_.name, filter_.query, plain_action(filter_.action)) for filter_ in imported.filters
    ]


def query_from_test(test: str) -> Any:
    ((_, query, action),) = imported_filters(f"if {test} {{ discard; }}")
    assert action == {"delete": True}
    return query


def action_from_commands(commands: str) -> Any:
    ((_, query, action),) = imported_filters(commands)
    assert query == {}
    return action


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
    ("size :under 2K", {"smaller": 2048}),
    ("size :over 0", {}),
    ("size :under 0", {"not": [{}]}),
    ("not hasattachment", {"hasAttachment": False}),
    ('allof (not header :contains "subject" "a", not size :over 1)',
     {"not": [{"subject": "a"}, {"larger": 1}]}),
    ('not anyof (size :over 1, header :contains "subject" "a")',
     {"not": [{"any": [{"larger": 1}, {"subject": "a"}]}]}),
    ('allof (header :contains "subject" "a", header :contains "subject" "b")',
     {"subject": "a", "all": [{"subject": "b"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("test", "query"), QUERIES)
def test_sieve_test_becomes_query(test: str, query: Any) -> None:
    assert query_from_test(test) == query


ADDRESS_TESTS: list[tuple[str, str, bool]] = [
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


@pytest.mark.parametrize(("test", "field", "expected"), ADDRESS_TESTS)
def test_address_test_and_its_query_match_the_same_fields(
    test: str, field: str, expected: bool
) -> None:
    raw = f"{field}\r\n\r\n".encode()
    script = f"{REQUIRE}\nif address {test} {{ discard; }}"
    message = ParsedSieveMessage(raw, parse_structure(raw))
    plan = sieve.run_script(
        sieve.compile_script(script), message, SieveEnvelope("", ""), SieveEnvironment(NOW)
    )
    assert any(isinstance(action, sieve.Discard) for action in plan.actions) is expected
    assert (
        FilterTestMessage(message).matches_and_steps(query_from_test(f"address {test}"))[0]
        is expected
    )


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
                                                 "keywords": ["x", "y"]}),
    ('keep :flags "\\\\Flagged"; stop;', {"flag": True, "stop": True}),
    ('addflag "a"; setflag ["b", "\\\\SEEN"]; removeflag "b";',
     {"seen": True, "removeKeywords": ["b"]}),
    ('redirect "a@b.example";', {"forwardTo": ["a@b.example"], "delete": True}),
    ('redirect "a@b.example"; keep;', {"forwardTo": ["a@b.example"]}),
    ('redirect "a@b.example"; fileinto "A";', {"forwardTo": ["a@b.example"], "mailbox": "A"}),
    ('redirect :copy "a@b.example"; redirect :copy "a@b.example";', {"forwardTo": ["a@b.example"]}),
    ("discard; stop;", {"delete": True, "stop": True}),
    ("keep; stop;", {"stop": True}),
    ('vacation :days 1 :subject " Away " "Back soon";',
     {"reply": {"subject": "Away", "text": "Back soon", "html": ""}}),
    ('vacation :days 1 :mime text:\nContent-Type: text/html\n\n<b>x</b>\n.\n;',
     {"reply": {"subject": "", "text": "", "html": "<b>x</b>\n"}}),
]  # fmt: skip


@pytest.mark.parametrize(("commands", "action"), ACTIONS)
def test_sieve_commands_become_action(commands: str, action: Any) -> None:
    assert action_from_commands(commands) == action


def test_later_branch_excludes_earlier_conditions() -> None:
    imported = imported_filters("""
        # Big
        if size :over 1M { fileinto "A"; }
        /* From the list */
        elsif header :contains "subject" "x" { fileinto "B"; stop; }
        elsif header :contains "subject" "y" { if size :under 9 { keep; stop; } fileinto "C"; }
        else { discard; }
    """)
    big, small = {"larger": 1 << 20}, {"smaller": 9}
    assert imported == [
        ("Big", big, {"mailbox": "A"}),
        ("From the list", {"not": [big], "subject": "x"}, {"mailbox": "B", "stop": True}),
        ("", {"not": [big], "subject": "y", **small}, {"stop": True}),
        ("", {"not": [big], "subject": "y"}, {"mailbox": "C"}),
        ("", {"not": [big, {"subject": "y"}]}, {"delete": True}),
    ]


def test_comment_becomes_filter_name() -> None:
    imported = imported_filters("""
        # rule:[Größe: 10%]
        # by the assistant
        if size :over 9 { discard; stop; }

        # not this

        if size :over 8 { discard; stop; }
        # Not part of the Sieve script: a webhook is called
        if size :over 7 { discard; stop; }
        #
        ## last\tone ##
        discard;
    """)
    assert [name for name, _, _ in imported] == ["Größe: 10%", "", "", "last one ##"]
    ((name, _, _),) = imported_filters(f"# {'x' * 300}\ndiscard;")
    assert name == "x" * 255


INVALID_SCRIPTS = [
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
    ('if body :contains "" { keep; }', 4, "Filters can't test whether the message has a text."),
    ('addflag "a" "b";', 1, "variables"),
    ('fileinto "${a}";', 1, "variables"),
    ('vacation "a"; vacation "b";', 15, "once"),
    ('vacation :mime "Content-Type: image/png\\n\\nx";', 1, "text"),
    (
        'discard; if size :over 2 { fileinto "A"; }',
        1,
        "A filter can't store a message that the command in line "
        f"{REQUIRE_LINE_COUNT + 1} discards: add `stop` here.",
    ),
    ('redirect "a@b.example"; if size :over 2 { keep; }', 1, "add `stop` here."),
]


@pytest.mark.parametrize(("text", "column", "message_part"), INVALID_SCRIPTS)
def test_unsupported_command_is_reported_with_its_position(
    text: str, column: int, message_part: str
) -> None:
    (error,) = import_text(text.replace("\\n", "\n")).errors
    assert (error.line, error.column) == (REQUIRE_LINE_COUNT + 1, column)
    assert message_part in error.message


def test_errors_are_reported_up_to_a_limit() -> None:
    imported = import_text(
        'if anyof (envelope "to" "a", size :over 1, currentdate "year" "1") { keep; }'
    )
    assert [error.column for error in imported.errors] == [11, 44]
    many_errors = import_text('redirect "a@b.example"; set "a" "b";\n' * 30)
    assert [error.line for error in many_errors.errors] == list(
        range(REQUIRE_LINE_COUNT + 1, REQUIRE_LINE_COUNT + 21)
    )
    with pytest.raises(SieveError) as syntax_error:
        import_text("if {")
    assert syntax_error.value.line == REQUIRE_LINE_COUNT + 1
    (limit_error,) = import_text("if size :over 1 { discard; stop; }\n" * 3, max_filters=2).errors
    assert (limit_error.line, limit_error.message) == (
        REQUIRE_LINE_COUNT + 3,
        "A script can become at most 2 filters.",
    )


SCRIPTS_WITH_WARNINGS = [
    ("discard; stop; keep;", "The command is never reached: it was omitted."),
    (
        "# Not part of the Sieve script: a webhook is called\ndiscard;",
        "The comment can't be imported: it was omitted.",
    ),
    ("if false { discard; }", "The test is never true: it was omitted."),
    ('if header :comparator "i;octet" :contains "x" "y" { stop; }', "Filters ignore case."),
    ('if address :contains "from" "y" { stop; }', "names"),
    ('fileinto "A"; addflag "\\\\Seen";', "flags"),
    ('vacation :days 3 "x";', "once in P1D"),
    (
        'vacation :days 1 :from "a@b.example" "x";',
        "Filters reply only for the addresses of the account.",
    ),
    (
        'if size :over 1 { fileinto "A"; } if size :over 2 { fileinto "B"; }',
        " stores is not also stored here.",
    ),
    (
        'if size :over 1 { fileinto :copy "A"; } if size :over 2 { discard; }',
        "The message also stays in the mailbox, whatever follows.",
    ),
    ('if size :over 1 { addflag "x"; } setflag "y";', " apply."),
    (
        'if size :over 1 { fileinto :copy "A"; } if size :over 2 { addflag "x"; }',
        "These flags also apply to the message that the command in line ",
    ),
]


EQUIVALENT_SCRIPTS = [
    "if size :over 1 { keep; } if size :over 2 { keep; }",
    'if size :over 1 { fileinto "A"; } if size :over 2 { fileinto "A"; }',
    'if size :over 1 { fileinto "A"; } else { fileinto "B"; }',
    'if size :over 1 { fileinto "A"; stop; } if size :over 2 { fileinto "B"; }',
    'if size :over 1 { if size :over 2 { fileinto "A"; } else { discard; } }',
]


@pytest.mark.parametrize("text", EQUIVALENT_SCRIPTS)
def test_equivalent_script_has_no_warning(text: str) -> None:
    imported = import_text(text)
    assert (imported.errors, imported.warnings) == ([], [])


@pytest.mark.parametrize(("text", "message_part"), SCRIPTS_WITH_WARNINGS)
def test_different_behaviour_of_filters_is_a_warning(text: str, message_part: str) -> None:
    imported = import_text(text)
    assert imported.errors == []
    (warning,) = imported.warnings
    assert message_part in warning.message


def test_many_comments_and_branches_are_imported() -> None:
    command = "if size:over 1{discard;}"
    comments = "#\n" * 15_000
    assert len(import_text(comments + command * 300, max_filters=300).filters) == 300
    chain = "if size :over 1 {discard;} " + "elsif size :over 1 {discard;} " * 1_000
    assert len(import_text(chain, max_filters=2_000).filters) == 1_001
    same_mailbox = import_text('fileinto "A"; if true { addflag "x"; }\n' * 150, max_filters=300)
    assert (len(same_mailbox.filters), len(same_mailbox.warnings)) == (300, 20)


MESSAGES = [
    f"From: {who}\r\nSubject: {what}\r\nX-A: 1\r\n\r\n{'x' * size}".encode()
    for who in ("ada@example.org", "Bob <bob@example.net>")
    for what in ("news of today", "Re: [list] x", "")
    for size in (0, 500)
]
sieve_tests = st.recursive(
    st.sampled_from([
        "true", "size :over 300", 'header :contains "subject" "news"', 'exists ["x-a", "x-b"]',
        'header :matches "subject" "*[list]*"', 'address :domain "from" "example.org"',
        'header "subject" "news of today"', 'address "from" "bob@example.net"',
        'header "subject" ""',
        'header :matches "subject" "?e*"', 'header :contains ["x-a", "from"] "ada"',
    ]),
    lambda inner: st.builds("not {}".format, inner)
    | st.builds("anyof ({}, {})".format, inner, inner)
    | st.builds("allof ({}, {})".format, inner, inner),
    max_leaves=4,
)  # fmt: skip
sieve_commands = st.lists(
    st.sampled_from([
        'addflag "one";', 'addflag "\\\\Seen";', 'removeflag "one";', 'fileinto "A";',
        'fileinto "B";', 'fileinto :copy "C";', "keep;", "discard;", "stop;",
        'redirect "a@b.example";', 'redirect :copy "c@d.example";',
    ]),
    min_size=1, max_size=4, unique=True,
).map(" ".join)  # fmt: skip
if_chains = st.builds(
    lambda heads, last: " elsif ".join(f"{test} {{ {block} }}" for test, block in heads) + last,
    st.lists(st.tuples(sieve_tests, sieve_commands), min_size=1, max_size=3),
    st.just("") | sieve_commands.map(" else {{ {} }}".format),
).map("if {}".format)


@settings(max_examples=150)
@given(st.lists(if_chains | sieve_commands, min_size=1, max_size=3).map("\n".join))
def test_filters_without_warning_do_what_the_script_does(text: str) -> None:
    imported = import_text(text)
    assert all(
        "A filter can't store a message that the command in line " in error.message
        for error in imported.errors
    )
    if imported.errors or imported.warnings:
        return
    mailbox_ids = {"A": 1, "B": 2, "C": 3}
    filters = []
    for number, filter_ in enumerate(imported.filters):
        action = plain_action(filter_.action)
        if "mailbox" in action:
            action["mailbox"] = mailbox_ids[action["mailbox"]]
        action["copyTo"] = [mailbox_ids[path] for path in action.get("copyTo", ())]
        targets = [FilterTarget(number, to, to) for to in action.get("forwardTo", ())]
        filters.append(CompiledFilter(number, filter_.query, action, targets))
    program = sieve.compile_script(f"{REQUIRE}\n{text}")
    for raw in MESSAGES:
        message = ParsedSieveMessage(raw, parse_structure(raw))
        plan = sieve.run_script(program, message, SieveEnvelope("", ""), SieveEnvironment(NOW))
        script_mailbox_ids = {
            0 if isinstance(script_action, Keep) else mailbox_ids[script_action.mailbox]
            for script_action in plan.actions
            if isinstance(script_action, Keep | FileInto)
        }
        decision = combined_result_of_matching_filters(filters, FilterTestMessage(message))
        filter_mailbox_ids = (
            set() if decision.is_deleted else {decision.mailbox_id or 0, *decision.copy_mailbox_ids}
        )
        assert filter_mailbox_ids == script_mailbox_ids
        redirects = {
            script_action.address
            for script_action in plan.actions
            if isinstance(script_action, Redirect)
        }
        assert {to.public_url for to in decision.targets} == redirects
        for script_action in plan.actions:
            if isinstance(script_action, Keep | FileInto):
                filter_flags = [*decision.added_keywords, *(["\\Seen"] if decision.is_seen else [])]
                assert set(filter_flags) == set(script_action.flags)
