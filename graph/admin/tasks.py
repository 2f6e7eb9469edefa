"""GraphQL types, queries and mutations of background tasks, and undo."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.object_access import OWN
from graph.types.object_references import ObjectRef, id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import optional_tuple
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
    selected_fields,
)
from graph.types.scalars import BigInt
from models.admin.tasks import TaskKind, TaskState
from models.store.columns import ColumnRow
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from resolvers.admin import progress, task_queue, tasks
from resolvers.admin.tasks import TaskConditions, TaskOrder
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import undo
from resolvers.submission import loaders as submission_loaders
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.messages.types import Message
    from graph.submission.types import Submission
    from graph.users.types import User

_message_from_row = lazy_view_factory("graph.messages.types", "Message")
_submission_from_row = lazy_view_factory("graph.submission.types", "Submission")


@strawberry.type(description="Background task, which does work that takes longer than a request.")
class Task(NodeView):
    kind: TaskKind = attribute_field("Kind of work that the task does.")
    state: TaskState = attribute_field("State of the task: queued, running, or how it ended.")
    done_count: BigInt = attribute_field(
        "Number of items that the task has processed so far, such as messages or rows."
    )
    total_count: BigInt | None = attribute_field(
        "Number of items that the task has to process. Null: unknown."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description=(
            "User whose data the task processes. Null: the task is for several users or the "
            "platform, deletes a user (USER_DELETE), or copies for a legal hold (HELD_COPY)."
        ),
    )
    created_at: datetime = attribute_field("Time when the task was created.")
    started_at: datetime | None = attribute_field(
        "Time when a worker first started the task. Null: it has not started, or was cancelled "
        "before."
    )
    finished_at: datetime | None = attribute_field(
        "Time when the task ended. Null: it has not ended."
    )
    result: JSON | None = attribute_field(
        "Result of the ended task. Null: it has not ended, was cancelled before it started, or "
        "failed by an internal error. Members: `changedCount`, and others that depend on `kind`. "
        "These are the counts `correctedCount`, `createdCount`, `deletedCount`, `knownCount`, "
        "`refusedCount`, `remainingCount`, `storedCount` and `unlistedCount`, the number "
        "`freedBytes`, and the lists `refused`, `errors` and `warnings`."
    )
    error: str | None = attribute_field("Reason why the task failed. Null: it did not fail.")

    @field(
        "Position of the task in the queue of all accounts, from 1 for the task that starts next. "
        "Accounts take turns: the first waiting task of each account comes before the second task "
        "of any account. The account is that of the user or administrator who started the task. "
        "Null: the task runs, has ended or is to start later. Changes of the position send no "
        "event.",
        "id",
        cost=10,
    )
    async def queue_position(self, info: Info) -> int | None:
        return await info.context.load(task_queue.load_queue_positions, self.row.id)

    load_batch = staticmethod(tasks.load_visible_tasks_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Task")}


@strawberry.type(description="Token that undoes a mutation once.")
class UndoToken:
    token: str = attribute_field("Secret for the mutation `undo`, which accepts it once.")
    expires_at: datetime = attribute_field(
        "Time when the undo token expires: by default 10 minutes after a change of messages, and "
        "the end of the delay for a message that is sent with one."
    )


@strawberry.input(description="Conditions on tasks. All must hold.")
class TaskFilter(ConditionsInput):
    kinds: list[TaskKind] | None = attribute_field(
        "Returns only tasks of one of these kinds. An empty list returns no task.", default=UNSET
    )
    states: list[TaskState] | None = attribute_field(
        "Returns only tasks in one of these states. An empty list returns no task.", default=UNSET
    )


@strawberry.input(one_of=True, description="Reference to one task.")
class TaskRef(ObjectRef):
    pass


@strawberry.input(description="Input of taskCancel.")
class TaskCancelInput(Options):
    tasks: list[TaskRef] = attribute_field(
        "Tasks to cancel, 1 to 250; more are the error VALIDATION."
    )


@strawberry.type(description="Payload of taskCancel.")
class TasksPayload(MutationPayload):
    tasks: list[Task] = attribute_field(
        "Tasks in the order of the references. A running task keeps the state RUNNING until its "
        "next step ends it. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type(description="Payload of a mutation that starts a task.")
class TaskPayload(MutationPayload):
    task: Task | None = attribute_field(
        "Task that does the work. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of blobDelete and queueDelete.")
class BulkDeletePayload(MutationPayload):
    deleted_count: BigInt = attribute_field(
        "Number of deleted objects (blobDelete), or of cancelled deliveries, one for each "
        "recipient (queueDelete). 0 if a task of queueDelete, or of blobDelete with `recursive`, "
        "does the work. With `validateOnly`: number that would be deleted.",
        default=0,
    )
    task: Task | None = attribute_field(
        "Task that deletes the objects or queue entries. Null: they are deleted already, or the "
        "mutation failed.",
        default=None,
    )


@strawberry.input(description="Input of undo.")
class UndoInput(Options):
    token: str = attribute_field("Token of the payload of the mutation to undo.")


@strawberry.type(description="Payload of undo.")
class UndoPayload(MutationPayload):
    restored_count: int = attribute_field(
        "Number of messages whose change was undone, or of submissions that were cancelled. 0 if "
        "the mutation failed.",
        default=0,
    )
    messages: list[Annotated["Message", strawberry.lazy("graph.messages.types")]] = attribute_field(
        "Messages whose change was undone, and the stored copies of cancelled submissions, which "
        "are drafts unless the user has moved them. A message that the caller can't see is left "
        "out. Empty if the mutation failed.",
        default_factory=list,
    )
    submissions: list[Annotated["Submission", strawberry.lazy("graph.submission.types")]] = (
        attribute_field(
            "Submissions that were cancelled. A submission of another user is left out. Empty if "
            "the token undoes another change, or if the mutation failed.",
            default_factory=list,
        )
    )


@strawberry.type
class TaskQuery:
    @query(
        "Returns a background task by ID: one of the signed-in user's account, or one that the "
        "caller started. An ADMIN sees all tasks except legal hold tasks that others started, a "
        "ROOT sees all. Null if it does not exist or the caller can't see it. A task is deleted 7 "
        "days after its end.",
        scope=Scope.MAIL_READ,
    )
    async def task(self, info: Info, by: TaskRef) -> Task | None:
        row = await info.context.load(tasks.load_visible_tasks_by_id, id_from_ref(by, "by"))
        return Task.from_row_or_none(row)

    @query(
        "Returns the background tasks of the signed-in user's account, and the tasks that the "
        "caller started for other accounts or for the platform. An ADMIN gets all tasks except "
        "legal hold tasks that others started. A ROOT gets all tasks. Tasks are deleted 7 days "
        "after their end.",
        scope=Scope.MAIL_READ,
    )
    async def tasks(
        self,
        info: Info,
        filter: TaskFilter | None = UNSET,
        order_by: TaskOrder = TaskOrder.CREATED_AT_DESC,
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
            f"tasks-{order_by}", None if conditions == TaskConditions() else conditions
        )
        list_order = tasks.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Task,
            await tasks.read_visible_task_page(
                info.context, conditions, requested_page, selected_columns(info, Task), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: tasks.count_visible_tasks(info.context, conditions),
        )


@strawberry.type
class TaskMutation:
    @mutation(
        "Cancels background tasks, all or none: queued ones at once, running ones at their next "
        "step. The work done before remains. Finished tasks don't change. Tasks HELD_COPY, "
        "USER_DELETE, SECURITY_NOTIFICATION and BLOB_COLLECT can't be cancelled, even finished "
        "ones: FORBIDDEN_OPERATION. The caller can cancel the tasks that `tasks` returns; another "
        "task is NOT_FOUND. More than 250 tasks are the error VALIDATION, and more than 1,000 (by "
        "default) LIMIT_REACHED.",
        scope=Scope.MAIL,
    )
    async def task_cancel(self, info: Info, input: TaskCancelInput) -> TasksPayload:
        keys = ids_from_refs(info, input.tasks, "tasks")
        await tasks.cancel_tasks(info.context, keys)
        rows = await info.context.load_many(tasks.load_visible_tasks_by_id, keys)
        return TasksPayload(tasks=[Task.from_row(row) for row in rows if row])

    @mutation(
        "Undoes a move, deletion or mute of messages, a change of their flags, expiry, snooze or "
        "metadata, or a submission that is still held. Only the account whose request returned "
        "the token can use it, once. That can be an administrator who changed messages of another "
        "user, or sent for one, and still has the right to do so. A change can be undone for 10 "
        "minutes by default, a submission until its delay ends. A message that was moved again "
        "stays where it is. Flags that were changed since then are kept; other values are set "
        "back. A permanently deleted message stays deleted, and INBOX replaces a missing mailbox. "
        "An undone submission becomes a draft. An unknown, used or expired token is NOT_FOUND. A "
        "message that is already being sent is CONFLICT. QUOTA_EXCEEDED if deleted messages no "
        "longer fit into the storage quota of their owner. If another client changes the sent "
        "copy during the undo: STALE, or CONFLICT if it deletes the copy or makes it a draft.",
        scope=Scope.MAIL,
        access=OWN,
        cost=2 * LONG_MUTATION_COST,
    )
    async def undo(self, info: Info, input: UndoInput) -> UndoPayload:
        field_names = selected_fields(info)
        undone = await undo.undo_by_token(info.context, input.token)
        message_rows = submission_rows = list[ColumnRow | None]()
        if "messages" in field_names and undone.message_ids:
            message_rows = await message_loaders.load_visible_by_ids(
                info.context, [*undone.message_ids]
            )
        if "submissions" in field_names and undone.submission_ids:
            submission_rows = await submission_loaders.load_own_submissions_by_id(
                info.context, [*undone.submission_ids]
            )
        return UndoPayload(
            restored_count=undone.restored_count,
            messages=[_message_from_row(row) for row in message_rows if row],
            submissions=[_submission_from_row(row) for row in submission_rows if row],
        )


@strawberry.type
class TaskSubscription:
    @subscription(
        "Streams a background task at once, and after each change of its state or counts until it "
        "ends, as its last item. The caller can follow the tasks that `tasks` returns. Another "
        "task is the error NOT_FOUND.",
        scope=Scope.MAIL_READ,
    )
    async def task_progress(self, info: Info, task: TaskRef) -> AsyncIterator[Task]:
        async for row in progress.follow_task_until_finished(
            info.context, id_from_ref(task, "task")
        ):
            yield Task.from_row(row)
