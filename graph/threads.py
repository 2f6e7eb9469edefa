"""Conversations, as the API shows them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph import ids
from graph.connections import Connection
from graph.errors import leaf
from graph.fields import Auth, Info, field, query
from graph.mailboxes import Mailbox
from graph.messages import MailAddress, Message, message_page
from graph.rows import Shape, identified
from graph.selections import MessageOrder, Wanted
from graph.views import Made
from models.roles import Scope
from resolvers import mailboxes, messages


@strawberry.type(description="Conversation.", directives=[Auth(scope=Scope.MAIL_READ)])
class Thread(Shape):
    subject: str = leaf("Of its first message.")
    message_count: int = leaf("Messages in it.")
    unseen_count: int = leaf("Unread messages.")
    last_received_at: datetime = leaf("Newest message.")

    batch = staticmethod(messages.threads_by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Thread")}

    @field("People in it, the first first.")
    async def participants(self, info: Info) -> list[MailAddress]:
        pairs: Any = await info.context.load(messages.people_of, self.row.id)
        return [MailAddress.of(pair) for pair in pairs]

    @field("Folders it has messages in.")
    async def mailboxes(self, info: Info) -> list[Mailbox]:
        keys = await info.context.load(messages.places_of, self.row.id)
        rows = await info.context.load_all(mailboxes.by_ids, keys)
        return [Mailbox.of(row) for row in rows if row]

    @field("Oldest first.")
    async def messages(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[Message]:
        wanted = Wanted(None, MessageOrder.RECEIVED_ASC, (first, after, None, None))
        return await message_page(info, wanted, users=[self.row.user_id], thread_id=self.row.id)


@strawberry.type
class ThreadQuery:
    @query("One conversation.", scope=Scope.MAIL_READ)
    async def thread(self, info: Info, id: strawberry.ID) -> Thread | None:
        row = await info.context.load(messages.threads_by_ids, ids.decode("Thread", id))
        return Thread.maybe(row)
