"""The fields of a message to build, and their limits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from mail.mime.header_encoding import NamedAddress
from models.messages.mime_values import AttachmentDisposition

KIB, MIB = 1 << 10, 1 << 20
MAX_SUBJECT_BYTES = 2 * KIB  # bytes, as all limits of sizes here
MAX_TEXT_BYTES = MIB
MAX_HTML_WITH_IMAGES_BYTES = 12 * MIB  # before images with data: URLs are extracted
MAX_NAME_BYTES = 255
MAX_HEADER_VALUE_BYTES = 100 * KIB
MAX_CUSTOM_HEADERS = 100  # header fields that the client adds
MAX_REFERENCES = 50  # ids
MAX_FILES = 250

# Fields that this module writes, and fields that only servers write.
RESERVED_FIELDS = frozenset(
    (
        *("from", "sender", "reply-to", "to", "cc", "bcc", "subject", "date", "message-id"),
        *("in-reply-to", "references", "mime-version", "x-priority", "importance"),
        *("received", "return-path", "delivered-to", "received-spf"),
        *("dkim-signature", "authentication-results"),
    )
)
RESERVED_PREFIXES = ("content-", "resent-", "arc-")

FIELD_NAME_PATTERN = re.compile(r"[!-9;-~]+")
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0a-\x1f\x7f]")


class Priority(StrEnum):
    """The priority that the sender gives a message."""

    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A file to attach. With a `content_id` it is an image of the HTML, if there is HTML."""

    content: bytes
    filename: str | None = None
    content_type: str | None = None
    content_id: str | None = None  # without angle brackets
    disposition: AttachmentDisposition | None = None
    charset: str | None = None  # of a text file
    is_message: bool = False  # attach unchanged as message/rfc822


@dataclass(frozen=True, slots=True)
class CustomHeader:
    """A header field that the client adds."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class MessageDraft:
    """The fields of a message to build. If `text` is missing, it is made of `html`."""

    from_: NamedAddress
    date: datetime
    message_id: str  # with angle brackets
    sender: NamedAddress | None = None
    reply_to: Sequence[NamedAddress] = ()
    to: Sequence[NamedAddress] = ()
    cc: Sequence[NamedAddress] = ()
    bcc: Sequence[NamedAddress] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: Sequence[CustomHeader] = ()
    attachments: Sequence[OutgoingFile] = ()
    in_reply_to: str | None = None
    references: Sequence[str] = ()
    priority: Priority = Priority.NORMAL
    most: int = 64 * MIB  # bytes of the attachments, and of the message
