"""GraphQL types and query of stored messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.content_fields import Reading, Verification, intro_of
from graph.messages.filter_inputs import MessageOrder, Wanted
from graph.messages.mime_parts import Attachment, ContentType, MailAddress, MimePart
from graph.spam.spam_report import SpamReport
from graph.submission.delivery_status import ForwardTarget, Outbound, outbound_of
from graph.types import global_ids
from graph.types.connections import Connection, Paged, page_asked
from graph.types.errors import leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.object_views import Made, MaybeThreaded, View, Viewed, same
from graph.types.references import MessageRef, UserRef, message_of, owner_of
from graph.types.row_mapping import columns, identified, link, listed, shaped
from graph.types.scalars import URL, BigInt, ByteSize
from mail.addresses.address_syntax import normal
from mail.storage.message_content import is_large_tree
from mail.storage.message_flags import named_flags as flags_of
from models.files.blobs import StorageTier
from models.store.columns import Picked
from models.store.keyset_pages import Cursor, Page, ordering
from models.users.roles import Scope
from resolvers.filters import loaders as filter_loaders
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import labels
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.messages.bulk.bulk_changes import Order
from resolvers.messages.bulk.row_changes import Changes
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.loaders import ALL, Listing
from resolvers.search import relevance, search_scope, snippets
from resolvers.submission import delivery_status, file_attachments, message_forward
from resolvers.users import loaders as users

if TYPE_CHECKING:
    from graph.files.types import File
    from graph.filters.types import Filter
    from graph.mailboxes.types import Mailbox
    from graph.messages.labels import Label
    from graph.messages.threads import Thread
    from graph.users.types import User

FILTER = shaped("graph.filters.types", "Filter")


@strawberry.type(description="SMTP recipient.")
class EnvelopeRcpt:
    value: str = leaf("As given.")
    formatted: str = leaf("Normalized form.")

    @classmethod
    def of(cls, address: str) -> "EnvelopeRcpt":
        """Return the recipient of an envelope."""
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


def _people(column: str) -> Viewed:
    """Return a field that shows a column of name and address pairs."""
    return Viewed((column,), same, MailAddress, many=True)


def _from(name: str | None, address: str | None) -> tuple[str | None, str | None] | None:
    """Return the pair of name and address; None if both are empty."""
    return (name, address) if name or address else None


def _list(known: dict[str, Any] | None) -> ListInfo | None:
    """Return the stored mailing list fields; None if the message has none."""
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
    """Return the stored envelope; None if there is none."""
    if sender is None:
        return None
    return Envelope(from_=sender, rcpt=[EnvelopeRcpt.of(address) for address in recipients])


FLAGS = ("seen", "answered", "flagged", "deleted", "draft", "keywords")


@strawberry.type(description="Stored message.", directives=[Auth(scope=Scope.MAIL_READ)])
class Message(Reading):
    guid: str = leaf("128-bit id as 32 hex digits.")
    uid: BigInt = leaf("In its folder.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id", users.by_ids, shaped("graph.users.types", "User"), description="Owner."
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] = link(
        "mailbox_id",
        mailbox_loaders.by_ids,
        shaped("graph.mailboxes.types", "Mailbox"),
        description="Folder.",
    )
    thread: Annotated["Thread", strawberry.lazy("graph.messages.threads")] = link(
        "thread_id",
        message_loaders.threads_by_ids,
        shaped("graph.messages.threads", "Thread"),
        description="Conversation.",
        exists=True,
    )
    thread_id: strawberry.ID = leaf("Id of the conversation.")
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
    snoozed_until: datetime | None = leaf("In the folder SNOOZED until then.")
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
    tier: StorageTier = link(
        "blob_id", storage_tiers.of_blobs, lambda tier: tier, description="Where the body lies."
    )
    verification: Verification | None = leaf(
        "What the server found out where it came in; null = no statement."
    )
    spam: SpamReport | None = leaf("What scanners found; null = none has judged it.")
    outbound: list[Outbound] = link(
        "id",
        delivery_status.outbound,
        outbound_of,
        description="Where it stands on its way out, as often as it was sent; the oldest first.",
    )
    files: list[Annotated["File", strawberry.lazy("graph.files.types")]] = link(
        "id",
        file_attachments.of_drafts,
        lambda rows: [shaped("graph.files.types", "File")(row) for row in rows],
        description="Stored files that a draft was given.",
    )
    pop3_uidl: str = leaf("By which POP3 names it (RFC 1939): its guid.")

    batch = staticmethod(message_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Message"),
        "thread_id": Made(("thread_id",), global_ids.encoder("Thread")),
        "guid": Made(("id",), "{:032x}".format),
        "envelope": Made(("envelope_from", "envelope_to"), _envelope),
        "from_": Viewed(("from_name", "from_address"), _from, MailAddress),
        "sender": Viewed(("sender",), lambda pair: pair or None, MailAddress),
        "reply_to": _people("reply_to"),
        "to": _people("to"),
        "cc": _people("cc"),
        "bcc": _people("bcc"),
        "list_": Made(("mailing_list",), _list),
        "intro": Made(("preview",), intro_of),
        "flags": Made(FLAGS, flags_of),
        "forwarded": Made(("keywords",), lambda keywords: "$Forwarded" in keywords),
        "has_attachments": Made(("attachment_count",), lambda count: count > 0),
        "attachments": MaybeThreaded(
            ("attachments", "user_id"), Attachment.list_of, Attachment.has_many
        ),
        "structure": MaybeThreaded(("structure", "user_id"), MimePart.of, is_large_tree),
        "verification": Made(("verification",), Verification.maybe),
        "spam": Made(("spam",), SpamReport.maybe),
        "pop3_uidl": Made(("id",), "{:032x}".format),
        "content_type": Made(
            ("content_type", "content_params"),
            lambda kind, params: ContentType(value=kind, params=params),
        ),
    }

    @field("Those that acted on it as it came, in their order; not those that are gone.", "filters")
    async def filters(
        self, info: Info
    ) -> list[Annotated["Filter", strawberry.lazy("graph.filters.types")]]:
        rows = await info.context.load_all(filter_loaders.by_ids, self.row.filters or [])
        return [FILTER(row) for row in rows if row]

    @field(
        "Where it was sent on to as it came, by numbers that messageForward takes; only its owner "
        "sees any.",
        "forwarded_to",
        "user_id",
    )
    async def forward_targets(self, info: Info) -> list[ForwardTarget]:
        return [
            ForwardTarget.of(target) for target in message_forward.original(info.context, self.row)
        ]

    @field("Keywords that are labels, by name.", "keywords", "user_id")
    async def labels(
        self, info: Info
    ) -> list[Annotated["Label", strawberry.lazy("graph.messages.labels")]]:
        rows = await labels.of_message(info.context, self.row.user_id, self.row.keywords)
        return [shaped("graph.messages.labels", "Label")(row) for row in rows]


@strawberry.type(description="A term of a search text that is not valid, and was left out.")
class QueryProblem(View):
    term: str = leaf("The term as written. Empty if something is missing at the end.")
    position: int = leaf("Number of the first character of the term, from 1.")
    message: str = leaf("What is wrong, for people, in English.")


@strawberry.type(description="A page of a list of messages.")
class MessageConnection(Connection[Message]):
    query_problems: list[QueryProblem] = leaf(
        "Terms of the argument `query` that were left out because they are not valid, such as a "
        "quotation mark that is not closed yet, by position. If no term is valid, the list is "
        "empty."
    )

    made: ClassVar[Mapping[str, Made]] = {
        **Connection.made,
        "query_problems": Viewed((), lambda paged: paged.problems, QueryProblem, many=True),
    }


async def message_page(
    info: Info,
    wanted: Wanted,
    *,
    users: Sequence[int],
    mailbox_id: int | None = None,
    thread_id: int | None = None,
) -> MessageConnection:
    """Load a page of the messages of these users.

    Only the requested columns and links are loaded. Raises Invalid for a filter that is not valid.
    """
    ctx = info.context
    where = wanted.filter.where(info) if wanted.filter else ALL
    # Not `where`: the time that `ago` means is a later one when the next page is requested.
    conditions = (users, wanted.filter) if len(users) > 1 else wanted.filter
    is_whole_mailbox = where.everything and len(users) == 1
    order = wanted.order
    if wanted.problems and order is MessageOrder.RELEVANCE and not relevance.has_words(where):
        order = MessageOrder.RECEIVED_DESC  # the words may be in the terms that were left out
    list_ordering = ordering(order.ordering, None if is_whole_mailbox else conditions)
    requested_page = page_asked(list_ordering, *wanted.page)
    column_names = columns(info, Message)
    listings = [
        Listing(user_id, requested_page, column_names, mailbox_id, thread_id, where)
        for user_id in users
    ]
    if not listings:  # the selection has no user
        page: Page[Picked] = requested_page.page([])
    elif order is MessageOrder.RELEVANCE:
        page = await relevance.page(ctx, listings, requested_page)
    elif len(listings) == 1:
        page = await ctx.load(message_loaders.pages, listings[0])
    else:
        page = await search_scope.across(ctx, listings)
    snippets.seek(ctx, info.path, where)

    async def count() -> int:
        return sum(await ctx.load_all(message_loaders.counts, listings))

    messages = await listed(info, Message, page.rows)

    def place(row: Picked) -> Cursor:
        return Cursor(list_ordering, *listings[0].place_of(row))

    return MessageConnection.of(Paged(page, messages, place, count, wanted.problems))


@strawberry.type
class MessageQuery:
    @query("One message, or null.", scope=Scope.MAIL_READ)
    async def message(
        self,
        info: Info,
        by: MessageRef,
        mark_as_seen: bool = False,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description="The user whose message it is. Default: the signed-in user, or the "
                "owner of the message or folder that an id names."
            ),
        ] = UNSET,
    ) -> Message | None:
        ctx = info.context
        owner = await owner_of(info, user) if user else None
        if user and owner is None:
            return None
        key = await message_of(info, by, user_id=owner)
        row = await ctx.load(message_loaders.by_ids, key) if key else None
        if row and owner not in (None, row.user_id):
            return None
        if row and mark_as_seen and not row.seen:
            message_loaders.changeable(ctx)
            request = Order(Selection(ids=[row.id]), Changes.of({"seen": True}))
            await bulk_changes.carry_out(ctx, request)
            row = await ctx.load(message_loaders.by_ids, row.id)
        return Message.maybe(row)
