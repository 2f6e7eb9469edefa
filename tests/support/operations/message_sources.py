"""Messages that are uploaded by GraphQL and parsed by Python's email package."""

import base64
import email
from collections.abc import Iterator
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.utils import getaddresses
from typing import Any

from tests.conftest import GraphQLClient

MESSAGE_FIELDS = """id imap { uid modseq flags } size thread { id subject messageCount }
    mailbox { path }
    messageIdHeader inReplyTo references attachments { id filename inline } metadata"""
ERROR_FIELDS = "errors { __typename code path ... on ValidationError { constraint } }"
DRAFT_SAVE = f"""
mutation ($input: DraftSaveInput!) {{ draftSave(input: $input) {{
  message {{ {MESSAGE_FIELDS} }} warnings {{ code path }} {ERROR_FIELDS} }} }}
"""
MESSAGE_IMPORT = f"""
mutation ($input: MessageImportInput!) {{ messageImport(input: $input) {{
  messages {{ {MESSAGE_FIELDS} }} {ERROR_FIELDS} }} }}
"""
DRAFT_SAVE_ARGUMENTS = ("draft", "mailbox", "original", "user", "ifUnchangedSince", "options")
MESSAGE_SOURCE_QUERY = """
query ($id: ID!) { message(by: {id: $id}) { rawSource(maxBytes: 16777216) } }
"""


async def save_draft(client: GraphQLClient, **fields: Any) -> Any:
    """Save a draft and return the payload. Fields that are no other argument go into `set`."""
    arguments = {name: fields.pop(name) for name in DRAFT_SAVE_ARGUMENTS if name in fields}
    return (await client(DRAFT_SAVE, input={**arguments, "set": fields}))["draftSave"]


async def import_message(client: GraphQLClient, **fields: Any) -> Any:
    """Store a complete message, by default in Drafts. Return the payload, with one `message`."""
    fields = {"mailbox": {"specialUse": "DRAFTS"}, **fields}
    payload = (await client(MESSAGE_IMPORT, input=fields))["messageImport"]
    return {**payload, "message": next(iter(payload["messages"]), None)}


async def load_message_source(client: GraphQLClient, message_id: str) -> str:
    """Read the source of a message."""
    return str((await client(MESSAGE_SOURCE_QUERY, id=message_id))["message"]["rawSource"])


async def parse_stored_message(client: GraphQLClient, payload: Any) -> EmailMessage:
    """Parse the message of a payload; fails on defects."""
    assert payload["errors"] == []
    raw = await load_message_source(client, payload["message"]["id"])
    message = email.message_from_string(raw, policy=policy.SMTPUTF8)
    assert isinstance(message, EmailMessage)
    assert not any(part.defects for part in message.walk())
    return message


def names_and_addresses(message: EmailMessage, header: str) -> list[tuple[str, str]]:
    """The names and addresses of a header field.

    This uses the older parser of the email package: before Python 3.13, the other one adds spaces
    between encoded words in names, against RFC 2047 section 6.2.
    """
    raw = dict(message.raw_items())[header]
    return [
        (str(make_header(decode_header(name))), address) for name, address in getaddresses([raw])
    ]


async def load_attached_files(client: GraphQLClient, payload: Any) -> list[tuple[Any, ...]]:
    """Filename, content type, Content-ID and content of each attachment of a message."""
    return [
        (
            *(part.get_filename(), part.get_content_type(), part["Content-ID"]),
            _content_of_part(part),
        )
        for part in _walk_outside_of_attached_messages(await parse_stored_message(client, payload))
        if part.get_content_disposition()
    ]


def _walk_outside_of_attached_messages(part: Message) -> Iterator[Message]:
    """Yield the part and the parts in it, but not those of attached messages."""
    yield part
    if part.is_multipart() and part.get_content_type() != "message/rfc822":
        for child in part.get_payload():
            assert isinstance(child, Message)
            yield from _walk_outside_of_attached_messages(child)


def _content_of_part(part: Message) -> Any:
    if part.get_content_type() != "message/rfc822":
        return part.get_payload(decode=True)
    message = part.get_payload(0)
    assert isinstance(message, Message)
    return message.as_bytes(policy=policy.compat32.clone(linesep="\r\n"))


async def upload_bytes(client: GraphQLClient, content: bytes, **headers: str) -> str:
    """Upload bytes by HTTP and return the id of the upload."""
    header_fields = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await client.http.post(
        "/rest/uploads", content=content, headers={**client.headers, **header_fields}
    )
    return str(response.json()["id"])


def new_attachment(name: str, content: bytes = b"x", **extra: Any) -> dict[str, Any]:
    return {"content": base64.b64encode(content).decode(), "filename": name, **extra}


async def create_draft(client: GraphQLClient, **fields: Any) -> Any:
    answer = await save_draft(client, **{"text": "Dear Carol,", **fields})
    assert answer["errors"] == []
    return answer["message"]


FILE_A = new_attachment("a.txt", b"A")
FILE_B = new_attachment("b.txt", b"B")
FILE_C = new_attachment("c.txt", b"C")
