"""Messages made of fields, read back by our own reader and by the standard library's."""

import base64
import email
from dataclasses import replace
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail import mime
from mail.compose.message_builder import (
    AttachmentDisposition,
    CustomHeader,
    MessageDraft,
    OutgoingFile,
    Priority,
    build_message,
    new_message_id,
    sanitize_attachment,
    without_bcc,
)
from mail.mime.header_encoding import NamedAddress
from models.errors import InvalidInput, LimitReached, MultipleErrors

ADA = NamedAddress("ada@example.org", "Ada")
BOB = NamedAddress("bob@example.com")
PLAIN = MessageDraft(
    from_=ADA,
    date=datetime(2030, 1, 1, 12, tzinfo=UTC),
    message_id="<1@example.org>",
    to=[BOB],
    subject="Hello",
    text="Hi there.\n",
)
PIXEL = base64.b64decode(b"R0lGODlhAQABAAAAACwAAAAAAQABAAA=")


def parsed(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def lines(raw: bytes) -> list[bytes]:
    return raw.split(b"\r\n\r\n", 1)[0].split(b"\r\n")


def types(raw: bytes) -> list[str]:
    return [part.get_content_type() for part in parsed(raw).walk()]


def test_a_plain_message_has_what_it_needs_and_no_more() -> None:
    raw = build_message(PLAIN)
    assert raw == (
        b"From: Ada <ada@example.org>\r\nTo: bob@example.com\r\nSubject: Hello\r\n"
        b"Date: Tue, 01 Jan 2030 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n'
        b"MIME-Version: 1.0\r\n\r\nHi there.\r\n"
    )


def test_text_is_made_from_html() -> None:
    raw = build_message(replace(PLAIN, text=None, html="<p>Grüße &amp; <b>Küsse</b></p>"))
    assert types(raw) == ["multipart/alternative", "text/plain", "text/html"]
    body = parsed(raw).get_body(("plain",))
    assert body is not None
    assert body.get_content().strip() == "Grüße & Küsse"
    assert raw.isascii()


async def test_files_and_images_lie_where_they_belong() -> None:
    draft = replace(
        PLAIN,
        html='<img src="cid:logo"><p>Hi</p>',
        attachments=[
            OutgoingFile(PIXEL, "logo.gif", "image/gif", "logo"),
            OutgoingFile(b"a;b", "Übersicht für Käthe, letzte Fassung.csv", "text/csv"),
            OutgoingFile(b"x", "x.bin", cid="other", disposition=AttachmentDisposition.ATTACHMENT),
        ],
    )
    raw = build_message(draft)
    assert types(raw) == [
        "multipart/mixed",
        *("multipart/alternative", "text/plain", "multipart/related", "text/html", "image/gif"),
        *("text/csv", "application/octet-stream"),
    ]
    found = (await mime.read_message_facts(raw)).attachments
    assert [(each.filename, each.related) for each in found] == [
        ("logo.gif", True),
        ("Übersicht für Käthe, letzte Fassung.csv", False),
        ("x.bin", False),
    ]


def test_images_given_as_data_become_parts_with_their_names() -> None:
    code = base64.b64encode(PIXEL).decode()
    html = (
        f'<img alt="a" src="data:image/gif;base64,{code}" data-filename="dot.gif">'
        f"<IMG SRC='data:image/gif;base64,{code}'><img src='data:image/gif;base64,!'>"
    )
    message = parsed(build_message(replace(PLAIN, html=html)))
    (image,) = [part for part in message.walk() if part.get_content_type() == "image/gif"]
    assert (image.get_content(), image.get_filename()) == (PIXEL, "dot.gif")
    body = message.get_body(("html",))
    assert body is not None
    cid = str(image["Content-ID"]).strip("<>")
    assert body.get_content().count(f"cid:{cid}") == 2
    assert "base64,!" in body.get_content()


def test_bcc_is_kept_and_can_be_stripped() -> None:
    many = [NamedAddress(f"secret{n}@example.net", "Sécret, Very") for n in range(20)]
    raw = build_message(replace(PLAIN, bcc=many))
    assert b"secret19@" in raw
    stripped = without_bcc(raw)
    assert stripped == build_message(PLAIN)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_bcc_is_stripped_however_it_is_written(end: bytes) -> None:
    head = [b"bcc : a@b", b"\tc@d", b"To: x", b"RESENT-BCC:", b" y@z", b"X-Bcc: stays", b"BCC: e"]
    raw = end.join([*head, b"", b"Bcc: of the text", b""])
    expected = end.join([b"To: x", b"X-Bcc: stays", b"", b"Bcc: of the text", b""])
    assert without_bcc(raw) == expected


def test_a_message_without_body_loses_its_bcc_too() -> None:
    assert without_bcc(b"Bcc: a@b\r\n c@d\r\nTo: x\r\n") == b"To: x\r\n"
    assert without_bcc(b"To: x\r\nBcc: a@b") == b"To: x\r\n"


def test_smtputf8_only_where_a_local_part_needs_it() -> None:
    idn = build_message(replace(PLAIN, to=[NamedAddress("bob@bücher.example", "Bücher")]))
    assert idn.isascii()
    assert b"bob@xn--bcher-kva.example" in idn
    utf8 = build_message(replace(PLAIN, to=[NamedAddress("jörg@bücher.example")]))
    assert "To: jörg@bücher.example\r\n".encode() in utf8


def test_long_fields_are_folded_and_read_back() -> None:
    people = [NamedAddress(f"somebody{n}@example.net", f'Some "Body", {n}') for n in range(100)]
    subject = "A very long subject " * 20 + "x" * 300 + " ünd mehr 🦆" * 10
    raw = build_message(replace(PLAIN, to=people, subject=subject, references=["<a@b>"] * 40))
    assert max(map(len, lines(raw))) <= 78
    message = parsed(raw)
    assert [(a.addr_spec, a.display_name) for a in message["To"].addresses] == people
    assert str(message["Subject"]) == subject.strip()


@given(
    name=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=80),
    subject=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=300),
)
async def test_any_name_and_subject_come_back(name: str, subject: str) -> None:
    raw = build_message(
        replace(PLAIN, from_=NamedAddress("ada@example.org", name), subject=subject)
    )
    assert max(map(len, lines(raw))) < 998
    assert [line.split(b":")[0] for line in lines(raw) if line[:1] not in b" \t"] == [
        line.split(b":")[0] for line in lines(build_message(PLAIN))
    ]
    facts = await mime.read_message_facts(raw)
    assert (facts.from_[0].name or "").split() == name.split()
    assert facts.subject.split() == subject.split()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"subject": "a\r\nBcc: eve@example.net"}, ["subject"]),
        ({"subject": "a\0b"}, ["subject"]),
        ({"subject": "ä" * 1025}, ["subject"]),
        ({"subject": "\ud800"}, ["subject"]),
        ({"text": "a\0b"}, ["text"]),
        ({"text": "\udfff"}, ["text"]),
        ({"text": "x" * (1 << 20) + "x"}, ["text"]),
        ({"html": "x" * (1 << 20) + "x"}, ["html"]),
        ({"from_": NamedAddress("ada@example.org", "A\nB")}, ["from"]),
        ({"from_": NamedAddress("ada@example.org", "A" * 256)}, ["from"]),
        ({"to": [BOB, NamedAddress("bob@example.com\r\nRCPT TO:<eve@example.net>")]}, ["to"]),
        ({"cc": [NamedAddress("bob@example.com\x07")]}, ["cc"]),
        ({"bcc": [NamedAddress("not an address")]}, ["bcc"]),
        ({"reply_to": [NamedAddress("<bob@example.com>")]}, ["replyTo"]),
        (
            {"headers": [CustomHeader("X-A", "1"), CustomHeader("From", "x")]},
            ["headers", "1", "key"],
        ),
        ({"headers": [CustomHeader("X A", "1")]}, ["headers", "0", "key"]),
        ({"headers": [CustomHeader("X-A", "1\n2")]}, ["headers", "0", "value"]),
        ({"headers": [CustomHeader("X-A", "x" * 102401)]}, ["headers", "0", "value"]),
        ({"headers": [CustomHeader("X-A", "1")] * 101}, ["headers"]),
        ({"attachments": [OutgoingFile(b"", "a\nb")]}, ["attachments", "0", "filename"]),
        ({"attachments": [OutgoingFile(b"", "\ud800")]}, ["attachments"]),
        ({"attachments": [OutgoingFile(b"", None, "x")]}, ["attachments", "0", "contentType"]),
        ({"attachments": [OutgoingFile(b"", cid="a>b")]}, ["attachments", "0", "cid"]),
        ({"attachments": [OutgoingFile(b"123")], "most": 2}, ["attachments"]),
        ({"attachments": [OutgoingFile(b"")] * 251}, ["attachments"]),
        ({"most": 100}, ["attachments"]),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    change: dict[str, object], path: list[str]
) -> None:
    kind = LimitReached if "most" in change else InvalidInput
    with pytest.raises(kind) as refused:
        build_message(replace(PLAIN, **change))  # type: ignore[arg-type]
    assert refused.value.path == path


