"""Parsing of ordinary and of malformed messages."""

import asyncio
import multiprocessing
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from mail.mime import (
    MemorySource,
    body_html_parts,
    body_text,
    close_readers,
    decoded_content,
    decoded_fields,
    facts_from_message_bytes,
    find_part,
    leading_keyword,
    parse_structure,
    part_text,
    read_message_facts,
    walk_parts,
)

NESTED_MESSAGE = b"""\
From: =?utf-8?q?J=C3=B6rg?= <joerg@xn--bcher-kva.example>\r
To: Ada <ada@example.com>,\r
 bob@example.com\r
Cc: Friends: c@example.com, "D, E" <d@example.com>;\r
Subject: Re: [team] Caf=?utf-8?q?=C3?= =?utf-8?q?=A9?=\r
  menu\r
Date: Tue, 1 Jan 2030 10:00:00 +0100\r
Message-ID: <own@example.com>\r
In-Reply-To: <first@example.com>\r
References: <zero@example.com>\r
 <first@example.com>\r
List-Id: The team <team.example.com>\r
List-Unsubscribe: <mailto:off@example.com>, <https://example.com/off?x=1>\r
List-Unsubscribe-Post: List-Unsubscribe=One-Click\r
MIME-Version: 1.0\r
Content-Type: multipart/mixed; boundary="out"\r
\r
preamble\r
--out\r
Content-Type: multipart/related; boundary="rel"\r
\r
--rel\r
Content-Type: multipart/alternative; boundary="alt"\r
\r
--alt\r
Content-Type: text/plain; charset=utf-8\r
\r
Hello\r
> quoted\r
----------\r
[cid:logo] world\r
--alt\r
Content-Type: text/html; charset=utf-8\r
\r
<p>Hello <b>HTML</b></p>\r
--alt--\r
--rel\r
Content-Type: image/png\r
Content-ID: <logo@x>\r
Content-Disposition: inline; filename=logo.png\r
Content-Transfer-Encoding: base64\r
\r
aGVsbG8=\r
--rel--\r
--out\r
Content-Type: application/pdf\r
Content-Disposition: attachment;\r
 filename*0*=utf-8''%C3%9C;\r
 filename*1=".pdf"\r
\r
%PDF\r
--out\r
Content-Type: message/rfc822\r
\r
Subject: The inner one\r
Content-Type: multipart/mixed; boundary=in\r
\r
--in\r
\r
inner text\r
--in\r
Content-Type: image/gif; name=a.gif\r
\r
GIF\r
--in--\r
--out--\r
epilogue\r
"""


def raw_message(header: bytes, body: bytes) -> bytes:
    return header + b"\r\n\r\n" + body


def decode_text(header: bytes, body: bytes) -> str:
    raw = raw_message(header, body)
    return part_text(raw, parse_structure(raw))


def test_sections_are_numbered_like_imap() -> None:
    assert [
        (part.section, part.content_type) for part in walk_parts(parse_structure(NESTED_MESSAGE))
    ] == [
        ("", "multipart/mixed"),
        ("1", "multipart/related"),
        ("1.1", "multipart/alternative"),
        ("1.1.1", "text/plain"),
        ("1.1.2", "text/html"),
        ("1.2", "image/png"),
        ("2", "application/pdf"),
        ("3", "message/rfc822"),
        ("3.TEXT", "multipart/mixed"),
        ("3.1", "text/plain"),
        ("3.2", "image/gif"),
    ]
    assert [part.section for part in walk_parts(parse_structure(b"Subject: x\r\n\r\nx"))] == ["1"]


def test_single_part_of_attached_message_has_own_number() -> None:
    raw = b"Content-Type: message/rfc822\n\nContent-Type: message/rfc822\n\nSubject: x\n\ny"
    assert [part.section for part in walk_parts(parse_structure(raw))] == ["1", "1.1", "1.1.1"]


def test_message_facts_are_read() -> None:
    facts = facts_from_message_bytes(NESTED_MESSAGE)
    assert facts.subject == "Re: [team] Café menu"
    assert facts.base_subject == "café menu"
    assert [(address.name, address.address) for address in facts.from_] == [
        ("Jörg", "joerg@bücher.example")
    ]
    assert [address.address for address in facts.to] == ["ada@example.com", "bob@example.com"]
    assert [address.name for address in facts.cc] == [None, "D, E"]
    assert facts.date == datetime(2030, 1, 1, 9, tzinfo=UTC)
    assert facts.message_id == "<own@example.com>"
    assert facts.in_reply_to == "<first@example.com>"
    assert facts.references == ["<zero@example.com>", "<first@example.com>"]
    assert facts.list_id == "team.example.com"
    assert facts.list_unsubscribe_url == "https://example.com/off?x=1"
    assert facts.one_click
    assert not facts.auto_submitted
    assert not facts.encrypted
    assert facts.preview == "Hello world"
    assert NESTED_MESSAGE[facts.header_size :].startswith(b"preamble")


