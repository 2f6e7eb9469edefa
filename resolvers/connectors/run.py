"""Run a connector: fetch new messages mailbox by mailbox.

A transaction stores messages together with their ledger rows. So an interrupted run continues
after its last transaction, no message is stored twice, and no message is deleted on the other
server before it is stored here.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update
from sqlmodel import col

from mail.connectors import mailbox_mapping
from mail.connectors.imap_client import Imap
from mail.connectors.mailbox_mapping import Mapped, Rules
from mail.connectors.remote_server import Failure, Head, Opened, Stage
from mail.mailboxes.paths import INBOX
from mail.network.outbound_http import Gate
from mail.sieve.execution.regex_groups import compiled
from mail.text.bounded_regex import Expression
from models.connectors import ConnectorFolder, ConnectorMessage, Protocol
from models.mailboxes.tables import SpecialUse
from models.runtime.clock_steps import is_ahead
from models.store.columns import picked
from resolvers.connectors import credentials, message_storage, one_time_run, synchronization
from resolvers.connectors.one_time_imports import order_of
from resolvers.connectors.run_state import Fetch, Place, Run, Tally
from resolvers.transfer import import_mailboxes, import_writer

SOON, LATER = timedelta(seconds=1), timedelta(minutes=1)  # until the next run that listens
LISTENS = 240.0  # then the end of listening is checked again


async def fetch(run: "Run", gate: Gate, trust: Any) -> None:
    """Fetch new messages.

    Raises ConnectorFailure if the other server fails, Refused if storing fails.
    """
    ctx, connector = run.ctx, run.connector
    if connector.protocol in (Protocol.ARCHIVE, Protocol.USER):
        await one_time_run.bring(run)
        return
    run.say(f"connecting to {connector.host}, port {connector.port}")
    async with credentials.signed_in(ctx.world, connector, (gate, trust)) as there:
        run.say("signed in")
        work = await import_writer.opened(ctx, connector.user_id, None, run.row.id)
        work.subscribe = connector.subscribe_all
        so_far = run.row  # continues its counts
        tally = Tally(0, so_far.imported, 0, so_far.deleted_remote, so_far.bytes)
        it = Fetch(run, there, work, tally, where=order_of(connector).asked)
        todo = await _mapped(it)
        gone: list[tuple[Place, list[str]]] = []
        for one in todo:
            place, marks = await _folder(it, one)
            if found := await synchronization.deleted(it, place, marks):
                gone.append((place, found))
        inbox = next(
            (one for one in todo if mailbox_mapping.remote(one.listed).upper() == INBOX), None
        )
        if run.options.idle and run.may_listen and inbox:
            await _listen(it, inbox)
    for place, marks in gone:  # POP3 deletes at the end of a session
        await synchronization.forget(it, place, marks)
    await _told(it)


async def _told(it: Fetch) -> None:
    told = it.tally
    it.run.say(f"{told.seen} seen, {told.imported} brought, {told.skipped} left out")
    async with it.unit() as unit:
        await it.noted(unit, folder=None)


async def _mapped(it: Fetch) -> list[Mapped]:
    """Return the remote mailboxes that are fetched, with their mailboxes here."""
    row, options, remote = it.connector, it.options, it.there.remote
    listed = await it.there.do(remote.folders)
    if options.subscribed and isinstance(remote, Imap):
        wanted = await it.there.do(remote.subscribed)
        listed = [one for one in listed if one.raw in wanted or one.raw.upper() == b"INBOX"]
    here = await import_mailboxes.roles(it.run.ctx)
    here.pop(SpecialUse.INBOX, None)
    rewrites = [
        (compiled(one["pattern"], fold=True), one["replacement"]) for one in row.folder_rewrites
    ]
    how = Rules(
        Expression(row.exclude, slashes=False) if row.exclude else None,
        options.include,
        options.masks_in,
        options.masks_out,
        rewrites,
        row.auto_map_folders,
        None if row.target_folder == INBOX and not row.once else row.target_folder,
    )
    found = mailbox_mapping.mapped(listed, how, here)
    it.run.say(f"{len(listed)} folders, {len(found)} of them are fetched")
    return found


async def _folder(it: Fetch, one: Mapped, *, again: bool = False) -> tuple[Place, list[str]]:
    """Fetch new messages and changes of a mailbox. Returns it with the marks of all its messages.

    With `is_repeat`, messages seen before are not counted once more.
    """
    there, remote = it.there, it.there.remote
    writes = it.connector.source_retention is not None and not it.run.trial
    opened = await there.do(lambda: remote.open(one.listed, write=writes))
    place = await _place(it, one, opened)
    marks = await there.do(remote.marks)
    known = await synchronization.known(it, place, marks)
    fresh = [mark for mark in marks if mark not in known]
    heads = await there.do(remote.heads, fresh)
    wanted = _wanted(it, place, heads)
    it.tally.seen += len(fresh) if again else len(marks)
    it.tally.skipped += len(heads) - len(wanted)
    if fresh:
        it.run.say(f"{place.name}: {len(marks)} messages, {len(wanted)} to fetch")
    if it.run.trial:
        it.tally.imported += len(wanted)
        return place, marks
    async for some in there.bodies(wanted):
        await message_storage.bring(it, place, some)
    await synchronization.flags(it, place, [mark for mark in marks if mark in known])
    if it.connector.mirror_deletes:
        await synchronization.mirror(it, place, marks)
    return place, marks


async def _place(it: Fetch, one: Mapped, opened: Opened) -> Place:
    """Read the row of a remote mailbox, or create it.

    If UIDVALIDITY has changed, the marks of the ledger are invalidated; digests identify the
    messages then.
    """
    ctx, raw, name = (
        it.run.ctx,
        one.listed.raw.decode("latin-1"),
        mailbox_mapping.remote(one.listed),
    )
    mine = (
        col(ConnectorFolder.connector_id) == it.connector.id,
        col(ConnectorFolder.name) == raw,
    )
    if it.run.trial:
        rows = await ctx.read(select(*picked(ConnectorFolder)).where(*mine))
        row = rows[0] if rows and rows[0].validity == opened.validity else None
        return Place(row.id if row else 0, name, one, opened, row is None, 0, {})
    ctx.forget()  # mailboxes can have been created since
    async with it.unit() as unit:
        connection = await unit.connection()
        row = (await connection.execute(select(*picked(ConnectorFolder)).where(*mine))).first()
        key = ctx.world.key() if row is None else row.id
        if row is None:
            new = {"id": key, "connector_id": it.connector.id, "name": raw, "modseq": 0}
            await connection.execute(
                insert(ConnectorFolder), [{**new, "validity": opened.validity}]
            )
        elif row.validity != opened.validity:
            it.run.say(f"{name}: the server has numbered it anew")
            old = col(ConnectorMessage.folder_id) == key, ~col(ConnectorMessage.mark).contains(":")
            renamed = f"{row.validity}:" + col(ConnectorMessage.mark)
            await connection.execute(update(ConnectorMessage).where(*old).values(mark=renamed))
            again = update(ConnectorFolder).where(col(ConnectorFolder.id) == key)
            await connection.execute(again.values(validity=opened.validity, modseq=0))
        await it.noted(unit, folder=name)
    same = row is not None and row.validity == opened.validity
    before = await _before(it, key) if row is not None else {}
    return Place(key, name, one, opened, row is None, row.modseq if row and same else 0, before)


async def _before(it: Fetch, folder_id: int) -> dict[str, list[tuple[str, int | None]]]:
    """Return mark and message id of ledger rows with invalid marks, by digest."""
    asked = select(
        col(ConnectorMessage.mark), col(ConnectorMessage.digest), col(ConnectorMessage.message_id)
    ).where(col(ConnectorMessage.folder_id) == folder_id, col(ConnectorMessage.mark).contains(":"))
    found: dict[str, list[tuple[str, int | None]]] = {}
    for row in await it.run.ctx.read(asked):
        found.setdefault(row.digest, []).append((row.mark, row.message_id))
    return found


def _wanted(it: Fetch, place: Place, heads: Sequence[Head]) -> list[Head]:
    """Return the messages that fit the size and age limits of the connector."""
    row, options, now = it.connector, it.options, it.run.ctx.world.now()
    most = it.run.ctx.world.options.message_max
    large = sum(head.size > most for head in heads)
    if large:
        it.run.say(f"{place.name}: {large} are larger than {most} bytes, and left out")
    low, high = options.min_size, min(most, options.max_size or most)

    def fits(at: datetime | None) -> bool:
        age = (now - at).total_seconds() if at else options.min_age
        return options.min_age <= age <= (age if row.max_age is None else row.max_age)

    return [head for head in heads if low <= head.size <= high and fits(head.received_at)]


async def _listen(it: Fetch, inbox: Mapped) -> None:
    """Fetch what arrives in INBOX at once (IMAP IDLE), until the next run is due."""
    row, world, remote = it.connector, it.run.ctx.world, it.there.remote
    if it.run.trial or row.interval is None or not isinstance(remote, Imap):
        return
    if "IDLE" not in remote.capabilities:
        it.run.say("the server offers no IDLE")
        return
    until = world.now() + timedelta(seconds=row.interval)
    heard, it.run.again = True, SOON  # the first fetch also selects the mailbox
    while is_ahead(until, now := world.now(), timedelta(seconds=row.interval)):
        left = (until - now).total_seconds()
        if heard:
            await _folder(it, inbox, again=True)
            it.there.line.stage = Stage.LISTEN
            await _told(it)
        it.run.rest(listens=True)
        try:
            heard = await it.there.do(remote.wait, min(left, LISTENS))
        except Failure as problem:  # servers close idle connections
            it.run.say(f"listening has ended: {problem.message}")
            it.run.again = LATER
            break
        finally:
            it.run.rest(listens=False)
