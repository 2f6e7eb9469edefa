"""Messages built from drafts, read back by our parser and by the standard library."""

import base64
import email
from dataclasses import replace
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mail import mime
from mail.compose.message_builder import (
    new_message_id,
    sanitize_attachment,
    validate_and_build_message,
    without_bcc,
)
from mail.compose.message_draft import CustomHeader, MessageDraft, OutgoingFile, Priority
from mail.mime.header_encoding import NamedAddress
from models.errors import InvalidInput, LimitReached, MultipleErrors
from models.messages.mime_values import AttachmentDisposition

ADA = NamedAddress("ada@example.org", "Ada")
BOB = NamedAddress("bob@example.com")
PLAIN_DRAFT = MessageDraft(
    from_=ADA,
    date=datetime(2030, 1, 1, 12, tzinfo=UTC),
    message_id="<1@example.org>",
    to=[BOB],
    subject="Hello",
    text="Hi there.\n",
)
PIXEL = base64.b64decode(b"R0lGODlhAQABAAAAACwAAAAAAQABAAA=")


def parse_message(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def header_lines(raw: bytes) -> list[bytes]:
    return raw.split(b"\r\n\r\n", 1)[0].split(b"\r\n")


def content_types(raw: bytes) -> list[str]:
    return [part.get_content_type() for part in parse_message(raw).walk()]


def test_plain_message_has_only_required_fields() -> None:
    raw = validate_and_build_message(PLAIN_DRAFT)
    assert raw == (
        b"From: Ada <ada@example.org>\r\nTo: bob@example.com\r\nSubject: Hello\r\n"
        b"Date: Tue, 01 Jan 2030 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n'
        b"MIME-Version: 1.0\r\n\r\nHi there.\r\n"
    )


def test_text_part_is_derived_from_html() -> None:
    raw = validate_and_build_message(
        replace(PLAIN_DRAFT, text=None, html="<p>Grüße &amp; <b>Küsse</b></p>")
    )
    assert content_types(raw) == ["multipart/alternative", "text/plain", "text/html"]
    body = parse_message(raw).get_body(("plain",))
    assert body is not None
    assert body.get_content().strip() == "Grüße & Küsse"
    assert raw.isascii()


async def test_files_are_attached_and_inline_images_are_related() -> None:
    draft = replace(
        PLAIN_DRAFT,
        html='<img src="cid:logo"><p>Hi</p>',
        attachments=[
            OutgoingFile(PIXEL, "logo.gif", "image/gif", "logo"),
            OutgoingFile(b"a;b", "Übersicht für Käthe, letzte Fassung.csv", "text/csv"),
            OutgoingFile(
                b"x", "x.bin", content_id="other", disposition=AttachmentDisposition.ATTACHMENT
            ),
        ],
    )
    raw = validate_and_build_message(draft)
    assert content_types(raw) == [
        "multipart/mixed",
        *("multipart/alternative", "text/plain", "multipart/related", "text/html", "image/gif"),
        *("text/csv", "application/octet-stream"),
    ]
    attachments = (await mime.read_message_facts(raw)).attachments
    assert [(attachment.filename, attachment.inline) for attachment in attachments] == [
        ("logo.gif", True),
        ("Übersicht für Käthe, letzte Fassung.csv", False),
        ("x.bin", False),
    ]


def test_data_url_images_become_named_parts() -> None:
    code = base64.b64encode(PIXEL).decode()
    html = (
        f'<img alt="a" src="data:image/gif;base64,{code}" data-filename="dot.gif">'
        f"<IMG SRC='data:image/gif;base64,{code}'><img src='data:image/gif;base64,!'>"
    )
    message = parse_message(validate_and_build_message(replace(PLAIN_DRAFT, html=html)))
    (image,) = [part for part in message.walk() if part.get_content_type() == "image/gif"]
    assert (image.get_content(), image.get_filename()) == (PIXEL, "dot.gif")
    body = message.get_body(("html",))
    assert body is not None
    content_id = str(image["Content-ID"]).strip("<>")
    assert body.get_content().count(f"cid:{content_id}") == 2
    assert "base64,!" in body.get_content()


def test_bcc_is_written_and_can_be_removed() -> None:
    bcc_addresses = [NamedAddress(f"secret{n}@example.net", "Sécret, Very") for n in range(20)]
    raw = validate_and_build_message(replace(PLAIN_DRAFT, bcc=bcc_addresses))
    assert b"secret19@" in raw
    stripped = without_bcc(raw)
    assert stripped == validate_and_build_message(PLAIN_DRAFT)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_every_spelling_of_bcc_is_removed(line_end: bytes) -> None:
    header = [b"bcc : a@b", b"\tc@d", b"To: x", b"RESENT-BCC:", b" y@z", b"X-Bcc: stays", b"BCC: e"]
    raw = line_end.join([*header, b"", b"Bcc: of the text", b""])
    expected = line_end.join([b"To: x", b"X-Bcc: stays", b"", b"Bcc: of the text", b""])
    assert without_bcc(raw) == expected


def test_bcc_is_removed_from_message_without_body() -> None:
    assert without_bcc(b"Bcc: a@b\r\n c@d\r\nTo: x\r\n") == b"To: x\r\n"
    assert without_bcc(b"To: x\r\nBcc: a@b") == b"To: x\r\n"


def test_utf8_header_is_written_only_for_utf8_local_part() -> None:
    idn = validate_and_build_message(
        replace(PLAIN_DRAFT, to=[NamedAddress("bob@bücher.example", "Bücher")])
    )
    assert idn.isascii()
    assert b"bob@xn--bcher-kva.example" in idn
    utf8 = validate_and_build_message(
        replace(PLAIN_DRAFT, to=[NamedAddress("jörg@bücher.example")])
    )
    assert "To: jörg@bücher.example\r\n".encode() in utf8


def test_long_fields_are_folded_and_parsed_unchanged() -> None:
    addresses = [NamedAddress(f"somebody{n}@example.net", f'Some "Body", {n}') for n in range(100)]
    subject = "A very long subject " * 20 + "x" * 300 + " ünd mehr 🦆" * 10
    raw = validate_and_build_message(
        replace(PLAIN_DRAFT, to=addresses, subject=subject, references=["<a@b>"] * 40)
    )
    assert max(map(len, header_lines(raw))) <= 78
    message = parse_message(raw)
    assert [
        (address.addr_spec, address.display_name) for address in message["To"].addresses
    ] == addresses
    assert str(message["Subject"]) == subject.strip()


@given(
    name=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=80),
    subject=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=300),
)
@example(name="\ufeffAda", subject="\ufeffHello")
async def test_any_name_and_subject_are_parsed_unchanged(name: str, subject: str) -> None:
    raw = validate_and_build_message(
        replace(PLAIN_DRAFT, from_=NamedAddress("ada@example.org", name), subject=subject)
    )
    assert max(map(len, header_lines(raw))) < 998
    assert [line.split(b":")[0] for line in header_lines(raw) if line[:1] not in b" \t"] == [
        line.split(b":")[0] for line in header_lines(validate_and_build_message(PLAIN_DRAFT))
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
            ["headers", "1", "name"],
        ),
        ({"headers": [CustomHeader("X A", "1")]}, ["headers", "0", "name"]),
        ({"headers": [CustomHeader("X-A", "1\n2")]}, ["headers", "0", "value"]),
        ({"headers": [CustomHeader("X-A", "x" * 102401)]}, ["headers", "0", "value"]),
        ({"headers": [CustomHeader("X-A", "1")] * 101}, ["headers"]),
        ({"attachments": [OutgoingFile(b"", "a\nb")]}, ["attachments", "0", "filename"]),
        ({"attachments": [OutgoingFile(b"", "\ud800")]}, ["attachments"]),
        ({"attachments": [OutgoingFile(b"", None, "x")]}, ["attachments", "0", "contentType"]),
        ({"attachments": [OutgoingFile(b"", content_id="a>b")]}, ["attachments", "0", "contentId"]),
        ({"attachments": [OutgoingFile(b"123")], "most": 2}, ["attachments"]),
        ({"attachments": [OutgoingFile(b"")] * 251}, ["attachments"]),
        ({"most": 100}, ["attachments"]),
    ],
)
def test_invalid_draft_field_is_refused_with_its_path(
    change: dict[str, object], path: list[str]
) -> None:
    error_type = LimitReached if "most" in change else InvalidInput
    with pytest.raises(error_type) as error:
        validate_and_build_message(replace(PLAIN_DRAFT, **change))  # type: ignore[arg-type]
    assert error.value.path == path


