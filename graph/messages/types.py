"""GraphQL types and query of stored messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.execution.documents.cost_limits import Cost
from graph.messages.authentication import (
    MessageAuthentication,
    TlsInfo,
    received_tls_from_json_or_none,
)
from graph.messages.content_fields import (
    MessageContentFields,
    shortened_preview,
)
from graph.messages.envelope_types import (
    Envelope,
    MailingList,
    addresses_field,
    envelope_from_columns_or_none,
    mailing_list_from_json_or_none,
    name_and_address,
)
from graph.messages.filter_inputs import MessageListRequest
from graph.messages.imap_fields import MessageImap
from graph.messages.mail_summary import MailSummary
from graph.messages.message_order import MessageOrder
from graph.messages.mime_parts import (
    READ_REFUSAL,
    Attachment,
    ContentType,
    MailAddress,
    MimePart,
)
from graph.spam.spam_report import SpamReport
from graph.submission.forward_targets import ForwardTarget
from graph.types import global_ids
from graph.types.connections import Connection, ConnectionSource, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.object_access import MANAGED
from graph.types.object_views import (
    DerivedField,
    NestedViewField,
    SameRowField,
    ThreadedIfLargeField,
    View,
    return_unchanged,
)
from graph.types.references import (
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    load_visible_user_id,
)
from graph.types.row_mapping import (
    global_id_field,
    lazy_view_factory,
    link,
    objects_from_rows_with_links,
    selected_columns,
)
from graph.types.scalars import ByteSize
from mail.storage.message_flags import is_forwarded
from mail.storage.message_structure import is_large_structure
from models.files.blobs import StorageTier
from models.store.columns import ColumnRow
from models.store.keyset_pages import Cursor, Page, ordering_name
from models.users.roles import AdminPermission, Scope
from resolvers.filters import loaders as filter_loaders
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import labels, thread_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import bulk_changes, storage_tiers
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.listing import ALL_MESSAGES, MessageListing
from resolvers.messages.order_access import require_sortable
from resolvers.search import relevance, search_scope, seen_order, snippets
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


@strawberry.type(
    description=(
        "Stored message in a mailbox. An administrator below ROOT can read the content of another "
        "user's message only with the share right READ in its mailbox. Otherwise subject, preview, "
        "attachments and all other fields with content are null with the error FORBIDDEN. A ROOT "
        "can read it; the security log of its owner then gets an entry."
    ),
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class Message(MessageContentFields, MailSummary):
    email_id: str = attribute_field(
        "ID of the message: 32 hexadecimal digits, in the form of an EMAILID (RFC 8474). It stays "
        "the same when the message moves within the account. A copy, or a move to another account, "
        "gets another ID. Unlike RFC 8474, a draft keeps its ID when its content changes."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description=(
            "User who owns the mailbox with the message. Null if another user shares the mailbox, "
            "and the caller can't see that account: see `Mailbox.owner`."
        ),
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] = link(
        "mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        lazy_view_factory("graph.mailboxes.types", "Mailbox"),
        description="Mailbox that contains the message.",
    )
    thread: Annotated["Thread", strawberry.lazy("graph.messages.threads")] = link(
        "thread_id",
        thread_loaders.load_visible_threads_by_ids,
        lazy_view_factory("graph.messages.threads", "Thread"),
        description="Thread that the message belongs to.",
        exists=True,
    )
    thread_id: strawberry.ID = attribute_field(
        "Global ID of the thread that the message belongs to."
    )
    envelope: Envelope | None = attribute_field(
        "Envelope of the SMTP transaction in which the message was received, or that it "
        "was sent with. Null if it is not known."
    )
    sender: MailAddress | None = attribute_field(
        "First address of the header field Sender. Null if it is missing or equals `from`."
    )
    reply_to: list[MailAddress] = attribute_field(
        "Addresses that replies go to, from the header field Reply-To. Empty: the message has "
        "none, and replies go to `from`. At most 10,000."
    )
    bcc: list[MailAddress] = attribute_field(
        "Addresses of the header field Bcc. It is usual only in drafts and sent messages. At "
        "most 10,000."
    )
    subject: str | None = attribute_field(
        f"Decoded subject of the message. Empty if it has none. {READ_REFUSAL}"
    )
    message_id_header: str | None = attribute_field(
        "Message-ID of the message (RFC 5322), in angle brackets. Null if it has none."
    )
    in_reply_to: str | None = attribute_field(
        "Message-ID of the message that this one answers: the first in the header field "
        "In-Reply-To. Null if it has none."
    )
    references: list[str] = attribute_field(
        "Message-IDs of the earlier messages of the conversation, from the header field "
        "References. At most the last 1,000."
    )
    saved_at: datetime = attribute_field(
        "Time when the message was added to its mailbox: SAVEDATE in IMAP (RFC 8514)."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the message is deleted automatically; it can then be restored for 25 days by "
        "default. Null: it does not expire."
    )
    snoozed_until: datetime | None = attribute_field(
        "Time when the message returns from the mailbox with the special use SNOOZED. Null: it is "
        "not snoozed."
    )
    mailing_list: MailingList | None = attribute_field(
        "Mailing list that the message came from, by its header fields List-ID (RFC 2919) and "
        "List-Unsubscribe (RFC 2369). Null if the message has none."
    )
    size: ByteSize = attribute_field(
        "Size of the message in bytes, before compression. `imap.size` is the size in IMAP, "
        "where each line ends with CRLF."
    )
    preview: str | None = attribute_field(
        "Beginning of the text of the message, at most 128 bytes in UTF-8. Empty without text. "
        f"{READ_REFUSAL}"
    )
    seen: bool = attribute_field(
        "True if the message has the flag \\Seen: it was read. False: it is unread."
    )
    flagged: bool = attribute_field("True if the message has the flag \\Flagged.")
    draft: bool = attribute_field("True if the message has the flag \\Draft.")
    answered: bool = attribute_field("True if the message has the flag \\Answered.")
    forwarded: bool = attribute_field("True if the message has the keyword $Forwarded.")
    imap: MessageImap = attribute_field(
        "Values of the message that IMAP defines, such as UID, MODSEQ and flags (RFC 9051).",
        directives=[Cost(weight=0)],
    )
    attachments: list[Attachment] | None = attribute_field(
        "Attachments and inline parts of the message, such as images that the HTML shows, in "
        "their order. At most 10,000 parts are read. "
        f"{READ_REFUSAL}"
    )
    mime_structure: MimePart | None = attribute_field(f"MIME tree of the message. {READ_REFUSAL}")
    content_type: ContentType = attribute_field("Media type and parameters of the whole message.")
    encrypted: bool = attribute_field("True if the content is encrypted with OpenPGP or S/MIME.")
    metadata: JSON | None = attribute_field(
        "JSON object that clients store with the message, at most 64 KiB "
        "by default. Null: there is none."
    )
    tier: StorageTier = link(
        "blob_id",
        storage_tiers.load_storage_tiers,
        lambda tier: tier,
        description="Storage tier of the body of the message.",
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
        submission_loaders.load_visible_submissions_by_message,
        lambda rows: [
            lazy_view_factory("graph.submission.types", "Submission")(row) for row in rows
        ],
        description="Submissions that sent this stored copy, oldest first: at most the last 250. "
        "Empty for everybody but the account that sent the message and the administrators who "
        "manage it.",
    )
    stored_files: list[Annotated["File", strawberry.lazy("graph.files.types")]] = link(
        "id",
        file_attachments.load_own_files_by_draft,
        lambda rows: [lazy_view_factory("graph.files.types", "File")(row) for row in rows],
        description=(
            "Stored files that `draftSave` attached to the draft with `addFiles`, in their order. "
            "The draft has their content as attachments. Empty for other messages, and for "
            "everybody but the owner. At most 250."
        ),
    )
    pop3_uidl: str = attribute_field(
        "Unique ID of the message in POP3 (RFC 1939). It equals `emailId`."
    )

    load_batch = staticmethod(message_loaders.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Message"),
        "metadata": DerivedField(("public_metadata",), return_unchanged),
        "message_id_header": DerivedField(("message_id",), return_unchanged),
        "thread_id": DerivedField(("thread_id",), global_ids.encoder("Thread")),
        "email_id": DerivedField(("id",), "{:032x}".format),
        "envelope": DerivedField(("envelope_from", "envelope_to"), envelope_from_columns_or_none),
        "from_": NestedViewField(("from_name", "from_address"), name_and_address, MailAddress),
        "sender": NestedViewField(("sender",), lambda pair: pair or None, MailAddress),
        "reply_to": addresses_field("reply_to"),
        "to": addresses_field("to"),
        "cc": addresses_field("cc"),
        "bcc": addresses_field("bcc"),
        "mailing_list": DerivedField(
            ("mailing_list", "authentication"), mailing_list_from_json_or_none
        ),
        "preview": DerivedField(("preview",), shortened_preview),
        "imap": SameRowField(MessageImap),
        "forwarded": DerivedField(("keywords",), is_forwarded),
        "has_attachments": DerivedField(("attachment_count",), lambda count: count > 0),
        "attachments": ThreadedIfLargeField(
            ("attachments", "user_id"), Attachment.list_from_message, Attachment.has_long_list
        ),
        "mime_structure": ThreadedIfLargeField(
            ("mime_structure", "user_id"), MimePart.from_row, is_large_structure
        ),
        "authentication": DerivedField(
            ("authentication",), MessageAuthentication.from_json_or_none
        ),
        "received_tls": DerivedField(("authentication",), received_tls_from_json_or_none),
        "spam_report": DerivedField(("spam_report",), SpamReport.from_json_or_none),
        "pop3_uidl": DerivedField(("id",), "{:032x}".format),
        "content_type": DerivedField(
            ("content_type", "content_params"),
            lambda kind, params: ContentType(value=kind, params=params),
        ),
    }

    @field(
        "Filters that acted on the message when it was delivered, in their order. Deleted "
        "filters, and those that the caller can't see, are missing. By default at most 400.",
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
        "Targets that the message was forwarded to when it was received. `messageRedirect` takes"
        " their numbers. Empty for everybody but the owner of the message. At most 250.",
        "forwarded_to",
        "user_id",
    )
    async def forward_targets(self, info: Info) -> list[ForwardTarget]:
        return [
            ForwardTarget.from_target(target)
            for target in message_redirect.original_destinations_if_viewer_is_owner(
                info.context, self.row
            )
        ]

    @field(
        "Labels of the message, sorted by name. Empty for everybody but the owner of the "
        "message. At most 64.",
        "keywords",
        "user_id",
    )
    async def labels(
        self, info: Info
    ) -> list[Annotated["Label", strawberry.lazy("graph.messages.labels")]]:
        rows = await labels.labels_of_keywords(info.context, self.row.user_id, self.row.keywords)
        return [lazy_view_factory("graph.messages.labels", "Label")(row) for row in rows]


@strawberry.type(description="A term of a search text that is not valid, and was left out.")
class QueryProblem(View):
    term: str = attribute_field("Text of the term. Empty if something is missing at the end.")
    position: int = attribute_field(
        "Position of the first character of the term in the search text, counted from 1."
    )
    message: str = attribute_field("Reason why the term is not valid, in English.")


@strawberry.type(description="A page of a list of messages.")
class MessageConnection(Connection[Message]):
    query_problems: list[QueryProblem] = attribute_field(
        "Terms of the argument `query` that are not valid and were left out, such as an unclosed "
        "quotation mark, by position. If no term is valid, the list of messages is empty."
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

    Only the requested columns and links are loaded. Raises InvalidInput for a filter that is not
    valid.
    """
    ctx = info.context
    where = request.filter.to_validated_conditions(info) if request.filter else ALL_MESSAGES
    # Not `where`: the time that `ago` means is a later one when the next page is requested.
    conditions = (user_ids, request.filter) if len(user_ids) > 1 else request.filter
    is_whole_mailbox = where.is_empty and len(user_ids) == 1
    order = request.order
    if (
        request.query_problems
        and order is MessageOrder.RELEVANCE
        and not relevance.has_ranking_words(where)
    ):
        order = MessageOrder.RECEIVED_AT_DESC  # the words may be in the terms that were left out
    list_ordering = ordering_name(order.cursor_ordering, None if is_whole_mailbox else conditions)
    requested_page = page_request(list_ordering, *request.page_arguments)
    column_names = selected_columns(info, Message)
    listings = [
        MessageListing(user_id, requested_page, column_names, mailbox_id, thread_id, where)
        for user_id in user_ids
    ]
    listings = await require_sortable(ctx, listings)
    if not listings:  # the selection has no user
        page: Page[ColumnRow] = requested_page.page_from_rows([])
    elif order is MessageOrder.RELEVANCE:
        page = await relevance.read_page_by_relevance(ctx, listings, requested_page)
    elif order.is_by_seen:
        page = await seen_order.read_page_by_seen(ctx, listings, requested_page)
    elif len(listings) == 1:
        page = await ctx.load(message_loaders.load_visible_message_pages, listings[0])
    else:
        page = await search_scope.read_and_merge_pages(ctx, listings)
    snippets.remember_search_terms(ctx, info.path, where)

    async def count() -> int:
        return sum(
            await ctx.load_many(message_loaders.count_visible_messages_of_listings, listings)
        )

    messages = await objects_from_rows_with_links(info, Message, page.rows)

    def cursor_of_row(row: ColumnRow) -> Cursor:
        if order.is_by_seen:
            return Cursor(list_ordering, *seen_order.cursor_values(listings[0], row))
        return Cursor(list_ordering, *listings[0].cursor_values_of_row(row))

    return MessageConnection.from_row(
        ConnectionSource(page, messages, cursor_of_row, count, request.query_problems)
    )


