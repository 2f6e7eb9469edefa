"""Fields of Message that read or compute something from the stored content."""

from collections.abc import Iterator
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Annotated, Any

import strawberry
from graphql.pyutils import Path
from strawberry import UNSET

from graph.http import download_urls
from graph.messages.mime_parts import HeaderField, MailAddress, load_stored_message
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.references import MessageRelationKind
from graph.types.row_mapping import NodeView, lazy_view_factory
from graph.types.scalars import URL, BigInt, ByteSize
from mail import mime
from mail.mime.authentication_results import MethodVerdict, method_verdict
from mail.storage.message_content import StoredMessage
from models.messages.authentication import AuthenticationResultCode
from models.messages.mime_values import CalendarMethod
from models.users.roles import Role
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import computed_fields, content
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


@strawberry.type(description="Encryption of a connection.")
class TlsInfo:
    cipher: str = attribute_field("Name of the cipher suite.")
    version: str = attribute_field("Protocol version.")

    @classmethod
    def parse_or_none(cls, version_and_cipher: str | None) -> "TlsInfo | None":
        """Parse a protocol version and a cipher, separated by a space; None without them."""
        version, _, cipher = (version_and_cipher or "").partition(" ")
        return cls(cipher=cipher, version=version) if version else None


@strawberry.type(
    description="Result of one authentication method for a message (RFC 8601), as the receiving "
    "server found it."
)
class AuthenticationResult:
    result: AuthenticationResultCode = attribute_field("Result of the check.")
    domain: str | None = attribute_field(
        "Domain that was checked: of MAIL FROM or HELO for SPF, of the signature for DKIM, of From "
        "for DMARC. Null for ARC."
    )
    selector: str | None = attribute_field("Selector of the DKIM key. Null for other methods.")
    reason: str | None = attribute_field("Reason that the receiving server gave, in English.")

    @classmethod
    def from_verdict_or_none(cls, verdict: MethodVerdict | None) -> "AuthenticationResult | None":
        """Return the GraphQL object of a verdict; None if the method has no result."""
        if verdict is None:
            return None
        return cls(
            result=verdict.result,
            domain=verdict.domain,
            selector=verdict.selector,
            reason=verdict.reason,
        )


@strawberry.type(
    description="Authentication of the sender of a message, as the receiving server wrote it in "
    "Authentication-Results (RFC 8601). Fields of other servers are not trusted."
)
class MessageAuthentication:
    spf: AuthenticationResult | None = attribute_field("SPF (RFC 7208). Null: not checked.")
    dkim: AuthenticationResult | None = attribute_field(
        "DKIM (RFC 6376). Of several signatures, a valid one of the domain of From counts first, "
        "then any valid one. Null: not checked."
    )
    dmarc: AuthenticationResult | None = attribute_field("DMARC (RFC 7489). Null: not checked.")
    arc: AuthenticationResult | None = attribute_field("ARC (RFC 8617). Null: not checked.")
    header: str | None = attribute_field(
        "Values of the Authentication-Results fields, one on each line."
    )

    @classmethod
    def from_json_or_none(
        cls, stored_results: dict[str, Any] | None
    ) -> "MessageAuthentication | None":
        """Return the stored results of authentication; None if there are none."""
        if stored_results is None:
            return None
        header = stored_results["results"]
        results = {
            method: AuthenticationResult.from_verdict_or_none(
                method_verdict(header or "", method, stored_results.get(method))
            )
            for method in ("spf", "dkim", "dmarc", "arc")
        }
        return cls(**results, header=header)


def received_tls_from_json(stored_results: dict[str, Any] | None) -> TlsInfo | None:
    """Return the TLS of the session in which a message was received; None without TLS."""
    return TlsInfo.parse_or_none((stored_results or {}).get("tls"))


@strawberry.type(description="Storage of the body of a message.")
class MessageStorage:
    id: str = attribute_field("Key of the stored body: its SHA-256, 64 hexadecimal digits.")
    ref_count: int = attribute_field("Number of messages that share the stored body.")


@strawberry.type(description="Part of a message that is shown as its body.")
class BodyPart:
    section: str = attribute_field("IMAP section number (RFC 9051).")
    content_type: str = attribute_field("Media type, such as text/html or text/plain.")
    content: str = attribute_field("Decoded text. HTML is sanitized.")


