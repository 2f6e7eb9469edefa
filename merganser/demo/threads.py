"""Threads of demo messages with their references."""

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
    """A message of a thread. `parent_index` is the index of the message it replies to, or -1."""

    note: Note
    when: datetime
    message_id: str
    parent: int
    references: tuple[str, ...]


def conversation(state: Desk, start: datetime) -> list[Turn]:
    """Generate a thread of three to nine messages that ends before now."""
    rng = state.rng
    key = rng.choice(_SECTIONS)
    senders = state.library.sections[key].senders
    people = [*rng.sample(senders, min(len(senders), rng.randint(2, 4))), state.owner]
    size = rng.choice(_SIZES)
    wait = min(_LONGEST_WAIT, (state.now - start) / (size + 1))
    first = write(state, key, sender=rng.choice(people))
    turns = [Turn(first, start, new_id(state, first.sender), -1, ())]
    while len(turns) < size:
        turns.append(_next(state, turns, people, wait))
    return turns


def _next(state: Desk, turns: list[Turn], people: list[Person], wait: timedelta) -> Turn:
    rng = state.rng
    # Most replies are to the last message, some to an earlier one.
    place = rng.choice((len(turns) - 1,) * 3 + (rng.randrange(len(turns)),))
    parent = turns[place]
    sender = rng.choice([each for each in people if each != parent.note.sender])
    seconds = int(wait.total_seconds() * rng.uniform(0.1, 1))
    when = turns[-1].when + timedelta(seconds=seconds)
    message_text = answer(state, parent.note, sender, parent.when)
    references = (*parent.references, parent.message_id)
    return Turn(message_text, when, new_id(state, sender), place, references)
