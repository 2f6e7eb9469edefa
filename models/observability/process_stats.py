"""Metrics of this process that the kernel measures."""

import os
import resource
import time
from functools import cache
from pathlib import Path

from models.observability.metrics import (
    MetricFamily,
    MetricKind,
    MetricPoint,
    ProcessAggregation,
    gauge_family,
)

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PROC_SELF = Path("/proc/self")


def process_start_time() -> float:
    """Return the start of this process in seconds since the epoch.

    Outside Linux it is the time of the first call.
    """
    return _start_time_of_process(os.getpid())


@cache
def _start_time_of_process(_pid: int) -> float:  # the id is the cache key: a fork starts later
    try:
        ticks = int(PROC_SELF.joinpath("stat").read_text().rpartition(")")[2].split()[19])
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return time.time()
    (booted,) = (line.split()[1] for line in lines if line.startswith("btime "))
    return int(booted) + ticks / CLOCK_TICKS


def collect_families() -> list[MetricFamily]:
    """Return the standard process metrics of Prometheus."""
    each = ProcessAggregation.EACH
    cpu = MetricFamily(
        "process_cpu_seconds",
        MetricKind.COUNTER,
        "Time on the CPU.",
        (),
        [MetricPoint((), time.process_time())],
        aggregation=each,
    )
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [
        cpu,
        gauge_family(
            "process_start_time_seconds", "Start, since the epoch.", process_start_time(), each
        ),
        gauge_family("process_max_fds", "File descriptors there may be.", most, each),
    ]
    try:
        virtual, resident, *_ = map(int, PROC_SELF.joinpath("statm").read_text().split())
        handles = len(os.listdir(PROC_SELF / "fd"))  # noqa: PTH208 - thousands, only counted
    except OSError:  # no /proc, or not one file descriptor left
        return found
    return [
        *found,
        gauge_family("process_virtual_memory_bytes", "Address space.", virtual * PAGE_SIZE, each),
        gauge_family("process_resident_memory_bytes", "Memory in RAM.", resident * PAGE_SIZE, each),
        gauge_family("process_open_fds", "File descriptors that are open.", handles, each),
    ]
