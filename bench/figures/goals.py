"""The goals of the benchmark, and whether the measurements reach them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.figures.measurements import ComparedFigure, MeasuredValue

INBOX_PAGE, MAILBOXES, FULL_MESSAGE, APP_START = (
    "inbox page",
    "mailboxes",
    "one message in full",
    "app start",
)
GOAL_CONNECTIONS = 16  # connections
EVENT_TO_ALL, SUBSCRIBER_MEMORY = "one event, from MAIL until all", "subscribers, PSS"
CATCH_UP_RATE = "changes read by one who is far behind, in a second of CPU"
IDLE_SUBSCRIBER_MEMORY = "idle subscribers, memory above idle"  # spread over accounts
DELIVERY_TO_EVENT, CHANGE_TO_EVENT = (
    "from the LMTP 250 to the event",
    "from a change's answer to the event",
)
CHANGE_RATE = "changes made in a second"
REPLAY_RATE = "changes read, by one who misses them all, in a second"
JOURNAL_SHARE = "the journal's share of a delivery"
DELIVERY_SLOWDOWN = "a delivery slower than plain"
P99_BESIDE_LARGE = "p99 of small letters beside one of 50 MiB, against alone"
MEMORY_OF_LARGE = "memory above idle while letters of 50 MiB come"
FETCHED_MESSAGES = "{:,} messages of 20 KB fetched from Dovecot"
FETCH_MEMORY = "memory above idle while mail is fetched"
EMPTY_RUN = "a run that finds nothing new"
CLAIM_P99 = "p99 of a claim, {:,} waiting"
OUTBOUND_RATE = "messages of 20 KB that leave in a second, to one neighbour"
SUBMISSION_RATE = "letters of 20 KB handed in in a second, {}"
MAIL_MERGE = "50 of a mail merge in a request"
SMTP_AND_REDIRECT = "by SMTP and sent on"  # suffix of the two before
P99_BESIDE_HALF_OPEN, TIME_TO_FIRST_RESOLVER = (
    "times the p99, beside",
    "from the decoded body to the first resolver",
)

LARGE_MAILBOX_GOALS = {  # ms of CPU
    "10,000 messages: rare word": 1.0,
    "10,000 messages: common word": 3.0,
    "100,000 messages: rare word": 3.0,
    "100,000 messages: common word": 10.0,
    "100,000 messages: flag 1": 1.0,
    "100,000 messages: flag 1,000": 12.0,
}
EVENT_LATENCY_GOALS = {
    f"{DELIVERY_TO_EVENT}, p50": 2.0,
    f"{DELIVERY_TO_EVENT}, p99": 10.0,
    f"{CHANGE_TO_EVENT}, p50": 5.0,
}
EVENT_LATENCY_GOALS[f"{CHANGE_TO_EVENT}, p99"] = 25.0  # ms
MIN_PACE_SHARE = 0.98
MOVED_MESSAGES = "10,000 messages moved"


class Goal(NamedTuple):
    """A goal with the required and the measured value. The field names are keys of the report."""

    name: str
    asked: str
    reached: str
    holds: bool


def evaluate_goals(
    lines: Sequence[ComparedFigure], facts: Sequence[MeasuredValue]
) -> Iterator[Goal]:
    """Yield the goals for which there are measurements."""
    at = {line.name: line for line in lines if line.ours.connections == GOAL_CONNECTIONS}
    yield from _page_goals(at.get(INBOX_PAGE))
    for name, most in ((FULL_MESSAGE, 500.0), (MAILBOXES, 400.0), (APP_START, 1500.0)):
        if line := at.get(name):
            yield _upper_limit(f"{name}, CPU", line.ours.cpu, most, "µs")
    yield from _large_mailbox_goals({line.name: line.ours.cpu for line in lines})
    by_name = {fact.name: fact for fact in facts}
    if moved := by_name.get(MOVED_MESSAGES):
        yield _upper_limit(MOVED_MESSAGES, moved.value, 1.5, "s")
    if first := by_name.get(TIME_TO_FIRST_RESOLVER):
        yield _upper_limit(TIME_TO_FIRST_RESOLVER, first.value, 50.0, "µs")
    if caught := by_name.get(CATCH_UP_RATE):
        yield _lower_limit(CATCH_UP_RATE, caught.value, 20_000.0, "")
    yield from _subscriber_goals(by_name)
    yield from _live_goals(facts)
    yield from _connector_goals(by_name)
    yield from _sending_goals(facts)
    for fact in facts:
        if fact.name.startswith(P99_BESIDE_HALF_OPEN):
            yield _upper_limit(f"{INBOX_PAGE}, {fact.name}", fact.value, 2.0, "times")


def _sending_goals(facts: Sequence[MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of submission, queue claims and outbound delivery."""
    for fact in facts:
        if fact.name == SUBMISSION_RATE.format(MAIL_MERGE):
            yield _lower_limit(fact.name, fact.value, 500.0, "")
        if fact.name.startswith(CLAIM_P99.partition("{")[0]):
            yield _upper_limit(fact.name, fact.value, 10.0, "ms")
        if fact.name == OUTBOUND_RATE:
            yield _lower_limit(OUTBOUND_RATE, fact.value, 300.0, "")


