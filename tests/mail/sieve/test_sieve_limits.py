"""Limits of Sieve scripts: expensive scripts end with an error."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.sieve import SieveError, SieveRunError, limits, print_script
from mail.sieve.syntax.syntax_tree import Tree
from tests.support.growth import assert_cpu_ratio
from tests.support.mail.random_sieve_scripts import COMPILING_SCRIPTS
from tests.support.mail.sieve_runs import (
    SAMPLE_MESSAGE,
    run_script,
    script_actions,
    script_problems,
)

REQUIRE = 'require ["variables", "body", "relational", "fileinto"];\n'
LONG_HEADER_MESSAGE = SAMPLE_MESSAGE.replace(b"X-Number: 7", b"X-Number: " + b"a" * 500_000)
LONG_BODY_MESSAGE = SAMPLE_MESSAGE.replace(b"The caf", b"a" * 2_000_000)


@given(COMPILING_SCRIPTS)
@settings(max_examples=80)
def test_random_script_stays_within_limits(tree: Tree) -> None:
    with suppress(SieveError, SieveRunError):
        plan = run_script(print_script(tree), addresses={"bob@example.com"})
        assert plan.steps <= limits.MAX_STEPS
        assert len(plan.actions) <= limits.MAX_ACTIONS + 1


@given(st.text("ab*?\\", max_size=12), st.text("ab*?\\", max_size=12))
@settings(max_examples=200)
def test_matches_equals_backtracking_search(pattern: str, text: str) -> None:
    quoted = [part.replace("\\", "\\\\") for part in (pattern, text)]
    test = f'string :comparator "i;octet" :matches "{quoted[1]}" "{quoted[0]}"'
    script = f"{REQUIRE} if {test} {{ discard; }}"
    assert (script_actions(script) == ["discard"]) is matches_by_backtracking(pattern, text)


def matches_by_backtracking(pattern: str, text: str) -> bool:
    """True if a :matches pattern matches, found by backtracking."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return matches_by_backtracking(pattern[1:], text) or bool(
            text and matches_by_backtracking(pattern, text[1:])
        )
    if pattern[0] == "\\" and len(pattern) > 1:
        pattern = pattern[1:]
        return (
            bool(text) and text[0] == pattern[0] and matches_by_backtracking(pattern[1:], text[1:])
        )
    return (
        bool(text)
        and pattern[0] in ("?", text[0])
        and matches_by_backtracking(pattern[1:], text[1:])
    )


HOSTILE_SCRIPTS = [
    'if header :matches "x-number" "{}b" {{ }}'.format("*a" * 2000),
    'if header :matches "x-number" "{}b" {{ }}'.format("*a?" * 1000),
    'if header :matches "x-number" "*{}b*" {{ }}'.format("?a" * 2000),
    'if header :matches "x-number" "*{}b" {{ }}'.format("?" * 4000),
    'if header :contains "x-number" ["{}"] {{ }}'.format('", "'.join(f"b{n}" for n in range(3000))),
    'if header :value "gt" "x-number" ["{}"] {{ }}'.format(
        '", "'.join(f"b{n}" for n in range(3000))
    ),
    "".join('if header :matches "x-number" "*ab*" { }' for _ in range(900)),
]


@pytest.mark.parametrize("script", HOSTILE_SCRIPTS, ids=range(len(HOSTILE_SCRIPTS)))
def test_hostile_pattern_stays_within_limits(script: str) -> None:
    with suppress(SieveRunError):  # most of them need too many steps
        assert run_script(REQUIRE + script, LONG_HEADER_MESSAGE).steps <= limits.MAX_STEPS


def test_long_body_costs_steps() -> None:
    script = 'if body :contains "{}" {{ }}'
    assert run_script(REQUIRE + script.format("x"), LONG_BODY_MESSAGE).steps > 100
    with pytest.raises(SieveRunError, match="takes too long"):
        run_script(REQUIRE + "".join(script.format(f"x{n}") for n in range(50)), LONG_BODY_MESSAGE)


