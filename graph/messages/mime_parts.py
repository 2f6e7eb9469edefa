"""GraphQL types of MIME parts, attachments and attached messages."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import Annotated, Any, ClassVar

import orjson
import strawberry
from strawberry.scalars import JSON

from graph.execution.list_steps import MAX_ITEMS_PER_CALL
from graph.http import download_urls
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import DerivedField, ExpressionField, View
from graph.types.row_mapping import NodeView
from graph.types.scalars import URL, ByteSize
from mail import mime
from mail.mime import ParsedPart, tree_from_json_rows, walk_parts
from mail.mime.header_parameters import safe_filename_or_none
from mail.storage.message_content import StoredMessage
from mail.storage.message_structure import THREAD_THRESHOLD
from models.errors import require_found
from models.messages.mime_values import AttachmentDisposition
from resolvers.messages import attachments, computed_fields, content, message_bytes
from resolvers.messages.computed_fields import AttachedMessageContent
from resolvers.spam import quarantine

READ_REFUSAL = (  # the end of the descriptions of fields with content of a message
    "Null with the error FORBIDDEN for an administrator below ROOT who neither owns the mailbox "
    "nor has the share right READ in it."
)


@strawberry.type(
    description="Mailbox in a header field with addresses (RFC 5322). If its address is not "
    "valid, `address` is null and `name` is the text of the header field."
)
class MailAddress(View):
    """A mail address, from a pair: name and address."""

    name: str | None = attribute_field("Decoded display name. Null if there is none.")
    address: str | None = attribute_field(
        "Address as written, with the domain in Unicode. Null if RFC 5322 does not allow it."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "name": ExpressionField("{0}[0]"),
        "address": ExpressionField("{0}[1] or None"),
    }


@strawberry.type(description="Media type and parameters of a Content-Type (RFC 2045).")
class ContentType:
    value: str = attribute_field("Media type, such as `text/plain`.")
    params: JSON = attribute_field(
        'Parameters of the Content-Type, such as `{"charset": "utf-8"}`.'
    )


@strawberry.type(description="Field of the header of a message (RFC 5322).")
class HeaderField(View):
    name: str = attribute_field("Name of the header field, as written in the message.")
    value: str = attribute_field("Value of the header field, decoded (RFC 2047) and unfolded.")
    raw: str = attribute_field(
        "Value of the header field as written in the message, encoded and folded."
    )


def _fact_field(name: str) -> DerivedField:
    """Return the derived field of a stored value of an attachment."""
    return DerivedField(("facts",), itemgetter(name))


@strawberry.type(
    description="MIME part of a stored or quarantined message that is shown as a file."
)
class Attachment(NodeView):
    """A file of a message, from an AttachmentRow."""

    section: str = attribute_field(
        "Section number of the part in IMAP notation (RFC 9051), such as `2.1`."
    )
    sha256: str = attribute_field(
        "SHA-256 of the content without its transfer encoding, 64 hexadecimal digits in lower case."
    )
    filename: str | None = attribute_field(
        "Decoded file name, without path, control characters and bidirectional characters. An "
        "attached message without a file name is named after its subject. Null if the part has no "
        "name."
    )
    content_type: str = attribute_field("Media type of the part, such as `application/pdf`.")
    disposition: AttachmentDisposition | None = attribute_field(
        "Content-Disposition (RFC 2183). Null if the part has none."
    )
    transfer_encoding: str = attribute_field(
        "Content-Transfer-Encoding of the part in the message (RFC 2045), such as `base64`."
    )
    inline: bool = attribute_field(
        "True if the part is inside multipart/related, such as an image that the HTML shows. "
        "Content-Disposition has no effect on it."
    )
    content_id: str | None = attribute_field(
        "Content-ID of the part (RFC 2392), without angle brackets. Null if it has none."
    )
    size: ByteSize = attribute_field("Size of the decoded content of the part in bytes.")

    load_batch = staticmethod(attachments.load_visible_attachments)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": DerivedField(
            ("message", "index"),
            lambda message, index: download_urls.attachment_id(message.id, index),
        ),
        "section": _fact_field("section"),
        "sha256": _fact_field("sha256"),
        "filename": DerivedField(
            ("facts",), lambda facts: safe_filename_or_none(facts["filename"] or "")
        ),
        "content_type": _fact_field("content_type"),
        "disposition": DerivedField(
            ("facts",),
            lambda facts: AttachmentDisposition.from_disposition_type(facts["disposition"]),
        ),
        "transfer_encoding": _fact_field("encoding"),
        "inline": _fact_field("inline"),
        "content_id": _fact_field("content_id"),
        "size": _fact_field("size"),
    }

    @field(
        "Signed URL that downloads the decoded content. It is valid for 15 to 20 minutes, but not "
        "longer than the credential of the request. Null with the error FORBIDDEN if the caller "
        "can't read the message.",
        can_fail=True,
    )
    def url(self, info: Info) -> URL:
        message, index = self.row.message, self.row.index
        if self.row.is_quarantined:
            name = download_urls.attachment_id(message.id, index)
            path = download_urls.quarantined_message_path(message.id, "attachments", name)
            return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)
        path = download_urls.attachment_download_path(message.id, index)
        return download_urls.require_readable_and_sign_download_url(info, path, message)

    @field(
        "Decoded text of the attachment, from its beginning. Null if its media type is not "
        "`text/…`. Null with the error FORBIDDEN if the caller can't read the message.",
        cost=3,
    )
    async def text(
        self,
        info: Info,
        max_bytes: Annotated[
            int,
            strawberry.argument(
                description="Largest number of decoded bytes that are read, 1 to 16,777,216. "
                "Default: 65,536."
            ),
        ] = 65536,
    ) -> str | None:
        stored = await self._load_stored_message(info)
        return await message_bytes.attachment_text_beginning_or_none(
            stored, self.row.index, max_bytes
        )

    @field(
        "Message that the part contains, if it is message/rfc822 or message/global. Null for "
        "other parts, or if the message can't be parsed.",
        cost=3,
    )
    async def message(
        self, info: Info
    ) -> Annotated["AttachedMessage", strawberry.lazy("graph.messages.mime_parts")] | None:
        stored = await self._load_stored_message(info)
        part = message_bytes.find_attachment_part(stored, self.row.index)
        return await AttachedMessage.parse_or_none(
            stored, part, is_quarantined=self.row.is_quarantined
        )

    async def _load_stored_message(self, info: Info) -> StoredMessage:
        return await require_stored_message_and_log_read(
            info, self.row.message, is_quarantined=self.row.is_quarantined
        )

    @classmethod
    def list_from_message(cls, row: Any, *, is_quarantined: bool = False) -> list["Attachment"]:
        """Return the attachments of a message."""
        rows = attachments.attachment_rows(row, is_quarantined=is_quarantined)
        return [cls.from_row(attachment_row) for attachment_row in rows]

    @staticmethod
    def has_long_list(row: Any) -> bool:
        """True if the list of attachments is too long to be made on the event loop."""
        return len(row.attachments) > MAX_ITEMS_PER_CALL


@strawberry.type(description="Node of the MIME tree of a message (RFC 2045).")
class MimePart:
    section: str = attribute_field(
        "Section number of the part in IMAP notation (RFC 9051), such as `2.1`. `TEXT` for a "
        "multipart that is the whole message."
    )
    content_type: ContentType = attribute_field("Media type of the part and its parameters.")
    disposition: AttachmentDisposition | None = attribute_field(
        "Content-Disposition (RFC 2183). Null if the part has none."
    )
    filename: str | None = attribute_field(
        "Decoded file name, without path, control characters and bidirectional characters. Null "
        "if the part has no name."
    )
    content_id: str | None = attribute_field(
        "Content-ID of the part (RFC 2392), without angle brackets. Null if it has none."
    )
    size: ByteSize = attribute_field("Size of the encoded content in bytes, as in the message.")
    parts: list["MimePart"] = attribute_field(
        "Direct children of the part in the MIME tree. Empty if it is no multipart and no "
        "message. At most 10,000 parts of a message are read."
    )
    row: strawberry.Private[Any] = None
    is_quarantined: strawberry.Private[bool] = False  # `row` is one of the quarantine

    @field(
        "Signed URL that downloads the decoded content of the part. It is valid for 15 to 20 "
        "minutes, but not longer than the credential of the request. Null with the error "
        "FORBIDDEN if the caller can't read the message.",
        can_fail=True,
    )
    def url(self, info: Info) -> URL:
        if self.is_quarantined:
            path = download_urls.quarantined_message_path(self.row.id, "parts", self.section)
            return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)
        return download_urls.require_readable_and_sign_download_url(
            info, download_urls.mime_part_path(self.row.id, self.section), self.row
        )

    @field(
        "Message that the part contains, if it is message/rfc822 or message/global. Null for "
        "other parts, or if the message can't be parsed.",
        cost=3,
    )
    async def message(
        self, info: Info
    ) -> Annotated["AttachedMessage", strawberry.lazy("graph.messages.mime_parts")] | None:
        stored = await require_stored_message_and_log_read(
            info, self.row, is_quarantined=self.is_quarantined
        )
        part = message_bytes.find_part_by_section(stored, self.section)
        return await AttachedMessage.parse_or_none(stored, part, is_quarantined=self.is_quarantined)

    @classmethod
    def from_row(cls, row: Any) -> "MimePart":
        """Return the root of the MIME tree of a message."""
        return cls.from_tree(row, tree_from_json_rows(orjson.loads(row.mime_structure)))

    @classmethod
    def from_tree(cls, row: Any, tree: ParsedPart, *, is_quarantined: bool = False) -> "MimePart":
        """Return a MIME part with its subtree.

        It is built from the leaves up, since recursion fails in a tree of a hundred levels.
        """
        parts_by_identity: dict[int, MimePart] = {}
        for part in reversed(list(walk_parts(tree))):
            children = [parts_by_identity[id(child)] for child in part.parts]
            parts_by_identity[id(part)] = cls._from_part(
                row, part, children, is_quarantined=is_quarantined
            )
        return parts_by_identity[id(tree)]

    @classmethod
    def list_from_files_of_tree(
        cls, row: Any, tree: ParsedPart, *, is_quarantined: bool
    ) -> list["MimePart"]:
        """Return the parts of a message that are files, each with its subtree."""
        return [
            cls.from_tree(row, part, is_quarantined=is_quarantined)
            for part, _ in mime.file_parts(tree)
        ]

    @classmethod
    def _from_part(
        cls, row: Any, part: ParsedPart, children: list["MimePart"], *, is_quarantined: bool
    ) -> "MimePart":
        return cls(
            section=message_bytes.section_of_part(part),
            content_type=ContentType(value=part.content_type, params=JSON(part.params)),
            disposition=AttachmentDisposition.from_disposition_type(part.disposition),
            filename=safe_filename_or_none(part.filename or ""),
            content_id=part.content_id,
            size=ByteSize(part.size),
            parts=children,
            row=row,
            is_quarantined=is_quarantined,
        )


@strawberry.type(description="Message that is attached to another message (message/rfc822).")
class AttachedMessage:
    subject: str = attribute_field("Decoded subject of the attached message. Empty if it has none.")
    from_: MailAddress | None = attribute_field(
        "First address in the header field From of the attached message. Null if it has none.",
        name="from",
    )
    to: list[MailAddress] = attribute_field(
        "Addresses of the header field To of the attached message. At most 10,000."
    )
    cc: list[MailAddress] = attribute_field(
        "Addresses of the header field Cc of the attached message. At most 10,000."
    )
    date: datetime | None = attribute_field(
        "Time in the header field Date of the attached message. Null if it is missing or invalid."
    )
    message_id_header: str | None = attribute_field(
        "Message-ID of the attached message (RFC 5322), in angle brackets. Null if it has none."
    )
    attached: strawberry.Private[AttachedMessageContent | None] = None
    is_quarantined: strawberry.Private[bool] = False  # the outer message is in the quarantine

    @field(
        "Attachments of the attached message, as MIME parts. An attached message among them has "
        "the field `message`. Empty if the attached message is encoded in base64 or quoted-"
        "printable: its parts have no section numbers, so download the whole message. At most "
        "10,000 parts are read."
    )
    async def attachments(self) -> list[MimePart]:
        if self.attached is None or self.attached.is_encoded:
            return []
        message, part = self.attached.message, self.attached.part
        build = partial(
            MimePart.list_from_files_of_tree,
            message.row,
            part,
            is_quarantined=self.is_quarantined,
        )
        if part.body_end - part.header_start < THREAD_THRESHOLD:
            return build()
        return await asyncio.to_thread(build)

    @field(
        "Plain text of the attached message, converted from HTML if it has no plain text. Null if "
        "it has no body. More than 16 MiB are the error LIMIT_REACHED.",
        cost=20,
    )
    async def text(self) -> str | None:
        return (
            await computed_fields.text_of_attached_message_or_none(self.attached)
            if self.attached
            else None
        )

    @classmethod
    async def parse_or_none(
        cls, stored: StoredMessage, part: ParsedPart | None, *, is_quarantined: bool = False
    ) -> "AttachedMessage | None":
        """Parse the message that is attached as this part; None if the part is no message."""
        attached = (
            await computed_fields.read_attached_message_or_none(stored, part) if part else None
        )
        if attached is None:
            return None
        facts = attached.facts
        address_lists = [
            [MailAddress.from_row((address.name, address.address)) for address in addresses]
            for addresses in (facts.from_, facts.to, facts.cc)
        ]
        return cls(
            subject=facts.subject,
            from_=next(iter(address_lists[0]), None),
            to=address_lists[1],
            cc=address_lists[2],
            date=facts.date,
            message_id_header=facts.message_id,
            attached=attached,
            is_quarantined=is_quarantined,
        )


async def require_stored_message_and_log_read(
    info: Info, row: Any, *, is_quarantined: bool = False
) -> StoredMessage:
    """Load the content of the message of this row.

    With `is_quarantined` the row is one of the quarantine. Raises NotFound or Forbidden if the
    viewer can't read the message.
    """
    if is_quarantined:
        return require_found(
            await info.context.load(quarantine.load_visible_messages_and_log_reads, row.id)
        )
    return require_found(await content.load_stored_message(info.context, row.id))
