"""Regular expressions of users with bounded cost."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.text.bounded_regex import MAX_PATTERN_LENGTH, MAX_TEXT_LENGTH, BoundedRegex
from models.errors import InvalidInput

PATTERNS = [
    "ada", "^ada$", "a|b", "(a|bc)+d?", "[a-c]{2,3}@", r"\d+\.\w*", "[^a-y@]", "x*", "(?:ab)*c",
    ".+@example", r"^\S+$", "a{2}", "a{1,}b", "[]a]", "[a-]", r"[\d.]+", "", "a??b", "(|a)b",
]  # fmt: skip


@given(st.sampled_from(PATTERNS[:-3] + PATTERNS[-2:]), st.text("abcdxyz0.@- ", max_size=12))
def test_search_result_equals_python_re(pattern: str, text: str) -> None:
    if pattern:
        python_match = re.search(pattern, text, re.IGNORECASE | re.ASCII)
        assert BoundedRegex(pattern).is_found_in(text) is bool(python_match)


@pytest.mark.parametrize("pattern", ["/@Work\\.Example$/i", "@WORK[.]example$", "K\\.E"])
def test_pattern_ignores_case_and_enclosing_slashes(pattern: str) -> None:
    assert BoundedRegex(pattern).is_found_in("Ada@work.EXAMPLE")


@pytest.mark.parametrize(
    "pattern",
    [
        "", "(", ")", "a)", "(a", "[a", "[", "*", "a|*", "^*", "\\", r"\b", r"\1", r"\pL", "(?=a)",
        "(?P<n>a)", "(?s)a", "a{", "a{1", "a{x}", "a{3,2}", "a{65}", "a{,3}", "[b-a]", "(" * 30,
        "((a{30}){30})", "x" * (MAX_PATTERN_LENGTH + 1),
    ],
)  # fmt: skip
def test_invalid_or_unbounded_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        BoundedRegex(pattern)
    assert raised.value.path == ["sendersRegex"]


@given(st.text(max_size=40), st.text(max_size=40))
def test_random_pattern_is_searched_or_refused(pattern: str, text: str) -> None:
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
def test_exponential_pattern_is_searched_in_linear_time(pattern: str) -> None:
    assert not BoundedRegex(pattern).is_found_in("a" * (MAX_TEXT_LENGTH - 1) + "b")
    # The text is cut before its end.
    assert not BoundedRegex(pattern).is_found_in("a" * (MAX_TEXT_LENGTH + 1))
