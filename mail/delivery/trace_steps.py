"""Record the delivery trace of a message that passes mail/delivery/pipeline.py."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mail.addresses.address_syntax import normal_domain
from mail.delivery.account_forwards import Outcome
from mail.envelope.local_recipient import Recipient
from mail.recipients.batch_resolution import homes
from mail.recipients.recipient_routes import Answering, Onward, Taken
from mail.spam.verdict import Spam
from mail.storage.message_insert import Letter, Placed
from mail.storage.message_trace import Way, new_id
from mail.text.storable_text import storable
from models.errors import Refused
from models.messages.message_trace import LogComponent
from models.runtime.environment import World

if TYPE_CHECKING:
    from mail.delivery.quarantine import Why


# Traces are shown to users and filtered by text: a label does not change with its class name.
_ERROR_LABELS = {
    "DamagedContent": "Damaged",
    "InvalidInput": "Invalid",
    "MailLoop": "Loop",
    "MultipleErrors": "Several",
    "RejectedByDmarc": "Forged",
    "RejectedByScript": "Rejected",
    "RequestError": "Refused",
    "RewrittenToExternal": "Outside",
    "ScriptError": "NotCompiled",
    "ServiceUnavailable": "Unavailable",
    "SpamForwardRefused": "Held",
    "SpamRefused": "Unwanted",
    "StaleObject": "Stale",
    "UserLimitExceeded": "TooMany",
    "VirusRefused": "Infected",
}


def began(world: World, way: Way, sender: str, taken: Sequence[Taken]) -> None:
    """Record the envelope sender, the queue ID and the accepted recipients."""
    way.sender = sender
    way.queue_id = way.queue_id or next((e.queue_id for e in taken if e.queue_id), new_id(world))
    for each in taken:
        way.say(world, "accepted", _whose(each), f"from <{sender}>")


async def turned_away(world: World, way: Way, taken: Sequence[Taken]) -> None:
    """Record the refused recipients with the SMTP reply. No statement if there are none."""
    away = [one for each in taken for one in each.beside]
    if not away or not world.options.trace_for:
        return
    names = {one.address: storable(normal_domain(one.address.rpartition("@")[2])) for one in away}
    places = await homes(world, set(names.values()))
    for one in away:
        domain_id = next(iter(places.get(names[one.address], ())), None)
        way.say(world, "turned away", (one.address, domain_id), one.reply)


def judged(world: World, way: Way, to: Recipient, verdict: Spam) -> None:
    """Record the spam verdict of a recipient."""
    said = f"{'spam' if verdict.is_spam else 'no spam'}, score {verdict.score}, by {verdict.reason}"
    way.say(world, "judged", (to.address, to.domain_id), said, component=LogComponent.SPAM)


def held(world: World, way: Way, to: Recipient, why: "Why") -> None:
    """Record that the message was quarantined, and why."""
    said = f"{why.virus}, a virus" if why.virus else f"spam, {why.score:g} points"
    way.say(world, "held", (to.address, to.domain_id), said, component=LogComponent.SPAM)


def answered(world: World, way: Way, to: Recipient | Answering, outcome: str | None) -> None:
    """Record the outcome of the automatic reply. None records nothing."""
    if outcome is not None:
        event = "answered" if outcome == "answered" else "not answered"
        way.say(world, event, (to.address, to.domain_id), outcome)


def stored(
    world: World, way: Way, to: Recipient, placed: Placed | None, forwarded: Outcome | None
) -> None:
    """Record where the message was stored, and whether it was forwarded."""
    _stored(world, way, to, placed)
    if forwarded is not None:
        is_sent = forwarded is Outcome.SENT
        whose = to.address, to.domain_id
        way.say(world, "sent on" if is_sent else "not sent on", whose, forwarded.lower())


def _stored(world: World, way: Way, to: Recipient, placed: Placed | None) -> None:
    """Record the UID of the stored message, or that rules did not store it."""
    whose = to.address, to.domain_id
    if placed is None:
        way.say(world, "not stored", whose, "by a rule", component=LogComponent.STORE)
    else:
        where = f"uid {placed.uid}{_instead(to)}"
        way.say(
            world,
            "stored",
            whose,
            where,
            component=LogComponent.STORE,
            stored_message_id=placed.message_id,
        )


def released(world: World, queue_id: str, to: Recipient, what: tuple[Placed | None, str]) -> Way:
    """Return a new trace of a message that was released from quarantine.

    The pair is the inserted message, None if rules did not store it, and the name of the releaser.
    """
    placed, by = what
    way = Way(queue_id)
    way.say(world, "released", (to.address, to.domain_id), f"by {by}", component=LogComponent.SPAM)
    _stored(world, way, to, placed)
    return way


def sent_on(world: World, way: Way, onward: Onward) -> None:
    """Record that the message was queued for the targets of an address."""
    targets = [*onward.targets, *(via.shown for via in onward.via)]
    way.say(world, "sent on", (onward.address, onward.tenant_id), "to " + ", ".join(targets))


def ended(
    world: World, way: Way, letter: Letter, taken: Sequence[Taken], outcomes: Sequence[object]
) -> None:
    """Record refused and dropped recipients and schedule the write of the trace."""
    for each, outcome in zip(taken, outcomes, strict=True):
        if isinstance(outcome, Refused):
            way.say(world, "refused", _whose(each), f"{_error_label(outcome)}: {outcome.message}")
        elif isinstance(outcome, BaseException):
            way.say(world, "refused", _whose(each), "something broke: it comes again")
        elif not (each.people or each.onward):
            way.say(world, "dropped", _whose(each))
    way.write(world, letter)


def _error_label(error: Refused) -> str:
    """Return the label of an error in delivery traces."""
    name = type(error).__name__
    return _ERROR_LABELS.get(name, name)


def _whose(taken: Taken) -> tuple[str, int | None]:
    """Return the address and the ID of its domain."""
    if taken.people:
        return taken.address, taken.people[0].to.domain_id
    return taken.address, taken.onward[0].tenant_id if taken.onward else taken.domain_id


def _instead(to: Recipient) -> str:
    """Return the text about a rewritten recipient, "" if it was not rewritten."""
    return f", as {to.instead}" if to.instead else ""
