"""Copies of messages for audits, made in the transaction that changes the message.

The copies of an audit form a hash chain: the hash of a copy covers the hash before it and
HASHED_COLUMNS, among them the digest of the bytes. A copy that is changed, inserted or removed
makes all later hashes wrong.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Select, bindparam, exists, func, insert, select, update
from sqlmodel import col

from mail.archives import mbox_format
from mail.storage.blobs import blob_reader
from mail.storage.blobs.damage_check import BUDGET, check_pieces
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.message_layout import open_skeleton, rebuild
from models.admin.audits import Audit, AuditBlob, AuditCopy, AuditRoad
from models.files.blobs import Blob, MessageBlob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Turn, World
from models.store.columns import Instant, Picked, picked

STEP = 1000  # copies that one statement reads
CHECKED = 100  # blob rows that one statement reads, some with their bytes
CLAIMED = (  # what the hash of a copy covers besides the previous hash
    "audit_id", "position", "origin_id", "road", "mailbox_path", "digest", "size",
    "received_at", "envelope_from", "envelope_to", "copied_at",
)  # fmt: skip
SHOWN = (  # columns that a copy takes from the message
    "digest", "size", "blob_id", "received_at", "date", "subject", "from_name", "from_address",
    "to", "cc", "bcc", "message_id", "preview", "attachment_count", "envelope_from",
    "envelope_to",
)  # fmt: skip

_LIVE = col(Audit.ended_at).is_(None), col(Audit.expires) > bindparam("now", type_=Instant)
AUDITED: Any = (  # SQL: true if `user` is audited at `now`
    exists().where(col(Audit.user_id) == bindparam("user"), *_LIVE).correlate(None)
)
_RUNNING = select(*picked(Audit)).where(col(Audit.user_id) == bindparam("user"), *_LIVE)
_ROWS = (
    select(
        *picked(Message, ("id", "archived_at", *SHOWN)),
        func.coalesce(col(Mailbox.path), col(Message.archived_from)).label("mailbox_path"),
    )
    .outerjoin(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
    .where(col(Message.id).in_(bindparam("ids", expanding=True)))
    .order_by(col(Message.id))
)
_NEEDED = select(col(MessageBlob.message_id), col(MessageBlob.blob_id)).where(
    col(MessageBlob.message_id).in_(bindparam("ids", expanding=True))
)
_KNOWN = select(col(AuditCopy.origin_id), col(AuditCopy.digest)).where(
    col(AuditCopy.audit_id) == bindparam("audit"),
    col(AuditCopy.origin_id).in_(bindparam("ids", expanding=True)),
)
_COUNT = (
    update(Audit)
    .where(col(Audit.id) == bindparam("audit"))
    .values(copies=Audit.copies + bindparam("many"), size=Audit.size + bindparam("bytes"))
    .returning(col(Audit.copies), col(Audit.head))
)
_PIECES: Select[*tuple[Any, ...]] = (
    select(*blob_reader.COLUMNS)
    .join(AuditBlob, col(AuditBlob.blob_id) == col(Blob.id))
    .where(col(AuditBlob.copy_id) == bindparam("copy"))
)


def unfinished(owner: Any) -> ColumnElement[bool]:
    """SQL: true if an audit of this user has not yet copied the existing messages."""
    return exists().where(
        col(Audit.user_id) == owner, ~col(Audit.copied), col(Audit.ended_at).is_(None)
    )


def covers(audit: Any, *moments: datetime) -> bool:
    """True if one of the times is in the period of the audit."""
    return any(
        (audit.start is None or audit.start <= at) and (audit.end is None or at < audit.end)
        for at in moments
    )


def stored(turn: Turn, user_id: int, ids: Sequence[int], road: AuditRoad) -> None:
    """Copy messages that were just stored, for all running audits of their user.

    A message is copied if its arrival or the present time is in the period of the audit, so
    that a message with an old date can't escape the audit.
    """
    now, running = turn.world.now(), _running(turn, user_id)
    if running:
        rows = turn.connection.execute(_ROWS, {"ids": list(ids)}).all()
        for audit in running:
            _copy(turn, audit, [row for row in rows if covers(audit, row.received_at, now)], road)


def sent(
    turn: Turn, user_id: int, submission_id: int, facts: Mapping[str, Any], blobs: Sequence[int]
) -> None:
    """Copy a submission that leaves no message in a mailbox."""
    _unfiled(turn, user_id, (submission_id, AuditRoad.SENT), facts, blobs)


def held(
    turn: Turn, user_id: int, item_id: int, facts: Mapping[str, Any], blobs: Sequence[int]
) -> None:
    """Copy a received message that goes to quarantine."""
    _unfiled(turn, user_id, (item_id, AuditRoad.RECEIVED), facts, blobs)


def _unfiled(
    turn: Turn,
    user_id: int,
    what: tuple[int, AuditRoad],
    facts: Mapping[str, Any],
    blobs: Sequence[int],
) -> None:
    """Copy a message that is in no mailbox.

    `origin` is the key of its row and how it came into the audit.
    """
    now, (key, road) = turn.world.now(), what
    for audit in _running(turn, user_id):
        if covers(audit, now):
            shown = {name: facts[name] for name in SHOWN}
            entry = {**shown, "origin_id": key, "mailbox_path": None, "road": road}
            _append(turn, audit, [entry], {key: blobs})


def leaving(turn: Turn, user_id: int, ids: Sequence[int]) -> None:
    """Copy messages before they are removed or replaced, for audits that are not complete yet."""
    late = [audit for audit in _running(turn, user_id) if not audit.copied]
    if late:
        rows = turn.connection.execute(_ROWS, {"ids": list(ids)}).all()
        for audit in late:
            _copy(turn, audit, [row for row in rows if covers(audit, row.received_at)])


def existing(turn: Turn, audit: Picked, ids: Sequence[int]) -> int:
    """Copy the messages that the audit has no copy of and return their number."""
    return _copy(turn, audit, turn.connection.execute(_ROWS, {"ids": list(ids)}).all())


def _running(turn: Turn, user_id: int) -> Sequence[Picked]:
    return turn.connection.execute(_RUNNING, {"user": user_id, "now": turn.world.now()}).all()


def _copy(turn: Turn, audit: Any, rows: Sequence[Picked], road: AuditRoad | None = None) -> int:
    """Copy the messages that the audit has no copy of and return their number."""
    given = {"audit": audit.id, "ids": [row.id for row in rows]}
    known = {(each.origin_id, each.digest) for each in turn.connection.execute(_KNOWN, given)}
    entries = [
        {
            **{name: getattr(row, name) for name in SHOWN},
            "origin_id": row.id,
            "mailbox_path": row.mailbox_path,
            "road": road or (AuditRoad.ARCHIVED if row.archived_at else AuditRoad.STORED),
        }
        for row in rows
        if (row.id, row.digest) not in known  # a draft that was saved again is another message
    ]
    if entries:
        blobs: defaultdict[int, list[int]] = defaultdict(list)
        for row in turn.connection.execute(_NEEDED, {"ids": [one["origin_id"] for one in entries]}):
            blobs[row.message_id].append(row.blob_id)
        _append(turn, audit, entries, blobs)
    return len(entries)


def _append(
    turn: Turn,
    audit: Any,
    entries: Sequence[dict[str, Any]],
    blobs: Mapping[int, Sequence[int]],
) -> None:
    """Append copies to the hash chain of an audit. Locks the row of the audit."""
    size = sum(entry["size"] for entry in entries)
    given = {"audit": audit.id, "many": len(entries), "bytes": size}
    count, head = turn.connection.execute(_COUNT, given).one()
    rows, needs = [], []
    for position, entry in enumerate(entries, count - len(entries) + 1):
        row = {
            **entry,
            "id": turn.world.key(),
            "audit_id": audit.id,
            "position": position,
            "copied_at": turn.world.now(),
        }
        head = row["hash"] = chained(head, row)
        rows.append(row)
        wanted = {*blobs.get(entry["origin_id"], ()), entry["blob_id"]}
        needs += [{"copy_id": row["id"], "blob_id": blob} for blob in sorted(wanted)]
    turn.connection.execute(insert(AuditCopy), rows)
    turn.connection.execute(insert(AuditBlob), needs)
    turn.connection.execute(update(Audit).where(col(Audit.id) == audit.id).values(head=head))


def chained(before: str, row: Mapping[str, Any]) -> str:
    """The hash of a copy, which covers the hash of the previous copy."""
    claimed = {name: _plain(row[name]) for name in CLAIMED}
    text = orjson.dumps([before, claimed], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


async def broken_at(world: World, audit: Picked) -> int | None:
    """Return the first position of the hash chain with a wrong copy, or None if all are right.

    If copies are missing at the end, this is the position after the last copy.
    """
    reached, head = 0, ""
    asked = select(*picked(AuditCopy, {*CLAIMED, "hash"})).where(
        col(AuditCopy.audit_id) == audit.id, col(AuditCopy.position) <= audit.copies
    )
    while True:
        part = asked.where(col(AuditCopy.position) > reached).order_by(col(AuditCopy.position))
        rows = await world.database.read(part.limit(STEP))
        for row in rows:
            head = chained(head, row._asdict())
            reached += 1
            if row.position != reached or row.hash != head:
                return reached
        if len(rows) < STEP:
            return None if (reached, head) == (audit.copies, audit.head) else reached + 1


async def whole(world: World, copy: Picked) -> bytes:
    """Read the message of a copy, byte for byte. Raises CorruptBlob if it is lost or damaged."""

    async def piece(condition: ColumnElement[bool]) -> bytes:
        for row in await world.database.read(_PIECES.where(condition), {"copy": copy.id}):
            return await blob_reader.read(world.blobs, row)
        raise Corrupt(f"The copy {copy.id} of an audit lacks a piece")

    skeleton = open_skeleton(await piece(col(Blob.id) == copy.blob_id))
    parts = rebuild(skeleton, lambda digest: piece(col(Blob.digest) == digest))
    return b"".join([part async for part in parts])


async def check(world: World, audit_id: int, until: int) -> None:
    """Raise CorruptBlob if a blob of the copies up to `last_position` is damaged.

    See `check_blobs` for the limit of bytes that are read.
    """
    mine = (
        select(col(AuditBlob.blob_id))
        .join(AuditCopy, col(AuditCopy.id) == col(AuditBlob.copy_id))
        .where(col(AuditCopy.audit_id) == audit_id, col(AuditCopy.position) <= until)
    )
    asked = select(*blob_reader.COLUMNS).where(col(Blob.id).in_(mine)).order_by(col(Blob.id))
    budget, reached = BUDGET, 0
    while rows := await world.database.read(asked.where(col(Blob.id) > reached).limit(CHECKED)):
        budget = await check_pieces(world.blobs, rows, budget)
        reached = rows[-1].id


async def mbox(world: World, audit_id: int, until: int) -> AsyncGenerator[bytes]:
    """Yield the copies up to `last_position` in mboxrd format, one message at a time."""
    names = ("id", "position", "blob_id", "received_at", "envelope_from", "from_address")
    asked = select(*picked(AuditCopy, names)).where(
        col(AuditCopy.audit_id) == audit_id, col(AuditCopy.position) <= until
    )
    reached = 0
    while True:
        part = asked.where(col(AuditCopy.position) > reached).order_by(col(AuditCopy.position))
        rows = await world.database.read(part.limit(STEP))
        for row in rows:
            sender = row.envelope_from or row.from_address
            raw = await whole(world, row)
            yield await asyncio.to_thread(mbox_format.entry, raw, sender, row.received_at)
            reached = row.position
        if len(rows) < STEP:
            return
