"""What is read of ordinary and of sloppy mail."""

import asyncio
import multiprocessing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from mail.mime import (
    MemorySource,
    body_html,
    body_text,
    close_readers,
    decoded_content,
    decoded_fields,
    find_part,
    parse_structure,
    part_text,
    read_facts,
    read_message_facts,
    walk_parts,
)

ALTERNATIVE = b"""\
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


def plain(header: bytes, body: bytes) -> bytes:
    return header + b"\r\n\r\n" + body


def text(header: bytes, body: bytes) -> str:
    raw = plain(header, body)
    return part_text(raw, parse_structure(raw))


def test_sections_are_numbered_as_imap_numbers_them() -> None:
    assert [
        (part.section, part.content_type) for part in walk_parts(parse_structure(ALTERNATIVE))
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


def test_a_single_part_inside_a_message_has_a_number_of_its_own() -> None:
    raw = b"Content-Type: message/rfc822\n\nContent-Type: message/rfc822\n\nSubject: x\n\ny"
    assert [part.section for part in walk_parts(parse_structure(raw))] == ["1", "1.1", "1.1.1"]


def test_the_facts_of_a_message_are_read() -> None:
    found = read_facts(ALTERNATIVE)
    assert found.subject == "Re: [team] Café menu"
    assert found.base_subject == "café menu"
    assert [(each.name, each.address) for each in found.from_] == [("Jörg", "joerg@bücher.example")]
    assert [each.address for each in found.to] == ["ada@example.com", "bob@example.com"]
    assert [each.name for each in found.cc] == [None, "D, E"]
    assert found.date == datetime(2030, 1, 1, 9, tzinfo=UTC)
    assert found.message_id == "<own@example.com>"
    assert found.in_reply_to == "<first@example.com>"
    assert found.references == ["<zero@example.com>", "<first@example.com>"]
    assert found.list_id == "team.example.com"
    assert found.list_unsubscribe_url == "https://example.com/off?x=1"
    assert found.one_click
    assert not found.auto_submitted
    assert not found.encrypted
    assert found.preview == "Hello world"
    assert ALTERNATIVE[found.header_size :].startswith(b"preamble")


def test_attachments_are_files_and_an_attached_message_is_one() -> None:
    found = read_facts(ALTERNATIVE)
    assert [(each.part, each.filename, each.related) for each in found.attachments] == [
        ("1.2", "logo.png", True),
        ("2", "Ü.pdf", False),
        ("3", "The inner one.eml", False),
    ]
    assert found.attachment_count == 2
    logo = found.attachments[0]
    assert (logo.size, logo.hash, logo.cid) == (5, sha256(b"hello").hexdigest(), "logo@x")


def test_words_for_the_index_come_from_everywhere() -> None:
    words = read_facts(ALTERNATIVE).search_text
    for word in ("Café", "Jörg", "joerg@", "d@example.com", "quoted", "Ü.pdf"):
        assert word in words
    assert "inner text" not in words
    assert len(read_facts(b"\n\n" + "ä".encode() * 900_000).search_text.encode()) <= 256 << 10


def test_an_answer_shares_keys_with_what_it_answers_unless_the_subject_is_new() -> None:
    first = read_facts(b"Message-ID: <first@example.com>\nSubject: [team] caf\xc3\xa9 menu\n\n")
    answer = read_facts(ALTERNATIVE)
    other = read_facts(ALTERNATIVE.replace(b"menu", b"bill"))
    assert first.thread_keys[0] in answer.thread_keys
    assert first.thread_keys[0] != answer.thread_keys[0]
    assert not set(answer.thread_keys) & set(other.thread_keys)


def test_outlook_conversations_share_the_head_of_their_index() -> None:
    one, two, other = (
        read_facts(b"Thread-Index: " + index + b"\n\n").thread_keys
        for index in (b"A" * 22 + b"xyz", b"A" * 22 + b"other", b"B" * 22)
    )
    assert one == two != other


def test_text_and_html_outside_an_alternative_stand_for_each_other() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na < b\nc\n\nd\n--x\n"
        b"Content-Type: text/html\n\n<p>one<p>two\n--x--\n"
    )
    root = parse_structure(raw)
    assert body_html(raw, root) == ["<p>a &lt; b<br/>\nc</p>\n<p>d</p>", "<p>one<p>two"]
    assert body_text(raw, root) == "a < b\nc\n\nd\none\n\ntwo"


def test_in_an_alternative_each_form_stands_for_itself() -> None:
    root = parse_structure(ALTERNATIVE)
    assert body_html(ALTERNATIVE, root) == ["<p>Hello <b>HTML</b></p>"]
    assert (body_text(ALTERNATIVE, root) or "").startswith("Hello\n> quoted")


def test_an_alternative_of_one_form_has_the_other_too() -> None:
    part = b"\n--x\nContent-Type: text/html\n\n<b>hi\n--x--"
    raw = b"Content-Type: multipart/alternative; boundary=x\n" + part
    assert body_text(raw, parse_structure(raw)) == "hi"
    assert read_facts(raw).preview == "hi"


def test_a_message_is_read_from_a_source_as_from_memory() -> None:
    root = parse_structure(ALTERNATIVE)
    source = MemorySource(ALTERNATIVE)
    assert len(source) == len(ALTERNATIVE)
    assert body_text(source, root) == body_text(ALTERNATIVE, root)
    pdf = find_part(root, "2")
    assert pdf is not None
    assert decoded_content(source, pdf) == b"%PDF"
    assert [each.key for each in decoded_fields(source, pdf)] == [
        "Content-Type",
        "Content-Disposition",
    ]


def test_an_attached_text_is_no_body_and_an_invitation_is_a_file() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\nbody\n--x\n"
        b"Content-Disposition: attachment; filename=log.txt\n\nlog\n--x\n"
        b"Content-Type: text/calendar; method=REQUEST\n\nBEGIN:VCALENDAR\n--x--\n"
    )
    found = read_facts(raw)
    assert [each.content_type for each in found.attachments] == ["text/plain", "text/calendar"]
    assert body_text(raw, found.structure) == "body"


def test_headers_keep_their_order_and_their_folds() -> None:
    raw = b"A: one\r\n two\r\nB: =?utf-8?b?w6Q=?=\r\na: \xc3\xa4\r\n\r\n"
    assert [
        (each.key, each.value, each.raw) for each in decoded_fields(raw, parse_structure(raw))
    ] == [
        ("A", "one two", "A: one\n two"),
        ("B", "ä", "B: =?utf-8?b?w6Q=?="),
        ("a", "ä", "a: ä"),
    ]


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r", b"\r\r\n"])
def test_any_line_end_will_do(line_end: bytes) -> None:
    raw = ALTERNATIVE.replace(b"\r\n", line_end)
    assert len(list(walk_parts(parse_structure(raw)))) == 11
    assert read_facts(raw).subject == "Re: [team] Café menu"


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
def test_damaged_header_blocks_still_lead_to_the_body(raw: bytes, body: bytes) -> None:
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
def test_sloppy_boundaries_still_delimit(raw: bytes) -> None:
    assert [decoded_content(raw, part) for part in parse_structure(raw).parts] == [b"a", b"b"]


def test_a_line_that_only_begins_like_a_boundary_is_content() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\na\n--xy\n ---x\n--x--"
    assert [decoded_content(raw, part) for part in parse_structure(raw).parts] == [
        b"a\n--xy\n ---x"
    ]


def test_a_multipart_without_boundary_shows_its_text() -> None:
    raw = b"Content-Type: multipart/mixed\n\nhello"
    assert read_facts(raw).preview == "hello"
    assert read_facts(raw).attachments == []


def test_parts_of_a_digest_are_messages() -> None:
    raw = b"Content-Type: multipart/digest; boundary=x\n\n--x\n\nSubject: inner\n\nhi\n--x--"
    assert read_facts(raw).attachments[0].filename == "inner.eml"


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
def test_charsets_are_what_their_senders_mean(label: str, body: bytes, expected: str) -> None:
    assert text(f"Content-Type: text/plain; charset={label}".encode(), body) == expected


def test_html_without_label_may_name_its_charset_itself() -> None:
    body = b'<meta http-equiv=x content="text/html; charset=koi8-r"><p>\xd0'
    assert text(b"Content-Type: text/html", body).endswith("п")


def test_flowed_lines_are_joined() -> None:
    body = b"one \r\ntwo\r\n> > q \r\n>> r\r\n  stuffed\r\n-- \r\nAda"
    kind = b"Content-Type: text/plain; format=flowed"
    assert text(kind, body) == "one two\n>> q r\n stuffed\n-- \nAda"
    assert text(kind + b"; delsp=yes", b"on \r\ne") == "one"


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        (b"quoted-printable", b"a=E4=\r\nb= \r\nc=ZZ=", b"a\xe4bc=ZZ"),
        (b"Quoted-Printable (comment)", b"=41", b"A"),
        (b'"base64"; x', b"QQ==", b"A"),
        (b"x-uuencode", b"begin 644 a.txt\n#86)C\n`\nend\n", b"abc"),
        (b"8bit", b"\xff", b"\xff"),
        (b"bogus", b"=41", b"=41"),
    ],
)
def test_transfer_encodings_are_undone(encoding: bytes, body: bytes, expected: bytes) -> None:
    raw = plain(b"Content-Transfer-Encoding: " + encoding, body)
    assert decoded_content(raw, parse_structure(raw)) == expected


def test_a_preview_ends_at_a_word() -> None:
    found = read_facts(b"Content-Type: text/plain\n\n" + b"seven77 " * 100).preview
    assert len(found) <= 255
    assert found.endswith("seven77…")
    assert len(read_facts(b"\n" + b"x" * 1000).preview) == 255


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
def test_encrypted_mail_is_known_by_its_type(header: bytes, expected: bool) -> None:
    assert read_facts(header + b"\n\n").encrypted is expected


def test_automatic_mail_says_so() -> None:
    assert read_facts(b"Auto-Submitted: auto-replied; x=y\n\n").auto_submitted
    assert not read_facts(b"Auto-Submitted: no\n\n").auto_submitted


async def test_mail_of_every_size_reads_alike(tmp_path: Path) -> None:
    for size in (100, 100 << 10, 2 << 20):
        raw = plain(b"Subject: hi", b"x" * size)
        (tmp_path / "mail").write_bytes(raw)
        assert await read_message_facts(raw) == read_facts(raw)
        assert await read_message_facts(tmp_path / "mail") == read_facts(raw)
    await close_readers()


async def test_the_deepest_message_comes_back_from_the_other_process() -> None:
    opening = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(200)
    )
    raw = opening + b"\n" + b"x" * (2 << 20)
    assert await read_message_facts(raw) == read_facts(raw)
    await close_readers()


async def test_a_killed_reader_costs_no_message() -> None:
    raw = plain(b"Subject: hi", b"x" * (2 << 20))
    await read_message_facts(raw)
    reader = multiprocessing.active_children()[0]
    reader.kill()
    for _ in range(2):  # the first may meet the dead process, the second a new one
        assert (await read_message_facts(raw)).subject == "hi"
    await close_readers()


async def test_a_large_message_holds_nobody_up() -> None:
    raw = plain(
        b"Content-Type: multipart/mixed; boundary=x", b"--x\r\n\r\n" + b"y\n--z\n" * 2_000_000
    )
    await read_message_facts(plain(b"Subject: warm", b"x" * (2 << 20)))
    longest = 0.0
    loop = asyncio.get_running_loop()
    reading = asyncio.create_task(read_message_facts(raw))
    while not reading.done():
        before = loop.time()
        await asyncio.sleep(0.001)
        longest = max(longest, loop.time() - before)
    assert len((await reading).structure.parts) == 1
    assert longest < 0.5
    await close_readers()
