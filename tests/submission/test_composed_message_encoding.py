"""Messages written from fields, as others read them: RFC 2047, 2231, 6532, 2387, 2046."""

import base64
from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import Client, raw_message, receive
from tests.support.operations.message_sources import files, names, read_back, source, upload

PIXEL = base64.b64decode(b"R0lGODlhAQABAAAAACwAAAAAAQABAAA=")
CODE = base64.b64encode(PIXEL).decode()
TEXTS = [  # names of people and of files, and subjects, as they come back
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


def attached(filename: str, content: bytes = b"x", **more: Any) -> dict[str, Any]:
    return {"content": base64.b64encode(content).decode(), "filename": filename, **more}


def unspaced(text: str) -> list[str]:
    return text.split()  # white space may be folded: RFC 5322, section 3.2.2


@pytest.mark.parametrize("text", TEXTS)
async def test_names_in_every_script_come_back(ada: Client, text: str) -> None:
    # readers decode words in file names too, against RFC 2047, and take paths for paths
    file_name = text.replace("=?", "").translate(str.maketrans("/\\", "--"))
    people = [{"address": "carol@example.net", "name": text}, {"address": "d@example.net"}]
    answer = await upload(
        ada, to=people, cc=people[:1], bcc=people[:1], replyTo=people[:1], subject=text,
        **{"from": {"address": ada.address, "name": text}}, text=f"{text}\n",
        headers=[{"key": "X-Note", "value": text}], attachments=[attached(file_name)], draft=True,
    )  # fmt: skip
    message = await read_back(ada, answer)
    for header in ("From", "To", "Cc", "Bcc", "Reply-To"):
        assert unspaced(names(message, header)[0][0]) == unspaced(text), header
    assert [address for _, address in names(message, "To")] == [
        "carol@example.net",
        "d@example.net",
    ]
    assert unspaced(str(message["Subject"])) == unspaced(text)
    assert unspaced(str(message["X-Note"])) == unspaced(text)
    (file,) = message.iter_attachments()
    assert file.get_filename() == file_name
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().splitlines() == [text]
    assert answer["message"]["attachments"][0]["filename"] == file_name
    raw = await source(ada, answer["message"]["id"])
    assert raw.isascii()
    assert max(map(len, raw.split("\r\n"))) <= 998


@pytest.mark.parametrize(
    ("address", "shown", "utf8"),
    [
        ("jörg@bücher.example", "jörg@bücher.example", True),
        ("用户@例子.example", "用户@例子.example", True),
        ("δοκιμή@παράδειγμα.example", "δοκιμή@παράδειγμα.example", True),
        ("bob@bücher.example", "bob@xn--bcher-kva.example", False),
        ("o'hara+x@example.com", "o'hara+x@example.com", False),
    ],
)
async def test_addresses_in_every_script_come_back(
    ada: Client, address: str, shown: str, *, utf8: bool
) -> None:
    answer = await upload(ada, to=[{"address": address, "name": "Ü"}], text="x", draft=True)
    raw = await source(ada, answer["message"]["id"])
    assert raw.isascii() is not utf8
    (person,) = (await read_back(ada, answer))["To"].addresses
    assert (person.addr_spec, person.display_name) == (shown, "Ü")


IMAGE = attached("dot.gif", PIXEL, contentType="image/gif", cid="dot@here")
CSV = attached("a.csv", b"1;2", contentType="text/csv")
SHOWN = '<p>Hi</p><img src="cid:dot@here">'
INLINE = f'<img src="data:image/gif;base64,{CODE}" data-filename="inline.gif">'
ALTERNATIVE = ["multipart/alternative", "text/plain", "text/html"]
RELATED = ["multipart/alternative", "text/plain", "multipart/related", "text/html", "image/gif"]
SHAPES: list[tuple[dict[str, Any], list[str]]] = [
    ({"text": "Hi"}, ["text/plain"]),
    ({"html": "<p>Hi</p>"}, ALTERNATIVE),
    ({"text": "Hi", "html": "<p>Hi</p>"}, ALTERNATIVE),
    ({"text": "Hi", "html": SHOWN, "attachments": [IMAGE]}, RELATED),
    ({"html": INLINE}, RELATED),
    ({"text": "Hi", "attachments": [CSV]}, ["multipart/mixed", "text/plain", "text/csv"]),
    ({"text": "Hi", "attachments": [IMAGE]}, ["multipart/mixed", "text/plain", "image/gif"]),
    ({"html": "<p>Hi</p>", "attachments": [CSV]}, ["multipart/mixed", *ALTERNATIVE, "text/csv"]),
    ({"html": SHOWN, "attachments": [CSV, IMAGE]}, ["multipart/mixed", *RELATED, "text/csv"]),
    ({"attachments": [CSV]}, ["multipart/mixed", "text/plain", "text/csv"]),
]


@pytest.mark.parametrize(("given", "types"), SHAPES, ids=str)
async def test_parts_stand_in_the_order_that_readers_choose_by(
    ada: Client, given: dict[str, Any], types: list[str]
) -> None:
    answer = await upload(ada, draft=True, **given)
    message = await read_back(ada, answer)
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
    inside = [each["related"] for each in answer["message"]["attachments"]]
    assert sum(inside) == ("multipart/related" in types)


async def test_who_is_half_written_is_left_out_of_to_alone(ada: Client) -> None:
    people = [{"address": address} for address in ("car", "carol@example.net", "", "d@", "e@f g")]
    answer = await upload(ada, to=people, subject="Soon", draft=True)
    assert str((await read_back(ada, answer))["To"]) == "carol@example.net"
    assert answer["warnings"] == [
        {"code": "RECIPIENT_DROPPED", "path": ["to", str(nth)]} for nth in (0, 2, 3, 4)
    ]
    for field in ("cc", "bcc", "replyTo"):
        (error,) = (await upload(ada, subject="x", **{field: people}))["errors"]
        assert (error["code"], error["path"], error["index"]) == ("VALIDATION", [field], 0)


async def test_a_draft_is_of_oneself_and_old_mail_of_whoever_wrote_it(
    ada: Client, bob: Client
) -> None:
    theirs = {"from": {"address": bob.address}, "subject": "x"}
    (error,) = (await upload(ada, draft=True, **theirs))["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["from"])
    old = await upload(ada, receivedAt="2001-02-03T04:05:06Z", **theirs)
    message = await read_back(ada, old)
    assert (str(message["From"]), str(message["Date"])) == (
        bob.address,
        "Sat, 03 Feb 2001 04:05:06 +0000",
    )
    own = await upload(ada, subject="x", draft=True, priority="HIGH", bcc=[{"address": "z@y.org"}])
    message = await read_back(ada, own)
    assert str(message["From"]) == ada.address
    assert (str(message["X-Priority"]), str(message["Bcc"])) == ("1", "z@y.org")


async def test_an_answer_is_a_draft_of_the_conversation(ada: Client, bob: Client) -> None:
    key = global_ids.encode("Message", (await receive(ada, raw_message("Plans"))).message_id)
    reference = {"message": {"id": key}, "action": "REPLY"}
    answer = await upload(ada, reference=reference, text="Yes.")
    message = await read_back(ada, answer)
    assert answer["message"]["flags"] == ["\\Seen", "\\Draft"]
    assert answer["message"]["thread"] == {**answer["message"]["thread"], "messageCount": 2}
    assert (str(message["Subject"]), str(message["To"])) == (
        "Re: Plans",
        "Carol <carol@example.com>",
    )
    assert str(message["In-Reply-To"]) == answer["message"]["inReplyTo"]
    (error,) = (await upload(bob, reference=reference))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["reference", "message"])


@pytest.mark.parametrize(
    ("given", "constraint", "path"),
    [
        ({"draft": True}, "required", ["raw"]),
        ({"raw": "a: b", "subject": "x"}, "exclusive", ["raw"]),
        ({"raw": "a: b", "priority": "LOW"}, "exclusive", ["raw"]),
        ({"rawUpload": global_ids.encode("Upload", 7), "to": []}, "exclusive", ["rawUpload"]),
        ({"subject": "a\r\nBcc: eve@example.net"}, "pattern", ["subject"]),
        ({"subject": "ä" * 1025}, "max", ["subject"]),
        ({"headers": [{"key": "Received", "value": "x"}]}, "reserved", ["headers", "0", "key"]),
        ({"attachments": [attached("a\nb")]}, "pattern", ["attachments", "0", "filename"]),
        ({"attachments": [attached("a")] * 251}, "max", ["attachments"]),
        ({"subject": "x", "keepAttachments": {"all": True}}, "required", ["keepAttachments"]),
        ({"subject": "x", "replacePrevious": {"id": "x"}}, "id", ["replacePrevious"]),
    ],
)
async def test_what_cannot_be_written_is_named(
    ada: Client, given: dict[str, Any], constraint: str, path: list[str]
) -> None:
    (error,) = (await upload(ada, **given))["errors"]
    assert (error["constraint"], error["path"]) == (constraint, path)
    assert (await ada.box("Drafts")).total == 0


async def test_files_lie_in_the_message_as_they_were(ada: Client) -> None:
    kinds = [("a.bin", bytes(range(256)) * 300, None), ("b.txt", "ü\r\n".encode(), "text/plain")]
    given = [attached(name, data, contentType=kind) for name, data, kind in kinds]
    answer = await upload(ada, attachments=given, draft=True)
    assert [(name, data) for name, _, _, data in await files(ada, answer)] == [
        (name, data) for name, data, _ in kinds
    ]
