"""Hostile messages are parsed in limited time and raise no error."""

import base64
import hashlib
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import (
    ParsedPart,
    body_html_parts,
    body_text,
    decoded_content,
    decoded_fields,
    facts_from_message_bytes,
    imap_bodystructure,
    json_rows_from_tree,
    parse_address_list,
    parse_structure,
    part_text,
    tree_from_json_rows,
    walk_parts,
)
from mail.mime.parser import MAX_PART_DEPTH, MAX_PARTS


def nested_messages(count: int) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" * count + b"Subject: inside\r\n\r\nhello\r\n"


def nested_multiparts(count: int, *, closed: bool = True) -> bytes:
    opening = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n)
        for n in range(count)
    )
    closing = b"".join(b"\r\n--b%d--" % n for n in reversed(range(count)))
    return opening + b"\r\nthe innermost" + (closing if closed else b"")


def many_parts(count: int) -> bytes:
    return b"Content-Type: multipart/mixed; boundary=x\n\n" + b"--x\n\na\n" * count + b"--x--\n"


HOSTILE_MESSAGES: dict[str, Callable[[], bytes]] = {
    "300 nested messages": lambda: nested_messages(300),
    "20,000 nested messages": lambda: nested_messages(20_000),
    "1,000 nested multiparts": lambda: nested_multiparts(1000),
    "1,000 nested multiparts, none closed": lambda: nested_multiparts(1000, closed=False),
    "100,000 parts": lambda: many_parts(100_000),
    "100,000 parts without a blank line": lambda: (
        b"Content-Type: multipart/mixed; boundary=x\n\n" + b"--x\nA: b\n" * 100_000
    ),
    "20,000 nested comments": lambda: (
        b"From: " + b"(" * 20_000 + b")" * 20_000 + b" a@example.com\nContent-Type: "
        b"text/plain " + b"(" * 20_000 + b")" * 20_000 + b"\n\nx"
    ),
    "comments that never end": lambda: b"To: " + b"(a\\" * 300_000 + b"\n\nx",
    "5,000 recipients": lambda: (
        b"To: "
        + b",\n ".join(b'"Nr. %d" <u%d@example.com>' % (n, n) for n in range(5000))
        + b"\n\n"
    ),
    "300,000 commas": lambda: b"To: " + b",<>" * 300_000 + b"\n\nx",
    "open brackets": lambda: b"To: " + b"[" * 400_000 + b"\n\nx",
    "open quotes": lambda: b"To: " + b'"\\' * 200_000 + b"\n\nx",
    "open encoded words": lambda: b"Subject: " + b"=?a?q?" * 150_000 + b"\n\nx",
    "many encoded words": lambda: b"Subject: " + b"=?utf-8?q?a?= " * 70_000 + b"\n\nx",
    "semicolons": lambda: b"Content-Type: text/plain" + b" ;" * 500_000 + b"\n\nx",
    "semicolons and brackets": lambda: b"Content-Type: text/plain" + b";(" * 500_000 + b"\n\nx",
    "2 MiB of header": lambda: b"Subject: hi\n" + b"X-Y: " + b"z" * (2 << 20) + b"\n\nbody",
    "a header of carriage returns": lambda: b"\r" * (1 << 20) + b"\n" * 10,
    "dashes": lambda: b"Content-Type: multipart/mixed; boundary=-\n\n" + b"\n--" * 700_000,
    "a boundary of dashes": lambda: (
        b"Content-Type: multipart/mixed; boundary=-\n\n" + b"-" * (2 << 20)
    ),
    "prefixes": lambda: b"Subject: " + b"Re: [x] " * 100_000 + b"y\n\nx",
    "forward marks": lambda: b"Subject: y" + b" (fwd)" * 150_000 + b"\n\nx",
    "references": lambda: b"References: " + b"<a@b> <" * 130_000 + b"\n\nx",
    "open tags": lambda: b"Content-Type: text/html\n\n" + b"<div>" * 200_000,
    "open attributes": lambda: b"Content-Type: text/html\n\n" + b'<a =">"' * 250_000,
    "open comments": lambda: b"Content-Type: text/html\n\n" + b"<!--" * 500_000,
    "flowed blanks": lambda: b"Content-Type: text/plain; format=flowed\n\n" + b"> \n" * 250_000,
    "soft breaks": lambda: (
        b"Content-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n"
        + b"= " * 1_000_000
    ),
    "a charset with NUL": lambda: b'Content-Type: text/plain; charset="a\0b"\n\n\xff',
    "a charset that is no text": lambda: b"Content-Type: text/plain; charset=zlib\n\n\xff",
    "halves of surrogate pairs": lambda: b"Content-Type: text/plain; charset=utf-7\n\n+2AA- +3AA-",
    "nothing": lambda: b"",
    "a line end": lambda: b"\r\n",
}


