"""Count what users, domains, clients, sessions and commands do, in the memory of a process.

Only the thread of the event loop counts: a count is a few updates of arrays that dicts hold, about
2 µs for a whole GraphQL operation. Each table has a limited number of keys.

Counts of users are added to their domains and to the platform later, by
`add_counts_to_domains_and_platform`, since the code that counts doesn't know the domain. Settled
counts are also the increments of the statistics that are written next
(resolvers/metrics/worker.py).
"""

from array import array
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from heapq import nsmallest
from time import monotonic_ns
from typing import NamedTuple, TypeAlias

from models.metrics.latency_histogram import BUCKET_COUNT, bucket_of_duration
from models.metrics.names import MetricName, MetricSetKind
from models.observability import metrics
from models.observability.metrics import OTHER

Key = int | str  # id of a user, domain or session; IP address or name of a command
UsageRow: TypeAlias = "array[int]"

MAX_KEYS = 10_000  # of each table
EVICTED_SHARE = 10  # a tenth of the keys is evicted at once, so that few counts cause an eviction
MAX_STEP_ROWS = 20_000  # rows of statistics that wait, while the database can't be written
LOST_INCREMENTS = metrics.counter(
    "merganser_statistics_lost_increments",
    "Increments of statistics that are missing: too many waited while the database was away.",
)
NO_USER, PLATFORM_ID, OTHER_ID = 0, 0, 0

# Positions in a row of a table. Times are milliseconds of the monotonic clock.
USE_COUNT, USED_AT, ACTIVE_AT = 0, 1, 2  # ACTIVE_AT: of a command or sign-in, not of received mail
FIRST_COUNTER = 3
COUNTER_NAMES = (
    MetricName.COMMANDS, MetricName.COMMAND_ERRORS, MetricName.COMMAND_TIME, MetricName.SIGN_INS,
    MetricName.SIGN_IN_FAILURES, MetricName.MESSAGES_IN, MetricName.BYTES_IN,
    MetricName.MESSAGES_JUNK, MetricName.VIRUSES, MetricName.MESSAGES_OUT, MetricName.BYTES_OUT,
    MetricName.MESSAGES_BOUNCED,
)  # fmt: skip
POSITIONS = {name: FIRST_COUNTER + index for index, name in enumerate(COUNTER_NAMES)}
COMMANDS, COMMAND_ERRORS = POSITIONS[MetricName.COMMANDS], POSITIONS[MetricName.COMMAND_ERRORS]
COMMAND_TIME = POSITIONS[MetricName.COMMAND_TIME]  # microseconds
SIGN_INS = POSITIONS[MetricName.SIGN_INS]
SIGN_IN_FAILURES = POSITIONS[MetricName.SIGN_IN_FAILURES]
MESSAGES_IN, BYTES_IN = POSITIONS[MetricName.MESSAGES_IN], POSITIONS[MetricName.BYTES_IN]
MESSAGES_JUNK, VIRUSES = POSITIONS[MetricName.MESSAGES_JUNK], POSITIONS[MetricName.VIRUSES]
MESSAGES_OUT, BYTES_OUT = POSITIONS[MetricName.MESSAGES_OUT], POSITIONS[MetricName.BYTES_OUT]
MESSAGES_BOUNCED = POSITIONS[MetricName.MESSAGES_BOUNCED]
ROW_LENGTH = FIRST_COUNTER + len(COUNTER_NAMES)
# Unsettled rows and rows of statistics have further positions.
API_OPERATIONS, FIRST_BUCKET = ROW_LENGTH, ROW_LENGTH + 1
LONG_ROW_LENGTH = FIRST_BUCKET + BUCKET_COUNT

_EMPTY_ROW: UsageRow = array("q", bytes(8 * ROW_LENGTH))
_EMPTY_LONG_ROW: UsageRow = array("q", bytes(8 * LONG_ROW_LENGTH))


