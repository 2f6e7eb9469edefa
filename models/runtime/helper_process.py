"""Processes of their own, for work that would hold the interpreter's lock for long."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

PR_SET_PDEATHSIG = 1

Given = ParamSpec("Given")
Outcome = TypeVar("Outcome")


class Apart:
    """So many processes at most, each begun when it is first wanted."""

    def __init__(self, most: int, *, nice: int = 0) -> None:
        """`nice` is added to what the server has: how far everything else goes before them."""
        self.most, self.nice = most, nice
        self._made: ProcessPoolExecutor | None = None

    def submit(
        self, work: Callable[Given, Outcome], *args: Given.args, **more: Given.kwargs
    ) -> "Future[Outcome]":
        """Do `work`, a function of a module: arguments and what it gives are pickled.

        BrokenProcessPool, then or from the future, where a process was ended from outside.
        """
        if self._made is None:
            spawn = multiprocessing.get_context("spawn")
            self._made = ProcessPoolExecutor(
                self.most, spawn, initializer=_begin, initargs=(self.nice,)
            )
        pool = self._made
        try:
            job = pool.submit(work, *args, **more)
        except BrokenProcessPool:
            self._leave(pool)
            raise
        job.add_done_callback(lambda job: self._look(pool, job))
        return job

    async def close(self) -> None:
        """End the processes, once they have done what they are at. They may be wanted again."""
        pool, self._made = self._made, None
        if pool:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    def _look(self, pool: ProcessPoolExecutor, job: "Future[Any]") -> None:
        if not job.cancelled() and isinstance(job.exception(), BrokenProcessPool):
            self._leave(pool)

    def _leave(self, pool: ProcessPoolExecutor) -> None:
        """Have new processes next time: these cannot be used any more."""
        if self._made is pool:
            self._made = None


def _begin(nice: int) -> None:
    """Leave Ctrl-C to the server, yield to it, and end with it.

    In its session: Linux would else weigh the two as groups first, and us as much (sched(7)).
    """
    with suppress(OSError, AttributeError):
        # Linux only (prctl(2)): nobody else would end us after the server was killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        os.setpgid(0, 0)
    if nice:
        with suppress(OSError):
            os.nice(nice)
