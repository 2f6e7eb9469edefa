"""What is told of a message on its way through mail/pipeline.py."""

from collections.abc import Sequence

from mail.addresses import Recipient
from mail.delivery import Letter, Placed
from mail.forwarding import Outcome
from mail.junk import Judged
from mail.messagetrace import Way, new_id
from mail.routes import Answering, Onward, Taken
from models.errors import Refused
from models.messagetrace import LogComponent
from models.world import World


def began(world: World, way: Way, sender: str, taken: Sequence[Taken]) -> None:
    """It was accepted for these."""
    way.queue_id = way.queue_id or next((e.queue_id for e in taken if e.queue_id), new_id(world))
    for each in taken:
        way.say(world, "accepted", _whose(each), f"from <{sender}>")


def _judged(world: World, way: Way, judged: Judged) -> tuple[str, int | None]:
    verdict, to = judged.verdict, (judged.to.address, judged.to.domain_id)
    said = f"{'spam' if verdict.is_spam else 'no spam'}, score {verdict.score}, by {verdict.reason}"
    way.say(world, "judged", to, said, component=LogComponent.SPAM)
    return to


def held(world: World, way: Way, judged: Judged) -> None:
    """It was judged, and is held."""
    way.say(world, "held", _judged(world, way, judged), component=LogComponent.SPAM)


def answered(world: World, way: Way, to: Recipient | Answering, outcome: str | None) -> None:
    """It was answered by itself, or not."""
    if outcome is not None:
        event = "answered" if outcome == "answered" else "not answered"
        way.say(world, event, (to.address, to.domain_id), outcome)


def stored(
    world: World, way: Way, judged: Judged, placed: Placed | None, forwarded: Outcome | None
) -> None:
    """It was judged, stored, and then forwarded, or not."""
    to = _judged(world, way, judged)
    if placed is None:
        way.say(world, "not stored", to, "by a rule", component=LogComponent.STORE)
    else:
        where = f"message {placed.message_id:x}, uid {placed.uid}{_instead(judged.to)}"
        way.say(world, "stored", to, where, component=LogComponent.STORE)
    if forwarded is not None:
        is_sent = forwarded is Outcome.SENT
        way.say(world, "sent on" if is_sent else "not sent on", to, forwarded.lower())


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
