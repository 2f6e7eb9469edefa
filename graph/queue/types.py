"""GraphQL types, query, mutations and subscription of the mail queue."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import BulkDeletePayload, Task
from graph.queue.references import QueueEntryRef, resolve_queue_entry_ids_or_raise
from graph.submission.types import RecipientDelivery, Submission
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_access import OVERSEEN
from graph.types.object_views import DerivedField
from graph.types.references import UserSelection, user_selector_from_selection, value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt, ByteSize
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.queue import events as queue_events
from resolvers.queue import loaders as queue_loaders
from resolvers.queue import mutations as queue_mutations
from resolvers.queue.loaders import QueueEntryConditions, QueueEntryOrder, QueueName
from resolvers.queue.mutations import QueueSelection
from resolvers.submission import loaders as submission_loaders
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="Message in the outbound queue with its deliveries.")
class QueueEntry(NodeView):
    queue_id: str = attribute_field("Queue ID, by which logs and mutations name the entry.")
    sender: str = attribute_field("Envelope sender. Empty: the null sender of a delivery report.")
    size: ByteSize = attribute_field("Size of the message in bytes.")
    arrived_at: datetime = attribute_field("Time when the message entered the queue.")
    recipients: list[RecipientDelivery] = link(
        "id",
        queue_loaders.load_deliveries_by_entry,
        lambda rows: [RecipientDelivery.from_row(row) for row in rows],
        description="Delivery to each recipient, including finished deliveries: by default at most "
        "400.",
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who sent the message. Null: the platform sent it, such as a delivery "
        "report or a forwarded message, or the user was deleted.",
    )
    submission: Submission | None = link(
        "id",
        submission_loaders.load_own_submissions_by_id,
        Submission.from_row_or_none,
        description="Submission of the message, as its sender sees it. Null: another user or the "
        "platform sent the message.",
    )

    load_batch = staticmethod(queue_loaders.load_visible_entries_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("QueueEntry"),
        "sender": DerivedField(("envelope_from",), lambda sender: sender),
        "arrived_at": DerivedField(("created_at",), lambda at: at),
    }

    @field(
        "Queue of the entry: the first of ACTIVE, HOLD, DEFERRED and INCOMING that "
        "one of its deliveries is in. Null: every delivery is finished."
    )
    async def queue_name(self, info: Info) -> QueueName | None:
        return (await info.context.load(queue_loaders.load_entry_states, self.row.id)).queue_name

    @field(
        "Earliest time of the next attempt among the deliveries that wait. Null: every delivery is "
        "in progress, held or finished."
    )
    async def next_attempt_at(self, info: Info) -> datetime | None:
        return (
            await info.context.load(queue_loaders.load_entry_states, self.row.id)
        ).next_attempt_at

    @field(
        "Last error reply to an unfinished delivery, with its SMTP code. Null: no attempt of an "
        "unfinished delivery failed."
    )
    async def last_error(self, info: Info) -> str | None:
        return await info.context.load(queue_loaders.load_last_errors_by_entry, self.row.id)


@strawberry.input(description="Conditions on queue entries. All must hold.")
class QueueFilter(ConditionsInput):
    fields_with_empty_texts = frozenset({"sender"})

    queue_name: QueueName | None = attribute_field(
        "Returns only entries in this queue, as in `QueueEntry.queueName`.", default=UNSET
    )
    users: UserSelection | None = attribute_field(
        "Returns only entries of messages that these users sent. Default: all that the caller "
        "can see.",
        default=UNSET,
    )
    sender: str | None = attribute_field(
        "Returns only entries whose envelope sender contains this text, at most 1,000 characters. "
        "Case and accents are ignored. Empty: the null sender of delivery reports.",
        default=UNSET,
    )
    recipient: str | None = attribute_field(
        "Returns only entries with an unfinished delivery to a recipient that contains this text, "
        "at most 1,000 characters. Case and accents are ignored. `queueEntryChanged` also looks "
        "at finished deliveries.",
        default=UNSET,
    )
    since: datetime | None = attribute_field(
        "Returns only entries that entered the queue at this time or later.", default=UNSET
    )
    before: datetime | None = attribute_field(
        "Returns only entries that entered the queue before this time.", default=UNSET
    )

    def to_conditions(self) -> QueueEntryConditions:
        """Convert the filter to conditions of the resolvers."""
        return QueueEntryConditions(
            value_or_none(self.queue_name),
            user_selector_from_selection(self.users or None),
            value_or_none(self.sender),
            value_or_none(self.recipient),
            value_or_none(self.since),
            value_or_none(self.before),
        )


@strawberry.input(
    description="Input of queueDelete. Exactly one of queueEntries, filter and all is required."
)
class QueueDeleteInput(Options):
    queue_entries: list[QueueEntryRef] | None = attribute_field(
        "Deletes the entries that are given, 1 to 1,000 by default.",
        default=UNSET,
    )
    filter: QueueFilter | None = attribute_field(
        "Deletes the waiting entries that the caller can see and that meet these conditions. More "
        "than 1,000,000 are the error LIMIT_REACHED, and none is deleted. An empty filter is an "
        "error.",
        default=UNSET,
    )
    all: bool = attribute_field(
        "True deletes all waiting entries, also scheduled and held ones. More than 1,000,000 are "
        "the error LIMIT_REACHED, and none is deleted. Requires the role ADMIN. Default: false.",
        default=False,
    )
    notify_sender: bool = attribute_field(
        "True sends a delivery report (DSN, RFC 3464) to each sender, except the null sender and "
        "senders that asked for none. All deleted deliveries then end as BOUNCED instead of "
        "CANCELLED, even if their sender gets no report. Default: false.",
        default=False,
    )


@strawberry.input(
    description="Input of queueFlush. Exactly one of queueEntries, filter and all is required."
)
class QueueFlushInput(Options):
    queue_entries: list[QueueEntryRef] | None = attribute_field(
        "Retries the entries that are given, 1 to 1,000 by default.",
        default=UNSET,
    )
    filter: QueueFilter | None = attribute_field(
        "Retries the entries that meet these conditions. More than 1,000,000 are the error "
        "LIMIT_REACHED, and none is retried. An empty filter is an error.",
        default=UNSET,
    )
    all: bool = attribute_field(
        "True retries all entries. More than 1,000,000 are the error LIMIT_REACHED, and none is "
        "retried. Default: false.",
        default=False,
    )


@strawberry.input(description="Input of queueHold.")
class QueueHoldInput(Options):
    queue_entries: list[QueueEntryRef] = attribute_field("Entries to hold, 1 to 1,000 by default.")


@strawberry.input(description="Input of queueRelease.")
class QueueReleaseInput(Options):
    queue_entries: list[QueueEntryRef] = attribute_field(
        "Entries to release, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of queueFlush.")
class QueueFlushPayload(MutationPayload):
    scheduled_count: int = attribute_field(
        "Number of deliveries that are due now, one for each recipient. 0 if a task retries the "
        "entries, or if the mutation failed.",
        default=0,
    )
    task: Task | None = attribute_field(
        "Task that retries the entries, if there are more than 1,000 (by default). Null: the "
        "deliveries are due now, or the mutation failed.",
        default=None,
    )


@strawberry.type(description="Payload of queueHold and queueRelease.")
class QueueEntriesPayload(MutationPayload):
    queue_entries: list[QueueEntry] = attribute_field(
        "The entries after the change, in the order of the references.", default_factory=list
    )


async def _resolve_queue_selection_or_raise(
    info: Info, queue_input: QueueDeleteInput | QueueFlushInput
) -> QueueSelection:
    """Return the queue entries that an input selects: by reference, by filter, or all.

    Raises InvalidInput unless exactly one of them is given, NotFound for an unknown queue ID.
    """
    refs = value_or_none(queue_input.queue_entries)
    conditions = queue_input.filter.to_conditions() if queue_input.filter else None
    selection = QueueSelection(None if refs is None else (), conditions, queue_input.all)
    selection.require_one_selector()
    if not refs:
        return selection
    return QueueSelection(await resolve_queue_entry_ids_or_raise(info, refs))


async def _hold_or_release(
    info: Info, refs: list[QueueEntryRef], *, is_held: bool
) -> QueueEntriesPayload:
    """Hold or release queue entries, and return the payload with them. Raises NotFound."""
    ids = await resolve_queue_entry_ids_or_raise(info, refs)
    await queue_mutations.hold_or_release_entries(info.context, ids, is_held=is_held)
    rows = await info.context.load_many(queue_loaders.load_visible_entries_by_id, ids)
    return QueueEntriesPayload(queue_entries=[QueueEntry.from_row(row) for row in rows if row])


@strawberry.type
class QueueQuery:
    @query(
        "Returns the queue entries of messages with unfinished deliveries, also of scheduled and "
        "held ones. A USER sees entries of own messages, a DOMAIN_ADMIN also those of USERs of "
        "the administered domains. An ADMIN sees all entries, also of messages that the server "
        "has sent itself, such as delivery reports and forwarded mail.",
        scope=Scope.MAIL_READ,
        access=OVERSEEN,
    )
    async def queue(
        self,
        info: Info,
        filter: QueueFilter | None = UNSET,
        order_by: QueueEntryOrder = QueueEntryOrder.ARRIVED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[QueueEntry]:
        ctx, conditions = info.context, filter.to_conditions() if filter else QueueEntryConditions()
        list_ordering = ordering_name(
            f"queue-{order_by}", None if conditions == QueueEntryConditions() else conditions
        )
        list_order = queue_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            QueueEntry,
            await queue_loaders.read_visible_waiting_entry_page(
                ctx, conditions, requested_page, selected_columns(info, QueueEntry), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: queue_loaders.count_visible_waiting_entries(ctx, conditions),
        )


WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


@strawberry.type
class QueueMutation:
    @mutation(
        "Deletes queue entries: cancels all deliveries that are not in progress. Deliveries in "
        "progress continue. A finished entry in `queueEntries` is NOT_FOUND, and nothing is "
        "deleted. If all deliveries of a scheduled message are deleted, its copy becomes a draft. "
        "Without `notifySender`, deleting all deliveries of a message also cancels the copies "
        "that BCC rules made of it. With `notifySender`, these copies stay in the queue, unless "
        "they are selected too. Exactly one of `queueEntries`, `filter` and `all` is required "
        "(else VALIDATION). A task in the background deletes more than 1,000 entries (by "
        "default), and entries with `notifySender`. LIMIT_REACHED for more than 1,000 references "
        "(by default), or if `filter` or `all` selects more than 1,000,000 entries.",
        scope=Scope.SUBMIT,
        access=OVERSEEN,
    )
    async def queue_delete(self, info: Info, input: QueueDeleteInput) -> BulkDeletePayload:
        result = await queue_mutations.delete_entries_or_queue_task(
            info.context,
            await _resolve_queue_selection_or_raise(info, input),
            notifies_sender=input.notify_sender,
        )
        return BulkDeletePayload(
            deleted_count=BigInt(result.recipient_count), task=Task.from_row_or_none(result.task)
        )

    @mutation(
        "Retries deferred deliveries immediately, except held ones and those in progress. "
        "Deliveries that wait for their first attempt are unchanged. A finished entry in "
        "`queueEntries` is NOT_FOUND, and nothing is retried. More than 1,000 entries (by "
        "default) are retried by a task in the background. LIMIT_REACHED for more than 1,000 "
        "references (by default), or if `filter` or `all` selects more than 1,000,000 entries.",
        **WRITE_GUARD,
        access=OVERSEEN,
    )
    async def queue_flush(self, info: Info, input: QueueFlushInput) -> QueueFlushPayload:
        result = await queue_mutations.flush_entries_or_queue_task(
            info.context, await _resolve_queue_selection_or_raise(info, input)
        )
        return QueueFlushPayload(
            scheduled_count=result.recipient_count, task=Task.from_row_or_none(result.task)
        )

    @mutation(
        "Holds queue entries, all or none: no delivery attempt begins until queueRelease. An "
        "attempt in progress continues. An entry that is already held is unchanged, and is no "
        "error. A finished entry is NOT_FOUND. LIMIT_REACHED for more than 1,000 references (by "
        "default).",
        **WRITE_GUARD,
        access=OVERSEEN,
    )
    async def queue_hold(self, info: Info, input: QueueHoldInput) -> QueueEntriesPayload:
        return await _hold_or_release(info, input.queue_entries, is_held=True)

    @mutation(
        "Releases held queue entries, all or none. Their deliveries are attempted when they are "
        "due, overdue ones at once. A waiting entry that is not held is unchanged, and is no "
        "error. A finished entry is NOT_FOUND. The time in which an entry was held does not count "
        "towards its lifetime in the queue. LIMIT_REACHED for more than 1,000 references (by "
        "default).",
        **WRITE_GUARD,
        access=OVERSEEN,
    )
    async def queue_release(self, info: Info, input: QueueReleaseInput) -> QueueEntriesPayload:
        return await _hold_or_release(info, input.queue_entries, is_held=False)


@strawberry.type
class QueueSubscription:
    @subscription(
        "Streams queue entries when they arrive, when a delivery is attempted, and when they "
        "change or finish. Entries that are in the queue at the start are streamed when they "
        "change. Entries of one user keep their order. Changes of an entry in quick succession "
        "can be streamed once, with its last state. A finished entry is sent even if the filter "
        "has another `queueName`.",
        role=Role.ADMIN,
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def queue_entry_changed(
        self,
        info: Info,
        filter: Annotated[
            QueueFilter | None,
            strawberry.argument(
                description="Conditions of the streamed entries. Default: all entries."
            ),
        ] = UNSET,
    ) -> AsyncIterator[QueueEntry]:
        conditions = filter.to_conditions() if filter else QueueEntryConditions()
        async for row in queue_events.follow_queue_entries(info.context, conditions):
            yield QueueEntry.from_row(row)
