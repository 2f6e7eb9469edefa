"""Checks of whole messages: rebuilt from their blobs, and compared with their rows."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from sqlalchemy import func, literal, select
from sqlmodel import SQLModel, col

from mail.consistency.blob_content import ABOUT, AT_ONCE, content
from mail.consistency.blob_references import under_way
from mail.consistency.checks import Condition, Expression, Look, identity, ranges
from mail.consistency.report import Finding
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.message_layout import open_skeleton, rebuild
from models.events.journal import PLATFORM
from models.files.blobs import Blob, MessageBlob, SubmissionBlob
from models.messages.tables import Message
from models.runtime.environment import Turn, World
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import Picked, insert_or, picked, table_of
from models.submission.tables import Submission

SUBJECT = "blobs"


@dataclass(frozen=True, slots=True)
class Whole:
    """A message rebuilt from its layout and blobs, or the error."""

    tenant_id: int
    size: int = 0
    digest: str | None = None  # None: the message was not rebuilt
    holes: frozenset[str] = frozenset()
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A table with rows that own blobs, and its table of reference rows."""

    table: type[SQLModel]
    reference: type[SQLModel]
    owner: str  # column of `reference_table`
    columns: Sequence[Expression]
    where: Sequence[Condition] = ()
    only: Sequence[Condition] = ()  # restricts the run to some rows


def _holders() -> list[Holder]:
    kept = (col(Message.id), col(Message.user_id), col(Message.blob_id))
    whose = func.coalesce(col(Submission.user_id), PLATFORM).label("user_id")
    sent = (col(Submission.id), whose, col(Submission.blob_id))
    unknown = (literal(None).label("size"), literal(None).label("digest"))
    said = (col(Message.size), col(Message.digest))
    held = picked(QuarantineItem, ("id", "user_id", "blob_id", "size", "digest"))
    return [
        Holder(Message, MessageBlob, "message_id", [*kept, *said]),
        Holder(Submission, SubmissionBlob, "submission_id", [*sent, *unknown], [under_way()]),
        Holder(QuarantineItem, QuarantineBlob, "item_id", held),
    ]


@dataclass(frozen=True, slots=True)
class Trouble:
    """A problem of a message, and its repair in a transaction that locks the stream."""

    finding: Finding
    stream: int
    mend: Callable[[Turn], bool] | None = None


async def letters(look: Look, *, read: bool, repair: bool) -> list[Finding]:
    """Parse the layouts of all messages, also of submissions and quarantine.

    With `rebuilds_messages` the messages are rebuilt and hashed. With `repair` a missing
    reference row is inserted if the blob exists.
    """
    findings: list[Finding] = []
    for holder in _holders():
        async for trouble in _troubles(look, holder, read=read):
            mend = trouble.mend if repair else None
            done = mend is not None and await look.world.apply(mend, trouble.stream)
            findings.append(replace(trouble.finding, repaired=done))
    return findings


async def troubles(look: Look, only: Sequence[Condition], *, read: bool) -> list[Trouble]:
    """Find the problems of some messages, without repair."""
    holder = replace(_holders()[0], only=only)
    return [trouble async for trouble in _troubles(look, holder, read=read)]


async def _troubles(look: Look, holder: Holder, *, read: bool) -> AsyncIterator[Trouble]:
    async for low, high in ranges(look, SUBJECT, holder.table, only=holder.only):
        rows = await _rows(look.world, holder, low, high)
        wholes = await _wholes(look.world, sorted({row.blob_id for row in rows}), read=read)
        known = await _references(look.world, holder, low, high)
        found = {
            row.id: _differences(holder, row, wholes.get(row.blob_id), known[row.id])
            for row in rows
        }
        if not any(found.values()):
            continue
        for row in await _rows(look.world, holder, low, high):  # messages can be deleted in between
            for finding in found.get(row.id, []):
                mend = None
                if finding.repairable:
                    mend = _referring(holder, row, wholes[row.blob_id])
                yield Trouble(finding, row.user_id, mend)


async def _rows(world: World, holder: Holder, low: int, high: int) -> Sequence[Picked]:
    key = identity(holder.table)
    asked = select(*holder.columns).where(key > low, key <= high, *holder.where, *holder.only)
    return await world.database.read(asked.order_by(key))


