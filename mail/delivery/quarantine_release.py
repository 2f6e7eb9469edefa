"""Release quarantined messages: deliver them as the filters and the script of the account plan.

The spam verdict is not computed again, and filters can't mark the message as spam: the release has
decided. A message that rules would refuse or discard is kept. It can be days old, so there is no
automatic reply and no notification. A message with a virus is not redirected.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from mail.delivery import (
    account_forwards,
    delivery_plan,
    filter_execution,
    plan_execution,
    recipient_rewrites,
    success_dsn,
    trace_steps,
)
from mail.delivery.delivery_plan import Ruled
from mail.delivery.recipient_rewrites import Came, Copied
from mail.delivery.success_dsn import Success
from mail.envelope.dsn_parameters import restored
from mail.envelope.local_recipient import Recipient
from mail.filters.filter_result import NOTHING
from mail.inbound.incoming_message import Mail
from mail.inbound.spam_check import Judged
from mail.queue import redirect
from mail.queue.redirect import Outgoing
from mail.recipients.recipient_routes import Loop
from mail.spam.verdict import Reason, Spam
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import Kept
from mail.storage.blobs.message_layout import Piece
from mail.storage.message_insert import Letter, Place, Placed, Way
from mail.storage.received_messages import Copies, read, stored
from models.errors import Unavailable
from models.runtime.environment import Turn, World
from models.store.columns import Picked

log = logging.getLogger(__name__)

PAST = Spam(is_spam=False, score=0, reason=Reason.LEVEL)  # a verdict that filters can't change
EMPTY = Piece("", b"")


@dataclass(frozen=True, slots=True)
class Ready:
    """A release that is ready for its transaction: the plan, with all bytes stored."""

    todo: Ruled
    letter: Letter  # as it was quarantined
    queue_id: str
    receipt: str
    places: Sequence[tuple[Letter, Place]]
    kept: Sequence[Kept]  # of the placements
    leaving: Sequence[tuple[Outgoing, Kept]]
    came: Came
    copies: Sequence[tuple[Copied, Kept]]
    report: tuple[Success, Kept] | None = None  # DSN of the delivery

    @property
    def goes_out(self) -> bool:
        """True if the release adds queue entries."""
        return bool(self.leaving or self.copies or self.report)


async def ready(
    world: World, item: Picked, raw: bytes, to: Recipient, *, again: bool = False
) -> Ready:
    """Plan the release of a quarantined message and store all bytes it needs.

    With `rewrite_blobs`, blobs are written even if they exist. Raises Unavailable if the message
    can't be encrypted.
    """
    with ExitStack() as files:
        return await _ready(world, item, raw, (to, again), files)


async def _ready(
    world: World, item: Picked, raw: bytes, how: tuple[Recipient, bool], files: ExitStack
) -> Ready:
    """Plan the release and store the bytes of all copies."""
    to, again = how
    letter = replace(await read(raw), verification=item.verification)
    wishes = {(to.user_id, to.mailbox_id): restored(item.wish)}
    mail = Mail(raw, letter, item.sender, wishes=wishes)
    todo = await _ruled(world, mail, to)
    if item.virus is not None:
        todo = replace(todo, sendings=(), decision=replace(todo.decision, targets=()))
    sent, failed = await _sent_on(world, mail, todo, files)
    if not todo.spots and (failed or not sent):
        todo = replace(todo, spots=[todo.kept])
    if item.virus is None:
        sent += await _forwarded(world, mail, todo, files)
    made = await plan_execution.letters(world, mail, todo, files)
    kept = [await stored(world, to.tenant_id, each, again=again) for each in made]
    there = [plan_execution.place_of(world, mail, todo, spot) for spot in todo.spots]
    leaving = list[tuple[Outgoing, Kept]]()
    for one in sent:
        safe = await stored(world, one.onward.tenant_id, one.letter, again=again)
        leaving.append((replace(one, letter=_emptied(one.letter)), safe))
    report = await success_dsn.of_released(world, mail, item, to)
    came = Came(raw, letter, item.sender, [item.recipient])
    copies = [
        (replace(copy, letter=_emptied(copy.letter)), await _stored(world, copy, again=again))
        for copy in await recipient_rewrites.copies_wanted(world, came, [to], files)
    ]
    return Ready(
        todo,
        _emptied(letter),
        item.queue_id,
        item.receipt,
        list(zip(map(_emptied, made), there, strict=True)),
        kept,
        leaving,
        replace(came, source=b"", letter=_emptied(letter)),
        copies,
        await _safe(world, report, again=again) if report else None,
    )


async def _ruled(world: World, mail: Mail, to: Recipient) -> Ruled:
    """Return the delivery plan. A rejection by rules is replaced by keeping the message."""
    judged = [Judged(to, PAST)]
    said = await filter_execution.decisions(world, mail, judged)
    (todo,) = await delivery_plan.ruled(world, mail, judged, said)
    if todo.rejection is None:
        return todo
    return replace(
        todo, rejection=None, spots=[todo.kept], sendings=(), remembered=(), decision=NOTHING
    )


async def _sent_on(
    world: World, mail: Mail, todo: Ruled, files: ExitStack
) -> tuple[list[Outgoing], bool]:
    """Prepare the redirects of rules. Also returns True if one failed because of a mail loop."""
    made, failed = list[Outgoing](), False
    wish = mail.passed_on(todo.judged.to)
    for edits, wanted in plan_execution.onward_of(todo):
        to = replace(wanted, wish=wish)
        source, letter = await plan_execution.as_sent(mail, todo, edits, files)
        came = mail.came, mail.sender
        try:
            made.append(await redirect.outgoing(world, source, came, to, files, letter=letter))
        except Loop:
            failed = True
    return made, failed


async def _forwarded(world: World, mail: Mail, todo: Ruled, files: ExitStack) -> list[Outgoing]:
    """Prepare the forward of an account with targets. Returns [] if it is not forwarded."""
    if not todo.judged.to.forwards:
        return []
    try:
        found = await account_forwards.wanted(world, mail, todo.judged)
        if isinstance(found, account_forwards.Outcome):
            return []
        source, letter, onward_to = found
        to = replace(onward_to, wish=mail.passed_on(todo.judged.to))
        came = mail.came, mail.sender
        return [await redirect.outgoing(world, source, came, to, files, letter=letter)]
    except (Loop, Unavailable):
        log.info("not forwarded", extra={"user": todo.judged.to.user_id})
        return []


async def _stored(world: World, copy: Copied, *, again: bool) -> Kept:
    """Store the bytes of a BCC copy."""
    return await stored(world, copy.of.tenant_id, copy.letter, again=again)


async def _safe(world: World, report: Success, *, again: bool) -> tuple[Success, Kept]:
    """Store the bytes of the DSN and return it without its bytes."""
    kept = await stored(world, report.tenant_id, report.letter, again=again)
    return replace(report, letter=_emptied(report.letter)), kept


def _emptied(letter: Letter) -> Letter:
    """Return the message without its stored bytes, to save memory until the transaction."""
    return replace(letter, root=EMPTY, pieces=(), keeping={}, cut={})


def enter(turn: Turn, one: Ready, by: str) -> Placed | None:
    """Release the message in a transaction of its account, and of PLATFORM if mail is queued.

    Returns None if rules redirect the message and don't store it. `released_by` is the name in the
    delivery trace. Raises the errors of `received_messages.insert_copies_in_mailboxes` and
    `redirect.enqueue_prepared`.
    """
    copies = Copies(one.receipt, one.places, Way.RELEASED)
    placed = received_messages.place_all(turn, copies, one.kept)
    plan_execution.note(turn, one.todo, (one.letter, one.receipt), placed)
    for outgoing, kept in one.leaving:
        to = replace(outgoing.onward, message_id=placed.message_id if placed else None)
        redirect.enter(turn, replace(outgoing, onward=to), kept)
    for copy, kept in one.copies:
        recipient_rewrites.enter(turn, kept, one.came, copy)
    if one.report is not None:
        success_dsn.enter(turn, *one.report)
    sent = [outgoing.onward for outgoing, _ in one.leaving]
    way = trace_steps.released(turn.world, one.queue_id, one.todo.judged.to, (placed, by))
    way.sender = one.came.sender
    for each in sent:
        trace_steps.sent_on(turn.world, way, each)
    way.put(turn, one.letter)
    return placed
