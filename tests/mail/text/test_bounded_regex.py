"""Regular expressions of strangers."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mail.text.bounded_regex import MAX_PATTERN_LENGTH, MAX_TEXT_LENGTH, BoundedRegex
from models.errors import InvalidInput

PATTERNS = [
    "ada", "^ada$", "a|b", "(a|bc)+d?", "[a-c]{2,3}@", r"\d+\.\w*", "[^a-y@]", "x*", "(?:ab)*c",
    ".+@example", r"^\S+$", "a{2}", "a{1,}b", "[]a]", "[a-]", r"[\d.]+", "", "a??b", "(|a)b",
]  # fmt: skip


@given(some.sampled_from(PATTERNS[:-3] + PATTERNS[-2:]), some.text("abcdxyz0.@- ", max_size=12))
def test_what_is_found_is_what_python_finds(pattern: str, text: str) -> None:
    if pattern:
        python = re.search(pattern, text, re.IGNORECASE | re.ASCII)
        assert BoundedRegex(pattern).is_found_in(text) is bool(python)


@pytest.mark.parametrize("pattern", ["/@Work\\.Example$/i", "@WORK[.]example$", "K\\.E"])
def test_case_does_not_matter_and_slashes_may_stand_around(pattern: str) -> None:
    assert BoundedRegex(pattern).is_found_in("Ada@work.EXAMPLE")


@pytest.mark.parametrize(
    "pattern",
    [
        "", "(", ")", "a)", "(a", "[a", "[", "*", "a|*", "^*", "\\", r"\b", r"\1", r"\pL", "(?=a)",
        "(?P<n>a)", "(?s)a", "a{", "a{1", "a{x}", "a{3,2}", "a{65}", "a{,3}", "[b-a]", "(" * 30,
        "((a{30}){30})", "x" * (MAX_PATTERN_LENGTH + 1),
    ],
)  # fmt: skip
def test_what_is_none_or_cannot_be_bounded_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        BoundedRegex(pattern)
    assert refused.value.path == ["sendersRegex"]


@given(some.text(max_size=40), some.text(max_size=40))
def test_no_pattern_does_more_than_refuse(pattern: str, text: str) -> None:
    with contextlib.suppress(InvalidInput):
        BoundedRegex(pattern).is_found_in(text)


@pytest.mark.parametrize(
    "pattern",
    [
        "^((((a*)*)*)*)*$",
        "^(a+)+$",
        "^(a|a)*$",
        "^(a|aa)+$",
        "^a?a?a?a?a?a?a?aaaaaaa$",
        "(.*){60}x",
    ],
)
def test_what_others_choke_on_is_soon_known(pattern: str) -> None:
    assert not BoundedRegex(pattern).is_found_in("a" * (MAX_TEXT_LENGTH - 1) + "b")
    assert not BoundedRegex(pattern).is_found_in("a" * (MAX_TEXT_LENGTH + 1))  # its end is not seen
