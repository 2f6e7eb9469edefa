"""What is meant to exhaust us ends at once, as an error."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mail.sieve import SieveError, SieveRunError, limits, print_script
from mail.sieve.syntax.syntax_tree import Tree
from tests.support.mail.random_sieve_scripts import SCRIPTS
from tests.support.mail.sieve_runs import LETTER, acts, problems, run

ALL = 'require ["variables", "body", "relational", "fileinto"];\n'
LONG = LETTER.replace(b"X-Number: 7", b"X-Number: " + b"a" * 500_000)
WIDE = LETTER.replace(b"The caf", b"a" * 2_000_000)


@given(SCRIPTS)
@settings(max_examples=80, deadline=None)
def test_no_script_does_more_than_fail(tree: Tree) -> None:
    with suppress(SieveError, SieveRunError):
        plan = run(print_script(tree), addresses={"bob@example.com"})
        assert plan.steps <= limits.MAX_STEPS
        assert len(plan.actions) <= limits.MAX_ACTIONS + 1


@given(some.text("ab*?\\", max_size=12), some.text("ab*?\\", max_size=12))
@settings(max_examples=200, deadline=None)
def test_a_pattern_finds_what_a_slow_one_finds(pattern: str, text: str) -> None:
    quoted = [one.replace("\\", "\\\\") for one in (pattern, text)]
    script = (
        f'{ALL} if string :comparator "i;octet" :matches "{quoted[1]}" "{quoted[0]}" {{ discard; }}'
    )
    assert (acts(script) == ["discard"]) is slow(pattern, text)


def slow(pattern: str, text: str) -> bool:
    """Whether a pattern of :matches fits, tried in every way."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return slow(pattern[1:], text) or bool(text and slow(pattern, text[1:]))
    if pattern[0] == "\\" and len(pattern) > 1:
        pattern = pattern[1:]
        return bool(text) and text[0] == pattern[0] and slow(pattern[1:], text[1:])
    return bool(text) and pattern[0] in ("?", text[0]) and slow(pattern[1:], text[1:])


HOSTILE = [
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


@pytest.mark.parametrize("script", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_patterns(script: str) -> None:
    with suppress(SieveRunError):  # of too many steps, most of them
        assert run(ALL + script, LONG).steps <= limits.MAX_STEPS


def test_long_bodies_cost_steps() -> None:
    script = 'if body :contains "{}" {{ }}'
    assert run(ALL + script.format("x"), WIDE).steps > 100
    with pytest.raises(SieveRunError, match="takes too long"):
        run(ALL + "".join(script.format(f"x{n}") for n in range(50)), WIDE)


def test_scripts_have_few_expressions() -> None:
    keys = '", "'.join(f"(a{{50}}){{3}}{n}" for n in range(limits.MAX_REGEXES))
    script = 'require "regex"; if header :regex "subject" ["{}"] {{ }}'
    assert problems(script.format(keys)) == []
    more = "at most 100 regular expressions in a script"
    assert problems(script.format(f'{keys}", "a')) == [f"1:21 {more}"]
    with pytest.raises(SieveRunError, match="takes too long"):
        run(script.format(keys) + " if true { }" * 4000)


def test_variables_do_not_explode() -> None:
    doubled = 'set "a" "${a}${a}${a}${a}";' * 30
    script = f'{ALL} set "a" "xy"; {doubled} set :length "n" "${{a}}"; fileinto "${{n}}";'
    assert acts(script) == [f"into {limits.MAX_VARIABLE_LENGTH}"]
    many = "${a}" * 100
    with pytest.raises(SieveRunError, match="a string grows too long"):
        run(f'{ALL} set "a" "xy"; {doubled} set "b" "{many}";')
    with pytest.raises(SieveRunError, match="takes too long"):
        run(f'{ALL} set "a" "xy"; {doubled}' + 'set "b" "${a}${a}${a}${a}${a}${a}${a}${a}";' * 800)


def test_a_long_script_ends() -> None:
    script = f"if anyof (false{', false' * 60}) {{ }}\n" * 100
    with pytest.raises(SieveRunError, match="takes too long") as error:
        run(script)
    assert error.value.line > 1
