"""The order in which due recipients are attempted: round robin over destinations.

A recipient that is due has `turn_at` set and waits in the line of its destination and rank. A poll
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
from typing import Any

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

from mail.envelope.delivery_jobs import TOGETHER
from models.queue.tables import RANKS, Delivery
from models.runtime.environment import Turn
from models.store.columns import Instant
from models.store.prepared_statements import Prepared, among, number, prepared
from models.submission.tables import Submission

# The rank that is served first at each poll; other ranks use the capacity that it leaves.
FIRST = (0, 1, 0, 1, 0, 1, 2)
LAST = RANKS - 1
LINES = 8  # each line is a separate index range

_NEXT = """(SELECT waiting.domain FROM deliveries AS waiting
 WHERE waiting.turn_at IS NOT NULL AND waiting.rank = {0}.rank AND waiting.domain > {0}.domain
 ORDER BY waiting.domain LIMIT 1)"""
# A loose scan of the index: from each domain to the next one, not from row to row.
_walk: Any = (
    text(
        f"""WITH RECURSIVE begun(rank, wrapped, domain) AS (
 SELECT 0, 0, CAST(:after0 AS VARCHAR) UNION ALL SELECT 0, 1, ''
 UNION ALL SELECT 1, 0, CAST(:after1 AS VARCHAR) UNION ALL SELECT 1, 1, ''
 UNION ALL SELECT 2, 0, CAST(:after2 AS VARCHAR) UNION ALL SELECT 2, 1, ''
), walk(rank, wrapped, domain, nth) AS (
 SELECT begun.rank, begun.wrapped, {_NEXT.format("begun")}, 1 FROM begun
 UNION ALL
 SELECT walk.rank, walk.wrapped, {_NEXT.format("walk")}, walk.nth + 1 FROM walk
 WHERE walk.domain IS NOT NULL AND walk.nth < :most
) SELECT rank, domain FROM walk WHERE domain IS NOT NULL ORDER BY rank, wrapped, nth"""  # noqa: S608 - constant text
    )
    .bindparams(
        *(bindparam(f"after{rank}", type_=String()) for rank in range(RANKS)),
        bindparam("most", type_=Integer()),
    )
    .columns(rank=Integer(), domain=String())
)
_WALK = Prepared(_walk)
_LINE = "FROM deliveries WHERE turn_at IS NOT NULL AND rank = {0} AND domain = {1}"
_LOCK = {"postgresql": " FOR UPDATE SKIP LOCKED"}


@dataclass(slots=True)
class Round:
    """The position of a worker in the lines: the last domain of each rank, and the poll count."""

    after: list[str] = field(default_factory=lambda: [""] * RANKS)
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """The number of recipients and destinations that a poll can take."""

    many: int = 25  # can be exceeded by one SMTP transaction
    lines: int = 20
    last: int = 20  # destinations of the last rank
    busy: Collection[str] = ()  # domains that have all their connections


@dataclass(frozen=True, slots=True)
class Chosen:
    """The recipients to attempt next, and whether more are due."""

    ids: Sequence[int]
    more: bool  # more can be taken at once
    left: bool  # more are due, but exceed the capacity


def choose(turn: Turn, room: Room, round_: Round) -> Chosen:
    """Choose the due recipients to attempt next, and advance the cursor.

    Rows that another worker has locked are skipped.
    """
    joined = _join_lines(turn, room.many)
    begun = list(round_.after)
    lines, left = _lines(turn, room, round_)
    further = left and LINES == len(lines) < room.lines
    if not lines:
        return Chosen([], more=joined >= room.many, left=left)
    each = max(room.many // len(lines), 1)
    given: dict[str, object] = {"each": each + 1}  # the extra row shows whether a message continues
    for nth, (rank, domain) in enumerate(lines):
        given |= {f"rank{nth}": rank, f"domain{nth}": domain}
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for row in turn.fetched(_taking(turn.connection.dialect.name, len(lines)), **given):
        found[row.nth].append(row)
    ids, spare, late = list[int](), TOGETHER, set[int]()
    for nth, (rank, domain) in enumerate(lines):
        rows = _whole(turn, found[nth], each, spare) if nth in found else []
        spare -= max(len(rows) - each, 0)
        ids += [row.id for row in rows]
        if rows:
            begun[rank] = domain
        elif nth in found and rank not in late:  # its line comes first at the next poll
            round_.after[rank] = begun[rank]
            late.add(rank)
    full = any(len(rows) > each for rows in found.values())
    more = joined >= room.many or full or further
    return Chosen(ids, more=more, left=left)


def _whole(turn: Turn, rows: Sequence[Any], each: int, spare: int) -> Sequence[Any]:
    """The first rows of a line, with the other rows of the last message among them.

    These are as many as fill an SMTP transaction. If there are more than `spare_count`, the message
    is left out.
    """
    if len(rows) <= each or rows[each].submission_id != rows[each - 1].submission_id:
        return rows[:each]
    taken, last = rows[:each], rows[each - 1]
    begun = sum(row.submission_id == last.submission_id for row in taken)
    wanted = TOGETHER - begun % TOGETHER
    given = {"at": last.turn_at, "last": last.id, "rank": last.rank, "domain": last.domain}
    asked = _behind(turn.connection.dialect.name)
    others = turn.fetched(asked, most=wanted, submission=last.submission_id, **given)
    if len(others) <= spare:
        return [*taken, *others]
    return [row for row in taken if row.submission_id != last.submission_id]


_FALLEN = (
    select(col(Delivery.id), col(Delivery.submission_id), col(Delivery.next_at))
    .where(
        col(Delivery.next_at) <= bindparam("now", type_=Instant()),
        col(Delivery.next_at).is_not(None),
        col(Delivery.turn_at).is_(None),
        col(Delivery.held_at).is_(None),
        col(Delivery.lease).is_(None),
        ~exists().where(
            col(Submission.id) == col(Delivery.submission_id),
            col(Submission.release_at).is_not(None),
        ),
    )
    .order_by(col(Delivery.next_at), col(Delivery.id))
    .limit(number("many"))
    .with_for_update(skip_locked=True)
)
_DUE = Prepared(_FALLEN)
_PLACE = tuple_(bindparam("at", type_=Instant()), number("last"))
_LATER = _FALLEN.where(tuple_(col(Delivery.next_at), col(Delivery.id)) > _PLACE).subquery()
_DUE_TOO = Prepared(select(_LATER.c.id).where(_LATER.c.submission_id == number("submission")))


@prepared
def _joining(dialect: str) -> UpdateBase:
    """Prepared statement that puts deliveries into the line of their destination."""
    these = update(Delivery).where(among(dialect, col(Delivery.id), "ids"))
    return these.values(turn_at=Delivery.next_at)


def _join_lines(turn: Turn, many: int) -> int:
    """Put recipients that are due into the line of their destination. Returns their number.

    The due recipients of one message join together, up to one SMTP transaction.
    """
    now = turn.world.now()
    rows = turn.fetched(_DUE, now=now, many=many + 1)
    ids = rows.values("id")[:many]
    if len(rows) > many and rows[many].submission_id == rows[many - 1].submission_id:
        last = {"at": rows[many - 1].next_at, "last": rows[many - 1].id}
        key = rows[many].submission_id
        ids += turn.fetched(_DUE_TOO, now=now, many=TOGETHER, submission=key, **last).values("id")
    if ids:
        turn.send([(_joining(turn.connection.dialect.name), {"ids": ids})])
    return len(ids)


def _lines(turn: Turn, room: Room, round_: Round) -> tuple[list[tuple[int, str]], bool]:
    """Choose the (rank, domain) lines to take from, and advance the cursor.

    The second value is True if the capacity excludes a line.
    """
    after = {f"after{rank}": domain for rank, domain in enumerate(round_.after)}
    most = min(room.lines, LINES)
    found: list[list[str]] = [[] for _ in range(RANKS)]
    for row in turn.fetched(_WALK, **after, most=most + len(room.busy) + 1):
        found[row.rank].append(row.domain)
    first = FIRST[round_.looks % len(FIRST)]
    round_.looks += 1
    lines: list[tuple[int, str]] = []
    left, seen = False, set(room.busy)
    for rank in sorted(range(RANKS), key=lambda rank: (rank != first, rank)):
        free = min(most - len(lines), room.last if rank == LAST else most)
        for domain in _unseen(found[rank], seen):
            if free <= 0:
                left = True
                break
            free -= 1
            seen.add(domain)
            lines.append((rank, domain))
            round_.after[rank] = domain
    return lines, left or any(domain in room.busy for some in found for domain in some)


def _unseen(domains: Sequence[str], seen: set[str]) -> Iterator[str]:
    """The domains that are not in `seen_domains`, checked lazily."""
    return (domain for domain in domains if domain not in seen)


@lru_cache(64)
def _taking(dialect: str, many: int) -> Prepared:
    """Prepared statement for the first rows of this number of lines."""
    lock = _LOCK.get(dialect, "")
    parts = (
        f"SELECT {nth} AS nth, line{nth}.* FROM (SELECT id, submission_id, turn_at, rank, domain "  # noqa: S608 - numbers
        f"{_LINE.format(f':rank{nth}', f':domain{nth}')} "
        f"ORDER BY turn_at, id LIMIT :each{lock}) AS line{nth}"
        for nth in range(many)
    )
    ranks = (bindparam(f"rank{nth}", type_=Integer()) for nth in range(many))
    domains = (bindparam(f"domain{nth}", type_=String()) for nth in range(many))
    asked = text(" UNION ALL ".join(parts)).bindparams(*ranks, *domains)
    return _rows(asked.bindparams(bindparam("each", type_=Integer())), nth=Integer())


@lru_cache
def _behind(dialect: str) -> Prepared:
    """Prepared statement for rows of one message after a position in its line."""
    asked = text(
        "SELECT line.* FROM (SELECT id, submission_id, turn_at, rank, domain "  # noqa: S608 - constant text
        f"{_LINE.format(':rank', ':domain')} AND (turn_at, id) > (:at, :last) "
        f"ORDER BY turn_at, id LIMIT :most{_LOCK.get(dialect, '')}) AS line "
        "WHERE line.submission_id = :submission"
    )
    numbers = (bindparam(name, type_=BigInteger()) for name in ("last", "submission", "most"))
    line = bindparam("rank", type_=Integer()), bindparam("domain", type_=String())
    return _rows(asked.bindparams(*numbers, *line, bindparam("at", type_=Instant())))


def _rows(asked: TextClause, **more: Integer) -> Prepared:
    """Prepare a statement that returns the columns of a line."""
    line: Any = asked.columns(
        **more,
        id=BigInteger(),
        submission_id=BigInteger(),
        turn_at=Instant(),
        rank=Integer(),
        domain=String(),
    )
    return Prepared(line)


_NEXT_AT = Prepared(
    select(func.min(col(Delivery.next_at)).label("at")).where(
        col(Delivery.next_at).is_not(None),
        col(Delivery.turn_at).is_(None),
        col(Delivery.held_at).is_(None),
        col(Delivery.lease).is_(None),
    )
)


def waits_until(turn: Turn) -> datetime | None:
    """Time when the next recipient that is in no line is due. None if there is none."""
    at: datetime | None = turn.fetched(_NEXT_AT)[0].at
    return at
