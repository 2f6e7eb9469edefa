"""The interface of stored, deleted and held messages."""

from datetime import datetime

import strawberry

from graph.messages.mime_parts import MailAddress
from graph.types.errors import attribute_field
from graph.types.fields import Auth
from graph.types.row_mapping import NodeView
from graph.types.scalars import ByteSize
from models.users.roles import Scope


@strawberry.interface(
    description="Fields that a message, a deleted message and the copy of a legal hold have in "
    "common. A fragment on this interface can be used for all three.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class MailSummary(NodeView):
    from_: MailAddress | None = attribute_field(
        "First address in the header field From. Null if there is none.", name="from"
    )
    to: list[MailAddress] = attribute_field(
        "Addresses of the header field To. Empty: the message has none. At most 10,000."
    )
    cc: list[MailAddress] = attribute_field(
        "Addresses of the header field Cc. Empty: the message has none. At most 10,000."
    )
    bcc: list[MailAddress] = attribute_field(
        "Addresses of the header field Bcc. Empty: the message has none. At most 10,000."
    )
    subject: str | None = attribute_field(
        "Decoded subject of the message. Empty if it has none. Null with the error FORBIDDEN if "
        "the caller can't read the content of the message."
    )
    date: datetime | None = attribute_field(
        "Time in the header field Date, which the sender wrote. Null if it is missing or invalid."
    )
    received_at: datetime = attribute_field(
        "Time when the message was received: INTERNALDATE in IMAP (RFC 9051)."
    )
    size: ByteSize = attribute_field("Size of the message in bytes, before compression.")
    preview: str | None = attribute_field(
        "Beginning of the text of the message, at most 128 bytes in UTF-8. Null with the error "
        "FORBIDDEN if the caller can't read the content of the message."
    )
    has_attachments: bool = attribute_field(
        "True if the message has at least one attachment. Files inside multipart/related, usually "
        "images that the HTML shows, don't count. All other files count, also those with the "
        "disposition `inline`."
    )
    attachment_count: int = attribute_field(
        "Number of attachments of the message. Files inside multipart/related, usually images that "
        "the HTML shows, don't count. All other files count, also those with the disposition "
        "`inline`."
    )
