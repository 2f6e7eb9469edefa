"""Inputs of the mutations that compose a message, and their conversion."""

import base64
import binascii
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import strawberry
from strawberry import UNSET

from graph.http.download_urls import parse_message_id_and_attachment_number
from graph.submission.references import IdentityRef
from graph.types import global_ids
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.object_references import ObjectRef, id_from_ref
from graph.types.references import (
    MessageRef,
    find_unchecked_message_id,
    value_or_none,
)
from graph.types.scalars import EmailAddress, Upload
from mail.compose.message_draft import CustomHeader, OutgoingFile, Priority
from mail.mime.header_encoding import NamedAddress
from models.errors import ErrorCollector, InvalidInput, NotFound
from models.messages.tables import MessageRelationKind
from models.validation_constraints import ValidationConstraint
from resolvers.submission.attachments import AttachmentSelection, UploadedAttachment
from resolvers.submission.message_source import MessageSource, QuotePosition

CONTENT_FIELDS = (  # input fields that a message is composed from
    *("from_", "identity", "to", "cc", "bcc", "reply_to", "subject", "text", "html", "headers"),
    *("attachments", "original"),
)


@strawberry.enum(description="Encoding of bytes as text in the input.")
class ContentEncoding(StrEnum):
    """Encoding of the content of an attachment."""

    BASE64 = "BASE64"
    HEX = "HEX"
    UTF8 = "UTF8"


@strawberry.input(description="Address of a sender or recipient, with a display name.")
class MailAddressInput:
    address: EmailAddress = attribute_field("Email address (RFC 5322), without display name.")
    name: str | None = attribute_field(
        "Display name, at most 255 bytes. Default: none.", default=UNSET
    )


@strawberry.input(description="Header field to add to a message (RFC 5322).")
class HeaderInput:
    name: str = attribute_field(
        "Name of the header field. At most 255 ASCII characters. Fields that the server or another "
        "input sets are refused, such as Date, From, Content-Type, Received and DKIM-Signature."
    )
    value: str = attribute_field(
        "Value of the header field: one line of text, at most 100 KiB. It can have characters "
        "outside ASCII."
    )


@strawberry.input(
    description="File to attach to a message. Exactly one of `content` and `upload` is required."
)
class AttachmentInput:
    content: str | None = attribute_field(
        "Content of the file, encoded as `encoding` says. Required without `upload`.", default=UNSET
    )
    upload: Upload | None = attribute_field(
        "Finished upload of the user whose account composes the message, with the content of the "
        "file, instead of `content`.",
        default=UNSET,
    )
    encoding: ContentEncoding = attribute_field(
        "Encoding of `content`. Default: BASE64.", default=ContentEncoding.BASE64
    )
    filename: str | None = attribute_field(
        "Name of the file, one line of at most 255 characters. Default: that of the upload, else "
        "none.",
        default=UNSET,
    )
    content_type: str | None = attribute_field(
        "Media type of the file. A type multipart or message becomes application/octet-stream. "
        "Default: that of the upload, else application/octet-stream.",
        default=UNSET,
    )
    content_id: str | None = attribute_field(
        "Content-ID without angle brackets (RFC 2392), if the file is an image that `html` shows "
        "by a `cid:` URL. Default: none.",
        default=UNSET,
    )


@strawberry.input(one_of=True, description="Reference to one attachment of a message.")
class AttachmentRef(ObjectRef):
    pass


@strawberry.input(
    one_of=True, description="Attachments of the original message: some of them, or all."
)
class SourceAttachmentsInput:
    all: strawberry.Maybe[bool] = attribute_field(
        "True selects all attachments except the images that the HTML shows, false selects none."
    )
    selected: strawberry.Maybe[list[AttachmentRef]] = attribute_field(
        "Attachments of the original message to copy to the new message. Those of another message "
        "are NOT_FOUND. An empty list selects none."
    )


@strawberry.input(description="Message that a new message replies to or forwards.")
class MessageRelationInput:
    message: MessageRef = attribute_field(
        "Original message that is replied to or forwarded, of the user or in a mailbox shared with "
        "the user."
    )
    relation: MessageRelationKind = attribute_field(
        "Kind of the new message: a reply, a reply to all, or a forward."
    )
    attachments: SourceAttachmentsInput | None = attribute_field(
        "Attachments of the original message that are copied to the new one. Default: none.",
        default=UNSET,
    )
    quote: QuotePosition = attribute_field(
        "Position of the quote of the original message in text and HTML. Of a long text, the "
        "first 262,144 characters are quoted. A reply quotes line by line; a forward repeats "
        "From, Date, Subject, To and Cc above the quote. Default: NONE.",
        default=QuotePosition.NONE,
    )
    include_message: bool = attribute_field(
        "True attaches the whole original message, as message/rfc822. Default: false.",
        default=False,
    )


