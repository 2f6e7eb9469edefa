"""Telling senders elsewhere that their mail has come, where they ask for it (NOTIFY=SUCCESS).

Where SPF and DMARC are checked and do not show who the sender is, nobody is told: anybody can name
a sender. What is sent on to one place
is told of by the server there, or by our queue where that sends no reports.
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
    """What becomes of an address here; None where it goes on to one place, and is told of there."""
    beyond = _beyond(taken)
    if not beyond:
        return Action.DELIVERED
    return None if beyond == 1 and not taken.people else Action.EXPANDED


def passed_on(taken: Taken) -> Wish:
    """What is wanted of those to whom an address sends on.

    Of several each is no more what the sender knows: that it came to the first is told of here.
    """
    wish = taken.wish
    if ends(taken) is None:
        return replace(wish, orcpt=wish.orcpt or typed(taken.address))
    return Wish(wish.without(On.SUCCESS).on, ret=wish.ret)


def _beyond(taken: Taken) -> int:
    return sum(len(each.targets) + len(each.via) for each in taken.onward)


async def after(
    world: World, mail: "Mail", taken: Sequence[Taken], outcomes: Sequence[object]
) -> None:
    """Report to the sender what has come, where he wants it. What goes wrong undoes no delivery."""
    told = [
        Told(each.address, action, _RESULT, each.wish.orcpt)
        for each, outcome in zip(taken, outcomes, strict=True)
        if each.wish.on is not None
        and each.wish.wants(On.SUCCESS)
        and not isinstance(outcome, BaseException)
        and not (outcome is None and each.people)  # it is held
        and (action := ends(each)) is not None
    ]
    if not told or not mail.sender or _doubtful(world, mail):
        return
    try:
        await _send(world, mail, taken[0], told)
    except Exception:  # the message is stored: it must not come again for this
        log.exception("a report was not sent", extra={"id": mail.way.queue_id})


_RESULT = Result(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", here=Action.DELIVERED)


def _doubtful(world: World, mail: "Mail") -> bool:
    """Whether it is spam, or, where that is checked, its sender may be somebody else."""
    found = _known(world, mail)
    scan = mail.letter.scan or Scan()
    score = max(found.score.value, verdict.scored_by(scan, verdict.Limits()))
    return score >= verdict.FLAGGED or _unsure(mail, found)


def _known(world: World, mail: "Mail") -> verdict.Known:
    letter, believed = mail.letter, world.options.spam_headers
    opinions = letter.facts.opinions if mail.handed else ()
    return verdict.known(opinions, believed, mail.sender, letter.verification, letter.scan)


def unsure(world: World, mail: "Mail") -> bool:
    """Whether its sender may be somebody else, where that is checked."""
    return _unsure(mail, _known(world, mail))


def _unsure(mail: "Mail", found: verdict.Known) -> bool:
    if found.forged:
        return True
    sure = found.vouched or (mail.letter.verification or {}).get("dmarc") == "pass"
    return not sure and not mail.handed and mail.results is not None


async def _send(world: World, mail: "Mail", of: Taken, told: Sequence[Told]) -> None:
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
    """A report that can be queued."""

    letter: Letter
    to: str
    tenant_id: int
    known: str  # by which a repeat is known


async def _written(
    world: World, mail: "Mail", what: tuple[About, Sequence[Told]], tenant_id: int
) -> Success:
    about, told = what
    head = await first(mail.source, min(mail.letter.facts.structure.body_start, HEAD))
    letter = await read(written(world, about, told, head))
    named = ",".join(each.address for each in told)
    known = f"{mail.sender}\0told\0{named}\0{mail.came}"
    return Success(letter, mail.sender, tenant_id, known)


def enter(turn: Turn, report: Success, kept: Kept) -> None:
    """Queue a report whose bytes are safe, in a unit that holds PLATFORM; a repeat once."""
    if new(turn, report.known):
        given = handed(turn, report.letter, kept, "", [report.to])
        hand_in(turn, Sender(None, report.tenant_id), given)


async def of_released(world: World, mail: "Mail", item: Picked, to: Recipient) -> Success | None:
    """The report that a message has come which was held, where its sender wants it.

    That it was taken for spam does not matter: who lets it in has decided. Whether its sender is
    who he says was asked as it was held: else `mail.delivery.quarantine` has not kept that he
    wants it.
    """
    wish = restored(item.wish)
    if wish.on is None or On.SUCCESS not in wish.on or not mail.sender:
        return None
    told = [Told(item.wish["address"], Action.DELIVERED, _RESULT, wish.orcpt)]
    about = About(mail.sender, item.created_at, item.queue_id, wish)
    return await _written(world, mail, (about, told), to.tenant_id)
