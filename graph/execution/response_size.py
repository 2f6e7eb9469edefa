"""The limit on the bytes of one response, counted while it is executed."""

from collections.abc import Callable
from typing import Any

import orjson

MAX_RESPONSE_BYTES = 32 << 20  # bytes
FIELD_OVERHEAD_BYTES = 4  # bytes around a name and its value: quotes, a colon, a comma
NON_TEXT_VALUE_BYTES = 8  # bytes counted for a value that is not text
MIN_MEASURED_TEXT_LENGTH = 1024  # characters; shorter texts are counted without their escapes
MAX_ESCAPED_BYTES_PER_CHARACTER = 6
RESPONSE_TOO_LARGE = "RESPONSE_TOO_LARGE"
FREE_READ_BYTES = 1 << 20  # bytes of stored messages that the cost of an operation includes
READ_BYTES_PER_POINT = 2048  # further bytes


class ResponseTooLarge(Exception):
    """The response exceeds its limit, which is in `extensions`."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The answer is larger than {limit} bytes: ask for less at once.")
        self.extensions = {"code": RESPONSE_TOO_LARGE, "limit": limit}


def _charge_no_points(_points: int) -> None:
    """Charge nothing: the default if there is no rate budget."""


class ResponseBudget:
    """A counter of the bytes of one response and of the bytes read from messages for it.

    Generated code counts names and texts of up to 1 KiB by their characters. `charge_points`
    takes cost points from the caller's rate budget and raises RateLimited if there are too few.
    """

    __slots__ = (
        "_charge_points",
        "_left_before_field",
        "is_exceeded",
        "left",
        "limit",
        "read_bytes",
    )

    def __init__(
        self,
        limit: int = MAX_RESPONSE_BYTES,
        charge_points: Callable[[int], None] = _charge_no_points,
    ) -> None:
        self.limit = limit
        self.left = self._left_before_field = limit
        self.is_exceeded = False
        self.read_bytes = 0
        self._charge_points = charge_points

    @property
    def used_bytes(self) -> int:
        """The number of counted response bytes."""
        return self.limit - self.left

    def add_response_bytes(self, byte_count: int) -> None:
        """Count bytes of the response. Raises ResponseTooLarge if the limit is exceeded."""
        self.left -= byte_count
        if self.left < 0:
            self.raise_exceeded()

    def raise_exceeded(self) -> None:
        """Raise ResponseTooLarge, and again at every later read of message bytes."""
        self.is_exceeded = True
        raise ResponseTooLarge(self.limit)

    def charge_read_bytes(self, byte_count: int) -> None:
        """Charge bytes read from stored messages.

        Raises ResponseTooLarge if the response is already too large, RateLimited if the caller's
        rate budget is used up.
        """
        if self.is_exceeded:
            raise ResponseTooLarge(self.limit)
        before = max(self.read_bytes - FREE_READ_BYTES, 0) // READ_BYTES_PER_POINT
        self.read_bytes += byte_count
        if points := max(self.read_bytes - FREE_READ_BYTES, 0) // READ_BYTES_PER_POINT - before:
            self._charge_points(points)

    def start_root_field(self) -> None:
        """Remember the count at the start of a root field of a mutation."""
        self._left_before_field = self.left

    def discard_root_field(self) -> None:
        """Reset the count to the start of the root field, which was too large and is null."""
        self.left = self._left_before_field
        self.is_exceeded = False


def estimated_json_size(value: Any) -> int:
    """Return the size in bytes of a completed leaf value in JSON, without quotes."""
    if type(value) is str:
        count = len(value)
        return count if count < MIN_MEASURED_TEXT_LENGTH else _escaped_json_size(value)
    if isinstance(value, dict | list):
        return _escaped_json_size(value)
    return NON_TEXT_VALUE_BYTES


def _escaped_json_size(value: Any) -> int:
    """Return the size in bytes of a value in JSON, measured in chunks to limit memory."""
    if isinstance(value, str):
        return sum(
            _measure_json(value[at : at + MEASURED_CHUNK_LENGTH]) - 2
            for at in range(0, len(value), MEASURED_CHUNK_LENGTH)
        )
    return _measure_json(value)


MEASURED_CHUNK_LENGTH = 256 * 1024  # characters


def _measure_json(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:  # half a surrogate pair, or a number that orjson refuses
        return MAX_ESCAPED_BYTES_PER_CHARACTER * len(str(value))
