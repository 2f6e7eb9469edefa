"""GraphQL types and mutations of deleted messages that can be restored."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.http import download_urls
from graph.messages.filter_inputs import MessageFilter
from graph.messages.mime_parts import ContentType, MailAddress
from graph.messages.references import DeletedMessageRef
from graph.messages.types import Message
from graph.types.connections import (
    Connection,
    PageArguments,
    connection_of_page,
    page_request,
)
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.mutations import mutation
from graph.types.object_references import ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_named_user_id,
    mailbox_selector_from_ref,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, ByteSize
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import deleted_messages
from resolvers.messages import loaders as message_loaders
from resolvers.messages.deleted_messages import (
    NEWEST_FIRST,
    OLDEST_FIRST,
    DeletedMessageListing,
    DeletionPeriod,
)
from resolvers.messages.loaders import ALL_MESSAGES
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.mailboxes.types import Mailbox
    from graph.messages.threads import Thread
    from graph.users.types import User

MESSAGE_FIELDS = (
    "from_",
    "sender",
    "to",
    "cc",
    "bcc",
    "preview",
    "has_attachments",
    "content_type",
)


@strawberry.type(description="Deleted, recoverable.", directives=[Auth(scope=Scope.MAIL_READ)])
class DeletedMessage(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Owner.",
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] | None = link(
        "deleted_mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        lazy_view_factory("graph.mailboxes.types", "Mailbox"),
        description="Deleted from; null when gone.",
    )
    mailbox_path: str = attribute_field("Its path then.")
    thread: Annotated["Thread", strawberry.lazy("graph.messages.threads")] | None = link(
        "thread_id",
        message_loaders.load_visible_threads_by_ids,
        lazy_view_factory("graph.messages.threads", "Thread"),
        description="Conversation; null when none of it lies in a folder.",
    )
    from_: MailAddress | None = attribute_field("From.", name="from")
    sender: MailAddress | None = attribute_field("Sender, if different.")
    to: list[MailAddress] = attribute_field("To.")
    cc: list[MailAddress] = attribute_field("Cc.")
    bcc: list[MailAddress] = attribute_field("Bcc.")
    subject: str = attribute_field('Decoded, "" if none.')
    date: datetime | None = attribute_field("Date header.")
    received_at: datetime = attribute_field("Arrival.")
    size: ByteSize = attribute_field("Bytes as stored.")
    preview: str = attribute_field("First 128 bytes of text.")
    has_attachments: bool = attribute_field("Files attached.")
    attachment_count: int = attribute_field("How many files.")
    seen: bool = attribute_field(r"\Seen.")
    deleted: bool = attribute_field(r"\Deleted.")
    flagged: bool = attribute_field(r"\Flagged.")
    content_type: ContentType = attribute_field("Top content type.")
    deleted_at: datetime = attribute_field("Deleted.")
    expires_at: datetime = attribute_field("Gone for good.")

    load_batch = staticmethod(deleted_messages.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **{name: Message.derived_fields[name] for name in MESSAGE_FIELDS},
        "id": global_id_field("DeletedMessage"),
        "mailbox_path": DerivedField(("deleted_from",), lambda path: path or ""),
        "expires_at": DerivedField(("purge_at",), lambda at: at),
    }

    @field("Whole message.", "user_id")
    def source_url(self, info: Info) -> URL:
        return download_urls.signed_download_url(
            info, download_urls.deleted_message_path(self.row.id), self.row
        )


@strawberry.enum(description="Order of a list of deleted messages.")
class DeletedMessageOrder(StrEnum):
    DELETED_DESC = "DELETED_DESC"
    DELETED_ASC = "DELETED_ASC"


async def load_deleted_message_page(
    info: Info,
    user_id: int,
    filter: MessageFilter | None,
    order: DeletedMessageOrder,
    page_arguments: PageArguments,
) -> Connection[DeletedMessage]:
    """Load a page of the deleted messages of a user."""
    conditions = filter.to_conditions(info) if filter else ALL_MESSAGES
    list_ordering = ordering_name(
        NEWEST_FIRST if order is DeletedMessageOrder.DELETED_DESC else OLDEST_FIRST,
        None if conditions.is_empty else conditions,
    )
    page_key = DeletedMessageListing(
        user_id,
        page_request(list_ordering, *page_arguments),
        selected_columns(info, DeletedMessage),
        conditions,
    )
    return await connection_of_page(
        info,
        DeletedMessage,
        await info.context.load(deleted_messages.load_pages, page_key),
        lambda row: Cursor(list_ordering, row.deleted_at, row.id),
        lambda: info.context.load(deleted_messages.count_listings, page_key),
    )


@strawberry.enum(description="Where deleted messages go when they come back.")
class RestoreDestination(StrEnum):
    ORIGINAL = "ORIGINAL"
    NEW_MAILBOX = "NEW_MAILBOX"


@strawberry.input(description="Input of deletedMessageRestore.")
class DeletedMessageRestoreInput(Options):
    deleted_messages: list[DeletedMessageRef] = attribute_field("The deleted messages to restore.")
    mailbox: MailboxRef | None = attribute_field(
        "Into this folder. Default: where each was deleted from, or INBOX.", default=UNSET
    )


@strawberry.input(description="Input of deletedMessagesRestore.")
class DeletedMessagesRestoreInput(Options):
    user: UserRef | None = attribute_field("Whose. Default: the viewer's.", default=UNSET)
    since: datetime = attribute_field("Restores messages deleted at this time or later.")
    before: datetime = attribute_field("Restores messages deleted before this time.")
    destination: RestoreDestination = attribute_field(
        "Where each was, or INBOX where that is gone; or all into a folder such as "
        '"Restored (2030-01-01)", in the language of the user.',
        default=RestoreDestination.ORIGINAL,
    )


@strawberry.type(description="A message that came back.")
class RestoredMessage:
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] = attribute_field(
        "Where it is."
    )
    message: Message = attribute_field("The message, with a new uid.")


@strawberry.type(description="Answer of deletedMessageRestore.")
class DeletedMessageRestorePayload(MutationPayload):
    restored: list[RestoredMessage] = attribute_field(
        "The restored messages, in the order of the input.", default_factory=list
    )


@strawberry.type(description="Payload of a mutation that starts a task.")
class TaskPayload(MutationPayload):
    task: Task | None = attribute_field("Task that does the work.", default=None)


@strawberry.type
class ArchiveMutation:
    @mutation("Brings deleted messages back, all or none.", scope=Scope.MAIL)
    async def deleted_message_restore(
        self, info: Info, input: DeletedMessageRestoreInput
    ) -> DeletedMessageRestorePayload:
        ctx = info.context
        keys = ids_from_refs(info, input.deleted_messages, "deletedMessages")
        mailbox = mailbox_selector_from_ref(input.mailbox) if input.mailbox else None
        await deleted_messages.restore_messages(ctx, keys, mailbox)
        rows = [
            row for row in await ctx.load_many(message_loaders.load_visible_by_ids, keys) if row
        ]
        mailbox_rows = await ctx.load_many(
            mailbox_loaders.load_visible_by_ids, [row.mailbox_id for row in rows]
        )
        mailbox_from_row = lazy_view_factory("graph.mailboxes.types", "Mailbox")
        return DeletedMessageRestorePayload(
            restored=[
                RestoredMessage(
                    mailbox=mailbox_from_row(mailbox_row), message=Message.from_row(row)
                )
                for row, mailbox_row in zip(rows, mailbox_rows, strict=True)
                if mailbox_row
            ]
        )

    @mutation("Brings back what was deleted in a time, by a task.", scope=Scope.MAIL)
    async def deleted_messages_restore(
        self, info: Info, input: DeletedMessagesRestoreInput
    ) -> TaskPayload:
        into_new_mailbox = input.destination is RestoreDestination.NEW_MAILBOX
        owner = await load_named_user_id(info, input.user)
        span = DeletionPeriod(input.since, input.before, owner, into_new_mailbox=into_new_mailbox)
        return TaskPayload(
            task=Task.from_row(await deleted_messages.queue_restore_of_period(info.context, span))
        )
