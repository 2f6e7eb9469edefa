"""GraphQL types, query and mutation of threads."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task, UndoToken
from graph.mailboxes.types import Mailbox
from graph.messages.filter_inputs import MessageOrder, Wanted
from graph.messages.mime_parts import MailAddress
from graph.messages.mutations import MessageChanges, undo_token
from graph.messages.types import MessageConnection, message_page
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import plain
from graph.types.row_mapping import Shape, identified
from models.errors import Invalid
from models.users.roles import Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import threads
from resolvers.messages.bulk.threads import ThreadOrder


@strawberry.type(description="Conversation.", directives=[Auth(scope=Scope.MAIL_READ)])
class Thread(Shape):
    subject: str = leaf("Of its first message.")
    message_count: int = leaf("Messages in it.")
    unseen_count: int = leaf("Unread messages.")
    last_received_at: datetime = leaf("Newest message.")
    muted: bool = leaf("What is received of it arrives read.")

    batch = staticmethod(message_loaders.threads_by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Thread")}

    @field("People in it, the first first.")
    async def participants(self, info: Info) -> list[MailAddress]:
        pairs: Any = await info.context.load(message_loaders.people_of, self.row.id)
        return [MailAddress.of(pair) for pair in pairs]

    @field("Folders it has messages in.")
    async def mailboxes(self, info: Info) -> list[Mailbox]:
        keys = await info.context.load(message_loaders.places_of, self.row.id)
        rows = await info.context.load_all(mailbox_loaders.by_ids, keys)
        return [Mailbox.of(row) for row in rows if row]

    @field("Oldest first.")
    async def messages(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> MessageConnection:
        request = Wanted(None, MessageOrder.RECEIVED_ASC, (first, after, None, None))
        return await message_page(info, request, users=[self.row.user_id], thread_id=self.row.id)


@strawberry.input(description="Input of threadUpdate.")
class ThreadUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Conversations, at most 250.")
    set: MessageChanges | None = leaf(
        "What to change on all their messages in folders.", default=UNSET
    )
    muted: bool | None = leaf("Whether what is received from now on arrives read.", default=UNSET)


@strawberry.type(description="Answer of threadUpdate.")
class ThreadUpdatePayload(MutationPayload):
    threads: list[Thread] = leaf("The conversations, as they are now.", default_factory=list)
    task: Task | None = leaf("Background work, null when done at once.", default=None)
    undo: UndoToken | None = leaf("Takes it back.", default=None)


@strawberry.type
class ThreadMutation:
    @mutation("Whole conversations: their messages, and whether they are muted.", scope=Scope.MAIL)
    async def thread_update(self, info: Info, input: ThreadUpdateInput) -> ThreadUpdatePayload:
        if not 0 < len(input.ids) <= threads.IDS:
            text = f"one to {threads.IDS} conversations"
            raise Invalid(text, constraint="range", path=["ids"])
        keys = [
            global_ids.decode("Thread", text, path="ids", index=index)
            for index, text in enumerate(input.ids)
        ]
        changes = input.set.changes() if input.set else None
        request = ThreadOrder(keys, changes, plain(input.muted))
        result = await threads.carry_out(info.context, request)
        rows = await info.context.load_all(message_loaders.threads_by_ids, dict.fromkeys(keys))
        return ThreadUpdatePayload(
            threads=[Thread.of(row) for row in rows if row],
            task=Task.maybe(result.task),
            undo=undo_token(result),
        )


@strawberry.type
class ThreadQuery:
    @query("One conversation.", scope=Scope.MAIL_READ)
    async def thread(self, info: Info, id: strawberry.ID) -> Thread | None:
        row = await info.context.load(
            message_loaders.threads_by_ids, global_ids.decode("Thread", id)
        )
        return Thread.maybe(row)
