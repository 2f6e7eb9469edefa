"""Counts of durations in fixed buckets, which can be added up, and their percentiles."""

from bisect import bisect_left
from collections.abc import Sequence

MICROSECONDS_PER_SECOND = 1_000_000
# Upper bounds of the buckets in microseconds; the last bucket has all longer durations. A bucket
# is 2 to 2.5 times as wide as the one before it, so a percentile is off by less than that.
LATENCY_BOUNDS = (
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
)  # fmt: skip
BUCKET_COUNT = len(LATENCY_BOUNDS) + 1


def bucket_of_duration(microseconds: int) -> int:
    """Return the index of the bucket that counts this duration."""
    return bisect_left(LATENCY_BOUNDS, microseconds)


def percentile_seconds(counts: Sequence[int], share: float) -> float | None:
    """Return the duration in seconds that this share of all counted durations does not exceed.

    Durations are taken as spread evenly in their bucket. The result is at most the last bound.
    None: no duration was counted.
    """
    total = sum(counts)
    if not total:
        return None
    rank, below = share * total, 0
    for index, count in enumerate(counts[:-1]):
        if count and below + count >= rank:
            low = LATENCY_BOUNDS[index - 1] if index else 0
            width = LATENCY_BOUNDS[index] - low
            return (low + width * (rank - below) / count) / MICROSECONDS_PER_SECOND
        below += count
    return LATENCY_BOUNDS[-1] / MICROSECONDS_PER_SECOND
