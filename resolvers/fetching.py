"""What a run of a connector does: folder by folder, what is new elsewhere is brought here.

What a unit stores, and what it notes of the source, are one. So a run that is killed goes on where
its last unit ended, nothing comes twice, and nothing is deleted elsewhere that is not safe here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import delivery
from mail.connectors import folders
from mail.connectors.folders import Mapped, Mapping_
from mail.connectors.imap import Imap
from mail.connectors.servers import Head, Listed, Opened
from mail.connectors.sessions import Session, session
from mail.delivery import Letter
from mail.expressions import Expression
from mail.found import Found, dated
from mail.outward import Gate
from models.columns import Picked, picked
from models.connectors import ConnectorFolder, ConnectorMessage, Protocol
from models.errors import OverQuota
from models.mailboxes import SpecialUse
from models.messages import Message
from resolvers import (
    bringing,
    connectorsecrets,
    flagging,
    importing,
    mailboxes,
    moves,
    sifting,
)
from resolvers.connectoroptions import Chosen
from resolvers.importing import Import, Ready
from resolvers.moves import Changes
from resolvers.where import MessageWhere

if TYPE_CHECKING:
    from resolvers.connectorruns import Run

GONE = "gone elsewhere"
IGNORED = frozenset({"\\Recent", "\\Deleted"})
DELETED_AT_ONCE = 500


@dataclass
class Tally:
    """What a run has done so far."""

    seen: int = 0
    imported: int = 0
    skipped: int = 0
    deleted_remote: int = 0
    bytes: int = 0


@dataclass
class Place:
    """A folder elsewhere that is open, and what is known of it."""

    id: int
    mapped: Mapped
    opened: Opened
    known: dict[str, Picked]  # by mark
    before: dict[str, list[int | None]]  # of marks that no longer count, by digest: messages here
    modseq: int  # whose flags are here


@dataclass
class Fetch:
    """A run that is signed in."""

    run: "Run"
    there: Session
    work: Import
    options: Chosen
    tally: Tally = field(default_factory=Tally)
    digests: dict[int, set[str]] = field(default_factory=dict)  # what folders here have
    everywhere: set[str] | None = None  # what has been fetched from any folder
    where: MessageWhere | None = None  # which messages a single import brings; None: all

    @property
    def connector(self) -> Picked:
        """Its row."""
        return self.run.connector

    async def noted(self, session: AsyncSession, **more: Any) -> None:
        """Note how far it has come."""
        counts = {name: getattr(self.tally, name) for name in self.tally.__dataclass_fields__}
        await self.run.hold(session, stage=self.there.line.stage, **counts, **more)


async def fetch(run: "Run", gate: Gate, trust: Any) -> None:
    """Bring what is new; Failure where the source does not do what it should, Refused."""
    ctx, connector = run.ctx, run.connector
    if connector.protocol in (Protocol.ARCHIVE, Protocol.USER):
        await bringing.bring(run)
        return
    server = await connectorsecrets.server_of(ctx.world, connector, gate)
    run.say(f"connecting to {server.host}, port {server.port}")
    largest = ctx.world.options.message_max
    async with session(server, gate, largest, trust) as there:
        run.say("signed in")
        work = await importing.opened(ctx, connector.user_id, None, run.row.id)
        work.dedupe, work.subscribe = False, connector.subscribe_all
        it = Fetch(run, there, work, run.options, where=bringing.order_of(connector).asked)
        listed = await there.do(there.remote.folders)
        todo = await _mapped(it, listed)
        run.say(f"{len(listed)} folders, {len(todo)} of them are fetched")
        removed: list[tuple[Place, list[str]]] = []
        for one in todo:
            place = await _folder(it, one)
            if gone := await _deleted(it, place):
                removed.append((place, gone))
    for place, marks in removed:  # POP3 deletes at the end of a session
        await _forget(it, place, marks)
    told = it.tally
    run.say(f"{told.seen} seen, {told.imported} brought, {told.skipped} left out")
    async with ctx.write(connector.user_id) as unit:
        await it.noted(unit, folder=None)


async def _mapped(it: Fetch, listed: Sequence[Listed]) -> list[Mapped]:
    row = it.connector
    roles = await mailboxes.all_of(it.run.ctx, row.user_id, {"special_use"})
    here = {box.special_use: box.path for box in roles if box.special_use is not None}
    below = row.target_folder or None
    how = Mapping_(
        Expression(row.exclude) if row.exclude else None,
        None,
        [(Expression(one["pattern"]), one["replacement"]) for one in row.folder_rewrites],
        row.auto_map_folders,
        None if below == "INBOX" and not row.once else below,
    )
    here.pop(SpecialUse.INBOX, None)
    return folders.mapped(listed, how, here)


async def _folder(it: Fetch, one: Mapped) -> Place:
    """Bring what is new in a folder, and what has become otherwise."""
    name = folders.remote(one.listed)
    writes = it.connector.source_retention is not None and not it.run.trial
    there = it.there
    opened = await there.do(lambda: there.remote.open(one.listed, write=writes))
    place = await _place(it, one, opened)
    marks = await there.do(there.remote.marks)
    fresh = [mark for mark in marks if mark not in place.known]
    heads = await there.do(there.remote.heads, fresh)
    wanted = [head for head in heads if _wanted(it, head)]
    it.tally.seen += len(marks)
    it.tally.skipped += len(fresh) - len(wanted)
    if fresh:
        it.run.say(f"{name}: {len(marks)} messages, {len(wanted)} to fetch")
    if it.run.trial:
        it.tally.imported += len(wanted)
        return place
    async for some in there.bodies(wanted):
        await _bring(it, place, some)
    await _flags(it, place, marks)
    if it.connector.mirror_deletes:
        await _mirror(it, place, set(marks))
    return place


async def _place(it: Fetch, one: Mapped, opened: Opened) -> Place:
    """What is known of a folder. Where its numbers count no more, content tells what is known."""
    ctx, name = it.run.ctx, one.listed.raw.decode("latin-1")
    async with ctx.write(it.connector.user_id) as unit:
        connection = await unit.connection()
        mine = (
            col(ConnectorFolder.connector_id) == it.connector.id,
            col(ConnectorFolder.name) == name,
        )
        asked = select(*picked(ConnectorFolder)).where(*mine)
        row = (await connection.execute(asked)).first()
        key = ctx.world.key() if row is None else row.id
        if row is None:
            new = {"id": key, "connector_id": it.connector.id, "name": name, "modseq": 0}
            await connection.execute(
                insert(ConnectorFolder), [{**new, "validity": opened.validity}]
            )
        elif row.validity != opened.validity:
            it.run.say(f"{folders.remote(one.listed)}: the server has numbered it anew")
            old = col(ConnectorMessage.folder_id) == key, ~col(ConnectorMessage.mark).contains(":")
            renamed = f"{row.validity}:" + col(ConnectorMessage.mark)
            await connection.execute(update(ConnectorMessage).where(*old).values(mark=renamed))
            again = update(ConnectorFolder).where(col(ConnectorFolder.id) == key)
            await connection.execute(again.values(validity=opened.validity, modseq=0))
        await it.noted(unit, folder=folders.remote(one.listed))
    same = row is not None and row.validity == opened.validity
    known = await ctx.read(
        select(*picked(ConnectorMessage)).where(col(ConnectorMessage.folder_id) == key)
    )
    before: dict[str, list[int | None]] = {}
    for each in known:
        if ":" in each.mark:
            before.setdefault(each.digest, []).append(each.message_id)
    numbered = {each.mark: each for each in known if ":" not in each.mark}
    return Place(key, one, opened, numbered, before, row.modseq if row and same else 0)


def _wanted(it: Fetch, head: Head) -> bool:
    row, now = it.connector, it.run.ctx.world.now()
    if head.size > it.run.ctx.world.options.message_max:
        it.run.say(f"a message of {head.size} bytes is left out: it is too large")
        return False
    if not it.options.min_size <= head.size <= (it.options.max_size or head.size):
        return False
    if head.received_at is None:
        return True
    age = (now - head.received_at).total_seconds()
    return it.options.min_age <= age and (row.max_age is None or age <= row.max_age)


# ---------------------------------------------------------------- bringing


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that was fetched: to be stored, or left out, perhaps for one that is here."""

    head: Head
    size: int
    digest: str
    made: Ready | None = None
    here: int | None = None