def _page_goals(line: ComparedFigure | None) -> Iterator[Goal]:
    if line is None:
        return
    figure = line.ours
    yield _lower_limit(f"{INBOX_PAGE}, in a second of CPU", 1e6 / max(figure.cpu, 1e-9), 2000.0, "")
    yield _upper_limit(f"{INBOX_PAGE}, CPU", figure.cpu, 450.0, "µs")
    if line.plain:
        times = line.plain.cpu / max(figure.cpu, 1e-9)
        yield _lower_limit(
            f"{INBOX_PAGE}, plain Strawberry's CPU against ours", times, 10.0, "times"
        )
    if ratio := line.ratio_to_baseline("cpu"):
        yield _upper_limit(f"{INBOX_PAGE}, CPU against the floor's", ratio, 1.5, "times")
    yield _upper_limit(
        f"{INBOX_PAGE}, p99 against p50, {GOAL_CONNECTIONS} connections",
        figure.p99 / figure.p50,
        3.0,
        "times",
    )


def _large_mailbox_goals(cpu_by_name: dict[str, float]) -> Iterator[Goal]:
    """Yield the goals of searches, late pages and flags in large mailboxes."""
    for name, most in LARGE_MAILBOX_GOALS.items():
        if name in cpu_by_name:
            yield _upper_limit(f"{name}, CPU", cpu_by_name[name] / 1000, most, "ms")
    for name, late in cpu_by_name.items():
        many, _, what = name.partition(" messages: ")
        if what == "page 1,000":
            times = late / max(cpu_by_name[f"{many} messages: first page"], 1e-9)
            yield _upper_limit(f"{name}, CPU against the first's", times, 1.1, "times")


def _subscriber_goals(fact_by_name: dict[str, MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of memory and events of subscribers, scaled to 1,000 subscribers."""
    idle = fact_by_name.get("memory idle, PSS")
    for name, fact in fact_by_name.items():
        if name.endswith(SUBSCRIBER_MEMORY) and idle:
            count = int(name.split()[2].replace(",", ""))
            kib_per_subscriber = (fact.value - idle.value) * 1000 / count
            yield _upper_limit(
                "1,000 idle subscribers, memory above idle", kib_per_subscriber, 64.0, "MiB"
            )
        if name.startswith(EVENT_TO_ALL):
            count = int(name.removeprefix(EVENT_TO_ALL).split()[0].replace(",", ""))
            yield _upper_limit(f"one event to {count:,} subscribers", fact.value, 100.0, "ms")


def _live_goals(facts: Sequence[MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of event latency, change rate, memory of watchers and journal cost."""
    for fact in facts:
        many, _, what = fact.name.partition(" ")
        what = what.removeprefix("watchers: ")
        if what in EVENT_LATENCY_GOALS:
            yield _upper_limit(fact.name, fact.value, EVENT_LATENCY_GOALS[what], "ms")
        if what.startswith(CHANGE_RATE):
            requested_rate = float(what.removeprefix(f"{CHANGE_RATE}, ").split()[0])
            yield _lower_limit(fact.name, fact.value, requested_rate * MIN_PACE_SHARE, "")
        if what == IDLE_SUBSCRIBER_MEMORY:
            yield _upper_limit(
                f"5,000 {IDLE_SUBSCRIBER_MEMORY}",
                fact.value * 5000 / int(many.replace(",", "")),
                350.0,
                "MiB",
            )
        if what == REPLAY_RATE:
            yield _lower_limit(fact.name, fact.value, 20_000.0, "")
        if fact.name.startswith(JOURNAL_SHARE):
            yield _upper_limit(fact.name, fact.value, 10.0, "%")
        if fact.name.startswith(DELIVERY_SLOWDOWN):
            yield _upper_limit(fact.name, fact.value, 30.0, "%")
        if fact.name.startswith(P99_BESIDE_LARGE):
            yield _upper_limit(fact.name, fact.value, 3.0, "times")
        if fact.name.startswith(MEMORY_OF_LARGE):
            yield _upper_limit(fact.name, fact.value, 150.0, "MiB")


def _connector_goals(fact_by_name: dict[str, MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of connectors, scaled to 10,000 messages if fewer were measured."""
    for name, fact in fact_by_name.items():
        if name.endswith(FETCHED_MESSAGES.partition(" ")[2]):
            many = int(name.split()[0].replace(",", ""))
            yield _upper_limit(
                FETCHED_MESSAGES.format(10_000), fact.value * 10_000 / many, 60.0, "s"
            )
    for what, most, unit in ((FETCH_MEMORY, 150.0, "MiB"), (EMPTY_RUN, 1.0, "s")):
        if what in fact_by_name:
            yield _upper_limit(what, fact_by_name[what].value, most, unit)


def _upper_limit(name: str, reached: float, limit: float, unit: str) -> Goal:
    """Return a goal with a highest value."""
    return Goal(name, f"≤ {limit:,.4g} {unit}", f"{reached:,.4g} {unit}", reached <= limit)


def _lower_limit(name: str, reached: float, limit: float, unit: str) -> Goal:
    """Return a goal with a lowest value."""
    return Goal(name, f"≥ {limit:,.4g} {unit}".strip(), f"{reached:,.4g} {unit}", reached >= limit)