@strawberry.type(description="Invitation in a message, or another event (RFC 5545).")
class CalendarEvent:
    method: CalendarMethod | None = attribute_field(
        "Method of the calendar (RFC 5546). Null if it is none of the enum. A calendar without a "
        "method counts as PUBLISH."
    )
    uid: str | None = attribute_field("UID of the event. Null if it has none.")
    summary: str | None = attribute_field("Title, up to 1000 characters.")
    starts_at: datetime | None = attribute_field(
        "Null where it is not said, or in no zone that is known; midnight UTC of allDay."
    )
    ends_at: datetime | None = attribute_field(
        "The same of its end; of allDay the day behind the last."
    )
    all_day: bool = attribute_field("It has dates and no times.")
    location: str | None = attribute_field("Place, up to 1000 characters.")
    organizer: MailAddress | None = attribute_field("Who asks.")
    attendees: list[MailAddress] = attribute_field("Who is asked, up to 1000.")

    @classmethod
    def from_event(cls, event: mime.ParsedCalendarEvent) -> "CalendarEvent":
        """Return the GraphQL object of a calendar event."""

        def mail_address(person: mime.ParsedAddress) -> MailAddress:
            return MailAddress.from_row((person.name, person.address))

        return cls(
            method=CalendarMethod.__members__.get(event.method),
            uid=event.uid or None,
            summary=event.summary,
            starts_at=event.starts_at,
            ends_at=event.ends_at,
            all_day=event.all_day,
            location=event.location,
            organizer=mail_address(event.organizer) if event.organizer else None,
            attendees=[mail_address(attendee) for attendee in event.attendees],
        )


@strawberry.type(description="The message that another message replies to or forwards.")
class MessageRelation:
    relation: MessageRelationKind = attribute_field(
        "Whether the message is replied to or forwarded."
    )
    row: strawberry.Private[Any] = None

    @field("The message. Null: it was deleted, or is not visible.")
    def message(self) -> Annotated["Message", strawberry.lazy("graph.messages.types")] | None:
        message: Message | None = message_from_row(self.row)
        return message

    @field("Mailbox of the message. Null: the message was deleted, or is not visible.")
    async def mailbox(
        self, info: Info
    ) -> Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] | None:
        if self.row is None:
            return None
        row = await info.context.load(mailbox_loaders.load_visible_by_ids, self.row.mailbox_id)
        mailbox: Mailbox | None = mailbox_from_row(row)
        return mailbox

    @field("UID of the message. Null: the message was deleted, or is not visible.")
    def uid(self) -> BigInt | None:
        return BigInt(self.row.uid) if self.row else None


