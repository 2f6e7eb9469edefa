"""GraphQL types and query of stored messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.content_fields import (
    MessageAuthentication,
    MessageContentFields,
    TlsInfo,
    received_tls_from_json,
    shortened_preview,
)
from graph.messages.filter_inputs import MessageListRequest, MessageOrder
from graph.messages.mime_parts import Attachment, ContentType, MailAddress, MimePart
from graph.spam.spam_report import SpamReport
from graph.submission.forward_targets import ForwardTarget
from graph.types import global_ids
from graph.types.connections import Connection, ConnectionSource, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.object_views import (
    DerivedField,
    NestedViewField,
    ThreadedIfLargeField,
    View,
    return_unchanged,
)
from graph.types.references import (
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    load_user_or_viewer_id,
)
from graph.types.row_mapping import (
    global_id_field,
    lazy_view_factory,
    link,
    objects_from_rows_with_links,
    selected_columns,
)
from graph.types.scalars import URL, BigInt, ByteSize
from mail.addresses.address_syntax import normalized_address
from mail.storage.message_flags import imap_flags_from_values as flags_of
from mail.storage.message_structure import is_large_structure
from models.files.blobs import StorageTier
from models.store.columns import ColumnRow
from models.store.keyset_pages import Cursor, Page, ordering_name
from models.users.roles import Scope
from resolvers.filters import loaders as filter_loaders
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import labels
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.row_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.loaders import ALL_MESSAGES, MessageListing
from resolvers.search import relevance, search_scope, snippets
from resolvers.submission import file_attachments, message_redirect
from resolvers.submission import loaders as submission_loaders
from resolvers.users import loaders as users

if TYPE_CHECKING:
    from graph.files.types import File
    from graph.filters.types import Filter
    from graph.mailboxes.types import Mailbox
    from graph.messages.labels import Label
    from graph.messages.threads import Thread
    from graph.submission.types import Submission
    from graph.users.types import User

filter_from_row = lazy_view_factory("graph.filters.types", "Filter")


@strawberry.type(description="SMTP recipient.")
class EnvelopeRecipient:
    value: str = attribute_field("As given.")
    formatted: str = attribute_field("Normalized form.")

    @classmethod
    def from_address(cls, address: str) -> "EnvelopeRecipient":
        """Return the recipient of an envelope."""
        return cls(value=address, formatted="@".join(normalized_address(address)))


@strawberry.type(description="SMTP envelope, when known.")
class Envelope:
    from_: str | None = attribute_field("MAIL FROM.", name="from")
    recipients: list[EnvelopeRecipient] = attribute_field("Recipients of the SMTP command RCPT TO.")


@strawberry.type(description="Mailing list headers.")
class MailingList:
    list_id: str | None = attribute_field("List-ID.")
    unsubscribe: str | None = attribute_field("List-Unsubscribe as written.")
    unsubscribe_url: URL | None = attribute_field("https address of it.")
    unsubscribe_one_click: bool = attribute_field("RFC 8058 works.")


def _addresses_field(column: str) -> NestedViewField:
    """Return a field that shows a column of name and address pairs."""
    return NestedViewField((column,), return_unchanged, MailAddress, is_list=True)


def _name_and_address(
    name: str | None, address: str | None
) -> tuple[str | None, str | None] | None:
    """Return the pair of name and address; None if both are empty."""
    return (name, address) if name or address else None


def _mailing_list_from_json(stored_list: dict[str, Any] | None) -> MailingList | None:
    """Return the stored mailing list fields; None if the message has none."""
    return (
        None
        if not stored_list
        else MailingList(
            list_id=stored_list["id"],
            unsubscribe=stored_list["unsubscribe"],
            unsubscribe_url=stored_list["url"],
            unsubscribe_one_click=stored_list["one_click"],
        )
    )


def _envelope_from_columns(sender: str | None, recipients: list[str]) -> Envelope | None:
    """Return the stored envelope; None if there is none."""
    if sender is None:
        return None
    return Envelope(
        from_=sender,
        recipients=[EnvelopeRecipient.from_address(address) for address in recipients],
    )


FLAG_COLUMNS = ("seen", "answered", "flagged", "deleted", "draft", "keywords")


@strawberry.type(description="Stored message.", directives=[Auth(scope=Scope.MAIL_READ)])
class Message(MessageContentFields):
    email_id: str = attribute_field(
        "EMAILID of the message (RFC 8474): 32 hexadecimal digits. It never changes."
    )
    uid: BigInt = attribute_field("In its folder.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Owner.",
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        lazy_view_factory("graph.mailboxes.types", "Mailbox"),
        description="Folder.",
    )
    thread: Annotated["Thread", strawberry.lazy("graph.messages.threads")] = link(
        "thread_id",
        message_loaders.load_visible_threads_by_ids,
        lazy_view_factory("graph.messages.threads", "Thread"),
        description="Conversation.",
        exists=True,
    )
    thread_id: strawberry.ID = attribute_field("Id of the conversation.")
    envelope: Envelope | None = attribute_field("SMTP envelope, if known.")
    from_: MailAddress | None = attribute_field("From.", name="from")
    sender: MailAddress | None = attribute_field("Sender, if different.")
    reply_to: list[MailAddress] = attribute_field("Reply-To.")
    to: list[MailAddress] = attribute_field("To.")
    cc: list[MailAddress] = attribute_field("Cc.")
    bcc: list[MailAddress] = attribute_field("Bcc, mostly drafts.")
    subject: str = attribute_field('Decoded, "" if none.')
    message_id: str | None = attribute_field("Message-ID.")
    in_reply_to: str | None = attribute_field("In-Reply-To.")
    references: list[str] = attribute_field("References.")
    date: datetime | None = attribute_field("Date header.")
    received_at: datetime = attribute_field("Arrival.")
    saved_at: datetime = attribute_field("Put into this folder.")
    expires_at: datetime | None = attribute_field(
        "The message is deleted automatically at this time. Null: never."
    )
    snoozed_until: datetime | None = attribute_field("In the folder SNOOZED until then.")
    mailing_list: MailingList | None = attribute_field(
        "Mailing list that the message came from, by its header fields List-ID (RFC 2919) and "
        "List-Unsubscribe (RFC 2369). Null if the message has none."
    )
    size: ByteSize = attribute_field("Bytes as stored.")
    preview: str = attribute_field("First 128 bytes of text.")
    flags: list[str] = attribute_field("All flags and keywords.")
    seen: bool = attribute_field(r"\Seen.")
    deleted: bool = attribute_field(r"\Deleted.")
    flagged: bool = attribute_field(r"\Flagged.")
    draft: bool = attribute_field(r"\Draft.")
    answered: bool = attribute_field(r"\Answered.")
    forwarded: bool = attribute_field("$Forwarded.")
    modseq: BigInt = attribute_field("Last change.")
    has_attachments: bool = attribute_field("Files attached.")
    attachment_count: int = attribute_field("How many files.")
    attachments: list[Attachment] = attribute_field("Files.")
    mime_structure: MimePart = attribute_field("MIME tree of the message.")
    content_type: ContentType = attribute_field("Top content type.")
    encrypted: bool = attribute_field("PGP or S/MIME.")
    metadata: JSON | None = attribute_field("Free data of the application.")
    tier: StorageTier = link(
        "blob_id",
        storage_tiers.load_storage_tiers,
        lambda tier: tier,
        description="Where the body lies.",
    )
    authentication: MessageAuthentication | None = attribute_field(
        "SPF, DKIM, DMARC and ARC results of the receiving server. Null: it made no statement."
    )
    received_tls: TlsInfo | None = attribute_field(
        "TLS of the session in which the message was received. Null: not encrypted, or unknown."
    )
    spam_report: SpamReport | None = attribute_field(
        "Results of the spam and virus filters. Null: no filter has scanned the message."
    )
    submissions: list[Annotated["Submission", strawberry.lazy("graph.submission.types")]] = link(
        "id",
        submission_loaders.load_own_submissions_by_message,
        lambda rows: [
            lazy_view_factory("graph.submission.types", "Submission")(row) for row in rows
        ],
        description="Submissions that sent this stored copy, oldest first. The list is empty for "
        "everybody but the account that sent the message.",
    )
    stored_files: list[Annotated["File", strawberry.lazy("graph.files.types")]] = link(
        "id",
        file_attachments.load_own_files_by_draft,
        lambda rows: [lazy_view_factory("graph.files.types", "File")(row) for row in rows],
        description="Stored files that are attached to a draft.",
    )
    pop3_uidl: str = attribute_field(
        "Unique id of the message in POP3 (RFC 1939). It equals `emailId`."
    )

    load_batch = staticmethod(message_loaders.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Message"),
        "metadata": DerivedField(("public_metadata",), return_unchanged),
        "thread_id": DerivedField(("thread_id",), global_ids.encoder("Thread")),
        "email_id": DerivedField(("id",), "{:032x}".format),
        "envelope": DerivedField(("envelope_from", "envelope_to"), _envelope_from_columns),
        "from_": NestedViewField(("from_name", "from_address"), _name_and_address, MailAddress),
        "sender": NestedViewField(("sender",), lambda pair: pair or None, MailAddress),
        "reply_to": _addresses_field("reply_to"),
        "to": _addresses_field("to"),
        "cc": _addresses_field("cc"),
        "bcc": _addresses_field("bcc"),
        "mailing_list": DerivedField(("mailing_list",), _mailing_list_from_json),
        "preview": DerivedField(("preview",), shortened_preview),
        "flags": DerivedField(FLAG_COLUMNS, flags_of),
        "forwarded": DerivedField(("keywords",), lambda keywords: "$Forwarded" in keywords),
        "has_attachments": DerivedField(("attachment_count",), lambda count: count > 0),
        "attachments": ThreadedIfLargeField(
            ("attachments", "user_id"), Attachment.list_from_message, Attachment.has_long_list
        ),
        "mime_structure": ThreadedIfLargeField(
            ("structure", "user_id"), MimePart.from_row, is_large_structure
        ),
        "authentication": DerivedField(("verification",), MessageAuthentication.from_json_or_none),
        "received_tls": DerivedField(("verification",), received_tls_from_json),
        "spam_report": DerivedField(("spam",), SpamReport.from_json_or_none),
        "pop3_uidl": DerivedField(("id",), "{:032x}".format),
        "content_type": DerivedField(
            ("content_type", "content_params"),
            lambda kind, params: ContentType(value=kind, params=params),
        ),
    }

    @field(
        "Filters that acted on the message when it was delivered, in their order. Deleted filters "
        "are left out.",
        "filters",
    )
    async def matched_filters(
        self, info: Info
    ) -> list[Annotated["Filter", strawberry.lazy("graph.filters.types")]]:
        rows = await info.context.load_many(
            filter_loaders.load_visible_by_ids, self.row.filters or []
        )
        return [filter_from_row(row) for row in rows if row]

    @field(
        "Targets that the message was forwarded to when it arrived. messageRedirect takes their "
        "numbers. The list is empty for everybody but the owner of the message.",
        "forwarded_to",
        "user_id",
    )
    async def forward_targets(self, info: Info) -> list[ForwardTarget]:
        return [
            ForwardTarget.from_target(target)
            for target in message_redirect.original_destinations(info.context, self.row)
        ]

    @field("Keywords that are labels, by name.", "keywords", "user_id")
    async def labels(
        self, info: Info
    ) -> list[Annotated["Label", strawberry.lazy("graph.messages.labels")]]:
        rows = await labels.labels_of_keywords(info.context, self.row.user_id, self.row.keywords)
        return [lazy_view_factory("graph.messages.labels", "Label")(row) for row in rows]


@strawberry.type(description="A term of a search text that is not valid, and was left out.")
class QueryProblem(View):
    term: str = attribute_field("The term as written. Empty if something is missing at the end.")
    position: int = attribute_field("Number of the first character of the term, from 1.")
    message: str = attribute_field("What is wrong, for people, in English.")


@strawberry.type(description="A page of a list of messages.")
class MessageConnection(Connection[Message]):
    query_problems: list[QueryProblem] = attribute_field(
        "Terms of the argument `query` that were left out because they are not valid, such as a "
        "quotation mark that is not closed yet, by position. If no term is valid, the list is "
        "empty."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **Connection.derived_fields,
        "query_problems": NestedViewField(
            (), lambda paged: paged.search_errors, QueryProblem, is_list=True
        ),
    }


async def load_message_page(
    info: Info,
    request: MessageListRequest,
    *,
    user_ids: Sequence[int],
    mailbox_id: int | None = None,
    thread_id: int | None = None,
) -> MessageConnection:
    """Load a page of the messages of these users.

    Only the requested columns and links are loaded. Raises Invalid for a filter that is not valid.
    """
    ctx = info.context
    where = request.filter.to_conditions(info) if request.filter else ALL_MESSAGES
    # Not `where`: the time that `ago` means is a later one when the next page is requested.
    conditions = (user_ids, request.filter) if len(user_ids) > 1 else request.filter
    is_whole_mailbox = where.is_empty and len(user_ids) == 1
    order = request.order
    if (
        request.query_problems
        and order is MessageOrder.RELEVANCE
        and not relevance.has_ranking_words(where)
    ):
        order = MessageOrder.RECEIVED_DESC  # the words may be in the terms that were left out
    list_ordering = ordering_name(order.cursor_ordering, None if is_whole_mailbox else conditions)
    requested_page = page_request(list_ordering, *request.page_arguments)
    column_names = selected_columns(info, Message)
    listings = [
        MessageListing(user_id, requested_page, column_names, mailbox_id, thread_id, where)
        for user_id in user_ids
    ]
    if not listings:  # the selection has no user
        page: Page[ColumnRow] = requested_page.page_from_rows([])
    elif order is MessageOrder.RELEVANCE:
        page = await relevance.read_page_by_relevance(ctx, listings, requested_page)
    elif len(listings) == 1:
        page = await ctx.load(message_loaders.load_pages, listings[0])
    else:
        page = await search_scope.read_combined_page(ctx, listings)
    snippets.remember_search_terms(ctx, info.path, where)

    async def count() -> int:
        return sum(await ctx.load_many(message_loaders.count_listings, listings))

    messages = await objects_from_rows_with_links(info, Message, page.rows)

    def cursor_of_row(row: ColumnRow) -> Cursor:
        return Cursor(list_ordering, *listings[0].cursor_values_of_row(row))

    return MessageConnection.from_row(
        ConnectionSource(page, messages, cursor_of_row, count, request.query_problems)
    )


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
        owner = await load_user_or_viewer_id(info, user) if user else None
        if user and owner is None:
            return None
        key = await find_unchecked_message_id(info, by, user_id=owner)
        row = await ctx.load(message_loaders.load_visible_by_ids, key) if key else None
        if row and owner not in (None, row.user_id):
            return None
        if row and mark_as_seen and not row.seen:
            message_loaders.require_can_change_messages(ctx)
            request = BulkRequest(
                MessageSelector(ids=[row.id]), FlagChanges.from_flag_names({"seen": True})
            )
            await bulk_changes.apply_bulk_request(ctx, request)
            row = await ctx.load(message_loaders.load_visible_by_ids, row.id)
        return Message.from_row_or_none(row)