@strawberry.type
class MessageQuery:
    @query(
        "Returns one message in a mailbox. Null if it does not exist, is deleted, or the caller "
        "can't see it. Of a message of another user, only a ROOT and users with the share right "
        "READ in its mailbox see the content. For other administrators, fields with content are "
        "null with the error FORBIDDEN. A read by a ROOT is written to the security log of the "
        "owner.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def message(
        self,
        info: Info,
        by: MessageRef,
        mark_as_seen: Annotated[
            bool,
            strawberry.argument(
                description=(
                    "True also sets the flag \\Seen of an unread message. This requires the scope "
                    "MAIL, a credential that is not read-only, and the right SEEN if another user "
                    "shares the mailbox. Without them the result is null with the error FORBIDDEN. "
                    "Default: false."
                )
            ),
        ] = False,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description=(
                    "User who owns the message. If another user owns it, or the caller can't see "
                    "this user, the result is null. Default: the signed-in user, or the owner of "
                    "the message or mailbox that an ID or EMAILID names."
                )
            ),
        ] = UNSET,
    ) -> Message | None:
        ctx = info.context
        owner = await load_visible_user_id(info, user) if user else None
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
            await bulk_changes.apply_or_queue_bulk_request(ctx, request)
            row = await ctx.load(message_loaders.load_visible_by_ids, row.id)
        return Message.from_row_or_none(row)
