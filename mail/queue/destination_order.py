"""The order in which due recipients are attempted: round robin over destinations.

A recipient that is due has `ready_at` set and waits in the line of its destination and rank. A poll
takes recipients from a limited number of lines and continues after the last of them at the next
poll, so its cost does not depend on the length of the lines. Few recipients are taken at once,
since the transaction blocks other writers. The recipients of one message at one destination are
taken together, up to the limit of one SMTP transaction.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Integer,
    String,
    TextClause,
    bindparam,
    exists,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import UpdateBase
from sqlmodel import col

from mail.envelope.delivery_jobs import MAX_TRANSACTION_RECIPIENTS
from models.queue.tables import RANK_COUNT, QueueEntry
from models.runtime.environment import DatabaseTransaction
from models.store.columns import UtcDateTime
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.submission.tables import Submission

# The rank that is served first at each poll; other ranks use the capacity that it leaves.
FIRST_RANK_BY_POLL = (0, 1, 0, 1, 0, 1, 2)
LAST_RANK = RANK_COUNT - 1
MAX_LINES_PER_POLL = 8  # each line is a separate index range

_NEXT_DOMAIN_SQL = """(SELECT waiting.domain FROM queue_entries AS waiting
 WHERE waiting.ready_at IS NOT NULL AND waiting.rank = {0}.rank AND waiting.domain > {0}.domain
 ORDER BY waiting.domain LIMIT 1)"""
# A loose scan of the index: from each domain to the next one, not from row to row.
_walk_statement: Any = (
    text(
        f"""WITH RECURSIVE begun(rank, wrapped, domain) AS (
 SELECT 0, 0, CAST(:after0 AS VARCHAR) UNION ALL SELECT 0, 1, ''
 UNION ALL SELECT 1, 0, CAST(:after1 AS VARCHAR) UNION ALL SELECT 1, 1, ''
 UNION ALL SELECT 2, 0, CAST(:after2 AS VARCHAR) UNION ALL SELECT 2, 1, ''
), walk(rank, wrapped, domain, nth) AS (
 SELECT begun.rank, begun.wrapped, {_NEXT_DOMAIN_SQL.format("begun")}, 1 FROM begun
 UNION ALL
 SELECT walk.rank, walk.wrapped, {_NEXT_DOMAIN_SQL.format("walk")}, walk.nth + 1 FROM walk
 WHERE walk.domain IS NOT NULL AND walk.nth < :most
) SELECT rank, domain FROM walk WHERE domain IS NOT NULL ORDER BY rank, wrapped, nth"""  # noqa: S608 - constant text
    )
    .bindparams(
        *(bindparam(f"after{rank}", type_=String()) for rank in range(RANK_COUNT)),
        bindparam("most", type_=Integer()),
    )
    .columns(rank=Integer(), domain=String())
)
_SELECT_DOMAINS = PreparedStatement(_walk_statement)
_FROM_LINE_SQL = "FROM queue_entries WHERE ready_at IS NOT NULL AND rank = {0} AND domain = {1}"
_LOCK_SQL = {"postgresql": " FOR UPDATE SKIP LOCKED"}


@dataclass(slots=True)
class LineCursor:
    """The position of a worker in the lines: the last domain of each rank, and the poll count."""

    last_domains: list[str] = field(default_factory=lambda: [""] * RANK_COUNT)
    poll_count: int = 0


@dataclass(frozen=True, slots=True)
class ClaimCapacity:
    """The number of recipients and destinations that a poll can take."""

    max_recipients: int = 25  # can be exceeded by one SMTP transaction
    max_destinations: int = 20
    max_last_rank: int = 20  # destinations of the last rank
    busy_domains: Collection[str] = ()  # domains that have all their connections


@dataclass(frozen=True, slots=True)
class ChosenRecipients:
    """The recipients to attempt next, and whether more are due."""

    delivery_ids: Sequence[int]
    has_more: bool  # more can be taken at once
    has_more_blocked: bool  # more are due, but exceed the capacity


def line_up_due_and_choose_recipients(
    transaction: DatabaseTransaction, capacity: ClaimCapacity, cursor: LineCursor
) -> ChosenRecipients:
    """Choose the due recipients to attempt next, and advance the cursor.

    Rows that another worker has locked are skipped.
    """
    joined_count = _move_due_into_lines(transaction, capacity.max_recipients)
    domains_before = list(cursor.last_domains)
    lines, has_blocked = _choose_lines_and_advance_cursor(transaction, capacity, cursor)
    has_more_lines = has_blocked and MAX_LINES_PER_POLL == len(lines) < capacity.max_destinations
    if not lines:
        return ChosenRecipients(
            [], has_more=joined_count >= capacity.max_recipients, has_more_blocked=has_blocked
        )
    per_line = max(capacity.max_recipients // len(lines), 1)
    # the extra row shows whether a message continues
    parameters: dict[str, object] = {"each": per_line + 1}
    for nth, (rank, domain) in enumerate(lines):
        parameters |= {f"rank{nth}": rank, f"domain{nth}": domain}
    rows_by_line: defaultdict[int, list[Any]] = defaultdict(list)
    for row in transaction.fetch_rows(
        _select_first_rows(transaction.connection.dialect.name, len(lines)), **parameters
    ):
        rows_by_line[row.nth].append(row)
    ids, spare_count, skipped_ranks = list[int](), MAX_TRANSACTION_RECIPIENTS, set[int]()
    for nth, (rank, domain) in enumerate(lines):
        rows = (
            _with_last_message_whole_or_omitted(
                transaction, rows_by_line[nth], per_line, spare_count
            )
            if nth in rows_by_line
            else []
        )
        spare_count -= max(len(rows) - per_line, 0)
        ids += [row.id for row in rows]
        if rows:
            domains_before[rank] = domain
        elif (
            nth in rows_by_line and rank not in skipped_ranks
        ):  # its line comes first at the next poll
            cursor.last_domains[rank] = domains_before[rank]
            skipped_ranks.add(rank)
    has_longer_line = any(len(rows) > per_line for rows in rows_by_line.values())
    has_more = joined_count >= capacity.max_recipients or has_longer_line or has_more_lines
    return ChosenRecipients(ids, has_more=has_more, has_more_blocked=has_blocked)


def _with_last_message_whole_or_omitted(
    transaction: DatabaseTransaction, rows: Sequence[Any], limit: int, spare_count: int
) -> Sequence[Any]:
    """The first rows of a line, with the other rows of the last message among them.

    These are as many as fill an SMTP transaction. If there are more than `spare_count`, the message
    is left out.
    """
    if len(rows) <= limit or rows[limit].submission_id != rows[limit - 1].submission_id:
        return rows[:limit]
    first_rows, last_row = rows[:limit], rows[limit - 1]
    taken_count = sum(row.submission_id == last_row.submission_id for row in first_rows)
    missing_count = MAX_TRANSACTION_RECIPIENTS - taken_count % MAX_TRANSACTION_RECIPIENTS
    position = {
        "at": last_row.ready_at,
        "last": last_row.id,
        "rank": last_row.rank,
        "domain": last_row.domain,
    }
    statement = _select_following_rows(transaction.connection.dialect.name)
    other_rows = transaction.fetch_rows(
        statement, most=missing_count, submission=last_row.submission_id, **position
    )
    if len(other_rows) <= spare_count:
        return [*first_rows, *other_rows]
    return [row for row in first_rows if row.submission_id != last_row.submission_id]


_select_due = (
    select(col(QueueEntry.id), col(QueueEntry.submission_id), col(QueueEntry.next_at))
    .where(
        col(QueueEntry.next_at) <= bindparam("now", type_=UtcDateTime()),
        col(QueueEntry.next_at).is_not(None),
        col(QueueEntry.ready_at).is_(None),
        col(QueueEntry.held_at).is_(None),
        col(QueueEntry.lease).is_(None),
        ~exists().where(
            col(Submission.id) == col(QueueEntry.submission_id),
            col(Submission.release_at).is_not(None),
        ),
    )
    .order_by(col(QueueEntry.next_at), col(QueueEntry.id))
    .limit(integer_parameter("many"))
    .with_for_update(skip_locked=True)
)
_SELECT_DUE = PreparedStatement(_select_due)
_POSITION = tuple_(bindparam("at", type_=UtcDateTime()), integer_parameter("last"))
_LATER_DUE = _select_due.where(
    tuple_(col(QueueEntry.next_at), col(QueueEntry.id)) > _POSITION
).subquery()
_SELECT_LATER_DUE = PreparedStatement(
    select(_LATER_DUE.c.id).where(_LATER_DUE.c.submission_id == integer_parameter("submission"))
)


@prepare_cached
def _move_into_lines_statement(dialect: str) -> UpdateBase:
    """Prepared statement that puts deliveries into the line of their destination."""
    deliveries = update(QueueEntry).where(is_in_parameter(dialect, col(QueueEntry.id), "ids"))
    return deliveries.values(ready_at=QueueEntry.next_at)


def _move_due_into_lines(transaction: DatabaseTransaction, max_recipients: int) -> int:
    """Put recipients that are due into the line of their destination. Returns their number.

    The due recipients of one message join together, up to one SMTP transaction.
    """
    now = transaction.environment.now()
    rows = transaction.fetch_rows(_SELECT_DUE, now=now, many=max_recipients + 1)
    ids = rows.raw_values("id")[:max_recipients]
    if (
        len(rows) > max_recipients
        and rows[max_recipients].submission_id == rows[max_recipients - 1].submission_id
    ):
        position = {"at": rows[max_recipients - 1].next_at, "last": rows[max_recipients - 1].id}
        submission_id = rows[max_recipients].submission_id
        ids += transaction.fetch_rows(
            _SELECT_LATER_DUE,
            now=now,
            many=MAX_TRANSACTION_RECIPIENTS,
            submission=submission_id,
            **position,
        ).raw_values("id")
    if ids:
        transaction.execute_statements(
            [(_move_into_lines_statement(transaction.connection.dialect.name), {"ids": ids})]
        )
    return len(ids)


class _ChosenLines(NamedTuple):
    """Queue lines to take entries from, and whether the capacity excludes another line."""

    ranks_and_domains: list[tuple[int, str]]
    is_line_excluded: bool


def _choose_lines_and_advance_cursor(
    transaction: DatabaseTransaction, capacity: ClaimCapacity, cursor: LineCursor
) -> _ChosenLines:
    """Choose the (rank, domain) lines to take from, and advance the cursor.

    The second value is True if the capacity excludes a line.
    """
    after = {f"after{rank}": domain for rank, domain in enumerate(cursor.last_domains)}
    max_lines = min(capacity.max_destinations, MAX_LINES_PER_POLL)
    domains_by_rank: list[list[str]] = [[] for _ in range(RANK_COUNT)]
    for row in transaction.fetch_rows(
        _SELECT_DOMAINS, **after, most=max_lines + len(capacity.busy_domains) + 1
    ):
        domains_by_rank[row.rank].append(row.domain)
    first_rank = FIRST_RANK_BY_POLL[cursor.poll_count % len(FIRST_RANK_BY_POLL)]
    cursor.poll_count += 1
    lines: list[tuple[int, str]] = []
    has_blocked, seen_domains = False, set(capacity.busy_domains)
    for rank in sorted(range(RANK_COUNT), key=lambda rank: (rank != first_rank, rank)):
        free_count = min(
            max_lines - len(lines), capacity.max_last_rank if rank == LAST_RANK else max_lines
        )
        for domain in _unseen_domains(domains_by_rank[rank], seen_domains):
            if free_count <= 0:
                has_blocked = True
                break
            free_count -= 1
            seen_domains.add(domain)
            lines.append((rank, domain))
            cursor.last_domains[rank] = domain
    return _ChosenLines(
        lines,
        has_blocked
        or any(
            domain in capacity.busy_domains for domains in domains_by_rank for domain in domains
        ),
    )


def _unseen_domains(domains: Sequence[str], seen_domains: set[str]) -> Iterator[str]:
    """The domains that are not in `seen_domains`, checked lazily."""
    return (domain for domain in domains if domain not in seen_domains)


@lru_cache(64)
def _select_first_rows(dialect: str, line_count: int) -> PreparedStatement:
    """Prepared statement for the first rows of this number of lines."""
    lock = _LOCK_SQL.get(dialect, "")
    parts = (
        f"SELECT {nth} AS nth, line{nth}.* FROM (SELECT id, submission_id, ready_at, rank, domain "  # noqa: S608 - numbers
        f"{_FROM_LINE_SQL.format(f':rank{nth}', f':domain{nth}')} "
        f"ORDER BY ready_at, id LIMIT :each{lock}) AS line{nth}"
        for nth in range(line_count)
    )
    ranks = (bindparam(f"rank{nth}", type_=Integer()) for nth in range(line_count))
    domains = (bindparam(f"domain{nth}", type_=String()) for nth in range(line_count))
    statement = text(" UNION ALL ".join(parts)).bindparams(*ranks, *domains)
    return _prepare_line_rows(
        statement.bindparams(bindparam("each", type_=Integer())), nth=Integer()
    )


@lru_cache
def _select_following_rows(dialect: str) -> PreparedStatement:
    """Prepared statement for rows of one message after a position in its line."""
    statement = text(
        "SELECT line.* FROM (SELECT id, submission_id, ready_at, rank, domain "  # noqa: S608 - constant text
        f"{_FROM_LINE_SQL.format(':rank', ':domain')} AND (ready_at, id) > (:at, :last) "
        f"ORDER BY ready_at, id LIMIT :most{_LOCK_SQL.get(dialect, '')}) AS line "
        "WHERE line.submission_id = :submission"
    )
    numbers = (bindparam(name, type_=BigInteger()) for name in ("last", "submission", "most"))
    line_parameters = bindparam("rank", type_=Integer()), bindparam("domain", type_=String())
    return _prepare_line_rows(
        statement.bindparams(*numbers, *line_parameters, bindparam("at", type_=UtcDateTime()))
    )


def _prepare_line_rows(statement: TextClause, **extra_columns: Integer) -> PreparedStatement:
    """Prepare a statement that returns the columns of a line."""
    line: Any = statement.columns(
        **extra_columns,
        id=BigInteger(),
        submission_id=BigInteger(),
        ready_at=UtcDateTime(),
        rank=Integer(),
        domain=String(),
    )
    return PreparedStatement(line)


_SELECT_NEXT_DUE_AT = PreparedStatement(
    select(func.min(col(QueueEntry.next_at)).label("at")).where(
        col(QueueEntry.next_at).is_not(None),
        col(QueueEntry.ready_at).is_(None),
        col(QueueEntry.held_at).is_(None),
        col(QueueEntry.lease).is_(None),
    )
)


def next_due_at_outside_lines(transaction: DatabaseTransaction) -> datetime | None:
    """Time when the next recipient that is in no line is due. None if there is none."""
    due_at: datetime | None = transaction.fetch_rows(_SELECT_NEXT_DUE_AT)[0].at
    return due_at
