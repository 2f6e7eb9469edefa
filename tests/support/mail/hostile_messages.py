"""Malformed and malicious messages, by name.

Each message except the empty one ends with a line end, as DATA delivers it.
"""

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

from tests.support.mail.hostile_headers import (
    address_messages,
    date_messages,
    encoded_word_messages,
    header_messages,
    message_id_messages,
)
from tests.support.mail.hostile_message_parts import (
    HEADER,
    PLAIN_TEXT_TYPE,
    NamedMessages,
    message,
    message_of_type,
    message_with_attachment,
    mime_part,
    multipart_mixed,
)

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4


def _content_type_messages() -> NamedMessages:
    values = (
        b"", b"text", b"text/", b"/plain", b"text/plain/x", b"text/plain;", b"text/plain; charset",
        b"text/plain; charset=", b'text/plain; charset="', b"text/plain; charset=utf-8; charset=x",
        b"text/plain charset=utf-8", b"TEXT/PLAIN; CHARSET=UTF-8", b"text/plain; =x; ; ;",
        b'text/plain; charset="utf\\-8"', b"text/plain; charset*=utf-8''utf-8",
        b"text/plain; charset*0=ut; charset*1=f-8", b"text/plain; charset*1=f-8; charset*0=ut",
        b"text/plain; name*0*=utf-8''%ZZ; name*2=c", b"text/plain; name*=x'y'z'%00",
        b"text/plain; name*99999999999999=x", b"text/plain (a (comment)); charset (b) = (c) utf-8",
        b"te\x01xt/pl\x7fain", "täxt/plain".encode(), b"text/" + b"x" * 50_000,
        b"text/plain" + b"; a=b" * 20_000, b"message/rfc822", b"message/partial; number=1; total=2",
        b"message/external-body; access-type=local-file; name=/etc/passwd",
        b"message/delivery-status", b"message/disposition-notification", b"message/global",
        b"multipart/mixed", b"multipart/", b"multipart/signed", b"multipart/encrypted",
        b"application/pkcs7-mime; smime-type=signed-data", b"application/ms-tnef",
        b"application/x-nothing-at-all", b"image/svg+xml", b"text/calendar; method=REQUEST",
        b"text/vcard", b"text/richtext", b"text/enriched", b"text/xml", b"text/html; charset=utf-7",
    )  # fmt: skip
    for number, value in enumerate(values):
        yield f"type {number}", message_of_type(value, b"<b>Hi</b> \xff\xfe there.\r\n")
    for number, value in enumerate(
        (b"inline", b"attachment", b"", b"x; ;", b'attachment; filename="')
    ):
        yield (
            f"disposition {number}",
            message(PLAIN_TEXT_TYPE + b"Content-Disposition: " + value + b"\r\n"),
        )


def _file_name_messages() -> NamedMessages:
    names = (
        b"../../../etc/passwd", b"C:\\Windows\\system.ini", b"/etc/shadow", b".", b"..", b"",
        b"a" * 5_000, b"con.txt", b"x.exe\\0.txt", b"a/b/c.txt", "grüße.pdf".encode(),
        "\u202egpj.exe".encode(), b"=?utf-8?Q?a=0D=0Ab?=.txt", b"<script>.html", b"a\\\"b.txt",
        b"%2e%2e%2fx", b" ", b"x.txt.", b"-rf", b"\xff\xfe.bin",
    )  # fmt: skip
    for number, name in enumerate(names):
        yield f"file name {number}", message_with_attachment(name, b"content")


