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
@settings(max_examples=60, deadline=None)
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
    ("keep", "1:5 ; or { should stand here, not the end"),
    ("keep;\n  }", "2:3 a command should stand here, not }"),
    ("if true { keep;", "1:16 } should stand here, not the end"),
    ('"a";', "1:1 a command should stand here, not a string"),
    ("if (true; false) { }", "1:9 ) should stand here, not ;"),
    ("if () { }", "1:5 a test should stand here, not )"),
    ("keep [];", "1:7 a string should stand here, not ]"),
    ('keep ["a" "b"];', "1:11 ] should stand here, not a string"),
    ('keep ["a",];', "1:11 a string should stand here, not ]"),
    ('keep "a', "1:6 a string has no end"),
    ("/* keep;", "1:1 a comment has no end"),
    ("keep text:\nx\n", "1:6 text: has no line with a dot alone at its end"),
    ("size :over 1X;", "1:12 a number has digits, then K, M or G or nothing"),
    ("size 99999999999999999999;", "1:6 a number is less than 2 to the 63"),
    ("size " + "9" * 5000 + "G;", "1:6 a number is less than 2 to the 63"),
    ("keep;\n\u00e4", "2:1 '\u00e4' begins nothing"),
    ("keep :;", "1:6 ':' begins nothing"),
    ("# \0", "1:3 no text holds a NUL or half a character"),
    ("# \ud800", "1:3 no text holds a NUL or half a character"),
    (b"keep;\n \xff", "2:2 a script is in UTF-8"),
    ("if true { " * 16, "1:151 at most 15 may stand in each other"),
    ("if " + "not " * 16, "1:64 at most 15 may stand in each other"),
    ("#" * (limits.MAX_SCRIPT_BYTES + 1), "1:1 a script has at most 65536 bytes"),
    ("\u00e4" * (limits.MAX_SCRIPT_BYTES // 2 + 1), "1:1 a script has at most 65536 bytes"),
]


@pytest.mark.parametrize(("script", "problem"), SYNTAX_ERRORS, ids=range(len(SYNTAX_ERRORS)))
def test_syntax_error_has_position(script: str | bytes, problem: str) -> None:
    assert script_problems(script) == [problem]


INVALID_SCRIPTS = [
    ('require "x-none";', '1:9 there is no extension "x-none"'),
    ('require ["copy",\n "y"];', '2:2 there is no extension "y"'),
    ("require 1;", "1:9 the capabilities of require are strings"),
    ('keep; require "copy";', "1:7 require stands before all else"),
    ('if true { require "copy"; }', "1:11 require stands before all else"),
    ('fileinto "a";', '1:1 fileinto is there with require "fileinto"'),
    ('redirect :copy "a@b.cd";', '1:10 :copy is there with require "copy"'),
    ("frobnicate;", "1:1 there is no command frobnicate"),
    ("if frobnicate { }", "1:4 there is no test frobnicate"),
    ("if keep { }", "1:4 there is no test keep"),
    ("true;", "1:1 there is no command true"),
    ("else { }", "1:1 else stands behind no if"),
    ("if true { } else { } elsif true { }", "1:22 elsif stands behind else"),
    ("if { }", "1:1 if takes one test"),
    ("if true, false { }", "1:8 ; or { should stand here, not ,"),
    ("if (true, false) { }", "1:1 if takes one test"),
    ("if true;", "1:1 if has a block in {}"),
    ("if true { } else true { }", "1:13 else takes no test"),
    ('if "a" true { }', "1:1 if takes no arguments"),
    ("keep { }", "1:1 keep ends in a semicolon"),
    ("keep true;", "1:1 keep takes no test"),
    ("if not { }", "1:4 not takes one test"),
    ("if anyof { }", "1:4 anyof takes tests"),
    ("if true false { }", "1:4 true takes no test"),
    ("keep 1;", "1:1 keep takes 0 arguments without a tag, not 1"),
    ("redirect;", "1:1 redirect takes 1 argument without a tag, not 0"),
    ("redirect 1;", "1:10 the address of redirect is a string"),
    ('redirect ["a@b.cd"];', "1:10 the address of redirect is a string"),
    ('redirect "a b@c.de";', '1:1 "a b@c.de" is no mail address'),
    ('redirect "ada";', '1:1 "ada" is no mail address'),
    ("keep :often;", "1:6 keep knows no :often"),
    ('if header "a" :is "b" { }', "1:15 tags stand before other arguments"),
    ('if header :is :contains "a" "b" { }', "1:15 :contains is one too many"),
    ('if header :is :is "a" "b" { }', "1:15 :is is one too many"),
    ("if size 1 { }", "1:4 :over or :under is missing"),
    ('if size :over "1" { }', "1:15 the limit of size is a number"),
    ('if header :comparator "i;none" "a" "b" { }', '1:23 there is no comparator "i;none"'),
    ('if header :comparator "i;ascii-numeric" "a" "b" { }',
     '1:23 comparator "i;ascii-numeric" is there with require "comparator-i;ascii-numeric"'),
    ('if header :comparator :is "a" "b" { }', "1:11 behind :comparator stands a string"),
    ('if header "a:" "b" { }', '1:4 "a:" is no name of a field'),
    ('if header "" "b" { }', '1:4 "" is no name of a field'),
    ('if address "subject" "b" { }', '1:4 "subject" is no field with addresses'),
]  # fmt: skip


@pytest.mark.parametrize(("script", "problem"), INVALID_SCRIPTS)
def test_invalid_script_has_problem_with_position(script: str, problem: str) -> None:
    assert script_problems(script) == [problem]


INVALID_EXTENSION_SCRIPTS = [
    ("fileinto", 'fileinto "";', "is no mailbox"),
    ("fileinto", 'fileinto "a//b";', "is no mailbox"),
    ("fileinto", 'fileinto "a\nb";', "is no mailbox"),
    ("envelope", 'if envelope "cc" "x" { }', "is no part of an envelope"),
    ("relational", 'if header :count "more" "a" "b" { }', "stands one of gt, ge"),
    ("relational", 'if header :value :is "a" "b" { }', "behind :value stands a string"),
    ("comparator-i;ascii-numeric", 'if header :contains :comparator "i;ascii-numeric" "a" "b" { }',
     "compares numbers"),
    ("variables", 'set "a b" "c";', "is no name of a variable"),
    ("variables", 'set "${a}" "c";', "holds no variables"),
    ("variables", 'set "1" "c";', "is no name of a variable"),
    ("variables", 'set "global.a" "c";', 'the namespace global is there with require "include"'),
    ("variables", 'set :lower :upper "a" "c";', ":upper is one too many"),
    ("variables", 'set "a" "${x.y}";', 'no namespace "x."'),
    ("variables", 'set "a" "${global.y}";', 'no namespace "global."'),
    ("variables", 'set "a" "${32}";', "go up to 31"),
    ("variables", 'set "a" "${99999999999999999999999}";', "go up to 31"),
    ("variables", 'set :encodeurl "a" "b";', "there is no :encodeurl|enotify"),
    ("encoded-character", 'redirect "${unicode:D800}";', "knows no character D800"),
    ("encoded-character", 'redirect "${unicode:110000}";', "knows no character 110000"),
    ("encoded-character", f'redirect "${{unicode:{"f" * 5000}}}";', "knows no character"),
    ("encoded-character", 'redirect "${hex:ff}";', "make no UTF-8"),
    ("encoded-character", 'redirect "${hex:0}";', "holds a NUL"),
    ("vacation", 'vacation :from "x" "y";', "is no mail address"),
    ("vacation", 'vacation :seconds 1 "y";', "vacation-seconds"),
    ("vacation-seconds", 'vacation :seconds 1 :days 1 "y";', ":days is one too many"),
    ("imap4flags", 'setflag "a b" "c";', "is no name of a variable"),
    ("body", 'if body :raw :text "x" { }', ":text is one too many"),
    ("ihave", 'if ihave "copy" { fileinto "x"; }', "fileinto is there with"),
    ("ihave", 'if ihave "x-none" { keep :'+'; }', "begins nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("extension", "script", "problem"), INVALID_EXTENSION_SCRIPTS)
def test_invalid_use_of_extension_has_problem(extension: str, script: str, problem: str) -> None:
    (message,) = script_problems(f'require "{extension}";\n{script}')
    assert message.startswith("2:")
    assert any(text in message for text in problem.split("|"))


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
@settings(max_examples=200, deadline=None)
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
@settings(max_examples=60, deadline=None)
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
    page = (Path(__file__).parents[3] / "docs" / "sieve.md").read_text()
    documented = re.findall(r"^\| `([\w;.-]+)` \| (?:RFC|draft|here)", page, re.MULTILINE)
    assert documented == list(EXTENSIONS)
    blocks = re.findall(r"^```sieve\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for script in blocks:
        assert script_problems(script) == []
