"""Serialize MIME fields, parts and messages without corrections."""

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import quote

_MAX_LINE = 76
_MAX_ENCODED_WORD = 74  # RFC 2047 section 2 allows 75
_MAX_PARAMETER_PIECE = 60  # of a parameter that is written in pieces (RFC 2231 section 3)
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+^_`{|}~-]+\Z")
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+\Z")


@dataclass(frozen=True)
class DemoPart:
    """A MIME part. `fields` are whole header lines, and `body` is encoded."""

    content_type: str
    body: bytes = b""
    parts: tuple["DemoPart", ...] = ()
    parameters: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    preamble: str = ""
    epilogue: str = ""


@dataclass(frozen=True)
class DemoFile:
    """A file with its name, content type and bytes."""

    name: str
    content_type: str
    content: bytes


def encode_parameter(name: str, value: str) -> str:
    """Write a parameter; one that is not ASCII is percent-encoded (RFC 2231 section 4)."""
    if not value.isascii():
        return f"{name}*=utf-8''{quote(value, safe='')}"
    if _TOKEN.match(value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'


def encode_parameter_in_pieces(name: str, value: str) -> tuple[str, ...]:
    """Write a parameter in numbered pieces (RFC 2231 section 4.1)."""
    characters = "".join(quote(character, safe="") + "\0" for character in value).split("\0")[:-1]
    rows = [""]
    for character in characters:
        if len(rows[-1]) + len(character) > _MAX_PARAMETER_PIECE:
            rows.append("")
        rows[-1] += character
    rows[0] = f"utf-8''{rows[0]}"
    return tuple(f"{name}*{at}*={row}" for at, row in enumerate(rows))


def _encoded_word(content: bytes, charset: str, style: str) -> str:
    if style == "b":
        return f"=?{charset}?B?{base64.b64encode(content).decode()}?="
    encoded = "".join(chr(byte) if bytes((byte,)).isalnum() else f"={byte:02X}" for byte in content)
    return f"=?{charset}?Q?{encoded.replace('=20', '_')}?="


def encode_words_unless_ascii(text: str, charset: str, style: str = "q") -> str:
    """Write text as encoded words (RFC 2047) of whole characters; ASCII without `=?` stays."""
    if text.isascii() and "=?" not in text:
        return text
    if style == "q" and charset.startswith("iso-2022"):
        style = "b"
    encoded_words: list[str] = []
    chunk = ""
    for character in text:
        if (
            len(_encoded_word((chunk + character).encode(charset), charset, style))
            > _MAX_ENCODED_WORD
        ):
            encoded_words.append(chunk)
            chunk = ""
        chunk += character
    return " ".join(
        _encoded_word(word.encode(charset), charset, style) for word in (*encoded_words, chunk)
    )


def format_mailbox(name: str, address: str, charset: str = "utf-8", style: str = "q") -> str:
    """Write a name and an address (RFC 5322 section 3.4); without a name the bare address."""
    if not name:
        return address
    if not name.isascii():
        return f"{encode_words_unless_ascii(name, charset, style)} <{address}>"
    if _PHRASE.match(name):
        return f"{name} <{address}>"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" <{address}>'


def fold_field(line: str) -> str:
    """Fold a field at its spaces, to lines of 76 characters where words are short enough."""
    rows: list[str] = []
    row = ""
    for index, word in enumerate(line.split(" ")):
        if index > 1 and row.strip() and len(row) + 1 + len(word) > _MAX_LINE:
            rows.append(row)
            row = f" {word}"
        else:
            row = word if index == 0 else f"{row} {word}"
    return "\r\n".join((*rows, row))


def encode_text(text: str, charset: str) -> bytes:
    """Encode text with the line ends of mail."""
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode(charset)


def base64_lines(content: bytes) -> bytes:
    """Write base64 in lines of 76."""
    encoded = base64.b64encode(content)
    rows = [encoded[at : at + _MAX_LINE] for at in range(0, len(encoded), _MAX_LINE)]
    return b"".join(row + b"\r\n" for row in rows)


def uuencode(name: str, content: bytes) -> bytes:
    """Encode a file by uuencode."""
    rows = [binascii.b2a_uu(content[at : at + 45]) for at in range(0, len(content), 45)]
    encoded = b"".join((f"begin 644 {name}\n".encode(), *rows, b"`\nend\n"))
    return encoded.replace(b"\n", b"\r\n")