@strawberry.input
class MessageContentInput(Options):
    """Base of the inputs that compose a message: its header fields, bodies and attachments."""

    from_: MailAddressInput | None = attribute_field(
        "Author: an address that the user can send as. Not allowed with `identity`. Without a "
        "name, that of its identity is used; an empty name: none. Default: the address of "
        "`identity`.",
        name="from",
        default=UNSET,
    )
    identity: IdentityRef | None = attribute_field(
        "Identity of the sending user to send with. Not allowed with `from`. Default: the "
        "identity of `from`, or without `from` the default identity.",
        default=UNSET,
    )
    to: list[MailAddressInput] | None = attribute_field(
        "Addresses of the header field To. Default: none. If both `to` and `cc` are absent or "
        "null, a reply goes to the Reply-To of `original`, else its From, else its Sender. A "
        "reply to the user's own message goes to its To addresses. A reply to all also goes to "
        "the other To addresses of `original`, without the user's own.",
        default=UNSET,
    )
    cc: list[MailAddressInput] | None = attribute_field(
        "Addresses of the header field Cc. Default: none. If both `to` and `cc` are absent or "
        "null, a reply to all goes to the other Cc addresses of `original`, without the user's "
        "own.",
        default=UNSET,
    )
    bcc: list[MailAddressInput] | None = attribute_field(
        "Addresses that get a blind copy, in addition to those of the identity. Default: none.",
        default=UNSET,
    )
    reply_to: list[MailAddressInput] | None = attribute_field(
        "Addresses of the header field Reply-To. An empty list: none. Default: that of the "
        "identity.",
        default=UNSET,
    )
    subject: str | None = attribute_field(
        "Subject of the message, at most 2,048 bytes. Default: the subject of `original`. "
        "`Re: ` or, for a forward, `Fwd: ` is put before it, unless it begins with a word and a "
        "colon such as `Re:`. Without `original` the default is empty.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "Plain text of the message, at most 1 MiB. Default: made from `html`, or empty without "
        "`html`.",
        default=UNSET,
    )
    html: str | None = attribute_field(
        "HTML of the message, at most 12 MiB. Images as `data:` URLs become attachments; without "
        "them the HTML has at most 1 MiB. Default: "
        "none.",
        default=UNSET,
    )
    headers: list[HeaderInput] | None = attribute_field(
        "Further header fields, at most 100. Default: none.", default=UNSET
    )
    attachments: list[AttachmentInput] | None = attribute_field(
        "Files to attach. A message has at most 250 attachments, including stored files and those "
        "of `original`, and by default at most 64 MiB. Default: none.",
        default=UNSET,
    )
    priority: Priority = attribute_field(
        "Priority of the message, in its header and in the queue. For `raw` and `rawUpload` only "
        "in the queue. Default: NORMAL.",
        default=Priority.NORMAL,
    )
    original: MessageRelationInput | None = attribute_field(
        "Message that this one replies to or forwards. It gives the default subject and, for a "
        "reply, the default recipients. It gets the flag \\Answered, and for a forward the "
        "keyword $Forwarded, unless another user shares it. It must be a message of the user, or "
        "in a mailbox shared with the user. It requires the scope MAIL_READ, and is refused if "
        "`user` is another user. Default: none.",
        default=UNSET,
    )


async def resolve_message_fields(
    info: Info, content_input: MessageContentInput, problems: ErrorCollector
) -> dict[str, Any]:
    """Return the values of the fields to compose a message from.

    Errors of attachments are added to `problems`. Raises NotFound if the source names no
    message, InvalidInput if an ID is not valid.
    """
    return {
        **await resolve_common_fields(info, content_input),
        "from_": named_address(content_input.from_) if content_input.from_ else None,
        "headers": [
            CustomHeader(header.name, header.value) for header in content_input.headers or ()
        ],
        "attachments": attachments_from_inputs(content_input.attachments, problems),
    }


async def resolve_common_fields(info: Info, content_input: Any) -> dict[str, Any]:
    """Return the values of the fields that all inputs of composed messages have.

    Raises NotFound if the source names no message, InvalidInput if an ID is not valid.
    """
    return {
        "identity": id_from_ref(content_input.identity, "identity")
        if content_input.identity
        else None,
        "to": _named_addresses_or_none(content_input.to),
        "cc": _named_addresses_or_none(content_input.cc),
        "bcc": named_addresses(content_input.bcc),
        "reply_to": _named_addresses_or_none(content_input.reply_to),
        "subject": value_or_none(content_input.subject),
        "text": value_or_none(content_input.text),
        "html": value_or_none(content_input.html),
        "priority": content_input.priority,
        "source": await require_message_source_from_relation(info, content_input.original)
        if content_input.original
        else None,
    }


