"""The goals of the benchmark, and whether the measurements reach them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.figures.measurements import Fact, Line

PAGE, BOXES, FULL, START = "inbox page", "mailboxes", "one message in full", "app start"
AT = 16  # connections
EVENT, HEAVY = "one event, from MAIL until all", "subscribers, PSS"
CAUGHT_UP = "changes read by one who is far behind, in a second of CPU"
IDLE = "idle subscribers, memory above idle"  # spread over accounts
LETTER, CHANGED = "from the LMTP 250 to the event", "from a change's answer to the event"
MADE = "changes made in a second"
READ = "changes read, by one who misses them all, in a second"
JOURNAL = "the journal's share of a delivery"
SLOWER = "a delivery slower than plain"
BESIDE = "p99 of small letters beside one of 50 MiB, against alone"
ABOVE = "memory above idle while letters of 50 MiB come"
COPIED = "{:,} messages of 20 KB fetched from Dovecot"
COPYING = "memory above idle while mail is fetched"
NOTHING_NEW = "a run that finds nothing new"
CLAIM = "p99 of a claim, {:,} waiting"
SENT_OUT = "messages of 20 KB that leave in a second, to one neighbour"
HANDED_IN = "letters of 20 KB handed in in a second, {}"
BATCHED = "50 of a mail merge in a request"
SENT_ON = "by SMTP and sent on"  # suffix of the two before
HALF_OPEN, FIRST = "times the p99, beside", "from the decoded body to the first resolver"

LARGE = {  # ms of CPU
    "10,000 messages: rare word": 1.0,
    "10,000 messages: common word": 3.0,
    "100,000 messages: rare word": 3.0,
    "100,000 messages: common word": 10.0,
    "100,000 messages: flag 1": 1.0,
    "100,000 messages: flag 1,000": 12.0,
}
WATCHED = {f"{LETTER}, p50": 2.0, f"{LETTER}, p99": 10.0, f"{CHANGED}, p50": 5.0}
WATCHED[f"{CHANGED}, p99"] = 25.0  # ms
STEADY = 0.98
MOVED = "10,000 messages moved"


class Goal(NamedTuple):
    """A goal with the required and the measured value. The field names are keys of the report."""

    name: str
    asked: str
    reached: str
    holds: bool


def goals(lines: Sequence[Line], facts: Sequence[Fact]) -> Iterator[Goal]:
    """Yield the goals for which there are measurements."""
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
    yield from _live(facts)
    yield from _copied(by_name)
    yield from _sent(facts)
    for fact in facts:
        if fact.name.startswith(HALF_OPEN):
            yield _most(f"{PAGE}, {fact.name}", fact.value, 2.0, "times")


def _sent(facts: Sequence[Fact]) -> Iterator[Goal]:
    """Yield the goals of submission, queue claims and outbound delivery."""
    for fact in facts:
        if fact.name == HANDED_IN.format(BATCHED):
            yield _least(fact.name, fact.value, 500.0, "")
        if fact.name.startswith(CLAIM.partition("{")[0]):
            yield _most(fact.name, fact.value, 10.0, "ms")
        if fact.name == SENT_OUT:
            yield _least(SENT_OUT, fact.value, 300.0, "")


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
    """Yield the goals of searches, late pages and flags in large mailboxes."""
    for name, most in LARGE.items():
        if name in cpu:
            yield _most(f"{name}, CPU", cpu[name] / 1000, most, "ms")
    for name, late in cpu.items():
        many, _, what = name.partition(" messages: ")
        if what == "page 1,000":
            times = late / max(cpu[f"{many} messages: first page"], 1e-9)
            yield _most(f"{name}, CPU against the first's", times, 1.1, "times")


def _crowd(facts: dict[str, Fact]) -> Iterator[Goal]:
    """Yield the goals of memory and events of subscribers, scaled to 1,000 subscribers."""
    idle = facts.get("memory idle, PSS")
    for name, fact in facts.items():
        if name.endswith(HEAVY) and idle:
            count = int(name.split()[2].replace(",", ""))
            more = (fact.value - idle.value) * 1000 / count
            yield _most("1,000 idle subscribers, memory above idle", more, 64.0, "MiB")
        if name.startswith(EVENT):
            count = int(name.removeprefix(EVENT).split()[0].replace(",", ""))
            yield _most(f"one event to {count:,} subscribers", fact.value, 100.0, "ms")


def _live(facts: Sequence[Fact]) -> Iterator[Goal]:
    """Yield the goals of event latency, change rate, memory of watchers and journal cost."""
    for fact in facts:
        many, _, what = fact.name.partition(" ")
        what = what.removeprefix("watchers: ")
        if what in WATCHED:
            yield _most(fact.name, fact.value, WATCHED[what], "ms")
        if what.startswith(MADE):
            asked = float(what.removeprefix(f"{MADE}, ").split()[0])
            yield _least(fact.name, fact.value, asked * STEADY, "")
        if what == IDLE:
            yield _most(
                f"5,000 {IDLE}", fact.value * 5000 / int(many.replace(",", "")), 350.0, "MiB"
            )
        if what == READ:
            yield _least(fact.name, fact.value, 20_000.0, "")
        if fact.name.startswith(JOURNAL):
            yield _most(fact.name, fact.value, 10.0, "%")
        if fact.name.startswith(SLOWER):
            yield _most(fact.name, fact.value, 30.0, "%")
        if fact.name.startswith(BESIDE):
            yield _most(fact.name, fact.value, 3.0, "times")
        if fact.name.startswith(ABOVE):
            yield _most(fact.name, fact.value, 150.0, "MiB")


def _copied(facts: dict[str, Fact]) -> Iterator[Goal]:
    """Yield the goals of connectors, scaled to 10,000 messages if fewer were measured."""
    for name, fact in facts.items():
        if name.endswith(COPIED.partition(" ")[2]):
            many = int(name.split()[0].replace(",", ""))
            yield _most(COPIED.format(10_000), fact.value * 10_000 / many, 60.0, "s")
    for what, most, unit in ((COPYING, 150.0, "MiB"), (NOTHING_NEW, 1.0, "s")):
        if what in facts:
            yield _most(what, facts[what].value, most, unit)


def _most(name: str, reached: float, most: float, unit: str) -> Goal:
    """Return a goal with a highest value."""
    return Goal(name, f"≤ {most:,.4g} {unit}", f"{reached:,.4g} {unit}", reached <= most)


def _least(name: str, reached: float, least: float, unit: str) -> Goal:
    """Return a goal with a lowest value."""
    return Goal(name, f"≥ {least:,.4g} {unit}".strip(), f"{reached:,.4g} {unit}", reached >= least)