class UsageCaller(NamedTuple):
    """The user, address and session that a command or delivery is counted for."""

    user_id: int = NO_USER
    ip: str | None = None
    session_id: int | None = None


class StepKey(NamedTuple):
    """A row of statistics: the domain, PLATFORM_ID for all, and the start of the step."""

    domain_id: int
    step_start: int  # seconds since 1970


@cache  # few services and verbs
def smtp_command_name(service: str, verb: str) -> str:
    """Return the key of an SMTP or LMTP command, such as `SMTP DATA`."""
    return f"{service} {verb}"


class UsageTable:
    """Rows of counters by key. The row of `other_key` has the sum of all evicted rows."""

    __slots__ = ("max_keys", "other_key", "rows")

    def __init__(self, other_key: Key, max_keys: int = MAX_KEYS) -> None:
        self.rows: dict[Key, UsageRow] = {}
        self.other_key = other_key
        self.max_keys = max_keys

    def add_row(self, key: Key) -> UsageRow:
        """Add an empty row. If the table is full, the least used tenth of the rows is evicted."""
        if len(self.rows) >= self.max_keys:
            self._evict_least_used()
        row = self.rows[key] = _EMPTY_ROW[:]
        return row

    def _evict_least_used(self) -> None:
        other = self.rows.pop(self.other_key, None) or _EMPTY_ROW[:]
        evicted = nsmallest(
            max(2, self.max_keys // EVICTED_SHARE),
            self.rows.items(),
            key=lambda item: (item[1][USE_COUNT], item[1][USED_AT]),
        )
        for key, row in evicted:
            add_row_to(other, row)
            del self.rows[key]
        self.rows[self.other_key] = other


def add_row_to(target: UsageRow, row: UsageRow) -> None:
    """Add the counters of a row to another one, and take over its times if they are later."""
    used_at = max(target[USED_AT], row[USED_AT])
    active_at = max(target[ACTIVE_AT], row[ACTIVE_AT])
    for position in range(min(len(target), len(row))):
        target[position] += row[position]
    target[USED_AT], target[ACTIVE_AT] = used_at, active_at


def milliseconds_now() -> int:
    """Return the time of the monotonic clock in milliseconds."""
    return monotonic_ns() // 1_000_000


class UsageRecorder:
    """The usage counters of a process, and the increments of statistics that are not yet written.

    `applied_resets` has, by the name of a counter, the last reset that this process has applied
    (microseconds since 1970).
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self.max_keys = max_keys
        self.tables = {
            MetricSetKind.DOMAIN: UsageTable(OTHER_ID, max_keys),
            MetricSetKind.USER: UsageTable(OTHER_ID, max_keys),
            MetricSetKind.IP: UsageTable(OTHER, max_keys),
            MetricSetKind.SESSION: UsageTable(OTHER_ID, max_keys),
            MetricSetKind.COMMAND: UsageTable(OTHER, max_keys),
        }
        self.totals: UsageRow = _EMPTY_LONG_ROW[:]
        self.auth_cache_hits = self.auth_cache_misses = 0
        self.applied_resets: dict[str, int] = {}
        self.process_baseline: dict[MetricName, float] = {}  # of counters of the whole process
        self._users = self.tables[MetricSetKind.USER]
        self._addresses = self.tables[MetricSetKind.IP]
        self._sessions = self.tables[MetricSetKind.SESSION]
        self._commands = self.tables[MetricSetKind.COMMAND]
        # by user id, by the negative id of a domain, or PLATFORM_ID
        self._unsettled: dict[int, UsageRow] = {}
        self._step_rows: dict[StepKey, UsageRow] = {}

    def count_api_operation(
        self, name: str, caller: UsageCaller, seconds: float | None, *, has_failed: bool
    ) -> None:
        """Count a GraphQL operation. `seconds` is None for a subscription."""
        microseconds = 0 if seconds is None else int(seconds * 1_000_000)
        row = self._count_command(name, caller, microseconds, has_failed=has_failed)
        row[API_OPERATIONS] += 1
        if seconds is not None:
            row[FIRST_BUCKET + bucket_of_duration(microseconds)] += 1

    def count_smtp_command(
        self, name: str, caller: UsageCaller, seconds: float, *, has_failed: bool
    ) -> None:
        """Count a command of SMTP, LMTP or submission. Its name is a `smtp_command_name`."""
        self._count_command(name, caller, int(seconds * 1_000_000), has_failed=has_failed)

    def _count_command(
        self, name: str, caller: UsageCaller, microseconds: int, *, has_failed: bool
    ) -> UsageRow:
        """Count a command in all tables, and return the unsettled row of its user."""
        now = monotonic_ns() // 1_000_000
        user_id, ip, session_id = caller
        unsettled = self._unsettled.get(user_id) or self._add_unsettled_row(user_id)
        rows = [unsettled, self._commands.rows.get(name) or self._commands.add_row(name)]
        if user_id:
            rows.append(self._users.rows.get(user_id) or self._users.add_row(user_id))
        if ip is not None:
            rows.append(self._addresses.rows.get(ip) or self._addresses.add_row(ip))
        if session_id is not None:
            rows.append(self._sessions.rows.get(session_id) or self._sessions.add_row(session_id))
        for row in rows:
            row[USE_COUNT] += 1
            row[USED_AT] = row[ACTIVE_AT] = now
            row[COMMANDS] += 1
            row[COMMAND_TIME] += microseconds
        if has_failed:
            for row in rows:
                row[COMMAND_ERRORS] += 1
        return unsettled

    def count_sign_in(self, caller: UsageCaller, *, has_failed: bool) -> None:
        """Count a sign-in with a password, or a refused one."""
        position = SIGN_IN_FAILURES if has_failed else SIGN_INS
        for row in self._mark_rows_used_and_return_them(caller.user_id, caller.ip):
            row[position] += 1
            if not has_failed:
                row[ACTIVE_AT] = row[USED_AT]

    def count_verdict(
        self, caller: UsageCaller, domain_id: int | None, *, is_spam: bool, has_virus: bool
    ) -> None:
        """Count the verdict on a message for one account, if it is spam or has a virus."""
        if is_spam or has_virus:
            for row in self._use_rows_of_recipient(caller, domain_id):
                row[MESSAGES_JUNK] += is_spam
                row[VIRUSES] += has_virus

    def count_received_message(
        self, caller: UsageCaller, domain_id: int | None, byte_count: int
    ) -> None:
        """Count a message that a delivery has stored in the account of `caller.user_id`."""
        for row in self._use_rows_of_recipient(caller, domain_id):
            row[MESSAGES_IN] += 1
            row[BYTES_IN] += byte_count

    def count_sent_message(self, user_id: int | None, byte_count: int) -> None:
        """Count a delivery of the queue to one recipient. `user_id` is that of the sender."""
        for row in self._mark_rows_used_and_return_them(user_id or NO_USER, None):
            row[MESSAGES_OUT] += 1
            row[BYTES_OUT] += byte_count

    def count_bounced_message(self, user_id: int | None) -> None:
        """Count a failed delivery of the queue to one recipient, as `count_sent_message`."""
        for row in self._mark_rows_used_and_return_them(user_id or NO_USER, None):
            row[MESSAGES_BOUNCED] += 1

    def _use_rows_of_recipient(self, caller: UsageCaller, domain_id: int | None) -> list[UsageRow]:
        return self._mark_rows_used_and_return_them(
            -(domain_id or PLATFORM_ID), caller.ip, caller.user_id
        )

    def _mark_rows_used_and_return_them(
        self, owner_id: int, ip: str | None, recipient_id: int | None = None
    ) -> list[UsageRow]:
        """Return the rows of an owner and an address, and note that they are used.

        The recipient is a user whose counts belong to the domain that the owner stands for.
        """
        rows = [self._unsettled.get(owner_id) or self._add_unsettled_row(owner_id)]
        if (user_id := owner_id if owner_id > 0 else recipient_id) is not None:
            rows.append(self._users.rows.get(user_id) or self._users.add_row(user_id))
        if ip is not None:
            rows.append(self._addresses.rows.get(ip) or self._addresses.add_row(ip))
        now = milliseconds_now()
        for row in rows:
            row[USE_COUNT] += 1
            row[USED_AT] = now
        return rows

    def _add_unsettled_row(self, owner_id: int) -> UsageRow:
        if len(self._unsettled) >= self.max_keys:  # counted for the platform, not for the domain
            owner_id = PLATFORM_ID
        return self._unsettled.setdefault(owner_id, _EMPTY_LONG_ROW[:])

    def unsettled_user_ids(self) -> list[int]:
        """Return the ids of users with counts that no domain has yet."""
        return [owner_id for owner_id in self._unsettled if owner_id > 0]

    def add_counts_to_domains_and_platform(
        self, domain_ids_by_user: Mapping[int, int | None], step_start: int
    ) -> None:
        """Add the counts of these users, and all counts without a user, to domain and platform.

        `step_start` is the step of the statistics in which they were counted.
        """
        domains = self.tables[MetricSetKind.DOMAIN]
        for owner_id in list(self._unsettled):
            if owner_id > 0 and owner_id not in domain_ids_by_user:
                continue
            row = self._unsettled.pop(owner_id)
            domain_id = -owner_id if owner_id <= 0 else domain_ids_by_user[owner_id] or PLATFORM_ID
            add_row_to(self.totals, row)
            self._add_to_step(StepKey(PLATFORM_ID, step_start), row)
            if domain_id:
                add_row_to(domains.rows.get(domain_id) or domains.add_row(domain_id), row)
                self._add_to_step(StepKey(domain_id, step_start), row)

    def _add_to_step(self, step_key: StepKey, counts: UsageRow) -> None:
        if step_key not in self._step_rows and len(self._step_rows) >= MAX_STEP_ROWS:
            LOST_INCREMENTS.add()
            return
        add_row_to(self._step_rows.setdefault(step_key, _EMPTY_LONG_ROW[:]), counts)

    def mark_step_as_running(self, step_start: int) -> None:
        """Make sure that the platform has a row in this step: a process was running."""
        self._step_rows.setdefault(StepKey(PLATFORM_ID, step_start), _EMPTY_LONG_ROW[:])

    def take_step_rows(self) -> dict[StepKey, UsageRow]:
        """Return the increments of statistics that are not yet written, and forget them."""
        rows, self._step_rows = self._step_rows, {}
        return rows

    def add_step_rows(self, rows: Mapping[StepKey, UsageRow]) -> None:
        """Take back increments that could not be written."""
        for key, row in rows.items():
            self._add_to_step(key, row)

    def unwritten_rows_of_domain(self, domain_id: int) -> Iterable[tuple[StepKey, UsageRow]]:
        """Return the increments of a domain, or of the platform, that are not yet written."""
        return [item for item in self._step_rows.items() if item[0].domain_id == domain_id]

    def active_user_ids(self, within_milliseconds: int) -> Collection[int]:
        """Return the users who have signed in or sent a command within this time."""
        since = milliseconds_now() - within_milliseconds
        return [
            key
            for key, row in self._users.rows.items()
            if isinstance(key, int) and key != OTHER_ID and row[ACTIVE_AT] >= since
        ]

    def set_counters_to_zero(self, names: Collection[MetricName]) -> None:
        """Set these counters of all keys to zero. Statistics are not changed."""
        positions = [POSITIONS[name] for name in names if name in POSITIONS]
        all_rows = [
            self.totals,
            *(row for table in self.tables.values() for row in table.rows.values()),
        ]
        for row in all_rows:
            for position in positions:
                row[position] = 0
