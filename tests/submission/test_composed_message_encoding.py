"""Test the encoding of composed messages: RFC 2046, 2047, 2231, 2387 and 6532."""

import base64
from typing import Any

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.message_sources import (
    load_attached_files,
    load_message_source,
    names_and_addresses,
    parse_stored_message,
    save_draft,
)
from tests.support.schema.error_paths import field_path, item_index

PIXEL = base64.b64decode(b"R0lGODlhAQABAAAAACwAAAAAAQABAAA=")
PIXEL_BASE64 = base64.b64encode(PIXEL).decode()
TEXTS = [  # names of people and files, and subjects, as they are read back
    "Ada",
    'Ada Lovelace-Byron, Countess "of" (Computing) <3 @ home; \\o/',
    "Jörg Müßig",
    "Łukasz Żółć",
    "Ελένη Παπαδοπούλου",
    "Дмитрий Иванович Менделеев",
    "אברהם בן־דוד",
    "محمد بن سلمان",
    "देवनागरी क्षत्रिय",
    "ภาษาไทยไม่มีช่องว่าง",
    "会议通知 北京大学",
    "東京タワー・ｶﾀｶﾅ",
    "한국어 이름",
    "🦆🏳️‍🌈👩‍👩‍👧‍👦 family",
    "e\u0301 combining a\u0308",
    "=?utf-8?B?bm90IGVuY29kZWQ=?=",
    "100% of 'it' = a*b''c%20d",
    "x" * 200,
    ("ä" * 120) + " end",
    "a  b   c",
]


def new_attachment(filename: str, content: bytes = b"x", **extra: Any) -> dict[str, Any]:
    return {"content": base64.b64encode(content).decode(), "filename": filename, **extra}


def split_words(text: str) -> list[str]:
    return text.split()  # RFC 5322, section 3.2.2: white space can be folded.


async def test_names_in_every_script_are_read_back_unchanged(ada: GraphQLClient) -> None:
    for case in each_case(TEXTS):
        with case as text:
            # Readers also decode encoded words in filenames, against RFC 2047, and interpret paths.
            file_name = text.replace("=?", "").translate(str.maketrans("/\\", "--"))
            people = [{"address": "carol@example.net", "name": text}, {"address": "d@example.net"}]
            answer = await save_draft(
                ada, to=people, cc=people[:1], bcc=people[:1], replyTo=people[:1], subject=text,
                **{"from": {"address": ada.address, "name": text}}, text=f"{text}\n",
                headers=[{"name": "X-Note", "value": text}],
                addAttachments=[new_attachment(file_name)],
            )  # fmt: skip
            message = await parse_stored_message(ada, answer)
            for header in ("From", "To", "Cc", "Bcc", "Reply-To"):
                assert split_words(names_and_addresses(message, header)[0][0]) == split_words(
                    text
                ), header
            assert [address for _, address in names_and_addresses(message, "To")] == [
                "carol@example.net",
                "d@example.net",
            ]
            assert split_words(str(message["Subject"])) == split_words(text)
            assert split_words(str(message["X-Note"])) == split_words(text)
            (file,) = message.iter_attachments()
            assert file.get_filename() == file_name
            body = message.get_body(("plain",))
            assert body is not None
            assert body.get_content().splitlines() == [text]
            assert answer["message"]["attachments"][0]["filename"] == file_name
            raw = await load_message_source(ada, answer["message"]["id"])
            assert raw.isascii()
            assert max(map(len, raw.split("\r\n"))) <= 998


# for each case: the address, the address in the message, and whether the message has UTF-8
ADDRESSES: list[tuple[str, str, bool]] = [
    ("jörg@bücher.example", "jörg@bücher.example", True),
    ("用户@例子.example", "用户@例子.example", True),
    ("δοκιμή@παράδειγμα.example", "δοκιμή@παράδειγμα.example", True),
    ("bob@bücher.example", "bob@xn--bcher-kva.example", False),
    ("o'hara+x@example.com", "o'hara+x@example.com", False),
]


