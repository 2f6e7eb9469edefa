"""Concurrent execution of the fields of an object and the items of a list."""

import asyncio
from collections.abc import Awaitable, Iterable
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from types import FrameType
from typing import Any, cast

from graphql.pyutils import gather_with_cancel

from graph.execution.list_steps import close_unstarted_coroutines


class FieldTask(asyncio.Task[Any]):
    """The task of a coroutine with other coroutines in its variables.

    If the task is cancelled before it starts, it closes these coroutines. Otherwise Python would
    report on stderr that they were never awaited.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task."""
        coroutine = self.get_coro()
        if iscoroutine(coroutine) and getcoroutinestate(coroutine) == CORO_CREATED:
            frame = cast("FrameType", coroutine.cr_frame)
            close_unstarted_coroutines(list(frame.f_locals.values()))
        return super().cancel(msg)


async def gather_results(awaitables: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await all awaitables concurrently and return their results in order.

    Raises the first error and cancels the other awaitables. They are also cancelled if the caller
    is cancelled.
    """
    loop = asyncio.get_running_loop()
    return await gather_with_cancel(
        *(
            FieldTask(awaitable, loop=loop) if iscoroutine(awaitable) else awaitable
            for awaitable in awaitables
        )
    )
