"""Whether the CPU time of a job grows with the size of its input, and not with the square of it.

The job runs with a small input and with one that is `GROWTH` times as large. The time of a job
that grows with the size becomes about `GROWTH` times as long. The measured factor was 1.4 times
`GROWTH` where the large input does not fit into the caches of the processor, and 2.2 times `GROWTH`
beside another process that used the memory heavily. The time of a job that grows with the square
becomes up to `GROWTH` squared times as long. The limit is the geometric mean of both factors.
"""

import gc
import time
from collections.abc import Callable
from math import inf

GROWTH = 16
MAX_RATIO = 4 * GROWTH
MIN_RUN_SECONDS = 0.005  # shorter runs measure the overhead of the clock
RUNS = 3  # the shortest is least disturbed by other processes
MAX_MEASUREMENTS = 5


def run_cpu_seconds(job: Callable[[], object], calls: int) -> float:
    """The CPU time of the thread for this number of calls."""
    started_at = time.thread_time()
    for _ in range(calls):
        job()
    return time.thread_time() - started_at


def cpu_seconds(job: Callable[[], object]) -> float:
    """The CPU time of one call, from the shortest of three runs of at least 5 ms.

    The garbage collector is off. Its time depends on all objects of the process, not on the job.
    """
    gc.collect()
    gc.disable()
    try:
        calls = 1
        while (seconds := run_cpu_seconds(job, calls)) < MIN_RUN_SECONDS:
            calls *= 4
        runs = [seconds, *(run_cpu_seconds(job, calls) for _ in range(RUNS - 1))]
    finally:
        gc.enable()
    return min(runs) / calls


def assert_grows_with_size(
    job_for_size: Callable[[int], Callable[[], object]], *, large_size: int
) -> None:
    """Fail if the CPU time of the job grows faster than with the size of its input.

    The times are measured again, up to five times, because other processes can disturb one
    measurement. The shortest time of each size counts.
    """
    small_job, large_job = job_for_size(large_size // GROWTH), job_for_size(large_size)
    small_seconds = large_seconds = inf
    for _ in range(MAX_MEASUREMENTS):
        small_seconds = min(small_seconds, cpu_seconds(small_job))
        large_seconds = min(large_seconds, cpu_seconds(large_job))
        if large_seconds <= MAX_RATIO * small_seconds:
            return
    raise AssertionError(
        f"The time grows {large_seconds / small_seconds:.0f} times with {GROWTH} times the size."
    )