def attachment_selection(
    attachments: SourceAttachmentsInput | None, error_path: Sequence[str]
) -> AttachmentSelection | None:
    """Return the selected attachments of a source message; None without a selection.

    Raises InvalidInput, below `error_path`, if an ID is not one of an attachment.
    """
    if not attachments:
        return None
    if attachments.all:
        return AttachmentSelection(all_unrelated=attachments.all.value)
    keys = [
        message_id_and_attachment_number(ref, [*error_path, "selected", str(index)])
        for index, ref in enumerate(attachments.selected.value if attachments.selected else ())
    ]
    return AttachmentSelection(ids=keys)


def message_id_and_attachment_number(ref: AttachmentRef, path: Sequence[str]) -> tuple[int, int]:
    """Return the message ID and the number of an attachment. Raises InvalidInput."""
    return parse_message_id_and_attachment_number(
        ref.id.value if ref.id else "", path=[*path, "id"]
    )


def named_address(address_input: MailAddressInput) -> NamedAddress:
    """Convert the input of an address with its name."""
    return NamedAddress(address_input.address, value_or_none(address_input.name))


def named_addresses(address_inputs: Sequence[MailAddressInput] | None) -> list[NamedAddress]:
    """Convert the inputs of addresses; an absent list is empty."""
    return [named_address(person) for person in address_inputs or ()]


def _named_addresses_or_none(
    address_inputs: Sequence[MailAddressInput] | None,
) -> list[NamedAddress] | None:
    """Convert the inputs of addresses; None if the list is absent or null."""
    return None if value_or_none(address_inputs) is None else named_addresses(address_inputs)


def attachments_from_inputs(
    attachment_inputs: Sequence[AttachmentInput] | None,
    problems: ErrorCollector,
    field_name: str = "attachments",
) -> list[OutgoingFile | UploadedAttachment] | None:
    """Convert the inputs of attachments; None if the list is absent.

    Errors are added to `problems`, with the index of the attachment.
    """
    if attachment_inputs is None or attachment_inputs is UNSET:
        return None
    attachments: list[OutgoingFile | UploadedAttachment] = []
    for index, file_input in enumerate(attachment_inputs):
        # a placeholder, so that the indexes of the others stay right
        attachments.append(OutgoingFile(b""))
        with problems.collecting():
            attachments[index] = _attachment_from_input(file_input, index, field_name)
    return attachments


def _attachment_from_input(
    attachment_input: AttachmentInput, index: int, field_name: str
) -> OutgoingFile | UploadedAttachment:
    """Convert the input of an attachment, decoding its content.

    Raises InvalidInput if it has not exactly one of content and upload, or if that is not valid.
    """
    path = [field_name, str(index)]
    names = (
        attachment_input.filename or None,
        attachment_input.content_type or None,
        attachment_input.content_id or None,
    )
    content = value_or_none(attachment_input.content)
    upload = value_or_none(attachment_input.upload)
    if (content is None) is (upload is None):
        text = "Exactly one of `content` and `upload` is required."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=path, index=index)
    if content is not None:
        return OutgoingFile(
            decode_attachment_content(
                content, attachment_input.encoding, [*path, "content"], index
            ),
            *names,
        )
    try:
        return UploadedAttachment(global_ids.decode("Upload", upload), *names)
    except InvalidInput as error:
        raise InvalidInput(
            error.message, constraint=ValidationConstraint.ID, path=[*path, "upload"], index=index
        ) from error


def decode_attachment_content(
    content: str, encoding: ContentEncoding, error_path: Sequence[str], index: int | None = None
) -> bytes:
    """Decode a text to bytes. Raises InvalidInput at `error_path` if it is not in the encoding."""
    try:
        match encoding:
            case ContentEncoding.BASE64:
                return base64.b64decode("".join(content.split()), validate=True)
            case ContentEncoding.HEX:
                return bytes.fromhex(content)
            case ContentEncoding.UTF8:
                return content.encode()
    except (binascii.Error, ValueError) as error:
        message = f"The content is not valid {encoding}."
        raise InvalidInput(
            message, constraint=ValidationConstraint.ENCODING, path=error_path, index=index
        ) from error


async def require_message_source_from_relation(
    info: Info, source_input: MessageRelationInput
) -> MessageSource:
    """Return the message that is answered or forwarded.

    Raises NotFound if the source names no message, InvalidInput if an ID is not valid.
    """
    message_path = ["original", "message"]
    key = await find_unchecked_message_id(info, source_input.message, path=message_path)
    if key is None:
        raise NotFound("", path=message_path)
    files = attachment_selection(source_input.attachments or None, ["original", "attachments"])
    return MessageSource(
        key,
        source_input.relation,
        files,
        QuotePosition(source_input.quote),
        source_input.include_message,
    )
