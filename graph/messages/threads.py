"""GraphQL types, query and mutation of threads."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task, UndoToken
from graph.mailboxes.types import Mailbox
from graph.messages.filter_inputs import MessageListRequest, MessageOrder
from graph.messages.mime_parts import MailAddress
from graph.messages.mutations import MessagePatch, undo_token_of_result
from graph.messages.references import ThreadRef
from graph.messages.types import MessageConnection, load_message_page
from graph.types.connections import PageArguments
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value
from graph.types.row_mapping import NodeView, global_id_field
from models.errors import InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import threads
from resolvers.messages.bulk.threads import ThreadChangeRequest


@strawberry.type(description="Conversation.", directives=[Auth(scope=Scope.MAIL_READ)])
class Thread(NodeView):
    subject: str = attribute_field("Of its first message.")
    message_count: int = attribute_field("Messages in it.")
    unseen_count: int = attribute_field("Unread messages.")
    last_received_at: datetime = attribute_field("Newest message.")
    muted: bool = attribute_field("What is received of it arrives read.")

    load_batch = staticmethod(message_loaders.load_visible_threads_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Thread")}

    @field("People in it, the first first.")
    async def participants(self, info: Info) -> list[MailAddress]:
        pairs: Any = await info.context.load(message_loaders.load_senders_of_threads, self.row.id)
        return [MailAddress.from_row(pair) for pair in pairs]

    @field("Folders it has messages in.")
    async def mailboxes(self, info: Info) -> list[Mailbox]:
        keys = await info.context.load(message_loaders.load_mailbox_ids_of_threads, self.row.id)
        rows = await info.context.load_many(mailbox_loaders.load_visible_by_ids, keys)
        return [Mailbox.from_row(row) for row in rows if row]

    @field("Messages of the thread in folders.")
    async def messages(
        self,
        info: Info,
        order_by: MessageOrder = MessageOrder.RECEIVED_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(None, order_by, PageArguments(first, after, last, before))
        return await load_message_page(
            info, request, user_ids=[self.row.user_id], thread_id=self.row.id
        )


@strawberry.input(
    description="Changes of threads. `muted` belongs to the thread; every other field is set on "
    "all its messages in folders. An absent field leaves the value."
)
class ThreadPatch(MessagePatch):
    muted: strawberry.Maybe[bool] = attribute_field(
        "True: new messages of the thread are stored as read."
    )


@strawberry.input(description="Input of threadUpdate.")
class ThreadUpdateInput(Options):
    threads: list[ThreadRef] = attribute_field("The threads to change, at most 250.")
    set: ThreadPatch = attribute_field("New values.")


@strawberry.type(description="Response of threadUpdate.")
class ThreadsPayload(MutationPayload):
    threads: list[Thread] = attribute_field("The threads, each once.", default_factory=list)
    task: Task | None = attribute_field(
        "Task that changes the messages. Null if they are changed at once.", default=None
    )
    undo: UndoToken | None = attribute_field("Token that undoes the change.", default=None)


@strawberry.type
class ThreadMutation:
    @mutation("Changes whole threads and all their messages in folders.", scope=Scope.MAIL)
    async def thread_update(self, info: Info, input: ThreadUpdateInput) -> ThreadsPayload:
        if not 0 < len(input.threads) <= threads.MAX_THREADS:
            text = f"one to {threads.MAX_THREADS} threads"
            raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=["threads"])
        keys = ids_from_refs(info, input.threads, "threads")
        changes = input.set.to_changes()
        request = ThreadChangeRequest(keys, changes, maybe_value(input.set.muted))
        result = await threads.change_threads(info.context, request)
        rows = await info.context.load_many(
            message_loaders.load_visible_threads_by_ids, dict.fromkeys(keys)
        )
        return ThreadsPayload(
            threads=[Thread.from_row(row) for row in rows if row],
            task=Task.from_row_or_none(result.task),
            undo=undo_token_of_result(result),
        )


@strawberry.type
class ThreadQuery:
    @query("One thread. Null if it doesn't exist.", scope=Scope.MAIL_READ)
    async def thread(self, info: Info, by: ThreadRef) -> Thread | None:
        row = await info.context.load(
            message_loaders.load_visible_threads_by_ids, id_from_ref(by, "by")
        )
        return Thread.from_row_or_none(row)
