"""Inputs of the mutations that compose a message, and their conversion."""

import base64
import binascii
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import strawberry
from strawberry import UNSET

from graph.http.download_urls import attachment_of
from graph.types import global_ids
from graph.types.errors import Options, leaf
from graph.types.fields import Info
from graph.types.references import MessageRef, ReferenceAction, message_of, plain
from graph.types.scalars import Upload
from mail.compose.message_builder import Attachment, HeaderLine, Priority
from mail.mime.header_encoding import Named
from models.errors import Invalid, NotFound, Problems
from resolvers.submission.attachments import Chosen, Uploaded
from resolvers.submission.reply_references import Reference, ReferenceQuote

WRITTEN = (  # input fields that a message is composed from
    *("from_", "identity", "to", "cc", "bcc", "reply_to", "subject", "text", "html", "headers"),
    *("attachments", "reference"),
)


@strawberry.enum(description="How content is written.")
class ContentEncoding(StrEnum):
    """Encoding of the content of an attachment."""

    BASE64 = "BASE64"
    HEX = "HEX"
    UTF8 = "UTF8"


@strawberry.input(description="Somebody in a header.")
class NamedAddressInput:
    address: str = leaf("Mail address.")
    name: str | None = leaf("Display name.", default=UNSET)


@strawberry.input(description="A header field.")
class HeaderInput:
    key: str = leaf("Name.")
    value: str = leaf("One line of text.")


@strawberry.input(description="A file to attach: its content, or an upload of it.")
class AttachmentInput:
    content: str | None = leaf("The bytes, as encoding says.", default=UNSET)
    upload: Upload | None = leaf("The bytes, sent before.", default=UNSET)
    encoding: ContentEncoding = leaf("How content is written.", default=ContentEncoding.BASE64)
    filename: str | None = leaf("Its name; default that of the upload.", default=UNSET)
    content_type: str | None = leaf("Media type; default that of the upload.", default=UNSET)
    cid: str | None = leaf(
        "Content-ID, without angle brackets: an image of the html.", default=UNSET
    )


@strawberry.input(one_of=True, description="Chooses attachments of a message.")
class ReferenceAttachments:
    all: strawberry.Maybe[bool] = leaf("All but the images of its html; false for none.")
    ids: strawberry.Maybe[list[strawberry.ID]] = leaf("Global ids.")


@strawberry.input(description="The message this one answers or forwards.")
class ReferenceInput:
    message: MessageRef = leaf("Which message.")
    action: ReferenceAction = leaf("What is done with it.")
    attachments: ReferenceAttachments | None = leaf(
        "The attachments of that message that are copied into this one.", default=UNSET
    )
    quote: ReferenceQuote = leaf(
        "Whether text and html quote that message, and where. A reply quotes line by line; a "
        "forward has its From, Date, Subject and To above it.",
        default=ReferenceQuote.NONE,
    )
    include_message: bool = leaf("Attaches that message whole, as message/rfc822.", default=False)


@strawberry.input
class Composing(Options):
    """Base of the inputs that compose a message: its header fields, bodies and attachments."""

    from_: NamedAddressInput | None = leaf(
        "An address you may send as; default that of the identity. Its name is the identity's, "
        "unless one is given.",
        name="from",
        default=UNSET,
    )
    identity: strawberry.ID | None = leaf(
        "Who sends, in place of from; default the default identity.", default=UNSET
    )
    to: list[NamedAddressInput] | None = leaf("Default: those an answer goes to.", default=UNSET)
    cc: list[NamedAddressInput] | None = leaf("Copies.", default=UNSET)
    bcc: list[NamedAddressInput] | None = leaf(
        "Hidden copies, beside those the identity always makes.", default=UNSET
    )
    reply_to: list[NamedAddressInput] | None = leaf(
        "Answers go there; default what the identity says.", default=UNSET
    )
    subject: str | None = leaf("Up to 2 KiB; default that of the reference.", default=UNSET)
    text: str | None = leaf("Up to 1 MiB; made from html when missing.", default=UNSET)
    html: str | None = leaf("Up to 1 MiB; images as data: URLs become attachments.", default=UNSET)
    headers: list[HeaderInput] | None = leaf("More header fields.", default=UNSET)
    attachments: list[AttachmentInput] | None = leaf("Files.", default=UNSET)
    priority: Priority = leaf("How much you hurry.", default=Priority.NORMAL)
    reference: ReferenceInput | None = leaf(
        "The message that this one answers or forwards. messageSend needs the scope MAIL_READ for "
        "it, since it takes the subject and the recipients from there.",
        default=UNSET,
    )


