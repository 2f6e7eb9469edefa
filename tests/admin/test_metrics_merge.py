"""What several processes count, told as one: nothing is lost, and nothing counted down."""

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


def counts(posts: int, sockets: int, *waits: float) -> list[MetricFamily]:
    counter, level = Counter("posts", "Posts.", ("result",)), UpDownCounter("sockets", "Open.")
    times = Histogram("wait_seconds", "Waits.", (), (0.5, 1.0))
    counter.add("taken", amount=posts)
    level.add(amount=sockets)
    for value in waits:
        times.observe(value)
    memory = gauge_family("memory_bytes", "Memory.", 100 + posts, ProcessAggregation.EACH)
    return [*(made.family() for made in (counter, level, times)), memory]


def values(families: list[MetricFamily]) -> dict[tuple[str, tuple[str, ...]], object]:
    return {
        (family.name, point.labels): point.counts or point.value
        for family in families
        for point in family.points
    }


def test_numbers_of_several_are_added_up_by_what_they_mean() -> None:
    one, two = counts(3, 1, 0.1, 0.7), counts(4, 2, 3)
    found = merge_families(
        [ProcessFamilies("1", True, one), ProcessFamilies("background", True, two)]
    )
    assert values(found) == {
        ("posts", ("taken",)): 7,
        ("sockets", ()): 3,
        ("wait_seconds", ()): (1, 1, 1),
        ("memory_bytes", ("1",)): 103,
        ("memory_bytes", ("background",)): 104,
    }
    (memory,) = [family for family in found if family.name == "memory_bytes"]
    assert memory.labels == ("worker",)
    (waits,) = [family for family in found if family.name == "wait_seconds"]
    assert waits.points[0].value == pytest.approx(3.8)


def test_of_one_that_is_not_up_the_sums_stay_and_the_rest_is_left_out() -> None:
    found = merge_families(
        [ProcessFamilies("1", True, counts(3, 1)), ProcessFamilies("2", False, counts(4, 2, 0.1))]
    )
    assert values(found) == {
        ("posts", ("taken",)): 7,
        ("sockets", ()): 1,
        ("wait_seconds", ()): (1, 0, 0),
        ("memory_bytes", ("1",)): 103,
    }


def test_who_takes_a_place_goes_on_from_what_was_counted_there() -> None:
    found = add_earlier_counts(counts(3, 5, 0.1), counts(4, 2, 0.7))
    assert values(found) == {
        ("posts", ("taken",)): 7,
        ("sockets", ()): 2,
        ("wait_seconds", ()): (1, 1, 0),
        ("memory_bytes", ()): 104,
    }


def test_many_generations_keep_a_bounded_number_of_names() -> None:
    before: list[MetricFamily] = []
    for generation in range(20):
        made = Counter("posts", "Posts.", ("result",))
        for number in range(100):
            made.add(f"{generation} {number}")
        before = add_earlier_counts(before, [made.family()])
    (family,) = before
    assert len(family.points) == MAX_COMBINATIONS + 1
    assert sum(point.value for point in family.points) == 2000
    assert values(before)["posts", ("other",)] == 1000


def test_numbers_survive_being_packed() -> None:
    made = [*counts(3, 1, 0.1), info_family("some_build", "Facts.", {"version": "1"})]
    assert deserialize_families(serialize_families(made)) == made


def test_a_slate_has_what_was_written_last() -> None:
    some = SharedMetricsMemory(3)
    assert some.read_with_age(1) is None
    for number in range(5):
        some.write(1, b"x" * number * 1000)
        told = some.read_with_age(1)
        assert told
        assert told[0] >= 0
        assert told[1] == b"x" * number * 1000
    assert some.read_with_age(0) is some.read_with_age(2) is None
    with pytest.raises(ValueError, match="more than"):
        some.write(1, bytes(shared_metrics.MAX_METRICS_SIZE + 1))
    assert some.read_with_age(1)[1] == b"x" * 4000  # type: ignore[index]


def test_what_is_read_while_another_process_writes_is_whole() -> None:
    some, turns = SharedMetricsMemory(1), 3000
    some.write(0, b"0" * 10_000)
    pid = os.fork()
    if not pid:
        for number in range(turns):
            some.write(0, str(number % 10).encode() * (10_000 + number))
        os._exit(0)
    seen = set()
    while not os.waitpid(pid, os.WNOHANG)[0]:
        told = some.read_with_age(0)
        if told is not None:  # else it was written anew each time we looked
            assert len(set(told[1])) == 1
            seen.add(len(told[1]))
    told = some.read_with_age(0)
    assert told
    assert len(told[1]) == 10_000 + turns - 1
    assert seen


def ship(some: SharedMetricsMemory, board: ProcessStatusBoard, index: int) -> FleetMetrics:
    return FleetMetrics(some, board, ["1", "2", "background"], index)


def test_a_fleet_tells_who_is_up_and_counts_nothing_down() -> None:
    some, board = SharedMetricsMemory(3), ProcessStatusBoard(3)
    asked, other = ship(some, board, 0), ship(some, board, 1)
    for index in (0, 1):
        board.set_up(index, up=True)
    LINES_LOST.add()
    asked.note()
    other.note()
    found = values(asked.families())
    assert [found["merganser_worker_up", (name,)] for name in asked.process_names] == [1, 1, 0]
    lost, ours = ("merganser_log_lines_lost", ()), LINES_LOST.value()
    assert found[lost] == 2 * ours
    assert ("process_resident_memory_bytes", ("2",)) in found
    board.set_up(1, up=False)
    heir = ship(some, board, 1)
    heir.note()
    again = values(asked.families())
    assert again["merganser_worker_up", ("2",)] == 0
    assert ("process_resident_memory_bytes", ("2",)) not in again
    assert again[lost] == 3 * ours  # what the first in this place had counted is not lost
    board.set_up(1, up=True)
    assert values(asked.families())["merganser_worker_up", ("2",)] == 1


def test_who_has_told_nothing_for_long_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    some, board = SharedMetricsMemory(3), ProcessStatusBoard(3)
    board.set_up(0, up=True)
    asked = ship(some, board, 0)
    asked.note()
    monkeypatch.setattr(shared_metrics, "MAX_AGE", 0.0)
    assert values(asked.families())["merganser_worker_up", ("1",)] == 0


def test_numbers_too_many_to_tell_end_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    some = SharedMetricsMemory(3)
    one = ship(some, ProcessStatusBoard(3), 0)
    monkeypatch.setattr(shared_metrics, "MAX_METRICS_SIZE", 10)
    one.note()
    assert caplog.records[-1].message == "metrics could not be noted"
    assert some.read_with_age(0) is None
    assert values(one.families())["merganser_worker_up", ("1",)] == 0
