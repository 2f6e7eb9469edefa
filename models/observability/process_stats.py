"""Metrics of this process that the kernel measures."""

import os
import resource
import time
from functools import cache
from pathlib import Path

from models.observability.metrics import Across, Family, Kind, Point, gauge

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
SELF = Path("/proc/self")


def started() -> float:
    """Return the start of this process in seconds since the epoch.

    Outside Linux it is the time of the first call.
    """
    return _started(os.getpid())


@cache
def _started(_pid: int) -> float:  # the id is the cache key: a fork starts later
    try:
        ticks = int(SELF.joinpath("stat").read_text().rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return time.time()
    (booted,) = (line.split()[1] for line in lines if line.startswith("btime "))
    return int(booted) + ticks / TICKS


def families() -> list[Family]:
    """Return the standard process metrics of Prometheus."""
    each = Across.EACH
    cpu = Family(
        "process_cpu_seconds",
        Kind.COUNTER,
        "Time on the CPU.",
        (),
        [Point((), time.process_time())],
        across=each,
    )
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [
        cpu,
        gauge("process_start_time_seconds", "Start, since the epoch.", started(), each),
        gauge("process_max_fds", "File descriptors there may be.", most, each),
    ]
    try:
        virtual, resident, *_ = map(int, SELF.joinpath("statm").read_text().split())
        handles = len(os.listdir(SELF / "fd"))  # noqa: PTH208 - thousands, only counted
    except OSError:  # no /proc, or not one file descriptor left
        return found
    return [
        *found,
        gauge("process_virtual_memory_bytes", "Address space.", virtual * PAGE, each),
        gauge("process_resident_memory_bytes", "Memory in RAM.", resident * PAGE, each),
        gauge("process_open_fds", "File descriptors that are open.", handles, each),
    ]
