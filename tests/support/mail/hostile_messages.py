"""Malformed and malicious messages, by name.

Each message except the empty one ends with a line end, as DATA delivers it.
"""

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator

HEADER = b"From: Carol <carol@example.com>\r\nTo: ada@example.org\r\n"
PLAIN_TEXT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4

NamedMessages = Iterator[tuple[str, bytes]]


def message(fields: bytes = b"", body: bytes = b"Hi.\r\n", header: bytes = HEADER) -> bytes:
    """A message with these additional header fields."""
    return header + fields + b"\r\n" + body


def message_of_type(value: bytes, body: bytes, fields: bytes = b"") -> bytes:
    """A message with this Content-Type and these additional header fields."""
    return message(b"MIME-Version: 1.0\r\nContent-Type: " + value + b"\r\n" + fields, body)


def _part(body: bytes, part_header: bytes = b"Content-Type: text/plain\r\n") -> bytes:
    return b"--x\r\n" + part_header + b"\r\n" + body + b"\r\n"


def _mixed(*parts: bytes, end: bytes = b"--x--\r\n", parameters: bytes = b"boundary=x") -> bytes:
    return message_of_type(b"multipart/mixed; " + parameters, b"".join(parts) + end)


def message_with_attachment(
    name: bytes, content: bytes, content_type: bytes = b"application/octet-stream"
) -> bytes:
    """A message with this attachment."""
    part_header = (
        b"Content-Type: " + content_type + b'; name="' + name + b'"\r\n'
        b'Content-Disposition: attachment; filename="' + name + b'"\r\n'
        b"Content-Transfer-Encoding: base64\r\n"
    )
    return _mixed(_part(b"See the file."), _part(base64.encodebytes(content), part_header))


def _header_messages() -> NamedMessages:
    lines = {
        "no colon": b"This is no field\r\n",
        "an empty name": b": nothing\r\n",
        "a name with blanks": b"Sub ject: x\r\n",
        "a blank before the colon": b"Subject : x\r\n",
        "a name of eight bits": "Sübject: x\r\n".encode(),
        "a name of control characters": b"Sub\x01ject: x\r\n",
        "a name of 10,000 letters": b"X-" + b"a" * 10_000 + b": x\r\n",
        "folds of blanks only": b"Subject: a\r\n \r\n\t\r\n b\r\n",
        "an empty subject": b"Subject:\r\n",
        "a subject of blanks": b"Subject:    \t  \r\n",
        "a subject without a blank": b"Subject:x\r\n",
        "a subject that is folded at once": b"Subject:\r\n x\r\n",
        "two subjects": b"Subject: one\r\nSubject: two\r\n",
        "two senders": b"From: Mallory <mallory@example.net>\r\n",
        "three dates": b"Date: Tue, 1 Jan 2030 10:00:00 +0000\r\n" * 3,
        "raw UTF-8": "Subject: Grüße aus Köln \U0001f600\r\n".encode(),
        "raw Latin-1": "Subject: Grüße\r\n".encode("latin-1"),
        "raw Shift_JIS": "Subject: こんにちは\r\n".encode("shift_jis"),
        "raw UTF-16": b"Subject: " + "Hello".encode("utf-16-le").replace(b"\0", b"\x01") + b"\r\n",
        "overlong UTF-8": b"Subject: \xc0\xaf\xe0\x80\xaf\r\n",
        "halves of surrogate pairs": b"Subject: \xed\xa0\x80\xed\xbf\xbf\r\n",
        "noncharacters": "Subject: \uffff\ufdd0\U0010ffff\r\n".encode(),
        "right to left": "Subject: \u202egpj.exe\u202c\r\n".encode(),
        "a byte order mark": b"\xef\xbb\xbfSubject: x\r\n",
        "control characters": b"Subject: a\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f\r\n",
        "5,000 fields": b"".join(b"X-%d: x\r\n" % n for n in range(5_000)),
        "2,000 Received fields, none of ours": b"X-Received: by far.example\r\n" * 2_000,
        "a field of 500,000 folds": b"X-Long:" + b"\r\n x" * 100_000 + b"\r\n",
        "a line of 900,000 letters": b"X-Long: " + b"y" * 900_000 + b"\r\n",
        "a line of mbox": b"From carol@example.com Tue Jan  1 10:00:00 2030\r\n",
        "an escaped line of mbox": b">From carol@example.com Tue Jan  1 10:00:00 2030\r\n",
        "MIME without a version": b"Content-Type: text/html\r\n",
        "MIME of version 2": b"MIME-Version: 2.0 (really)\r\nContent-Type: text/html\r\n",
        "Return-Path in the header": b"Return-Path: <mallory@example.net>\r\n",
        "Delivered-To another": b"Delivered-To: bob@example.net\r\n",
        "an answer by a machine": b"Auto-Submitted: auto-replied (vacation\r\n",
        "a list's header": b"List-Id: (((((\r\nList-Unsubscribe: <javascript:alert(1)>\r\n",
        "priorities": b"X-Priority: 99999999999999999999\r\nImportance: \xff\r\n",
        "a receipt to everybody": b"Disposition-Notification-To: " + b"a@b, " * 999 + b"c@d\r\n",
    }  # fmt: skip
    for name, fields in lines.items():
        yield name, message(fields)
    yield "no header", b"\r\nOnly a body.\r\n"
    yield "no body and no blank line", HEADER + b"Subject: x\r\n"
    yield "a body where the header should be", b"Hello Ada,\r\nthis is no header.\r\n"
    yield "one line", b"x\r\n"
    yield "one line end", b"\r\n"
    yield "nothing", b""
    yield "a fold at the very start", b" folded\r\n" + message()