def _boundary_messages() -> NamedMessages:
    text = mime_part(b"one") + mime_part(b"two")
    values = {
        "none": (b"", text),
        "an empty one": (b'boundary=""', b"--\r\n\r\none\r\n----\r\n"),
        "one of blanks": (b'boundary="   "', b"--   \r\n\r\none\r\n--   --\r\n"),
        "one of 5,000 letters": (b"boundary=" + b"x" * 5_000, b"--" + b"x" * 5_000 + b"\r\n\r\na"),
        "one that never comes": (b"boundary=never", text),
        "one that never ends": (b"boundary=x", text),
        "one that ends at once": (b"boundary=x", b"--x--\r\n"),
        "one that ends twice": (b"boundary=x", text + b"--x--\r\n" + text + b"--x--\r\n"),
        "blanks behind": (b"boundary=x", text.replace(b"--x\r\n", b"--x \t \r\n") + b"--x--  \r\n"),
        "letters behind": (b"boundary=x", text.replace(b"--x\r\n", b"--xy\r\n") + b"--x--\r\n"),
        "in other case": (b"boundary=X", text + b"--x--\r\n"),
        "in a preamble": (b"boundary=x", b"Say --x or --x--, not\r\n" + text + b"--x--\r\n"),
        "with an epilogue": (b"boundary=x", text + b"--x--\r\n" + b"more " * 9_999 + b"\r\n"),
        "bare line feeds": (b"boundary=x", (text + b"--x--\r\n").replace(b"\r\n", b"\n")),
        "quoted, with a blank": (b'boundary="a b"', b"--a b\r\n\r\none\r\n--a b--\r\n"),
        "given twice": (b"boundary=x; boundary=y", text + b"--x--\r\n"),
        "with a comment": (b"boundary=x (not y)", text + b"--x--\r\n"),
        "without a blank line": (b"boundary=x", b"--x\r\none\r\n--x--\r\n"),
        "a part without a body": (b"boundary=x", b"--x\r\nContent-Type: text/html\r\n--x--\r\n"),
        "1,000 empty parts": (b"boundary=x", b"--x\r\n" * 1_000 + b"--x--\r\n"),
    }
    for name, (value, body) in values.items():
        yield f"boundary: {name}", message_of_type(b"multipart/mixed; " + value, body + b"\r\n")
    inner_header = b"Content-Type: multipart/alternative; boundary=x"
    part_with_same_boundary = mime_part(mime_part(b"inner") + b"--x--", inner_header + b"\r\n")
    yield "a boundary within its own", multipart_mixed(part_with_same_boundary)
    inner_part = b"--x1\r\n\r\none\r\n--x1--"
    part = mime_part(inner_part, b"Content-Type: multipart/mixed; boundary=x1\r\n")
    yield "a boundary that begins another", multipart_mixed(part)
    for subtype in (b"alternative", b"related", b"digest", b"parallel", b"report", b"form-data"):
        yield (
            f"multipart/{subtype.decode()} of nonsense",
            message_of_type(
                b"multipart/" + subtype + b"; boundary=x", mime_part(b"\xff\xfe") + b"--x--\r\n"
            ),
        )


def _transfer_encoding_messages() -> NamedMessages:
    bodies = {
        "clean text": b"Hello there.\r\n",
        "eight bits": "Grüße\r\n".encode(),
        "broken base64": b"SGVsbG8g\r\n!!!\r\nd29ybGQ\r\n",
        "base64 on one line": base64.b64encode(b"x" * 200_000) + b"\r\n",
        "broken quoted-printable": b"a=ZZ=\r\n=3\r\n==\r\n=C3=\r\n=BC=3D=\r\n",
    }
    for encoding in (
        b"7bit", b"8bit", b"binary", b"base64", b"BASE64 ", b"quoted-printable", b"x-uuencode",
        b"utf-8", b"", b"base64, base64", b"\xff", b"7bit; x=y",
    ):  # fmt: skip
        for name, body in bodies.items():
            line = b"Content-Transfer-Encoding: " + encoding + b"\r\n"
            encoding_name = encoding.decode("latin-1")
            yield f"encoding {encoding_name!r}: {name}", message(PLAIN_TEXT_TYPE + line, body)
    for content_type in (b"multipart/mixed; boundary=x", b"message/rfc822"):
        encoded_body = base64.encodebytes(mime_part(b"one") + b"--x--\r\n") + b"\r\n"
        line = b"Content-Transfer-Encoding: base64\r\n"
        yield (
            f"encoded {content_type[:9].decode()}",
            message_of_type(content_type, encoded_body, line),
        )
    yield (
        "uuencoded in the text",
        message(PLAIN_TEXT_TYPE, b"begin 644 x\r\n#0V%T\r\n`\r\nend\r\n" * 50),
    )
    yield (
        "yEnc in the text",
        message(PLAIN_TEXT_TYPE, b"=ybegin line=128 size=3 name=x\r\n\xff\r\n=yend\r\n"),
    )


