"""Mutation that recalculates the used storage of users."""

import strawberry

from graph.admin.tasks import Task
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.scalars import ByteSize
from graph.users.types import User
from models.users.roles import Role, Scope
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import quota_recalculation


@strawberry.input(description="Input of quotaRecalculate.")
class QuotaRecalculateInput(Options):
    users: UserSelection = attribute_field("Which accounts; all = by a task.")


@strawberry.type(description="What an account stores, counted afresh.")
class QuotaResult:
    user: User = attribute_field("The account.")
    storage_used: ByteSize = attribute_field("In use.")
    previous_storage_used: ByteSize = attribute_field("In use, by the counter as it was.")


@strawberry.type(description="Answer of quotaRecalculate.")
class QuotaRecalculatePayload(MutationPayload):
    results: list[QuotaResult] = attribute_field(
        "The accounts; none where a task looks.", default_factory=list
    )
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)


@strawberry.type
class UserQuotaMutation:
    @mutation("Counts afresh what accounts store.", role=Role.ADMIN, scope=Scope.FULL)
    async def quota_recalculate(
        self, info: Info, input: QuotaRecalculateInput
    ) -> QuotaRecalculatePayload:
        result = await quota_recalculation.recalculate_quotas(
            info.context, user_selector_from_selection(input.users)
        )
        rows = await info.context.load_many(
            user_loaders.load_visible_users_by_id, [count.user_id for count in result.counts]
        )
        results = [
            QuotaResult(
                user=User.from_row(row),
                storage_used=ByteSize(count.bytes_now),
                previous_storage_used=ByteSize(max(count.bytes_before, 0)),
            )
            for row, count in zip(rows, result.counts, strict=True)
            if row
        ]
        return QuotaRecalculatePayload(results=results, task=Task.from_row_or_none(result.task))
