"""What happens to a message that has come in, step by step.

1. It is read, and what our own servers found out about it is believed (mail/verification.py).
2. Whoever is to have it twice has it once.
3. It is judged for each account, and goes to Junk where it is spam (mail/spam.py).
4. It is stored for each account, behind fields that say how it came (mail/stamping.py), in a
   folder or under a subject that the label of its address asks for (mail/delimiting.py), and
   encrypted where that is asked for; one that has no room holds up nobody else.
5. An account that answers by itself does so (mail/autoreply).
6. One that forwards has it sent on, and rules have it copied (mail/forwarding.py,
   mail/rewrites.py). Spam is sent on neither for accounts nor for addresses.
7. It is sent on for the addresses that forward, and for those accounts that an address forwards
   to and that could not take it: the queue tries again, and reports to the sender.
8. What it went through is written down (mail/waysteps.py), and each address is answered for by
   itself: with a refusal where a part of it is not durable.

The steps before a message is there, whose mail it is and whether it may come, are those of
mail/routes.py. When all is done, what was not refused is durable.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mail import (
    autoreply,
    delimiting,
    delivery,
    encrypting,
    forwarding,
    junk,
    rewrites,
    stamping,
    waysteps,
)
from mail.addresses import Recipient
from mail.delivery import Letter, Placed
from mail.junk import Judged
from mail.messagetrace import Way
from mail.onward import send_on
from mail.rewrites import Came
from mail.routes import Onward, Person, Taken
from mail.verification import verified
from models.errors import Refused
from models.submission import ARRIVED
from models.world import World

Key = tuple[int, int]  # an account, and its INBOX


@dataclass
class Mail:
    """A message on its way through the steps."""

    source: bytes | Path
    letter: Letter
    sender: str  # envelope; empty for the null path
    handed: bool = False  # by a neighbour, whose filters are believed
    bare: bytes | Path | None = None  # as it is sent on, where that is not `source`
    copied: bool = True  # by rules; a copy itself is not
    submission_id: int = ARRIVED  # by which one of our users sent it
    way: Way = field(default_factory=Way)  # what is told of it: mail/waysteps.py
    placed: dict[Key, Placed | BaseException] = field(default_factory=dict)

    @property
    def outgoing(self) -> bytes | Path:
        """The message as it goes to others."""
        return self.source if self.bare is None else self.bare


async def receive(world: World, source: bytes | Path, sender: str) -> Mail:
    """A message that came from outside, read."""
    letter = verified(world, await delivery.read(source))
    return Mail(source, letter, sender, handed=True)


async def deliver(world: World, mail: Mail, taken: Sequence[Taken]) -> list[object]:
    """Take a message for these addresses; what came of each, an exception where it was refused."""
    waysteps.began(world, mail.way, mail.sender, taken)
    people: dict[Key, Person] = {}
    for each in taken:
        for person in each.people:
            people.setdefault(_key(person.to), person)
    everybody = list(people.values())
    await _store(world, mail, everybody)
    await _copy(world, mail, taken, everybody)
    outcomes = [await _settle(world, mail, each) for each in taken]
    waysteps.ended(world, mail.way, mail.letter, taken, outcomes)
    return outcomes


def _key(to: Recipient) -> Key:
    return to.user_id, to.mailbox_id


async def _store(world: World, mail: Mail, people: Sequence[Person]) -> None:
    alone = asyncio.Semaphore()  # who has it encrypted has bytes of his own: one at a time

    async def store(judged: Judged) -> Placed:
        judged = await delimiting.filed(world, judged)
        to = judged.to
        if to.key is None:
            letter = await stamping.stamped(mail.source, mail.letter, to, mail.sender)
            placed = await delivery.receive(world, letter, to, mail.sender)
        else:
            async with alone:
                placed = await encrypting.receive(world, mail.source, mail.letter, to, mail.sender)
        spam = judged.verdict.is_spam
        answered = await autoreply.after(
            world, (mail.source, mail.letter), to, mail.sender, spam=spam
        )
        sent = await forwarding.after(world, (mail.outgoing, mail.letter), judged, mail.sender)
        waysteps.stored(world, mail.way, judged, placed, (answered, sent))
        return placed

    to = [person.to for person in people]
    judged = await junk.judged(world, mail.letter, mail.sender, to, handed=mail.handed)
    outcomes = await asyncio.gather(*map(store, judged), return_exceptions=True)
    mail.placed |= dict(zip(map(_key, to), outcomes, strict=True))


async def _copy(world: World, mail: Mail, taken: Sequence[Taken], people: Sequence[Person]) -> None:
    """Queue what rules have copied; where that fails, the whole message comes again."""
    if not mail.copied:
        return
    reached = [
        person.to
        for person in people
        if not isinstance(mail.placed[_key(person.to)], BaseException)
    ]
    named = [each.address for each in taken] + [to.instead for to in reached if to.instead]
    came = Came(mail.outgoing, mail.letter, mail.sender, named, mail.submission_id)
    await rewrites.copies_of_received(world, came, reached)


async def _settle(world: World, mail: Mail, taken: Taken) -> object:
    """Send on what is to be sent on for this address; what came of it."""
    outcomes: list[object] = []
    onward = list(taken.onward)
    if taken.people and forwarding.is_spam(world, mail.letter, mail.sender, handed=mail.handed):
        onward = []
    for person in taken.people:
        outcome = mail.placed[_key(person.to)]
        if person.by is not None and isinstance(outcome, Refused):
            onward.append(person.by)
        else:
            outcomes.append(outcome)
    outcomes += [await _sent_on(world, mail, each) for each in onward]
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    return refused[0] if refused else next(iter(outcomes), None)


async def _sent_on(world: World, mail: Mail, onward: Onward) -> object:
    spam = forwarding.is_spam(world, mail.letter, mail.sender, handed=mail.handed)
    try:
        if spam and not onward.returns:
            raise forwarding.Held("spam is not sent on")
        await send_on(world, mail.outgoing, mail.letter.digest, mail.sender, onward)
    except Exception as error:  # noqa: BLE001 - it is what came of this address
        return error
    waysteps.sent_on(world, mail.way, onward)
    return onward