async def test_addresses_in_every_script_are_read_back(ada: GraphQLClient) -> None:
    for case in each_case(ADDRESSES):
        with case as (address, expected, utf8):
            answer = await save_draft(ada, to=[{"address": address, "name": "Ü"}], text="x")
            raw = await load_message_source(ada, answer["message"]["id"])
            assert raw.isascii() is not utf8
            (person,) = (await parse_stored_message(ada, answer))["To"].addresses
            assert (person.addr_spec, person.display_name) == (expected, "Ü")


IMAGE = new_attachment("dot.gif", PIXEL, contentType="image/gif", contentId="dot@here")
CSV = new_attachment("a.csv", b"1;2", contentType="text/csv")
HTML_WITH_IMAGE = '<p>Hi</p><img src="cid:dot@here">'
HTML_WITH_DATA_URL = f'<img src="data:image/gif;base64,{PIXEL_BASE64}" data-filename="inline.gif">'
ALTERNATIVE_TYPES = ["multipart/alternative", "text/plain", "text/html"]
RELATED_TYPES = [
    "multipart/alternative",
    "text/plain",
    "multipart/related",
    "text/html",
    "image/gif",
]
STRUCTURES: list[tuple[dict[str, Any], list[str]]] = [
    ({"text": "Hi"}, ["text/plain"]),
    ({"html": "<p>Hi</p>"}, ALTERNATIVE_TYPES),
    ({"text": "Hi", "html": "<p>Hi</p>"}, ALTERNATIVE_TYPES),
    ({"text": "Hi", "html": HTML_WITH_IMAGE, "addAttachments": [IMAGE]}, RELATED_TYPES),
    ({"html": HTML_WITH_DATA_URL}, RELATED_TYPES),
    ({"text": "Hi", "addAttachments": [CSV]}, ["multipart/mixed", "text/plain", "text/csv"]),
    ({"text": "Hi", "addAttachments": [IMAGE]}, ["multipart/mixed", "text/plain", "image/gif"]),
    (
        {"html": "<p>Hi</p>", "addAttachments": [CSV]},
        ["multipart/mixed", *ALTERNATIVE_TYPES, "text/csv"],
    ),
    (
        {"html": HTML_WITH_IMAGE, "addAttachments": [CSV, IMAGE]},
        ["multipart/mixed", *RELATED_TYPES, "text/csv"],
    ),
    ({"addAttachments": [CSV]}, ["multipart/mixed", "text/plain", "text/csv"]),
]


async def test_mime_parts_have_standard_structure(ada: GraphQLClient) -> None:
    for case in each_case(STRUCTURES):
        with case as (arguments, types):
            answer = await save_draft(ada, **arguments)
            message = await parse_stored_message(ada, answer)
            assert [part.get_content_type() for part in message.walk()] == types
            html = message.get_body(("html",))
            for part in message.walk():
                if part.get_content_type() == "image/gif":
                    related = "multipart/related" in types
                    assert part.get_content_disposition() == ("inline" if related else "attachment")
                    assert part.get_payload(decode=True) == PIXEL
                    assert part.get_filename() in ("dot.gif", "inline.gif")
                    cid = str(part["Content-ID"]).strip("<>")
                    assert not related or (html and f"cid:{cid}" in html.get_content())
            related_flags = [
                attachment["inline"] for attachment in answer["message"]["attachments"]
            ]
            assert sum(related_flags) == ("multipart/related" in types)


async def test_incomplete_recipient_is_dropped_only_from_to(ada: GraphQLClient) -> None:
    people = [{"address": address} for address in ("car", "carol@example.net", "", "d@", "e@f g")]
    answer = await save_draft(ada, to=people, subject="Soon")
    assert str((await parse_stored_message(ada, answer))["To"]) == "carol@example.net"
    assert answer["warnings"] == [
        {"code": "RECIPIENT_DROPPED", "path": ["set", "to", str(nth)]} for nth in (0, 2, 3, 4)
    ]
    for field in ("cc", "bcc", "replyTo"):
        (error,) = (await save_draft(ada, subject="x", **{field: people}))["errors"]
        assert (error["code"], field_path(error), item_index(error)) == (
            "VALIDATION",
            ["set", field],
            0,
        )