def _charset_messages() -> NamedMessages:
    for label in (
        b"us-ascii", b"utf-8", b"utf8", b"utf-16", b"utf-16le", b"utf-32", b"utf-7", b"latin1",
        b"iso-8859-1", b"iso-8859-8-i", b"iso-8859-99", b"windows-1252", b"cp1252", b"cp65001",
        b"macintosh", b"koi8-r", b"gb2312", b"gbk", b"gb18030", b"big5", b"big5-hkscs", b"euc-jp",
        b"euc-kr", b"ks_c_5601-1987", b"shift_jis", b"iso-2022-jp", b"iso-2022-kr", b"hz-gb-2312",
        b"tis-620", b"viscii", b"x-unknown", b"unknown-8bit", b"default", b"ansi_x3.110-1983",
        b"base64", b"rot13", b"zlib", b"bz2", b"hex", b"uu", b"idna", b"punycode", b"undefined",
        b"unicode_escape", b"raw_unicode_escape", b"mbcs", b"oem", b"string-escape", b"'; --",
        b"a" * 10_000,
    ):  # fmt: skip
        body = bytes(range(1, 256)).replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
        yield (
            f"charset {label[:30].decode()}",
            message_of_type(b"text/plain; charset=" + label, body),
        )


def _line_end_messages() -> NamedMessages:
    bodies = {
        "bare line feeds": b"one\ntwo\n\nthree\r\n",
        "bare carriage returns": b"one\rtwo\r\rthree\r\n",
        "carriage returns in front": b"one\r\r\ntwo\r\r\n",
        "mixed ends": b"one\ntwo\r\nthree\rfour\n\rfive\r\n",
        "dots": b"..\r\n...\r\n.hidden\r\n. \r\n",
        "a dot and a line feed": b"one\n..\ntwo\r\n",
        "a dot between carriage returns": b"one\r..\rtwo\r\n",
        "form feeds": b"\x0c\x0b\x85\xe2\x80\xa8\r\n",
        "100,000 empty lines": b"\r\n" * 100_000,
        "a line of 900,000": b"x" * 900_000 + b"\r\n",
        "998 and one": b"x" * 999 + b"\r\n",
        "1,000,000 blanks": (b" " * 997 + b"\r\n") * 1_000,
        "lines of mbox": b"From nobody Tue Jan  1 10:00:00 2030\r\n" * 100,
        "escapes": b"\x1b[2J\x1b]0;owned\x07\x1bP\r\n",
        "commands": b"RSET\r\nMAIL FROM:<mallory@example.net>\r\nQUIT\r\n",
    }
    for name, body in bodies.items():
        yield name, message(PLAIN_TEXT_TYPE, body)
    header = HEADER.replace(b"\r\n", b"\n")
    yield "a header of bare line feeds", header + b"Subject: x\n\nHi.\r\n"
    yield "a header of bare carriage returns", HEADER.replace(b"\r\n", b"\r") + b"\r\rHi.\r\n"


