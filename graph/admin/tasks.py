"""GraphQL types, queries and mutations of background tasks, and undo."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import optional_tuple
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt
from models.admin.tasks import TaskKind, TaskState
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Scope
from resolvers.admin import progress, tasks
from resolvers.admin.tasks import TaskConditions
from resolvers.messages.bulk import undo
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="Background work.")
class Task(NodeView):
    kind: TaskKind = attribute_field("What the task does.")
    state: TaskState = attribute_field("Where it stands.")
    done: BigInt = attribute_field("Items finished.")
    total: BigInt | None = attribute_field("Items in all, when known.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Whose data, when one user's.",
    )
    created_at: datetime = attribute_field("Asked for.")
    started_at: datetime | None = attribute_field("Begun.")
    finished_at: datetime | None = attribute_field("Ended.")
    result: JSON | None = attribute_field("Summary at the end.")
    error: str | None = attribute_field("Why it failed.")

    load_batch = staticmethod(tasks.load_visible_tasks_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Task")}


@strawberry.type(description="Takes a destructive mutation back.")
class UndoToken:
    token: str = attribute_field("For undo.")
    expires_at: datetime = attribute_field("Valid until.")


@strawberry.input(description="Which tasks.")
class TaskFilter(ConditionsInput):
    kinds: list[TaskKind] | None = attribute_field("Tasks of one of these kinds.", default=UNSET)
    states: list[TaskState] | None = attribute_field("In one of these.", default=UNSET)


@strawberry.input(one_of=True, description="Names one background task.")
class TaskRef(ObjectRef):
    pass


@strawberry.input(description="Input of taskCancel.")
class TaskCancelInput(Options):
    tasks: list[TaskRef] = attribute_field("The tasks to cancel.")


@strawberry.type(description="Payload of taskCancel.")
class TasksPayload(MutationPayload):
    tasks: list[Task] = attribute_field(
        "The tasks, in the order of the references.", default_factory=list
    )


@strawberry.input(description="Input of undo.")
class UndoInput(Options):
    token: str = attribute_field("From the payload of what is taken back.")


@strawberry.type(description="Answer of undo.")
class UndoPayload(MutationPayload):
    restored_count: int = attribute_field(
        "Messages that are as they were, or are not sent.", default=0
    )


@strawberry.type
class TaskQuery:
    @query("One background task.", scope=Scope.MAIL_READ)
    async def task(self, info: Info, by: TaskRef) -> Task | None:
        row = await info.context.load(tasks.load_visible_tasks_by_id, id_from_ref(by, "by"))
        return Task.from_row_or_none(row)

    @query("Tasks of the viewer; all for ADMIN.", scope=Scope.MAIL_READ)
    async def tasks(
        self,
        info: Info,
        filter: TaskFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Task]:
        conditions = (
            TaskConditions(optional_tuple(filter.kinds), optional_tuple(filter.states))
            if filter
            else TaskConditions()
        )
        list_ordering = ordering_name(
            "created-", None if conditions == TaskConditions() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Task,
            await tasks.read_task_page(
                info.context, conditions, requested_page, selected_columns(info, Task)
            ),
            lambda row: Cursor(list_ordering, row.created_at, row.id),
            lambda: tasks.count_tasks(info.context, conditions),
        )


@strawberry.type
class TaskMutation:
    @mutation("Stops tasks at the next safe point.", scope=Scope.MAIL)
    async def task_cancel(self, info: Info, input: TaskCancelInput) -> TasksPayload:
        keys = ids_from_refs(info, input.tasks, "tasks")
        await tasks.cancel_tasks(info.context, keys)
        rows = await info.context.load_many(tasks.load_visible_tasks_by_id, keys)
        return TasksPayload(tasks=[Task.from_row(row) for row in rows if row])

    @mutation(
        "Takes back a move, delete, flag change, or a message that is held; what has changed "
        "since stays as it is.",
        scope=Scope.MAIL,
    )
    async def undo(self, info: Info, input: UndoInput) -> UndoPayload:
        return UndoPayload(restored_count=await undo.undo_by_token(info.context, input.token))


@strawberry.type
class TaskSubscription:
    @subscription(
        "A task now, and each change of state or count until its end.", scope=Scope.MAIL_READ
    )
    async def task_progress(self, info: Info, task: TaskRef) -> AsyncIterator[Task]:
        async for row in progress.follow_task(info.context, id_from_ref(task, "task")):
            yield Task.from_row(row)
