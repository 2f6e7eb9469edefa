"""Messages with malformed and malicious header fields, by name."""

from tests.support.mail.hostile_message_parts import HEADER, NamedMessages, message


def header_messages() -> NamedMessages:
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


def encoded_word_messages() -> NamedMessages:
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


def address_messages() -> NamedMessages:
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


def date_messages() -> NamedMessages:
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


def message_id_messages() -> NamedMessages:
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