async def composed(info: Info, given: Composing, problems: Problems) -> dict[str, Any]:
    """Return the values of the fields to compose a message from.

    Errors of attachments are added to `problems`. Raises NotFound if the reference names no
    message, Invalid if an ID is not valid.
    """
    return {
        **await composed_of(info, given),
        "from_": _named(given.from_) if given.from_ else None,
        "headers": [HeaderLine(header.key, header.value) for header in given.headers or ()],
        "attachments": _files(given.attachments, problems),
    }


async def composed_of(info: Info, given: Any) -> dict[str, Any]:
    """Return the values of the fields that all inputs of composed messages have.

    Raises NotFound if the reference names no message, Invalid if an ID is not valid.
    """
    return {
        "identity": global_ids.decode("Identity", given.identity, path="identity")
        if given.identity
        else None,
        "to": people_of(given.to) if given.to is not UNSET else None,
        "cc": people_of(given.cc) if given.cc is not UNSET else None,
        "bcc": people_of(given.bcc),
        "reply_to": None if plain(given.reply_to) is None else people_of(given.reply_to),
        "subject": plain(given.subject),
        "text": plain(given.text),
        "html": plain(given.html),
        "priority": given.priority,
        "reference": await _reference(info, given.reference) if given.reference else None,
    }


def chosen(given: ReferenceAttachments | None, path: Sequence[str]) -> Chosen | None:
    """Return the selected attachments of a referenced message; None without a selection.

    Raises Invalid, below `error_path`, if an ID is not one of an attachment.
    """
    if not given:
        return None
    if given.all:
        return Chosen(all=given.all.value)
    keys = []
    for index, text in enumerate(given.ids.value if given.ids else ()):
        try:
            keys.append(attachment_of(text))
        except Invalid as wrong:
            raise Invalid(
                wrong.message, constraint="id", path=[*path, "ids"], index=index
            ) from wrong
    return Chosen(ids=keys)


def _named(person: NamedAddressInput) -> Named:
    """Convert the input of an address with its name."""
    return Named(person.address, plain(person.name))


def people_of(people: Sequence[NamedAddressInput] | None) -> list[Named]:
    """Convert the inputs of addresses; an absent list is empty."""
    return [_named(person) for person in people or ()]


def _files(
    files: Sequence[AttachmentInput] | None, problems: Problems
) -> list[Attachment | Uploaded] | None:
    """Convert the inputs of attachments; None if the list is absent.

    Errors are added to `problems`, with the index of the attachment.
    """
    if files is None or files is UNSET:
        return None
    attachments: list[Attachment | Uploaded] = []
    for index, file_input in enumerate(files):
        attachments.append(
            Attachment(b"")
        )  # a placeholder, so that the indexes of the others stay right
        with problems.caught():
            attachments[index] = _attached(file_input, index)
    return attachments


def _attached(file: AttachmentInput, nth: int) -> Attachment | Uploaded:
    """Convert the input of an attachment, decoding its content.

    Raises Invalid if it has not exactly one of content and upload, or if that is not valid.
    """
    path = ["attachments", str(nth)]
    names = file.filename or None, file.content_type or None, file.cid or None
    content, upload = plain(file.content), plain(file.upload)
    if (content is None) is (upload is None):
        text = "give content or upload, one of them"
        raise Invalid(text, constraint="exclusive", path=path, index=nth)
    if content is not None:
        return Attachment(decoded(content, file.encoding, [*path, "content"], nth), *names)
    try:
        return Uploaded(global_ids.decode("Upload", upload), *names)
    except Invalid as wrong:
        raise Invalid(wrong.message, constraint="id", path=[*path, "upload"], index=nth) from wrong


def decoded(
    text: str, encoding: ContentEncoding, path: Sequence[str], index: int | None = None
) -> bytes:
    """Decode a text to bytes. Raises Invalid at `error_path` if it is not in the encoding."""
    try:
        match encoding:
            case ContentEncoding.BASE64:
                return base64.b64decode("".join(text.split()), validate=True)
            case ContentEncoding.HEX:
                return bytes.fromhex(text)
            case ContentEncoding.UTF8:
                return text.encode()
    except (binascii.Error, ValueError) as wrong:
        message = f"this is not {encoding}"
        raise Invalid(message, constraint="encoding", path=path, index=index) from wrong


async def _reference(info: Info, given: ReferenceInput) -> Reference:
    """Return the message that is answered or forwarded.

    Raises NotFound if the reference names no message, Invalid if an ID is not valid.
    """
    key = await message_of(info, given.message, path="reference")
    if key is None:
        raise NotFound("", path=["reference", "message"])
    files = chosen(given.attachments or None, ["reference", "attachments"])
    return Reference(key, given.action, files, ReferenceQuote(given.quote), given.include_message)
