"""The goals of the benchmark, and whether the measurements reach them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.figures.measurements import ComparedFigure, MeasuredValue

INBOX_PAGE = "inbox page"
MAILBOXES = "mailboxes"
FULL_MESSAGE = "one message in full"
APP_START = "app start"
GOAL_CONNECTIONS = 16  # connections
EVENT_TO_LAST_SUBSCRIBER = "from the start of a delivery to the event at the last of"
IDLE_MEMORY = "memory without subscribers, PSS"
SUBSCRIBER_MEMORY = "WebSocket subscribers, PSS"
SUBSCRIBERS_PREFIX = "WebSocket subscribers: "
CATCH_UP_RATE = "missed changes read page by page, per CPU second"
IDLE_SUBSCRIBER_MEMORY = "idle WebSocket subscribers of many accounts, additional memory"
DELIVERY_TO_EVENT = "from the 250 reply of LMTP to the event"
CHANGE_TO_EVENT = "from the response of a mutation to the event"
CHANGE_RATE = "changes per second"
REPLAY_RATE = "missed changes read by a subscription, per second"
JOURNAL_SHARE = "share of the journal in a delivery"
DELIVERY_SLOWDOWN = "slowdown of a delivery"
P99_DURING_LARGE = "p99 ratio of small messages during one of 50 MiB"
MEMORY_OF_LARGE = "additional memory during messages of 50 MiB"
FETCHED_MESSAGES = "{:,} messages of 20 KB fetched from Dovecot"
FETCH_MEMORY = "additional memory while a connector fetches mail"
EMPTY_RUN = "connector run without new messages"
CLAIM_P99 = "p99 of a queue claim, {:,} waiting recipients"
OUTBOUND_RATE = "messages of 20 KB sent per second to one server"
SUBMISSION_RATE = "messages of 20 KB submitted per second, {}"
MAIL_MERGE = "a mail merge of 50 per request"
SMTP_AND_REDIRECT = "received by SMTP and forwarded"  # suffix of P99_DURING_LARGE
P99_DURING_HALF_OPEN = "p99 ratio during half-open connections"
TIME_TO_FIRST_RESOLVER = "from the decoded body to the first resolver"
TERMINATION_SECONDS = "{:,} WebSockets of all processes closed by sessionTerminate"
SESSION_LIST_CPU = "CPU of {}, {:,} open sessions"
DASHBOARD_CPU = "CPU of a request for a dashboard"
LOG_WRITE_RATE = "log entries written per CPU second, {:,} entries"
LOG_PAGE_P95 = "p95 of a page of log entries, {:,} entries"
DELIVERY_LOG_SHARE = "additional CPU of a delivery for its log entries"
REFUSAL_CPU_RATIO = "CPU ratio of a refused connection"
REFUSAL_P99_RATIO = "p99 ratio of inbox pages"
SCIM_INDEXED_CPU = "CPU of a SCIM list by index, {:,} accounts: {}"
SCIM_SCAN_CPU = "CPU of a SCIM list by comparison, {:,} accounts: {}"
SCIM_STATEMENTS = "statements of a SCIM list, at most"
SCIM_CREATION_SECONDS = "{:,} users created by SCIM"
CODE_EXCHANGE_CPU = "CPU of an exchange of an OAuth code for tokens, median"

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
MIN_RATE_SHARE = 0.98
MIN_VALUE_WITHOUT_FRACTION = 1000  # in the report
MOVED_MESSAGES = "10,000 messages moved"

OPERATIONS_UPPER_LIMITS = {  # by the text with which the name begins
    SESSION_LIST_CPU.partition("{")[0] + "a page of session": (10.0, "ms"),
    LOG_PAGE_P95.partition("{")[0]: (25.0, "ms"),
    DASHBOARD_CPU: (10.0, "ms"),
    DELIVERY_LOG_SHARE: (3.0, "%"),
    SCIM_INDEXED_CPU.partition("{")[0]: (75.0, "ms"),
    SCIM_SCAN_CPU.partition("{")[0]: (400.0, "ms"),
    SCIM_STATEMENTS: (6.0, ""),
    CODE_EXCHANGE_CPU: (5.0, "ms"),
}
MAX_SECONDS_PER_SCIM_CREATION = 0.06  # 60 s for 1,000 users
MAX_TERMINATION_SECONDS = 1.0
MIN_LOG_WRITE_RATE = 15_000.0  # entries per CPU second
MAX_REFUSAL_CPU_RATIO, MAX_REFUSAL_P99_RATIO = 2.0, 1.2
REFUSAL_BASELINES = ("asyncio", "blocking")  # accept-and-close loops of the standard library


class Goal(NamedTuple):
    """A goal with the required and the measured value. The field names are keys of the report."""

    name: str
    required: str
    measured: str
    is_met: bool


def evaluate_goals(
    lines: Sequence[ComparedFigure], facts: Sequence[MeasuredValue]
) -> Iterator[Goal]:
    """Yield the goals for which there are measurements."""
    at = {line.name: line for line in lines if line.merganser.connections == GOAL_CONNECTIONS}
    yield from _page_goals(at.get(INBOX_PAGE))
    for name, most in ((FULL_MESSAGE, 500.0), (MAILBOXES, 400.0), (APP_START, 1500.0)):
        if line := at.get(name):
            yield _upper_limit(f"{name}, CPU", line.merganser.cpu, most, "µs")
    yield from _large_mailbox_goals({line.name: line.merganser.cpu for line in lines})
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
    yield from _operations_goals(facts)
    for fact in facts:
        if fact.name.startswith(P99_DURING_HALF_OPEN):
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


def _operations_goals(facts: Sequence[MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of sessions, log entries, bans, SCIM and OAuth."""
    termination = TERMINATION_SECONDS.partition("}")[2]
    for fact in facts:
        for prefix, (limit, unit) in OPERATIONS_UPPER_LIMITS.items():
            if fact.name.startswith(prefix):
                yield _upper_limit(fact.name, fact.value, limit, unit)
        if termination in fact.name:
            yield _upper_limit(fact.name, fact.value, MAX_TERMINATION_SECONDS, "s")
        if fact.name.endswith(SCIM_CREATION_SECONDS.partition("}")[2]):
            limit = _user_count(fact.name) * MAX_SECONDS_PER_SCIM_CREATION
            yield _upper_limit(fact.name, fact.value, limit, "s")
        if fact.name.startswith(LOG_WRITE_RATE.partition("{")[0]):
            yield _lower_limit(fact.name, fact.value, MIN_LOG_WRITE_RATE, "")
        if fact.name.startswith(REFUSAL_CPU_RATIO) and fact.name.endswith(REFUSAL_BASELINES):
            yield _upper_limit(fact.name, fact.value, MAX_REFUSAL_CPU_RATIO, "times")
        if fact.name.startswith(REFUSAL_P99_RATIO) and fact.name.endswith("refused"):
            yield _upper_limit(fact.name, fact.value, MAX_REFUSAL_P99_RATIO, "times")


