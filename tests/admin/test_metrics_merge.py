"""Metrics of several processes merged: sums are never lost or decreased."""

import os

import pytest

from merganser.server.observability.logs import LINES_LOST
from merganser.server.processes import shared_metrics
from merganser.server.processes.shared_metrics import (
    FleetMetrics,
    ProcessStatusBoard,
    SharedMetricsMemory,
)
from models.observability.metrics import (
    Counter,
    Histogram,
    MetricFamily,
    ProcessAggregation,
    UpDownCounter,
    gauge_family,
    info_family,
)
from models.observability.metrics_merge import (
    MAX_COMBINATIONS,
    ProcessFamilies,
    add_earlier_counts,
    deserialize_families,
    merge_families,
    serialize_families,
)


def make_families(post_count: int, socket_count: int, *wait_times: float) -> list[MetricFamily]:
    counter, gauge = Counter("posts", "Posts.", ("result",)), UpDownCounter("sockets", "Open.")
    histogram = Histogram("wait_seconds", "Waits.", (), (0.5, 1.0))
    counter.add("taken", amount=post_count)
    gauge.add(amount=socket_count)
    for value in wait_times:
        histogram.observe(value)
    memory = gauge_family("memory_bytes", "Memory.", 100 + post_count, ProcessAggregation.EACH)
    return [*(meter.family() for meter in (counter, gauge, histogram)), memory]


def point_values(families: list[MetricFamily]) -> dict[tuple[str, tuple[str, ...]], object]:
    return {
        (family.name, point.labels): point.counts or point.value
        for family in families
        for point in family.points
    }


def test_families_are_merged_by_their_aggregation() -> None:
    first, second = make_families(3, 1, 0.1, 0.7), make_families(4, 2, 3)
    merged = merge_families(
        [ProcessFamilies("1", True, first), ProcessFamilies("background", True, second)]
    )
    assert point_values(merged) == {
        ("posts", ("taken",)): 7,
        ("sockets", ()): 3,
        ("wait_seconds", ()): (1, 1, 1),
        ("memory_bytes", ("1",)): 103,
        ("memory_bytes", ("background",)): 104,
    }
    (memory,) = [family for family in merged if family.name == "memory_bytes"]
    assert memory.labels == ("worker",)
    (waits,) = [family for family in merged if family.name == "wait_seconds"]
    assert waits.points[0].value == pytest.approx(3.8)


def test_stopped_process_keeps_counters_only() -> None:
    merged = merge_families(
        [
            ProcessFamilies("1", True, make_families(3, 1)),
            ProcessFamilies("2", False, make_families(4, 2, 0.1)),
        ]
    )
    assert point_values(merged) == {
        ("posts", ("taken",)): 7,
        ("sockets", ()): 1,
        ("wait_seconds", ()): (1, 0, 0),
        ("memory_bytes", ("1",)): 103,
    }


def test_successor_continues_the_counters_of_its_slot() -> None:
    merged = add_earlier_counts(make_families(3, 5, 0.1), make_families(4, 2, 0.7))
    assert point_values(merged) == {
        ("posts", ("taken",)): 7,
        ("sockets", ()): 2,
        ("wait_seconds", ()): (1, 1, 0),
        ("memory_bytes", ()): 104,
    }


def test_label_combinations_of_many_generations_are_limited() -> None:
    families: list[MetricFamily] = []
    for generation in range(20):
        counter = Counter("posts", "Posts.", ("result",))
        for number in range(100):
            counter.add(f"{generation} {number}")
        families = add_earlier_counts(families, [counter.family()])
    (family,) = families
    assert len(family.points) == MAX_COMBINATIONS + 1
    assert sum(point.value for point in family.points) == 2000
    assert point_values(families)["posts", ("other",)] == 1000


def test_families_are_serialized_without_loss() -> None:
    families = [*make_families(3, 1, 0.1), info_family("some_build", "Facts.", {"version": "1"})]
    assert deserialize_families(serialize_families(families)) == families


