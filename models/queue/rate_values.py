"""Rates of messages, as settings and requests write them."""

import re
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

MAX_RATE = 1_000_000_000  # messages
RATE_PATTERN = re.compile(r"([1-9][0-9]{0,8})/(SECOND|MINUTE|HOUR|DAY)")  # a rate in a setting


class RatePeriod(StrEnum):
    """The length of the window in which messages are counted."""

    SECOND = "SECOND"
    MINUTE = "MINUTE"
    HOUR = "HOUR"
    DAY = "DAY"

    @property
    def seconds(self) -> int:
        """The length in seconds."""
        return {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}[self.value]

    @property
    def length(self) -> timedelta:
        """The length."""
        return timedelta(seconds=self.seconds)


class Rate(NamedTuple):
    """A number of messages in a window; 0 means unlimited."""

    messages: int
    per: RatePeriod


UNLIMITED = Rate(0, RatePeriod.HOUR)


@lru_cache(maxsize=64)
def parse_rate_or_unlimited(text: str) -> Rate:
    """Parse the rate of a setting, such as 100/HOUR. Return UNLIMITED for any other text."""
    match = RATE_PATTERN.fullmatch(text)
    return Rate(int(match[1]), RatePeriod(match[2])) if match else UNLIMITED
