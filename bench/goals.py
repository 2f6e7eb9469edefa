"""What is asked of the figures, and whether they reach it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.measure import Fact, Line

PAGE, BOXES, FULL, START = "inbox page", "mailboxes", "one message in full", "app start"
AT = 16  # connections
EVENT, HEAVY = "one event, from MAIL until all", "subscribers, PSS"
CAUGHT_UP = "changes read by one who is far behind, in a second of CPU"
HALF_OPEN, FIRST = "times the p99, beside", "from the decoded body to the first resolver"

LARGE = {  # ms of CPU
    "10,000 messages: rare word": 1.0,
    "10,000 messages: common word": 3.0,
    "100,000 messages: rare word": 3.0,
    "100,000 messages: common word": 10.0,
    "100,000 messages: flag 1": 1.0,
    "100,000 messages: flag 1,000": 12.0,
}
MOVED = "10,000 messages moved"


class Goal(NamedTuple):
    """One line: what, how much of it, and whether that is enough."""

    name: str
    asked: str
    reached: str
    holds: bool


def goals(lines: Sequence[Line], facts: Sequence[Fact]) -> Iterator[Goal]:
    """The goals of which something was measured."""
    at = {line.name: line for line in lines if line.ours.connections == AT}
    yield from _page(at.get(PAGE))
    for name, most in ((FULL, 500.0), (BOXES, 400.0), (START, 1500.0)):
        if line := at.get(name):
            yield _most(f"{name}, CPU", line.ours.cpu, most, "µs")
    yield from _large({line.name: line.ours.cpu for line in lines})
    by_name = {fact.name: fact for fact in facts}
    if moved := by_name.get(MOVED):
        yield _most(MOVED, moved.value, 1.5, "s")
    if first := by_name.get(FIRST):
        yield _most(FIRST, first.value, 50.0, "µs")
    if caught := by_name.get(CAUGHT_UP):
        yield _least(CAUGHT_UP, caught.value, 20_000.0, "")
    yield from _crowd(by_name)
    for fact in facts:
        if fact.name.startswith(HALF_OPEN):
            yield _most(f"{PAGE}, {fact.name}", fact.value, 2.0, "times")


def _page(line: Line | None) -> Iterator[Goal]:
    if line is None:
        return
    ours = line.ours
    yield _least(f"{PAGE}, in a second of CPU", 1e6 / max(ours.cpu, 1e-9), 2000.0, "")
    yield _most(f"{PAGE}, CPU", ours.cpu, 450.0, "µs")
    if line.plain:
        times = line.plain.cpu / max(ours.cpu, 1e-9)
        yield _least(f"{PAGE}, plain Strawberry's CPU against ours", times, 10.0, "times")
    if ratio := line.ratio("cpu"):
        yield _most(f"{PAGE}, CPU against the floor's", ratio, 1.5, "times")
    yield _most(f"{PAGE}, p99 against p50, {AT} connections", ours.p99 / ours.p50, 3.0, "times")


def _large(cpu: dict[str, float]) -> Iterator[Goal]:
    """Searches in large accounts, late pages, and flags."""
    for name, most in LARGE.items():
        if name in cpu:
            yield _most(f"{name}, CPU", cpu[name] / 1000, most, "ms")
    for name, late in cpu.items():
        many, _, what = name.partition(" messages: ")
        if what == "page 1,000":
            times = late / max(cpu[f"{many} messages: first page"], 1e-9)
            yield _most(f"{name}, CPU against the first's", times, 1.1, "times")


def _crowd(facts: dict[str, Fact]) -> Iterator[Goal]:
    """Memory and events of subscribers; for a thousand, where fewer were there."""
    idle = facts.get("memory idle, PSS")
    for name, fact in facts.items():
        if name.endswith(HEAVY) and idle:
            count = int(name.split()[2].replace(",", ""))
            more = (fact.value - idle.value) * 1000 / count
            yield _most("1,000 idle subscribers, memory above idle", more, 64.0, "MiB")
        if name.startswith(EVENT):
            count = int(name.removeprefix(EVENT).split()[0].replace(",", ""))
            yield _most(f"one event to {count:,} subscribers", fact.value, 100.0, "ms")


def _most(name: str, reached: float, most: float, unit: str) -> Goal:
    return Goal(name, f"≤ {most:,.4g} {unit}", f"{reached:,.4g} {unit}", reached <= most)


def _least(name: str, reached: float, least: float, unit: str) -> Goal:
    return Goal(name, f"≥ {least:,.4g} {unit}".strip(), f"{reached:,.4g} {unit}", reached >= least)
