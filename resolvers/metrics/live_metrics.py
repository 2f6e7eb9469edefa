"""Follow the counters of the platform. All followers of a process share their reads."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import timedelta
from weakref import WeakKeyDictionary

from models.metrics.names import MetricName
from models.runtime.environment import Environment
from models.store.database import Database
from resolvers.context import Context
from resolvers.metrics.loaders import (
    READ_RULE,
    MetricSetRow,
    PlatformMetrics,
    read_platform_set,
)

MAX_AGE = 0.9  # seconds; below the shortest interval of a follower


@dataclass
class SharedMetricsReader:
    """Reads the counters of the platform at most about once a second, for any number of readers."""

    environment: Environment
    _reading: "asyncio.Task[PlatformMetrics] | None" = None
    _began_at: float = -MAX_AGE  # seconds of the monotonic clock

    async def read_recent(self) -> PlatformMetrics:
        """Return the counters of a read that began less than MAX_AGE ago, or of a new one."""
        now = time.monotonic()
        reading = self._reading
        if reading is None or now - self._began_at >= MAX_AGE or _has_failed(reading):
            self._began_at = now
            reading = self._reading = asyncio.create_task(read_platform_set(self.environment, None))
        return await asyncio.shield(reading)


def _has_failed(reading: "asyncio.Task[PlatformMetrics]") -> bool:
    return reading.done() and (reading.cancelled() or reading.exception() is not None)


_readers: WeakKeyDictionary[Database, SharedMetricsReader] = WeakKeyDictionary()


async def follow_platform_metrics(
    ctx: Context, names: tuple[MetricName, ...] | None, interval: timedelta
) -> AsyncGenerator[MetricSetRow]:
    """Yield the counters of the platform now and after each interval, without an end."""
    ctx.viewer.require(READ_RULE)
    environment = ctx.environment
    reader = _readers.get(environment.database)
    if reader is None:
        reader = _readers[environment.database] = SharedMetricsReader(environment)
    while True:
        began_at = time.monotonic()
        row = (await reader.read_recent()).row
        if names is not None:
            counters = [counter for counter in row.counters if counter.name in names]
            reset_times = [each.reset_at for each in counters if each.reset_at is not None]
            row = replace(row, counters=counters, reset_at=max(reset_times, default=None))
        yield row
        await asyncio.sleep(max(0.0, began_at + interval.total_seconds() - time.monotonic()))