def _user_count(name: str) -> int:
    """Return the number of users at the beginning of a name."""
    return int(name.split(maxsplit=1)[0].replace(",", ""))


def _page_goals(line: ComparedFigure | None) -> Iterator[Goal]:
    if line is None:
        return
    figure = line.merganser
    yield _lower_limit(
        f"{INBOX_PAGE}, requests per CPU second", 1e6 / max(figure.cpu, 1e-9), 2000.0, ""
    )
    yield _upper_limit(f"{INBOX_PAGE}, CPU", figure.cpu, 450.0, "µs")
    if line.strawberry:
        times = line.strawberry.cpu / max(figure.cpu, 1e-9)
        yield _lower_limit(
            f"{INBOX_PAGE}, CPU of plain Strawberry divided by Merganser's", times, 10.0, "times"
        )
    if ratio := line.ratio_to_baseline("cpu"):
        yield _upper_limit(f"{INBOX_PAGE}, CPU divided by the baseline's", ratio, 1.5, "times")
    yield _upper_limit(
        f"{INBOX_PAGE}, p99 divided by p50, {GOAL_CONNECTIONS} connections",
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
            yield _upper_limit(f"{name}, CPU divided by the first page's", times, 1.1, "times")


def _subscriber_goals(fact_by_name: dict[str, MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of memory and events of subscribers, scaled to 1,000 subscribers."""
    idle = fact_by_name.get(IDLE_MEMORY)
    for name, fact in fact_by_name.items():
        if name.endswith(SUBSCRIBER_MEMORY) and idle:
            count = int(name.split()[2].replace(",", ""))
            kib_per_subscriber = (fact.value - idle.value) * 1000 / count
            yield _upper_limit(
                "1,000 idle WebSocket subscribers, additional memory",
                kib_per_subscriber,
                64.0,
                "MiB",
            )
        if name.startswith(EVENT_TO_LAST_SUBSCRIBER):
            count = int(name.removeprefix(EVENT_TO_LAST_SUBSCRIBER).split()[0].replace(",", ""))
            yield _upper_limit(
                f"one event to {count:,} WebSocket subscribers", fact.value, 100.0, "ms"
            )


def _live_goals(facts: Sequence[MeasuredValue]) -> Iterator[Goal]:
    """Yield the goals of event latency, change rate, memory of subscribers and journal cost."""
    for fact in facts:
        many, _, what = fact.name.partition(" ")
        what = what.removeprefix(SUBSCRIBERS_PREFIX)
        if what in EVENT_LATENCY_GOALS:
            yield _upper_limit(fact.name, fact.value, EVENT_LATENCY_GOALS[what], "ms")
        if what.startswith(CHANGE_RATE):
            requested_rate = float(what.removeprefix(f"{CHANGE_RATE}, ").split()[0])
            yield _lower_limit(fact.name, fact.value, requested_rate * MIN_RATE_SHARE, "")
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
        if fact.name.startswith(P99_DURING_LARGE):
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


def _upper_limit(name: str, measured: float, limit: float, unit: str) -> Goal:
    """Return a goal with a highest value."""
    return Goal(name, f"≤ {_quantity(limit, unit)}", _quantity(measured, unit), measured <= limit)


def _lower_limit(name: str, measured: float, limit: float, unit: str) -> Goal:
    """Return a goal with a lowest value."""
    return Goal(name, f"≥ {_quantity(limit, unit)}", _quantity(measured, unit), measured >= limit)


def _quantity(value: float, unit: str) -> str:
    """Return a value with its unit as text: at least four digits, without an exponent."""
    number = f"{value:,.0f}" if value >= MIN_VALUE_WITHOUT_FRACTION else f"{value:.4g}"
    return f"{number} {unit}".strip()