def _encoded_word_messages() -> NamedMessages:
    texts = {
        "an unknown charset": b"=?x-nobody-knows?Q?abc?=",
        "no charset": b"=??Q?abc?=",
        "a charset that is a codec": b"=?zlib?B?eJxLTEoGAAJNASc=?=",
        "a charset of idna": b"=?idna?Q?xn--a?=",
        "a charset with a language": b"=?utf-8*EN?Q?abc?=",
        "base64 without padding": b"=?utf-8?B?YWJjZA?=",
        "base64 of one letter": b"=?utf-8?B?Y?=",
        "base64 that is none": b"=?utf-8?B?!!!!?=",
        "an unknown encoding": b"=?utf-8?X?abc?=",
        "blanks inside": b"=?utf-8?Q?a b c?=",
        "a line end inside": b"=?utf-8?Q?a=0D=0ABcc:_eve@example.net?=",
        "a NUL inside": b"=?utf-8?Q?a=00b?=",
        "half a letter": b"=?utf-8?Q?=C3?= =?utf-8?Q?=BC?=",
        "a letter over words": b"=?utf-8?B?w7w=?==?utf-8?B?w7w=?=",
        "bad hex": b"=?utf-8?Q?=ZZ=1=?=",
        "ISO-2022-JP that never returns": b"=?iso-2022-jp?B?GyRCJCI=?=",
        "UTF-7": b"=?utf-7?Q?+2AA-?=",
        "UTF-16": b"=?utf-16?B?//4AAA==?=",
        "UTF-32": b"=?utf-32?B?AAAAAP8=?=",
        "HZ": b"=?hz-gb-2312?Q?~{!!~?=",
        "words within words": b"=?utf-8?Q?=3D=3Futf-8=3FQ=3Fa=3F=3D?=",
        "a word of 100,000 letters": b"=?utf-8?Q?" + b"=61" * 30_000 + b"?=",
        "10,000 words": b"=?utf-8?Q?a?= " * 10_000,
        "a quoted word": b'"=?utf-8?Q?a?="',
        "a word in a comment": b"(=?utf-8?Q?a)b?=)",
    }
    for name, text in texts.items():
        yield f"subject: {name}", message(b"Subject: " + text + b"\r\n")
        yield f"sender: {name}", message(header=b"From: " + text + b" <carol@example.com>\r\n")


def _address_messages() -> NamedMessages:
    texts = {
        "nobody": b"",
        "only brackets": b"<>",
        "two at signs": b"carol@@example.com",
        "no domain": b"carol",
        "a domain of dots": b"carol@....",
        "a literal": b"carol@[127.0.0.1]",
        "a literal of IPv6": b"carol@[IPv6:::1]",
        "a literal that never ends": b"carol@[127.0.0.1",
        "a route": b"<@a.example,@b.example:carol@example.com>",
        "a bang path": b"far!away!carol",
        "a quoted local part": b'"carol\\"@x"@example.com',
        "a quoted line end": b'"carol\\\r\n x"@example.com',
        "a group": b"Friends: carol@example.com, dave@example.com;",
        "an empty group": b"undisclosed-recipients:;",
        "a group in a group": b"A: B: carol@example.com;;",
        "a group that never ends": b"Friends: carol@example.com,",
        "commas only": b",,,,,,,",
        "semicolons": b"carol@example.com; dave@example.com",
        "nested comments": b"(a(b(c(d)e)f)g) carol (x) @ (y) example.com",
        "comments that never end": b"carol@example.com (((((((",
        "a name with a comma": b"Doe, Carol <carol@example.com>",
        "a name that is an address": b'"dave@example.com" <carol@example.com>',
        "international": "Käthe <käthe@bücher.example>".encode(),
        "Punycode that is none": b"carol@xn--999999999",
        "a label of 100": b"carol@" + b"a" * 100 + b".example",
        "a local part of 1,000": b"a" * 1_000 + b"@example.com",
        "a NUL by name": b"carol\\000@example.com",
        "tabs": b"\tcarol\t@\texample.com\t",
        "an address in the clear": b"mailto:carol@example.com",
        "5,000 people": b",\r\n ".join(b"u%d@example.com" % n for n in range(5_000)),
    }
    for name, text in texts.items():
        yield f"from: {name}", message(header=b"From: " + text + b"\r\nTo: ada@example.org\r\n")
        yield f"to: {name}", message(header=b"From: carol@example.com\r\nTo: " + text + b"\r\n")


