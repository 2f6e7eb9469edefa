"""GraphQL types of MIME parts, attachments and attached messages."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import orjson
import strawberry
from strawberry.scalars import JSON

from graph.execution.list_steps import LONG_LIST
from graph.http import download_urls
from graph.types.errors import leaf
from graph.types.fields import Info, field
from graph.types.object_views import Expressed, Made, View
from graph.types.scalars import URL, ByteSize
from mail import mime
from mail.mime import Part, part_of, walk
from mail.mime.header_parameters import plain_filename
from mail.storage.message_content import Stored
from models.errors import found
from resolvers.messages import computed_fields, content
from resolvers.messages.computed_fields import Attached
from resolvers.spam import quarantine


@strawberry.type(
    description="Mailbox in an address header. If RFC 5322 does not allow its address, `address` "
    "is null and `name` is the text of the header."
)
class MailAddress(View):
    """A mail address, from a pair: name and address."""

    name: str | None = leaf("Display name.")
    address: str | None = leaf(
        "Address as written, with the domain in Unicode. Null if RFC 5322 does not allow it."
    )

    made: ClassVar[Mapping[str, Made]] = {
        "name": Expressed("{0}[0]"),
        "address": Expressed("{0}[1] or None"),
    }


@strawberry.type(description="Content-Type, parsed.")
class ContentType:
    value: str = leaf("Such as text/plain.")
    params: JSON = leaf("Parameters of the header.")


@strawberry.type(description="Header line.")
class HeaderField(View):
    key: str = leaf("Name.")
    value: str = leaf("Decoded.")
    raw: str = leaf("As in the message.")


@strawberry.type(description="Part that is a file.")
class Attachment:
    id: strawberry.ID = leaf("Global, so that caches never mix the attachments of two messages.")
    part: str = leaf("IMAP section number within the message.")
    hash: str = leaf("SHA-256 of the content.")
    filename: str | None = leaf(
        "Decoded name, without path, control characters and bidirectional characters."
    )
    content_type: str = leaf("MIME type.")
    disposition: str | None = leaf("attachment or inline.")
    transfer_encoding: str = leaf("As in the message; content is served decoded.")
    related: bool = leaf("Inline image of HTML.")
    cid: str | None = leaf("Content-ID.")
    size_kb: int = leaf("About.")
    size: ByteSize = leaf("Decoded bytes.")
    row: strawberry.Private[Any] = None
    index: strawberry.Private[int] = 0
    held: strawberry.Private[bool] = False  # `row` is one of the quarantine

    @field("Download.")
    def url(self, info: Info) -> URL:
        if self.held:
            path = download_urls.held_path(self.row.id, "attachments", self.id)
            return download_urls.addressed(info, path, info.context.viewer.user_id)
        path = download_urls.attachment_path(self.row.id, self.index)
        return download_urls.signed(info, path, self.row)

    @field("Text parts only, decoded; null for others.", cost=3)
    async def text(self, info: Info, max_bytes: int = 65536) -> str | None:
        stored = await stored_of(info, self.row, held=self.held)
        return await content.attachment_text(stored, self.index, max_bytes)

    @field("The message that this is, where a message was attached.", cost=3)
    async def message(
        self, info: Info
    ) -> Annotated["AttachedMessage", strawberry.lazy("graph.messages.mime_parts")] | None:
        stored = await stored_of(info, self.row, held=self.held)
        part = content.attached(stored, self.index)
        return await AttachedMessage.maybe(stored, part, held=self.held)

    @classmethod
    def list_of(cls, row: Any) -> list["Attachment"]:
        """Return the attachments of a message."""
        return [cls.of(row, index) for index in range(len(row.attachments))]

    @staticmethod
    def has_many(row: Any) -> bool:
        """True if the list of attachments is too long to be made on the event loop."""
        return len(row.attachments) > LONG_LIST

    @classmethod
    def of(cls, row: Any, index: int, *, held: bool = False) -> "Attachment":
        """Return one attachment of a message by its index."""
        facts = row.attachments[index]
        return cls(
            id=download_urls.attachment_id(row.id, index),
            part=facts["part"],
            hash=facts["hash"],
            filename=plain_filename(facts["filename"] or ""),
            content_type=facts["content_type"],
            disposition=facts["disposition"],
            transfer_encoding=facts["encoding"],
            related=facts["related"],
            cid=facts["cid"],
            size_kb=-(-facts["size"] // 1024),
            size=ByteSize(facts["size"]),
            row=row,
            index=index,
            held=held,
        )


@strawberry.type(description="Node of the MIME tree.")
class MimePart:
    section: str = leaf("IMAP section number.")
    content_type: ContentType = leaf("Content-Type.")
    disposition: str | None = leaf("attachment or inline.")
    filename: str | None = leaf(
        "Decoded name, without path, control characters and bidirectional characters."
    )
    cid: str | None = leaf("Content-ID.")
    size: ByteSize = leaf("Bytes as transferred.")
    parts: list["MimePart"] = leaf("Parts below.")
    row: strawberry.Private[Any] = None
    held: strawberry.Private[bool] = False  # `row` is one of the quarantine

    @field("Decoded content.")
    def url(self, info: Info) -> URL:
        if self.held:
            path = download_urls.held_path(self.row.id, "parts", self.section)
            return download_urls.addressed(info, path, info.context.viewer.user_id)
        return download_urls.signed(
            info, download_urls.part_path(self.row.id, self.section), self.row
        )

    @field("The message that this is, where a message was attached.", cost=3)
    async def message(
        self, info: Info
    ) -> Annotated["AttachedMessage", strawberry.lazy("graph.messages.mime_parts")] | None:
        stored = await stored_of(info, self.row, held=self.held)
        part = content.part_at(stored, self.section)
        return await AttachedMessage.maybe(stored, part, held=self.held)

    @classmethod
    def of(cls, row: Any) -> "MimePart":
        """Return the root of the MIME tree of a message."""
        return cls.of_tree(row, part_of(orjson.loads(row.structure)))

    @classmethod
    def of_tree(cls, row: Any, tree: Part, *, held: bool = False) -> "MimePart":
        """Return a MIME part with its subtree.

        It is built from the leaves up, since recursion fails in a tree of a hundred levels.
        """
        parts_by_identity: dict[int, MimePart] = {}
        for part in reversed(list(walk(tree))):
            children = [parts_by_identity[id(child)] for child in part.parts]
            parts_by_identity[id(part)] = cls._one(row, part, children, held=held)
        return parts_by_identity[id(tree)]

    @classmethod
    def _one(cls, row: Any, part: Part, below: list["MimePart"], *, held: bool) -> "MimePart":
        return cls(
            section=content.section_of(part),
            content_type=ContentType(value=part.content_type, params=JSON(part.params)),
            disposition=part.disposition,
            filename=plain_filename(part.filename or ""),
            cid=part.cid,
            size=ByteSize(part.size),
            parts=below,
            row=row,
            held=held,
        )


@strawberry.type(description="Message that lies in another as a part.")
class AttachedMessage:
    subject: str = leaf('Decoded, "" if none.')
    from_: MailAddress | None = leaf("From.", name="from")
    to: list[MailAddress] = leaf("To.")
    cc: list[MailAddress] = leaf("Cc.")
    date: datetime | None = leaf("Date header.")
    message_id: str | None = leaf("Message-ID.")
    attachments: list[MimePart] = leaf("Files in it; a message among them has its own message.")
    attached: strawberry.Private[Attached | None] = None

    @field("Plain text, made from HTML when missing; up to 16 MiB.", cost=20)
    async def text(self) -> str | None:
        return await computed_fields.attached_text(self.attached) if self.attached else None

    @classmethod
    async def maybe(
        cls, stored: Stored, part: Part | None, *, held: bool = False
    ) -> "AttachedMessage | None":
        """Parse the message that is attached as this part; None if the part is no message."""
        attached = await computed_fields.attached(stored, part) if part else None
        if attached is None:
            return None
        facts, row = attached.facts, stored.row
        address_lists = [
            [MailAddress.of((address.name, address.address)) for address in addresses]
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
                MimePart.of_tree(row, part_below, held=held)
                for part_below, _ in mime.files(attached.part)
            ],
            attached=attached,
        )


async def stored_of(info: Info, row: Any, *, held: bool = False) -> Stored:
    """Load the content of the message of this row.

    With `is_quarantined` the row is one of the quarantine. Raises NotFound or Forbidden if the
    viewer can't read the message.
    """
    if held:
        return found(await info.context.load(quarantine.stored, row.id))
    return found(await content.one(info.context, row.id))
