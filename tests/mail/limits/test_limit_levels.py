"""Usage levels of limits."""

import pytest

from mail.limits.user_limits import usage_level
from models.runtime.options import Options
from models.users.tables import UsageLevel


@pytest.mark.parametrize(
    ("used", "allowed", "thresholds", "expected"),
    [
        (0, 10, (80, 95), "NORMAL"),
        (7_999, 10_000, (80, 95), "NORMAL"),
        (8_000, 10_000, (80, 95), "WARNING"),
        (9_499, 10_000, (80, 95), "WARNING"),
        (9_500, 10_000, (80, 95), "CRITICAL"),
        (9_999, 10_000, (80, 95), "CRITICAL"),
        (10_000, 10_000, (80, 95), "FULL"),
        (10_001, 10_000, (80, 95), "FULL"),
        (1 << 60, 0, (80, 95), "NORMAL"),  # unlimited
        (2, 3, (66, 67), "WARNING"),  # 66.67 percent is not rounded
        (9_999, 10_000, (0, 0), "NORMAL"),
        (10_000, 10_000, (0, 0), "FULL"),
        (9_999, 10_000, (80, 0), "WARNING"),
        (9_499, 10_000, (0, 95), "NORMAL"),
        (9_500, 10_000, (0, 95), "CRITICAL"),
        # the higher level wins if the thresholds are swapped
        (8_500, 10_000, (95, 80), "CRITICAL"),
    ],
)
def test_usage_level_follows_the_thresholds(
    used: int, allowed: int, thresholds: tuple[int, int], expected: str
) -> None:
    options = Options(limits_warning_percent=thresholds[0], limits_critical_percent=thresholds[1])
    assert usage_level(options, used, allowed) is UsageLevel(expected)
