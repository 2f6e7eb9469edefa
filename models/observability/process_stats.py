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
    per_process = ProcessAggregation.EACH
    cpu = MetricFamily(
        "process_cpu_seconds",
        MetricKind.COUNTER,
        "CPU time in user and system mode.",
        (),
        [MetricPoint((), time.process_time())],
        aggregation=per_process,
    )
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    families = [
        cpu,
        gauge_family(
            "process_start_time_seconds",
            "Start time since the Unix epoch.",
            process_start_time(),
            per_process,
        ),
        gauge_family(
            "process_max_fds", "Maximum number of open file descriptors.", most, per_process
        ),
    ]
    try:
        virtual, resident, *_ = map(int, PROC_SELF.joinpath("statm").read_text().split())
        handles = len(os.listdir(PROC_SELF / "fd"))  # noqa: PTH208 - thousands, only counted
    except OSError:  # no /proc, or not one file descriptor left
        return families
    return [
        *families,
        gauge_family(
            "process_virtual_memory_bytes", "Virtual memory.", virtual * PAGE_SIZE, per_process
        ),
        gauge_family(
            "process_resident_memory_bytes", "Resident memory.", resident * PAGE_SIZE, per_process
        ),
        gauge_family("process_open_fds", "Open file descriptors.", handles, per_process),
    ]
