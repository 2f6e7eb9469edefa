"""GraphQL types, query, mutations and subscription of the mail queue."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.queue.references import QueueEntryRef, load_queue_entry_ids
from graph.submission.types import RecipientDelivery, Submission
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import UserSelection, user_selector_from_selection, value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import ByteSize
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


@strawberry.type(description="A message in the outbound queue with its deliveries.")
class QueueEntry(NodeView):
    queue_id: str = attribute_field("Queue ID, by which logs and mutations name the entry.")
    sender: str = attribute_field("Envelope sender. Empty: the null sender of a delivery report.")
    size: ByteSize = attribute_field("Size of the message.")
    arrived_at: datetime = attribute_field("Time when the message entered the queue.")
    recipients: list[RecipientDelivery] = link(
        "id",
        queue_loaders.load_deliveries_by_entry,
        lambda rows: [RecipientDelivery.from_row(row) for row in rows],
        description="Delivery to each recipient, including finished deliveries.",
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who sent the message. Null: the platform sent it, such as a delivery "
        "report or a forwarded message.",
    )
    submission: Submission | None = link(
        "id",
        submission_loaders.load_own_submissions_by_id,
        Submission.from_row_or_none,
        description="Submission of the message, as its sender sees it. Null: another user sent "
        "the message.",
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
        "Time of the next delivery attempt. Null: the entry is being sent, is held, or is finished."
    )
    async def next_attempt_at(self, info: Info) -> datetime | None:
        return (
            await info.context.load(queue_loaders.load_entry_states, self.row.id)
        ).next_attempt_at

    @field("Last error reply to an unfinished delivery. Null: no attempt failed.")
    async def last_error(self, info: Info) -> str | None:
        return await info.context.load(queue_loaders.load_last_errors_by_entry, self.row.id)


@strawberry.input(description="Conditions on queue entries; all must hold.")
class QueueFilter(ConditionsInput):
    fields_with_empty_texts = frozenset({"sender"})

    queue_name: QueueName | None = attribute_field("Queue of the entries.", default=UNSET)
    users: UserSelection | None = attribute_field(
        "Users who sent the messages. Default: all that the caller can see.", default=UNSET
    )
    sender: str | None = attribute_field(
        "Part of the envelope sender, in any case. Empty: the null sender.", default=UNSET
    )
    recipient: str | None = attribute_field(
        "Part of a recipient with an unfinished delivery, in any case.", default=UNSET
    )
    since: datetime | None = attribute_field(
        "Earliest time of arrival in the queue, inclusive.", default=UNSET
    )
    before: datetime | None = attribute_field(
        "Latest time of arrival in the queue, exclusive.", default=UNSET
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
        "Deletes these entries.", default=UNSET
    )
    filter: QueueFilter | None = attribute_field(
        "Deletes the visible entries that match.", default=UNSET
    )
    all: bool = attribute_field("Deletes every entry. Requires the role ADMIN.", default=False)
    notify_sender: bool = attribute_field(
        "Sends a delivery report (DSN, RFC 3464) to each sender.", default=False
    )


@strawberry.input(
    description="Input of queueFlush. Exactly one of queueEntries, filter and all is required."
)
class QueueFlushInput(Options):
    queue_entries: list[QueueEntryRef] | None = attribute_field(
        "Retries these entries.", default=UNSET
    )
    filter: QueueFilter | None = attribute_field("Retries the entries that match.", default=UNSET)
    all: bool = attribute_field("Retries every entry.", default=False)


@strawberry.input(description="Input of queueHold.")
class QueueHoldInput(Options):
    queue_entries: list[QueueEntryRef] = attribute_field("The entries to hold.")


@strawberry.input(description="Input of queueRelease.")
class QueueReleaseInput(Options):
    queue_entries: list[QueueEntryRef] = attribute_field("The entries to release.")


@strawberry.type(description="Payload of queueDelete.")
class QueueDeletePayload(MutationPayload):
    deleted_count: int = attribute_field(
        "Number of cancelled deliveries, one for each recipient. 0 if a task deletes the entries.",
        default=0,
    )
    task: Task | None = attribute_field(
        "Task that deletes the entries, if there are many or senders are notified. "
        "Null: they are deleted already.",
        default=None,
    )


@strawberry.type(description="Payload of queueFlush.")
class QueueFlushPayload(MutationPayload):
    scheduled_count: int = attribute_field(
        "Number of deliveries that are due now, one for each recipient. 0 if a task "
        "retries the entries.",
        default=0,
    )
    task: Task | None = attribute_field(
        "Task that retries the entries, if there are many. Null: the deliveries are due now.",
        default=None,
    )


@strawberry.type(description="Payload of queueHold and queueRelease.")
class QueueEntriesPayload(MutationPayload):
    queue_entries: list[QueueEntry] = attribute_field(
        "The entries after the change, in the order of the references.", default_factory=list
    )


async def _load_selection(
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
    return QueueSelection(await load_queue_entry_ids(info, refs))


async def _hold_or_release(
    info: Info, refs: list[QueueEntryRef], *, is_held: bool
) -> QueueEntriesPayload:
    """Hold or release queue entries, and return the payload with them. Raises NotFound."""
    ids = await load_queue_entry_ids(info, refs)
    await queue_mutations.hold_or_release_entries(info.context, ids, is_held=is_held)
    rows = await info.context.load_many(queue_loaders.load_visible_entries_by_id, ids)
    return QueueEntriesPayload(queue_entries=[QueueEntry.from_row(row) for row in rows if row])


@strawberry.type
class QueueQuery:
    @query(
        "Returns queue entries with unfinished deliveries that the signed-in user "
        "sent. A DOMAIN_ADMIN also sees entries of the users of administered "
        "domains, an ADMIN all entries.",
        scope=Scope.MAIL_READ,
    )
    async def queue(
        self,
        info: Info,
        filter: QueueFilter | None = UNSET,
        order_by: QueueEntryOrder = QueueEntryOrder.CREATED_ASC,
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
            await queue_loaders.read_entry_page(
                ctx, conditions, requested_page, selected_columns(info, QueueEntry), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: queue_loaders.count_entries(ctx, conditions),
        )


WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


@strawberry.type
class QueueMutation:
    @mutation(
        "Deletes queue entries: cancels all deliveries that are not in progress. A "
        "DOMAIN_ADMIN can delete entries of the users of administered domains, an "
        "ADMIN all entries. A task deletes large numbers in the background.",
        scope=Scope.SUBMIT,
    )
    async def queue_delete(self, info: Info, input: QueueDeleteInput) -> QueueDeletePayload:
        result = await queue_mutations.delete_entries(
            info.context, await _load_selection(info, input), notifies_sender=input.notify_sender
        )
        return QueueDeletePayload(
            deleted_count=result.recipient_count, task=Task.from_row_or_none(result.task)
        )

    @mutation(
        "Retries deferred deliveries at once, except held ones. A task retries "
        "large numbers in the background.",
        **WRITE_GUARD,
    )
    async def queue_flush(self, info: Info, input: QueueFlushInput) -> QueueFlushPayload:
        result = await queue_mutations.flush_entries(
            info.context, await _load_selection(info, input)
        )
        return QueueFlushPayload(
            scheduled_count=result.recipient_count, task=Task.from_row_or_none(result.task)
        )

    @mutation("Holds queue entries: no delivery attempt begins until queueRelease.", **WRITE_GUARD)
    async def queue_hold(self, info: Info, input: QueueHoldInput) -> QueueEntriesPayload:
        return await _hold_or_release(info, input.queue_entries, is_held=True)

    @mutation(
        "Releases held queue entries. The time in which an entry was held does not "
        "count towards its lifetime in the queue.",
        **WRITE_GUARD,
    )
    async def queue_release(self, info: Info, input: QueueReleaseInput) -> QueueEntriesPayload:
        return await _hold_or_release(info, input.queue_entries, is_held=False)


@strawberry.type
class QueueSubscription:
    @subscription(
        "Streams queue entries when they arrive, when a delivery is attempted, and "
        "when they change or finish. Entries of one user keep their order. Finished "
        "entries match every queueName of the filter.",
        role=Role.ADMIN,
        scope=Scope.READ,
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
        async for row in queue_events.follow_entries(info.context, conditions):
            yield QueueEntry.from_row(row)
