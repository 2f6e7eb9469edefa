"""Generate the messages of the demo account: single ones, threads and malformed ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import cycle
from random import Random

from merganser.demo import attachment_messages, message_shapes, mime, text_library
from merganser.demo.header_fields import (
    MAILING_LIST,
    MessageRouting,
    create_fields,
    envelope_sender,
    new_message_id,
)
from merganser.demo.malformed_messages import MALFORMED_BUILDERS
from merganser.demo.mime import DemoPart
from merganser.demo.text_library import (
    CHARSETS,
    GeneratorState,
    MessageText,
    Person,
    with_charset,
    write_text,
)
from merganser.demo.threads import ThreadMessage, generate_thread

_INBOX, _SENT, _DRAFTS, _JUNK = "INBOX", "Sent", "Drafts", "Junk"
_KINGFISHER, _PYTHON = "Projects/Kingfisher", "Lists/Python-users"
_NEWEST = timedelta(minutes=4)
_DAYS = 119
_MESSAGES_PER_MALFORMED, _MESSAGES_PER_THREAD = 18, 18
_OMITTED = ("Subject", "Date", "From", "Message-ID", "To")
_FOREIGN_SHARE = 0.65  # share of messages in other languages, if the shape allows it
_MESSAGES_PER_OMITTED_FIELD = 45
_EMOJI = ("🦆", "🌊", "☕", "📦", "🎉", "🐌")


@dataclass(frozen=True)
class DemoMessage:
    """A generated message with its mailbox and flags. `language` is a BCP 47 tag."""

    raw: bytes
    envelope_from: str
    received_at: datetime
    mailbox: str
    is_seen: bool
    is_flagged: bool
    is_answered: bool
    is_draft: bool
    shape_name: str
    language: str
    is_malformed: bool = False


def generate_messages(
    seed: int = 1, count: int = 520, *, now: datetime, owner_address: str = "demo@merganser.example"
) -> Iterator[DemoMessage]:
    """Yield messages of the 120 days before `now`, the oldest first.

    The same arguments give the same bytes. All messages are in memory until they are sorted, about
    20 kB each.
    """
    rng = Random(seed)  # noqa: S311 (nothing here is secret, and it has to be repeatable)
    moment = now.astimezone(UTC).replace(microsecond=0)
    state = GeneratorState(
        rng, moment, Person("Demo Duck", owner_address), text_library.read_library(), {}, moment
    )
    state.shared_files.update(attachment_messages.create_shared_files(state))
    messages = [*_generate_malformed(state, count // _MESSAGES_PER_MALFORMED)]
    for _ in range(count // _MESSAGES_PER_THREAD):
        messages += _generate_thread(state)
    messages = messages[:count]
    messages += _generate_single_messages(state, count - len(messages))
    yield from sorted(messages, key=lambda message: message.received_at)


def _random_time(state: GeneratorState) -> datetime:
    # More of them lately than long ago.
    age = timedelta(seconds=int(state.rng.random() ** 1.4 * _DAYS * 86400))
    return state.now - _NEWEST - age


def _new_boundary_token(state: GeneratorState) -> str:
    rng = state.rng
    number = rng.getrandbits(64)
    styles = (f"=_{number:016x}", f"----=_Part_{number}", f"_000_{number:x}duck_", f"b1_{number:X}")
    return rng.choice(styles)


def _create_message(
    state: GeneratorState, message_text: MessageText, routing: MessageRouting, part: DemoPart
) -> DemoMessage:
    mailbox = _choose_mailbox(state, message_text, routing)
    is_own = mailbox in (_SENT, _DRAFTS)
    return DemoMessage(
        raw=mime.serialize_message(
            create_fields(state, message_text, routing), part, _new_boundary_token(state)
        ),
        envelope_from=envelope_sender(message_text, routing),
        received_at=routing.sent_at,
        mailbox=mailbox,
        is_seen=is_own or state.rng.random() < _seen_probability(state, routing),
        is_flagged=state.rng.random() < 1 / 16,
        is_answered=False,
        is_draft=mailbox == _DRAFTS,
        shape_name="",
        language=message_text.language,
    )


def _seen_probability(state: GeneratorState, routing: MessageRouting) -> float:
    return 0.35 if state.now - routing.sent_at < timedelta(days=4) else 0.84


def _choose_mailbox(
    state: GeneratorState, message_text: MessageText, routing: MessageRouting
) -> str:
    if routing.is_own:
        return _SENT
    if message_text.genre == "spam":
        return _JUNK
    if MAILING_LIST in routing.to:
        return _PYTHON
    sorted_away = message_text.genre in ("team", "forge") and state.rng.random() < 0.6  # noqa: PLR2004
    return _KINGFISHER if sorted_away else _INBOX


def _generate_single_messages(state: GeneratorState, count: int) -> Iterator[DemoMessage]:
    weights = [shape.weight for shape in message_shapes.SHAPES]
    extra_count = max(0, count - 2 * len(message_shapes.SHAPES))
    order = [
        *message_shapes.SHAPES * 2,
        *state.rng.choices(message_shapes.SHAPES, weights, k=extra_count),
    ][:count]
    state.rng.shuffle(order)
    pairs = [(key, charset) for key, charsets in CHARSETS.items() for charset in charsets]
    state.rng.shuffle(pairs)
    language_cycle = cycle(pairs)
    for number, shape in enumerate(order):
        is_foreign = (
            message_shapes.FOREIGN_LANGUAGE in shape.genres and state.rng.random() < _FOREIGN_SHARE
        )
        english_genres = [
            genre for genre in shape.genres if genre != message_shapes.FOREIGN_LANGUAGE
        ]
        key, charset = (
            next(language_cycle)
            if is_foreign or not english_genres
            else (state.rng.choice(english_genres), "")
        )
        message_text = _vary_subject(state, _write_text(state, key, charset, number), number)
        routing = _routing_of_single(state, message_text, number)
        state.current_time = routing.sent_at
        message = _create_message(state, message_text, routing, shape.build(state, message_text))
        if message_text.sender == state.owner and number % 3 == 0:
            message = replace(message, mailbox=_DRAFTS, is_draft=True)
        if number % _MESSAGES_PER_OMITTED_FIELD == _MESSAGES_PER_OMITTED_FIELD - 1:
            omitted = _OMITTED[number // _MESSAGES_PER_OMITTED_FIELD % len(_OMITTED)]
            message = replace(message, raw=_without_header_field(message.raw, omitted))
        yield replace(message, shape_name=shape.name)


def _write_text(state: GeneratorState, key: str, charset: str, number: int) -> MessageText:
    """Write a text. The owner is the sender of every seventh message of a private genre."""
    is_own = key in ("family", "pond", "club", "team") and number % 7 == 0
    return write_text(state, key, charset, state.owner if is_own else None)


def _vary_subject(state: GeneratorState, message_text: MessageText, number: int) -> MessageText:
    if number % 60 == 11:  # noqa: PLR2004 (a subject that goes on and on)
        parts = [
            write_text(state, message_text.genre).subject for _ in range(state.rng.randint(5, 12))
        ]
        return with_charset(
            replace(message_text, subject=", and: ".join((message_text.subject, *parts))), "utf-8"
        )
    if number % 25 == 3:  # noqa: PLR2004 (a little picture in front)
        decorated = f"{state.rng.choice(_EMOJI)} {message_text.subject}"
        return with_charset(replace(message_text, subject=decorated), "utf-8")
    return message_text


def _routing_of_single(
    state: GeneratorState, message_text: MessageText, number: int
) -> MessageRouting:
    is_own = message_text.sender == state.owner
    senders = state.library.sections[message_text.genre].senders
    to_people: tuple[Person, ...] = (state.owner,)
    if is_own:
        to_people = tuple(state.rng.sample(senders, state.rng.randint(1, 2)))
    elif message_text.genre == "list":
        to_people = (MAILING_LIST,)
    elif message_text.genre == "pond" and number % 2:
        to_people = (state.owner, *state.rng.sample(senders, 2))
    cc = (
        (state.rng.choice(senders),)
        if message_text.genre in ("team", "club") and number % 3 == 1
        else ()
    )
    sent_at = state.now - _NEWEST if number == 1 else _random_time(state)
    return MessageRouting(
        to_people, cc, sent_at, new_message_id(state, message_text.sender), is_own=is_own
    )


def _without_header_field(raw: bytes, name: str) -> bytes:
    head, gap, body = raw.partition(b"\r\n\r\n")
    kept_lines: list[bytes] = []
    skipping = False
    for row in head.split(b"\r\n"):
        skipping = row.startswith(f"{name}:".encode()) or (skipping and row[:1] in b" \t")
        if not skipping:
            kept_lines.append(row)
    return b"\r\n".join(kept_lines) + gap + body


def _generate_thread(state: GeneratorState) -> list[DemoMessage]:
    thread_messages = generate_thread(state, _random_time(state))
    answered = {
        thread_message.parent_index
        for thread_message in thread_messages
        if thread_message.text.sender == state.owner
    }
    messages = []
    sizes: set[int] = set()
    for at, thread_message in enumerate(thread_messages):
        state.current_time = thread_message.sent_at
        build, part = _reply_part_of_unused_size(state, thread_message.text, sizes)
        message = _create_message(
            state,
            thread_message.text,
            _routing_of_reply(state, thread_message, thread_messages),
            part,
        )
        name = message_shapes.MessageShape(build, ()).name
        messages.append(replace(message, shape_name=name, is_answered=at in answered))
    return messages


def _reply_part_of_unused_size(
    state: GeneratorState, message_text: MessageText, sizes: set[int]
) -> tuple[message_shapes.BuildPart, DemoPart]:
    # Answers have one subject, so no two of them may have the same size.
    while True:
        build = state.rng.choice(message_shapes.REPLY_BUILDERS)
        part = build(state, message_text)
        size = len(mime.serialize_part_fields_and_body(part, "")[1])
        if size not in sizes:
            sizes.add(size)
            return build, part


def _routing_of_reply(
    state: GeneratorState, thread_message: ThreadMessage, thread_messages: list[ThreadMessage]
) -> MessageRouting:
    is_own = thread_message.text.sender == state.owner
    people = list(
        dict.fromkeys([message.text.sender for message in thread_messages] + [state.owner])
    )
    other_people = tuple(person for person in people if person != thread_message.text.sender)
    to_people, cc = other_people[:1], other_people[1:]
    if thread_message.text.genre == "list":
        to_people, cc = (MAILING_LIST,), ()
    parent = (
        thread_messages[thread_message.parent_index].message_id
        if thread_message.parent_index >= 0
        else ""
    )
    return MessageRouting(
        to_people,
        cc,
        thread_message.sent_at,
        thread_message.message_id,
        thread_message.references,
        parent,
        is_own,
    )


def _generate_malformed(state: GeneratorState, count: int) -> Iterator[DemoMessage]:
    for build in MALFORMED_BUILDERS[:count]:
        message_text = with_charset(
            write_text(state, state.rng.choice(("family", "club", "pond"))), "utf-8"
        )
        routing = MessageRouting(
            (state.owner,), (), _random_time(state), new_message_id(state, message_text.sender)
        )
        message = _create_message(state, message_text, routing, DemoPart("text/plain"))
        raw = build(state, message_text, create_fields(state, message_text, routing))
        name = f"broken-{message_shapes.shape_name(build)}"
        yield replace(message, raw=raw, shape_name=name, is_malformed=True)
