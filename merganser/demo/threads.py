"""Threads of demo messages with their references."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from merganser.demo.header_fields import new_message_id
from merganser.demo.text_library import GeneratorState, MessageText, Person, write_reply, write_text

_SECTION_KEYS = (
    *("family", "pond", "team", "list", "club") * 3,
    *("de", "fr", "es", "ru", "ja", "pl"),
)
_THREAD_SIZES = (3, 3, 4, 4, 5, 5, 6, 7, 8, 9)
_MAX_REPLY_DELAY = timedelta(hours=30)


@dataclass(frozen=True)
class ThreadMessage:
    """A message of a thread. `parent_index` is the index of the message it replies to, or -1."""

    text: MessageText
    sent_at: datetime
    message_id: str
    parent_index: int
    references: tuple[str, ...]


def generate_thread(state: GeneratorState, start: datetime) -> list[ThreadMessage]:
    """Generate a thread of three to nine messages that ends before now."""
    rng = state.rng
    key = rng.choice(_SECTION_KEYS)
    senders = state.library.sections[key].senders
    people = [*rng.sample(senders, min(len(senders), rng.randint(2, 4))), state.owner]
    size = rng.choice(_THREAD_SIZES)
    wait = min(_MAX_REPLY_DELAY, (state.now - start) / (size + 1))
    first = write_text(state, key, sender=rng.choice(people))
    turns = [ThreadMessage(first, start, new_message_id(state, first.sender), -1, ())]
    while len(turns) < size:
        turns.append(_next_message(state, turns, people, wait))
    return turns


def _next_message(
    state: GeneratorState, turns: list[ThreadMessage], people: list[Person], wait: timedelta
) -> ThreadMessage:
    rng = state.rng
    # Most replies are to the last message, some to an earlier one.
    answered_index = rng.choice((len(turns) - 1,) * 3 + (rng.randrange(len(turns)),))
    parent = turns[answered_index]
    sender = rng.choice([person for person in people if person != parent.text.sender])
    seconds = int(wait.total_seconds() * rng.uniform(0.1, 1))
    sent_at = turns[-1].sent_at + timedelta(seconds=seconds)
    message_text = write_reply(state, parent.text, sender, parent.sent_at)
    references = (*parent.references, parent.message_id)
    return ThreadMessage(
        message_text, sent_at, new_message_id(state, sender), answered_index, references
    )
