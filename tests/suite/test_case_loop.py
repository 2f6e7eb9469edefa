"""A loop over cases checks all of them and raises all failures."""

import asyncio
from collections.abc import Callable, Iterable

import pytest

from tests.support.case_loop import each_case


def check_each(cases: Iterable[str], check: Callable[[str], object]) -> list[str]:
    """Check each case in a loop, and return those that were begun."""
    begun = list[str]()
    for case in each_case(cases):
        with case as text:
            begun.append(text)
            check(text)
    return begun


def test_all_cases_are_checked_and_all_failures_are_raised() -> None:
    with pytest.raises(ExceptionGroup, match=r"^2 cases failed") as raised:
        check_each(["x", "1", "y"], int)
    failures = raised.value.exceptions
    assert [type(failure) for failure in failures] == [ValueError] * 2
    assert [failure.__notes__ for failure in failures] == [["Case: 'x'"], ["Case: 'y'"]]


def test_missing_exception_is_a_failure_of_its_case() -> None:
    def expect_invalid_number(text: str) -> None:
        with pytest.raises(ValueError, match="invalid"):
            int(text)

    with pytest.raises(BaseExceptionGroup, match=r"^1 cases failed") as raised:
        check_each(["1", "x"], expect_invalid_number)
    (failure,) = raised.value.exceptions
    assert isinstance(failure, pytest.fail.Exception)


def test_loop_without_failures_raises_nothing() -> None:
    assert check_each(["1", "2"], int) == ["1", "2"]


def test_cancellation_ends_the_loop() -> None:
    begun = list[str]()

    def cancel(text: str) -> None:
        begun.append(text)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        check_each(["1", "2"], cancel)
    assert begun == ["1"]
