"""Checks of the names, times and numbers that requests for metrics and statistics have."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from models.errors import InvalidInput
from models.metrics.names import GAUGES, MetricName, StatisticName
from models.metrics.tables import LONG_STEP, SHORT_STEP
from models.store.keyset_pages import EPOCH
from models.validation_constraints import ValidationConstraint

MAX_NAMES = 100
MAX_SERIES = 20
MAX_POINTS = 2000  # of a series
MAX_KEY_LENGTH = 320  # characters
MIN_INTERVAL, MAX_INTERVAL = timedelta(seconds=1), timedelta(minutes=5)
MAX_STEP = timedelta(days=400)


def require_names(names: Collection[MetricName] | None, path: Sequence[str]) -> None:
    """Raise InvalidInput if there are no names, or too many."""
    if names is not None and not 1 <= len(names) <= MAX_NAMES:
        raise InvalidInput(
            f"From 1 to {MAX_NAMES} names are required.",
            constraint=ValidationConstraint.RANGE,
            path=path,
        )


def require_resettable_names(names: Sequence[MetricName] | Collection[MetricName] | None) -> None:
    """Raise InvalidInput for no or too many names, and for a gauge, which has no reset."""
    require_names(names, ["names"])
    for index, name in enumerate(names or ()):
        if name in GAUGES:
            raise InvalidInput(
                f"{name} shows a current value and can't be reset.",
                constraint=ValidationConstraint.ENUM,
                path=["names"],
                index=index,
                allowed_values=[name for name in MetricName if name not in GAUGES],
            )


def require_key(key: str | None) -> None:
    """Raise InvalidInput if the key is too long."""
    if key is not None and len(key) > MAX_KEY_LENGTH:
        raise InvalidInput(
            f"At most {MAX_KEY_LENGTH} characters are allowed.",
            constraint=ValidationConstraint.LENGTH,
            path=["filter", "key"],
        )


def require_interval(interval: timedelta) -> None:
    """Raise InvalidInput unless the interval of a subscription is from PT1S to PT5M."""
    if not MIN_INTERVAL <= interval <= MAX_INTERVAL:
        raise InvalidInput(
            "Must be from PT1S to PT5M.", constraint=ValidationConstraint.RANGE, path=["interval"]
        )


def require_statistic_names(names: Sequence[StatisticName]) -> None:
    """Raise InvalidInput unless there are from 1 to MAX_SERIES different names."""
    if not 1 <= len(names) <= MAX_SERIES:
        raise InvalidInput(
            f"From 1 to {MAX_SERIES} names are required.",
            constraint=ValidationConstraint.RANGE,
            path=["names"],
        )
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidInput(
                "Each name is allowed once.",
                constraint=ValidationConstraint.UNIQUE,
                path=["names"],
                index=index,
            )


def valid_step_seconds(step: timedelta) -> int:
    """Return the seconds of a step: a multiple of 5 minutes, at most 400 days.

    Raises InvalidInput for another one.
    """
    seconds = step // timedelta(seconds=1)
    is_multiple = step == timedelta(seconds=seconds) and not seconds % SHORT_STEP
    if not is_multiple or not SHORT_STEP <= seconds <= MAX_STEP.total_seconds():
        raise InvalidInput(
            "Must be a multiple of PT5M, from PT5M to P400D.",
            constraint=ValidationConstraint.RANGE,
            path=["step"],
        )
    if seconds > LONG_STEP and seconds % LONG_STEP:
        raise InvalidInput(
            "Above PT1H, must be a multiple of PT1H.",
            constraint=ValidationConstraint.RANGE,
            path=["step"],
        )
    return seconds


def require_ordered_times(since: datetime, before: datetime) -> None:
    """Raise InvalidInput unless the first time is before the second one."""
    if since >= before:
        raise InvalidInput(
            "Must be earlier than `before`.", constraint=ValidationConstraint.RANGE, path=["since"]
        )


def require_representable_times(starts_at: int, ends_at: int) -> None:
    """Raise InvalidInput if one of these seconds since 1970 is outside the years 1 to 9999."""
    first, last = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    for path, at in (("since", starts_at), ("before", ends_at)):
        if not (first - EPOCH).total_seconds() <= at <= (last - EPOCH).total_seconds():
            raise InvalidInput(
                "The step is outside the years 1 to 9999.",
                constraint=ValidationConstraint.RANGE,
                path=[path],
            )


def require_point_count(count: int) -> None:
    """Raise InvalidInput if a series would have more than MAX_POINTS points."""
    if count > MAX_POINTS:
        raise InvalidInput(
            f"A series has at most {MAX_POINTS:,} points: use a longer step.",
            constraint=ValidationConstraint.MAX,
            path=["step"],
        )
