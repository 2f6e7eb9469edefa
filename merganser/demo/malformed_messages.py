"""Malformed messages, each with a different error."""

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


def no_closing_boundary(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """The last boundary is missing."""
    raw = _letter(fields, attachment_messages.jpeg(state, message_text))
    return raw.replace(f"--{_BOUNDARY}--\r\n".encode(), b"")


def boundary_never_appears(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """The boundary that is declared is not the one that is used."""
    raw = _letter(fields, text_messages.alternative(state, message_text))
    return raw.replace(f"--{_BOUNDARY}".encode(), b"--=_another")


def no_boundary(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A multipart without the parameter."""
    raw = _letter(fields, text_messages.alternative(state, message_text))
    return raw.replace(f"boundary={_BOUNDARY}".encode(), b"charset=utf-8", 1)


def bad_base64(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Base64 with invalid characters and an invalid end."""
    part = text_messages.in_base64(state, message_text)
    return _letter(fields, replace(part, body=part.body[:90] + b"*&!\xff??" + part.body[90:-7]))


def bad_quoted_printable(_: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Invalid quoted-printable."""
    part = mime.text(f"100 %=ZZ duck=\n=4\n{plain(message_text)}=", "utf-8")
    return _letter(fields, replace(part, fields=("Content-Transfer-Encoding: quoted-printable",)))


def wrong_charset(_: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Latin letters that are declared to be UTF-8."""
    body = f"Grüße aus dem Übermaß, Demo!\r\n{message_text.subject}\r\n".encode(
        "latin-1", "replace"
    )
    return _letter(fields, Part("text/plain", body, parameters=("charset=utf-8",)))


def unknown_charset(_: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A charset that does not exist."""
    body = mime.plain_bytes(plain(message_text), "utf-8")
    return _letter(fields, Part("text/plain", body, parameters=("charset=x-duck-8859",)))


def nul_bytes(_: Desk, message_text: Note, fields: list[str]) -> bytes:
    """NUL in text and in a field."""
    body = mime.plain_bytes(plain(message_text), "utf-8").replace(b" ", b"\0", 5)
    return _letter([*fields, "X-Nothing: a\0b"], Part("text/plain; charset=utf-8", body))


def bare_line_feeds(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Line feeds without carriage returns."""
    return _letter(fields, attachment_messages.drawing(state, message_text)).replace(b"\r\n", b"\n")


def bare_returns(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Carriage returns alone, here and there in the text."""
    head, _, body = _letter(fields, text_messages.as_is(state, message_text)).partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + body.replace(b"\r\n", b"\r", 3)


def raw_utf8_header(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A subject and a name in UTF-8 as they are."""
    mine = _subject(fields, f"Čáp, kačer a žába: {message_text.subject}")
    return _letter(mine, text_messages.as_is(state, message_text))


def raw_latin1_header(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A subject in Latin-1 as it is."""
    raw = _letter(
        _subject(fields, f"Grosse Tuer: {message_text.subject}"),
        text_messages.as_is(state, message_text),
    )
    return raw.replace(b"Grosse Tuer", "Größte Tür".encode("latin-1"))


def no_colon(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A line in the header without a colon."""
    return _letter(
        [*fields[:4], "this line has lost its way", *fields[4:]],
        text_messages.as_is(state, message_text),
    )


def endless_line(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A field of 120 000 characters without folding."""
    return _letter(
        [*fields, f"X-Endless: {'quack' * 24000}"], text_messages.as_is(state, message_text)
    )


def many_fields(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Two thousand fields."""
    more = [f"X-Duck-{number}: {number}" for number in range(2000)]
    return _letter([*fields, *more], text_messages.as_is(state, message_text))


def deep(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Parts in parts, fifty deep."""
    part = text_messages.as_is(state, message_text)
    for _ in range(_DEPTH):
        part = mime.multipart("mixed", part)
    return _letter(fields, part)


def deep_letters(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Embedded messages, fifty deep."""
    raw = _letter(fields, text_messages.as_is(state, message_text))
    for depth in range(_DEPTH):
        raw = _letter([f"Subject: {message_text.subject}, level {depth}"], mime.rfc822(raw))
    return raw


def nothing(_desk: Desk, _note: Note, _fields: list[str]) -> bytes:
    """A message of one line end."""
    return b"\r\n"


def only_fields(_desk: Desk, _note: Note, fields: list[str]) -> bytes:
    """A header, and no empty line after it."""
    return "".join(f"{mime.fold(field)}\r\n" for field in fields).encode()


def only_text(_desk: Desk, message_text: Note, _fields: list[str]) -> bytes:
    """Text without any header."""
    return b"\r\n" + mime.plain_bytes(plain(message_text), "utf-8")


def twice(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Subject, From and Content-Type twice, and not the same."""
    more = ["Subject: another one", "From: Nobody <nobody@example.org>", "Content-Type: text/html"]
    return _letter([*fields, *more], text_messages.as_is(state, message_text))


def bad_date(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A date that does not exist."""
    rest = _without(fields, "Date")
    return _letter(
        [*rest, "Date: Caturday, 32 Quack 2025 25:61:99 +9999"],
        text_messages.as_is(state, message_text),
    )


def bad_addresses(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Addresses with too many signs or too few."""
    rest = _without(fields, "From", "To")
    wrong = ['From: "Half a name <half@example.com', "To: a@b@example.net, <>, ,, duck at pond"]
    return _letter([*rest, *wrong], text_messages.as_is(state, message_text))


def no_version(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Parts, but no MIME-Version."""
    raw = _letter(fields, text_messages.alternative(state, message_text))
    return raw.replace(b"MIME-Version: 1.0\r\n", b"")


def unknown_encoding(_: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A transfer encoding that does not exist."""
    part = mime.text(plain(message_text), "utf-8")
    return _letter(fields, replace(part, fields=("Content-Transfer-Encoding: x-feather",)))


def encoded_multipart(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A multipart in base64, which RFC 2045 forbids."""
    fields_, body = mime.entity(text_messages.alternative(state, message_text), _BOUNDARY)
    part = Part(fields_[0].removeprefix("Content-Type: "), mime.base64_lines(body))
    return _letter(fields, replace(part, fields=("Content-Transfer-Encoding: base64",)))


def truncated(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """A message that ends inside its photograph."""
    raw = _letter(fields, attachment_messages.photo(state, message_text))
    return raw[: len(raw) * 2 // 3]


def bad_encoded_words(state: Desk, message_text: Note, fields: list[str]) -> bytes:
    """Encoded words that are incomplete or name an unknown charset."""
    mine = _subject(fields, "=?utf-8?B?w7w=?= =?utf-8?Q?=C3?= =?x-none?Q?a?= =?utf-8?B?!!?= ?= =?")
    return _letter(mine, text_messages.as_is(state, message_text))


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
