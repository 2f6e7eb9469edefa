"""Synchronize flags and deletions between a remote mailbox and the messages here."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.imap_client import Imap
from models.connectors import ConnectorFolder, ConnectorMessage
from models.store.columns import Picked, picked, table_of
from resolvers.connectors.run_state import IGNORED, MARKS, Fetch, Place, joined
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk import row_changes
from resolvers.messages.bulk.row_changes import Changes

LEDGER = {"mark", "flags", "message_id"}
_FLAGS = (
    update(table_of(ConnectorMessage))
    .where(
        col(ConnectorMessage.folder_id) == bindparam("folder"),
        col(ConnectorMessage.mark) == bindparam("its"),
    )
    .values(flags=bindparam("now"))
)


async def known(it: Fetch, place: Place, marks: Sequence[str]) -> set[str]:
    """Return the marks that the ledger has."""
    found: set[str] = set()
    for some in parts(marks):
        asked = select(col(ConnectorMessage.mark)).where(*_of(place, some))
        found |= {row.mark for row in await it.run.ctx.read(asked)}
    return found


def parts(marks: Sequence[str]) -> list[Sequence[str]]:
    """Split marks into batches of the size of one statement."""
    return [marks[at : at + MARKS] for at in range(0, len(marks), MARKS)]


def _of(place: Place, marks: Sequence[str]) -> tuple[Any, Any]:
    return col(ConnectorMessage.folder_id) == place.id, col(ConnectorMessage.mark).in_(marks)


async def flags(it: Fetch, place: Place, marks: Sequence[str]) -> None:
    """Apply flag changes of the other server since the last run to the messages here.

    `known_marks` are the messages that were known before this run.
    """
    remote, newest = it.there.remote, place.opened.modseq
    if not isinstance(remote, Imap) or it.options.no_flags:
        return
    if marks and not (newest and newest == place.modseq):
        if newest and place.modseq:
            told = await it.there.do(remote.changed, place.modseq)
            for some in parts([mark for mark in marks if mark in told]):
                await _set(it, place, {mark: told[mark] for mark in some})
        else:
            for some in parts(marks):
                await _set(it, place, await it.there.do(remote.flags, some))
    if newest != place.modseq:
        async with it.unit() as unit:
            this = update(ConnectorFolder).where(col(ConnectorFolder.id) == place.id)
            await (await unit.connection()).execute(this.values(modseq=newest))
            await it.noted(unit)


async def _set(it: Fetch, place: Place, told: dict[str, frozenset[str]]) -> None:
    """Set flags that differ from the last ones of the other server; changes made here stay."""
    asked = select(*picked(ConnectorMessage, LEDGER)).where(*_of(place, list(told)))
    rows = [row for row in await it.run.ctx.read(asked) if row.flags != joined(told[row.mark])]
    if not rows:
        return
    groups: dict[tuple[frozenset[str], frozenset[str]], list[int]] = {}
    for row in rows:
        was, now = frozenset(row.flags.split()), told[row.mark] - IGNORED
        if row.message_id is not None:
            groups.setdefault((now - was, was - now), []).append(row.message_id)
    async with it.unit() as unit:
        connection = await unit.connection()
        for (on, off), keys in groups.items():
            found = await row_changes.chosen(unit, keys)
            changes = Changes.of({}, add=_words(on), remove=_words(off))
            if found and not changes.nothing:
                await bulk_flags.change(it.run.ctx, unit, found, changes)
        await connection.execute(
            _FLAGS,
            [{"folder": place.id, "its": row.mark, "now": joined(told[row.mark])} for row in rows],
        )
        await it.noted(unit)


def _words(flags: frozenset[str]) -> list[str]:
    return sorted(flag for flag in flags if row_changes.is_flag(flag))


async def mirror(it: Fetch, place: Place, marks: Sequence[str]) -> None:
    """Delete messages here that were deleted on the other server; they stay as deleted messages."""
    there, ctx = set(marks), it.run.ctx
    asked = select(col(ConnectorMessage.mark), col(ConnectorMessage.message_id)).where(
        col(ConnectorMessage.folder_id) == place.id, col(ConnectorMessage.removed).is_(False)
    )
    gone = {row.mark: row.message_id for row in await ctx.read(asked) if row.mark not in there}
    boxes = await mailbox_loaders.all_of(ctx, it.connector.user_id, {"path"})
    paths = {box.id: box.path for box in boxes}
    for some in parts(list(gone)):
        keys = [key for mark in some if (key := gone[mark]) is not None]
        async with it.unit() as unit:
            rows: Sequence[Picked] = await row_changes.chosen(unit, keys) if keys else []
            rows = [row for row in rows if row.mailbox_id in paths]
            if rows:
                await row_changes.archive(ctx, unit, rows, paths)
            await _removed(unit, place, some)
            await it.noted(unit)
    if gone:
        it.run.say(f"{place.name}: {len(gone)} are gone there, and put away here")


async def deleted(it: Fetch, place: Place, marks: Sequence[str]) -> list[str]:
    """Delete messages on the other server that are stored here long enough; returns their marks.

    Raises ConnectorFailure if the other server fails.
    """
    kept, found = it.connector.source_retention, list[str]()
    if kept is None or it.run.trial:
        return found
    least = it.run.ctx.world.now() - timedelta(seconds=kept)
    for some in parts(marks):
        asked = select(col(ConnectorMessage.mark)).where(
            *_of(place, some),
            col(ConnectorMessage.removed).is_(False),
            col(ConnectorMessage.safe),
            col(ConnectorMessage.fetched_at) <= least,
        )
        found += [row.mark for row in await it.run.ctx.read(asked)]
    if found:
        await it.there.do(it.there.remote.delete, found)
        it.run.ctx.world.fault("expunged")
    return found


async def forget(it: Fetch, place: Place, marks: Sequence[str]) -> None:
    """Record in the ledger that these messages were deleted on the other server."""
    for some in parts(marks):
        async with it.unit() as unit:
            await _removed(unit, place, some)
            it.tally.deleted_remote += len(some)
            await it.noted(unit)
    it.run.say(f"{place.name}: {len(marks)} deleted there")


async def _removed(unit: AsyncSession, place: Place, marks: Sequence[str]) -> None:
    these = update(ConnectorMessage).where(*_of(place, marks))
    await (await unit.connection()).execute(these.values(removed=True))
