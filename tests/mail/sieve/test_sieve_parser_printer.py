"""Parsing, printing and compiling of Sieve scripts, and the positions of problems."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.sieve import (
    EXTENSIONS,
    ScriptProblem,
    SieveError,
    SieveProgram,
    compile_script,
    compile_tree,
    limits,
    parse_script,
    print_script,
)
from mail.sieve.execution.signatures import SieveCall
from mail.sieve.source_position import SourcePosition
from mail.sieve.syntax.syntax_tree import (
    CommandNode,
    NumberNode,
    StringListNode,
    StringNode,
    TagNode,
    Tree,
    string_list,
)
from mail.sieve.syntax.syntax_tree import TestNode as Condition
from tests.support.mail.random_sieve_scripts import COMPILING_SCRIPTS, SYNTAX_TREES, TOKEN_SEQUENCES
from tests.support.mail.sieve_runs import script_problems


@given(SYNTAX_TREES)
@settings(max_examples=60)
def test_printed_tree_is_parsed_to_same_tree(tree: Tree) -> None:
    assert parse_script(print_script(tree)) == tree
    assert parse_script(print_script(tree).encode()) == tree


def test_tree_built_by_code_is_printed_and_compiled() -> None:
    tree = (
        CommandNode("require", (string_list("fileinto", "copy"),)),
        CommandNode(
            "if",
            tests=(
                Condition(
                    "header", (TagNode("contains"), StringNode("Subject"), string_list("a", 'b"\\'))
                ),
            ),
            block=(
                CommandNode("fileinto", (TagNode("copy"), StringNode("A"))),
                CommandNode("stop"),
            ),
        ),
    )
    assert print_script(tree) == (
        'require ["fileinto", "copy"];\n'
        'if header :contains "Subject" ["a", "b\\"\\\\"] {\n'
        '    fileinto :copy "A";\n'
        "    stop;\n"
        "}\n"
    )
    assert compile_tree(tree).extensions >= {"fileinto", "copy"}


def test_script_syntax_is_parsed() -> None:
    script = """# one
        KEEP :Over "a\\"\\\\\\b" ["x" , "y"] 2K 03 /* two
        ** three */ not anyof (true, x :y 1) { stop ; } discard text: # four
