"""Letters as they should not be, each wrong in its own way."""

from collections.abc import Callable
from dataclasses import replace

from merganser.demo import attachment_messages, mime, text_messages
from merganser.demo.mime import Part
from merganser.demo.text_library import Desk, Note, plain

_DEPTH = 50
_BOUNDARY = "=_broken"

Break = Callable[[Desk, Note, list[str]], bytes]


def _letter(fields: list[str], part: Part) -> bytes:
    return mime.letter(fields, part, _BOUNDARY)


def _without(fields: list[str], *names: str) -> list[str]:
    return [field for field in fields if field.split(":")[0] not in names]


def _subject(fields: list[str], subject: str) -> list[str]:
    return [f"Subject: {subject}" if row.startswith("Subject:") else row for row in fields]


def no_closing_boundary(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """The last boundary is missing."""
    raw = _letter(fields, attachment_messages.jpeg(desk, note))
    return raw.replace(f"--{_BOUNDARY}--\r\n".encode(), b"")


def boundary_never_appears(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """The boundary that is declared is not the one that is used."""
    raw = _letter(fields, text_messages.alternative(desk, note))
    return raw.replace(f"--{_BOUNDARY}".encode(), b"--=_another")


def no_boundary(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A multipart without the parameter."""
    raw = _letter(fields, text_messages.alternative(desk, note))
    return raw.replace(f"boundary={_BOUNDARY}".encode(), b"charset=utf-8", 1)


def bad_base64(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Base64 with strangers in it and an odd end."""
    part = text_messages.in_base64(desk, note)
    return _letter(fields, replace(part, body=part.body[:90] + b"*&!\xff??" + part.body[90:-7]))


def bad_quoted_printable(_: Desk, note: Note, fields: list[str]) -> bytes:
    """Quoted-printable that is not."""
    part = mime.text(f"100 %=ZZ duck=\n=4\n{plain(note)}=", "utf-8")
    return _letter(fields, replace(part, fields=("Content-Transfer-Encoding: quoted-printable",)))


def wrong_charset(_: Desk, note: Note, fields: list[str]) -> bytes:
    """Latin letters that are declared to be UTF-8."""
    body = f"Grüße aus dem Übermaß, Demo!\r\n{note.subject}\r\n".encode("latin-1", "replace")
    return _letter(fields, Part("text/plain", body, parameters=("charset=utf-8",)))


def unknown_charset(_: Desk, note: Note, fields: list[str]) -> bytes:
    """A charset that nobody has heard of."""
    body = mime.plain_bytes(plain(note), "utf-8")
    return _letter(fields, Part("text/plain", body, parameters=("charset=x-duck-8859",)))


def nul_bytes(_: Desk, note: Note, fields: list[str]) -> bytes:
    """NUL in text and in a field."""
    body = mime.plain_bytes(plain(note), "utf-8").replace(b" ", b"\0", 5)
    return _letter([*fields, "X-Nothing: a\0b"], Part("text/plain; charset=utf-8", body))


def bare_line_feeds(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Line feeds without carriage returns."""
    return _letter(fields, attachment_messages.drawing(desk, note)).replace(b"\r\n", b"\n")


def bare_returns(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Carriage returns alone, here and there in the text."""
    head, _, body = _letter(fields, text_messages.as_is(desk, note)).partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body.replace(b"\r\n", b"\r", 3)


def raw_utf8_header(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A subject and a name in UTF-8 as they are."""
    mine = _subject(fields, f"Čáp, kačer a žába: {note.subject}")
    return _letter(mine, text_messages.as_is(desk, note))


def raw_latin1_header(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A subject in Latin-1 as it is."""
    raw = _letter(_subject(fields, f"Grosse Tuer: {note.subject}"), text_messages.as_is(desk, note))
    return raw.replace(b"Grosse Tuer", "Größte Tür".encode("latin-1"))


def no_colon(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A line in the header that is no field."""
    return _letter(
        [*fields[:4], "this line has lost its way", *fields[4:]], text_messages.as_is(desk, note)
    )


def endless_line(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A field of 120 000 letters without a fold."""
    return _letter([*fields, f"X-Endless: {'quack' * 24000}"], text_messages.as_is(desk, note))


def many_fields(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Two thousand fields."""
    more = [f"X-Duck-{number}: {number}" for number in range(2000)]
    return _letter([*fields, *more], text_messages.as_is(desk, note))


def deep(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Parts in parts, fifty deep."""
    part = text_messages.as_is(desk, note)
    for _ in range(_DEPTH):
        part = mime.multipart("mixed", part)
    return _letter(fields, part)


def deep_letters(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Letters in letters, fifty deep."""
    raw = _letter(fields, text_messages.as_is(desk, note))
    for depth in range(_DEPTH):
        raw = _letter([f"Subject: {note.subject}, level {depth}"], mime.rfc822(raw))
    return raw


def nothing(_desk: Desk, _note: Note, _fields: list[str]) -> bytes:
    """No byte at all but one line end."""
    return b"\r\n"


def only_fields(_desk: Desk, _note: Note, fields: list[str]) -> bytes:
    """A header, and no empty line after it."""
    return "".join(f"{mime.fold(field)}\r\n" for field in fields).encode()


def only_text(_desk: Desk, note: Note, _fields: list[str]) -> bytes:
    """Text without any header."""
    return b"\r\n" + mime.plain_bytes(plain(note), "utf-8")


def twice(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Subject, From and Content-Type twice, and not the same."""
    more = ["Subject: another one", "From: Nobody <nobody@example.org>", "Content-Type: text/html"]
    return _letter([*fields, *more], text_messages.as_is(desk, note))


def bad_date(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A day that is in no calendar."""
    rest = _without(fields, "Date")
    return _letter(
        [*rest, "Date: Caturday, 32 Quack 2025 25:61:99 +9999"], text_messages.as_is(desk, note)
    )


def bad_addresses(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Addresses with too many signs or too few."""
    rest = _without(fields, "From", "To")
    wrong = ['From: "Half a name <half@example.com', "To: a@b@example.net, <>, ,, duck at pond"]
    return _letter([*rest, *wrong], text_messages.as_is(desk, note))


def no_version(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Parts, but no MIME-Version."""
    raw = _letter(fields, text_messages.alternative(desk, note))
    return raw.replace(b"MIME-Version: 1.0\r\n", b"")


def unknown_encoding(_: Desk, note: Note, fields: list[str]) -> bytes:
    """A transfer encoding that does not exist."""
    part = mime.text(plain(note), "utf-8")
    return _letter(fields, replace(part, fields=("Content-Transfer-Encoding: x-feather",)))


def encoded_multipart(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A multipart in base64, which RFC 2045 forbids."""
    fields_, body = mime.entity(text_messages.alternative(desk, note), _BOUNDARY)
    part = Part(fields_[0].removeprefix("Content-Type: "), mime.base64_lines(body))
    return _letter(fields, replace(part, fields=("Content-Transfer-Encoding: base64",)))


def truncated(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """A letter that ends in the midst of its photograph."""
    raw = _letter(fields, attachment_messages.photo(desk, note))
    return raw[: len(raw) * 2 // 3]


def bad_encoded_words(desk: Desk, note: Note, fields: list[str]) -> bytes:
    """Encoded words that stop too early or name what is not."""
    mine = _subject(fields, "=?utf-8?B?w7w=?= =?utf-8?Q?=C3?= =?x-none?Q?a?= =?utf-8?B?!!?= ?= =?")
    return _letter(mine, text_messages.as_is(desk, note))


BROKEN: tuple[Break, ...] = (
    no_closing_boundary,
    boundary_never_appears,
    no_boundary,
    bad_base64,
    bad_quoted_printable,
    wrong_charset,
    unknown_charset,
    nul_bytes,
    bare_line_feeds,
    bare_returns,
    raw_utf8_header,
    raw_latin1_header,
    no_colon,
    endless_line,
    many_fields,
    deep,
    deep_letters,
    nothing,
    only_fields,
    only_text,
    twice,
    bad_date,
    bad_addresses,
    no_version,
    unknown_encoding,
    encoded_multipart,
    truncated,
    bad_encoded_words,
)