def _zip_archive(content: bytes, name: str = "x.txt") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _attachment_messages() -> NamedMessages:
    zip_bomb = _zip_archive(b"\0" * 20_000_000)
    calendar = b"BEGIN:VCALENDAR\r\n" * 5_000 + b"RRULE:FREQ=SECONDLY;COUNT=999999999\r\n"
    files = {
        "an exploding archive": (b"x.zip", zip_bomb, b"application/zip"),
        "archives within archives": (
            b"y.zip", _zip_archive(_zip_archive(zip_bomb)), b"application/zip",
        ),
        "an archive that climbs": (b"z.zip", _zip_archive(b"x", "../../etc/x"), b"application/zip"),
        "an archive cut short": (b"c.zip", zip_bomb[:100], b"application/zip"),
        "an exploding stream": (b"x.gz", gzip.compress(b"\0" * 20_000_000), b"application/gzip"),
        "deflated nothing": (b"x.z", zlib.compress(b""), b"application/zlib"),
        "a picture that is none": (b"x.jpg", JPEG, b"image/jpeg"),
        "a picture of 65,535 by 65,535": (
            b"x.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\xff" * 64, b"image/gif",
        ),
        "a drawing that reads files": (
            b"x.svg",
            b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
            b"image/svg+xml",
        ),
        "a billion laughs": (
            b"x.xml",
            b"<!DOCTYPE l [<!ENTITY a 'ha'>"
            + b"".join(b"<!ENTITY a%d '%s'>" % (n, b"&a;" * 99) for n in range(20))
            + b"]><l>&a19;</l>",
            b"application/xml",
        ),
        "a calendar that never ends": (b"x.ics", calendar, b"text/calendar"),
        "a calendar of nonsense": (b"y.ics", b"BEGIN:VEVENT\r\nDTSTART:99999999T999999Z\r\n" * 99,
                                   b"text/calendar; method=REQUEST"),
        "a card of nonsense": (b"x.vcf", b"BEGIN:VCARD\r\nN:;;;;\r\n" * 999, b"text/vcard"),
        "TNEF that lies about its length": (
            b"winmail.dat", b"\x78\x9f\x3e\x22\x01\x00\x01" + b"\xff" * 64, b"application/ms-tnef",
        ),
        "a key that is none": (b"x.asc", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\r\n\r\n====\r\n",
                               b"application/pgp-keys"),
        "a signature that is none": (b"x.p7s", b"\x30\x84\xff\xff\xff\xff",
                                     b"application/pkcs7-signature"),
        "a program": (b"x.exe", b"MZ" + b"\x90" * 5_000, b"application/x-msdownload"),
        "an empty file": (b"empty.bin", b"", b"application/octet-stream"),
    }  # fmt: skip
    for name, (file, content, content_type) in files.items():
        yield name, message_with_attachment(file, content, content_type)


def _deeply_nested_messages() -> NamedMessages:
    def messages(count: int) -> bytes:
        return b"Content-Type: message/rfc822\r\n\r\n" * count + b"Subject: in\r\n\r\nhello\r\n"

    def parts(count: int, *, closed: bool) -> bytes:
        opening = b"".join(
            b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n)
            for n in range(count)
        )
        closing = b"".join(b"\r\n--b%d--" % n for n in reversed(range(count)))
        return opening + b"\r\nthe innermost" + (closing if closed else b"") + b"\r\n"

    yield "1,000 nested messages", messages(1_000)
    yield "20,000 nested messages", messages(20_000)
    yield "1,000 nested parts", parts(1_000, closed=True)
    yield "1,000 nested parts, none closed", parts(1_000, closed=False)
    yield "100,000 parts", multipart_mixed(b"--x\r\n\r\na\r\n" * 100_000)
    yield "100,000 parts without a blank line", multipart_mixed(b"--x\r\nA: b\r\n" * 100_000)
    comments = b"(" * 20_000 + b")" * 20_000
    yield "20,000 nested comments", message(header=b"From: " + comments + b" a@example.com\r\n")
    yield "open tags", message_of_type(b"text/html", b"<div>" * 150_000 + b"\r\n")
    yield "open attributes", message_of_type(b"text/html", b'<a =">"' * 100_000 + b"\r\n")
    yield "open comments of HTML", message_of_type(b"text/html", b"<!--" * 150_000 + b"\r\n")
    yield (
        "a page that runs scripts",
        message_of_type(
            b"text/html",
            b"<img src=x onerror=alert(1)><svg/onload=alert(1)><style>@import 'http://x.example'</style>"
            b"<base href=//x.example><form action=//x.example><iframe srcdoc=x></iframe>\r\n",
        ),
    )
    yield (
        "entities without end",
        message_of_type(b"text/html", b"&" * 300_000 + b"&#x110000;&#0;\r\n"),
    )
    yield (
        "quotes in quotes",
        message(PLAIN_TEXT_TYPE, b">" * 900 + b" x\r\n" + (b"> " * 400 + b"\r\n") * 500),
    )
    yield "flowed blanks", message_of_type(b"text/plain; format=flowed", b"> \r\n" * 100_000)
    yield "prefixes", message(b"Subject: " + b"Re: [x] " * 100_000 + b"y\r\n")
    yield (
        "long words",
        message(PLAIN_TEXT_TYPE, b"a" * 500_000 + b" " + b"\xf0\x9f\x98\x80" * 50_000 + b"\r\n"),
    )


