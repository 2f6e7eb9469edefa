"""Execute the delivery plan of a recipient: store, redirect, refuse and reply.

All placements are stored in one transaction, with the state of the script. Redirects and replies
follow. Receipts keep a repeated delivery after a crash from doing a step twice. A message that was
neither stored nor redirected is kept in the fallback mailbox, so that none is lost.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.exc import StatementError
from sqlmodel import col

from mail import autoreply, sieve
from mail.autoreply import sieve_notification, sieve_vacation
from mail.delivery import dsn_matching, filter_execution, trace_steps
from mail.delivery.delivery_plan import Ruled, Spot, ruled
from mail.envelope.local_recipient import Recipient
from mail.filters.script_state import among, noted
from mail.inbound.incoming_message import Mail
from mail.queue.redirect import send_on
from mail.recipients.forward_targets import Via
from mail.recipients.recipient_routes import Onward
from mail.sieve import Edit
from mail.storage import delivery_headers, openpgp_encryption, received_messages
from mail.storage.header_prepend import first, remade
from mail.storage.message_flags import KEYWORDS
from mail.storage.message_insert import Letter, Place, Placed, Way
from mail.storage.received_messages import Copies, receipt_of
from mail.text.storable_text import storable
from models.errors import NotFound, Refused
from models.events.journal import ChangeKind, Entry
from models.filters.sieve_scripts import MemoryKind, SieveScript
from models.mailboxes.tables import SpecialUse
from models.observability import metrics
from models.runtime.environment import Turn, World

log = logging.getLogger(__name__)

WORDS = 400  # characters; a reply line has 512 bytes (RFC 5321, section 4.5.3.1.5)
TRIES = 3  # if other deliveries change the state of the script
SHOWN_AGAIN = timedelta(hours=1)  # between two records of the same script error
SCRIPTS = metrics.counter(
    "merganser_sieve_runs", "Scripts that mail was run through: done, or failed.", "outcome"
)


class Rejected(Refused):
    """A script refused the message with a text for its sender (RFC 5429)."""

    @property
    def words(self) -> str:
        """The text for an SMTP reply: one line, in ASCII."""
        text = " ".join(self.message.split()).encode("ascii", "replace").decode()
        plain = "".join(sign for sign in text if sign.isprintable())
        return plain[:WORDS].strip() or "Refused by the recipient"


class _Changed(Exception):
    """An ID that the script tested for duplicates was stored in the meantime."""


async def performed(
    world: World, mail: "Mail", todo: Ruled, alone: asyncio.Semaphore
) -> Placed | None:
    """Execute the plan of a recipient. Returns None if the message is not stored.

    On return all is durable. Raises RejectedByScript, Unavailable if the message can't be
    encrypted, and the errors of `received_messages.store_copies`. Holds `encryption_slot` while a
    copy with its own bytes is in memory.
    """
    if todo.script_id is not None:
        SCRIPTS.add("failed" if todo.error else "done")
    if todo.rejection is not None:
        raise Rejected(todo.rejection)
    for _ in range(TRIES):
        try:
            placed = await _stored(world, mail, todo, alone)
            break
        except _Changed:
            (todo,) = await ruled(world, mail, [todo.judged], [todo.decision])
            if todo.rejection is not None:
                raise Rejected(todo.rejection) from None
    else:
        raise RuntimeError("what the script hung on has changed each time")
    failed = await _sent_on(world, mail, todo, placed)
    if failed:
        todo = replace(todo, error=todo.error or failed)
        if not todo.stored:
            kept = replace(todo, spots=[todo.kept], remembered=(), asked=frozenset())
            todo = replace(kept, decision=filter_execution.done(todo.decision))
            placed = await _stored(world, mail, todo, alone)
        elif todo.script_id is not None:
            await world.apply(lambda turn: _show(turn, todo), todo.judged.to.user_id)
    await _answer(world, mail, todo)
    return placed


async def _stored(
    world: World, mail: "Mail", todo: Ruled, alone: asyncio.Semaphore
) -> Placed | None:
    """Store all placements with the script state. Uses INBOX in place of a deleted mailbox."""
    receipt = receipt_of(mail.letter, todo.judged.to, mail.sender)
    remarks = todo.remembered or todo.error or todo.decision.matched
    if not (todo.spots or remarks or mail.report):
        return None

    def beside(turn: Turn, placed: Placed | None) -> None:
        _check(turn, todo, receipt)
        note(turn, todo, (mail.letter, receipt), placed)
        if mail.report is not None:
            doubtful = todo.judged.verdict.is_spam
            dsn_matching.note(turn, todo.judged.to, mail.report, doubtful=doubtful)

    try:
        return await _into(world, mail, (todo, receipt), alone, beside)
    except NotFound as gone:
        inbox = todo.boxes.by_use(SpecialUse.INBOX)
        spot = Spot(inbox.id, inbox.key) if inbox else None
        if gone.path != ["mailbox"] or spot is None or list(todo.spots) == [spot]:
            raise
        rest = replace(todo, spots=[spot])  # a mailbox was deleted in the meantime
        return await _into(world, mail, (rest, receipt), alone, beside)


async def _into(
    world: World,
    mail: "Mail",
    what: tuple[Ruled, str],
    alone: asyncio.Semaphore,
    beside: Callable[[Turn, Placed | None], None],
) -> Placed | None:
    """Store the placements of a plan in one transaction."""
    todo, receipt = what
    to = todo.judged.to
    with ExitStack() as made:
        places = [place_of(world, mail, todo, spot) for spot in todo.spots]
        if not any(spot.edits or spot.key is not None for spot in todo.spots):
            letter = await _stamped(mail, mail.source, mail.letter, to, made)
            copies = Copies(receipt, [(letter, there) for there in places], _way(mail))
            return await received_messages.receive_all(world, to, copies, beside)
        async with alone:
            each = await letters(world, mail, todo, made)
            copies = Copies(receipt, list(zip(each, places, strict=True)), _way(mail))
            return await received_messages.receive_all(world, to, copies, beside)


def _way(mail: "Mail") -> Way:
    """Return how a message is counted. A fetched message is received mail only if it is new."""
    if mail.fetched is None:
        return Way.RECEIVED
    return Way.FETCHED if mail.fetched.news else Way.PUT_IN


def place_of(world: World, mail: "Mail", todo: Ruled, spot: Spot) -> Place:
    """Return where and with which flags to store a message. A fetched message keeps its flags."""
    there = replace(
        received_messages.usual(world, todo.judged.to, mail.sender),
        mailbox_id=spot.mailbox_id,
        path=spot.path,
        seen=spot.seen,
        flagged=spot.flagged,
        answered=spot.answered,
        keywords=spot.keywords,
        filters=todo.decision.matched,
    )
    if (lay := mail.fetched) is None:
        return there
    return replace(
        there,
        at=lay.at,
        envelope_from=None,  # unknown for a fetched message
        draft=lay.draft,
        seen=there.seen or lay.seen,
        flagged=there.flagged or lay.flagged,
        answered=there.answered or lay.answered,
        keywords=list(dict.fromkeys([*there.keywords, *lay.keywords]))[:KEYWORDS],
    )


async def letters(world: World, mail: "Mail", todo: Ruled, files: ExitStack) -> list[Letter]:
    """Return the message for each placement: with header edits, encryption and delivery headers."""
    made: dict[tuple[int, str | None], Letter] = {}
    for spot in todo.spots:
        if (spot.edits, spot.key) not in made:
            made[spot.edits, spot.key] = await _letter(world, mail, (todo, spot), files)
    return [made[spot.edits, spot.key] for spot in todo.spots]


async def _letter(world: World, mail: "Mail", what: tuple[Ruled, Spot], files: ExitStack) -> Letter:
    """Return the message for one placement."""
    source, letter, (todo, spot) = mail.source, mail.letter, what
    to = todo.judged.to

    async def read(whole: bytes | Path) -> Letter:
        made, found = await received_messages.read(whole), mail.letter
        return replace(made, came=mail.came, verification=found.verification, scan=found.scan)

    if spot.edits:
        source = await _edited(mail, todo.edits[: spot.edits], files)
        letter = await read(source)
    if spot.key is not None:
        sealed = await openpgp_encryption.sealed(world, source, letter, (to.user_id, spot.key))
        if sealed is not None:
            source, letter = sealed, await read(sealed)
    return await _stamped(mail, source, letter, to, files)


async def _stamped(
    mail: "Mail", source: bytes | Path, letter: Letter, to: Recipient, files: ExitStack
) -> Letter:
    """Return the message with our delivery headers. A fetched message gets none."""
    if mail.fetched is not None:
        return letter
    return await delivery_headers.stamped(source, letter, to, mail.sender, files)


async def _edited(mail: "Mail", edits: Sequence[Edit], files: ExitStack) -> bytes | Path:
    """Return the message with header edits. A temporary file is closed with `temporary_files`."""
    end = mail.letter.facts.structure.body_start
    head = await first(mail.source, end)
    return await remade(mail.source, await asyncio.to_thread(sieve.edited, head, edits), end, files)


def note(turn: Turn, todo: Ruled, of: tuple[Letter, str], placed: Placed | None) -> None:
    """Record the script state, the script error and the filter matches of a message.

    Runs in the transaction that stores the message.
    """
    letter, receipt = of
    _remember(turn, todo, receipt)
    _show(turn, todo)
    filter_execution.noted(turn, todo.judged.to.user_id, todo.decision, letter, placed)


def _check(turn: Turn, todo: Ruled, receipt: str) -> None:
    """Raise _DuplicateIdsChanged if the state of the IDs that the script tested has changed."""
    if not todo.asked:
        return
    user = todo.judged.to.user_id
    if among(turn, user, MemoryKind.DUPLICATE, todo.asked, receipt) != todo.seen & todo.asked:
        raise _Changed


def _remember(turn: Turn, todo: Ruled, receipt: str) -> None:
    """Store the IDs of `duplicate` tests until they expire."""
    now = turn.world.now()
    for one in todo.remembered:
        until = now + timedelta(seconds=one.seconds)
        noted(turn, todo.judged.to.user_id, (MemoryKind.DUPLICATE, one.key), until, receipt)


def _show(turn: Turn, todo: Ruled) -> None:
    """Store the error of a script for its user. The same error is stored at most once an hour."""
    if todo.error is None or todo.script_id is None:
        return
    now, text = turn.world.now(), storable(todo.error)
    new = or_(
        col(SieveScript.last_error).is_(None),
        col(SieveScript.last_error) != text,
        col(SieveScript.last_error_at) <= now - SHOWN_AGAIN,
    )
    shown = (
        update(SieveScript)
        .where(col(SieveScript.id) == todo.script_id, new)
        .values(last_error=text, last_error_at=now)
    )
    if turn.connection.execute(shown).rowcount:
        entry = Entry(ChangeKind.SIEVE_CHANGED, [todo.script_id], {"did": "failed"})
        turn.record(todo.judged.to.user_id, entry, at=now)


async def _sent_on(world: World, mail: "Mail", todo: Ruled, placed: Placed | None) -> str | None:
    """Enqueue the redirects of a plan. Returns the text of the last error, or None."""
    failed, key = None, placed.message_id if placed else None
    for edits, onward in onward_of(todo):
        shown = ", ".join([*onward.targets, *(via.shown for via in onward.via)])
        try:
            with ExitStack() as files:
                source, letter = await as_sent(mail, todo, edits, files)
                came = mail.came, mail.sender
                wish = mail.passed_on(todo.judged.to)
                whole = replace(onward, wish=wish, message_id=key)
                await send_on(world, source, came, whole, mail.results, letter)
        except Refused as refusal:
            failed = f"not sent on to {shown}: {refusal.message}"
        except Exception as error:  # the message is kept; the client must not send it again
            hide(error)
            log.exception("not sent on", extra={"user": todo.judged.to.user_id})
            failed = f"not sent on to {shown}: the server's log has more"
    return failed


def onward_of(todo: Ruled) -> list[tuple[int, Onward]]:
    """Return (edit count, forward) pairs: redirects of the script, then targets of filters."""
    to = todo.judged.to
    mine = Onward(to.address, None, to.tenant_id, user_id=to.user_id)
    found = [(one.edits, replace(mine, targets=[one.address])) for one in todo.sendings]
    told = {one.address.lower() for one in todo.sendings}
    if todo.judged.verdict.is_spam:
        return found
    for target in todo.decision.targets:
        if "://" in target.shown:
            found.append((0, replace(mine, via=[Via(to.address, target.shown, target.whole)])))
        elif target.shown.lower() not in told:
            told.add(target.shown.lower())
            found.append((0, replace(mine, targets=[target.shown])))
    return found


async def as_sent(
    mail: "Mail", todo: Ruled, edits: int, files: ExitStack
) -> tuple[bytes | Path, Letter | None]:
    """Return the message with the first header edits applied, and its parsed form.

    The parsed form is None if the header was edited.
    """
    if not edits:
        return mail.source, mail.letter
    return await _edited(mail, todo.edits[:edits], files), None


async def _answer(world: World, mail: "Mail", todo: Ruled) -> None:
    """Send the automatic reply and the notifications. Errors don't affect the delivery.

    Only one reply is sent: of the script, else of a filter, else of the account.
    """
    to, spam = todo.judged.to, todo.judged.verdict.is_spam
    incoming = sieve_vacation.Incoming(mail.source, mail.letter, to, mail.sender, spam)
    if todo.vacation is not None:
        await _tried(sieve_vacation.after(world, incoming, todo.vacation, todo.boxes), to)
    elif todo.decision.replies:
        await _tried(filter_execution.answer(world, incoming, todo.decision, todo.boxes), to)
    else:
        outcome = await autoreply.after(
            world, (mail.source, mail.letter), to, mail.sender, spam=spam
        )
        trace_steps.answered(world, mail.way, to, outcome)
    for notice in todo.notices:
        await _tried(sieve_notification.tell(world, incoming, notice, todo.boxes), to)


async def _tried(work: Any, to: Recipient) -> None:
    """Run a coroutine and log its errors: the message is already stored."""
    try:
        await work
    except Exception as error:  # the message is stored; the client must not send it again
        hide(error)
        log.exception("not answered", extra={"user": to.user_id})


def hide(error: Exception) -> None:
    """Remove the parameters of an SQL error, since they contain mail."""
    if isinstance(error, StatementError):
        error.hide_parameters = True
