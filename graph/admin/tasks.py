"""GraphQL types, queries and mutations of background tasks, and undo."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, query, subscription
from graph.types.input_conditions import Conditions
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import items_of
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import BigInt
from models.admin.tasks import TaskState
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Scope
from resolvers.admin import progress, tasks
from resolvers.admin.tasks import TaskWhere
from resolvers.messages.bulk import undo
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="Background work.")
class Task(Shape):
    kind: str = leaf("Such as MESSAGE_UPDATE.")
    state: TaskState = leaf("Where it stands.")
    done: BigInt = leaf("Items finished.")
    total: BigInt | None = leaf("Items in all, when known.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Whose data, when one user's.",
    )
    created_at: datetime = leaf("Asked for.")
    started_at: datetime | None = leaf("Begun.")
    finished_at: datetime | None = leaf("Ended.")
    result: JSON | None = leaf("Summary at the end.")
    error: str | None = leaf("Why it failed.")

    batch = staticmethod(tasks.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Task")}


@strawberry.type(description="Takes a destructive mutation back.")
class UndoToken:
    token: str = leaf("For undo.")
    expires_at: datetime = leaf("Valid until.")


@strawberry.input(description="Which tasks.")
class TaskFilter(Conditions):
    kind: str | None = leaf("Such as MESSAGE_UPDATE.", default=UNSET)
    states: list[TaskState] | None = leaf("In one of these.", default=UNSET)


@strawberry.input(description="Input of taskCancel.")
class TaskCancelInput(Options):
    ids: list[strawberry.ID] = leaf("The tasks.")


@strawberry.type(description="Answer of taskCancel.")
class TaskCancelPayload(MutationPayload):
    tasks: list[Task] = leaf("The tasks, as they are now.", default_factory=list)


@strawberry.input(description="Input of undo.")
class UndoInput(Options):
    token: str = leaf("From the payload of what is taken back.")


@strawberry.type(description="Answer of undo.")
class UndoPayload(MutationPayload):
    restored_count: int = leaf("Messages that are as they were, or are not sent.", default=0)


@strawberry.type
class TaskQuery:
    @query("One background task.", scope=Scope.MAIL_READ)
    async def task(self, info: Info, id: strawberry.ID) -> Task | None:
        row = await info.context.load(tasks.by_ids, global_ids.decode("Task", id))
        return Task.maybe(row)

    @query("Tasks of the viewer; all for ADMIN.", scope=Scope.MAIL_READ)
    async def tasks(
        self,
        info: Info,
        filter: TaskFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
    ) -> Connection[Task]:
        where = TaskWhere(filter.kind or None, items_of(filter.states)) if filter else TaskWhere()
        list_ordering = ordering("created-", None if where == TaskWhere() else where)
        requested_page = page_asked(list_ordering, first, after, None, None)
        return await connected(
            info,
            Task,
            await tasks.pages(info.context, where, requested_page, columns(info, Task)),
            lambda row: Cursor(list_ordering, row.created_at, row.id),
            lambda: tasks.count(info.context, where),
        )


@strawberry.type
class TaskMutation:
    @mutation("Stops tasks at the next safe point.", scope=Scope.MAIL)
    async def task_cancel(self, info: Info, input: TaskCancelInput) -> TaskCancelPayload:
        keys = [
            global_ids.decode("Task", text, path="ids", index=index)
            for index, text in enumerate(input.ids)
        ]
        await tasks.cancel(info.context, keys)
        rows = await info.context.load_all(tasks.by_ids, keys)
        return TaskCancelPayload(tasks=[Task.of(row) for row in rows if row])

    @mutation(
        "Takes back a move, delete, flag change, or a message that is held; what has changed "
        "since stays as it is.",
        scope=Scope.MAIL,
    )
    async def undo(self, info: Info, input: UndoInput) -> UndoPayload:
        return UndoPayload(restored_count=await undo.undo(info.context, input.token))


@strawberry.type
class TaskSubscription:
    @subscription(
        "A task now, and each change of state or count until its end.", scope=Scope.MAIL_READ
    )
    async def task_progress(self, info: Info, id: strawberry.ID) -> AsyncIterator[Task]:
        async for row in progress.of_task(info.context, global_ids.decode("Task", id)):
            yield Task.of(row)