def encode_transfer(content: bytes, encoding: str) -> bytes:
    """Encode content for its Content-Transfer-Encoding; 7bit, 8bit and binary leave it alone."""
    if encoding == "base64":
        return base64_lines(content)
    if encoding == "quoted-printable":
        return binascii.b2a_qp(content, istext=True)
    if encoding == "x-uuencode":
        return uuencode("letter.txt", content)
    return content


def text_part(
    content: str, charset: str, encoding: str = "", content_type: str = "text/plain"
) -> DemoPart:
    """Build a text part; without an encoding it is 7bit, or 8bit where that is not enough."""
    body = encode_transfer(encode_text(content, charset), encoding)
    fields = (f"Content-Transfer-Encoding: {encoding}",) if encoding else ()
    return DemoPart(content_type, body, parameters=(f"charset={charset}",), fields=fields)


def attachment_part(
    file: DemoFile, disposition: str = "attachment", content_id: str = ""
) -> DemoPart:
    """Build the part of a file, in base64, with its name in both of the usual places."""
    name = encode_parameter("name", file.name)
    fields = [
        f"Content-Disposition: {disposition}; {encode_parameter('filename', file.name)}",
        "Content-Transfer-Encoding: base64",
    ]
    if content_id:
        fields.append(f"Content-ID: <{content_id}>")
    return DemoPart(
        file.content_type, base64_lines(file.content), parameters=(name,), fields=tuple(fields)
    )


def multipart_part(subtype: str, *parts: DemoPart, parameters: tuple[str, ...] = ()) -> DemoPart:
    """Build a multipart of these parts."""
    return DemoPart(f"multipart/{subtype}", parts=parts, parameters=parameters)


def message_part(raw: bytes, fields: tuple[str, ...] = ()) -> DemoPart:
    """Build a part with an embedded message."""
    return DemoPart("message/rfc822", raw, fields=fields)


def _multipart_body(part: DemoPart, boundary: str, token: str) -> bytes:
    path = boundary.removesuffix(token)
    rows = [encode_text(f"{part.preamble}\n", "ascii")] if part.preamble else []
    for index, nested_part in enumerate(part.parts):
        fields, body = serialize_part_fields_and_body(nested_part, token, f"{path}{index}.")
        head = "".join(f"{fold_field(field)}\r\n" for field in fields)
        # The line end before a boundary belongs to the boundary (RFC 2046 section 5.1.1).
        rows.append(f"--{boundary}\r\n{head}\r\n".encode() + body + b"\r\n")
    rows.append(f"--{boundary}--\r\n".encode())
    rows.append(encode_text(part.epilogue, "ascii"))
    return b"".join(rows)


def serialize_part_fields_and_body(
    part: DemoPart, token: str, path: str = ""
) -> tuple[list[str], bytes]:
    """Return the content fields of a part, unfolded, and its body. `token` makes boundaries."""
    parameters, body = part.parameters, part.body
    if part.parts:
        boundary = f"{path}{token}"
        body = _multipart_body(part, boundary, token)
        parameters = (*parameters, encode_parameter("boundary", boundary))
    fields = (
        [f"Content-Type: {'; '.join((part.content_type, *parameters))}"]
        if part.content_type
        else []
    )
    fields.extend(part.fields)
    has_encoding_field = any(field.startswith("Content-Transfer-Encoding:") for field in fields)
    if not has_encoding_field and not body.isascii():
        fields.append("Content-Transfer-Encoding: 8bit")
    return fields, body


def serialize_message(fields: list[str], part: DemoPart, token: str) -> bytes:
    """Write a whole message: its fields, MIME-Version, the content fields, the body."""
    content, body = serialize_part_fields_and_body(part, token)
    version = ["MIME-Version: 1.0"] if part.content_type else []
    head = "".join(f"{fold_field(field)}\r\n" for field in (*fields, *version, *content))
    return head.encode() + b"\r\n" + body
