"""GraphQL types of MIME parts, attachments and attached messages."""

from collections.abc import Mapping
from datetime import datetime
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
from mail.mime.header_parameters import safe_filename
from mail.storage.message_content import StoredMessage
from models.errors import require_found
from models.messages.mime_values import AttachmentDisposition
from resolvers.messages import attachments, computed_fields, content
from resolvers.messages.computed_fields import AttachedMessageContent
from resolvers.spam import quarantine


@strawberry.type(
    description="Mailbox in an address header. If RFC 5322 does not allow its address, `address` "
    "is null and `name` is the text of the header."
)
class MailAddress(View):
    """A mail address, from a pair: name and address."""

    name: str | None = attribute_field("Display name.")
    address: str | None = attribute_field(
        "Address as written, with the domain in Unicode. Null if RFC 5322 does not allow it."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "name": ExpressionField("{0}[0]"),
        "address": ExpressionField("{0}[1] or None"),
    }


@strawberry.type(description="Content-Type, parsed.")
class ContentType:
    value: str = attribute_field("Such as text/plain.")
    params: JSON = attribute_field("Parameters of the header.")


@strawberry.type(description="Header line.")
class HeaderField(View):
    key: str = attribute_field("Name.")
    value: str = attribute_field("Decoded.")
    raw: str = attribute_field("As in the message.")


def _fact(name: str) -> DerivedField:
    """Return the derived field of a stored value of an attachment."""
    return DerivedField(("facts",), itemgetter(name))


