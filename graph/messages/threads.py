"""GraphQL types, query and mutation of threads."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task, UndoToken
from graph.mailboxes.types import Mailbox
from graph.messages.filter_inputs import MessageFilter, MessageListRequest
from graph.messages.inputs import MessagePatch
from graph.messages.message_order import MessageOrder
from graph.messages.mime_parts import MailAddress
from graph.messages.mutations import undo_token_of_result_or_none
from graph.messages.references import ThreadRef
from graph.messages.types import MessageConnection, load_message_page
from graph.types.connections import (
    Connection,
    PageArguments,
    connection_of_page,
    page_request,
)
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED, OWN
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value
from graph.types.row_mapping import NodeView, global_id_field
from graph.types.scalars import BigInt
from models.errors import InvalidInput
from models.store.keyset_pages import MAX_PAGE_SIZE, Cursor
from models.users.roles import AdminPermission, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.mailboxes import listing as mailbox_listing
from resolvers.messages import thread_loaders
from resolvers.messages.bulk import threads
from resolvers.messages.bulk.threads import ThreadChangeRequest


@strawberry.type(
    description="Thread: the messages of one conversation of a user.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class Thread(NodeView):
    subject: str | None = attribute_field(
        "Subject of the message that began the thread. For a caller with whom its owner shares "
        "messages of the thread: the subject of the first of these. Null with the error FORBIDDEN "
        "for any other administrator below ROOT who is not the owner."
    )
    message_count: BigInt = attribute_field(
        "Number of messages of the thread in all mailboxes that the caller can see."
    )
    unseen_count: BigInt = attribute_field(
        "Number of unread messages of the thread (without the flag \\Seen), in all mailboxes that "
        "the caller can see."
    )
    last_received_at: datetime = attribute_field(
        "Time when the newest message of the thread that the caller can see was received."
    )
    muted: bool = attribute_field(
        "True if new messages of the thread are stored with the flag \\Seen. New messages are "
        "those delivered, fetched by a connector as new mail, or released from the quarantine. "
        "Messages that clients and imports store keep their flags."
    )

    load_batch = staticmethod(thread_loaders.load_visible_threads_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Thread")}

    @field(
        "Senders of the messages of the thread that the caller can see. Each address is listed "
        "once, the first sender first: at most the first 250."
    )
    async def participants(self, info: Info) -> list[MailAddress]:
        pairs: Any = await info.context.load(thread_loaders.load_senders_of_threads, self.row.id)
        return [MailAddress.from_row(pair) for pair in pairs[:MAX_PAGE_SIZE]]

    @field(
        "Number of different sender addresses in the messages of the thread that the caller can "
        "see. It can exceed 250."
    )
    async def participant_count(self, info: Info) -> int:
        return len(await info.context.load(thread_loaders.load_senders_of_threads, self.row.id))

    @field(
        "Mailboxes that contain messages of the thread that the caller can see. The mailbox that "
        "was created first is the first item."
    )
    async def mailboxes(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Mailbox]:
        requested_page = page_request("thread-mailboxes", first, after, last, before)
        ids = await info.context.load(thread_loaders.load_mailbox_ids_of_threads, self.row.id)
        page = await mailbox_listing.load_page_of_visible_ids(info.context, ids, requested_page)

        async def count_mailboxes() -> int:
            return len(ids)

        return await connection_of_page(
            info,
            Mailbox,
            page,
            lambda row: Cursor(requested_page.ordering, row.id, row.id),
            count_mailboxes,
        )

    @field(
        "Messages of the thread in all mailboxes that the caller can see, without deleted "
        "messages. Default: oldest first."
    )
    async def messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: Annotated[
            MessageOrder,
            strawberry.argument(
                description=(
                    "Sort order of the messages. DATE, FROM, SIZE and SUBJECT are errors here. "
                    "RELEVANCE requires a filter with words. Default: RECEIVED_AT_ASC, oldest "
                    "first."
                )
            ),
        ] = MessageOrder.RECEIVED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(
            filter or None, order_by, PageArguments(first, after, last, before)
        )
        return await load_message_page(
            info, request, user_ids=[self.row.user_id], thread_id=self.row.id
        )


@strawberry.input(
    description=(
        "Changes to threads. `muted` belongs to the thread; every other field changes all its "
        "messages in mailboxes. An omitted field is unchanged. At least one change is required."
    )
)
class ThreadPatch(MessagePatch):
    muted: strawberry.Maybe[bool] = attribute_field(
        "True: new messages of the threads are stored with the flag \\Seen. False: without it. New "
        "messages are those delivered, fetched by a connector as new mail, or released from the "
        "quarantine."
    )


@strawberry.input(description="Input of threadUpdate.")
class ThreadUpdateInput(Options):
    threads: list[ThreadRef] = attribute_field(
        "Threads of the signed-in user, 1 to 250. Other numbers are the error VALIDATION. A thread "
        "without messages in mailboxes is NOT_FOUND."
    )
    set: ThreadPatch = attribute_field(
        "Values to change, the same for all threads. At least one value is required."
    )


@strawberry.type(description="Payload of threadUpdate.")
class ThreadsPayload(MutationPayload):
    threads: list[Thread] = attribute_field("Changed threads, each once.", default_factory=list)
    task: Task | None = attribute_field(
        "Task that changes the messages if there are more than 1,000 (by default). Null: they "
        "were changed at once, or the mutation failed.",
        default=None,
    )
    undo: UndoToken | None = attribute_field(
        "Token that takes the change back with the mutation `undo`, for 10 minutes by default. "
        "Null with `validateOnly`, and if a task changes the messages. Also null if `metadata` "
        "changes, and its former values have more than 1 MiB in total.",
        default=None,
    )


@strawberry.type
class ThreadMutation:
    @mutation(
        "Changes threads of the signed-in user: mutes them, or changes the flags, expiry, snooze "
        "or metadata of all their messages in mailboxes. All threads or none. Threads of other "
        "users are NOT_FOUND, also if their messages are shared. If the threads have more than "
        "1,000 messages (by default), a task changes the messages in the background, without "
        "undo; `muted` is set immediately. QUOTA_EXCEEDED if new `metadata` does not fit into the "
        "storage of the user. LIMIT_REACHED if a snooze needs a new mailbox, and the user has "
        "1,500 mailboxes (by default).",
        scope=Scope.MAIL,
        access=OWN,
    )
    async def thread_update(self, info: Info, input: ThreadUpdateInput) -> ThreadsPayload:
        if not 0 < len(input.threads) <= threads.MAX_THREADS:
            text = f"From 1 to {threads.MAX_THREADS} threads are required."
            raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=["threads"])
        keys = ids_from_refs(info, input.threads, "threads")
        changes = input.set.to_validated_changes()
        request = ThreadChangeRequest(keys, changes, maybe_value(input.set.muted))
        result = await threads.change_threads(info.context, request)
        rows = await info.context.load_many(
            thread_loaders.load_visible_threads_by_ids, dict.fromkeys(keys)
        )
        return ThreadsPayload(
            threads=[Thread.from_row(row) for row in rows if row],
            task=Task.from_row_or_none(result.task),
            undo=undo_token_of_result_or_none(result),
        )


@strawberry.type
class ThreadQuery:
    @query(
        "Returns one thread by ID. Of the thread of a user who only shares mailboxes with the "
        "caller, only the messages in mailboxes shared with the right READ are visible. Null if "
        "the caller can't see any message of the thread in a mailbox.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def thread(self, info: Info, by: ThreadRef) -> Thread | None:
        row = await info.context.load(
            thread_loaders.load_visible_threads_by_ids, id_from_ref(by, "by")
        )
        return Thread.from_row_or_none(row)
