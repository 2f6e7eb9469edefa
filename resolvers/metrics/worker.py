"""The worker that writes statistics each minute. Each server process runs it."""

import asyncio
import logging

from models.runtime.environment import Environment
from resolvers.metrics.resets import skip_stored_resets
from resolvers.metrics.statistics_writer import (
    StatisticSampler,
    add_increments_to_stored_steps,
    is_first_server_process,
)
from resolvers.metrics.usage_settlement import step_start_of

log = logging.getLogger(__name__)

WRITE_INTERVAL = 60.0  # seconds; a divisor of SHORT_STEP, so that no interval is in two steps
STOP_TIMEOUT = 5.0  # seconds for the last increments of a process


async def write_statistics_until_cancelled(environment: Environment) -> None:
    """Write the statistics of this process at the end of each minute, and once when cancelled.

    The oldest process of the platform also samples storage, active users and queue length. After
    an error the worker goes on with the next minute, and keeps the increments until then.
    """
    sampler, has_skipped_resets, is_failing = StatisticSampler(), False, False
    try:
        while True:
            try:
                if not has_skipped_resets:
                    await skip_stored_resets(environment)
                    has_skipped_resets = True
                step_start = step_start_of(environment)
                await asyncio.sleep(_seconds_to_end_of_interval(environment))
                await add_increments_to_stored_steps(environment, step_start)
                if await is_first_server_process(environment):
                    await sampler.sample_and_write(environment, step_start)
                is_failing = False
            except Exception:  # in a database outage: the next minute repeats it
                if not is_failing:
                    log.exception("Could not write statistics")
                is_failing = True
                await asyncio.sleep(1)  # also if the clock stands still
    finally:
        await _write_last_rows_logging_errors(environment)


def _seconds_to_end_of_interval(environment: Environment) -> float:
    return WRITE_INTERVAL - environment.now().timestamp() % WRITE_INTERVAL


async def _write_last_rows_logging_errors(environment: Environment) -> None:
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await add_increments_to_stored_steps(environment, step_start_of(environment))
    except Exception:  # the process ends: the statistics lack up to a minute
        log.exception("Could not write the last statistics")
