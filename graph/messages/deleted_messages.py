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
from graph.messages.mail_summary import MailSummary
from graph.messages.mime_parts import ContentType, MailAddress
from graph.messages.selection_input import decode_selected_ids
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
from graph.types.object_access import MANAGED
from graph.types.object_views import DerivedField, return_unchanged
from graph.types.references import (
    MailboxRef,
    UserRef,
    mailbox_selector_from_ref,
    require_visible_user_id_if_named,
)
from graph.types.row_mapping import (
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL
from models.errors import InvalidInput
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.list_orders import SortColumn, list_orders
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import deleted_messages, thread_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.messages.deleted_messages import (
    NEWEST_FIRST,
    OLDEST_FIRST,
    DeletedMessageListing,
    DeletionPeriod,
)
from resolvers.messages.listing import ALL_MESSAGES
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


@strawberry.type(
    description="Message that was deleted and can be restored until `expiresAt`.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class DeletedMessage(MailSummary):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who owns the message. Null only if the account is deleted during the "
        "request.",
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] | None = link(
        "deleted_mailbox_id",
        mailbox_loaders.load_visible_by_ids,
        lazy_view_factory("graph.mailboxes.types", "Mailbox"),
        description="Mailbox that the message was deleted from. Null if the mailbox no longer "
        "exists.",
    )
    mailbox_path: str | None = attribute_field(
        "Path of the mailbox that the message was deleted from, at the time of the deletion. Null "
        "if it is not known."
    )
    thread: Annotated["Thread", strawberry.lazy("graph.messages.threads")] | None = link(
        "thread_id",
        thread_loaders.load_visible_threads_by_ids,
        lazy_view_factory("graph.messages.threads", "Thread"),
        description="Thread that the message belongs to. Null if no message of the thread is in a "
        "mailbox.",
    )
    sender: MailAddress | None = attribute_field(
        "First address of the header field Sender. Null if it is missing or equals `from`."
    )
    subject: str | None = attribute_field(
        "Decoded subject of the message. Empty if it has none. For an administrator with a role "
        "below ROOT who is not the owner, null with the error FORBIDDEN."
    )
    preview: str | None = attribute_field(
        "Beginning of the text of the message, at most 128 bytes in UTF-8. For an administrator "
        "with a role below ROOT who is not the owner, null with the error FORBIDDEN."
    )
    seen: bool = attribute_field(
        "True if the message has the flag \\Seen: it was read. False: it is unread."
    )
    deleted: bool = attribute_field(
        "True if the message had the flag \\Deleted. A restored message does not have it."
    )
    flagged: bool = attribute_field("True if the message has the flag \\Flagged.")
    content_type: ContentType = attribute_field("Media type and parameters of the whole message.")
    deleted_at: datetime = attribute_field("Time when the message was deleted.")
    expires_at: datetime | None = attribute_field(
        "Time when the message is deleted for good. Default: 25 days after its deletion. It is "
        "never null: only its type is that of `Message.expiresAt`."
    )

    load_batch = staticmethod(deleted_messages.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **{name: Message.derived_fields[name] for name in MESSAGE_FIELDS},
        "id": global_id_field("DeletedMessage"),
        "mailbox_path": DerivedField(("deleted_from",), return_unchanged),
        "expires_at": DerivedField(("purge_at",), return_unchanged),
    }

    @field(
        "Signed URL that downloads the whole message, byte for byte. It is valid for 15 to 20 "
        "minutes, but not longer than the credential of the request. For an administrator with a "
        "role below ROOT who is not the owner, null with the error FORBIDDEN.",
        "user_id",
        can_fail=True,
    )
    def source_url(self, info: Info) -> URL:
        return download_urls.require_readable_and_sign_download_url(
            info, download_urls.deleted_message_path(self.row.id), self.row
        )


@strawberry.enum(description="Order of a list of deleted messages.")
class DeletedMessageOrder(StrEnum):
    DELETED_AT_DESC = "DELETED_AT_DESC"
    DELETED_AT_ASC = "DELETED_AT_ASC"


LIST_ORDERS = list_orders(DeletedMessageOrder, {"DELETED_AT": SortColumn("deleted_at", datetime)})


async def load_deleted_message_page(
    info: Info,
    user_id: int,
    filter: MessageFilter | None,
    order: DeletedMessageOrder,
    page_arguments: PageArguments,
) -> Connection[DeletedMessage]:
    """Load a page of the deleted messages of a user."""
    conditions = filter.to_validated_conditions(info) if filter else ALL_MESSAGES
    list_order = LIST_ORDERS[order]
    list_ordering = ordering_name(
        NEWEST_FIRST if list_order.is_descending else OLDEST_FIRST,
        None if conditions.is_empty else conditions,
    )
    page_key = DeletedMessageListing(
        user_id,
        page_request(list_ordering, *page_arguments),
        list_order,
        selected_columns(info, DeletedMessage),
        conditions,
    )
    return await connection_of_page(
        info,
        DeletedMessage,
        await info.context.load(deleted_messages.load_visible_deleted_message_pages, page_key),
        lambda row: list_order.cursor_of_row(row, list_ordering),
        lambda: info.context.load(deleted_messages.count_visible_deleted_messages, page_key),
    )


@strawberry.enum(description="Mailbox that restored messages are put into.")
class RestoreDestination(StrEnum):
    ORIGINAL = "ORIGINAL"
    NEW_MAILBOX = "NEW_MAILBOX"


@strawberry.input(description="Period in which messages were deleted.")
class DeletionPeriodInput:
    since: datetime = attribute_field("Selects messages that were deleted at this time or later.")
    before: datetime = attribute_field(
        "Selects messages that were deleted before this time. It must be later than `since`."
    )


@strawberry.input(
    one_of=True, description="Selection of deleted messages: by ID, or by the time of deletion."
)
class DeletedMessageSelection:
    ids: strawberry.Maybe[list[strawberry.ID]] = attribute_field(
        "Global IDs of deleted messages, at most 1,000. A draft, a message whose retention has "
        "ended, or one that the caller can't see is NOT_FOUND. An empty list restores no message."
    )
    period: strawberry.Maybe[DeletionPeriodInput] = attribute_field(
        "Selects all messages of the user that were deleted in a period, without drafts. A task "
        "restores them. A period that ends later than now ends now."
    )


@strawberry.input(description="Input of deletedMessageRestore.")
class DeletedMessageRestoreInput(Options):
    select: DeletedMessageSelection = attribute_field("Deleted messages to restore.")
    user: UserRef | None = attribute_field(
        "User whose messages of a period are restored. With `select.ids` it is the error "
        "VALIDATION: these messages return to their owners. Default: the signed-in user.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox of each owner that gets the messages selected by ID. An owner without it is "
        "NOT_FOUND. With `select.period` it is the error VALIDATION. Default: that of "
        "`destination`.",
        default=UNSET,
    )
    destination: RestoreDestination = attribute_field(
        "Kind of the mailbox that gets the messages, if `mailbox` is not given. NEW_MAILBOX "
        "requires `select.period`. Default: ORIGINAL, the mailbox that each message was deleted "
        "from, else the one with its path, else INBOX. Snoozed messages return to INBOX.",
        default=RestoreDestination.ORIGINAL,
    )

    def require_fitting_selection(self) -> None:
        """Raise InvalidInput for a member that this kind of selection does not use."""
        has_ids = bool(self.select.ids)
        unused = {
            "user": bool(self.user) and has_ids,
            "mailbox": bool(self.mailbox) and not has_ids,
            "destination": has_ids and self.destination is RestoreDestination.NEW_MAILBOX,
        }
        for name, is_unused in unused.items():
            if is_unused:
                needed = "period" if has_ids else "ids"
                text = f"Requires `select.{needed}`."
                raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=[name])


