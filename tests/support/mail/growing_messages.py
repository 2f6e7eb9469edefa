"""Messages with a given number of parts, header fields, addresses or words."""

from collections.abc import Callable

_HEADER = b"From: carol@example.com\r\nTo: ada@example.org\r\nSubject: Many parts\r\n"


def _multipart(parts: bytes) -> bytes:
    content_type = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    return _HEADER + content_type + parts + b"--b--\r\n"


def text_files(count: int) -> bytes:
    """A message with `count` text files of one byte."""
    part = b"--b\r\nContent-Disposition: attachment; filename=%d.txt\r\n\r\nx\r\n"
    return _multipart(b"".join(part % number for number in range(count)))


def attached_messages(count: int) -> bytes:
    """A message with `count` attached messages, each with a file."""
    part = (
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nFrom: eve@example.com\r\nSubject: Nr. %d\r\n"
        b"Content-Type: text/plain; name=a.txt\r\nContent-Disposition: attachment\r\n\r\nx\r\n"
    )
    return _multipart(b"".join(part % number for number in range(count)))


def body_texts(count: int) -> bytes:
    """A message with `count` parts that are shown as its body, every other one HTML."""
    parts = b"--b\r\n\r\nx\r\n", b"--b\r\nContent-Type: text/html\r\n\r\n<p>x\r\n"
    return _multipart(b"".join(parts[number % 2] for number in range(count)))


def files_in_one_attached_message(count: int) -> bytes:
    """A message with one attached message that has `count` files."""
    part = b"--b\r\nContent-Type: message/rfc822\r\n\r\n"
    return _multipart(
        part
        + text_files(count).replace(b"boundary=b", b"boundary=c").replace(b"--b", b"--c")
        + b"\r\n"
    )


def nested_multiparts(count: int) -> bytes:
    """A message with `count` parts in multiparts of 50 levels."""
    levels = 50
    opening = b"".join(
        b"Content-Type: multipart/mixed; boundary=n%d\r\n\r\n--n%d\r\n" % (level, level)
        for level in range(levels)
    )
    leaf = b"Content-Disposition: attachment\r\n\r\nx\r\n--n%d\r\n" % (levels - 1)
    return _HEADER + b"MIME-Version: 1.0\r\n" + opening + leaf * count + b"\r\n"


def _header_list(name: bytes, item: bytes) -> Callable[[int], bytes]:
    return lambda count: (
        _HEADER + name + b": " + b"\r\n ".join(
            item.replace(b"#", b"%d" % number) for number in range(count)
        ) + b"\r\n\r\nx\r\n"
    )  # fmt: skip


def _header_fields(count: int) -> bytes:
    lines = b"".join(b"X-Field-%d: value %d\r\n" % (number, number) for number in range(count))
    return _HEADER + lines + b"\r\nx\r\n"


def _sections(count: int) -> bytes:
    """Parts with parameters of ten sections (RFC 2231)."""
    sections = b"".join(b";\r\n name*%d*=%%41" % number for number in range(10))
    part = b"--b\r\nContent-Type: text/x-log" + sections + b"\r\n\r\nx\r\n"
    return _multipart(part * (count // 10))


# Each makes a message whose size grows with the number that it is called with.
GROWING_PARTS: dict[str, Callable[[int], bytes]] = {
    "text files": text_files,
    "attached messages": attached_messages,
    "body texts": body_texts,
    "files in one attached message": files_in_one_attached_message,
    "nested multiparts": nested_multiparts,
}
GROWING_MESSAGES: dict[str, Callable[[int], bytes]] = {
    **GROWING_PARTS,
    "header fields": _header_fields,
    "addresses": _header_list(b"Cc", b'"Nr. #" <u#@example.com>,'),
    "groups": _header_list(b"Cc", b"group #: u#@example.com;,"),
    "colons after an address": lambda count: (
        _HEADER + b"Cc: " + b"a " * (4 * count) + b"@" + b":" * (4 * count) + b"\r\n\r\nx\r\n"
    ),
    "blanks in an address": lambda count: (
        _HEADER + b"Cc: <a" + b" " * (16 * count) + b"b@example.com>\r\n\r\nx\r\n"
    ),
    "references": _header_list(b"References", b"<#@example.com>"),
    "encoded words": _header_list(b"Subject", b"=?utf-8?q?=C3=A4#?="),
    "encoded words of several charsets": _header_list(
        b"Subject", b"=?utf-8?b?w6Q=?= =?iso-8859-1?q?=E4#?="
    ),
    "sections of parameters": _sections,
    "authentication results": _header_list(b"Authentication-Results", b"dkim=pass header.d=a#;"),
}
