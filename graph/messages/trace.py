"""GraphQL types and queries of delivery traces."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import OVERSEEN_MAIL
from graph.types.object_views import View
from graph.types.references import value_or_none
from graph.types.row_mapping import lazy_view_factory
from models.logs.entries import LogComponent
from models.messages.message_trace import DeliveryTraceEventKind
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.messages import loaders as message_loaders
from resolvers.messages import trace
from resolvers.messages.trace import (
    DeliveryTraceStepOrder,
    TraceFilter,
    TraceListing,
)

if TYPE_CHECKING:
    from graph.messages.types import Message


@strawberry.type(description="Step of a message on its way to one recipient, or to all of them.")
class DeliveryTraceStep(View):
    at: datetime = attribute_field(
        "Time of the step. For a queue entry it is the time of its DSN, else of its successful "
        "delivery, else of its creation."
    )
    queue_id: str = attribute_field(
        "Queue ID that the server gave the message: when it received the message, or when a "
        "message of a user was queued."
    )
    component: LogComponent = attribute_field("Part of the server that made the step.")
    event: DeliveryTraceEventKind = attribute_field(
        "Kind of the step, such as the acceptance or the delivery of the message."
    )
    detail: str | None = attribute_field(
        "Details of the step in English, such as an SMTP reply. Null: there are none."
    )
    address: str | None = attribute_field(
        "Recipient of the step, as the sender wrote the address. Null if the step concerns all "
        "recipients."
    )
    sender: str | None = attribute_field(
        "Envelope sender, as given. Null if it is empty or not known."
    )

    @field(
        "Message that the step stored, or the copy of the sender if the step is about the queue. "
        "Null if there is none, if it was deleted, or if the caller can't see it.",
        scope=Scope.MAIL_READ,
    )
    async def message(
        self, info: Info
    ) -> Annotated["Message", strawberry.lazy("graph.messages.types")] | None:
        key = self.row.stored_message_id
        row = await info.context.load(message_loaders.load_visible_by_ids, key) if key else None
        return message_from_row(row) if row else None


message_from_row = lazy_view_factory("graph.messages.types", "Message")


@strawberry.input(
    description=(
        "Conditions on steps of messages. All of them must hold, and at least one is required. "
        "Texts have at most 1,000 characters."
    )
)
class DeliveryTraceFilter(ConditionsInput):
    queue_id: str | None = attribute_field(
        "Returns only steps of the message with this queue ID: that of the `250` reply, or "
        "`QueueEntry.queueId`. Steps of its forwarded copies with the same Message-ID are "
        "included. Can't be combined with `messageIdHeader`.",
        default=UNSET,
    )
    message_id_header: str | None = attribute_field(
        "Returns only steps of the message with this Message-ID (RFC 5322), with or without angle "
        "brackets. Can't be combined with `queueId`.",
        default=UNSET,
    )
    sender: str | None = attribute_field(
        "Returns only steps of messages with this address or domain as envelope sender (case is "
        "ignored). Subaddresses (`+label`) and dots of the local part are ignored.",
        default=UNSET,
    )
    recipient: str | None = attribute_field(
        "Returns only steps for recipients with this address or in this domain. Case is ignored. "
        "Subaddresses (`+label`) and dots of the local part are ignored. With a queue ID or "
        "Message-ID, a step of a submission about all its recipients is also returned.",
        default=UNSET,
    )
    since: datetime | None = attribute_field(
        "Returns only steps of the delivery trace at this time or later. It must be earlier than "
        "`before`.",
        default=UNSET,
    )
    before: datetime | None = attribute_field("Returns only steps before this time.", default=UNSET)

    def to_conditions(self) -> TraceFilter:
        """Convert the filter to conditions of the resolvers. Absent fields are left out."""
        values = {
            name: value for name, value in vars(self).items() if value_or_none(value) is not None
        }
        return TraceFilter(**values)


@strawberry.type
class DeliveryTraceQuery:
    @query(
        "Returns steps of messages, such as receipt or delivery, by queue ID, Message-ID, sender, "
        "recipient and time. With a queue ID or Message-ID, the list also has each submission and "
        "queue entry of the message in its present state. Such a list has at most 1,000 recorded "
        "steps of the receipt, 1,000 submissions and 1,000 queue entries, the oldest ones. A "
        "DOMAIN_ADMIN must give a condition besides the time. This role sees mail that "
        "administered domains receive or forward. It also sees mail that the caller, a USER of "
        "these domains, or the platform for these domains sends. Mail that other administrators "
        "in these domains send is left out. An ADMIN sees all steps. Recorded steps are kept for "
        "7 days by default.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=OVERSEEN_MAIL,
    )
    async def delivery_trace(
        self,
        info: Info,
        filter: DeliveryTraceFilter,
        order_by: DeliveryTraceStepOrder = DeliveryTraceStepOrder.AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DeliveryTraceStep]:
        ctx, conditions = info.context, filter.to_conditions()
        trace.validate_trace_filter(ctx, conditions)
        list_order = trace.LIST_ORDERS[order_by]
        requested_page = page_request(
            ordering_name(f"trace-{order_by}", conditions), first, after, last, before
        )
        page_key = TraceListing(requested_page, list_order, conditions)
        return await connection_of_page(
            info,
            DeliveryTraceStep,
            await ctx.load(trace.load_visible_trace_step_pages, page_key),
            lambda row: list_order.cursor_of_row(row, requested_page.ordering),
            lambda: ctx.load(trace.count_visible_trace_steps, page_key),
        )