def test_regex_count_of_script_is_limited() -> None:
    keys = '", "'.join(f"(a{{50}}){{3}}{n}" for n in range(limits.MAX_REGEXES))
    script = 'require "regex"; if header :regex "subject" ["{}"] {{ }}'
    assert script_problems(script.format(keys)) == []
    expected = "A script can have at most 100 regular expressions."
    assert script_problems(script.format(f'{keys}", "a')) == [f"1:21 {expected}"]
    with pytest.raises(SieveRunError, match="takes too long"):
        run_script(script.format(keys) + " if true { }" * 4000)


def test_variable_length_is_limited() -> None:
    growing_commands = 'set "a" "${a}${a}${a}${a}";' * 30
    script = (
        f'{REQUIRE} set "a" "xy"; {growing_commands} set :length "n" "${{a}}"; fileinto "${{n}}";'
    )
    assert script_actions(script) == [f"into {limits.MAX_VARIABLE_LENGTH}"]
    references = "${a}" * 100
    with pytest.raises(SieveRunError, match="A string with its variables is too long"):
        run_script(f'{REQUIRE} set "a" "xy"; {growing_commands} set "b" "{references}";')
    with pytest.raises(SieveRunError, match="takes too long"):
        run_script(
            f'{REQUIRE} set "a" "xy"; {growing_commands}'
            + 'set "b" "${a}${a}${a}${a}${a}${a}${a}${a}";' * 800
        )


def test_long_script_raises_too_long() -> None:
    script = f"if anyof (false{', false' * 60}) {{ }}\n" * 100
    with pytest.raises(SieveRunError, match="takes too long") as error:
        run_script(script)
    assert error.value.line > 1


MULTIPART_MESSAGE = (
    b"Subject: %s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" % (b"ab" * 200)
    + b"--b\r\n\r\nx\r\n" * 3000
    + b"--b--\r\n"
)
REQUIRE_IN_LOOPS = (
    'require ["variables", "body", "mime", "foreverypart", "mailbox", "enotify", "imap4flags",'
    ' "relational", "regex"];\n'
)


def string_list(text: str, count: int = 5000) -> str:
    return '["' + '", "'.join([text] * count) + '"]'


@pytest.mark.parametrize(
    "command",
    [
        f'if body :content {string_list("x/y")} :contains "x" {{ }}',
        f"if exists {string_list('subject')} {{ }}",
        f'if header :contains {string_list("x-none")} "x" {{ }}',
        f'if header :count "gt" {string_list("subject")} "999999" {{ }}',
        f'if address :contains {string_list("cc")} "x" {{ }}',
        f'if hasflag :contains {string_list("x")} "x" {{ }}',
        f'if header :contains "x-none" {string_list("${a}b")} {{ }}',
        f"if mailboxexists {string_list('INBOX')} {{ }}",
        f"if valid_notify_method {string_list('mailto:a@b.example', 2500)} {{ }}",
        f"keep :flags {string_list('x')};",
        'set "b" "' + "${a}" * 10_000 + '";',
    ],
)
def test_repeated_work_that_compares_nothing_costs_steps(command: str) -> None:
    def run_in_loop(block: str) -> Callable[[], object]:
        def run() -> None:
            with pytest.raises(SieveRunError, match="takes too long"):
                run_script(
                    f"{REQUIRE_IN_LOOPS} foreverypart {{ {block} }}",
                    MULTIPART_MESSAGE,
                    mailboxes={"INBOX"},
                )

        return run

    search = 'if header :regex "subject" "(a|b)*(c|d)*q" { }'
    assert_cpu_ratio(run_in_loop(command), run_in_loop(search), max_ratio=1.5)


def test_texts_of_parts_cost_steps() -> None:
    message = b"Content-Type: text/html\r\n\r\n" + b"<" * limits.MAX_PART_BYTES
    script = 'require ["variables", "foreverypart", "extracttext"]; foreverypart {{ {} }}'
    extract = 'extracttext :first 9 "a";'
    assert run_script(script.format(extract), message).steps > 500
    with pytest.raises(SieveRunError, match="takes too long"):
        run_script(script.format(extract * 10), message)
