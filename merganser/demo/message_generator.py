"""A bag of letters for the demo account: single ones, conversations, and broken ones."""

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
_ABROAD = 0.65  # share of the letters from other countries, where the shape allows it
_WORN = 45  # every so many letters lack a field
_EMOJI = ("🦆", "🌊", "☕", "📦", "🎉", "🐌")


@dataclass(frozen=True)
class Letter:
    """One message as it would arrive. `structure` names its shape, `language` is a BCP 47 tag."""

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
    """Yield letters from the oldest to the newest, all of them from the 120 days before `now`.

    The same arguments give the same bytes. All letters are held in memory until they are sorted:
    about 20 kB for each.
    """
    rng = Random(seed)  # noqa: S311 (nothing here is secret, and it has to be repeatable)
    moment = now.astimezone(UTC).replace(microsecond=0)
    desk = Desk(rng, moment, Person("Demo Duck", owner), text_library.read(), {}, moment)
    desk.shared.update(attachment_messages.shared(desk))
    made = [*_broken(desk, count // _LETTERS_PER_BROKEN)]
    for _ in range(count // _LETTERS_PER_THREAD):
        made += _thread(desk)
    made = made[:count]
    made += _singles(desk, count - len(made))
    yield from sorted(made, key=lambda letter: letter.received_at)


def _moment(desk: Desk) -> datetime:
    # More of them lately than long ago.
    age = timedelta(seconds=int(desk.rng.random() ** 1.4 * _DAYS * 86400))
    return desk.now - _NEWEST - age


def _token(desk: Desk) -> str:
    rng = desk.rng
    number = rng.getrandbits(64)
    styles = (f"=_{number:016x}", f"----=_Part_{number}", f"_000_{number:x}duck_", f"b1_{number:X}")
    return rng.choice(styles)


def _letter(desk: Desk, note: Note, way: Way, part: Part) -> Letter:
    mailbox = _mailbox(desk, note, way)
    own = mailbox in (_SENT, _DRAFTS)
    return Letter(
        raw=mime.letter(fields(desk, note, way), part, _token(desk)),
        envelope_from=envelope_from(note, way),
        received_at=way.when,
        mailbox=mailbox,
        seen=own or desk.rng.random() < _read_share(desk, way),
        flagged=desk.rng.random() < 1 / 16,
        answered=False,
        draft=mailbox == _DRAFTS,
        structure="",
        language=note.language,
    )


def _read_share(desk: Desk, way: Way) -> float:
    return 0.35 if desk.now - way.when < timedelta(days=4) else 0.84


def _mailbox(desk: Desk, note: Note, way: Way) -> str:
    if way.own:
        return _SENT
    if note.genre == "spam":
        return _JUNK
    if LIST in way.to:
        return _PYTHON
    sorted_away = note.genre in ("team", "forge") and desk.rng.random() < 0.6  # noqa: PLR2004
    return _KINGFISHER if sorted_away else _INBOX


def _singles(desk: Desk, count: int) -> Iterator[Letter]:
    weights = [shape.weight for shape in message_shapes.SHAPES]
    more = max(0, count - 2 * len(message_shapes.SHAPES))
    order = [*message_shapes.SHAPES * 2, *desk.rng.choices(message_shapes.SHAPES, weights, k=more)][
        :count
    ]
    desk.rng.shuffle(order)
    pairs = [(key, charset) for key, charsets in CHARSETS.items() for charset in charsets]
    desk.rng.shuffle(pairs)
    world = cycle(pairs)
    for number, shape in enumerate(order):
        abroad = message_shapes.WORLD in shape.genres and desk.rng.random() < _ABROAD
        home = [genre for genre in shape.genres if genre != message_shapes.WORLD]
        key, charset = next(world) if abroad or not home else (desk.rng.choice(home), "")
        note = _varied(desk, _by(desk, key, charset, number), number)
        way = _way(desk, note, number)
        desk.when = way.when
        letter = _letter(desk, note, way, shape.build(desk, note))
        if note.sender == desk.owner and number % 3 == 0:
            letter = replace(letter, mailbox=_DRAFTS, draft=True)
        if number % _WORN == _WORN - 1:
            omitted = _OMITTED[number // _WORN % len(_OMITTED)]
            letter = replace(letter, raw=_omit(letter.raw, omitted))
        yield replace(letter, structure=shape.name)


def _by(desk: Desk, key: str, charset: str, number: int) -> Note:
    own = key in ("family", "pond", "club", "team") and number % 7 == 0
    return write(desk, key, charset, desk.owner if own else None)


def _varied(desk: Desk, note: Note, number: int) -> Note:
    if number % 60 == 11:  # noqa: PLR2004 (a subject that goes on and on)
        parts = [write(desk, note.genre).subject for _ in range(desk.rng.randint(5, 12))]
        return with_charset(replace(note, subject=", and: ".join((note.subject, *parts))), "utf-8")
    if number % 25 == 3:  # noqa: PLR2004 (a little picture in front)
        decorated = f"{desk.rng.choice(_EMOJI)} {note.subject}"
        return with_charset(replace(note, subject=decorated), "utf-8")
    return note


def _way(desk: Desk, note: Note, number: int) -> Way:
    own = note.sender == desk.owner
    others = desk.library.sections[note.genre].senders
    to: tuple[Person, ...] = (desk.owner,)
    if own:
        to = tuple(desk.rng.sample(others, desk.rng.randint(1, 2)))
    elif note.genre == "list":
        to = (LIST,)
    elif note.genre == "pond" and number % 2:
        to = (desk.owner, *desk.rng.sample(others, 2))
    cc = (desk.rng.choice(others),) if note.genre in ("team", "club") and number % 3 == 1 else ()
    when = desk.now - _NEWEST if number == 1 else _moment(desk)
    return Way(to, cc, when, new_id(desk, note.sender), own=own)


def _omit(raw: bytes, name: str) -> bytes:
    head, gap, body = raw.partition(b"\r\n\r\n")
    kept: list[bytes] = []
    skipping = False
    for row in head.split(b"\r\n"):
        skipping = row.startswith(f"{name}:".encode()) or (skipping and row[:1] in b" \t")
        if not skipping:
            kept.append(row)
    return b"\r\n".join(kept) + gap + body


def _thread(desk: Desk) -> list[Letter]:
    turns = conversation(desk, _moment(desk))
    answered = {turn.parent for turn in turns if turn.note.sender == desk.owner}
    made = []
    sizes: set[int] = set()
    for at, turn in enumerate(turns):
        desk.when = turn.when
        build, part = _answer_part(desk, turn.note, sizes)
        letter = _letter(desk, turn.note, _turn_way(desk, turn, turns), part)
        name = message_shapes.Shape(build, ()).name
        made.append(replace(letter, structure=name, answered=at in answered))
    return made


def _answer_part(desk: Desk, note: Note, sizes: set[int]) -> tuple[message_shapes.Build, Part]:
    # Answers have one subject, so no two of them may have the same size.
    while True:
        build = desk.rng.choice(message_shapes.ANSWERS)
        part = build(desk, note)
        size = len(mime.entity(part, "")[1])
        if size not in sizes:
            sizes.add(size)
            return build, part


def _turn_way(desk: Desk, turn: Turn, turns: list[Turn]) -> Way:
    own = turn.note.sender == desk.owner
    people = list(dict.fromkeys([each.note.sender for each in turns] + [desk.owner]))
    others = tuple(each for each in people if each != turn.note.sender)
    to, cc = others[:1], others[1:]
    if turn.note.genre == "list":
        to, cc = (LIST,), ()
    parent = turns[turn.parent].message_id if turn.parent >= 0 else ""
    return Way(to, cc, turn.when, turn.message_id, turn.references, parent, own)


def _broken(desk: Desk, count: int) -> Iterator[Letter]:
    for build in BROKEN[:count]:
        note = with_charset(write(desk, desk.rng.choice(("family", "club", "pond"))), "utf-8")
        way = Way((desk.owner,), (), _moment(desk), new_id(desk, note.sender))
        letter = _letter(desk, note, way, Part("text/plain"))
        raw = build(desk, note, fields(desk, note, way))
        name = f"broken-{message_shapes.named(build)}"
        yield replace(letter, raw=raw, structure=name, broken=True)