async def _bring(it: Fetch, place: Place, some: Sequence[tuple[Head, bytes]]) -> None:
    """Store some messages; OverQuota, once there is room for no more of them."""
    read = [await _taken(it, place, head, raw) for head, raw in some]
    taken = [one for one in read if one]
    it.tally.skipped += len(read) - len(taken)
    try:
        await _store(it, place, taken)
    except OverQuota:
        if len(taken) == 1:
            raise
        for one in taken:  # not read anew: it is known by now
            await _store(it, place, [one])


async def _taken(it: Fetch, place: Place, head: Head, raw: bytes) -> Taken | None:
    """What becomes of a message; None where it cannot be stored."""
    found, letter = _found(place, head, raw), await delivery.read(raw)
    bare = Taken(head, len(raw), letter.digest)
    if it.where is not None and not await _asked(it, place, found, letter):
        return bare
    made = await importing.read(it.work, found, letter)
    if made is None:
        return None
    earlier = await _earlier(it, place, made)
    return replace(bare, made=made) if earlier is None else replace(bare, here=earlier[0])


async def _store(it: Fetch, place: Place, taken: Sequence[Taken]) -> None:
    """Store these, and note what has been fetched: in one unit."""
    ready = [one.made for one in taken if one.made]
    kept = await importing.keep(it.work, ready)
    ctx, before = it.run.ctx, it.tally
    it.tally = replace(
        before,
        imported=before.imported + len(ready),
        skipped=before.skipped + len(taken) - len(ready),
        bytes=before.bytes + sum(one.size for one in taken),
    )
    try:
        async with ctx.write(it.connector.user_id) as unit:
            placed = iter(await importing.put(it.work, unit, ready, kept) if ready else [])
            rows = [
                _row(it, place, one, next(placed).message_id if one.made else one.here)
                for one in taken
            ]
            if rows:
                await (await unit.connection()).execute(insert(ConnectorMessage), rows)
            await it.noted(unit)
    except OverQuota:
        it.tally = before
        raise


