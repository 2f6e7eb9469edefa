"""The delay of the event loop: how much later than due it runs a timer."""

import asyncio
from collections.abc import Callable

from models.observability import metrics

INTERVAL = 1.0  # seconds between two measurements

EVENT_LOOP_DELAY = metrics.histogram(
    "merganser_event_loop_delay_seconds",
    "Time by which an event loop runs a timer of one second too late.",
)


async def measure_event_loop_delay_until_cancelled(
    after_measurement: Callable[[], None],
) -> None:
    """Measure the delay of the running event loop every second, and call a function each time."""
    loop = asyncio.get_running_loop()
    while True:
        begun_at = loop.time()
        await asyncio.sleep(INTERVAL)
        EVENT_LOOP_DELAY.observe(max(0.0, loop.time() - begun_at - INTERVAL))
        after_measurement()
