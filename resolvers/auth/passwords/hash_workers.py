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
from models.runtime.helper_process import HelperProcesses
from resolvers.auth.passwords import foreign_hashes

MAX_WAITING_PER_PROCESS = 16  # for each process; more would wait for seconds and are refused
PROCESS_NICENESS = 5  # a third of the CPU weight: a flood must not starve other work
THREAD_CPU_SHARE = 0.25  # of a core
MAX_SAVED_CPU_SECONDS = 2.0  # seconds of CPU time that the thread can accumulate while few sign in
MAX_THREAD_HASHES = 2  # hashes of the thread at once
MAX_EXPECTED_WAIT = 5.0  # seconds until a hash is expected to end; a longer wait is refused
HASH_TIMEOUT = 8.0  # seconds for an accepted hash: an operation times out after 10
INITIAL_HASH_SECONDS = 0.2  # seconds of a hash, until one was measured
BUSY_TEXT = "Too many sign-ins are in progress: retry."

Arguments = ParamSpec("Arguments")
HashResult = TypeVar("HashResult")


@dataclass(frozen=True, slots=True)
class TimedHashResult(Generic[HashResult]):
    """The result of a job, with the elapsed seconds and the CPU seconds it took."""

    result: HashResult
    elapsed: float
    cpu: float


class NonBlockingLimit:
    """A limit on concurrent use that refuses instead of waiting."""

    def __init__(self, limit: int) -> None:
        self.limit = self.free_count = limit

    @contextmanager
    def slot_or_raise_rate_limited(self) -> Generator[None]:
        """Take a place for the block. Raises RateLimited if all are in use."""
        if self.free_count <= 0:
            raise RateLimited(BUSY_TEXT, retry_after=timedelta(seconds=2))
        self.free_count -= 1
        try:
            yield
        finally:
            self.free_count += 1