def test_shared_memory_returns_the_last_write() -> None:
    memory = SharedMetricsMemory(3)
    assert memory.read_with_age(1) is None
    for number in range(5):
        memory.write(1, b"x" * number * 1000)
        entry = memory.read_with_age(1)
        assert entry
        assert entry[0] >= 0
        assert entry[1] == b"x" * number * 1000
    assert memory.read_with_age(0) is memory.read_with_age(2) is None
    with pytest.raises(ValueError, match="too large"):
        memory.write(1, bytes(shared_metrics.MAX_METRICS_SIZE + 1))
    assert memory.read_with_age(1)[1] == b"x" * 4000  # type: ignore[index]


def test_concurrent_read_of_shared_memory_is_consistent() -> None:
    memory, write_count = SharedMetricsMemory(1), 3000
    memory.write(0, b"0" * 10_000)
    pid = os.fork()
    if not pid:
        for number in range(write_count):
            memory.write(0, str(number % 10).encode() * (10_000 + number))
        os._exit(0)
    sizes = set()
    while not os.waitpid(pid, os.WNOHANG)[0]:
        entry = memory.read_with_age(0)
        if entry is not None:  # None if it was written anew at each attempt
            assert len(set(entry[1])) == 1
            sizes.add(len(entry[1]))
    entry = memory.read_with_age(0)
    assert entry
    assert len(entry[1]) == 10_000 + write_count - 1
    assert sizes


def make_fleet_metrics(
    memory: SharedMetricsMemory, board: ProcessStatusBoard, index: int
) -> FleetMetrics:
    return FleetMetrics(memory, board, ["1", "2", "background"], index)


def test_fleet_reports_running_processes_and_never_decreases_counters() -> None:
    memory, board = SharedMetricsMemory(3), ProcessStatusBoard(3)
    first, other = make_fleet_metrics(memory, board, 0), make_fleet_metrics(memory, board, 1)
    for index in (0, 1):
        board.set_up(index, up=True)
    LINES_LOST.add()
    first.write_metrics()
    other.write_metrics()
    first_values = point_values(first.merged_families())
    assert [first_values["merganser_worker_up", (name,)] for name in first.process_names] == [
        1,
        1,
        0,
    ]
    lost_key, own_value = ("merganser_log_lines_lost", ()), LINES_LOST.value()
    assert first_values[lost_key] == 2 * own_value
    assert ("process_resident_memory_bytes", ("2",)) in first_values
    board.set_up(1, up=False)
    successor = make_fleet_metrics(memory, board, 1)
    successor.write_metrics()
    values_after = point_values(first.merged_families())
    assert values_after["merganser_worker_up", ("2",)] == 0
    assert ("process_resident_memory_bytes", ("2",)) not in values_after
    # includes the count of the previous process in this slot
    assert values_after[lost_key] == 3 * own_value
    board.set_up(1, up=True)
    assert point_values(first.merged_families())["merganser_worker_up", ("2",)] == 1


def test_process_without_recent_metrics_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, board = SharedMetricsMemory(3), ProcessStatusBoard(3)
    board.set_up(0, up=True)
    fleet = make_fleet_metrics(memory, board, 0)
    fleet.write_metrics()
    monkeypatch.setattr(shared_metrics, "MAX_AGE", 0.0)
    assert point_values(fleet.merged_families())["merganser_worker_up", ("1",)] == 0


def test_too_large_metrics_are_logged_and_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = SharedMetricsMemory(3)
    fleet = make_fleet_metrics(memory, ProcessStatusBoard(3), 0)
    monkeypatch.setattr(shared_metrics, "MAX_METRICS_SIZE", 10)
    fleet.write_metrics()
    assert caplog.records[-1].message == "Could not write metrics"
    assert memory.read_with_age(0) is None
    assert point_values(fleet.merged_families())["merganser_worker_up", ("1",)] == 0