def test_files_and_attached_message_are_attachments() -> None:
    facts = facts_from_message_bytes(NESTED_MESSAGE)
    assert [
        (attachment.section, attachment.filename, attachment.inline)
        for attachment in facts.attachments
    ] == [
        ("1.2", "logo.png", True),
        ("2", "Ü.pdf", False),
        ("3", "The inner one.eml", False),
    ]
    assert facts.attachment_count == 2
    logo = facts.attachments[0]
    assert (logo.size, logo.sha256, logo.content_id) == (5, sha256(b"hello").hexdigest(), "logo@x")


def test_search_text_contains_header_body_and_file_names() -> None:
    search_text = facts_from_message_bytes(NESTED_MESSAGE).search_text
    for word in ("Café", "Jörg", "joerg@", "d@example.com", "quoted", "Ü.pdf"):
        assert word in search_text
    assert "inner text" not in search_text
    assert (
        len(facts_from_message_bytes(b"\n\n" + "ä".encode() * 900_000).search_text.encode())
        <= 256 << 10
    )


def test_reply_shares_thread_key_unless_subject_changes() -> None:
    original = facts_from_message_bytes(
        b"Message-ID: <first@example.com>\nSubject: [team] caf\xc3\xa9 menu\n\n"
    )
    reply = facts_from_message_bytes(NESTED_MESSAGE)
    reply_with_new_subject = facts_from_message_bytes(NESTED_MESSAGE.replace(b"menu", b"bill"))
    assert original.thread_keys[0] in reply.thread_keys
    assert original.thread_keys[0] != reply.thread_keys[0]
    assert not set(reply.thread_keys) & set(reply_with_new_subject.thread_keys)


def test_thread_index_prefix_is_thread_key() -> None:
    first_keys, second_keys, other_keys = (
        facts_from_message_bytes(b"Thread-Index: " + index + b"\n\n").thread_keys
        for index in (b"A" * 22 + b"xyz", b"A" * 22 + b"other", b"B" * 22)
    )
    assert first_keys == second_keys != other_keys


def test_text_and_html_parts_of_mixed_are_converted() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na < b\nc\n\nd\n--x\n"
        b"Content-Type: text/html\n\n<p>one<p>two\n--x--\n"
    )
    root = parse_structure(raw)
    assert body_html_parts(raw, root) == ["<p>a &lt; b<br/>\nc</p>\n<p>d</p>", "<p>one<p>two"]
    assert body_text(raw, root) == "a < b\nc\n\nd\none\n\ntwo"


def test_text_and_html_of_alternative_are_not_converted() -> None:
    root = parse_structure(NESTED_MESSAGE)
    assert body_html_parts(NESTED_MESSAGE, root) == ["<p>Hello <b>HTML</b></p>"]
    assert (body_text(NESTED_MESSAGE, root) or "").startswith("Hello\n> quoted")


def test_alternative_with_only_html_has_text() -> None:
    part = b"\n--x\nContent-Type: text/html\n\n<b>hi\n--x--"
    raw = b"Content-Type: multipart/alternative; boundary=x\n" + part
    assert body_text(raw, parse_structure(raw)) == "hi"
    assert facts_from_message_bytes(raw).preview == "hi"


def test_memory_source_is_read_like_bytes() -> None:
    root = parse_structure(NESTED_MESSAGE)
    source = MemorySource(NESTED_MESSAGE)
    assert len(source) == len(NESTED_MESSAGE)
    assert body_text(source, root) == body_text(NESTED_MESSAGE, root)
    pdf = find_part(root, "2")
    assert pdf is not None
    assert decoded_content(source, pdf) == b"%PDF"
    assert [field.name for field in decoded_fields(source, pdf)] == [
        "Content-Type",
        "Content-Disposition",
    ]


def test_attached_text_and_calendar_part_are_attachments() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\nbody\n--x\n"
        b"Content-Disposition: attachment; filename=log.txt\n\nlog\n--x\n"
        b"Content-Type: text/calendar; method=REQUEST\n\nBEGIN:VCALENDAR\n--x--\n"
    )
    facts = facts_from_message_bytes(raw)
    assert [attachment.content_type for attachment in facts.attachments] == [
        "text/plain",
        "text/calendar",
    ]
    assert body_text(raw, facts.structure) == "body"