@strawberry.type(description="Message that was restored, and its mailbox.")
class RestoredMessage:
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] = attribute_field(
        "Mailbox that contains the restored message."
    )
    message: Message = attribute_field("Restored message. It has a new UID.")


@strawberry.type(description="Payload of deletedMessageRestore.")
class DeletedMessageRestorePayload(MutationPayload):
    restored: list[RestoredMessage] = attribute_field(
        "Restored messages, in the order of the input. Empty if a task restores them.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that restores the messages of a period; it belongs to the user whose messages they "
        "are. Null if messages were selected by ID, or if the mutation failed.",
        default=None,
    )


@strawberry.type
class ArchiveMutation:
    @mutation(
        "Restores deleted messages to mailboxes. They get new UIDs, expire by the retention of "
        "the mailbox, and lose the flag \\Deleted. Only their owners and administrators can "
        "restore them, not users with whom the mailbox is shared. Messages selected by ID are "
        "restored at once, all or none. QUOTA_EXCEEDED if they do not fit into the storage of an "
        "owner. For a period, the mutation starts a task. If the storage becomes full, the task "
        "fails, and messages restored before stay.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def deleted_message_restore(
        self, info: Info, input: DeletedMessageRestoreInput
    ) -> DeletedMessageRestorePayload:
        ctx = info.context
        input.require_fitting_selection()
        if input.select.period:
            return DeletedMessageRestorePayload(
                task=await _queue_restore_of_period(info, input, input.select.period.value)
            )
        ids = input.select.ids.value if input.select.ids else []
        keys = decode_selected_ids("DeletedMessage", ids, "`period`")
        mailbox = mailbox_selector_from_ref(input.mailbox) if input.mailbox else None
        await deleted_messages.restore_deleted_messages(ctx, keys, mailbox)
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


async def _queue_restore_of_period(
    info: Info, restore_input: DeletedMessageRestoreInput, selected: DeletionPeriodInput
) -> Task:
    """Queue the task that restores the messages of the selected period."""
    owner = await require_visible_user_id_if_named(info, restore_input.user)
    into_new_mailbox = restore_input.destination is RestoreDestination.NEW_MAILBOX
    period = DeletionPeriod(
        selected.since, selected.before, owner, into_new_mailbox=into_new_mailbox
    )
    task_row = await deleted_messages.queue_restore_of_period(info.context, period)
    return Task.from_row(task_row)
