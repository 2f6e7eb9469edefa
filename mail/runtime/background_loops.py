"""Endless loops that run as background tasks."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def run_loop_in_background_during_block(
    loop: Coroutine[Any, Any, None],
) -> AsyncGenerator[None]:
    """Run an endless loop as a task, which the end of the block cancels."""
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
