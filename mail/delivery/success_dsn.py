"""Send success DSNs to remote senders that request them (NOTIFY=SUCCESS, RFC 3461).

If SPF and DMARC are checked and don't verify the sender, no DSN is sent, since sender addresses are
easily forged. For a message that is forwarded to one target, the next server sends the DSN, or our
queue if that server does not support DSN.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mail.envelope.delivery_jobs import Action, Result
from mail.envelope.dsn_parameters import On, Wish, restored, typed
from mail.envelope.local_recipient import Recipient
from mail.inbound.incoming_message import Mail
from mail.queue.dsn_writer import HEAD, About, Told, written
from mail.queue.enqueue import Sender, hand_in, handed
from mail.queue.redirect import new
from mail.recipients.recipient_routes import Taken
from mail.spam import verdict
from mail.spam.scan_result import Scan
from mail.storage.blobs.blob_writer import Kept
from mail.storage.header_prepend import first
from mail.storage.message_insert import Letter
from mail.storage.received_messages import read, with_bytes
from models.events.journal import PLATFORM
from models.queue.tables import DeliveryState
from models.runtime.environment import Turn, World
from models.store.columns import Picked

log = logging.getLogger(__name__)


def ends(taken: Taken) -> Action | None:
    """Return what a DSN says of a recipient; None if the server of its single target reports."""
    beyond = _beyond(taken)
    if not beyond:
        return Action.DELIVERED
    return None if beyond == 1 and not taken.people else Action.EXPANDED


def passed_on(taken: Taken) -> Wish:
    """Return the DSN request for the targets of a recipient.

    With several targets none reports success: the DSN for the first address is sent here.
    """
    wish = taken.wish
    if ends(taken) is None:
        return replace(wish, orcpt=wish.orcpt or typed(taken.address))
    return Wish(wish.without(On.SUCCESS).on, ret=wish.ret)


def _beyond(taken: Taken) -> int:
    """Return the number of targets a recipient is forwarded to."""
    return sum(len(each.targets) + len(each.via) for each in taken.onward)


async def after(
    world: World, mail: "Mail", taken: Sequence[Taken], outcomes: Sequence[object]
) -> None:
    """Send a DSN for the delivered recipients that request it. Errors don't affect the delivery."""
    told = [
        Told(each.address, action, _RESULT, each.wish.orcpt)
        for each, outcome in zip(taken, outcomes, strict=True)
        if each.wish.on is not None
        and each.wish.wants(On.SUCCESS)
        and not isinstance(outcome, BaseException)
        and not (outcome is None and each.people)  # it is in quarantine
        and (action := ends(each)) is not None
    ]
    if not told or not mail.sender or _doubtful(world, mail):
        return
    try:
        await _send(world, mail, taken[0], told)
    except Exception:  # the message is stored; the client must not send it again
        log.exception("a report was not sent", extra={"id": mail.way.queue_id})


_RESULT = Result(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", here=Action.DELIVERED)


def _doubtful(world: World, mail: "Mail") -> bool:
    """Return True if the message is spam or its sender was checked and is not verified."""
    found = _known(world, mail)
    scan = mail.letter.scan or Scan()
    score = max(found.score.value, verdict.scored_by(scan, verdict.Limits()))
    return score >= verdict.FLAGGED or _unsure(mail, found)


def _known(world: World, mail: "Mail") -> verdict.Known:
    """Return the facts about the sender and the spam score."""
    letter, believed = mail.letter, world.options.spam_headers
    opinions = letter.facts.opinions if mail.handed else ()
    return verdict.known(opinions, believed, mail.sender, letter.verification, letter.scan)


def unsure(world: World, mail: "Mail") -> bool:
    """Return True if the sender was checked and is not verified."""
    return _unsure(mail, _known(world, mail))


def _unsure(mail: "Mail", found: verdict.Known) -> bool:
    """Return True if the sender is forged, or was checked and is not verified."""
    if found.forged:
        return True
    sure = found.vouched or (mail.letter.verification or {}).get("dmarc") == "pass"
    return not sure and not mail.handed and mail.results is not None


async def _send(world: World, mail: "Mail", of: Taken, told: Sequence[Told]) -> None:
    """Build the DSN and enqueue it under the tenant of the first recipient."""
    tenants = [person.to.tenant_id for person in of.people]
    tenants += [onward.tenant_id for onward in of.onward]
    tenant = next(iter(tenants), of.domain_id or 0)
    about = About(mail.sender, world.now(), mail.way.queue_id, of.wish)
    report = await _written(world, mail, (about, told), tenant)
    await with_bytes(
        world, tenant, report.letter, lambda turn, kept: enter(turn, report, kept), PLATFORM
    )


@dataclass(frozen=True, slots=True)
class Success:
    """A DSN that can be queued."""

    letter: Letter
    to: str
    tenant_id: int
    known: str  # identifies a repeated delivery


async def _written(
    world: World, mail: "Mail", what: tuple[About, Sequence[Told]], tenant_id: int
) -> Success:
    """Build the DSN and the key that identifies a repeat."""
    about, told = what
    head = await first(mail.source, min(mail.letter.facts.structure.body_start, HEAD))
    letter = await read(written(world, about, told, head))
    named = ",".join(each.address for each in told)
    known = f"{mail.sender}\0told\0{named}\0{mail.came}"
    return Success(letter, mail.sender, tenant_id, known)


def enter(turn: Turn, report: Success, kept: Kept) -> None:
    """Enqueue a DSN once, in a transaction that locks PLATFORM. Its bytes must be stored."""
    if new(turn, report.known):
        given = handed(turn, report.letter, kept, "", [report.to])
        hand_in(turn, Sender(None, report.tenant_id), given)


async def of_released(world: World, mail: "Mail", item: Picked, to: Recipient) -> Success | None:
    """Return the DSN for a released message, None if its sender did not request one.

    The spam verdict is ignored, since the release has decided. The sender was verified when the
    message was quarantined; otherwise the stored request has no SUCCESS.
    """
    wish = restored(item.wish)
    if wish.on is None or On.SUCCESS not in wish.on or not mail.sender:
        return None
    told = [Told(item.wish["address"], Action.DELIVERED, _RESULT, wish.orcpt)]
    about = About(mail.sender, item.created_at, item.queue_id, wish)
    return await _written(world, mail, (about, told), to.tenant_id)
