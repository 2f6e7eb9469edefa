"""What is told of a message on its way through mail/delivery/pipeline.py."""

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


def began(world: World, way: Way, sender: str, taken: Sequence[Taken]) -> None:
    """It was accepted for these."""
    way.sender = sender
    way.queue_id = way.queue_id or next((e.queue_id for e in taken if e.queue_id), new_id(world))
    for each in taken:
        way.say(world, "accepted", _whose(each), f"from <{sender}>")


async def turned_away(world: World, way: Way, taken: Sequence[Taken]) -> None:
    """For these it was not accepted, and why. No statement where there are none."""
    away = [one for each in taken for one in each.beside]
    if not away or not world.options.trace_for:
        return
    names = {one.address: storable(normal_domain(one.address.rpartition("@")[2])) for one in away}
    places = await homes(world, set(names.values()))
    for one in away:
        domain_id = next(iter(places.get(names[one.address], ())), None)
        way.say(world, "turned away", (one.address, domain_id), one.reply)


def judged(world: World, way: Way, to: Recipient, verdict: Spam) -> None:
    """It was judged for somebody: by scanners, rules and filters."""
    said = f"{'spam' if verdict.is_spam else 'no spam'}, score {verdict.score}, by {verdict.reason}"
    way.say(world, "judged", (to.address, to.domain_id), said, component=LogComponent.SPAM)


def held(world: World, way: Way, to: Recipient, why: "Why") -> None:
    """It is held, and why."""
    said = f"{why.virus}, a virus" if why.virus else f"spam, {why.score:g} points"
    way.say(world, "held", (to.address, to.domain_id), said, component=LogComponent.SPAM)


def answered(world: World, way: Way, to: Recipient | Answering, outcome: str | None) -> None:
    """It was answered by itself, or not."""
    if outcome is not None:
        event = "answered" if outcome == "answered" else "not answered"
        way.say(world, event, (to.address, to.domain_id), outcome)


def stored(
    world: World, way: Way, to: Recipient, placed: Placed | None, forwarded: Outcome | None
) -> None:
    """It was stored, and then forwarded, or not."""
    _stored(world, way, to, placed)
    if forwarded is not None:
        is_sent = forwarded is Outcome.SENT
        whose = to.address, to.domain_id
        way.say(world, "sent on" if is_sent else "not sent on", whose, forwarded.lower())


def _stored(world: World, way: Way, to: Recipient, placed: Placed | None) -> None:
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
    """It was held, and is let in by somebody; its further way."""
    placed, by = what
    way = Way(queue_id)
    way.say(world, "released", (to.address, to.domain_id), f"by {by}", component=LogComponent.SPAM)
    _stored(world, way, to, placed)
    return way


def sent_on(world: World, way: Way, onward: Onward) -> None:
    """It is in the queue for the targets of an address."""
    targets = [*onward.targets, *(via.shown for via in onward.via)]
    way.say(world, "sent on", (onward.address, onward.tenant_id), "to " + ", ".join(targets))


def ended(
    world: World, way: Way, letter: Letter, taken: Sequence[Taken], outcomes: Sequence[object]
) -> None:
    """All is done: what was refused, and why; and have it written."""
    for each, outcome in zip(taken, outcomes, strict=True):
        if isinstance(outcome, Refused):
            way.say(world, "refused", _whose(each), f"{type(outcome).__name__}: {outcome.message}")
        elif isinstance(outcome, BaseException):
            way.say(world, "refused", _whose(each), "something broke: it comes again")
        elif not (each.people or each.onward):
            way.say(world, "dropped", _whose(each))
    way.write(world, letter)


def _whose(taken: Taken) -> tuple[str, int | None]:
    """The address, and the domain it is in."""
    if taken.people:
        return taken.address, taken.people[0].to.domain_id
    return taken.address, taken.onward[0].tenant_id if taken.onward else taken.domain_id


def _instead(to: Recipient) -> str:
    return f", as {to.instead}" if to.instead else ""
