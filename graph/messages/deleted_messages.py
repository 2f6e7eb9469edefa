"""GraphQL types and mutations of deleted messages that can be restored."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.http import download_urls
from graph.messages.filter_inputs import MessageFilter
from graph.messages.mime_parts import ContentType, MailAddress
from graph.messages.types import Message
from graph.types.connections import Connection, OrderDirection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import MailboxRef, UserRef, keys_of, named, owner_named
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import URL, ByteSize
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import deleted_messages
from resolvers.messages import loaders as message_loaders
from resolvers.messages.deleted_messages import NEWEST, OLDEST, Listing, Span
from resolvers.messages.loaders import ALL
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.mailboxes.types import Mailbox
    from graph.messages.threads import Thread
    from graph.users.types import User

SHOWN = ("from_", "sender", "to", "cc", "bcc", "intro", "has_attachments", "content_type")


@strawberry.type(description="Deleted, recoverable.", directives=[Auth(scope=Scope.MAIL_READ)])
class ArchivedMessage(Shape):
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id", user_loaders.by_ids, shaped("graph.users.types", "User"), description="Owner."
    )
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] | None = link(
        "archived_mailbox_id",
        mailbox_loaders.by_ids,
        shaped("graph.mailboxes.types", "Mailbox"),
        description="Deleted from; null when gone.",
    )
    mailbox_path: str = leaf("Its path then.")
    thread: Annotated["Thread", strawberry.lazy("graph.messages.threads")] | None = link(
        "thread_id",
        message_loaders.threads_by_ids,
        shaped("graph.messages.threads", "Thread"),
        description="Conversation; null when none of it lies in a folder.",
    )
    from_: MailAddress | None = leaf("From.", name="from")
    sender: MailAddress | None = leaf("Sender, if different.")
    to: list[MailAddress] = leaf("To.")
    cc: list[MailAddress] = leaf("Cc.")
    bcc: list[MailAddress] = leaf("Bcc.")
    subject: str = leaf('Decoded, "" if none.')
    date: datetime | None = leaf("Date header.")
    received_at: datetime = leaf("Arrival.")
    size: ByteSize = leaf("Bytes as stored.")
    intro: str = leaf("First 128 bytes of text.")
    has_attachments: bool = leaf("Files attached.")
    attachment_count: int = leaf("How many files.")
    seen: bool = leaf(r"\Seen.")
    deleted: bool = leaf(r"\Deleted.")
    flagged: bool = leaf(r"\Flagged.")
    content_type: ContentType = leaf("Top content type.")
    archived_at: datetime = leaf("Deleted.")
    expires_at: datetime = leaf("Gone for good.")

    batch = staticmethod(deleted_messages.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        **{name: Message.made[name] for name in SHOWN},
        "id": identified("ArchivedMessage"),
        "mailbox_path": Made(("archived_from",), lambda path: path or ""),
        "expires_at": Made(("purge_at",), lambda at: at),
    }

    @field("Whole message.", "user_id")
    def source_url(self, info: Info) -> URL:
        return download_urls.signed(info, download_urls.archived_path(self.row.id), self.row)


async def archive_page(
    info: Info,
    user_id: int,
    filter: MessageFilter | None,
    order: OrderDirection,
    page: tuple[Any, Any, Any, Any],
) -> Connection[ArchivedMessage]:
    """Load a page of the deleted messages of a user.

    `page_arguments` are: first, after, last, before.
    """
    where = filter.where(info) if filter else ALL
    list_ordering = ordering(
        NEWEST if order is OrderDirection.DESC else OLDEST, None if where.everything else where
    )
    page_key = Listing(
        user_id, page_asked(list_ordering, *page), columns(info, ArchivedMessage), where
    )
    return await connected(
        info,
        ArchivedMessage,
        await info.context.load(deleted_messages.pages, page_key),
        lambda row: Cursor(list_ordering, row.archived_at, row.id),
        lambda: info.context.load(deleted_messages.counts, page_key),
    )


@strawberry.enum(description="Where deleted messages go when they come back.")
class ArchiveRestorePlace(StrEnum):
    ORIGINAL = "ORIGINAL"
    NEW_MAILBOX = "NEW_MAILBOX"


@strawberry.input(description="Input of archivedMessageRestore.")
class ArchivedMessageRestoreInput(Options):
    ids: list[strawberry.ID] = leaf("The messages.")
    mailbox: MailboxRef | None = leaf(
        "Into this folder. Default: where each was deleted from, or INBOX.", default=UNSET
    )


@strawberry.input(description="Input of archiveRestore.")
class ArchiveRestoreInput(Options):
    user: UserRef | None = leaf("Whose. Default: the viewer's.", default=UNSET)
    start: datetime = leaf("Deleted from here on.")
    end: datetime = leaf("Deleted up to here.")
    place: ArchiveRestorePlace = leaf(
        "Where each was, or INBOX where that is gone; or all into a folder such as "
        '"Restored (2030-01-01)", in the language of the user.',
        default=ArchiveRestorePlace.ORIGINAL,
    )


@strawberry.type(description="A message that came back.")
class RestoredMessage:
    mailbox: Annotated["Mailbox", strawberry.lazy("graph.mailboxes.types")] = leaf("Where it is.")
    message: Message = leaf("The message, with a new uid.")


@strawberry.type(description="Answer of archivedMessageRestore.")
class ArchivedMessageRestorePayload(MutationPayload):
    restored: list[RestoredMessage] = leaf("In the order of ids.", default_factory=list)


@strawberry.type(description="Work goes on in the background.")
class TaskPayload(MutationPayload):
    task: Task | None = leaf("What does it.", default=None)


@strawberry.type
class ArchiveMutation:
    @mutation("Brings deleted messages back, all or none.", scope=Scope.MAIL)
    async def archived_message_restore(
        self, info: Info, input: ArchivedMessageRestoreInput
    ) -> ArchivedMessageRestorePayload:
        ctx, keys = info.context, keys_of(info, "ArchivedMessage", input.ids)
        await deleted_messages.restore(ctx, keys, named(input.mailbox) if input.mailbox else None)
        rows = [row for row in await ctx.load_all(message_loaders.by_ids, keys) if row]
        mailbox_rows = await ctx.load_all(mailbox_loaders.by_ids, [row.mailbox_id for row in rows])
        mailbox_from_row = shaped("graph.mailboxes.types", "Mailbox")
        return ArchivedMessageRestorePayload(
            restored=[
                RestoredMessage(mailbox=mailbox_from_row(mailbox_row), message=Message.of(row))
                for row, mailbox_row in zip(rows, mailbox_rows, strict=True)
                if mailbox_row
            ]
        )

    @mutation("Brings back what was deleted in a time, by a task.", scope=Scope.MAIL)
    async def archive_restore(self, info: Info, input: ArchiveRestoreInput) -> TaskPayload:
        into_new_mailbox = input.place is ArchiveRestorePlace.NEW_MAILBOX
        owner = await owner_named(info, input.user)
        span = Span(input.start, input.end, owner, together=into_new_mailbox)
        return TaskPayload(task=Task.of(await deleted_messages.restore_span(info.context, span)))