..
.a
x
.
;"""
    condition = Condition("x", (TagNode("y"), NumberNode(1)))
    assert parse_script(script) == (
        CommandNode(
            "keep",
            (
                TagNode("over"),
                StringNode('a"\\b'),
                StringListNode((StringNode("x"), StringNode("y"))),
                NumberNode(2048),
                NumberNode(3),
            ),
            (Condition("not", (), (Condition("anyof", (), (Condition("true"), condition)),)),),
            (CommandNode("stop"),),
        ),
        CommandNode("discard", (StringNode(".\n.a\nx\n"),)),
    )
    positions = [
        command.position
        for command in parse_script("stop;\n  keep;\n\u00e4"[:-1] + "/*\u00e4*/ stop;")
    ]
    assert positions == [SourcePosition(1, 1), SourcePosition(2, 3), SourcePosition(3, 7)]
    assert parse_script("\ufeff".encode() + b"stop;") == (CommandNode("stop"),)


SYNTAX_ERRORS = [
    ("keep", "1:5 Expected ; or {, found the end."),
    ("keep;\n  }", "2:3 Expected a command, found }."),
    ("if true { keep;", "1:16 Expected }, found the end."),
    ('"a";', "1:1 Expected a command, found a string."),
    ("if (true; false) { }", "1:9 Expected ), found ;."),
    ("if () { }", "1:5 Expected a test, found )."),
    ("keep [];", "1:7 Expected a string, found ]."),
    ('keep ["a" "b"];', "1:11 Expected ], found a string."),
    ('keep ["a",];', "1:11 Expected a string, found ]."),
    ('keep "a', "1:6 The string is not closed."),
    ("/* keep;", "1:1 The comment is not closed."),
    ("keep text:\nx\n", "1:6 A multi-line string must end with a line that is a single dot."),
    ("size :over 1X;", "1:12 A number must be digits, optionally followed by K, M or G."),
    ("size 99999999999999999999;", "1:6 A number must be less than 2^63."),
    ("size " + "9" * 5000 + "G;", "1:6 A number must be less than 2^63."),
    ("keep;\n\u00e4", "2:1 Unexpected character '\u00e4'."),
    ("keep :;", "1:6 Unexpected character ':'."),
    ("# \0", "1:3 A string must not contain NUL or a surrogate."),
    ("# \ud800", "1:3 A string must not contain NUL or a surrogate."),
    (b"keep;\n \xff", "2:2 A script must be in UTF-8."),
    ("if true { " * 16, "1:151 Blocks and tests can be nested at most 15 levels deep."),
    ("if " + "not " * 16, "1:64 Blocks and tests can be nested at most 15 levels deep."),
    ("#" * (limits.MAX_SCRIPT_BYTES + 1), "1:1 A script can have at most 65536 bytes."),
    ("\u00e4" * (limits.MAX_SCRIPT_BYTES // 2 + 1), "1:1 A script can have at most 65536 bytes."),
]


@pytest.mark.parametrize(("script", "problem"), SYNTAX_ERRORS, ids=range(len(SYNTAX_ERRORS)))
def test_syntax_error_has_position(script: str | bytes, problem: str) -> None:
    assert script_problems(script) == [problem]


INVALID_SCRIPTS = [
    ('require "x-none";', '1:9 Unknown extension "x-none".'),
    ('require ["copy",\n "y"];', '2:2 Unknown extension "y".'),
    ("require 1;", "1:9 The capabilities of require are strings."),
    ('keep; require "copy";', "1:7 require must come before all other commands."),
    ('if true { require "copy"; }', "1:11 require must come before all other commands."),
    ('fileinto "a";', '1:1 The script must require "fileinto" to use fileinto.'),
    ('redirect :copy "a@b.cd";', '1:10 The script must require "copy" to use :copy.'),
    ("frobnicate;", "1:1 Unknown command frobnicate."),
    ("if frobnicate { }", "1:4 Unknown test frobnicate."),
    ("if keep { }", "1:4 Unknown test keep."),
    ("true;", "1:1 Unknown command true."),
    ("else { }", "1:1 The command else must follow an if or elsif."),
    ("if true { } else { } elsif true { }", "1:22 The command elsif can't follow else."),
    ("if { }", "1:1 The command if takes one test."),
    ("if true, false { }", "1:8 Expected ; or {, found ,."),
    ("if (true, false) { }", "1:1 The command if takes one test."),
    ("if true;", "1:1 The command if must have a block in {}."),
    ("if true { } else true { }", "1:13 The command else takes no test."),
    ('if "a" true { }', "1:1 The command if takes no arguments."),
    ("keep { }", "1:1 The command keep must end with a semicolon."),
    ("keep true;", "1:1 The command keep takes no test."),
    ("if not { }", "1:4 The test not takes one test."),
    ("if anyof { }", "1:4 The test anyof takes tests."),
    ("if true false { }", "1:4 The test true takes no test."),
    ("keep 1;", "1:1 Expected 0 arguments without a tag for keep, found 1."),
    ("redirect;", "1:1 Expected 1 argument without a tag for redirect, found 0."),
    ("redirect 1;", "1:10 The address of redirect is a string."),
    ('redirect ["a@b.cd"];', "1:10 The address of redirect is a string."),
    ('redirect "a b@c.de";', '1:1 "a b@c.de" is not an email address.'),
    ('redirect "ada";', '1:1 "ada" is not an email address.'),
    ("keep :often;", "1:6 keep does not support :often."),
    ('if header "a" :is "b" { }', "1:15 Tagged arguments must come before other arguments."),
    ('if header :is :contains "a" "b" { }',
     "1:15 The tag :contains conflicts with an earlier tag."),
    ('if header :is :is "a" "b" { }', "1:15 The tag :is conflicts with an earlier tag."),
    ("if size 1 { }", "1:4 :over or :under is missing."),
    ('if size :over "1" { }', "1:15 The limit of size is a number."),
    ('if header :comparator "i;none" "a" "b" { }', '1:23 Unknown comparator "i;none".'),
    ('if header :comparator "i;ascii-numeric" "a" "b" { }',
     '1:23 The script must require "comparator-i;ascii-numeric" to use comparator "i;ascii-numeric".'),  # noqa: E501
    ('if header :comparator :is "a" "b" { }',
     "1:11 The tag :comparator must be followed by a string."),
    ('if header "a:" "b" { }', '1:4 "a:" is not a header field name.'),
    ('if header "" "b" { }', '1:4 "" is not a header field name.'),
    ('if address "subject" "b" { }', '1:4 "subject" is not a header field with addresses.'),
]  # fmt: skip


@pytest.mark.parametrize(("script", "problem"), INVALID_SCRIPTS)
def test_invalid_script_has_problem_with_position(script: str, problem: str) -> None:
    assert script_problems(script) == [problem]


INVALID_EXTENSION_SCRIPTS = [
    ("fileinto", 'fileinto "";', "is not a mailbox: "),
    ("fileinto", 'fileinto "a//b";', "is not a mailbox: "),
    ("fileinto", 'fileinto "a\nb";', "is not a mailbox: "),
    ("envelope", 'if envelope "cc" "x" { }', "is not an envelope part"),
    ("relational", 'if header :count "more" "a" "b" { }',
     ":count must be followed by one of gt, ge, lt, le, eq, ne."),
    ("relational", 'if header :value :is "a" "b" { }',
     "The tag :value must be followed by a string."),
    ("comparator-i;ascii-numeric", 'if header :contains :comparator "i;ascii-numeric" "a" "b" { }',
     "compares numbers"),
    ("variables", 'set "a b" "c";', "is not a variable name."),
    ("variables", 'set "${a}" "c";', "The name of set can't have variables."),
    ("variables", 'set "1" "c";', "is not a variable name."),
    ("variables", 'set "global.a" "c";',
     'The script must require "include" to use the namespace global.'),
    ("variables", 'set :lower :upper "a" "c";', "The tag :upper conflicts with an earlier tag."),
    ("variables", 'set "a" "${x.y}";', 'Unknown variable namespace "x.".'),
    ("variables", 'set "a" "${global.y}";', 'Unknown variable namespace "global.".'),
    ("variables", 'set "a" "${32}";', "go up to 31"),
    ("variables", 'set "a" "${99999999999999999999999}";', "go up to 31"),
    ("variables", 'set :encodeurl "a" "b";',
     'The script must require "enotify" to use :encodeurl.'),
    ("encoded-character", 'redirect "${unicode:D800}";',
     "${unicode:} does not know the character D800."),
    ("encoded-character", 'redirect "${unicode:110000}";',
     "${unicode:} does not know the character 110000."),
    ("encoded-character", f'redirect "${{unicode:{"f" * 5000}}}";',
     "${unicode:} does not know the character ffffffffffffffffffff."),
    ("encoded-character", 'redirect "${hex:ff}";', "The bytes of ${hex:} are not UTF-8."),
    ("encoded-character", 'redirect "${hex:0}";', "A string can't contain NUL."),
    ("vacation", 'vacation :from "x" "y";', "is not an email address."),
    ("vacation", 'vacation :seconds 1 "y";', "vacation-seconds"),
    ("vacation-seconds", 'vacation :seconds 1 :days 1 "y";',
     "The tag :days conflicts with an earlier tag."),
    ("imap4flags", 'setflag "a b" "c";', "is not a variable name."),
    ("body", 'if body :raw :text "x" { }', "The tag :text conflicts with an earlier tag."),
    ("ihave", 'if ihave "copy" { fileinto "x"; }',
     'The script must require "fileinto" to use fileinto.'),
    ("ihave", 'if ihave "x-none" { keep :'+'; }', "Unexpected character ':'."),
]  # fmt: skip


@pytest.mark.parametrize(("extension", "script", "problem"), INVALID_EXTENSION_SCRIPTS)
def test_invalid_use_of_extension_has_problem(extension: str, script: str, problem: str) -> None:
    (message,) = script_problems(f'require "{extension}";\n{script}')
    assert message.startswith("2:")
    assert problem in message


def test_all_problems_are_reported_up_to_limit() -> None:
    script = 'a;\nif b { c; }\nelse { keep :d; }\nfileinto "x";\nredirect "";\n'
    assert [problem.split()[0] for problem in script_problems(script)] == [
        "1:1",
        "2:4",
        "2:8",
        "3:13",
        "4:1",
        "5:1",
    ]
    assert len(script_problems("keep 1;\n" * 500)) == limits.MAX_PROBLEMS
    assert len(script_problems("a;" * 500)) == 1  # an unknown command is reported once


@given(st.binary(max_size=300) | st.text(max_size=200) | TOKEN_SEQUENCES)
@settings(max_examples=200)
def test_random_script_compiles_or_has_problems(script: str | bytes) -> None:
    for problem in compile_problems(script):
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message


def compile_problems(script: str | bytes) -> Sequence[ScriptProblem]:
    try:
        compile_script(script)
    except SieveError as error:
        return error.problems
    return ()


@given(COMPILING_SCRIPTS)
@settings(max_examples=60)
def test_printed_script_compiles_to_same_program(tree: Tree) -> None:
    parsed = parse_script(print_script(tree))
    assert parsed == tree
    with suppress(SieveError):
        assert program_shape(compile_tree(parsed)) == program_shape(compile_tree(tree))


def program_shape(program: SieveProgram) -> object:
    """Return a program without the positions of its commands."""
    return program.extensions, [call_shape(call) for call in program.calls]


def call_shape(call: SieveCall) -> object:
    tests = [call_shape(nested_call) for nested_call in call.tests]
    blocks = [[call_shape(nested_call) for nested_call in block] for block in call.blocks]
    return call.name, call.arguments, tests, blocks


def test_documentation_lists_every_extension_and_compiles() -> None:
    page = (Path(__file__).parents[3] / "docs/api/sieve.md").read_text()
    documented = re.findall(r"^\| `([\w;.-]+)` \| (?:RFC|draft|this server)", page, re.MULTILINE)
    assert documented == list(EXTENSIONS)
    blocks = re.findall(r"^```sieve\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for script in blocks:
        assert script_problems(script) == []
