"""The measurement of growth tells jobs that grow with the size from those that grow faster."""

from collections.abc import Callable

import pytest

from tests.support.growth import assert_grows_with_size


def sum_job(size: int) -> Callable[[], object]:
    numbers = list(range(size))
    return lambda: sum(numbers)  # allocates nothing, so the caches of the processor matter less


def search_job(size: int) -> Callable[[], object]:
    numbers = list(range(size))
    return lambda: [number in numbers for number in numbers]


def test_job_that_grows_with_size_passes() -> None:
    assert_grows_with_size(sum_job, large_size=16_000)


def test_job_that_grows_with_square_of_size_fails() -> None:
    with pytest.raises(AssertionError, match="The time grows"):
        assert_grows_with_size(search_job, large_size=1_600)
