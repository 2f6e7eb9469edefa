"""The limit on the bytes of one response, counted while it is executed."""

from collections.abc import Callable
from typing import Any

import orjson

ANSWER_MAX = 32 << 20  # bytes
OVERHEAD = 4  # bytes around a name and its value: quotes, a colon, a comma
OTHER = 8  # bytes counted for a value that is not text
MEASURED = 1024  # characters; shorter texts are counted without their escapes
ESCAPED = 6
CODE = "RESPONSE_TOO_LARGE"
INCLUDED = 1 << 20  # bytes of stored messages that the cost of an operation includes
READ_PER_POINT = 2048  # further bytes


class AnswerTooLarge(Exception):
    """The response exceeds its limit, which is in `extensions`."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The answer is larger than {limit} bytes: ask for less at once.")
        self.extensions = {"code": CODE, "limit": limit}


def _pay_nothing(_points: int) -> None:
    """Charge nothing: the default if there is no rate budget."""


class AnswerBudget:
    """A counter of the bytes of one response and of the bytes read from messages for it.

    Generated code counts names and texts of up to 1 KiB by their characters. `charge_points`
    takes cost points from the caller's rate budget and raises RateLimited if there are too few.
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
        """The number of counted response bytes."""
        return self.limit - self.left

    def take(self, count: int) -> None:
        """Count bytes of the response. Raises ResponseTooLarge if the limit is exceeded."""
        self.left -= count
        if self.left < 0:
            self.exceed()

    def exceed(self) -> None:
        """Raise ResponseTooLarge, and again at every later read of message bytes."""
        self.exceeded = True
        raise AnswerTooLarge(self.limit)

    def charge(self, count: int) -> None:
        """Charge bytes read from stored messages.

        Raises ResponseTooLarge if the response is already too large, RateLimited if the caller's
        rate budget is used up.
        """
        if self.exceeded:
            raise AnswerTooLarge(self.limit)
        before = max(self.read - INCLUDED, 0) // READ_PER_POINT
        self.read += count
        if points := max(self.read - INCLUDED, 0) // READ_PER_POINT - before:
            self._pay(points)

    def begin_field(self) -> None:
        """Remember the count at the start of a root field of a mutation."""
        self._before_field = self.left

    def drop_field(self) -> None:
        """Reset the count to the start of the root field, which was too large and is null."""
        self.left = self._before_field
        self.exceeded = False


def size_of(value: Any) -> int:
    """Return the size in bytes of a completed leaf value in JSON, without quotes."""
    if type(value) is str:
        count = len(value)
        return count if count < MEASURED else _escaped_size(value)
    if isinstance(value, dict | list):
        return _escaped_size(value)
    return OTHER


def _escaped_size(value: Any) -> int:
    """Return the size in bytes of a value in JSON, measured in chunks to limit memory."""
    if isinstance(value, str):
        return sum(_measured(value[at : at + STEP]) - 2 for at in range(0, len(value), STEP))
    return _measured(value)


STEP = 256 * 1024  # characters


def _measured(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:  # half a surrogate pair, or a number that orjson refuses
        return ESCAPED * len(str(value))