def _date_messages() -> NamedMessages:
    dates = (
        b"", b"yesterday", b"0", b"-1", b"Tue, 99 Jan 2030 10:00:00 +0000",
        b"Tue, 1 Foo 2030 10:00:00 +0000", b"Mon, 1 Jan 2030 10:00:00 +0000",
        b"1 Jan 0000 00:00:00 +0000", b"1 Jan 9999 23:59:59 -1200",
        b"31 Dec 9999 23:59:59 -9959", b"1 Jan 99999 00:00:00 +0000",
        b"1 Jan 0001 00:00:00 +2359", b"1 Jan 70 00:00:00 GMT", b"1 Jan 49 00:00 EST",
        b"29 Feb 2030 10:00:00 +0000", b"1 Jan 2030 24:00:00 +0000", b"1 Jan 2030 23:59:60 +0000",
        b"1 Jan 2030 10:00:00", b"1 Jan 2030 10:00:00 Z", b"1 Jan 2030 10:00:00 +99999",
        b"1 Jan 2030 10:00:00 Europe/Berlin", b"2030-01-01T10:00:00Z", b"1893492000",
        b"Tue, 1 Jan 2030 10:00:00 +0000 (" + b"(" * 500, b"1" * 5_000,
        "1 Jänner 2030 10:00:00 +0100".encode(), b"Tue, =?utf-8?Q?1?= Jan 2030 10:00:00 +0000",
        b"1 Jan 2030 1:2:3 +0000", b"01/02/2030 10:00 PM", b"Tue Jan  1 10:00:00 2030",
    )  # fmt: skip
    for number, date in enumerate(dates):
        yield f"date {number}", message(b"Date: " + date + b"\r\n")


def _message_id_messages() -> NamedMessages:
    many_ids = b"".join(b"<%d@example.com>\r\n " % n for n in range(20_000))
    values = {
        "no brackets": b"abc@example.com",
        "never ends": b"<abc@example.com",
        "two": b"<a@example.com> <b@example.com>",
        "nothing between": b"<>",
        "blanks between": b"<a b c@example.com>",
        "10,000 letters": b"<" + b"a" * 10_000 + b"@example.com>",
        "eight bits": "<grüße@example.com>".encode(),
        "itself": b"<self@example.com>",
        "20,000": many_ids,
        "words": b'In your letter of "Tuesday" you wrote',
        "broken": b"<a@b <c@d> e@f> >>> <<<",
        "comments": b"(a <x@y> (b)) <z@example.com>",
    }
    for name, value in values.items():
        for field in (b"Message-ID", b"In-Reply-To", b"References"):
            message_id_field = (
                b"" if field == b"Message-ID" else b"Message-ID: <self@example.com>\r\n"
            )
            line = field + b": " + value.rstrip() + b"\r\n"
            yield f"{field.decode()}: {name}", message(message_id_field + line)


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
    text = _part(b"one") + _part(b"two")
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
    part_with_same_boundary = _part(_part(b"inner") + b"--x--", inner_header + b"\r\n")
    yield "a boundary within its own", _mixed(part_with_same_boundary)
    inner_part = b"--x1\r\n\r\none\r\n--x1--"
    part = _part(inner_part, b"Content-Type: multipart/mixed; boundary=x1\r\n")
    yield "a boundary that begins another", _mixed(part)
    for subtype in (b"alternative", b"related", b"digest", b"parallel", b"report", b"form-data"):
        yield (
            f"multipart/{subtype.decode()} of nonsense",
            message_of_type(
                b"multipart/" + subtype + b"; boundary=x", _part(b"\xff\xfe") + b"--x--\r\n"
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
        encoded_body = base64.encodebytes(_part(b"one") + b"--x--\r\n") + b"\r\n"
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
    yield "100,000 parts", _mixed(b"--x\r\n\r\na\r\n" * 100_000)
    yield "100,000 parts without a blank line", _mixed(b"--x\r\nA: b\r\n" * 100_000)
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
    yield "in a boundary", _mixed(_part(b"one"), parameters=b'boundary="x\0"')
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
    "headers": _header_messages,
    "words": _encoded_word_messages,
    "people": _address_messages,
    "dates": _date_messages,
    "threads": _message_id_messages,
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


def hostile_messages() -> dict[str, bytes]:
    """All messages, by family and name."""
    return {
        f"{family}: {name}": raw
        for family, make_messages in FAMILIES.items()
        for name, raw in make_messages()
    }
