"""IDs of attachments, and the paths and signed URLs of downloads."""

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import strawberry

from graph.types import global_ids
from graph.types.fields import Info
from graph.types.scalars import URL
from models.base64url import encode_base64url
from models.errors import InvalidInput
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.files import signed_urls
from resolvers.messages.content_access import require_readable_row

ATTACHMENT_ID_BYTES = 10  # message ID and attachment number


def attachment_id(message_key: int, index: int) -> strawberry.ID:
    """Return the global ID of an attachment from its message's ID and its number from 0."""
    raw = message_key.to_bytes(8, "big") + index.to_bytes(2, "big")
    text = encode_base64url(raw)
    return strawberry.ID(f"{global_ids.PREFIXES['Attachment']}_{text}")


def parse_message_id_and_attachment_number(
    id: str, *, path: str | Sequence[str] = "id"
) -> tuple[int, int]:
    """Return the message ID and the attachment number of a global ID.

    Raises InvalidInput with the path of the ID if it is malformed.
    """
    prefix, _, text = id[: global_ids.MAX_LENGTH].partition("_")
    try:
        raw = base64.urlsafe_b64decode(text + "==")
        key, number = int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")
        is_valid = (
            len(raw) == ATTACHMENT_ID_BYTES
            and 0 < key < 2**63
            and prefix == global_ids.PREFIXES["Attachment"]
        )
        if is_valid and attachment_id(key, number) == id:
            return key, number
    except ValueError:
        pass
    full_path = [path] if isinstance(path, str) else path
    raise InvalidInput(
        "Not the ID of an attachment.", constraint=ValidationConstraint.ID, path=full_path
    )


def quarantined_message_path(item_key: int, *subpath: str) -> str:
    """Return the path of a quarantined message or of a part of it."""
    item = global_ids.encode("QuarantineItem", item_key)
    return "/".join((f"/rest/quarantine/{item}", *(subpath or ("message.eml",))))


def message_source_path(message_key: int) -> str:
    """Return the path of a whole message."""
    return f"/rest/messages/{global_ids.encode('Message', message_key)}/message.eml"


def attachment_download_path(message_key: int, index: int) -> str:
    """Return the path of a decoded attachment."""
    message = global_ids.encode("Message", message_key)
    return f"/rest/messages/{message}/attachments/{attachment_id(message_key, index)}"


def zip_path(message_key: int) -> str:
    """Return the path of the ZIP with all attachments of a message."""
    return f"/rest/messages/{global_ids.encode('Message', message_key)}/attachments.zip"


def mime_part_path(message_key: int, section: str) -> str:
    """Return the path of a decoded MIME part; `section` is an IMAP section such as 1.2."""
    return f"/rest/messages/{global_ids.encode('Message', message_key)}/parts/{section}"


def deleted_message_path(message_key: int) -> str:
    """Return the path of a whole deleted message."""
    return f"/rest/archive/{global_ids.encode('DeletedMessage', message_key)}/message.eml"


def require_readable_and_sign_download_url(info: Info, path: str, message_row: Any) -> URL:
    """Return a signed URL for bytes of a row, valid for at least 15 minutes.

    The URL of a shared row is only valid while the viewer can read it. Raises Forbidden if the
    viewer may not read the content.
    """
    viewer = info.context.viewer
    require_readable_row(info.context, message_row)
    return sign_checked_path(
        info, path, message_row.user_id if viewer.role is Role.ROOT else viewer.user_id
    )


def sign_checked_path(info: Info, path: str, user_id: int) -> URL:
    """Return a signed URL for a path that the viewer is already known to be allowed to read."""
    ctx = info.context
    return absolute_url(
        info,
        signed_urls.sign_path(
            ctx.environment, path, user_id, ctx.viewer, now=ctx.environment.now()
        ),
    )


def absolute_url(info: Info, path: str) -> URL:
    """Return the absolute URL of a path on this server."""
    headers = getattr(info.context, "headers", {})
    scheme = headers.get("x-forwarded-proto", "http")
    base = f"{scheme if scheme == 'https' else 'http'}://{headers.get('host', 'localhost')}"
    return URL(signed_urls.absolute_url(info.context.environment, path, base))


def legal_hold_path(legal_hold_key: int) -> str:
    """Return the path of the mbox file with the copies of a legal hold."""
    return f"/rest/legal-holds/{global_ids.encode('LegalHold', legal_hold_key)}/export.mbox"


def export_path(user_key: int, export_key: int) -> str:
    """Return the path of the file of an account export."""
    user = global_ids.encode("User", user_key)
    export = global_ids.encode("UserExport", export_key)
    return f"/rest/users/{user}/export/{export}"


def blob_path(store: str, path: str) -> str:
    """Return the path of an object of an object store."""
    return f"/rest/blobs/{quote(store)}/{quote(path)}"


def file_path(file_key: int) -> str:
    """Return the path of a stored file."""
    return f"/rest/files/{global_ids.encode('File', file_key)}"
