"""Ids of attachments, and the paths under which the bytes of messages are served."""

import base64
from typing import Any

import strawberry

from graph.types import global_ids
from graph.types.fields import Info
from graph.types.scalars import URL
from models.errors import Invalid
from models.users.roles import Role
from resolvers.files import signed_urls
from resolvers.messages.content_access import legible

MOST = 1 << 16  # attachments of a message that can be named
SIZE = 10  # bytes of an id: the message's key, then the number


def attachment_id(message_key: int, index: int) -> strawberry.ID:
    """The id of an attachment by its message and its number, counted from 0."""
    raw = message_key.to_bytes(8, "big") + index.to_bytes(2, "big")
    text = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return strawberry.ID(f"{global_ids.PREFIXES['Attachment']}_{text}")


def attachment_of(id: str, *, path: str = "id", index: int | None = None) -> tuple[int, int]:
    """The message's key and the attachment's number. Raises Invalid for all we would not write."""
    prefix, _, text = id[: global_ids.LONGEST].partition("_")
    try:
        raw = base64.urlsafe_b64decode(text + "==")
        key, number = int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")
        right = len(raw) == SIZE and 0 < key < 2**63 and prefix == global_ids.PREFIXES["Attachment"]
        if right and attachment_id(key, number) == id:
            return key, number
    except ValueError:
        pass
    raise Invalid("not the id of an Attachment", constraint="id", path=[path], index=index)


def held_path(item_key: int, *more: str) -> str:
    """Where the whole of a held message is, or a part of it."""
    item = global_ids.encode("QuarantineItem", item_key)
    return "/".join((f"/rest/quarantine/{item}", *(more or ("message.eml",))))


def source_path(message_key: int) -> str:
    """Where the whole message is."""
    return f"/rest/messages/{global_ids.encode('Message', message_key)}/message.eml"


def attachment_path(message_key: int, index: int) -> str:
    """Where the decoded attachment is."""
    message = global_ids.encode("Message", message_key)
    return f"/rest/messages/{message}/attachments/{attachment_id(message_key, index)}"


def zip_path(message_key: int) -> str:
    """Where all attachments are, as one zip."""
    return f"/rest/messages/{global_ids.encode('Message', message_key)}/attachments.zip"


def part_path(message_key: int, section: str) -> str:
    """Where a decoded part is; sections are those of `resolvers.messages.content.section_of`."""
    return f"/rest/messages/{global_ids.encode('Message', message_key)}/parts/{section}"


def archived_path(message_key: int) -> str:
    """Where the whole of a deleted message is."""
    return f"/rest/archive/{global_ids.encode('ArchivedMessage', message_key)}/message.eml"


def signed(info: Info, path: str, row: Any) -> URL:
    """The address of bytes of this row, good for a quarter of an hour.

    Of what is shared it is the viewer's, and good for as long as they may read it.
    """
    viewer = info.context.viewer
    legible(info.context, row)
    return addressed(info, path, row.user_id if viewer.role is Role.ROOT else viewer.user_id)


def addressed(info: Info, path: str, user_id: int) -> URL:
    """The same, where it was seen before that the viewer may have them."""
    ctx = info.context
    return absolute(
        info, signed_urls.sign(ctx.world, path, user_id, ctx.viewer, now=ctx.world.now())
    )


def absolute(info: Info, path: str) -> URL:
    """A path of ours as a URL."""
    headers = getattr(info.context, "headers", {})
    scheme = headers.get("x-forwarded-proto", "http")
    base = f"{scheme if scheme == 'https' else 'http'}://{headers.get('host', 'localhost')}"
    return URL(signed_urls.absolute(info.context.world, path, base))


def audit_path(audit_key: int) -> str:
    """Where the copies of an audit are, as a mailbox file."""
    return f"/rest/audits/{global_ids.encode('Audit', audit_key)}/export.mbox"


def export_path(user_key: int, export_key: int) -> str:
    """Where an account is as a file."""
    user, export = (
        global_ids.encode("User", user_key),
        global_ids.encode("AccountExport", export_key),
    )
    return f"/rest/users/{user}/export/{export}"


def file_path(file_key: int) -> str:
    """Where the bytes of a file are."""
    return f"/rest/files/{global_ids.encode('File', file_key)}"
