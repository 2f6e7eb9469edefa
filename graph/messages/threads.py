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
from graph.messages.types import MessageConnection, load_message_page
from graph.types import global_ids
from graph.types.connections import PageArguments
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import value_or_none
from graph.types.row_mapping import NodeView, global_id_field
from models.errors import InvalidInput
from models.users.roles import Scope
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

    @field("Oldest first.")
    async def messages(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> MessageConnection:
        request = MessageListRequest(
            None, MessageOrder.RECEIVED_ASC, PageArguments(first, after, None, None)
        )
        return await load_message_page(
            info, request, user_ids=[self.row.user_id], thread_id=self.row.id
        )


@strawberry.input(description="Input of threadUpdate.")
class ThreadUpdateInput(Options):
    ids: list[strawberry.ID] = attribute_field("Conversations, at most 250.")
    set: MessagePatch | None = attribute_field(
        "What to change on all their messages in folders.", default=UNSET
    )
    muted: bool | None = attribute_field(
        "Whether what is received from now on arrives read.", default=UNSET
    )


@strawberry.type(description="Answer of threadUpdate.")
class ThreadUpdatePayload(MutationPayload):
    threads: list[Thread] = attribute_field(
        "The conversations, as they are now.", default_factory=list
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)
    undo: UndoToken | None = attribute_field("Takes it back.", default=None)


@strawberry.type
class ThreadMutation:
    @mutation("Whole conversations: their messages, and whether they are muted.", scope=Scope.MAIL)
    async def thread_update(self, info: Info, input: ThreadUpdateInput) -> ThreadUpdatePayload:
        if not 0 < len(input.ids) <= threads.MAX_THREADS:
            text = f"one to {threads.MAX_THREADS} conversations"
            raise InvalidInput(text, constraint="range", path=["ids"])
        keys = [
            global_ids.decode("Thread", text, path="ids", index=index)
            for index, text in enumerate(input.ids)
        ]
        changes = input.set.to_changes() if input.set else None
        request = ThreadChangeRequest(keys, changes, value_or_none(input.muted))
        result = await threads.change_threads(info.context, request)
        rows = await info.context.load_many(
            message_loaders.load_visible_threads_by_ids, dict.fromkeys(keys)
        )
        return ThreadUpdatePayload(
            threads=[Thread.from_row(row) for row in rows if row],
            task=Task.from_row_or_none(result.task),
            undo=undo_token_of_result(result),
        )


@strawberry.type
class ThreadQuery:
    @query("One conversation.", scope=Scope.MAIL_READ)
    async def thread(self, info: Info, id: strawberry.ID) -> Thread | None:
        row = await info.context.load(
            message_loaders.load_visible_threads_by_ids, global_ids.decode("Thread", id)
        )
        return Thread.from_row_or_none(row)