class HashQueue:
    """The thread or the processes that hash, with the jobs that have not ended."""

    def __init__(self, workers: HelperProcesses | ThreadPoolExecutor, worker_count: int) -> None:
        self.workers, self.size = workers, worker_count
        self.elapsed = self.cpu = INITIAL_HASH_SECONDS  # moving averages of the seconds of a hash
        self._jobs: list[Future[TimedHashResult[Any]]] = []
        self._progress_at = 0.0  # when a job last ended, or the first of these was submitted

    def count_unfinished_and_update_averages(self) -> int:
        """Count the jobs that have not ended, and update the averages from the others."""
        ended = [job for job in self._jobs if job.done()]
        for job in ended:
            self._jobs.remove(job)
            self._progress_at = time.monotonic()
            if not job.cancelled() and job.exception() is None:
                self.elapsed = (self.elapsed + job.result().elapsed) / 2
                self.cpu = (self.cpu + job.result().cpu) / 2
        return len(self._jobs)

    def expected_wait_seconds(self) -> float:
        """Return the expected seconds until a new job ends; 0 if no other is waiting."""
        unfinished_count = self.count_unfinished_and_update_averages()
        if not unfinished_count:
            return 0.0
        seconds_of_first = max(self.elapsed, time.monotonic() - self._progress_at)
        return seconds_of_first + unfinished_count * self.elapsed / self.size

    async def run_job(
        self,
        function: Callable[Arguments, HashResult],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> HashResult:
        """Run a job and return its result. Raises RateLimited if it does not end in time."""
        if not self.count_unfinished_and_update_averages():
            self._progress_at = time.monotonic()
        timed: Callable[[], TimedHashResult[HashResult]] = partial(
            _run_timed, partial(function, *args, **kwargs)
        )
        job = self.workers.submit(timed)
        self._jobs.append(job)
        try:
            async with asyncio.timeout(HASH_TIMEOUT):
                return (await asyncio.wrap_future(job)).result
        except TimeoutError:
            raise self.rate_limited_error() from None

    def rate_limited_error(self) -> RateLimited:
        """Return the error for a hash that would wait too long."""
        return RateLimited(
            BUSY_TEXT,
            retry_after=timedelta(seconds=max(2, math.ceil(self.expected_wait_seconds()))),
        )


class HashWorkerPool:
    """The thread and the processes that hash, with the limits on sign-ins and waiting jobs."""

    def __init__(self, processes: int) -> None:
        size = processes + MAX_WAITING_PER_PROCESS * processes
        self.processes = HelperProcesses(processes, nice=PROCESS_NICENESS)
        self.thread_queue = HashQueue(ThreadPoolExecutor(1, "hash"), 1)
        self.process_queue = HashQueue(self.processes, processes)
        self.job_limit = NonBlockingLimit(size)
        self.sign_in_limit = NonBlockingLimit(size)  # taken before the user is looked up
        self._saved_cpu_seconds = MAX_SAVED_CPU_SECONDS
        self._saved_at = time.monotonic()

    @contextmanager
    def sign_in_slot(self) -> Generator[None]:
        """Take a place for a sign-in for the block.

        Raises RateLimited if none is free or a hash would wait too long.
        """
        with self.sign_in_limit.slot_or_raise_rate_limited():
            self._choose_queue()
            yield

    async def run_job(
        self,
        releases_gil: bool,
        function: Callable[Arguments, HashResult],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> HashResult:
        """Run a job and return its result. Raises RateLimited if too many are waiting.

        `releases_gil` is True if the job does not hold the interpreter's lock.
        """
        with self.job_limit.slot_or_raise_rate_limited():
            queue = self._choose_queue(releases_gil=releases_gil)
            if queue is self.thread_queue:
                self._saved_cpu_seconds -= queue.cpu
            try:
                return await queue.run_job(function, *args, **kwargs)
            except BrokenProcessPool:  # a process was killed; new ones have been started
                return await queue.run_job(function, *args, **kwargs)

    def _choose_queue(self, *, releases_gil: bool = True) -> HashQueue:
        """Return the queue for the next job. Raises RateLimited if it would wait too long."""
        now = time.monotonic()
        self._saved_cpu_seconds = min(
            MAX_SAVED_CPU_SECONDS,
            self._saved_cpu_seconds + (now - self._saved_at) * THREAD_CPU_SHARE,
        )
        self._saved_at = now
        can_use_thread = (
            releases_gil
            and self.thread_queue.count_unfinished_and_update_averages() < MAX_THREAD_HASHES
            and self._saved_cpu_seconds > 0
        )
        if can_use_thread and self.thread_queue.expected_wait_seconds() <= MAX_EXPECTED_WAIT:
            return self.thread_queue
        if self.process_queue.expected_wait_seconds() > MAX_EXPECTED_WAIT:
            raise self.process_queue.rate_limited_error()
        return self.process_queue


def _run_timed(job: Callable[[], HashResult]) -> TimedHashResult[HashResult]:
    """Run a job and measure it."""
    begun_at, cpu_at_begin = time.monotonic(), time.thread_time()
    outcome = job()
    return TimedHashResult(outcome, time.monotonic() - begun_at, time.thread_time() - cpu_at_begin)


def hash_password(hasher: PasswordHasher, password: str) -> str:
    """Return the hash of a password in PHC form."""
    return hasher.hash(password)


def is_password_of_hash(
    hasher: PasswordHasher,
    password_hash: str | None,
    normalized_password: str,
    unnormalized_password: str,
) -> bool:
    """True if this is the password of the stored hash.

    Imported hashes are compared with the password in its normalized and its typed form. Takes as
    long if there is no stored hash.
    """
    if password_hash is not None and foreign_hashes.is_foreign_hash(password_hash):
        return any(
            foreign_hashes.verify_foreign_hash(form, password_hash)
            for form in dict.fromkeys((normalized_password, unnormalized_password))
        )
    try:
        return (
            hasher.verify(password_hash or _unmatchable_hash(hasher), normalized_password)
            and password_hash is not None
        )
    except VerifyMismatchError:
        return False


def _unmatchable_hash(hasher: PasswordHasher) -> str:
    """Return a hash that no password has, to compare with if there is no stored hash."""
    salt, digest = (
        base64.b64encode(bytes(size)).decode().rstrip("=")
        for size in (hasher.salt_len, hasher.hash_len)
    )
    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${digest}"
