"""Generate the messages of the demo account: single ones, threads and malformed ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import cycle
from random import Random

from merganser.demo import attachment_messages, message_shapes, mime, text_library
from merganser.demo.header_fields import LIST, Way, envelope_from, fields, new_id
from merganser.demo.malformed_messages import BROKEN
from merganser.demo.mime import Part
from merganser.demo.text_library import CHARSETS, Desk, Note, Person, with_charset, write
from merganser.demo.threads import Turn, conversation

_INBOX, _SENT, _DRAFTS, _JUNK = "INBOX", "Sent", "Drafts", "Junk"
_KINGFISHER, _PYTHON = "Projects/Kingfisher", "Lists/Python-users"
_NEWEST = timedelta(minutes=4)
_DAYS = 119
_LETTERS_PER_BROKEN, _LETTERS_PER_THREAD = 18, 18
_OMITTED = ("Subject", "Date", "From", "Message-ID", "To")
_ABROAD = 0.65  # share of messages in other languages, if the shape allows it
_WORN = 45
_EMOJI = ("🦆", "🌊", "☕", "📦", "🎉", "🐌")


@dataclass(frozen=True)
class Letter:
    """A generated message with its mailbox and flags. `language` is a BCP 47 tag."""

    raw: bytes
    envelope_from: str
    received_at: datetime
    mailbox: str
    seen: bool
    flagged: bool
    answered: bool
    draft: bool
    structure: str
    language: str
    broken: bool = False


def letters(
    seed: int = 1, count: int = 520, *, now: datetime, owner: str = "demo@merganser.example"
) -> Iterator[Letter]:
    """Yield messages of the 120 days before `now`, the oldest first.

    The same arguments give the same bytes. All messages are in memory until they are sorted, about
    20 kB each.
    """
    rng = Random(seed)  # noqa: S311 (nothing here is secret, and it has to be repeatable)
    moment = now.astimezone(UTC).replace(microsecond=0)
    state = Desk(rng, moment, Person("Demo Duck", owner), text_library.read(), {}, moment)
    state.shared.update(attachment_messages.shared(state))
    messages = [*_broken(state, count // _LETTERS_PER_BROKEN)]
    for _ in range(count // _LETTERS_PER_THREAD):
        messages += _thread(state)
    messages = messages[:count]
    messages += _singles(state, count - len(messages))
    yield from sorted(messages, key=lambda letter: letter.received_at)


def _moment(state: Desk) -> datetime:
    # More of them lately than long ago.
    age = timedelta(seconds=int(state.rng.random() ** 1.4 * _DAYS * 86400))
    return state.now - _NEWEST - age


def _token(state: Desk) -> str:
    rng = state.rng
    number = rng.getrandbits(64)
    styles = (f"=_{number:016x}", f"----=_Part_{number}", f"_000_{number:x}duck_", f"b1_{number:X}")
    return rng.choice(styles)


def _letter(state: Desk, message_text: Note, routing: Way, part: Part) -> Letter:
    mailbox = _mailbox(state, message_text, routing)
    own = mailbox in (_SENT, _DRAFTS)
    return Letter(
        raw=mime.letter(fields(state, message_text, routing), part, _token(state)),
        envelope_from=envelope_from(message_text, routing),
        received_at=routing.when,
        mailbox=mailbox,
        seen=own or state.rng.random() < _read_share(state, routing),
        flagged=state.rng.random() < 1 / 16,
        answered=False,
        draft=mailbox == _DRAFTS,
        structure="",
        language=message_text.language,
    )


def _read_share(state: Desk, routing: Way) -> float:
    return 0.35 if state.now - routing.when < timedelta(days=4) else 0.84


def _mailbox(state: Desk, message_text: Note, routing: Way) -> str:
    if routing.own:
        return _SENT
    if message_text.genre == "spam":
        return _JUNK
    if LIST in routing.to:
        return _PYTHON
    sorted_away = message_text.genre in ("team", "forge") and state.rng.random() < 0.6  # noqa: PLR2004
    return _KINGFISHER if sorted_away else _INBOX


def _singles(state: Desk, count: int) -> Iterator[Letter]:
    weights = [shape.weight for shape in message_shapes.SHAPES]
    more = max(0, count - 2 * len(message_shapes.SHAPES))
    order = [
        *message_shapes.SHAPES * 2,
        *state.rng.choices(message_shapes.SHAPES, weights, k=more),
    ][:count]
    state.rng.shuffle(order)
    pairs = [(key, charset) for key, charsets in CHARSETS.items() for charset in charsets]
    state.rng.shuffle(pairs)
    language_cycle = cycle(pairs)
    for number, shape in enumerate(order):
        is_foreign = message_shapes.WORLD in shape.genres and state.rng.random() < _ABROAD
        english_genres = [genre for genre in shape.genres if genre != message_shapes.WORLD]
        key, charset = (
            next(language_cycle)
            if is_foreign or not english_genres
            else (state.rng.choice(english_genres), "")
        )
        message_text = _varied(state, _by(state, key, charset, number), number)
        routing = _way(state, message_text, number)
        state.when = routing.when
        letter = _letter(state, message_text, routing, shape.build(state, message_text))
        if message_text.sender == state.owner and number % 3 == 0:
            letter = replace(letter, mailbox=_DRAFTS, draft=True)
        if number % _WORN == _WORN - 1:
            omitted = _OMITTED[number // _WORN % len(_OMITTED)]
            letter = replace(letter, raw=_omit(letter.raw, omitted))
        yield replace(letter, structure=shape.name)


def _by(state: Desk, key: str, charset: str, number: int) -> Note:
    own = key in ("family", "pond", "club", "team") and number % 7 == 0
    return write(state, key, charset, state.owner if own else None)


def _varied(state: Desk, message_text: Note, number: int) -> Note:
    if number % 60 == 11:  # noqa: PLR2004 (a subject that goes on and on)
        parts = [write(state, message_text.genre).subject for _ in range(state.rng.randint(5, 12))]
        return with_charset(
            replace(message_text, subject=", and: ".join((message_text.subject, *parts))), "utf-8"
        )
    if number % 25 == 3:  # noqa: PLR2004 (a little picture in front)
        decorated = f"{state.rng.choice(_EMOJI)} {message_text.subject}"
        return with_charset(replace(message_text, subject=decorated), "utf-8")
    return message_text


def _way(state: Desk, message_text: Note, number: int) -> Way:
    own = message_text.sender == state.owner
    others = state.library.sections[message_text.genre].senders
    to: tuple[Person, ...] = (state.owner,)
    if own:
        to = tuple(state.rng.sample(others, state.rng.randint(1, 2)))
    elif message_text.genre == "list":
        to = (LIST,)
    elif message_text.genre == "pond" and number % 2:
        to = (state.owner, *state.rng.sample(others, 2))
    cc = (
        (state.rng.choice(others),)
        if message_text.genre in ("team", "club") and number % 3 == 1
        else ()
    )
    when = state.now - _NEWEST if number == 1 else _moment(state)
    return Way(to, cc, when, new_id(state, message_text.sender), own=own)


def _omit(raw: bytes, name: str) -> bytes:
    head, gap, body = raw.partition(b"\r\n\r\n")
    kept: list[bytes] = []
    skipping = False
    for row in head.split(b"\r\n"):
        skipping = row.startswith(f"{name}:".encode()) or (skipping and row[:1] in b" \t")
        if not skipping:
            kept.append(row)
    return b"\r\n".join(kept) + gap + body


def _thread(state: Desk) -> list[Letter]:
    thread_messages = conversation(state, _moment(state))
    answered = {
        thread_message.parent
        for thread_message in thread_messages
        if thread_message.note.sender == state.owner
    }
    messages = []
    sizes: set[int] = set()
    for at, thread_message in enumerate(thread_messages):
        state.when = thread_message.when
        build, part = _answer_part(state, thread_message.note, sizes)
        letter = _letter(
            state, thread_message.note, _turn_way(state, thread_message, thread_messages), part
        )
        name = message_shapes.Shape(build, ()).name
        messages.append(replace(letter, structure=name, answered=at in answered))
    return messages


def _answer_part(
    state: Desk, message_text: Note, sizes: set[int]
) -> tuple[message_shapes.Build, Part]:
    # Answers have one subject, so no two of them may have the same size.
    while True:
        build = state.rng.choice(message_shapes.ANSWERS)
        part = build(state, message_text)
        size = len(mime.entity(part, "")[1])
        if size not in sizes:
            sizes.add(size)
            return build, part


def _turn_way(state: Desk, thread_message: Turn, thread_messages: list[Turn]) -> Way:
    own = thread_message.note.sender == state.owner
    people = list(dict.fromkeys([each.note.sender for each in thread_messages] + [state.owner]))
    others = tuple(each for each in people if each != thread_message.note.sender)
    to, cc = others[:1], others[1:]
    if thread_message.note.genre == "list":
        to, cc = (LIST,), ()
    parent = thread_messages[thread_message.parent].message_id if thread_message.parent >= 0 else ""
    return Way(
        to,
        cc,
        thread_message.when,
        thread_message.message_id,
        thread_message.references,
        parent,
        own,
    )


def _broken(state: Desk, count: int) -> Iterator[Letter]:
    for build in BROKEN[:count]:
        message_text = with_charset(
            write(state, state.rng.choice(("family", "club", "pond"))), "utf-8"
        )
        routing = Way((state.owner,), (), _moment(state), new_id(state, message_text.sender))
        letter = _letter(state, message_text, routing, Part("text/plain"))
        raw = build(state, message_text, fields(state, message_text, routing))
        name = f"broken-{message_shapes.named(build)}"
        yield replace(letter, raw=raw, structure=name, broken=True)
