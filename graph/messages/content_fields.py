"""Fields of Message that read or compute something from the stored content."""

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Annotated, Any

import strawberry
from graphql.pyutils import Path
from strawberry import UNSET

from graph.http import download_urls
from graph.messages.calendar_events import CalendarEvent
from graph.messages.mime_parts import (
    READ_REFUSAL,
    HeaderField,
    require_stored_message_and_log_read,
)
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.references import value_or_none
from graph.types.row_mapping import NodeView, lazy_view_factory
from graph.types.scalars import URL, BigInt
from mail.compose.message_draft import Priority
from mail.storage.message_content import StoredMessage
from models.messages.tables import MessageRelationKind
from models.users.roles import Role
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import computed_fields, content, message_bytes
from resolvers.messages import loaders as message_loaders
from resolvers.messages.content import HtmlBodies, HtmlOptions
from resolvers.search import snippets

if TYPE_CHECKING:
    from graph.mailboxes.types import Mailbox
    from graph.messages.types import Message

PREVIEW_MAX_BYTES = 128  # bytes
message_from_row = lazy_view_factory("graph.messages.types", "Message")
mailbox_from_row = lazy_view_factory("graph.mailboxes.types", "Mailbox")


def _enclosing_paths(path: Path) -> Iterator[Path]:
    """Yield the response paths that enclose a path, innermost first."""
    while enclosing := path.prev:
        yield enclosing
        path = enclosing


@strawberry.type(
    description="Stored layout of a message, that is its bytes without large MIME parts: its "
    "hash, and the number of messages that share it."
)
class MessageStorage:
    sha256: str = attribute_field(
        "SHA-256 of the stored layout, which is the message without its large MIME parts. 64 "
        "hexadecimal digits in lower case. It is the hash neither of the message nor of its body."
    )
    ref_count: int = attribute_field(
        "Number of messages that share the stored layout, with deleted messages that can be "
        "restored. A layout is shared only within one domain."
    )


@strawberry.type(
    description="MIME part of a message that is shown as its body, or as one alternative of it."
)
class BodyPart:
    section: str = attribute_field(
        "Section number of the part in IMAP notation (RFC 9051), such as `1.2`."
    )
    content_type: str = attribute_field(
        "Media type of the part, usually `text/html` or `text/plain`. Others are "
        "text/rfc822-headers, message/delivery-status, and a multipart without parts."
    )
    content: str = attribute_field(
        "Decoded text of the whole part. HTML is sanitized, without images of other servers. Plain "
        "text is not converted."
    )


@strawberry.type(
    description="Relation of a message to the original message that it replies to or forwards."
)
class MessageRelation:
    relation: MessageRelationKind = attribute_field(
        "Kind of the relation to the original message: a reply, a reply to all, or a forward."
    )
    row: strawberry.Private[Any] = None

    @field(
        "Message that is replied to or forwarded. Null if it was deleted or the caller can't see "
        "it."
    )
    def message(self) -> Annotated["Message", strawberry.lazy("graph.messages.types")] | None:
        message: Message | None = message_from_row(self.row)
        return message

    @field(
        "Mailbox of the message that is replied to or forwarded. Null if the message was deleted "
        "or the caller can't see it."
    )
    async def mailbox(
        self, info: Info
    ) -> Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] | None:
        if self.row is None:
            return None
        row = await info.context.load(mailbox_loaders.load_visible_by_ids, self.row.mailbox_id)
        mailbox: Mailbox | None = mailbox_from_row(row)
        return mailbox

    @field(
        "UID of the message that is replied to or forwarded, in its mailbox. Null if the message "
        "was deleted or the caller can't see it."
    )
    def uid(self) -> BigInt | None:
        return BigInt(self.row.uid) if self.row else None