def _found(place: Place, head: Head, raw: bytes) -> Found:
    flags = tuple(sorted(head.flags - IGNORED))
    received = head.received_at or dated(raw[: raw.find(b"\r\n\r\n") + 2])
    name = f"{folders.remote(place.mapped.listed)}, {head.mark}"
    return Found(name, place.mapped.path, "", 0, raw, received_at=received, flags=flags)


async def _asked(it: Fetch, place: Place, found: Found, letter: Letter) -> bool:
    """Whether a message is one of those that a single import brings; folders are those there."""
    there = replace(found, folder=folders.remote(place.mapped.listed))
    where = it.where or MessageWhere()
    return await sifting.fits(where, there, letter, it.run.ctx.world.now())


def _row(it: Fetch, place: Place, one: Taken, message_id: int | None) -> dict[str, Any]:
    return {
        "folder_id": place.id,
        "mark": one.head.mark,
        "digest": one.digest,
        "message_id": message_id,
        "flags": _joined(one.head.flags),
        "fetched_at": it.run.ctx.world.now(),
        "removed": False,
    }


def _joined(flags: frozenset[str]) -> str:
    return " ".join(sorted(flags - IGNORED))


async def _earlier(it: Fetch, place: Place, made: Ready) -> tuple[int | None] | None:
    """The message here that this is, where it is known by its content; None: it is new."""
    digest = made.letter.digest
    if known := place.before.get(digest):
        return (known.pop(),)
    if it.connector.skip_cross_duplicates:
        if it.everywhere is None:
            it.everywhere = await _fetched(it)
        if digest in it.everywhere:
            return (None,)
        it.everywhere.add(digest)
    if it.connector.remove_duplicates:
        there = await _there(it, made.box)
        if digest in there:
            return (None,)
        there.add(digest)
    return None


async def _fetched(it: Fetch) -> set[str]:
    mine = select(col(ConnectorFolder.id)).where(
        col(ConnectorFolder.connector_id) == it.connector.id
    )
    asked = select(col(ConnectorMessage.digest)).where(col(ConnectorMessage.folder_id).in_(mine))
    return {row.digest for row in await it.run.ctx.read(asked)}


