"""Serialize MIME fields, parts and messages without corrections."""

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import quote

_LINE = 76
_WORD = 74  # RFC 2047 section 2 allows 75
_PIECE = 60  # of a parameter that is written in pieces (RFC 2231 section 3)
_BARE = re.compile(r"[A-Za-z0-9!#$%&'*+^_`{|}~-]+\Z")
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+\Z")


@dataclass(frozen=True)
class Part:
    """A MIME part. `fields` are whole header lines, and `body` is encoded."""

    kind: str
    body: bytes = b""
    parts: tuple["Part", ...] = ()
    parameters: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    preamble: str = ""
    epilogue: str = ""


@dataclass(frozen=True)
class File:
    """A file with its name, content type and bytes."""

    name: str
    kind: str
    content: bytes


def parameter(name: str, value: str) -> str:
    """Write a parameter; one that is not ASCII is percent-encoded (RFC 2231 section 4)."""
    if not value.isascii():
        return f"{name}*=utf-8''{quote(value, safe='')}"
    if _BARE.match(value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'


def pieces(name: str, value: str) -> tuple[str, ...]:
    """Write a parameter in numbered pieces (RFC 2231 section 4.1)."""
    letters = "".join(quote(letter, safe="") + "\0" for letter in value).split("\0")[:-1]
    rows = [""]
    for letter in letters:
        if len(rows[-1]) + len(letter) > _PIECE:
            rows.append("")
        rows[-1] += letter
    rows[0] = f"utf-8''{rows[0]}"
    return tuple(f"{name}*{at}*={row}" for at, row in enumerate(rows))


def _encoded_word(content: bytes, charset: str, style: str) -> str:
    if style == "b":
        return f"=?{charset}?B?{base64.b64encode(content).decode()}?="
    written = "".join(chr(byte) if bytes((byte,)).isalnum() else f"={byte:02X}" for byte in content)
    return f"=?{charset}?Q?{written.replace('=20', '_')}?="


def words(text: str, charset: str, style: str = "q") -> str:
    """Write text as encoded words (RFC 2047) of whole characters; ASCII stays as it is."""
    if text.isascii() and "=?" not in text:
        return text
    if style == "q" and charset.startswith("iso-2022"):
        style = "b"
    found: list[str] = []
    chunk = ""
    for letter in text:
        if len(_encoded_word((chunk + letter).encode(charset), charset, style)) > _WORD:
            found.append(chunk)
            chunk = ""
        chunk += letter
    return " ".join(_encoded_word(each.encode(charset), charset, style) for each in (*found, chunk))


def mailbox(name: str, address: str, charset: str = "utf-8", style: str = "q") -> str:
    """Write a name and an address (RFC 5322 section 3.4); without a name the bare address."""
    if not name:
        return address
    if not name.isascii():
        return f"{words(name, charset, style)} <{address}>"
    if _PHRASE.match(name):
        return f"{name} <{address}>"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" <{address}>'


def fold(line: str) -> str:
    """Fold a field at its spaces, to lines of 76 characters where words are short enough."""
    rows: list[str] = []
    row = ""
    for index, word in enumerate(line.split(" ")):
        if index > 1 and row.strip() and len(row) + 1 + len(word) > _LINE:
            rows.append(row)
            row = f" {word}"
        else:
            row = word if index == 0 else f"{row} {word}"
    return "\r\n".join((*rows, row))


def plain_bytes(text: str, charset: str) -> bytes:
    """Encode text with the line ends of mail."""
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode(charset)


def base64_lines(content: bytes) -> bytes:
    """Write base64 in lines of 76."""
    written = base64.b64encode(content)
    rows = [written[at : at + _LINE] for at in range(0, len(written), _LINE)]
    return b"".join(row + b"\r\n" for row in rows)


def uuencode(name: str, content: bytes) -> bytes:
    """Encode a file by uuencode."""
    rows = [binascii.b2a_uu(content[at : at + 45]) for at in range(0, len(content), 45)]
    written = b"".join((f"begin 644 {name}\n".encode(), *rows, b"`\nend\n"))
    return written.replace(b"\n", b"\r\n")


def transfer(content: bytes, encoding: str) -> bytes:
    """Encode content for its Content-Transfer-Encoding; 7bit, 8bit and binary leave it alone."""
    if encoding == "base64":
        return base64_lines(content)
    if encoding == "quoted-printable":
        return binascii.b2a_qp(content, istext=True)
    if encoding == "x-uuencode":
        return uuencode("letter.txt", content)
    return content


def text(content: str, charset: str, encoding: str = "", kind: str = "text/plain") -> Part:
    """Build a text part; without an encoding it is 7bit, or 8bit where that is not enough."""
    body = transfer(plain_bytes(content, charset), encoding)
    fields = (f"Content-Transfer-Encoding: {encoding}",) if encoding else ()
    return Part(kind, body, parameters=(f"charset={charset}",), fields=fields)


def attachment(file: File, disposition: str = "attachment", cid: str = "") -> Part:
    """Build the part of a file, in base64, with its name in both of the usual places."""
    name = parameter("name", file.name)
    fields = [
        f"Content-Disposition: {disposition}; {parameter('filename', file.name)}",
        "Content-Transfer-Encoding: base64",
    ]
    if cid:
        fields.append(f"Content-ID: <{cid}>")
    return Part(file.kind, base64_lines(file.content), parameters=(name,), fields=tuple(fields))


def multipart(subtype: str, *parts: Part, parameters: tuple[str, ...] = ()) -> Part:
    """Build a multipart of these parts."""
    return Part(f"multipart/{subtype}", parts=parts, parameters=parameters)


def rfc822(raw: bytes, fields: tuple[str, ...] = ()) -> Part:
    """Build a part with an embedded message."""
    return Part("message/rfc822", raw, fields=fields)


def _joined(part: Part, boundary: str, token: str) -> bytes:
    path = boundary.removesuffix(token)
    rows = [plain_bytes(f"{part.preamble}\n", "ascii")] if part.preamble else []
    for index, each in enumerate(part.parts):
        fields, body = entity(each, token, f"{path}{index}.")
        head = "".join(f"{fold(field)}\r\n" for field in fields)
        # The line end before a boundary belongs to the boundary (RFC 2046 section 5.1.1).
        rows.append(f"--{boundary}\r\n{head}\r\n".encode() + body + b"\r\n")
    rows.append(f"--{boundary}--\r\n".encode())
    rows.append(plain_bytes(part.epilogue, "ascii"))
    return b"".join(rows)


def entity(part: Part, token: str, path: str = "") -> tuple[list[str], bytes]:
    """Return the content fields of a part, unfolded, and its body. `token` makes boundaries."""
    parameters, body = part.parameters, part.body
    if part.parts:
        boundary = f"{path}{token}"
        body = _joined(part, boundary, token)
        parameters = (*parameters, parameter("boundary", boundary))
    fields = [f"Content-Type: {'; '.join((part.kind, *parameters))}"] if part.kind else []
    fields.extend(part.fields)
    written = any(field.startswith("Content-Transfer-Encoding:") for field in fields)
    if not written and not body.isascii():
        fields.append("Content-Transfer-Encoding: 8bit")
    return fields, body


def letter(fields: list[str], part: Part, token: str) -> bytes:
    """Write a whole message: its fields, MIME-Version, the content fields, the body."""
    content, body = entity(part, token)
    version = ["MIME-Version: 1.0"] if part.kind else []
    head = "".join(f"{fold(field)}\r\n" for field in (*fields, *version, *content))
    return head.encode() + b"\r\n" + body
