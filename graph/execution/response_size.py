"""The limit on the bytes of one answer, counted while the answer is made."""

from collections.abc import Callable
from typing import Any

import orjson

ANSWER_MAX = 32 << 20  # bytes
OVERHEAD = 4  # bytes around a name and its value: quotes, a colon, a comma
OTHER = 8  # bytes counted for a value that is not text
MEASURED = 1024  # characters from which a text is measured as it is escaped
ESCAPED = 6  # bytes of the longest escape of a character
CODE = "RESPONSE_TOO_LARGE"
INCLUDED = 1 << 20  # bytes of stored messages whose reading the price of an operation includes
READ_PER_POINT = 2048  # further bytes read for one cost point


class AnswerTooLarge(Exception):
    """The answer exceeds its limit, which is in `extensions`."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The answer is larger than {limit} bytes: ask for less at once.")
        self.extensions = {"code": CODE, "limit": limit}


def _pay_nothing(_points: int) -> None:
    """Accept any number of points."""


class AnswerBudget:
    """Counts the bytes of one answer and the bytes read from stored messages for it.

    Generated code counts names and texts of up to 1 KiB by their characters. `pay` takes cost
    points from the caller's budget, and raises RateLimited if there are too few.
    """

    __slots__ = ("_before_field", "_pay", "exceeded", "left", "limit", "read")

    def __init__(self, limit: int = ANSWER_MAX, pay: Callable[[int], None] = _pay_nothing) -> None:
        self.limit = limit
        self.left = self._before_field = limit
        self.exceeded = False
        self.read = 0
        self._pay = pay

    @property
    def used(self) -> int:
        """Bytes counted so far."""
        return self.limit - self.left

    def take(self, count: int) -> None:
        """Count bytes of the answer. Raises AnswerTooLarge."""
        self.left -= count
        if self.left < 0:
            self.exceed()

    def exceed(self) -> None:
        """Raise AnswerTooLarge, now and whenever more is to be read."""
        self.exceeded = True
        raise AnswerTooLarge(self.limit)

    def charge(self, count: int) -> None:
        """Charge bytes read from stored messages. Raises AnswerTooLarge or RateLimited."""
        if self.exceeded:
            raise AnswerTooLarge(self.limit)
        before = max(self.read - INCLUDED, 0) // READ_PER_POINT
        self.read += count
        if points := max(self.read - INCLUDED, 0) // READ_PER_POINT - before:
            self._pay(points)

    def begin_field(self) -> None:
        """Note where a root field of a mutation begins."""
        self._before_field = self.left

    def drop_field(self) -> None:
        """Forget the root field of a mutation that was too large: its result is null."""
        self.left = self._before_field
        self.exceeded = False


def size_of(value: Any) -> int:
    """The bytes of a completed leaf value in JSON, without quotes."""
    if type(value) is str:
        count = len(value)
        return count if count < MEASURED else _escaped_size(value)
    if isinstance(value, dict | list):
        return _escaped_size(value)
    return OTHER


def _escaped_size(value: Any) -> int:
    """The bytes of a value in JSON, measured in steps that take little time and memory."""
    if isinstance(value, str):
        return sum(_measured(value[at : at + STEP]) - 2 for at in range(0, len(value), STEP))
    return _measured(value)


STEP = 256 * 1024  # characters


def _measured(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:  # half a surrogate pair, or a number that orjson does not take
        return ESCAPED * len(str(value))
