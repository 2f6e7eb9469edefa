"""The clock of the event loop, which tests move forward."""

import asyncio
from collections.abc import Callable

MAX_STEPS = 1_000
PAUSE_SECONDS = 0.005  # for sockets and threads


class LoopClock:
    """The time of the running event loop. A timer is due when the test has advanced the clock.

    The loop keeps the time that it has reached: timers that it set before would be late otherwise.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.real_time = loop.time
        self.seconds_ahead = 0.0
        loop.time = self.read  # type: ignore[method-assign]

    def read(self) -> float:
        return self.real_time() + self.seconds_ahead

    def advance(self, seconds: float) -> None:
        """Move the clock forward by this many seconds."""
        self.seconds_ahead += seconds

    async def advance_until(self, is_done: Callable[[], bool], *, step_seconds: float) -> None:
        """Advance the clock step by step until a function returns true.

        Raises AssertionError if that does not happen in `MAX_STEPS` steps.
        """
        for _ in range(MAX_STEPS):
            if is_done():
                return
            self.advance(step_seconds)
            await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError(f"not done after {MAX_STEPS} steps of {step_seconds} seconds")