def test_all_that_cannot_be_written_is_told_at_once() -> None:
    files = [OutgoingFile(b"", "a\nb", "x", "a>b"), OutgoingFile(b"", cid="a>b")]
    headers = [CustomHeader("Bcc", "a\nb"), CustomHeader("X-A", "\n")]
    wrong = replace(PLAIN, text="\0", html="\ud800", attachments=files, headers=headers)
    with pytest.raises(MultipleErrors) as refused:
        build_message(wrong)
    assert [".".join(one.path) for one in refused.value.all_errors] == [
        "attachments.0.cid",
        "attachments.0.contentType",
        "attachments.0.filename",
        "attachments.1.cid",
        "headers.0.key",
        "headers.0.value",
        "headers.1.value",
        "html",
        "text",
    ]


@pytest.mark.parametrize(
    "key",
    [
        *("Bcc", "bcc", "Received", "DKIM-Signature", "Content-Type", "content-x", "MIME-Version"),
        *("Resent-To", "ARC-Seal", "Return-Path", "Message-ID", "Date", "Sender"),
    ],
)
def test_fields_of_servers_and_of_ours_are_refused(key: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        build_message(replace(PLAIN, headers=[CustomHeader(key, "x")]))
    assert (refused.value.constraint, refused.value.path) == ("reserved", ["headers", "0", "key"])


def test_own_fields_and_priority_are_written() -> None:
    headers = [
        CustomHeader("X-Campaign", "Frühling 🌱"),
        CustomHeader("List-Id", "<a.example.org>"),
    ]
    message = parsed(build_message(replace(PLAIN, headers=headers, priority=Priority.HIGH)))
    assert (message["X-Campaign"], message["List-Id"]) == ("Frühling 🌱", "<a.example.org>")
    assert (message["X-Priority"], message["Importance"]) == ("1", "high")


def test_references_keep_the_first_and_the_nearest() -> None:
    ids = [f"<{n}@example.org>" for n in range(80)]
    message = parsed(
        build_message(replace(PLAIN, in_reply_to=ids[-1], references=["<b ad>", *ids]))
    )
    kept = str(message["References"]).split()
    assert (len(kept), kept[0], kept[1], kept[-1]) == (50, ids[0], ids[31], ids[79])
    assert message["In-Reply-To"] == ids[-1]


def test_a_message_id_is_of_the_random_bytes_and_the_domain() -> None:
    assert new_message_id(b"\x01\xff", "bücher.example") == "<01ff@xn--bcher-kva.example>"


@pytest.mark.parametrize(
    ("odd", "written"),
    [
        (OutgoingFile(b"", "a\r\nb\tc\0" + "n" * 300), OutgoingFile(b"", "ab c" + "n" * 251)),
        (OutgoingFile(b"", "", "x", "a>b", charset="a b"), OutgoingFile(b"")),
        (OutgoingFile(b"", "a", "image/png", "a@b", charset="utf-8"),
         OutgoingFile(b"", "a", "image/png", "a@b")),
        (OutgoingFile(b"", "a", "text/csv", charset='x"; y'), OutgoingFile(b"", "a", "text/csv")),
        *[(OutgoingFile(b"", "ü", "text/csv", charset="KOI8-R"),) * 2],
    ],
)  # fmt: skip
def test_files_of_others_messages_can_always_be_written(
    odd: OutgoingFile, written: OutgoingFile
) -> None:
    made = sanitize_attachment(odd)
    assert made == written
    (part,) = parsed(build_message(replace(PLAIN, attachments=[made]))).iter_attachments()
    assert part.get_filename() == written.filename
    assert part.get_content_charset() == (written.charset and written.charset.lower())


def test_an_attached_message_is_a_file_like_any_other() -> None:
    draft = replace(
        PLAIN, attachments=[OutgoingFile(build_message(PLAIN), "a.eml", "message/rfc822")]
    )
    (part,) = parsed(build_message(draft)).iter_attachments()
    assert (part.get_content_type(), part.get_content()) == (
        "application/octet-stream",
        build_message(PLAIN),
    )
