"""Messages that are written by GraphQL, and read with Python's email package."""

import email
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

from tests.conftest import Client

UPLOAD = """
mutation ($input: MessageUploadInput!) { messageUpload(input: $input) {
  message { id uid modseq flags size thread { id subject messageCount } mailbox { path }
    messageId inReplyTo references attachments { id filename related } metaData }
  previousDeleted
  warnings { code path }
  errors { __typename code path index ... on ValidationError { constraint } } } }
"""
SOURCE = """
query ($id: ID!) { message(by: {id: $id}) { source(maxBytes: 16777216) } }
"""


async def upload(client: Client, **given: Any) -> Any:
    """The answer of messageUpload, by default into Drafts."""
    given = {"mailbox": {"specialUse": "DRAFTS"}, **given}
    return (await client(UPLOAD, input=given))["messageUpload"]


async def source(client: Client, key: str) -> str:
    return str((await client(SOURCE, id=key))["message"]["source"])


async def read_back(client: Client, answer: Any) -> EmailMessage:
    """The message of an answer, as others read it."""
    assert answer["errors"] == []
    raw = await source(client, answer["message"]["id"])
    message = email.message_from_string(raw, policy=policy.SMTPUTF8)
    assert isinstance(message, EmailMessage)
    assert not any(part.defects for part in message.walk())
    return message


def names(message: EmailMessage, header: str) -> list[tuple[str, str]]:
    """The people of a header, names first.

    By the package's older reader: the other one puts blanks between encoded words in names
    until Python 3.13, against section 6.2 of RFC 2047.
    """
    raw = dict(message.raw_items())[header]
    return [
        (str(make_header(decode_header(name))), address) for name, address in getaddresses([raw])
    ]


async def files(client: Client, answer: Any) -> list[tuple[Any, ...]]:
    """Name, type, Content-ID and bytes of the files of a message."""
    return [
        (
            *(part.get_filename(), part.get_content_type(), part["Content-ID"]),
            part.get_payload(decode=True),
        )
        for part in (await read_back(client, answer)).walk()
        if part.get_content_disposition()
    ]


async def put(client: Client, content: bytes, **headers: str) -> str:
    """The id of an upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await client.http.post(
        "/rest/uploads", content=content, headers={**client.headers, **named}
    )
    return str(answer.json()["id"])