@strawberry.type(description="A MIME part that is a file, of a stored or quarantined message.")
class Attachment(NodeView):
    """A file of a message, from an AttachmentRow."""

    section: str = attribute_field("IMAP section number within the message.")
    sha256: str = attribute_field("SHA-256 of the decoded content, 64 hexadecimal digits.")
    filename: str | None = attribute_field(
        "Decoded name, without path, control characters and bidirectional characters."
    )
    content_type: str = attribute_field("MIME type.")
    disposition: AttachmentDisposition | None = attribute_field(
        "Content-Disposition (RFC 2183). Null if the part has none."
    )
    transfer_encoding: str = attribute_field("As in the message; content is served decoded.")
    inline: bool = attribute_field(
        "True if the part is in a multipart/related, such as an image that the HTML shows."
    )
    content_id: str | None = attribute_field("Content-ID, without angle brackets.")
    size: ByteSize = attribute_field("Decoded bytes.")

    load_batch = staticmethod(attachments.load_visible_attachments)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": DerivedField(
            ("message", "index"),
            lambda message, index: download_urls.attachment_id(message.id, index),
        ),
        "section": _fact("section"),
        "sha256": _fact("sha256"),
        "filename": DerivedField(("facts",), lambda facts: safe_filename(facts["filename"] or "")),
        "content_type": _fact("content_type"),
        "disposition": DerivedField(
            ("facts",),
            lambda facts: AttachmentDisposition.from_header_word(facts["disposition"]),
        ),
        "transfer_encoding": _fact("encoding"),
        "inline": _fact("inline"),
        "content_id": _fact("content_id"),
        "size": _fact("size"),
    }

    @field("Download.")
    def url(self, info: Info) -> URL:
        message, index = self.row.message, self.row.index
        if self.row.is_quarantined:
            name = download_urls.attachment_id(message.id, index)
            path = download_urls.quarantined_message_path(message.id, "attachments", name)
            return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)
        path = download_urls.attachment_download_path(message.id, index)
        return download_urls.signed_download_url(info, path, message)

    @field("Text parts only, decoded; null for others.", cost=3)
    async def text(self, info: Info, max_bytes: int = 65536) -> str | None:
        stored = await self._load_stored_message(info)
        return await content.attachment_text(stored, self.row.index, max_bytes)

    @field("The message that this is, where a message was attached.", cost=3)
    async def message(
        self, info: Info
    ) -> Annotated["AttachedMessage", strawberry.lazy("graph.messages.mime_parts")] | None:
        stored = await self._load_stored_message(info)
        part = content.attachment_part(stored, self.row.index)
        return await AttachedMessage.parse_or_none(
            stored, part, is_quarantined=self.row.is_quarantined
        )

    async def _load_stored_message(self, info: Info) -> StoredMessage:
        return await load_stored_message(
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


@strawberry.type(description="Node of the MIME tree.")
class MimePart:
    section: str = attribute_field("IMAP section number.")
    content_type: ContentType = attribute_field("Content-Type.")
    disposition: AttachmentDisposition | None = attribute_field(
        "Content-Disposition (RFC 2183). Null if the part has none."
    )
    filename: str | None = attribute_field(
        "Decoded name, without path, control characters and bidirectional characters."
    )
    content_id: str | None = attribute_field("Content-ID, without angle brackets.")
    size: ByteSize = attribute_field("Bytes as transferred.")
    parts: list["MimePart"] = attribute_field("Parts below.")
    row: strawberry.Private[Any] = None
    is_quarantined: strawberry.Private[bool] = False  # `row` is one of the quarantine

    @field("Decoded content.")
    def url(self, info: Info) -> URL:
        if self.is_quarantined:
            path = download_urls.quarantined_message_path(self.row.id, "parts", self.section)
            return download_urls.sign_checked_path(info, path, info.context.viewer.user_id)
        return download_urls.signed_download_url(
            info, download_urls.mime_part_path(self.row.id, self.section), self.row
        )

    @field("The message that this is, where a message was attached.", cost=3)
    async def message(
        self, info: Info
    ) -> Annotated["AttachedMessage", strawberry.lazy("graph.messages.mime_parts")] | None:
        stored = await load_stored_message(info, self.row, is_quarantined=self.is_quarantined)
        part = content.part_by_section(stored, self.section)
        return await AttachedMessage.parse_or_none(stored, part, is_quarantined=self.is_quarantined)

    @classmethod
    def from_row(cls, row: Any) -> "MimePart":
        """Return the root of the MIME tree of a message."""
        return cls.from_tree(row, tree_from_json_rows(orjson.loads(row.structure)))

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
    def _from_part(
        cls, row: Any, part: ParsedPart, children: list["MimePart"], *, is_quarantined: bool
    ) -> "MimePart":
        return cls(
            section=content.section_of_part(part),
            content_type=ContentType(value=part.content_type, params=JSON(part.params)),
            disposition=AttachmentDisposition.from_header_word(part.disposition),
            filename=safe_filename(part.filename or ""),
            content_id=part.content_id,
            size=ByteSize(part.size),
            parts=children,
            row=row,
            is_quarantined=is_quarantined,
        )


@strawberry.type(description="Message that lies in another as a part.")
class AttachedMessage:
    subject: str = attribute_field('Decoded, "" if none.')
    from_: MailAddress | None = attribute_field("From.", name="from")
    to: list[MailAddress] = attribute_field("To.")
    cc: list[MailAddress] = attribute_field("Cc.")
    date: datetime | None = attribute_field("Date header.")
    message_id: str | None = attribute_field("Message-ID.")
    attachments: list[MimePart] = attribute_field(
        "Files in it; a message among them has its own message."
    )
    attached: strawberry.Private[AttachedMessageContent | None] = None

    @field("Plain text, made from HTML when missing; up to 16 MiB.", cost=20)
    async def text(self) -> str | None:
        return (
            await computed_fields.text_of_attached_message(self.attached) if self.attached else None
        )

    @classmethod
    async def parse_or_none(
        cls, stored: StoredMessage, part: ParsedPart | None, *, is_quarantined: bool = False
    ) -> "AttachedMessage | None":
        """Parse the message that is attached as this part; None if the part is no message."""
        attached = await computed_fields.read_attached_message(stored, part) if part else None
        if attached is None:
            return None
        facts, row = attached.facts, stored.row
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
            message_id=facts.message_id,
            attachments=[
                MimePart.from_tree(row, part_below, is_quarantined=is_quarantined)
                for part_below, _ in mime.file_parts(attached.part)
            ],
            attached=attached,
        )


async def load_stored_message(
    info: Info, row: Any, *, is_quarantined: bool = False
) -> StoredMessage:
    """Load the content of the message of this row.

    With `is_quarantined` the row is one of the quarantine. Raises NotFound or Forbidden if the
    viewer can't read the message.
    """
    if is_quarantined:
        return require_found(await info.context.load(quarantine.load_stored_messages, row.id))
    return require_found(await content.load_stored_message(info.context, row.id))
