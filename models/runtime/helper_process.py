"""Helper processes for work that would hold the interpreter's lock for long."""

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
    """A pool of helper processes, each started when it is first needed."""

    def __init__(self, most: int, *, nice: int = 0) -> None:
        """Limit the number of processes; `nice` is added to the priority value of the server."""
        self.most, self.nice = most, nice
        self._executor: ProcessPoolExecutor | None = None

    def submit(
        self, work: Callable[Given, Outcome], *args: Given.args, **more: Given.kwargs
    ) -> "Future[Outcome]":
        """Run a module-level function in a helper process. Arguments and result are pickled.

        Raises BrokenProcessPool, at once or from the future, if a process was killed.
        """
        if self._executor is None:
            spawn = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(
                self.most, spawn, initializer=_begin, initargs=(self.nice,)
            )
        pool = self._executor
        try:
            job = pool.submit(work, *args, **more)
        except BrokenProcessPool:
            self._leave(pool)
            raise
        job.add_done_callback(lambda job: self._look(pool, job))
        return job

    async def close(self) -> None:
        """Stop the processes after their current work. A later call of `submit` starts new ones."""
        pool, self._executor = self._executor, None
        if pool:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    def _look(self, pool: ProcessPoolExecutor, job: "Future[Any]") -> None:
        if not job.cancelled() and isinstance(job.exception(), BrokenProcessPool):
            self._leave(pool)

    def _leave(self, pool: ProcessPoolExecutor) -> None:
        """Let the next call of `submit` start new processes."""
        if self._executor is pool:
            self._executor = None


def _begin(nice: int) -> None:
    """Leave Ctrl-C to the server, yield to it, and end with it.

    The new process group is in the session of the server. In another session Linux would first
    weigh the two as groups, with the same share for both (sched(7)).
    """
    with suppress(OSError, AttributeError):
        # Linux only (prctl(2)): otherwise this process would outlive a server that was killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        os.setpgid(0, 0)
    if nice:
        with suppress(OSError):
            os.nice(nice)