@pytest.mark.parametrize("name", HOSTILE_MESSAGES)
def test_hostile_message_is_parsed_in_limited_time(name: str) -> None:
    raw = HOSTILE_MESSAGES[name]()
    started_at = time.process_time()
    facts = facts_from_message_bytes(raw)
    body_html_parts(raw, facts.structure)
    assert imap_bodystructure(raw, facts.structure).isascii()
    assert time.process_time() - started_at < 8  # quadratic code takes minutes
    assert_valid_offsets(raw, facts.structure)
    facts.search_text.encode()
    facts.preview.encode()


def test_nesting_beyond_depth_limit_is_one_part() -> None:
    for raw in (nested_messages(300), nested_multiparts(1000)):
        parts = list(walk_parts(parse_structure(raw)))
        assert len(parts) == MAX_PART_DEPTH
        assert parts[0].truncated
        assert parts[-1].truncated
        assert parts[-1].body_end == len(raw) or b"innermost" in decoded_content(raw, parts[-1])


def test_nesting_below_depth_limit_is_parsed() -> None:
    raw = nested_multiparts(50)
    parts = list(walk_parts(parse_structure(raw)))
    assert len(parts) == 51
    assert not parts[0].truncated
    assert decoded_content(raw, parts[-1]) == b"the innermost"


def test_parts_beyond_limit_are_one_opaque_part() -> None:
    root = parse_structure(many_parts(100_000))
    assert len(root.parts) == MAX_PARTS
    assert root.truncated
    assert root.parts[-1].content_type == "application/octet-stream"
    assert root.parts[-1].size > 89_000 * 7


def test_header_above_1_mib_leaves_one_opaque_part() -> None:
    facts = facts_from_message_bytes(HOSTILE_MESSAGES["2 MiB of header"]())
    assert facts.subject == "hi"
    assert facts.structure.truncated
    assert facts.structure.content_type == "application/octet-stream"


def test_5000_recipients_are_parsed() -> None:
    recipients = facts_from_message_bytes(HOSTILE_MESSAGES["5,000 recipients"]()).to
    assert len(recipients) == 5000
    assert recipients[4999].name == "Nr. 4999"


def test_addresses_beyond_10000_are_ignored() -> None:
    assert len(parse_address_list("a@example.com, " * 20_000)) == 10_000


def test_deepest_part_tree_survives_json_round_trip() -> None:
    root = parse_structure(nested_multiparts(1000))
    assert json_rows_from_tree(
        tree_from_json_rows(json_rows_from_tree(root))
    ) == json_rows_from_tree(root)


@pytest.mark.parametrize("length", range(7))
def test_list_footer_after_base64_padding_is_dropped(length: int) -> None:
    body = bytes(range(length)) * 19
    raw = (
        b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(body)
        + b"_______________\r\nlist mailing list\r\n"
    )
    content = decoded_content(raw, parse_structure(raw))
    assert content.startswith(body)
    if len(body) % 3:
        assert content == body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"aGVs\r\n\tbG8", b"hello"),
        (b"aGVsbG8", b"hello"),
        (b"aGVsbG8=====", b"hello"),
        (b"aGVs*bG8=", b"hello"),
        (b"aGVsb", b"hel"),
        (b"a", b""),
        (b"=", b""),
        (b"\xff\xfe", b""),
    ],
)
def test_bad_base64_is_decoded_as_far_as_possible(body: bytes, expected: bytes) -> None:
    raw = b"Content-Transfer-Encoding: base64\n\n" + body
    assert decoded_content(raw, parse_structure(raw)) == expected