async def _references(
    world: World, holder: Holder, low: int, high: int
) -> defaultdict[int, set[str]]:
    """The digests of the blobs that each row refers to."""
    table = table_of(holder.reference)
    owner = table.c[holder.owner]
    asked = select(owner.label("owner"), col(Blob.digest))
    asked = asked.join(Blob, col(Blob.id) == table.c.blob_id).where(owner > low, owner <= high)
    if holder.only:
        asked = asked.where(owner.in_(select(identity(holder.table)).where(*holder.only)))
    known: defaultdict[int, set[str]] = defaultdict(set)
    for row in await world.database.read(asked):
        known[row.owner].add(row.digest)
    return known


async def _wholes(world: World, keys: Sequence[int], *, read: bool) -> dict[int, Whole]:
    """Rebuild messages by the ids of their layout blobs; shared ones once."""
    wholes: dict[int, Whole] = {}
    for start in range(0, len(keys), AT_ONCE):
        part = col(Blob.id).in_(keys[start : start + AT_ONCE])
        asked = select(*ABOUT, col(Blob.data)).where(part)
        for row in await world.database.read(asked):
            wholes[row.id] = await _whole(world, row, read=read)
    return wholes


async def _whole(world: World, root: Picked, *, read: bool) -> Whole:
    async def fetch(digest: str) -> bytes:
        asked = select(*ABOUT, col(Blob.data)).where(
            col(Blob.tenant_id) == root.tenant_id, col(Blob.digest) == digest
        )
        rows = await world.database.read(asked)
        if not rows:
            raise KeyError(digest)
        return await content(world, rows[0])

    try:
        skeleton = open_skeleton(await content(world, root))
        holes = frozenset(hole.digest for hole in skeleton.holes)
        if not read:
            return Whole(root.tenant_id, len(skeleton), None, holes)
        size, hashed = 0, sha256()
        async for piece in rebuild(skeleton, fetch):
            size += len(piece)
            hashed.update(piece)
    except KeyError as problem:
        return Whole(root.tenant_id, trouble=f"{problem.args[0]} is missing")
    except Corrupt as problem:
        return Whole(root.tenant_id, trouble=str(problem))
    return Whole(root.tenant_id, size, hashed.hexdigest(), holes)


def _differences(
    holder: Holder, row: Picked, whole: Whole | None, known: set[str]
) -> list[Finding]:
    """The findings of one row. A missing layout blob is found by `reference_checks`."""
    name = f"{holder.table.__tablename__}/{row.id}"
    if whole is None:
        return []
    if whole.trouble:
        return [Finding(SUBJECT, "whole", name, "a message", whole.trouble)]
    found: list[Finding] = []
    if lacking := whole.holes - known:
        have = len(whole.holes) - len(lacking)
        found.append(
            Finding(SUBJECT, "piece_references", name, len(whole.holes), have, repairable=True)
        )
    if row.size is not None and row.size != whole.size:
        found.append(Finding(SUBJECT, "message_size", name, row.size, whole.size))
    if whole.digest and row.digest and row.digest != whole.digest:
        found.append(Finding(SUBJECT, "message_digest", name, row.digest, whole.digest))
    return found


def _referring(holder: Holder, row: Picked, whole: Whole) -> Callable[[Turn], bool]:
    """The function that inserts missing reference rows; it returns true if all blobs exist."""
    pieces = select(col(Blob.id)).where(
        col(Blob.tenant_id) == whole.tenant_id, col(Blob.digest).in_(whole.holes)
    )
    still = select(identity(holder.table)).where(identity(holder.table) == row.id)

    def unit(turn: Turn) -> bool:
        if turn.connection.execute(still).first() is None:
            return False
        ids = turn.connection.execute(pieces.with_for_update(read=True, key_share=True)).scalars()
        rows = [{holder.owner: row.id, "blob_id": key} for key in ids]
        if rows:
            new = insert_or(turn.connection.dialect.name, holder.reference)
            turn.connection.execute(new.on_conflict_do_nothing(), rows)
        return len(rows) == len(whole.holes)

    return unit
