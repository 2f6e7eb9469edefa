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


def assert_cpu_ratio(
    job: Callable[[], object], reference_job: Callable[[], object], *, max_ratio: float
) -> None:
    """Fail if the job takes more than `max_ratio` times the CPU time of the other job.

    The times are measured again, up to five times, because other processes can disturb one
    measurement. The shortest time of each job counts.
    """
    seconds = reference_seconds = inf
    for _ in range(MAX_MEASUREMENTS):
        reference_seconds = min(reference_seconds, cpu_seconds(reference_job))
        seconds = min(seconds, cpu_seconds(job))
        if seconds <= max_ratio * reference_seconds:
            return
    raise AssertionError(
        f"The time grows {seconds / reference_seconds:.1f} times, at most {max_ratio} allowed."
    )


def assert_grows_with_size(
    job_for_size: Callable[[int], Callable[[], object]], *, large_size: int
) -> None:
    """Fail if the CPU time of the job grows faster than with the size of its input."""
    small_job, large_job = job_for_size(large_size // GROWTH), job_for_size(large_size)
    assert_cpu_ratio(large_job, small_job, max_ratio=MAX_RATIO)