RANDOM_MESSAGES = st.lists(
    st.sampled_from(
        [
            b"\r\n", b"\n", b"\r", b"--", b"--a", b"--a--", b"--b", b" ", b"\t", b":", b";", b"=",
            b'"', b"(", b")", b"\\", b"<", b">", b",", b"@", b"=?utf-8?q?", b"?=", b"x@y", b"\0",
            b"\xff", b"\xc3\xa4", b"Content-Type: multipart/mixed; boundary=a\n\n--a\n",
            b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n", b"From: ", b"Subject: ",
            b"Content-Type: message/rfc822\n\n", b"Content-Type: text/html\n\n<p>",
            b"Content-Transfer-Encoding: base64\n", b"Content-Transfer-Encoding: x-uuencode\n",
            b"Content-Disposition: attachment; filename*0*=utf-8''a; filename*1=b\n", b"charset=",
            b"Content-Type: text/plain; format=flowed\n\n", b"begin 644 a\n", b"Date: ", b"+0100",
            b"1 Jan 2030 10:00:00", b"References: ", b"=?iso-2022-jp?b?", b"utf-7", b"&#55296;",
        ]
    ),
    max_size=40,
).map(b"".join)  # fmt: skip


@given(st.one_of(st.binary(max_size=400), RANDOM_MESSAGES))
@settings(max_examples=1500)
def test_random_bytes_are_parsed_with_valid_offsets(raw: bytes) -> None:
    facts = facts_from_message_bytes(raw)
    root = facts.structure
    assert_valid_offsets(raw, root)
    assert tree_from_json_rows(json_rows_from_tree(root)) == root
    body_html_parts(raw, root)
    assert imap_bodystructure(raw, root).isprintable()
    (body_text(raw, root) or "").encode()
    facts.search_text.encode()
    for part in walk_parts(root):
        decoded_fields(raw, part)
        decoded_content(raw, part)
        part_text(raw, part).encode()


def test_boundary_in_attached_header_closes_open_parts() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n"
        b"Content-Type: message/rfc822\r\n\r\nSubject: cut off\r\n--x--"
    )
    root = parse_structure(raw)
    assert_valid_offsets(raw, root)
    assert root.parts[0].parts[0].size == 0


def assert_valid_offsets(raw: bytes, root: ParsedPart) -> None:
    """Check that child parts are inside their parents and in order, with unique sections."""
    assert root.header_start == 0
    assert root.body_end == len(raw)
    sections: set[str] = set()
    for part in walk_parts(root):
        assert part.header_start <= part.body_start <= part.body_end <= len(raw)
        assert part.section not in sections
        sections.add(part.section)
        position = part.body_start
        for child in part.parts:
            assert position <= child.header_start
            assert child.body_end <= part.body_end
            position = child.body_end


@pytest.mark.parametrize("encoding", ["base64", "8bit", "quoted-printable", "x-uuencode"])
def test_attachment_size_and_hash_match_decoded_content(encoding: str) -> None:
    text = base64.encodebytes(bytes(range(256)) * 8_000).replace(b"\n", b"\r\n")
    bodies = [
        text,
        b" \r\n" + text + b"\r\n\t",
        text + b"a footer of a list\r\n",
        text[:1_500_000] + b"=" + text[1_500_000:],
        text.replace(b"\r\n", b"", 1),
        b" " * 2_000_000,
    ]
    for body in bodies:
        raw = b"Content-Type: application/x\r\nContent-Transfer-Encoding: %s\r\n\r\n%s" % (
            encoding.encode(),
            body,
        )
        (attachment,) = facts_from_message_bytes(raw).attachments
        content = decoded_content(raw, parse_structure(raw))
        assert (attachment.size, attachment.sha256) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
