"""Conversations: who answers whom, when, and with which references."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from merganser.demo.header_fields import new_id
from merganser.demo.text_library import Desk, Note, Person, answer, write

_SECTIONS = (
    *("family", "pond", "team", "list", "club") * 3,
    *("de", "fr", "es", "ru", "ja", "pl"),
)
_SIZES = (3, 3, 4, 4, 5, 5, 6, 7, 8, 9)
_LONGEST_WAIT = timedelta(hours=30)


@dataclass(frozen=True)
class Turn:
    """One letter of a conversation. `parent` is the place of the letter it answers, or -1."""

    note: Note
    when: datetime
    message_id: str
    parent: int
    references: tuple[str, ...]


def conversation(desk: Desk, start: datetime) -> list[Turn]:
    """Hold a conversation of three to nine letters that is over before now."""
    rng = desk.rng
    key = rng.choice(_SECTIONS)
    senders = desk.library.sections[key].senders
    people = [*rng.sample(senders, min(len(senders), rng.randint(2, 4))), desk.owner]
    size = rng.choice(_SIZES)
    wait = min(_LONGEST_WAIT, (desk.now - start) / (size + 1))
    first = write(desk, key, sender=rng.choice(people))
    turns = [Turn(first, start, new_id(desk, first.sender), -1, ())]
    while len(turns) < size:
        turns.append(_next(desk, turns, people, wait))
    return turns


def _next(desk: Desk, turns: list[Turn], people: list[Person], wait: timedelta) -> Turn:
    rng = desk.rng
    # Mostly the last letter is answered, sometimes one further up.
    place = rng.choice((len(turns) - 1,) * 3 + (rng.randrange(len(turns)),))
    parent = turns[place]
    sender = rng.choice([each for each in people if each != parent.note.sender])
    seconds = int(wait.total_seconds() * rng.uniform(0.1, 1))
    when = turns[-1].when + timedelta(seconds=seconds)
    note = answer(desk, parent.note, sender, parent.when)
    references = (*parent.references, parent.message_id)
    return Turn(note, when, new_id(desk, sender), place, references)
