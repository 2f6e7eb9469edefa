"""GraphQL types, query, mutations and subscription of the mail queue."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.submission.types import RecipientDelivery, Submission
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, field, query, subscription
from graph.types.input_conditions import Conditions
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import UserSelection, plain, users_named
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import ByteSize
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.queue import events as queue_events
from resolvers.queue import loaders as queue_loaders
from resolvers.queue import mutations as queue_mutations
from resolvers.queue.loaders import OLDEST, EntryWhere, QueueName
from resolvers.queue.mutations import Which
from resolvers.submission import create as submission_create
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="Message waiting to go out.")
class QueueEntry(Shape):
    queue_id: str = leaf("By which logs and mutations name it.")
    sender: str = leaf('Envelope sender, "" of a report.')
    size: ByteSize = leaf("Of the message.")
    arrived_at: datetime = leaf("Handed in.")
    recipients: list[RecipientDelivery] = link(
        "id",
        queue_loaders.deliveries_of,
        lambda rows: [RecipientDelivery.of(row) for row in rows],
        description="Each recipient, also those that were served.",
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Who sent it; null = the platform itself, as reports and what is sent on.",
    )
    submission: Submission | None = link(
        "id",
        submission_create.by_ids,
        Submission.maybe,
        description="The same as its sender sees it; null = another's.",
    )

    batch = staticmethod(queue_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("QueueEntry"),
        "sender": Made(("envelope_from",), lambda sender: sender),
        "arrived_at": Made(("created_at",), lambda at: at),
    }

    @field("Where it stands: the first of ACTIVE, HOLD, DEFERRED, INCOMING; null = it has gone.")
    async def queue_name(self, info: Info) -> QueueName | None:
        return (await info.context.load(queue_loaders.standings, self.row.id)).name

    @field("Next try; null = none: it is being sent, is held, or has gone.")
    async def next_attempt_at(self, info: Info) -> datetime | None:
        return (await info.context.load(queue_loaders.standings, self.row.id)).next_at

    @field("What was said last to what is to be tried again.")
    async def last_error(self, info: Info) -> str | None:
        return await info.context.load(queue_loaders.last_errors, self.row.id)


@strawberry.input(description="Which entries of the queue; all conditions hold.")
class QueueFilter(Conditions):
    texts_may_be_empty = frozenset({"sender"})

    queue_name: QueueName | None = leaf("Where they stand.", default=UNSET)
    users: UserSelection | None = leaf("Of these accounts. Default: all in view.", default=UNSET)
    sender: str | None = leaf(
        'Part of the envelope sender, in any case; "" = without one.', default=UNSET
    )
    recipient: str | None = leaf(
        "Part of a recipient who is still to be served, in any case.", default=UNSET
    )
    since: datetime | None = leaf("Arrived from this time on.", default=UNSET)

    def where(self) -> EntryWhere:
        """Convert the filter to conditions of the resolvers."""
        return EntryWhere(
            plain(self.queue_name),
            users_named(self.users or None, path="filter"),
            plain(self.sender),
            plain(self.recipient),
            plain(self.since),
        )


@strawberry.input(description="Input of queueDelete: queueIds, filter or all.")
class QueueDeleteInput(Options):
    queue_ids: list[str] | None = leaf("These.", default=UNSET)
    filter: QueueFilter | None = leaf("All in view that it finds.", default=UNSET)
    all: bool = leaf("Everything there is, for ADMIN.", default=False)
    notify_sender: bool = leaf("With a report to each sender.", default=False)


@strawberry.input(description="Input of queueFlush: queueIds, filter or all.")
class QueueFlushInput(Options):
    queue_ids: list[str] | None = leaf("These.", default=UNSET)
    filter: QueueFilter | None = leaf("All that it finds.", default=UNSET)
    all: bool = leaf("Everything there is.", default=False)


@strawberry.input(description="Input of queueHold.")
class QueueHoldInput(Options):
    queue_ids: list[str] = leaf("Which.")
    hold: bool = leaf("Stop, or go on.")


@strawberry.type(description="Answer of queueDelete.")
class QueueDeletePayload(MutationPayload):
    deleted_count: int = leaf(
        "Recipients that will not have it; 0 where a task does it.", default=0
    )
    task: Task | None = leaf("Does it, where there is much, or reports are made.", default=None)


@strawberry.type(description="Answer of queueFlush.")
class QueueFlushPayload(MutationPayload):
    scheduled_count: int = leaf("Recipients tried now; 0: a task sees to it.", default=0)
    task: Task | None = leaf("Does it, where there is much.", default=None)


@strawberry.type(description="Answer of queueHold.")
class QueueHoldPayload(MutationPayload):
    entries: list[QueueEntry] = leaf("As they are now.", default_factory=list)


def _which(given: QueueDeleteInput | QueueFlushInput) -> Which:
    """Return the queue entries that an input selects: by queue id, by filter, or all."""
    where = given.filter.where() if given.filter else None
    return Which(plain(given.queue_ids), where, given.all)


@strawberry.type
class QueueQuery:
    @query(
        "What waits to go out, the oldest first: the own; for DOMAIN_ADMIN that of the domains' "
        "accounts, too; for ADMIN all.",
        scope=Scope.MAIL_READ,
    )
    async def queue(
        self,
        info: Info,
        filter: QueueFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[QueueEntry]:
        ctx, where = info.context, filter.where() if filter else EntryWhere()
        list_ordering = ordering(OLDEST, None if where == EntryWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            QueueEntry,
            await queue_loaders.page(ctx, where, requested_page, columns(info, QueueEntry)),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: queue_loaders.count(ctx, where),
        )


FORCED: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MASTER}


@strawberry.type
class QueueMutation:
    @mutation(
        "Sends these no more, but to recipients that are being served right now: the own; for "
        "DOMAIN_ADMIN those of the domains' accounts, too; for ADMIN any. More than a request "
        "takes at once is a task's work.",
        scope=Scope.SUBMIT,
    )
    async def queue_delete(self, info: Info, input: QueueDeleteInput) -> QueueDeletePayload:
        result = await queue_mutations.remove(
            info.context, _which(input), notify=input.notify_sender
        )
        return QueueDeletePayload(deleted_count=result.many, task=Task.maybe(result.task))

    @mutation("Tries at once what was to be tried again later, and is not held.", **FORCED)
    async def queue_flush(self, info: Info, input: QueueFlushInput) -> QueueFlushPayload:
        result = await queue_mutations.flush(info.context, _which(input))
        return QueueFlushPayload(scheduled_count=result.many, task=Task.maybe(result.task))

    @mutation(
        "Begins no attempt from now on, or goes on. The time they were held makes none older.",
        **FORCED,
    )
    async def queue_hold(self, info: Info, input: QueueHoldInput) -> QueueHoldPayload:
        ctx = info.context
        keys = await queue_mutations.hold(ctx, input.queue_ids, stop=input.hold)
        rows = await ctx.load_all(queue_loaders.by_ids, keys)
        return QueueHoldPayload(entries=[QueueEntry.of(row) for row in rows if row])


@strawberry.type
class QueueSubscription:
    @subscription(
        "Entries that arrive, are tried, changed or gone, each as it is then; of one account in "
        "the order it happened. What has gone is told whatever queue is asked for.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def queue_changes(
        self, info: Info, filter: QueueFilter | None = UNSET
    ) -> AsyncIterator[QueueEntry]:
        where = filter.where() if filter else EntryWhere()
        async for row in queue_events.follow(info.context, where):
            yield QueueEntry.of(row)
