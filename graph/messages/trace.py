"""GraphQL types and queries of delivery traces."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import View
from graph.types.references import value_or_none
from graph.types.row_mapping import lazy_view_factory
from models.messages.message_trace import LogComponent, MessageTraceEventKind
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.messages import loaders as message_loaders
from resolvers.messages import trace
from resolvers.messages.trace import TraceFilter, TraceListing, TraceRequest

if TYPE_CHECKING:
    from graph.messages.types import Message


@strawberry.type(description="A step of a message for one recipient.")
class MessageTraceEvent(View):
    at: datetime = attribute_field(
        "When; of a delivery that has not reached its recipient, when it was queued."
    )
    queue_id: str = attribute_field("That was given when it came in, or into the queue.")
    component: LogComponent = attribute_field("What decided.")
    event: MessageTraceEventKind = attribute_field("What happened to the message.")
    detail: str | None = attribute_field("More about it, for people.")
    address: str | None = attribute_field("Of the recipient, as given.")
    sender: str | None = attribute_field(
        "Envelope sender, as given. Null if it is empty or not known."
    )

    @field(
        "The message that this step stored, or the sender's copy of the message in the queue. "
        "Null if there is none, if it was deleted, or if the viewer may not see it.",
        scope=Scope.MAIL_READ,
    )
    async def message(
        self, info: Info
    ) -> Annotated["Message", strawberry.lazy("graph.messages.types")] | None:
        key = self.row.stored_message_id
        row = await info.context.load(message_loaders.load_visible_by_ids, key) if key else None
        return message_from_row(row) if row else None


message_from_row = lazy_view_factory("graph.messages.types", "Message")


@strawberry.input(description="Conditions for steps of messages. All of them must hold.")
class MessageTraceFilter(ConditionsInput):
    sender: str | None = attribute_field(
        "Envelope sender: an address or a domain, in any case. Labels (`+label`) and dots of the "
        "local part are ignored.",
        default=UNSET,
    )
    recipient: str | None = attribute_field(
        "Recipient: an address or a domain, in any case. Labels (`+label`) and dots of the local "
        "part are ignored.",
        default=UNSET,
    )
    since: datetime | None = attribute_field("Steps at this time or later.", default=UNSET)
    before: datetime | None = attribute_field("Steps before this time.", default=UNSET)

    def to_conditions(self) -> TraceFilter:
        """Convert the filter to conditions of the resolvers. Absent fields are left out."""
        values = {
            name: value for name, value in vars(self).items() if value_or_none(value) is not None
        }
        return TraceFilter(**values)


@strawberry.type
class MessageTraceQuery:
    @query(
        "Way of a message, in its order: by the id that its sender was given with the 250, or "
        "that it has in the queue, or by its Message-ID. What goes to no domain of the viewer's "
        "looks like what is not there.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def message_trace(
        self,
        info: Info,
        queue_id: str | None = UNSET,
        message_id: str | None = UNSET,
        address: Annotated[
            str | None,
            strawberry.argument(
                description="Returns only steps of this recipient, and steps that concern all "
                "recipients."
            ),
        ] = UNSET,
    ) -> list[MessageTraceEvent]:
        search = TraceRequest(
            queue_id if isinstance(queue_id, str) else None,
            message_id if isinstance(message_id, str) else None,
            address or None,
        )
        return [
            MessageTraceEvent.from_row(event)
            for event in await trace.load_trace(info.context, search)
        ]

    @query(
        "Steps of messages by sender, recipient and time, newest first. A DOMAIN_ADMIN must name "
        "a sender or a recipient, and gets the steps of messages to their domains and from users "
        "of their domains. `messageTrace` with the `queueId` of a step returns all steps of the "
        "message.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def message_trace_events(
        self,
        info: Info,
        filter: MessageTraceFilter,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[MessageTraceEvent]:
        ctx, conditions = info.context, filter.to_conditions()
        trace.validate_trace_filter(ctx, conditions)
        requested_page = page_request(
            ordering_name(trace.CURSOR_KIND, conditions), first, after, last, before
        )
        page_key = TraceListing(requested_page, conditions)
        return await connection_of_page(
            info,
            MessageTraceEvent,
            await ctx.load(trace.load_pages, page_key),
            lambda row: Cursor(requested_page.ordering, row.at, row.id),
            lambda: ctx.load(trace.count_listings, page_key),
        )
