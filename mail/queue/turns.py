"""Whose turn it is: each destination after the other, and of each what waits the longest.

What is due stands in a line for its destination and rank. A look takes from as many lines as
it has room for and goes on behind the last of them, so it costs the same however long a line is,
and however many are passed over.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Integer, String, TextClause, bindparam, func, select, text, update
from sqlmodel import col

from models.queue import RANKS, Delivery
from models.world import Turn

# Which rank goes first, look after look; the others have what room it leaves.
FIRST = (0, 1, 0, 1, 0, 1, 2)
LAST = RANKS - 1

_NEXT = """(SELECT waiting.domain FROM deliveries AS waiting
 WHERE waiting.turn_at IS NOT NULL AND waiting.rank = {0}.rank AND waiting.domain > {0}.domain
 ORDER BY waiting.domain LIMIT 1)"""
# A loose scan of the index: from each domain to the next one, not from row to row.
_WALK = text(
    f"""WITH RECURSIVE begun(rank, wrapped, domain) AS (
 SELECT 0, 0, CAST(:after0 AS VARCHAR) UNION ALL SELECT 0, 1, ''
 UNION ALL SELECT 1, 0, CAST(:after1 AS VARCHAR) UNION ALL SELECT 1, 1, ''
 UNION ALL SELECT 2, 0, CAST(:after2 AS VARCHAR) UNION ALL SELECT 2, 1, ''
), walk(rank, wrapped, domain, nth) AS (
 SELECT begun.rank, begun.wrapped, {_NEXT.format("begun")}, 1 FROM begun
 UNION ALL
 SELECT walk.rank, walk.wrapped, {_NEXT.format("walk")}, walk.nth + 1 FROM walk
 WHERE walk.domain IS NOT NULL AND walk.nth < :most
) SELECT rank, domain FROM walk WHERE domain IS NOT NULL ORDER BY rank, wrapped, nth"""  # noqa: S608 - our own words
).bindparams(
    *(bindparam(f"after{rank}", type_=String()) for rank in range(RANKS)),
    bindparam("most", type_=Integer()),
)


@dataclass(slots=True)
class Round:
    """How far the looks of a worker have come: of each rank, the last domain; and how many."""

    after: list[str] = field(default_factory=lambda: [""] * RANKS)
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What may begin now."""

    many: int = 100  # recipients
    lines: int = 20  # destinations
    last: int = 20  # of these, of the last rank
    busy: Collection[str] = ()  # destinations that have enough


@dataclass(frozen=True, slots=True)
class Chosen:
    """Recipients whose turn it is, and whether there are more."""

    ids: Sequence[int]
    more: bool  # that could begin at once
    left: bool  # for which there is no room now


def choose(turn: Turn, room: Room, round_: Round) -> Chosen:
    """Who is next. What another worker is just taking is passed over."""
    joined = _join_lines(turn, room.many)
    lines, left = _lines(turn, room, round_)
    if not lines:
        return Chosen([], more=joined == room.many, left=left)
    each = max(room.many // len(lines), 1)
    given: dict[str, object] = {"each": each}
    for nth, (rank, domain) in enumerate(lines):
        given |= {f"rank{nth}": rank, f"domain{nth}": domain}
    asked = _taking(turn.connection.dialect.name, len(lines))
    rows = turn.connection.execute(asked, given).all()
    full = [0] * len(lines)
    for row in rows:
        full[row.nth] += 1
    more = joined == room.many or any(many == each for many in full)
    return Chosen([row.id for row in rows], more=more, left=left)


def _join_lines(turn: Turn, many: int) -> int:
    """Let what is due join the line of its destination; how many did."""
    due = (
        select(col(Delivery.id))
        .where(
            col(Delivery.next_at) <= turn.world.now(),
            col(Delivery.next_at).is_not(None),
            col(Delivery.turn_at).is_(None),
            col(Delivery.held_at).is_(None),
        )
        .order_by(col(Delivery.next_at), col(Delivery.id))
        .limit(many)
        .with_for_update(skip_locked=True)
    )
    ids = turn.connection.execute(due).scalars().all()
    if ids:
        these = update(Delivery).where(col(Delivery.id).in_(ids))
        turn.connection.execute(these.values(turn_at=Delivery.next_at))
    return len(ids)


def _lines(turn: Turn, room: Room, round_: Round) -> tuple[list[tuple[int, str]], bool]:
    """The lines to take from, and whether there is one for which there is no room."""
    after = {f"after{rank}": domain for rank, domain in enumerate(round_.after)}
    most = room.lines + len(room.busy) + 1
    found: list[list[str]] = [[] for _ in range(RANKS)]
    for row in turn.connection.execute(_WALK, {**after, "most": most}):
        found[row.rank].append(row.domain)
    first = FIRST[round_.looks % len(FIRST)]
    round_.looks += 1
    lines: list[tuple[int, str]] = []
    left, seen = False, set(room.busy)
    for rank in sorted(range(RANKS), key=lambda rank: (rank != first, rank)):
        free = min(room.lines - len(lines), room.last if rank == LAST else room.lines)
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
    return (domain for domain in domains if domain not in seen)


@lru_cache(64)
def _taking(dialect: str, many: int) -> TextClause:
    """The first of so many lines each."""
    lock = " FOR UPDATE SKIP LOCKED" if dialect == "postgresql" else ""
    parts = (
        f"SELECT id, {nth} AS nth FROM (SELECT id FROM deliveries "  # noqa: S608 - numbers
        f"WHERE turn_at IS NOT NULL AND rank = :rank{nth} AND domain = :domain{nth} "
        f"ORDER BY turn_at, id LIMIT :each{lock}) AS line{nth}"
        for nth in range(many)
    )
    return text(" UNION ALL ".join(parts))


def waits_until(turn: Turn) -> datetime | None:
    """When the next one is due that stands in no line; None where there is none."""
    asked = select(func.min(col(Delivery.next_at))).where(
        col(Delivery.next_at).is_not(None),
        col(Delivery.turn_at).is_(None),
        col(Delivery.held_at).is_(None),
    )
    at: datetime | None = turn.connection.execute(asked).scalar()
    return at
