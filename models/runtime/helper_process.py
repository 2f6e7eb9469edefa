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

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class HelperProcesses:
    """A pool of helper processes, each started when it is first needed."""

    def __init__(self, max_processes: int, *, nice: int = 0) -> None:
        """Limit the number of processes; `nice` is added to the priority value of the server."""
        self.max_processes, self.nice = max_processes, nice
        self._executor: ProcessPoolExecutor | None = None

    def submit(
        self,
        work: Callable[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> "Future[Result]":
        """Run a module-level function in a helper process. Arguments and result are pickled.

        Raises BrokenProcessPool, at once or from the future, if a process was killed.
        """
        if self._executor is None:
            spawn = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(
                self.max_processes, spawn, initializer=_initialize_process, initargs=(self.nice,)
            )
        pool = self._executor
        try:
            job = pool.submit(work, *args, **kwargs)
        except BrokenProcessPool:
            self._drop_pool(pool)
            raise
        job.add_done_callback(lambda job: self._drop_broken_pool(pool, job))
        return job

    async def close(self) -> None:
        """Stop the processes after their current work. A later call of `submit` starts new ones."""
        pool, self._executor = self._executor, None
        if pool:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    def _drop_broken_pool(self, pool: ProcessPoolExecutor, job: "Future[Any]") -> None:
        if not job.cancelled() and isinstance(job.exception(), BrokenProcessPool):
            self._drop_pool(pool)

    def _drop_pool(self, pool: ProcessPoolExecutor) -> None:
        """Let the next call of `submit` start new processes."""
        if self._executor is pool:
            self._executor = None


def _initialize_process(nice: int) -> None:
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
