"""A loop over the cases of one test, which checks the remaining cases after a failure."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

import pytest

T = TypeVar("T")
FAILURES = (Exception, pytest.fail.Exception)


class CheckedCase(Generic[T]):
    """A context manager that returns the values of a case and keeps its failure for later."""

    def __init__(self, values: T, failures: list[BaseException]) -> None:
        self._values = values
        self._failures = failures

    def __enter__(self) -> T:
        return self._values

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        failure: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(failure, FAILURES):
            return False
        failure.add_note(f"Case: {self._values!r:.1000}")
        self._failures.append(failure)
        return True


def each_case(cases: Iterable[T]) -> Iterator[CheckedCase[T]]:
    """Yield each case. After the last one, raise the failures of all cases as one group.

    A test must not leave the loop early: the failures before that would be lost.
    """
    failures = list[BaseException]()
    for values in cases:
        yield CheckedCase(values, failures)
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} cases failed", failures)
