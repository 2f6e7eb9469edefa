"""Store fetched messages: directly in mailboxes, or through the delivery of incoming mail.

A transaction stores messages together with their ledger rows. The delivery has transactions of its
own; a delivery receipt identifies a repeated message there until the ledger has it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import delete, insert, select
from sqlmodel import col

from mail.archives.source_message import Found, dated
from mail.authentication.results_removal import own_names, stripped
from mail.connectors.remote_server import Failure, Head, Stage
from mail.delivery import pipeline
from mail.delivery.plan_execution import Rejected
from mail.envelope.local_recipient import Recipient
from mail.inbound.incoming_message import Fetched, Mail
from mail.inbound.scan_rejection import Unwanted
from mail.mailboxes.paths import INBOX
from mail.recipients.address_resolution import account_of
from mail.recipients.recipient_routes import Person, Taken
from mail.scanners import clamd, rspamd
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import Kept
from mail.storage.message_insert import Letter, Placed, Way
from mail.storage.received_messages import receipt_of
from models.addresses.tables import Address
from models.connectors import ConnectorFolder, ConnectorMessage
from models.errors import OverQuota, Refused
from models.messages.tables import Message, Receipt
from models.runtime.environment import Turn
from models.store.columns import picked
from resolvers.connectors.run_state import IGNORED, Fetch, Place, joined
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.transfer import import_mailboxes, import_writer
from resolvers.transfer.import_writer import TOGETHER, Ready, short

AT_ONCE = 8  # of one run
LATELY = timedelta(days=1)  # younger messages are reported as new mail
LEVEL = 50  # of accounts without a spam setting

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Came:
    """A message that was fetched and parsed."""

    head: Head
    raw: bytes
    letter: Letter
    flags: Sequence[str]  # as stored here


async def bring(it: Fetch, place: Place, some: Sequence[tuple[Head, bytes]]) -> None:
    """Store fetched messages and their ledger rows.

    Raises OverQuota if they do not all fit, and ConnectorFailure if the database is too slow or a
    delivery fails.
    """
    work = it.work
    path = place.mapped.path
    box = await import_mailboxes.made(work.ctx, work.boxes, path, subscribe=work.subscribe)
    sifted = path == INBOX and await _sifts(it)
    for at in range(0, len(some), TOGETHER):
        group = list[Came]()
        for head, raw in some[at : at + TOGETHER]:
            kept = stripped(raw, own_names(it.run.ctx.world.options))
            group.append(Came(head, kept, await received_messages.read(kept), flags_of(head)))
            await asyncio.sleep(0)  # parsing small messages must not block the event loop
        it.tally.bytes += sum(len(one.raw) for one in group)
        came = await _arrived(it, place, it.to, group) if sifted and it.to else {}
        noted, new, spent = await _sorted(it, place, box, group, came)
        it.tally.imported += len(came)
        it.tally.skipped += len(noted) - len(came)
        if sifted and it.to:
            noted += await _sift(it, place, it.to, new)
            new = []
        await _store(it, place, (box, new), noted, spent)


def flags_of(head: Head) -> list[str]:
    """Return the flags that a message has here: known system flags and the first keywords."""
    told = sorted(flag for flag in head.flags - IGNORED if row_changes.is_flag(flag))
    system = [flag for flag in told if flag[:1] == "\\"]
    return system + [flag for flag in told if flag[:1] != "\\"][: flags.KEYWORDS]


async def _sorted(
    it: Fetch, place: Place, box: int, group: Sequence[Came], came: Mapping[str, int | None]
) -> tuple[list[Row], list[Came], list[str]]:
    """Return ledger rows of messages that need no storing, new messages, and used marks.

    `delivered_ids` maps marks to the messages that an interrupted run has delivered.
    """
    noted, new, spent = list[Row](), list[Came](), list[str]()
    for one in group:
        digest = one.letter.digest
        if one.head.mark in came:
            await _twice(it, place, box, digest)  # so that equal messages are duplicates
            noted.append(row_of(it, place, one, came[one.head.mark]))
        elif earlier := place.before.get(digest):
            mark, message_id = earlier.pop()
            spent.append(mark)
            noted.append(row_of(it, place, one, message_id))
        elif it.where is not None and not await _asked(it, place, one):
            noted.append(row_of(it, place, one, None, safe=False))
        elif await _twice(it, place, box, digest):
            noted.append(row_of(it, place, one, None))
        else:
            new.append(one)
    return noted, new, spent


async def _asked(it: Fetch, place: Place, one: Came) -> bool:
    """True if a message matches the filter of a one-time import.

    Mailbox names are those of the source.
    """
    found = Found(place.name, place.name, "", 0, one.raw, received_at=_at(it, one), flags=one.flags)
    where = it.where or MessageWhere()
    return await filter_match.fits(where, found, one.letter, it.run.ctx.world.now())


async def _twice(it: Fetch, place: Place, box: int, digest: str) -> bool:
    """True if the message is a duplicate to skip. Otherwise its digest is remembered."""
    brief = short(digest)
    if it.connector.skip_cross_duplicates:
        if it.everywhere is None:
            it.everywhere = await _digests(it, None)
        if brief in it.everywhere:
            return True
        it.everywhere.add(brief)
    if it.connector.remove_duplicates:
        if box not in it.digests:
            asked = select(col(Message.digest)).where(
                col(Message.mailbox_id) == box, col(Message.archived_at).is_(None)
            )
            there = {short(row.digest) for row in await it.run.ctx.read(asked)}
            it.digests[box] = there | await _digests(it, place.id)
        if brief in it.digests[box]:
            return True
        it.digests[box].add(brief)
    return False


async def _digests(it: Fetch, folder_id: int | None) -> set[bytes]:
    """Return the short digests in the ledger of a remote mailbox, or of all if None."""
    mine = select(col(ConnectorFolder.id)).where(
        col(ConnectorFolder.connector_id) == it.connector.id
    )
    which = col(ConnectorMessage.folder_id)
    wanted = which.in_(mine) if folder_id is None else which == folder_id
    rows = await it.run.ctx.read(select(col(ConnectorMessage.digest)).where(wanted))
    return {short(row.digest) for row in rows}


def row_of(it: Fetch, place: Place, one: Came, message_id: int | None, *, safe: bool = True) -> Row:
    """Return the ledger row of a message. `safe` means that the source can be deleted later."""
    return {
        "folder_id": place.id,
        "mark": one.head.mark,
        "digest": one.letter.digest,
        "message_id": message_id,
        "flags": joined(one.head.flags),
        "fetched_at": it.run.ctx.world.now(),
        "removed": False,
        "safe": safe,
    }


async def _store(
    it: Fetch, place: Place, what: tuple[int, list[Came]], noted: list[Row], spent: list[str]
) -> None:
    """Store new messages and the ledger rows.

    If the quota is exceeded, stores one message at a time.

    Raises OverQuota for the first message that does not fit.
    """
    box, new = what
    ready = [_ready(it, place, box, one) for one in new]
    try:
        await _unit(it, place, (new, ready), noted, spent)
    except OverQuota:
        if len(new) <= 1 and not noted:
            raise
        await _unit(it, place, ([], []), noted, spent)
        for one in new:
            await _store(it, place, (box, [one]), [], [])


def _ready(it: Fetch, place: Place, box: int, one: Came) -> Ready:
    raw, head = one.raw, one.head
    name = f"{place.name}, {head.mark}"
    found = Found(name, place.mapped.path, "", 0, raw, received_at=_at(it, one), flags=one.flags)
    way = Way.FETCHED if _is_news(it, place, one) else Way.PUT_IN
    return Ready(found, one.letter, box, one.flags, way=way)


def _at(it: Fetch, one: Came) -> Any:
    """Return when a message arrived there; if unknown, its Date, and never a future time."""
    now = it.run.ctx.world.now()
    told = one.head.received_at or dated(one.raw[: one.raw.find(b"\r\n\r\n") + 2])
    return min(told or now, now)


def _is_news(it: Fetch, place: Place, one: Came) -> bool:
    """True if a message is reported as new mail. Messages of a first fetch are not."""
    unread = place.mapped.path == INBOX and "\\Seen" not in one.flags
    return unread and not place.fresh and _at(it, one) >= it.run.ctx.world.now() - LATELY


async def _unit(
    it: Fetch,
    place: Place,
    what: tuple[list[Came], list[Ready]],
    noted: list[Row],
    spent: Sequence[str],
) -> None:
    new, ready = what
    done = it.tally.imported + len(ready)

    def unit(turn: Turn, kept: Sequence[Kept]) -> None:
        placed = import_writer.laid(it.work, turn, ready, kept)
        rows = [
            row_of(it, place, one, there.message_id) for one, there in zip(new, placed, strict=True)
        ]
        if noted or rows:
            turn.connection.execute(insert(ConnectorMessage), [*noted, *rows])
        if spent:
            used = col(ConnectorMessage.mark).in_(spent)
            mine = col(ConnectorMessage.folder_id) == place.id
            turn.connection.execute(delete(ConnectorMessage).where(mine, used))
        it.run.held(turn, **{**it.so_far, "imported": done})

    async def applied(kept: Sequence[Kept]) -> None:
        await it.apply(partial(unit, kept=kept))

    await import_writer.with_bytes(it.work, ready, applied)
    it.tally.imported = done
    it.run.ctx.world.fault("fetched")


async def _sifts(it: Fetch) -> bool:
    """True if INBOX messages pass the delivery of incoming mail.

    That is so if a scanner, filter or encryption key applies.
    """
    row, options = it.connector, it.run.ctx.world.options
    to = it.to = await _recipient(it)  # read each time, since a run can listen for days
    if to is None:
        return False
    judged = bool(options.rspamd) or to.ruled or to.spam_level != LEVEL
    return bool(
        (row.spam_check and judged)
        or (row.virus_check and options.clamd)
        or (row.apply_filters and (to.filtered or to.scripted))
        or to.key is not None
    )


async def _recipient(it: Fetch) -> Recipient | None:
    """Return the account as a recipient of incoming mail, or None if it has no address."""
    row, world = it.connector, it.run.ctx.world
    mine = col(Address.user_id) == row.user_id, col(Address.main)
    asked = select(*picked(Address)).where(*mine)
    found = next(iter(await world.database.read(asked)), None)
    if found is None:
        return None
    address = found.shown
    if row.target_domain:
        address = f"{address.rpartition('@')[0]}@{row.target_domain}"
    to = await account_of(world, found, address)
    if not row.spam_check:
        to = replace(to, ruled=False, spam_level=LEVEL)
    if not row.apply_filters:
        to = replace(to, filtered=False, scripted=False)
    return replace(to, answers=False, copied=False, forwards=False)


async def _arrived(
    it: Fetch, place: Place, to: Recipient, group: Sequence[Came]
) -> dict[str, int | None]:
    """Return the messages that an interrupted run has delivered, by mark.

    The id is None for a message in quarantine.

    The digest would identify the message, too, but not its id here.
    """
    world = it.run.ctx.world
    marks = {receipt_of(_lettered(place, one), to, ""): one.head.mark for one in group}
    asked = (
        select(col(Receipt.digest), col(Message.id))
        .join(Message, col(Message.id) == col(Receipt.message_id), isouter=True)
        .where(
            col(Receipt.digest).in_(marks),
            col(Receipt.at) > world.now() - world.options.receipts_for,
        )
    )
    return {marks[row.digest]: row.id for row in await world.database.read(asked)}


def _lettered(place: Place, one: Came) -> Letter:
    """Return the parsed message with the identity that its delivery receipt is computed from."""
    source = f"{place.id}:{place.opened.validity}"
    came = f"{source}:{one.head.mark}:{one.letter.digest}"
    return replace(one.letter, came=came)


async def _sift(it: Fetch, place: Place, to: Recipient, new: Sequence[Came]) -> list[Row]:
    """Pass messages through the delivery of incoming mail, and return their ledger rows.

    Raises ConnectorFailure if a delivery failed; the others are in the ledger then.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def one_of(one: Came) -> object:
        async with room:
            return await _delivered(it, place, one, to)

    outcomes = await asyncio.gather(*map(one_of, new), return_exceptions=True)
    it.run.ctx.world.fault("sifted")
    rows, failed = list[Row](), list[BaseException]()
    for one, outcome in zip(new, outcomes, strict=True):
        if isinstance(outcome, Unwanted | Rejected):
            it.run.say(f"{place.name}, {one.head.mark}: refused: {outcome}")
            it.tally.skipped += 1
            rows.append(row_of(it, place, one, None, safe=False))
        elif isinstance(outcome, BaseException):
            failed.append(outcome)
        else:
            it.tally.imported += 1
            key = outcome.message_id if isinstance(outcome, Placed) else None
            rows.append(row_of(it, place, one, key))
    if failed and rows:  # receipts expire; the ledger must know the delivered ones
        async with it.unit() as unit:
            await (await unit.connection()).execute(insert(ConnectorMessage), rows)
            await it.noted(unit)
    if failed:
        raise _failed(failed[0])
    return rows


def _failed(outcome: BaseException) -> BaseException:
    if isinstance(outcome, Refused) and not isinstance(outcome, OverQuota):
        return Failure(Stage.STORE, outcome.message)
    return outcome


async def _delivered(it: Fetch, place: Place, one: Came, to: Recipient) -> object:
    world, row = it.run.ctx.world, it.connector
    scanners = {rspamd.NAME: row.spam_check, clamd.NAME: row.virus_check}
    lay = Fetched(
        _at(it, one),
        frozenset(name for name, wanted in scanners.items() if wanted),
        news=_is_news(it, place, one),
        seen="\\Seen" in one.flags,
        flagged="\\Flagged" in one.flags,
        answered="\\Answered" in one.flags,
        draft="\\Draft" in one.flags,
        keywords=tuple(flag for flag in one.flags if flag[:1] != "\\"),
    )
    mail = Mail(one.raw, _lettered(place, one), "", fetched=lay, copied=False)
    taken = Taken(to.address, [Person(to)])
    (outcome,) = await pipeline.deliver(world, mail, [taken])
    return outcome