def _html_options(
    info: Info, stored: StoredMessage, *, sanitize: bool = True, remote_images: bool = False
) -> HtmlOptions:
    """Return options that put links to the attachments in place of `cid:` URLs."""
    attachment_by_content_id = content.attachment_numbers_by_content_id(stored)

    def url_of_content_id(content_id: str) -> str | None:
        number = content.attachment_number_of_cid_or_none(attachment_by_content_id, content_id)
        if number is None:
            return None
        path = download_urls.attachment_download_path(stored.row.id, number)
        return download_urls.require_readable_and_sign_download_url(info, path, stored.row)

    return HtmlOptions(url_of_content_id, is_sanitized=sanitize, allows_remote_images=remote_images)


def shortened_preview(preview: str) -> str:
    """Return the first 128 bytes of a preview, without a part of a character at the end."""
    if preview.isascii():
        return preview[:PREVIEW_MAX_BYTES]
    return preview[:PREVIEW_MAX_BYTES].encode()[:PREVIEW_MAX_BYTES].decode(errors="ignore")


@strawberry.type(description="What is in a message.")
class MessageContentFields(NodeView):
    """Base of Message with the fields that read the stored content."""

    @field(
        "Body of the message as HTML: the HTML parts in order, and plain text parts converted "
        "to HTML unless they are an alternative of HTML. Null if it has no body. "
        f"{READ_REFUSAL}",
        "user_id",
        cost=10,
    )
    async def html(
        self,
        info: Info,
        sanitize: Annotated[
            bool,
            strawberry.argument(
                description="True removes scripts and other active content. HTML that is not "
                "sanitized must only be shown in a sandbox. Default: true."
            ),
        ] = True,
        remote_images: Annotated[
            bool,
            strawberry.argument(
                description="True keeps images that are loaded from other servers, which tells "
                "them that the message is read. Without effect if `sanitize` is false. Default: "
                "false."
            ),
        ] = False,
    ) -> str | None:
        rendered = await self._load_html(info, sanitize=sanitize, remote_images=remote_images)
        return "\n".join(rendered.bodies) if rendered.bodies else None

    @field(
        "Parts that are shown as the body, in order. A multipart/alternative has each of its "
        "alternatives. At most 10,000 parts are read. "
        f"{READ_REFUSAL}",
        "user_id",
        cost=10,
        can_fail=True,
    )
    async def body_parts(self, info: Info) -> list[BodyPart]:
        stored = await require_stored_message_and_log_read(info, self.row)
        parts = await content.body_part_contents(stored, _html_options(info, stored))
        return [
            BodyPart(section=part.section, content_type=part.content_type, content=part.content)
            for part in parts
        ]

    @field(
        "Number of images of other servers that `html` leaves out unless `remoteImages` is "
        "true. 0 if there is none. "
        f"{READ_REFUSAL}",
        cost=10,
        can_fail=True,
    )
    async def remote_image_count(self, info: Info) -> int:
        return (await self._load_html(info)).blocked_image_count

    @field(
        "True if `html` contains only the text of a part, because its HTML has more than 500 "
        "levels or 2,097,152 characters. "
        f"{READ_REFUSAL}",
        cost=10,
        can_fail=True,
    )
    async def has_complex_html(self, info: Info) -> bool:
        return (await self._load_html(info)).is_too_complex

    async def _load_html(
        self, info: Info, *, sanitize: bool = True, remote_images: bool = False
    ) -> HtmlBodies:
        """Load the HTML bodies of the message, with links to its attachments in place of `cid:`."""
        stored = await require_stored_message_and_log_read(info, self.row)
        options = _html_options(info, stored, sanitize=sanitize, remote_images=remote_images)
        return await content.html_bodies(stored, options)

    @field(
        "Body of the message as plain text, converted from HTML if it has no plain text. Null "
        "if it has no body. "
        f"{READ_REFUSAL}",
        cost=3,
    )
    async def text(self, info: Info) -> str | None:
        return await content.plain_text(await require_stored_message_and_log_read(info, self.row))

    @field(
        "Text around the first word that the list was searched for, about 200 characters. "
        "Without a search, or without a match in the text: the same as `preview`. "
        f"{READ_REFUSAL}",
        "preview",
        "user_id",
        cost=3,
    )
    async def snippet(
        self,
        info: Info,
        marked: Annotated[
            bool,
            strawberry.argument(
                description="True returns HTML with `<mark>` around the words, false plain "
                "text. Default: false."
            ),
        ] = False,
    ) -> str:
        search_terms = snippets.search_terms_of_first_searched_path(
            info.context, _enclosing_paths(info.path)
        )
        snippet = await snippets.extract_snippet_or_none(
            await require_stored_message_and_log_read(info, self.row),
            search_terms,
            as_html=marked,
        )
        preview = shortened_preview(self.row.preview)
        return snippet or (escape(preview) if marked else preview)

    @field(
        "Fields of the header of the message, in their order. At most 1 MiB of the header is "
        "read. "
        f"{READ_REFUSAL}",
        cost=2,
        can_fail=True,
    )
    async def headers(self, info: Info) -> list[HeaderField]:
        lines = await content.header_fields(
            await require_stored_message_and_log_read(info, self.row)
        )
        return [HeaderField.from_row(line) for line in lines]

    @field(
        "Header of the message as stored, with the empty line after it. A header that is not "
        "UTF-8 is decoded as ISO 8859-1. "
        f"{READ_REFUSAL}",
        cost=2,
        can_fail=True,
    )
    async def raw_header(self, info: Info) -> str:
        return await content.header_block_text(
            await require_stored_message_and_log_read(info, self.row)
        )

    @field(
        "Priority that the sender gave the message in the header field X-Priority, else in "
        "Importance. NORMAL if the header has no usable value of either. "
        f"{READ_REFUSAL}",
        cost=2,
        can_fail=True,
    )
    async def priority(self, info: Info) -> Priority:
        return await content.message_priority(
            await require_stored_message_and_log_read(info, self.row)
        )

    @field(
        "Decoded values of all header fields with one name, in their order. Empty if the "
        "message has no such field. At most 1 MiB of the header is read. "
        f"{READ_REFUSAL}",
        cost=2,
    )
    async def header(
        self,
        info: Info,
        name: Annotated[
            str, strawberry.argument(description="Name of the header field (case is ignored).")
        ],
    ) -> list[str]:
        return await content.header_values(
            await require_stored_message_and_log_read(info, self.row), name
        )

    @field(
        "Body of the message as stored, without the header; as base64 if it is not UTF-8. Decoded "
        "content of more than 16 MiB is the error LIMIT_REACHED. "
        f"{READ_REFUSAL}",
        cost=10,
    )
    async def body(self, info: Info) -> str | None:
        return await message_bytes.imap_body_section_as_text_or_base64(
            await require_stored_message_and_log_read(info, self.row), "TEXT"
        )

    @field(
        "Section of the message as stored, as the IMAP data item BODY[section] (RFC 9051); as "
        "base64 if it is not UTF-8. Null if there is no such part. "
        f"{READ_REFUSAL}",
        cost=10,
    )
    async def body_part(
        self,
        info: Info,
        section: Annotated[
            str,
            strawberry.argument(
                description="Section of the message in IMAP notation (RFC 9051), such as `1.2`, "
                "`HEADER`, `TEXT` or `2.MIME`. An empty text is the whole message."
            ),
        ],
        offset: Annotated[
            int,
            strawberry.argument(description="Number of bytes of the section to skip. Default: 0."),
        ] = 0,
        max_bytes: Annotated[
            int | None,
            strawberry.argument(
                description=(
                    "Returns at most this number of bytes, 1 to 16,777,216. Default: the whole "
                    "section; a section above 16 MiB is the error LIMIT_REACHED."
                )
            ),
        ] = UNSET,
    ) -> str | None:
        stored = await require_stored_message_and_log_read(info, self.row)
        return await message_bytes.imap_body_section_as_text_or_base64(
            stored, section, offset=offset, max_bytes=value_or_none(max_bytes)
        )

    @field(
        "Decoded content of a MIME part, as base64. Null if there is no such part. Decoded "
        "content of more than 16 MiB is the error LIMIT_REACHED. "
        f"{READ_REFUSAL}",
        cost=10,
    )
    async def binary_part(self, info: Info, section: str) -> str | None:
        return await message_bytes.mime_part_as_base64(
            await require_stored_message_and_log_read(info, self.row), section
        )

    @field(
        "Bytes of the source of the message (RFC 5322): as text, or as base64 if they are not "
        "valid UTF-8. An incomplete last character is left out of a text. Empty beyond the "
        "end. "
        f"{READ_REFUSAL}",
        cost=20,
    )
    async def raw_source(
        self,
        info: Info,
        max_bytes: Annotated[
            int,
            strawberry.argument(
                description="Largest number of bytes that are returned, 1 to 16,777,216. "
                "Default: 1,048,576."
            ),
        ] = 1048576,
        offset: Annotated[
            int,
            strawberry.argument(description="Number of bytes of the message to skip. Default: 0."),
        ] = 0,
    ) -> str:
        return await message_bytes.message_source_as_text_or_base64(
            await require_stored_message_and_log_read(info, self.row), max_bytes, offset
        )

    @field(
        "Signed URL that downloads the whole message, byte for byte. It is valid for 15 to 20 "
        "minutes, but not longer than the credential of the request. "
        f"{READ_REFUSAL}",
        "user_id",
        can_fail=True,
    )
    def source_url(self, info: Info) -> URL:
        return download_urls.require_readable_and_sign_download_url(
            info, download_urls.message_source_path(self.row.id), self.row
        )

    @field(
        "Signed URL that downloads all attachments as one ZIP archive. It is valid for 15 to "
        "20 minutes, but not longer than the credential of the request. Null if `attachments` "
        "is empty. "
        f"{READ_REFUSAL}",
        "attachments",
        "user_id",
    )
    def attachments_url(self, info: Info) -> URL | None:
        if not self.row.attachments:
            return None
        return download_urls.require_readable_and_sign_download_url(
            info, download_urls.zip_path(self.row.id), self.row
        )

    @field(
        "Events of the calendars in the message (RFC 5545), each once: at most 100. At most 10 "
        "calendars with 512 KiB of text in total are read. "
        f"{READ_REFUSAL}",
        cost=10,
        can_fail=True,
    )
    async def calendar_events(self, info: Info) -> list[CalendarEvent]:
        events = await computed_fields.calendar_events(
            await require_stored_message_and_log_read(info, self.row)
        )
        return [CalendarEvent.from_event(event) for event in events]

    @field(
        "Hash of the message's stored layout, and the number of messages that share it.",
        "blob_id",
        cost=2,
        role=Role.ADMIN,
    )
    async def storage(self, info: Info) -> MessageStorage:
        uses = await info.context.load(computed_fields.load_blob_uses, self.row.blob_id)
        return MessageStorage(sha256=uses.digest, ref_count=uses.message_count)

    @field(
        "Message that this draft or sent message replies to or forwards, as given when it was "
        "composed on this platform. Null for a received message, also for one that was composed "
        "here. Null also if the message answers or forwards none, or another program composed it. "
        "If the original was deleted, only `relation` has a value.",
        "source_id",
        "source_relation",
        cost=1,
    )
    async def original(self, info: Info) -> MessageRelation | None:
        if self.row.source_id is None:
            return None
        row = await info.context.load(message_loaders.load_visible_by_ids, self.row.source_id)
        return MessageRelation(relation=MessageRelationKind(self.row.source_relation), row=row)