def _nul_messages() -> NamedMessages:
    html_type = b"Content-Type: text/html; charset=utf-8\r\n"
    disposition = b'Content-Disposition: attachment; filename="a\0b.txt"\r\n'
    encoding_field = b"Content-Transfer-Encoding: quoted-printable\r\n"
    yield "in a subject", message(b"Subject: a\0b\r\n")
    yield "in the name of a field", message(b"X-\0: x\r\n")
    yield "for a field", message(b"\0\r\n")
    yield "in a sender", message(header=b"From: C\0arol <car\0ol@exam\0ple.com>\r\n")
    yield "in ids", message(b"Message-ID: <a\0b@c>\r\nReferences: <d\0e@f> <\0>\r\n")
    yield "in a date", message(b"Date: Tue, 1 Jan 2030 10:00:00\0 +0000\r\n")
    yield "in a list's name", message(b"List-Id: a\0 <b\0.example>\r\n")
    yield "in a type", message_of_type(b"text/pl\0ain; charset=utf\0-8; na\0me=x\0", b"Hi.\r\n")
    yield "in a boundary", multipart_mixed(mime_part(b"one"), parameters=b'boundary="x\0"')
    yield "in a file's name", message(PLAIN_TEXT_TYPE + disposition)
    yield "in text", message(PLAIN_TEXT_TYPE, b"a\0b \0\r\n\0\r\n.\0\r\n")
    yield (
        "in a page",
        message(html_type, b"<p>a\0b</p><a href='java\0script:x'>c</a><scr\0ipt>\r\n"),
    )
    yield "behind quoted-printable", message(PLAIN_TEXT_TYPE + encoding_field, b"a=00b=00\r\n")
    yield "at the very start", b"\0" + message()
    yield "and no others", b"\0" * 5_000 + b"\r\n"
    yield "of UTF-16", message(body="\ufeffHello\r\n".encode("utf-16-le") + b"\r\n")


FAMILIES: dict[str, Callable[[], NamedMessages]] = {
    "headers": header_messages,
    "words": encoded_word_messages,
    "people": address_messages,
    "dates": date_messages,
    "threads": message_id_messages,
    "types": _content_type_messages,
    "names": _file_name_messages,
    "boundaries": _boundary_messages,
    "encodings": _transfer_encoding_messages,
    "charsets": _charset_messages,
    "lines": _line_end_messages,
    "files": _attachment_messages,
    "deep": _deeply_nested_messages,
    "nuls": _nul_messages,
}


@cache
def hostile_messages() -> dict[str, bytes]:
    """All messages, by family and name."""
    return {
        f"{family}: {name}": raw
        for family, make_messages in FAMILIES.items()
        for name, raw in make_messages()
    }