def test_decoded_fields_keep_order_and_folding() -> None:
    raw = b"A: one\r\n two\r\nB: =?utf-8?b?w6Q=?=\r\na: \xc3\xa4\r\n\r\n"
    assert [
        (field.name, field.value, field.raw) for field in decoded_fields(raw, parse_structure(raw))
    ] == [
        ("A", "one two", "A: one\n two"),
        ("B", "ä", "B: =?utf-8?b?w6Q=?="),
        ("a", "ä", "a: ä"),
    ]


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r", b"\r\r\n"])
def test_message_with_any_line_end_is_parsed(line_end: bytes) -> None:
    raw = NESTED_MESSAGE.replace(b"\r\n", line_end)
    assert len(list(walk_parts(parse_structure(raw)))) == 11
    assert facts_from_message_bytes(raw).subject == "Re: [team] Café menu"


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"Subject: x\nno blank line before this", b"no blank line before this"),
        (b"no header at all\n\nreally", b"no header at all\n\nreally"),
        (b"Subject: x\nbroken line\nTo: a@b\n\nbody", b"body"),
        (b"From ada Tue Jan  1\nSubject: x\n\nbody", b"body"),
        (b"Subject: x\n\n", b""),
        (b"\nbody", b"body"),
    ],
)
def test_body_is_found_after_damaged_header(raw: bytes, body: bytes) -> None:
    assert decoded_content(raw, parse_structure(raw)) == body


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na\n--x\n\nb",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x  \n\na\n--x\t\n\nb\n--x-- \n",
        b"Content-Type: multipart/mixed boundary=x\n\n--x\n\na\n--x\n\nb\n--x--",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n--x\n\na\n--x\n\nb\n--x--\n--x\n\nc",
    ],
)  # fmt: skip
def test_malformed_boundary_lines_separate_parts(raw: bytes) -> None:
    assert [decoded_content(raw, part) for part in parse_structure(raw).parts] == [b"a", b"b"]


def test_line_with_boundary_as_prefix_is_content() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na\n--xy\n ---x\n--x--"
    assert [decoded_content(raw, part) for part in parse_structure(raw).parts] == [
        b"a\n--xy\n ---x"
    ]


def test_multipart_without_boundary_is_read_as_text() -> None:
    raw = b"Content-Type: multipart/mixed\n\nhello"
    assert facts_from_message_bytes(raw).preview == "hello"
    assert facts_from_message_bytes(raw).attachments == []


def test_digest_parts_are_messages() -> None:
    raw = b"Content-Type: multipart/digest; boundary=x\n\n--x\n\nSubject: inner\n\nhi\n--x--"
    assert facts_from_message_bytes(raw).attachments[0].filename == "inner.eml"


@pytest.mark.parametrize(
    ("label", "body", "expected"),
    [
        ("iso-8859-1", b"\x80 \x93x\x94", "€ “x”"),
        ("us-ascii", "ä".encode(), "ä"),
        ("us-ascii", b"\xe4", "ä"),
        ("gb2312", b"\x81\x30\x81\x30", "\x80"),
        ("shift_jis", b"\x87\x40", "①"),
        ("ks_c_5601-1987", b"\xb0\xa1", "가"),
        ("tis-620", b"\xa1", "ก"),
        ("windows-1251", b"\xef", "п"),
        ("cp-850", b"\x84", "ä"),
        ("bogus", "ä".encode(), "ä"),
        ("utf-8", b"\xe4", "ä"),
        ("utf-8", b"abcdefghijklmnopqrstuvw\xc3\xa4 \xe2\x82", "abcdefghijklmnopqrstuvwä �"),
        ("iso-2022-jp", b"\x1b$BF|K\\\x1b(B", "日本"),
        ("hz-gb-2312", b"~{VPND~}", "中文"),
        ("utf-16", "hi".encode("utf-16"), "hi"),
        ("idna", b"\xe4", "ä"),
    ],
)
def test_body_charset_is_decoded(label: str, body: bytes, expected: str) -> None:
    assert decode_text(f"Content-Type: text/plain; charset={label}".encode(), body) == expected


def test_html_charset_is_read_from_meta_element() -> None:
    body = b'<meta http-equiv=x content="text/html; charset=koi8-r"><p>\xd0'
    assert decode_text(b"Content-Type: text/html", body).endswith("п")


def test_flowed_lines_are_joined() -> None:
    body = b"one \r\ntwo\r\n> > q \r\n>> r\r\n  stuffed\r\n-- \r\nAda"
    content_type = b"Content-Type: text/plain; format=flowed"
    assert decode_text(content_type, body) == "one two\n>> q r\n stuffed\n-- \nAda"
    assert decode_text(content_type + b"; delsp=yes", b"on \r\ne") == "one"


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        (b"quoted-printable", b"a=E4=\r\nb= \r\nc=ZZ=", b"a\xe4bc=ZZ"),
        (b"Quoted-Printable (comment)", b"=41", b"A"),
        (b"quoted-printable", b"a==41b ===41 ==", b"a=Ab ==A ="),
        (b"quoted-printable", b"soft= \t\r\nly=\r\n=c3=bc =ZZ ==\r\n=4", b"softly\xc3\xbc =ZZ ==4"),
        (b'"base64"; x', b"QQ==", b"A"),
        (b"x-uuencode", b"begin 644 a.txt\n#86)C\n`\nend\n", b"abc"),
        (b"8bit", b"\xff", b"\xff"),
        (b"bogus", b"=41", b"=41"),
    ],
)
def test_transfer_encoding_is_decoded(encoding: bytes, body: bytes, expected: bytes) -> None:
    raw = raw_message(b"Content-Transfer-Encoding: " + encoding, body)
    assert decoded_content(raw, parse_structure(raw)) == expected