async def test_draft_needs_own_from_address(ada: GraphQLClient, bob: GraphQLClient) -> None:
    foreign_from = {"from": {"address": bob.address}, "subject": "x"}
    (error,) = (await save_draft(ada, **foreign_from))["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["set", "from"])
    own = await save_draft(ada, subject="x", priority="HIGH", bcc=[{"address": "z@y.org"}])
    message = await parse_stored_message(ada, own)
    assert str(message["From"]) == ada.address
    assert (str(message["X-Priority"]), str(message["Bcc"])) == ("1", "z@y.org")


async def test_reply_draft_joins_the_thread(ada: GraphQLClient, bob: GraphQLClient) -> None:
    message_id = global_ids.encode(
        "Message", (await deliver_to(ada, raw_message("Plans"))).message_id
    )
    reference = {"message": {"id": message_id}, "relation": "REPLY"}
    answer = await save_draft(ada, original=reference, text="Yes.")
    message = await parse_stored_message(ada, answer)
    assert answer["message"]["imap"]["flags"] == ["\\Seen", "\\Draft"]
    assert answer["message"]["thread"] == {**answer["message"]["thread"], "messageCount": 2}
    assert (str(message["Subject"]), str(message["To"])) == (
        "Re: Plans",
        "Carol <carol@example.com>",
    )
    assert str(message["In-Reply-To"]) == answer["message"]["inReplyTo"]
    (error,) = (await save_draft(bob, original=reference))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["original", "message"])


# for each case: the arguments, and the constraint and path of the error
INVALID_FIELDS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"subject": "a\r\nBcc: eve@example.net"}, "PATTERN", ["set", "subject"]),
    ({"subject": "ä" * 1025}, "MAX", ["set", "subject"]),
    (
        {"headers": [{"name": "Received", "value": "x"}]},
        "RESERVED",
        ["set", "headers", "0", "name"],
    ),
    (
        {"addAttachments": [CSV, new_attachment("a\nb")]},
        "PATTERN",
        ["set", "addAttachments", "1", "filename"],
    ),
    ({"addAttachments": [new_attachment("a")] * 251}, "MAX", ["set", "addAttachments"]),
    ({"subject": "x", "draft": {"id": "x"}}, "ID", ["draft"]),
    ({"addAttachments": [{"content": "x"}]}, "ENCODING", ["set", "addAttachments", "0", "content"]),
    ({"addAttachments": [{}]}, "EXCLUSIVE", ["set", "addAttachments", "0"]),
    ({"addAttachments": [{"upload": "x"}]}, "ID", ["set", "addAttachments", "0", "upload"]),
    ({"addFiles": [{"id": "x"}]}, "ID", ["set", "addFiles", "0", "id"]),
    ({"metadata": []}, "OBJECT", ["set", "metadata"]),
]


async def test_invalid_message_fields_are_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_FIELDS):
        with case as (arguments, constraint, path):
            (error,) = (await save_draft(ada, **arguments))["errors"]
            assert (error["constraint"], error["path"]) == (constraint, path)
            assert (await ada.load_mailbox("Drafts")).message_count == 0
    stored = await save_draft(ada, addAttachments=[CSV, IMAGE], html=HTML_WITH_IMAGE)
    for case in each_case(fields for fields in INVALID_FIELDS if "draft" not in fields[0]):
        with case as (arguments, constraint, path):
            changed = {**arguments, "draft": {"id": stored["message"]["id"]}}
            (error,) = (await save_draft(ada, **changed))["errors"]
            assert (error["constraint"], error["path"]) == (constraint, path)


async def test_attached_files_are_stored_unchanged(ada: GraphQLClient) -> None:
    expected_files = [
        ("a.bin", bytes(range(256)) * 300, None),
        ("b.txt", "ü\r\n".encode(), "text/plain"),
    ]
    attachments = [
        new_attachment(name, data, contentType=kind) for name, data, kind in expected_files
    ]
    answer = await save_draft(ada, addAttachments=attachments)
    assert [(name, data) for name, _, _, data in await load_attached_files(ada, answer)] == [
        (name, data) for name, data, _ in expected_files
    ]
