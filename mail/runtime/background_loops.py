"""Loops that run beside the worker of the queue."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def running_in_background(loop: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run an endless loop as a task; the end of the block cancels it."""
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
