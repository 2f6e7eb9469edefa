"""Workers that compute password hashes outside the event loop.

A few hashes run in a thread, at the server's own priority. So a sign-in waits neither for other
work on the machine nor for the start of a process. Only work that releases the interpreter's lock
runs there. The CPU time of the thread is limited: a flood of sign-ins is hashed in processes of a
low priority.

The processes import only Argon2 and the hashes of other systems, not the database.
"""

import asyncio
import base64
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from models.errors import RateLimited
from models.runtime.helper_process import Apart
from resolvers.auth.passwords import foreign_hashes

WAITING = 16  # for each process; more would wait for seconds and are refused
NICE = 5  # a third of the CPU weight: a flood must not starve other work
PROMPT_SHARE = 0.25  # of a core
PROMPT_SAVED = 2.0  # seconds of CPU time that the thread can accumulate while few sign in
PROMPT_WAITING = 2  # hashes of the thread at once
LONGEST_WAIT = 5.0  # seconds until a hash is expected to end; a longer wait is refused
LATEST_END = 8.0  # seconds for an accepted hash: an operation times out after 10
FIRST_GUESS = 0.2  # seconds of a hash, until one was measured
BUSY = "too many are signing in"

Arguments = ParamSpec("Arguments")
HashResult = TypeVar("HashResult")


@dataclass(frozen=True, slots=True)
class TimedOutcome(Generic[HashResult]):
    """The result of a job, with the elapsed seconds and the CPU seconds it took."""

    outcome: HashResult
    elapsed: float
    cpu: float


class Places:
    """A limit on concurrent use that refuses instead of waiting."""

    def __init__(self, most: int) -> None:
        self.most = self.free = most

    @contextmanager
    def one(self) -> Generator[None]:
        """Take a place for the block. Raises RateLimited if all are in use."""
        if self.free <= 0:
            raise RateLimited(BUSY, retry_after=timedelta(seconds=2))
        self.free -= 1
        try:
            yield
        finally:
            self.free += 1


class HashQueue:
    """The thread or the processes that hash, with the jobs that have not ended."""

    def __init__(self, workers: Apart | ThreadPoolExecutor, size: int) -> None:
        self.workers, self.size = workers, size
        self.elapsed = self.cpu = FIRST_GUESS  # moving averages of the seconds of a hash
        self._jobs: list[Future[TimedOutcome[Any]]] = []
        self._progress_at = 0.0  # when a job last ended, or the first of these was submitted

    def unfinished(self) -> int:
        """Count the jobs that have not ended, and update the averages from the others."""
        ended = [job for job in self._jobs if job.done()]
        for job in ended:
            self._jobs.remove(job)
            self._progress_at = time.monotonic()
            if not job.cancelled() and job.exception() is None:
                self.elapsed = (self.elapsed + job.result().elapsed) / 2
                self.cpu = (self.cpu + job.result().cpu) / 2
        return len(self._jobs)

    def wait(self) -> float:
        """Return the expected seconds until a new job ends; 0 if no other is waiting."""
        waiting = self.unfinished()
        if not waiting:
            return 0.0
        first = max(self.elapsed, time.monotonic() - self._progress_at)
        return first + waiting * self.elapsed / self.size

    async def run(
        self, work: Callable[Arguments, HashResult], *args: Arguments.args, **more: Arguments.kwargs
    ) -> HashResult:
        """Run a job and return its result. Raises RateLimited if it does not end in time."""
        if not self.unfinished():
            self._progress_at = time.monotonic()
        timed: Callable[[], TimedOutcome[HashResult]] = partial(
            _timed, partial(work, *args, **more)
        )
        job = self.workers.submit(timed)
        self._jobs.append(job)
        try:
            async with asyncio.timeout(LATEST_END):
                return (await asyncio.wrap_future(job)).outcome
        except TimeoutError:
            raise self.refusal() from None

    def refusal(self) -> RateLimited:
        """Return the error for a hash that would wait too long."""
        return RateLimited(BUSY, retry_after=timedelta(seconds=max(2, math.ceil(self.wait()))))


class Pool:
    """The thread and the processes that hash, with the limits on sign-ins and waiting jobs."""

    def __init__(self, processes: int) -> None:
        size = processes + WAITING * processes
        self.processes = Apart(processes, nice=NICE)
        self.prompt = HashQueue(ThreadPoolExecutor(1, "hash"), 1)
        self.background = HashQueue(self.processes, processes)
        self.waiting = Places(size)
        self.signing_in = Places(size)  # taken before the user is looked up
        self._saved = PROMPT_SAVED
        self._saved_at = time.monotonic()

    @contextmanager
    def admit(self) -> Generator[None]:
        """Take a place for a sign-in for the block.

        Raises RateLimited if none is free or a hash would wait too long.
        """
        with self.signing_in.one():
            self._queue()
            yield

    async def run(
        self,
        native: bool,
        work: Callable[Arguments, HashResult],
        *args: Arguments.args,
        **more: Arguments.kwargs,
    ) -> HashResult:
        """Run a job and return its result. Raises RateLimited if too many are waiting.

        `releases_gil` is True if the job does not hold the interpreter's lock.
        """
        with self.waiting.one():
            queue = self._queue(native=native)
            if queue is self.prompt:
                self._saved -= queue.cpu
            try:
                return await queue.run(work, *args, **more)
            except BrokenProcessPool:  # a process was killed; new ones have been started
                return await queue.run(work, *args, **more)

    def _queue(self, *, native: bool = True) -> HashQueue:
        """Return the queue for the next job. Raises RateLimited if it would wait too long."""
        now = time.monotonic()
        self._saved = min(PROMPT_SAVED, self._saved + (now - self._saved_at) * PROMPT_SHARE)
        self._saved_at = now
        few = native and self.prompt.unfinished() < PROMPT_WAITING and self._saved > 0
        if few and self.prompt.wait() <= LONGEST_WAIT:
            return self.prompt
        if self.background.wait() > LONGEST_WAIT:
            raise self.background.refusal()
        return self.background


def _timed(work: Callable[[], HashResult]) -> TimedOutcome[HashResult]:
    """Run a job and measure it."""
    began, used = time.monotonic(), time.thread_time()
    outcome = work()
    return TimedOutcome(outcome, time.monotonic() - began, time.thread_time() - used)


def make(ready: PasswordHasher, password: str) -> str:
    """Return the hash of a password in PHC form."""
    return ready.hash(password)


def verify(ready: PasswordHasher, stored: str | None, written: str, typed: str) -> bool:
    """True if this is the password of the stored hash.

    Imported hashes are compared with the password in its normalized and its typed form. Takes as
    long if there is no stored hash.
    """
    if stored is not None and foreign_hashes.foreign(stored):
        return any(foreign_hashes.verify(form, stored) for form in dict.fromkeys((written, typed)))
    try:
        return ready.verify(stored or _nobodys(ready), written) and stored is not None
    except VerifyMismatchError:
        return False


def _nobodys(ready: PasswordHasher) -> str:
    """Return a hash that no password has, to compare with if there is no stored hash."""
    salt, digest = (
        base64.b64encode(bytes(size)).decode().rstrip("=")
        for size in (ready.salt_len, ready.hash_len)
    )
    cost = f"m={ready.memory_cost},t={ready.time_cost},p={ready.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${digest}"
