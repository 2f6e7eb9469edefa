"""Stored mail, as the API shows it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import orjson
import strawberry
from strawberry.scalars import JSON

from graph import parts
from graph.connections import Connection, connected, page_asked
from graph.errors import leaf
from graph.fields import Auth, Info, field, query
from graph.refs import MessageRef, message_of
from graph.rows import Shape, columns, identified, link, shaped
from graph.scalars import URL, BigInt, ByteSize
from graph.selections import MessageOrder, Wanted
from graph.views import Expressed, Made, View, Viewed, Whole, same
from mail.addresses import normal
from mail.contents import Stored
from mail.delivery import named_flags as flags_of
from mail.messages import Part, part_of, walk
from models.errors import found
from models.pages import Cursor, ordering
from models.roles import Scope
from resolvers import (
    bulk,
    contents,
    mailboxes,
    messages,
    relevance,
    searches,
    snippets,
    users,
)
from resolvers.bulk import Order
from resolvers.contents import Showing
from resolvers.messages import ALL, Listing
from resolvers.moves import Changes
from resolvers.selections import Selection

if TYPE_CHECKING:
    from graph.mailboxes import Mailbox
    from graph.threads import Thread
    from graph.users import User

INTRO = 128  # bytes


@strawberry.type(description="In a header.")
class MailAddress(View):
    """A view of a pair: name and address."""

    name: str | None = leaf("Display name.")
    address: str = leaf("As written.")

    made: ClassVar[Mapping[str, Made]] = {
        "name": Expressed("{0}[0]"),
        "address": Expressed("{0}[1] or ''"),
    }


@strawberry.type(description="Content-Type, parsed.")
class ContentType:
    value: str = leaf("Such as text/plain.")
    params: JSON = leaf("Parameters of the header.")


@strawberry.type(description="SMTP recipient.")
class EnvelopeRcpt:
    value: str = leaf("As given.")
    formatted: str = leaf("Normalized form.")

    @classmethod
    def of(cls, address: str) -> "EnvelopeRcpt":
        return cls(value=address, formatted="@".join(normal(address)))


@strawberry.type(description="SMTP envelope, when known.")
class Envelope:
    from_: str | None = leaf("MAIL FROM.", name="from")
    rcpt: list[EnvelopeRcpt] = leaf("RCPT TO, as given and normalized.")


@strawberry.type(description="Mailing list headers.")
class ListInfo:
    list_id: str | None = leaf("List-ID.")
    unsubscribe: str | None = leaf("List-Unsubscribe as written.")
    unsubscribe_url: URL | None = leaf("https address of it.")
    unsubscribe_one_click: bool = leaf("RFC 8058 works.")


@strawberry.type(description="Header line.")
class HeaderField:
    key: str = leaf("Name.")
    value: str = leaf("Decoded.")
    raw: str = leaf("As in the message.")


@strawberry.type(description="Part that is a file.")
class Attachment:
    id: strawberry.ID = leaf("Global, so that caches never mix the attachments of two messages.")
    part: str = leaf("IMAP section number within the message.")
    hash: str = leaf("SHA-256 of the content.")
    filename: str | None = leaf("Decoded name.")
    content_type: str = leaf("MIME type.")
    disposition: str | None = leaf("attachment or inline.")
    transfer_encoding: str = leaf("As in the message; content is served decoded.")
    related: bool = leaf("Inline image of HTML.")
    cid: str | None = leaf("Content-ID.")
    size_kb: int = leaf("About.")
    size: ByteSize = leaf("Decoded bytes.")
    row: strawberry.Private[Any] = None
    index: strawberry.Private[int] = 0

    @field("Download.")
    def url(self, info: Info) -> URL:
        path = parts.attachment_path(self.row.id, self.index)
        return parts.signed(info, path, self.row.user_id)

    @classmethod
    def of(cls, row: Any, index: int) -> "Attachment":
        known = row.attachments[index]
        return cls(
            id=parts.attachment_id(row.id, index),
            part=known["part"],
            hash=known["hash"],
            filename=known["filename"],
            content_type=known["content_type"],
            disposition=known["disposition"],
            transfer_encoding=known["encoding"],
            related=known["related"],
            cid=known["cid"],
            size_kb=-(-known["size"] // 1024),
            size=ByteSize(known["size"]),
            row=row,
            index=index,
        )


@strawberry.type(description="Node of the MIME tree.")
class MimePart:
    section: str = leaf("IMAP section number.")
    content_type: ContentType = leaf("Content-Type.")
    disposition: str | None = leaf("attachment or inline.")
    filename: str | None = leaf("Decoded name.")
    cid: str | None = leaf("Content-ID.")
    size: ByteSize = leaf("Bytes as transferred.")
    parts: list["MimePart"] = leaf("Parts below.")
    row: strawberry.Private[Any] = None

    @field("Decoded content.")
    def url(self, info: Info) -> URL:
        return parts.signed(info, parts.part_path(self.row.id, self.section), self.row.user_id)

    @classmethod
    def of(cls, row: Any) -> "MimePart":
        """The tree of a message, made from the leaves up: it may be a hundred parts deep."""
        tree = part_of(orjson.loads(row.structure))
        made: dict[int, MimePart] = {}
        for part in reversed(list(walk(tree))):
            made[id(part)] = cls._one(row, part, [made[id(below)] for below in part.parts])
        return made[id(tree)]

    @classmethod
    def _one(cls, row: Any, part: Part, below: list["MimePart"]) -> "MimePart":
        return cls(
            section=contents.section_of(part),
            content_type=ContentType(value=part.content_type, params=JSON(part.params)),
            disposition=part.disposition,
            filename=part.filename,
            cid=part.cid,
            size=ByteSize(part.size),
            parts=below,
            row=row,
        )


def _people(column: str) -> Viewed:
    return Viewed((column,), same, MailAddress, many=True)


def _from(name: str | None, address: str | None) -> tuple[str | None, str | None] | None:
    return (name, address) if name or address else None


def _intro(text: str) -> str:
    if text.isascii():
        return text[:INTRO]
    return text[:INTRO].encode()[:INTRO].decode(errors="ignore")


def _list(known: dict[str, Any] | None) -> ListInfo | None:
    return (
        None
        if not known
        else ListInfo(
            list_id=known["id"],
            unsubscribe=known["unsubscribe"],
            unsubscribe_url=known["url"],
            unsubscribe_one_click=known["one_click"],
        )
    )


def _envelope(sender: str | None, recipients: list[str]) -> Envelope | None:
    if sender is None:
        return None
    return Envelope(from_=sender, rcpt=[EnvelopeRcpt.of(address) for address in recipients])


FLAGS = ("seen", "answered", "flagged", "deleted", "draft", "keywords")


@strawberry.type(description="Stored message.", directives=[Auth(scope=Scope.MAIL_READ)])
class Message(Shape):
    guid: str = leaf("128-bit id as 32 hex digits.")
    uid: BigInt = leaf("In its folder.")
    user: Annotated["User", strawberry.lazy("graph.users")] = link(
        "user_id", users.by_ids, shaped("graph.users", "User"), description="Owner."
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes")] = link(
        "mailbox_id",
        mailboxes.by_ids,
        shaped("graph.mailboxes", "Mailbox"),
        description="Folder.",
    )
    thread: Annotated["Thread", strawberry.lazy("graph.threads")] = link(
        "thread_id",
        messages.threads_by_ids,
        shaped("graph.threads", "Thread"),
        description="Conversation.",
    )
    envelope: Envelope | None = leaf("SMTP envelope, if known.")
    from_: MailAddress | None = leaf("From.", name="from")
    sender: MailAddress | None = leaf("Sender, if different.")
    reply_to: list[MailAddress] = leaf("Reply-To.")
    to: list[MailAddress] = leaf("To.")
    cc: list[MailAddress] = leaf("Cc.")
    bcc: list[MailAddress] = leaf("Bcc, mostly drafts.")
    subject: str = leaf('Decoded, "" if none.')
    message_id: str | None = leaf("Message-ID.")
    in_reply_to: str | None = leaf("In-Reply-To.")
    references: list[str] = leaf("References.")
    date: datetime | None = leaf("Date header.")
    received_at: datetime = leaf("Arrival.")
    saved_at: datetime = leaf("Put into this folder.")
    expires: datetime | None = leaf("Deleted by itself then.")
    list_: ListInfo | None = leaf("Mailing list.", name="list")
    size: ByteSize = leaf("Bytes as stored.")
    intro: str = leaf("First 128 bytes of text.")
    flags: list[str] = leaf("All flags and keywords.")
    seen: bool = leaf(r"\Seen.")
    deleted: bool = leaf(r"\Deleted.")
    flagged: bool = leaf(r"\Flagged.")
    draft: bool = leaf(r"\Draft.")
    answered: bool = leaf(r"\Answered.")
    forwarded: bool = leaf("$Forwarded.")
    modseq: BigInt = leaf("Last change.")
    has_attachments: bool = leaf("Files attached.")
    attachment_count: int = leaf("How many files.")
    attachments: list[Attachment] = leaf("Files.")
    structure: MimePart = leaf("MIME tree.")
    content_type: ContentType = leaf("Top content type.")
    encrypted: bool = leaf("PGP or S/MIME.")
    meta_data: JSON | None = leaf("Free data of the application.")

    batch = staticmethod(messages.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Message"),
        "guid": Made(("id",), "{:032x}".format),
        "envelope": Made(("envelope_from", "envelope_to"), _envelope),
        "from_": Viewed(("from_name", "from_address"), _from, MailAddress),
        "sender": Viewed(("sender",), lambda pair: pair or None, MailAddress),
        "reply_to": _people("reply_to"),
        "to": _people("to"),
        "cc": _people("cc"),
        "bcc": _people("bcc"),
        "list_": Made(("mailing_list",), _list),
        "intro": Made(("preview",), _intro),
        "flags": Made(FLAGS, flags_of),
        "forwarded": Made(("keywords",), lambda keywords: "$Forwarded" in keywords),
        "has_attachments": Made(("attachment_count",), lambda count: count > 0),
        "attachments": Whole(
            ("attachments", "user_id"),
            lambda row: [Attachment.of(row, nth) for nth in range(len(row.attachments))],
        ),
        "structure": Whole(("structure", "user_id"), MimePart.of),
        "content_type": Made(
            ("content_type", "content_params"),
            lambda kind, params: ContentType(value=kind, params=params),
        ),
    }

    async def _stored(self, info: Info) -> Stored:
        return found(await contents.one(info.context, self.row.id))

    @field(
        "One per MIME node; without sanitize as sent, to be shown in a sandbox only. "
        "Remote images are left out unless asked for.",
        "user_id",
        cost=10,
    )
    async def html(
        self, info: Info, sanitize: bool = True, remote_images: bool = False
    ) -> list[str]:
        stored = await self._stored(info)
        known = contents.cids(stored)

        def cid_url(cid: str) -> str | None:
            if cid not in known:
                return None
            path = parts.attachment_path(self.row.id, known[cid])
            return parts.signed(info, path, self.row.user_id)

        showing = Showing(cid_url, sanitize=sanitize, remote_images=remote_images)
        return await contents.htmls(stored, showing)

    @field("Plain text, made from HTML when missing.", cost=3)
    async def text(self, info: Info) -> str | None:
        return await contents.texts(await self._stored(info))

    @field(
        "Short text around what was searched for in this operation, or intro; marked = as HTML "
        "with <mark> around the words.",
        "preview",
        "user_id",
        cost=3,
    )
    async def snippet(
        self,
        info: Info,
        marked: Annotated[bool, strawberry.argument(description="As HTML, escaped.")] = False,
    ) -> str:
        words = snippets.sought(info.context, self.row.id)
        found = await snippets.snippet(await self._stored(info), words, marked=marked)
        intro = _intro(self.row.preview)
        return found or (escape(intro) if marked else intro)

    @field("In order.", cost=2)
    async def headers(self, info: Info) -> list[HeaderField]:
        lines = await contents.header_fields(await self._stored(info))
        return [HeaderField(key=one.key, value=one.value, raw=one.raw) for one in lines]

    @field("Header block as stored.", cost=2)
    async def headers_text(self, info: Info) -> str:
        return await contents.headers_text(await self._stored(info))

    @field("Values of one header.", cost=2)
    async def header(self, info: Info, name: str) -> list[str]:
        return await contents.header(await self._stored(info), name)

    @field("IMAP BODY[section].", cost=10)
    async def body_part(self, info: Info, section: str) -> str | None:
        return await contents.body_part(await self._stored(info), section)

    @field("Decoded, base64.", cost=10)
    async def binary_part(self, info: Info, section: str) -> str | None:
        return await contents.binary_part(await self._stored(info), section)

    @field("RFC 5322 text, base64 when not UTF-8.", cost=20)
    async def source(self, info: Info, max_bytes: int = 1048576) -> str:
        return await contents.source_text(await self._stored(info), max_bytes)

    @field("Whole message, byte for byte.", "user_id")
    def source_url(self, info: Info) -> URL:
        return parts.signed(info, parts.source_path(self.row.id), self.row.user_id)


async def message_page(
    info: Info,
    wanted: Wanted,
    *,
    users: Sequence[int],
    mailbox_id: int | None = None,
    thread_id: int | None = None,
) -> Connection[Message]:
    """A page of messages: with the columns that are asked for, and the links filled."""
    ctx = info.context
    where = wanted.filter.where(info) if wanted.filter else ALL
    # As it was written: what `ago` means has moved on when the next page is asked for.
    conditions = (users, wanted.filter) if len(users) > 1 else wanted.filter
    nothing = where.everything and len(users) == 1
    kind = ordering(wanted.order.ordering, None if nothing else conditions)
    ask = page_asked(kind, *wanted.page)
    names = columns(info, Message)
    listings = [Listing(user, ask, names, mailbox_id, thread_id, where) for user in users]
    if wanted.order is MessageOrder.RELEVANCE:
        page = await relevance.page(ctx, listings, ask)
    elif len(listings) == 1:
        page = await ctx.load(messages.pages, listings[0])
    else:
        page = await searches.across(ctx, listings)
    snippets.seek(ctx, page.rows, where)

    async def count() -> int:
        return sum(await ctx.load_all(messages.counts, listings))

    return await connected(
        info, Message, page, lambda row: Cursor(kind, row.received_at, row.id), count
    )


@strawberry.type
class MessageQuery:
    @query("One message, or null.", scope=Scope.MAIL_READ)
    async def message(
        self, info: Info, by: MessageRef, mark_as_seen: bool = False
    ) -> Message | None:
        ctx = info.context
        key = await message_of(info, by)
        row = await ctx.load(messages.by_ids, key) if key else None
        if row and mark_as_seen and not row.seen:
            messages.changeable(ctx)
            order = Order(Selection(ids=[row.id]), Changes.of({"seen": True}))
            await bulk.carry_out(ctx, order)
            row = await ctx.load(messages.by_ids, row.id)
        return Message.maybe(row)