async def _there(it: Fetch, box: int) -> set[str]:
    if box not in it.digests:
        asked = select(col(Message.digest)).where(
            col(Message.mailbox_id) == box, col(Message.archived_at).is_(None)
        )
        it.digests[box] = {row.digest for row in await it.run.ctx.read(asked)}
    return it.digests[box]


# ---------------------------------------------------------------- what has become otherwise


async def _flags(it: Fetch, place: Place, marks: Sequence[str]) -> None:
    """Give our messages the flags that were set or taken away elsewhere since the last run."""
    remote, newest = it.there.remote, place.opened.modseq
    if not isinstance(remote, Imap) or not place.known or it.options.no_flags:
        return
    if newest and newest == place.modseq:
        return
    if newest and place.modseq:
        told = await it.there.do(remote.changed, place.modseq)
    else:
        still = [mark for mark in marks if mark in place.known]
        told = await it.there.do(remote.flags, still)
    groups: dict[tuple[frozenset[str], frozenset[str]], list[Picked]] = {}
    changed: dict[str, str] = {}
    for mark, flags in told.items():
        row = place.known.get(mark)
        if row is None or row.flags == _joined(flags):
            continue
        was, now = frozenset(row.flags.split()), flags - IGNORED
        changed[mark] = _joined(flags)
        if row.message_id is not None:
            groups.setdefault((now - was, was - now), []).append(row)
    ctx = it.run.ctx
    async with ctx.write(it.connector.user_id) as unit:
        for (on, off), rows in groups.items():
            keys = [int(row.message_id) for row in rows]
            found = await moves.chosen(unit, keys)
            await flagging.change(ctx, unit, found, _changes(on, off))
        connection = await unit.connection()
        for mark, text in changed.items():
            this = update(ConnectorMessage).where(
                col(ConnectorMessage.folder_id) == place.id, col(ConnectorMessage.mark) == mark
            )
            await connection.execute(this.values(flags=text))
        if newest:
            at = update(ConnectorFolder).where(col(ConnectorFolder.id) == place.id)
            await connection.execute(at.values(modseq=newest))
        await it.noted(unit)


def _changes(on: frozenset[str], off: frozenset[str]) -> Changes:
    return Changes.of({}, add=sorted(on), remove=sorted(off))


async def _mirror(it: Fetch, place: Place, marks: set[str]) -> None:
    """Put away what is gone elsewhere."""
    gone = [row for mark, row in place.known.items() if mark not in marks and not row.removed]
    if not gone:
        return
    ctx = it.run.ctx
    boxes = await mailboxes.all_of(ctx, it.connector.user_id, {"path"})
    paths = {box.id: box.path for box in boxes}
    for at in range(0, len(gone), DELETED_AT_ONCE):
        some = gone[at : at + DELETED_AT_ONCE]
        keys = [int(row.message_id) for row in some if row.message_id is not None]
        async with ctx.write(it.connector.user_id) as unit:
            rows = await moves.chosen(unit, keys)
            await moves.archive(ctx, unit, rows, paths)
            await _note_removed(unit, place, [row.mark for row in some])
            await it.noted(unit)


async def _deleted(it: Fetch, place: Place) -> list[str]:
    """Delete elsewhere what is here for long enough; the marks of what was."""
    kept = it.connector.source_retention
    if kept is None or it.run.trial:
        return []
    now, there = it.run.ctx.world.now(), it.there
    asked = select(col(ConnectorMessage.mark)).where(
        col(ConnectorMessage.folder_id) == place.id,
        col(ConnectorMessage.removed).is_(False),
        col(ConnectorMessage.fetched_at) <= now - timedelta(seconds=kept),
    )
    marks = [row.mark for row in await it.run.ctx.read(asked) if ":" not in row.mark]
    if marks:
        await there.do(there.remote.delete, marks)
    return marks


async def _forget(it: Fetch, place: Place, marks: Sequence[str]) -> None:
    async with it.run.ctx.write(it.connector.user_id) as unit:
        await _note_removed(unit, place, marks)
        it.tally.deleted_remote += len(marks)
        await it.noted(unit)


async def _note_removed(unit: AsyncSession, place: Place, marks: Sequence[str]) -> None:
    these = update(ConnectorMessage).where(
        col(ConnectorMessage.folder_id) == place.id, col(ConnectorMessage.mark).in_(marks)
    )
    await (await unit.connection()).execute(these.values(removed=True))
