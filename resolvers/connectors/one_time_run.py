"""Run a one-time import: mail of an archive or of another account, group by group.

A transaction stores messages together with the checkpoint, so that an interrupted run continues
after its last group.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.archives.mail_sources import Source, messages, source
from mail.archives.source_message import Found, Unusable
from mail.connectors.remote_server import Failure, Stage
from mail.storage import message_content, message_flags
from mail.storage.blobs.blob_writer import Kept
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import Stored, gathered
from mail.text.storable_text import storable
from models.connectors import Protocol
from models.errors import NotFound, OverQuota
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.transfer import ImportArchive
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.connectors.one_time_imports import Order, order_of
from resolvers.connectors.run_state import Run, Tally
from resolvers.context import Context, Viewer
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.transfer import export_writer, import_mailboxes, import_writer, imports
from resolvers.transfer.import_writer import Import, Outcome, Reading, Ready

COLUMNS = frozenset(
    {"id", "blob_id", "structure", "size", "received_at", "envelope_from", "keywords",
     *message_flags.SYSTEM_FLAGS}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Taken:
    """A message of the source; `prepared` is None if it is not stored."""

    found: Found
    ready: Ready | None


@dataclass
class Bringing:
    """A run of a one-time import with its open source."""

    run: "Run"
    work: Import
    order: Order
    note: dict[str, Any]
    tally: Tally
    where: MessageWhere | None = None  # applied to each message in memory
    here: Mapping[SpecialUse, str] = field(
        default_factory=dict
    )  # mailbox paths here by special use
    there: Mapping[str, SpecialUse] = field(
        default_factory=dict
    )  # special use by path in the source

    def into(self, found: Found) -> Found:
        """Return the message with the path of the mailbox here that it is stored in."""
        if self.order.below is not None:
            return replace(found, folder=f"{self.order.below}/{found.folder}")
        use = self.there.get(found.folder)
        return replace(found, folder=self.here.get(use, found.folder) if use else found.folder)


async def bring(run: "Run") -> None:
    """Import all messages.

    Raises ConnectorFailure if the source can't be read or the account is full, Refused.
    """
    row, order = run.row, order_of(run.connector)
    begun = (row.checkpoint or {}).get("begun") or run.ctx.world.key()
    work = await import_writer.opened(run.ctx, run.connector.user_id, None, begun)
    work.subscribe = order.subscribe
    note = {**(row.checkpoint or {}), "begun": begun}
    tally = Tally(row.seen, row.imported, row.skipped, bytes=row.bytes)
    it = Bringing(run, work, order, note, tally, here=await import_mailboxes.roles(work.ctx))
    if run.connector.protocol is Protocol.USER:
        await _account(it)
    else:
        await _archive(it)
    told = it.tally
    run.say(f"{told.seen} seen, {told.imported} brought, {told.skipped} left out")


async def _archive(it: Bringing) -> None:
    """Import an archive, from the checkpoint on."""
    world, path = it.work.ctx.world, it.order.path
    mine = col(ImportArchive.task_id) == it.run.row.id
    async with imports.lying(it.work.ctx, path, mine) as file:
        origin = await asyncio.to_thread(_opened, file, world)
        if path is not None and it.note.get("stamp", origin.stamp) != origin.stamp:
            raise Failure(Stage.FETCH, "the file has changed since the run began")
        it.note["stamp"] = origin.stamp
        if origin.account:
            it.there = {
                box["path"]: use
                for box in origin.account.mailboxes
                for use in SpecialUse
                if box.get("specialUse") == use
            }
        it.where = it.order.asked
        reading = Reading(messages(origin, it.note.get("after")))
        while group := await asyncio.to_thread(_read, reading):
            await _unit(it, group)
        if reading.trouble:
            raise Failure(Stage.FETCH, reading.trouble)


def _opened(file: Any, world: World) -> Source:
    try:
        return source(file, world.options.message_max)
    except (Unusable, OSError) as problem:
        raise Failure(Stage.FETCH, f"the archive cannot be read: {problem}") from None


def _read(reading: Reading) -> list[Found]:
    try:
        return reading.group()
    except OSError as problem:
        raise Failure(Stage.FETCH, f"the archive cannot be read: {problem.strerror}") from None


async def _account(it: Bringing) -> None:
    """Import the mail that another account had when the run began."""
    world, user_id = it.work.ctx.world, it.order.user or 0
    there = Context(world, Viewer(user_id, Role.USER, frozenset({Scope.MASTER})))
    known = select(col(User.id)).where(col(User.id) == user_id, col(User.deleted_at).is_(None))
    if not await there.read(known):
        raise Failure(Stage.FETCH, "the account that it comes from is gone")
    asked = Selection(where=it.order.asked or MessageWhere())
    after = int(it.note.get("after") or 0)
    keys = await export_writer.chosen(there, user_id, asked)
    keys = [key for key in keys if after < key < it.work.begun]
    async with aclosing(_groups(it, there, keys)) as groups:
        async for group in groups:
            await _unit(it, group)


async def _groups(it: Bringing, there: Context, keys: Sequence[int]) -> AsyncGenerator[list[Found]]:
    """Yield messages of an account in groups for one transaction, without deleted ones."""
    for start in range(0, len(keys), import_writer.TOGETHER):
        some = keys[start : start + import_writer.TOGETHER]
        rows = await there.read(
            select(*picked(Message, COLUMNS), col(Mailbox.path), col(Mailbox.special_use))
            .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
            .where(col(Message.id).in_(some), col(Message.archived_at).is_(None))
            .order_by(col(Message.id))
        )
        it.there = {**it.there, **{row.path: row.special_use for row in rows if row.special_use}}
        group, weight = list[Found](), 0
        for row, stored in zip(rows, await message_content.sources(there.world, rows), strict=True):
            if (found := await _found(row, stored)) is None:
                continue
            if group and weight + row.size > import_writer.WEIGHT:
                yield group
                group, weight = [], 0
            group.append(found)
            weight += row.size
        if group:
            yield group


async def _found(row: Picked, stored: Stored) -> Found | None:
    bare = Found(f"message {row.id} of {row.path}", row.path, str(row.id), 0)
    try:
        raw = await gathered(stored.whole())
    except Corrupt:
        return bare.refused("it is damaged")
    except NotFound:
        return None  # deleted while it was read
    facts = {"received_at": row.received_at, "sender": row.envelope_from}
    return bare.with_message(raw, **facts, flags=message_flags.flags(row))


async def _unit(it: Bringing, group: Sequence[Found]) -> None:
    """Store messages; if the account is full, as many as fit, and then raise ConnectorFailure."""
    taken = [await _taken(it, found) for found in group]
    try:
        await _put(it, taken)
    except OverQuota:
        for one in taken:
            try:
                await _put(it, [one])
            except OverQuota as full:
                text = f"the account is full: {full.message}"
                raise Failure(Stage.STORE, text) from None
    except NotFound:
        raise Failure(Stage.STORE, "the account, or a folder of it, is gone") from None


async def _taken(it: Bringing, found: Found) -> Taken:
    """Parse a message. If it can't be stored, the reason is added to the log."""
    it.work.outcome = Outcome()
    letter = None
    if it.where is not None and found.raw is not None:
        letter = await import_writer.read_letter(it.work.ctx.world, found.raw)
        if not await filter_match.fits(it.where, found, letter, it.work.ctx.world.now()):
            return Taken(found, None)
    ready = await import_writer.read(it.work, it.into(found), letter)
    for name, why in it.work.outcome.skipped:
        it.run.say(f"{name}: {why}")
    return Taken(found, ready)


async def _put(it: Bringing, taken: Sequence[Taken]) -> None:
    """Store messages and the checkpoint in one transaction. Raises OverQuota."""
    work, told, last = it.work, it.tally, taken[-1].found
    ready = [one.ready for one in taken if one.ready]
    tally = Tally(
        told.seen + len(taken),
        told.imported + len(ready),
        told.skipped + len(taken) - len(ready),
        bytes=told.bytes + sum(len(one.found.raw or b"") for one in taken),
    )
    note = {**it.note, "after": last.after}

    async def unit(kept: Sequence[Kept]) -> None:
        async with work.ctx.write(work.user.id) as session:
            if ready:
                await import_writer.put(work, session, ready, kept)
            facts = {"stage": Stage.STORE, "folder": storable(last.folder), "checkpoint": note}
            await it.run.hold(session, **facts, **asdict(tally))

    await import_writer.with_bytes(work, ready, unit)
    it.tally, it.note = tally, note
    work.ctx.world.fault("brought")
