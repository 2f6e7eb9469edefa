"""The Sieve extension include (RFC 6609)."""

import pytest

from mail.sieve import SieveProgram, SieveRunError, compile_script
from tests.support.mail.sieve_runs import script_actions


def run_with_includes(script: str, **others: str) -> list[str]:
    """Run a script that can include the other scripts by name, and return its actions."""
    names = 'require ["include", "variables", "fileinto", "imap4flags"];'
    programs = {name: compile_script(names + text) for name, text in others.items()}

    def find(location: str, name: str) -> SieveProgram | None:
        return programs.get(name if location == "personal" else f"global_{name}")

    return script_actions(names + script, script=find)


INCLUDE_CASES = [
    ('include "a";', {"a": "discard;"}, ["discard"]),
    ('include :global "a";', {"a": "stop;", "global_a": "discard;"}, ["discard"]),
    ('include "a"; fileinto "B";', {"a": "return; discard;"}, ["into B"]),
    ('include "a"; fileinto "B";', {"a": "stop;"}, ["keep"]),
    ('return; discard;', {}, ["keep"]),
    ('include "a"; addflag "c";', {"a": 'addflag "b";'}, ["keep b c"]),
    ('include :optional "a"; discard;', {}, ["discard"]),
    ('include "a"; include "b";', {"a": 'include "b";', "b": 'fileinto "B";'}, ["into B"]),
    ('set "v" "1"; include "a"; fileinto "${v}";', {"a": 'set "v" "2";'}, ["into 1"]),
    ('global "v"; set "v" "1"; include "a"; fileinto "${v}";',
     {"a": 'global "v"; set "v" "${v}2";'},
     ["into 12"]),
    ('set "global.v" "1"; include "a"; fileinto "${global.v}";',
     {"a": 'set "global.v" "x${global.v}";'},
     ["into x1"]),
    ('set "v" "1"; include "a"; fileinto "${v}";', {"a": 'set "global.v" "2";'}, ["into 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("script", "others", "expected"), INCLUDE_CASES)
def test_included_scripts(script: str, others: dict[str, str], expected: list[str]) -> None:
    assert run_with_includes(script, **others) == expected


def test_include_once_runs_script_once() -> None:
    others = {"a": 'set "global.n" "${global.n}x";'}
    script = 'include "a"; include {} "a"; fileinto "${{global.n}}";'
    assert run_with_includes(script.format(""), **others) == ["into xx"]
    assert run_with_includes(script.format(":once"), **others) == ["into x"]


INCLUDE_ERRORS = [
    ('include "a";', {}, 'There is no valid script "a".'),
    ('include "a";', {"a": 'include "a";'}, "includes itself"),
    ('include "a";', {"a": 'include "b";', "b": 'include "a";'}, "includes itself"),
    (
        'include "s0";',
        {f"s{n}": f'include "s{n + 1}";' for n in range(20)},
        "Scripts can be included at most 15 levels deep",
    ),
]


@pytest.mark.parametrize(("script", "others", "expected_error"), INCLUDE_ERRORS)
def test_invalid_include_raises(script: str, others: dict[str, str], expected_error: str) -> None:
    with pytest.raises(SieveRunError, match=expected_error):
        run_with_includes(script, **others)


def test_program_lists_its_includes() -> None:
    script = 'require "include"; include "a"; if true { include :global "b"; } include "a";'
    includes = [(include.location, include.name) for include in compile_script(script).includes]
    assert includes == [("personal", "a"), ("global", "b")]