def test_preview_ends_at_word_boundary() -> None:
    preview = facts_from_message_bytes(b"Content-Type: text/plain\n\n" + b"seven77 " * 100).preview
    assert len(preview) <= 255
    assert preview.endswith("seven77…")
    assert len(facts_from_message_bytes(b"\n" + b"x" * 1000).preview) == 255


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Content-Type: multipart/encrypted; boundary=x", True),
        (b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data", True),
        (b"Content-Type: application/pkcs7-mime; smime-type=signed-data", False),
        (b"Content-Type: application/pkcs7-mime; name=smime.p7m", False),
        (b"Content-Type: text/plain", False),
    ],
)
def test_encrypted_message_is_detected_by_content_type(header: bytes, expected: bool) -> None:
    assert facts_from_message_bytes(header + b"\n\n").encrypted is expected


@pytest.mark.parametrize(
    ("value", "keyword"),
    [
        ("auto-replied; x=y", "auto-replied"), ("Auto-Generated(by cron)", "auto-generated"),
        (" (a) (no; \\) b)\tNO ; x", "no"), ("no, yes", "no"), ("", ""), ("(open no", ""),
        ("; no", ""),
    ],
)  # fmt: skip
def test_keyword_of_auto_submitted_field_is_read(value: str, keyword: str) -> None:
    assert leading_keyword(value) == keyword
    header = f"Auto-Submitted: {value}\n\n".encode()
    assert facts_from_message_bytes(header).auto_submitted is (keyword not in {"", "no"})


async def test_message_of_each_size_has_same_facts_in_async_reader(tmp_path: Path) -> None:
    for size in (100, 100 << 10, 2 << 20):
        raw = raw_message(b"Subject: hi", b"x" * size)
        (tmp_path / "mail").write_bytes(raw)
        assert await read_message_facts(raw) == facts_from_message_bytes(raw)
        assert await read_message_facts(tmp_path / "mail") == facts_from_message_bytes(raw)
    await close_readers()


async def test_deeply_nested_message_is_returned_by_helper_process() -> None:
    opening = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(200)
    )
    raw = opening + b"\n" + b"x" * (2 << 20)
    assert await read_message_facts(raw) == facts_from_message_bytes(raw)
    await close_readers()


async def test_message_is_read_after_helper_process_is_killed() -> None:
    raw = raw_message(b"Subject: hi", b"x" * (2 << 20))
    await read_message_facts(raw)
    helper_process = multiprocessing.active_children()[0]
    helper_process.kill()
    for _ in range(2):  # the first call can meet the dead process, the second a new one
        assert (await read_message_facts(raw)).subject == "hi"
    await close_readers()


async def test_large_message_does_not_block_event_loop() -> None:
    raw = raw_message(
        b"Content-Type: multipart/mixed; boundary=x", b"--x\r\n\r\n" + b"y\n--z\n" * 2_000_000
    )
    await read_message_facts(raw_message(b"Subject: warm", b"x" * (2 << 20)))
    longest_pause = 0.0  # seconds of CPU of this thread, so that other processes don't count
    read_task = asyncio.create_task(read_message_facts(raw))
    while not read_task.done():
        started_at = time.thread_time()
        await asyncio.sleep(0.001)
        longest_pause = max(longest_pause, time.thread_time() - started_at)
    assert len((await read_task).structure.parts) == 1
    assert longest_pause < 0.5
    await close_readers()


def test_byte_order_mark_does_not_hide_the_header() -> None:
    raw = b"\xef\xbb\xbfFrom: ann@example.net\r\nSubject: With a mark\r\n\r\nText\r\n"
    facts = facts_from_message_bytes(raw)
    assert (facts.from_[0].address, facts.subject) == ("ann@example.net", "With a mark")
    assert facts.header_size == raw.index(b"Text")
    assert [field.name for field in decoded_fields(raw, parse_structure(raw))] == [
        "From",
        "Subject",
    ]
    body_only = b"\xef\xbb\xbfHello\r\nSubject: x\r\n\r\n"
    assert facts_from_message_bytes(body_only).subject == ""
