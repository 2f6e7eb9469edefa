"""Counters of a whole process: CPU time, input and output, and database work."""

import resource
from collections.abc import Mapping
from pathlib import Path

from models.metrics.names import GAUGES, MetricName
from models.metrics.object_store_meters import OBJECT_BYTES, OBJECT_SECONDS
from models.observability.process_stats import PAGE_SIZE, PROC_SELF
from models.runtime.environment import Environment
from models.store.database import DURATION

_IO_NAMES = {
    "rchar": MetricName.READ_BYTES,
    "wchar": MetricName.WRITE_BYTES,
    "syscr": MetricName.READS,
    "syscw": MetricName.WRITES,
    "read_bytes": MetricName.DISK_INPUT,
    "write_bytes": MetricName.DISK_OUTPUT,
}
_DATABASE_NAMES = {
    "read": (MetricName.DATABASE_READS, MetricName.DATABASE_READ_TIME),
    "prepared_query": (MetricName.DATABASE_READS, MetricName.DATABASE_READ_TIME),
    "search": (MetricName.SEARCHES, MetricName.SEARCH_TIME),
    "transaction": (MetricName.DATABASE_WRITES, MetricName.DATABASE_WRITE_TIME),
    "statement": (MetricName.DATABASE_WRITES, MetricName.DATABASE_WRITE_TIME),
}

_OBJECT_NAMES: Mapping[str, tuple[MetricName, MetricName | None]] = {
    "read": (MetricName.BLOB_READS, MetricName.BLOB_READ_TIME),
    "write": (MetricName.BLOB_WRITES, MetricName.BLOB_WRITE_TIME),
    "delete": (MetricName.BLOB_DELETES, None),
    "stat": (MetricName.BLOB_STATS, None),
    "list": (MetricName.BLOB_LISTINGS, None),
}
_OBJECT_BYTE_NAMES = {"read": MetricName.BLOB_READ_BYTES, "write": MetricName.BLOB_WRITE_BYTES}


def process_counters_since_start(environment: Environment) -> dict[MetricName, float]:
    """Return the counters of this process since its start, and the gauges.

    Counters that the operating system doesn't have are absent.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    recorder = environment.usage
    return {
        MetricName.CONNECTED_SESSIONS: len(environment.live_sessions),
        MetricName.AUTH_CACHE_HITS: recorder.auth_cache_hits,
        MetricName.AUTH_CACHE_MISSES: recorder.auth_cache_misses,
        MetricName.USER_CPU_TIME: usage.ru_utime,
        MetricName.SYSTEM_CPU_TIME: usage.ru_stime,
        MetricName.VOLUNTARY_SWITCHES: usage.ru_nvcsw,
        MetricName.INVOLUNTARY_SWITCHES: usage.ru_nivcsw,
        MetricName.MINOR_FAULTS: usage.ru_minflt,
        MetricName.MAJOR_FAULTS: usage.ru_majflt,
        **_database_counters(),
        **_object_store_counters(),
        **_proc_counters(PROC_SELF),
    }


def process_counters_since_reset(environment: Environment) -> dict[MetricName, float]:
    """Return the counters of this process since the last reset of each, and the gauges."""
    baseline = environment.usage.process_baseline
    return {
        name: value if name in GAUGES else value - baseline.get(name, 0)
        for name, value in process_counters_since_start(environment).items()
    }


def _database_counters() -> dict[MetricName, float]:
    counters = dict.fromkeys((name for pair in _DATABASE_NAMES.values() for name in pair), 0.0)
    for point in DURATION.family().points:
        count_name, time_name = _DATABASE_NAMES[point.labels[0]]
        counters[count_name] += sum(point.counts)
        counters[time_name] += point.value
    return counters


def _object_store_counters() -> dict[MetricName, float]:
    names = (name for pair in _OBJECT_NAMES.values() for name in pair if name is not None)
    counters = dict.fromkeys(names, 0.0)
    for point in OBJECT_SECONDS.family().points:
        count_name, time_name = _OBJECT_NAMES[point.labels[0]]
        counters[count_name] = sum(point.counts)
        if time_name is not None:
            counters[time_name] = point.value
    for operation, name in _OBJECT_BYTE_NAMES.items():
        counters[name] = OBJECT_BYTES.value(operation)
    return counters


def _proc_counters(proc_folder: Path) -> Mapping[MetricName, float]:
    """Read the counters that Linux keeps in files. Outside Linux there are none."""
    try:
        resident_pages = int((proc_folder / "statm").read_text().split()[1])
        lines = (proc_folder / "io").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(": ") for line in lines)
    counters: dict[MetricName, float] = {
        name: int(values[key]) for key, name in _IO_NAMES.items() if key in values
    }
    return {MetricName.MEMORY: resident_pages * PAGE_SIZE, **counters}