def test_all_invalid_fields_are_reported_together() -> None:
    files = [OutgoingFile(b"", "a\nb", "x", "a>b"), OutgoingFile(b"", content_id="a>b")]
    headers = [CustomHeader("Bcc", "a\nb"), CustomHeader("X-A", "\n")]
    invalid_draft = replace(
        PLAIN_DRAFT, text="\0", html="\ud800", attachments=files, headers=headers
    )
    with pytest.raises(MultipleErrors) as errors:
        validate_and_build_message(invalid_draft)
    assert [".".join(error.path) for error in errors.value.all_errors] == [
        "attachments.0.contentId",
        "attachments.0.contentType",
        "attachments.0.filename",
        "attachments.1.contentId",
        "headers.0.name",
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
def test_reserved_header_fields_are_refused(key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        validate_and_build_message(replace(PLAIN_DRAFT, headers=[CustomHeader(key, "x")]))
    assert (error.value.constraint, error.value.path) == ("RESERVED", ["headers", "0", "name"])


def test_custom_headers_and_priority_are_written() -> None:
    headers = [
        CustomHeader("X-Campaign", "Frühling 🌱"),
        CustomHeader("List-Id", "<a.example.org>"),
    ]
    message = parse_message(
        validate_and_build_message(replace(PLAIN_DRAFT, headers=headers, priority=Priority.HIGH))
    )
    assert (message["X-Campaign"], message["List-Id"]) == ("Frühling 🌱", "<a.example.org>")
    assert (message["X-Priority"], message["Importance"]) == ("1", "high")


def test_references_keep_the_first_and_the_last_ids() -> None:
    ids = [f"<{n}@example.org>" for n in range(80)]
    message = parse_message(
        validate_and_build_message(
            replace(PLAIN_DRAFT, in_reply_to=ids[-1], references=["<b ad>", *ids])
        )
    )
    references = str(message["References"]).split()
    assert (len(references), references[0], references[1], references[-1]) == (
        50,
        ids[0],
        ids[31],
        ids[79],
    )
    assert message["In-Reply-To"] == ids[-1]


def test_message_id_has_random_bytes_and_ascii_domain() -> None:
    assert new_message_id(b"\x01\xff", "bücher.example") == "<01ff@xn--bcher-kva.example>"


@pytest.mark.parametrize(
    ("attachment", "expected"),
    [
        (OutgoingFile(b"", "a\r\nb\tc\0" + "n" * 300), OutgoingFile(b"", "ab c" + "n" * 251)),
        (OutgoingFile(b"", "", "x", "a>b", charset="a b"), OutgoingFile(b"")),
        (OutgoingFile(b"", "a", "image/png", "a@b", charset="utf-8"),
         OutgoingFile(b"", "a", "image/png", "a@b")),
        (OutgoingFile(b"", "a", "text/csv", charset='x"; y'), OutgoingFile(b"", "a", "text/csv")),
        *[(OutgoingFile(b"", "ü", "text/csv", charset="KOI8-R"),) * 2],
    ],
)  # fmt: skip
def test_sanitized_foreign_attachment_is_written(
    attachment: OutgoingFile, expected: OutgoingFile
) -> None:
    sanitized = sanitize_attachment(attachment)
    assert sanitized == expected
    (part,) = parse_message(
        validate_and_build_message(replace(PLAIN_DRAFT, attachments=[sanitized]))
    ).iter_attachments()
    assert part.get_filename() == expected.filename
    assert part.get_content_charset() == (expected.charset and expected.charset.lower())


def test_attached_message_is_an_octet_stream() -> None:
    draft = replace(
        PLAIN_DRAFT,
        attachments=[
            OutgoingFile(validate_and_build_message(PLAIN_DRAFT), "a.eml", "message/rfc822")
        ],
    )
    (part,) = parse_message(validate_and_build_message(draft)).iter_attachments()
    assert (part.get_content_type(), part.get_content()) == (
        "application/octet-stream",
        validate_and_build_message(PLAIN_DRAFT),
    )