def _html_options(
    info: Info, stored: StoredMessage, *, sanitize: bool = True, remote_images: bool = False
) -> HtmlOptions:
    """Return options that put links to the attachments in place of `cid:` URLs."""
    attachment_by_content_id = content.attachment_numbers_by_content_id(stored)

    def url_of_content_id(content_id: str) -> str | None:
        if content_id not in attachment_by_content_id:
            return None
        number = attachment_by_content_id[content_id]
        path = download_urls.attachment_download_path(stored.row.id, number)
        return download_urls.signed_download_url(info, path, stored.row)

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
        "HTML of the message: its HTML parts in order, and its plain text parts converted to HTML. "
        "Null if it has no body.",
        "user_id",
        cost=10,
    )
    async def html(
        self,
        info: Info,
        sanitize: Annotated[
            bool,
            strawberry.argument(
                description="Removes scripts and other active content. HTML that is not sanitized "
                "must only be shown in a sandbox."
            ),
        ] = True,
        remote_images: Annotated[
            bool, strawberry.argument(description="Keeps images of other servers.")
        ] = False,
    ) -> str | None:
        rendered = await self._load_html(info, sanitize=sanitize, remote_images=remote_images)
        return "\n".join(rendered.bodies) if rendered.bodies else None

    @field(
        "Parts that are shown as the body, in order. A multipart/alternative has each of its "
        "alternatives.",
        "user_id",
        cost=10,
    )
    async def body_parts(self, info: Info) -> list[BodyPart]:
        stored = await load_stored_message(info, self.row)
        parts = await content.body_parts(stored, _html_options(info, stored))
        return [
            BodyPart(section=part.section, content_type=part.content_type, content=part.content)
            for part in parts
        ]

    @field("Images from elsewhere that html leaves out, unless remoteImages lets them in.", cost=10)
    async def remote_image_count(self, info: Info) -> int:
        return (await self._load_html(info)).blocked_image_count

    @field(
        "Whether html has but the text of a part: it is nested too deeply, or has more than 2 MiB.",
        cost=10,
    )
    async def has_complex_html(self, info: Info) -> bool:
        return (await self._load_html(info)).is_too_complex

    async def _load_html(
        self, info: Info, *, sanitize: bool = True, remote_images: bool = False
    ) -> HtmlBodies:
        """Load the HTML bodies of the message, with links to its attachments in place of `cid:`."""
        stored = await load_stored_message(info, self.row)
        options = _html_options(info, stored, sanitize=sanitize, remote_images=remote_images)
        return await content.html_bodies(stored, options)

    @field("Plain text, made from HTML when missing.", cost=3)
    async def text(self, info: Info) -> str | None:
        return await content.plain_text(await load_stored_message(info, self.row))

    @field(
        "Text around the words that the list was searched for; without a search, the preview.",
        "preview",
        "user_id",
        cost=3,
    )
    async def snippet(
        self,
        info: Info,
        marked: Annotated[
            bool, strawberry.argument(description="Returns HTML with <mark> around the words.")
        ] = False,
    ) -> str:
        search_terms = snippets.search_terms_at(info.context, _enclosing_paths(info.path))
        found = await snippets.extract_snippet(
            await load_stored_message(info, self.row), search_terms, as_html=marked
        )
        preview = shortened_preview(self.row.preview)
        return found or (escape(preview) if marked else preview)

    @field("In order.", cost=2)
    async def headers(self, info: Info) -> list[HeaderField]:
        lines = await content.header_fields(await load_stored_message(info, self.row))
        return [HeaderField.from_row(line) for line in lines]

    @field("Header block as stored.", cost=2)
    async def raw_header(self, info: Info) -> str:
        return await content.header_block_text(await load_stored_message(info, self.row))

    @field("Values of one header.", cost=2)
    async def header(
        self,
        info: Info,
        name: Annotated[
            str, strawberry.argument(description="Name of the header field, in any case.")
        ],
    ) -> list[str]:
        return await content.header_values(await load_stored_message(info, self.row), name)

    @field("Body as stored, base64 when not UTF-8.", cost=10)
    async def body(self, info: Info) -> str | None:
        return await content.imap_body_section(await load_stored_message(info, self.row), "TEXT")

    @field("IMAP BODY[section]<offset.maxBytes>, as stored; base64 when not UTF-8.", cost=10)
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
        offset: int = 0,
        max_bytes: Annotated[
            int | None,
            strawberry.argument(
                description="Returns at most this number of bytes, 1 to 16,777,216. Default: the "
                "whole section; a section above 16 MiB is an error."
            ),
        ] = UNSET,
    ) -> str | None:
        stored = await load_stored_message(info, self.row)
        return await content.imap_body_section(
            stored, section, offset=offset, max_bytes=max_bytes or None
        )

    @field("Decoded, base64.", cost=10)
    async def binary_part(self, info: Info, section: str) -> str | None:
        return await content.base64_part(await load_stored_message(info, self.row), section)

    @field(
        "Source text of the message (RFC 5322), from an offset on. Base64 if it is not UTF-8.",
        cost=20,
    )
    async def raw_source(self, info: Info, max_bytes: int = 1048576, offset: int = 0) -> str:
        return await content.message_source_text(
            await load_stored_message(info, self.row), max_bytes, offset
        )

    @field("Whole message, byte for byte.", "user_id")
    def source_url(self, info: Info) -> URL:
        return download_urls.signed_download_url(
            info, download_urls.message_source_path(self.row.id), self.row
        )

    @field("All attachments as one zip; null where there are none.", "attachments", "user_id")
    def attachments_url(self, info: Info) -> URL | None:
        if not self.row.attachments:
            return None
        return download_urls.signed_download_url(
            info, download_urls.zip_path(self.row.id), self.row
        )

    @field(
        "Events of the calendars in the message (RFC 5545), each once, up to 100. At most 512 KiB "
        "of calendar text are read.",
        cost=10,
    )
    async def calendar_events(self, info: Info) -> list[CalendarEvent]:
        events = await computed_fields.calendar_events(await load_stored_message(info, self.row))
        return [CalendarEvent.from_event(event) for event in events]

    @field("Bytes, if every line ended with CRLF.", cost=20)
    async def virtual_size(self, info: Info) -> ByteSize:
        return ByteSize(await computed_fields.crlf_size(await load_stored_message(info, self.row)))

    @field("IMAP ENVELOPE.", cost=5)
    async def envelope_imap(self, info: Info) -> str:
        return await computed_fields.imap_envelope(await load_stored_message(info, self.row))

    @field("IMAP BODY.", cost=10)
    async def body_imap(self, info: Info) -> str:
        return await computed_fields.imap_bodystructure(
            await load_stored_message(info, self.row), is_extended=False
        )

    @field("IMAP BODYSTRUCTURE.", cost=10)
    async def body_structure_imap(self, info: Info) -> str:
        return await computed_fields.imap_bodystructure(
            await load_stored_message(info, self.row), is_extended=True
        )

    @field("Position in the folder, from 1 by uid; counted when asked for.", cost=10)
    async def seq(self, info: Info) -> int:
        return await info.context.load(computed_fields.load_sequence_numbers, self.row.id)

    @field("Storage of the body.", "blob_id", cost=2, role=Role.ADMIN)
    async def storage(self, info: Info) -> MessageStorage:
        uses = await info.context.load(computed_fields.load_blob_uses, self.row.blob_id)
        return MessageStorage(id=uses.digest, ref_count=uses.message_count)

    @field(
        "The message that this message replies to or forwards, as given when it was composed. "
        "Null: neither a reply nor a forward, or composed by another program.",
        "source_id",
        "source_relation",
        cost=1,
    )
    async def source(self, info: Info) -> MessageRelation | None:
        if self.row.source_id is None:
            return None
        row = await info.context.load(message_loaders.load_visible_by_ids, self.row.source_id)
        return MessageRelation(relation=MessageRelationKind(self.row.source_relation), row=row)
