"""Messages of a given size that are expensive to parse."""

import base64
from collections.abc import Callable, Iterator

HEADER = b"From: carol@example.com\r\nTo: ada@example.org\r\n"
BODY = b"\r\nHello\r\n"


def message_with_fields(fields: bytes) -> bytes:
    """A message with these additional header fields."""
    return HEADER + fields + BODY


def message_with_body(content_type: bytes, body: bytes, fields: bytes = b"") -> bytes:
    """A message with this Content-Type, body and additional header fields."""
    return (
        HEADER
        + b"MIME-Version: 1.0\r\nContent-Type: "
        + content_type
        + b"\r\n"
        + fields
        + b"\r\n"
        + body
    )


def _repeat(unit: bytes, size: int) -> bytes:
    return unit * max(1, size // len(unit))


def _html(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: message_with_body(b"text/html; charset=utf-8", _repeat(unit, size))


def _field(name: bytes, unit: bytes, end: bytes = b"") -> Callable[[int], bytes]:
    return lambda size: message_with_fields(name + b": " + _repeat(unit, size) + end + b"\r\n")


def _nested(size: int) -> bytes:
    """A message with nested multiparts."""
    levels = size // 80
    multipart_headers = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number)
        for number in range(levels)
    )
    return HEADER + b"MIME-Version: 1.0\r\n" + multipart_headers + b"\r\nHello\r\n"


def _messages(size: int) -> bytes:
    """A message with nested messages."""
    return HEADER + _repeat(b"Content-Type: message/rfc822\r\n\r\n", size) + b"Hello\r\n"


def _parts(size: int) -> bytes:
    return message_with_body(
        b"multipart/mixed; boundary=x", _repeat(b"--x\r\n\r\na\r\n", size) + b"--x--"
    )


def _lines_like_boundaries(size: int) -> bytes:
    boundaries = b"".join(
        b"--x\r\nContent-Type: multipart/mixed; boundary=y%d\r\n\r\n" % number
        for number in range(50)
    )
    return message_with_body(b"multipart/mixed; boundary=x", boundaries + _repeat(b"--\r\n", size))


def _continuations(size: int) -> bytes:
    parameters = b"".join(b";\r\n name*%d*=%%41" % number for number in range(size // 14))
    return message_with_body(b"text/plain" + parameters, b"Hello\r\n")


def _parameters(size: int) -> bytes:
    parameters = b"".join(b"; a%d=b" % number for number in range(size // 8))
    return message_with_body(b"text/plain" + parameters, b"Hello\r\n")


def _calendar(size: int) -> bytes:
    unit = b"BEGIN:VEVENT\r\nUID:%d\r\nDTSTART:20260101T000000Z\r\nATTENDEE:mailto:a@b.c\r\n"
    body = b"".join(unit % number for number in range(size // len(unit)))
    return message_with_body(b"text/calendar", b"BEGIN:VCALENDAR\r\n" + body)


def _styles(size: int) -> bytes:
    return message_with_body(
        b"text/html", b"<style>" + _repeat(b"a{b:c}@media x{", size) + b"</style>Hello"
    )


def _attributes(size: int) -> bytes:
    names = b" ".join(b'a%d="b"' % number for number in range(size // 10))
    return message_with_body(b"text/html", b"<p " + names + b">Hello")


EXPENSIVE_SHAPES: dict[str, Callable[[int], bytes]] = {
    "addresses": _field(b"Cc", b"a@b.c, "),
    "addresses in groups": _field(b"Cc", b"g: a@b.c;, "),
    "comments inside comments": _field(b"Cc", b"("),
    "closed comments": lambda size: message_with_fields(
        b"Cc: " + b"(" * (size // 2) + b")" * (size // 2) + b" a@b.c\r\n"
    ),
    "quotes": _field(b"Cc", b'"'),
    "backslashes": _field(b"Cc", b'"\\'),
    "angles": _field(b"Cc", b"<"),
    "dots": _field(b"Cc", b"a.", b"@b.c"),
    "encoded names": _field(b"Cc", b"=?utf-8?q?=41?= <a@b.c>, "),
    "encoded words": _field(b"Subject", b"=?utf-8?q?=C3=A4?= "),
    "one long encoded word": lambda size: message_with_fields(
        b"Subject: =?utf-8?b?" + base64.b64encode(b"a" * (size * 3 // 4)) + b"?=\r\n"
    ),
    "begun encoded words": _field(b"Subject", b"=?"),
    "begun encoded words of a charset": _field(b"Subject", b"=?utf-8?q?a"),
    "changing charsets": _field(b"Subject", b"=?utf-7?q?+AGE-?= =?iso-2022-jp?b?GyRC?= "),
    "blanks": _field(b"Subject", b" "),
    "folds": _field(b"Subject", b"a\r\n "),
    "references": _field(b"References", b"<a@b> "),
    "begun references": _field(b"References", b"<a"),
    "received": lambda size: message_with_fields(
        _repeat(b"Received: from a by b; 1 Jan 2026\r\n", size)
    ),
    "fields": lambda size: message_with_fields(_repeat(b"X: y\r\n", size)),
    "dates": _field(b"Date", b"1 "),
    "comments in a date": _field(b"Date", b"(("),
    "authentication results": _field(b"Authentication-Results", b"a; spf=pass (("),
    "list headers": _field(b"List-Unsubscribe", b"<mailto:a@b>, "),
    "nested parts": _nested,
    "nested messages": _messages,
    "parts": _parts,
    "lines like boundaries": _lines_like_boundaries,
    "continued parameters": _continuations,
    "parameters": _parameters,
    "quoted parameters": _field(b"Content-Type", b'text/plain; a="\\', b""),
    "html opened": _html(b"<div>"),
    "html tables": _html(b"<table><tr><td>"),
    "html misnested": _html(b"<a><b><p>"),
    "html lists": _html(b"<ul><li>"),
    "html ampersands": _html(b"&"),
    "html angles": _html(b"<"),
    "html comments": _html(b"<!--"),
    "html closed": _html(b"</p>"),
    "html declarations": _html(b"<!["),
    "html attributes": _attributes,
    "html styles": _styles,
    "html style attributes": _html(b'<i style="a:b;background:url(c);"></i>'),
    "html images": _html(b'<img src="cid:a">'),
    "html links": _html(b'<a href="http://a">b</a>'),
    "html formatting": _html(b"<b><i><a>"),
    "html templates": _html(b"<svg><math>"),
    "text quoted": lambda size: message_with_body(b"text/plain", _repeat(b"> > > ", size)),
    "text flowed": lambda size: message_with_body(
        b"text/plain; format=flowed", _repeat(b"> a \r\n", size)
    ),
    "utf-7": lambda size: message_with_body(b"text/plain; charset=utf-7", _repeat(b"+AGE-", size)),
    "hz": lambda size: message_with_body(b"text/plain; charset=hz", _repeat(b"~{", size)),
    "quoted printable": lambda size: message_with_body(
        b"text/plain",
        _repeat(b"=41=\r\n", size),
        b"Content-Transfer-Encoding: quoted-printable\r\n",
    ),
    "quoted printable blanks": lambda size: message_with_body(
        b"text/plain", _repeat(b" ", size), b"Content-Transfer-Encoding: quoted-printable\r\n"
    ),
    "uuencode": lambda size: message_with_body(b"text/plain", _repeat(b"begin 644 a\r\n", size)),
    "calendar": _calendar,
}


def expensive_messages(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield a message of each shape, with about `size` bytes."""
    for name, shape in EXPENSIVE_SHAPES.items():
        yield name, shape(size)
