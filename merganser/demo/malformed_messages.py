"""Malformed messages, each with a different error."""

from collections.abc import Callable
from dataclasses import replace

from merganser.demo import attachment_messages, mime, text_messages
from merganser.demo.mime import DemoPart
from merganser.demo.text_library import GeneratorState, MessageText, wrapped_text

_DEPTH = 50
_BOUNDARY = "=_broken"

BuildMalformed = Callable[[GeneratorState, MessageText, list[str]], bytes]


def _serialize(fields: list[str], part: DemoPart) -> bytes:
    return mime.serialize_message(fields, part, _BOUNDARY)


def _fields_without(fields: list[str], *names: str) -> list[str]:
    return [field for field in fields if field.split(":")[0] not in names]


def _with_subject(fields: list[str], subject: str) -> list[str]:
    return [f"Subject: {subject}" if row.startswith("Subject:") else row for row in fields]


def no_closing_boundary(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """The last boundary is missing."""
    raw = _serialize(fields, attachment_messages.text_with_jpeg(state, message_text))
    return raw.replace(f"--{_BOUNDARY}--\r\n".encode(), b"")


def boundary_never_appears(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """The boundary that is declared is not the one that is used."""
    raw = _serialize(fields, text_messages.text_and_html(state, message_text))
    return raw.replace(f"--{_BOUNDARY}".encode(), b"--=_another")


def no_boundary(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A multipart without the parameter."""
    raw = _serialize(fields, text_messages.text_and_html(state, message_text))
    return raw.replace(f"boundary={_BOUNDARY}".encode(), b"charset=utf-8", 1)


def bad_base64(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """Base64 with invalid characters and an invalid end."""
    part = text_messages.base64_text(state, message_text)
    return _serialize(fields, replace(part, body=part.body[:90] + b"*&!\xff??" + part.body[90:-7]))


def bad_quoted_printable(_: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """Invalid quoted-printable."""
    part = mime.text_part(f"100 %=ZZ duck=\n=4\n{wrapped_text(message_text)}=", "utf-8")
    return _serialize(
        fields, replace(part, fields=("Content-Transfer-Encoding: quoted-printable",))
    )


def wrong_charset(_: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """Latin characters that are declared to be UTF-8."""
    body = f"Grüße aus dem Übermaß, Demo!\r\n{message_text.subject}\r\n".encode(
        "latin-1", "replace"
    )
    return _serialize(fields, DemoPart("text/plain", body, parameters=("charset=utf-8",)))


def unknown_charset(_: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A charset that does not exist."""
    body = mime.encode_text(wrapped_text(message_text), "utf-8")
    return _serialize(fields, DemoPart("text/plain", body, parameters=("charset=x-duck-8859",)))


def nul_bytes(_: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """NUL in text and in a field."""
    body = mime.encode_text(wrapped_text(message_text), "utf-8").replace(b" ", b"\0", 5)
    return _serialize([*fields, "X-Nothing: a\0b"], DemoPart("text/plain; charset=utf-8", body))


def bare_line_feeds(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """Line feeds without carriage returns."""
    return _serialize(fields, attachment_messages.text_with_svg(state, message_text)).replace(
        b"\r\n", b"\n"
    )


def bare_carriage_returns(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """Carriage returns alone, here and there in the text."""
    head, _, body = _serialize(fields, text_messages.unencoded_text(state, message_text)).partition(
        b"\r\n\r\n"
    )
    return head + b"\r\n\r\n" + body.replace(b"\r\n", b"\r", 3)


def raw_utf8_header(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A subject and a name in UTF-8 as they are."""
    own_fields = _with_subject(fields, f"Čáp, kačer a žába: {message_text.subject}")
    return _serialize(own_fields, text_messages.unencoded_text(state, message_text))


def raw_latin1_header(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A subject in Latin-1 as it is."""
    raw = _serialize(
        _with_subject(fields, f"Grosse Tuer: {message_text.subject}"),
        text_messages.unencoded_text(state, message_text),
    )
    return raw.replace(b"Grosse Tuer", "Größte Tür".encode("latin-1"))


def field_without_colon(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """A line in the header without a colon."""
    return _serialize(
        [*fields[:4], "this line has lost its way", *fields[4:]],
        text_messages.unencoded_text(state, message_text),
    )


def very_long_field(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A field of 120 000 characters without folding."""
    return _serialize(
        [*fields, f"X-Endless: {'quack' * 24000}"],
        text_messages.unencoded_text(state, message_text),
    )


def two_thousand_fields(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """Two thousand fields."""
    extra_fields = [f"X-Duck-{number}: {number}" for number in range(2000)]
    return _serialize([*fields, *extra_fields], text_messages.unencoded_text(state, message_text))


def deeply_nested_parts(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """Parts in parts, fifty deep."""
    part = text_messages.unencoded_text(state, message_text)
    for _ in range(_DEPTH):
        part = mime.multipart_part("mixed", part)
    return _serialize(fields, part)


def deeply_nested_messages(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """Embedded messages, fifty deep."""
    raw = _serialize(fields, text_messages.unencoded_text(state, message_text))
    for depth in range(_DEPTH):
        raw = _serialize(
            [f"Subject: {message_text.subject}, level {depth}"], mime.message_part(raw)
        )
    return raw


def empty_message(_desk: GeneratorState, _note: MessageText, _fields: list[str]) -> bytes:
    """A message of one line end."""
    return b"\r\n"


def header_only(_desk: GeneratorState, _note: MessageText, fields: list[str]) -> bytes:
    """A header, and no empty line after it."""
    return "".join(f"{mime.fold_field(field)}\r\n" for field in fields).encode()


def body_only(_desk: GeneratorState, message_text: MessageText, _fields: list[str]) -> bytes:
    """Text without any header."""
    return b"\r\n" + mime.encode_text(wrapped_text(message_text), "utf-8")


def duplicate_fields(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """Subject, From and Content-Type twice, and not the same."""
    extra_fields = [
        "Subject: another one",
        "From: Nobody <nobody@example.org>",
        "Content-Type: text/html",
    ]
    return _serialize([*fields, *extra_fields], text_messages.unencoded_text(state, message_text))


def bad_date(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A date that does not exist."""
    rest = _fields_without(fields, "Date")
    return _serialize(
        [*rest, "Date: Caturday, 32 Quack 2025 25:61:99 +9999"],
        text_messages.unencoded_text(state, message_text),
    )


def bad_addresses(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """From with an unclosed quotation mark; To with two @, without @, and with empty addresses."""
    rest = _fields_without(fields, "From", "To")
    wrong = ['From: "Half a name <half@example.com', "To: a@b@example.net, <>, ,, duck at pond"]
    return _serialize([*rest, *wrong], text_messages.unencoded_text(state, message_text))


def missing_mime_version(
    state: GeneratorState, message_text: MessageText, fields: list[str]
) -> bytes:
    """Parts, but no MIME-Version."""
    raw = _serialize(fields, text_messages.text_and_html(state, message_text))
    return raw.replace(b"MIME-Version: 1.0\r\n", b"")


def unknown_encoding(_: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A transfer encoding that does not exist."""
    part = mime.text_part(wrapped_text(message_text), "utf-8")
    return _serialize(fields, replace(part, fields=("Content-Transfer-Encoding: x-feather",)))


def encoded_multipart(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A multipart in base64, which RFC 2045 forbids."""
    fields_, body = mime.serialize_part_fields_and_body(
        text_messages.text_and_html(state, message_text), _BOUNDARY
    )
    part = DemoPart(fields_[0].removeprefix("Content-Type: "), mime.base64_lines(body))
    return _serialize(fields, replace(part, fields=("Content-Transfer-Encoding: base64",)))


def truncated_message(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """A message that ends inside its photograph."""
    raw = _serialize(fields, attachment_messages.text_with_photo(state, message_text))
    return raw[: len(raw) * 2 // 3]


def bad_encoded_words(state: GeneratorState, message_text: MessageText, fields: list[str]) -> bytes:
    """Encoded words that are incomplete or name an unknown charset."""
    own_fields = _with_subject(
        fields, "=?utf-8?B?w7w=?= =?utf-8?Q?=C3?= =?x-none?Q?a?= =?utf-8?B?!!?= ?= =?"
    )
    return _serialize(own_fields, text_messages.unencoded_text(state, message_text))


MALFORMED_BUILDERS: tuple[BuildMalformed, ...] = (
    no_closing_boundary,
    boundary_never_appears,
    no_boundary,
    bad_base64,
    bad_quoted_printable,
    wrong_charset,
    unknown_charset,
    nul_bytes,
    bare_line_feeds,
    bare_carriage_returns,
    raw_utf8_header,
    raw_latin1_header,
    field_without_colon,
    very_long_field,
    two_thousand_fields,
    deeply_nested_parts,
    deeply_nested_messages,
    empty_message,
    header_only,
    body_only,
    duplicate_fields,
    bad_date,
    bad_addresses,
    missing_mime_version,
    unknown_encoding,
    encoded_multipart,
    truncated_message,
    bad_encoded_words,
)
