"""Messages attached as message/rfc822 with a transfer encoding, and `cid:` URLs of images."""

import base64
import quopri
from collections.abc import Callable
from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to

INNER = (
    b"From: Dora <dora@example.com>\r\nTo: eve@example.com\r\nSubject: =?utf-8?q?M=C3=BC?=\r\n"
    b"Date: Tue, 01 Jan 2030 10:00:00 +0000\r\nMessage-ID: <m@x>\r\n"
    b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n\r\nInner text\r\n"
    b"--in\r\nContent-Type: image/png\r\n\r\nx\r\n--in--\r\n"
)
MESSAGE_FIELDS = """attachments { size message { subject from { address } to { address } date
  messageIdHeader text attachments { filename } } }
  mimeStructure { parts { message { subject text } } }"""


def outer_message(encoding: str, body: bytes, content_type: str = "message/rfc822") -> bytes:
    return (
        b"From: a@example.net\r\nSubject: Outer\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHi\r\n--b\r\n"
        + f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
        + body
        + b"\r\n--b--\r\n"
    )


async def load_message(client: GraphQLClient, raw: bytes, fields: str) -> Any:
    message_id = (await deliver_to(client, raw)).message_id
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {fields} }} }}"
    return (await client(document, id=global_ids.encode("Message", message_id)))["message"]


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("base64", base64.encodebytes), ("quoted-printable", quopri.encodestring)],
)
async def test_encoded_attached_message_is_shown(
    ada: GraphQLClient, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    raw = outer_message(encoding, encode(INNER))
    message = await load_message(ada, raw, MESSAGE_FIELDS)
    (attachment,) = message["attachments"]
    inner = attachment["message"]
    assert (inner["subject"], inner["from"], inner["to"], inner["messageIdHeader"]) == (
        "Mü",
        {"address": "dora@example.com"},
        [{"address": "eve@example.com"}],
        "<m@x>",
    )
    assert inner["date"] == "2030-01-01T10:00:00Z"
    assert inner["text"].strip() == "Inner text"
    assert inner["attachments"] == []
    part = message["mimeStructure"]["parts"][1]["message"]
    assert (part["subject"], part["text"]) == ("Mü", inner["text"])


@pytest.mark.parametrize("body", [b"", b"eA==", b"!!!!", base64.b64encode(b"\x89PNG\r\n\x1a\n")])
async def test_encoded_part_without_header_is_no_message(ada: GraphQLClient, body: bytes) -> None:
    message = await load_message(ada, outer_message("base64", body), MESSAGE_FIELDS)
    assert [attachment["message"] for attachment in message["attachments"]] == [None]


async def test_percent_encoded_content_id_shows_the_image(ada: GraphQLClient) -> None:
    picture = b"\x89PNG picture"
    raw = (
        b"From: a@example.net\r\nSubject: Picture\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/related; boundary=rel\r\n\r\n--rel\r\n"
        b"Content-Type: text/html; charset=utf-8\r\n\r\n"
        b"<p><IMG SRC='cid:image001.png%4001DB5155.249583D0'> <img src='cid:50%25@x'>"
        b"<img src='cid:unknown%40x'></p>\r\n--rel\r\n"
        b"Content-Type: image/png\r\nContent-ID: <image001.png@01DB5155.249583D0>\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(picture) + b"--rel\r\n"
        b"Content-Type: image/png\r\nContent-ID: <50%25@x>\r\n\r\nother\r\n--rel--\r\n"
    )
    html = (await load_message(ada, raw, "html"))["html"]
    urls = [part.partition('"')[0] for part in html.split('src="')[1:]]
    contents = [(await ada.http.get(url.replace("&amp;", "&"))).content for url in urls]
    assert contents == [picture, b"other"]
