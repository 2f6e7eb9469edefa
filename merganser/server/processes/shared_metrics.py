"""Memory that the processes of a server share: which are up, and the metrics of each."""

import asyncio
import logging
import mmap
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from graph.http.metrics import own_metric_families
from models.observability.metrics import MetricFamily, MetricKind, MetricPoint, ProcessAggregation
from models.observability.metrics_merge import (
    WORKER_LABEL,
    ProcessFamilies,
    add_earlier_counts,
    deserialize_families,
    merge_families,
    serialize_families,
)

log = logging.getLogger(__name__)

MAX_METRICS_SIZE = 4 << 20  # bytes per process; the kernel allocates only written pages
WRITE_INTERVAL = 1.0  # seconds
MAX_AGE = 5.0  # seconds; a process whose metrics are older counts as down
RECORD_HEADER = struct.Struct("<dII")  # time, length, CRC
RECORD_SIZE = RECORD_HEADER.size + MAX_METRICS_SIZE
READ_ATTEMPTS = 3  # a copy is overwritten after two writes, so a slow reader must read again
NEVER_WRITTEN = 2
HEARTBEAT_COUNT = struct.Struct("Q")


class ProcessStatusBoard:
    """Which processes are up, and whose event loop runs, in memory that all of them share."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._up_flags = mmap.mmap(-1, size)
        self._heartbeat_counts = mmap.mmap(-1, size * HEARTBEAT_COUNT.size)

    def set_up(self, index: int, *, up: bool) -> None:
        """Store whether a process is up."""
        self._up_flags[index] = int(up)

    def is_up(self, index: int) -> bool:
        """True if the process is up."""
        return bool(self._up_flags[index])

    def record_heartbeat(self, index: int) -> None:
        """Record that the event loop of a process runs. Only this process calls it."""
        count = (self.heartbeat_count(index) + 1) % (1 << 64)
        HEARTBEAT_COUNT.pack_into(self._heartbeat_counts, index * HEARTBEAT_COUNT.size, count)

    def heartbeat_count(self, index: int) -> int:
        """A number that changes as long as the event loop of the process runs."""
        offset = index * HEARTBEAT_COUNT.size
        return int(HEARTBEAT_COUNT.unpack_from(self._heartbeat_counts, offset)[0])

    def up_count(self, processes: int) -> int:
        """The number of the first `processes` processes that are up."""
        return sum(self._up_flags[:processes])

    @property
    def size(self) -> int:
        """The number of processes, whether they are up or not."""
        return self._size

    @property
    def all_up(self) -> bool:
        """True if all processes are up."""
        return all(self._up_flags[: self._size])


class AgedMetrics(NamedTuple):
    """The metrics of a process, and their age."""

    age_seconds: float
    metrics: bytes


class SharedMetricsMemory:
    """The serialized metrics of each process, in memory that all processes share.

    There are two copies per process: one can be read while the other one is written.
    """

    def __init__(self, process_count: int) -> None:
        self._process_count = process_count
        self._memory = mmap.mmap(-1, process_count * (1 + 2 * RECORD_SIZE))
        self._memory[:process_count] = bytes([NEVER_WRITTEN]) * process_count  # the copy to read

    def write(self, index: int, serialized: bytes) -> None:
        """Replace the metrics of a process. Raises ValueError if they are too large."""
        if len(serialized) > MAX_METRICS_SIZE:
            raise ValueError("the metrics are too large for the shared memory")
        copy = int(self._memory[index] == 0)
        offset = self._record_offset(index, copy)
        RECORD_HEADER.pack_into(
            self._memory, offset, time.monotonic(), len(serialized), zlib.crc32(serialized)
        )
        self._memory[
            offset + RECORD_HEADER.size : offset + RECORD_HEADER.size + len(serialized)
        ] = serialized
        self._memory[index] = copy

    def read_with_age(self, index: int) -> AgedMetrics | None:
        """Return the age in seconds and the metrics of a process; None if none are valid."""
        for _ in range(READ_ATTEMPTS):
            copy = self._memory[index]
            if copy == NEVER_WRITTEN:
                break
            offset = self._record_offset(index, copy)
            written_at, length, crc = RECORD_HEADER.unpack_from(self._memory, offset)
            serialized = self._memory[
                offset + RECORD_HEADER.size : offset
                + RECORD_HEADER.size
                + min(length, MAX_METRICS_SIZE)
            ]
            if zlib.crc32(serialized) == crc:
                return AgedMetrics(time.monotonic() - written_at, serialized)
        return None

    def _record_offset(self, index: int, copy: int) -> int:
        return self._process_count + (2 * index + copy) * RECORD_SIZE


@dataclass
class FleetMetrics:
    """Shares the metrics of this process with the others, and merges those of all processes.

    Counters begin at the values of the former process with this index, so they never decrease.
    """

    memory: SharedMetricsMemory
    status_board: ProcessStatusBoard
    process_names: Sequence[str]
    process_index: int
    _earlier_families: list[MetricFamily] = field(init=False)

    def __post_init__(self) -> None:
        earlier_record = self.memory.read_with_age(self.process_index)
        self._earlier_families = deserialize_families(earlier_record[1]) if earlier_record else []

    @property
    def name(self) -> str:
        """The name of this process."""
        return self.process_names[self.process_index]

    async def write_metrics_until_cancelled(self) -> None:
        """Write the metrics of this process every second, and once more at the end."""
        try:
            while True:
                self.write_metrics()
                await asyncio.sleep(WRITE_INTERVAL)
        finally:
            self.write_metrics()

    def write_metrics(self) -> None:
        """Write the current metrics of this process for the others. Logs errors."""
        try:
            self.memory.write(
                self.process_index,
                serialize_families(
                    add_earlier_counts(self._earlier_families, own_metric_families())
                ),
            )
        except (
            Exception
        ):  # must not stop a process that answers requests; the process shows as down
            log.exception("Could not write metrics")

    def merged_families(self) -> list[MetricFamily]:
        """The merged metrics of all processes, and a gauge that shows which are up."""
        process_families = [
            self._families_of_process(index, name) for index, name in enumerate(self.process_names)
        ]
        points = [MetricPoint((family.name,), int(family.is_up)) for family in process_families]
        help_text = "1 for each process that is up and reports its numbers."
        up = MetricFamily(
            "merganser_worker_up",
            MetricKind.GAUGE,
            help_text,
            (WORKER_LABEL,),
            points,
            aggregation=ProcessAggregation.SAME,
        )
        return [up, *merge_families(process_families)]

    def _families_of_process(self, index: int, name: str) -> ProcessFamilies:
        record = self.memory.read_with_age(index)
        if record is None:
            return ProcessFamilies(name, is_up=False, families=[])
        age, text = record
        is_up = age < MAX_AGE and self.status_board.is_up(index)
        return ProcessFamilies(name, is_up, deserialize_families(text))
