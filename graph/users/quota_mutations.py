"""Mutation that recalculates the used storage of users."""

import strawberry

from graph.admin.tasks import Task
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, users_named
from graph.types.scalars import ByteSize
from graph.users.types import User
from models.users.roles import Role, Scope
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import quota_recalculation


@strawberry.input(description="Input of quotaRecalculate.")
class QuotaRecalculateInput(Options):
    users: UserSelection = leaf("Which accounts; all = by a task.")


@strawberry.type(description="What an account stores, counted afresh.")
class QuotaResult:
    user: User = leaf("The account.")
    storage_used: ByteSize = leaf("In use.")
    previous_storage_used: ByteSize = leaf("In use, by the counter as it was.")


@strawberry.type(description="Answer of quotaRecalculate.")
class QuotaRecalculatePayload(MutationPayload):
    results: list[QuotaResult] = leaf(
        "The accounts; none where a task looks.", default_factory=list
    )
    task: Task | None = leaf("Background work, null when done at once.", default=None)


@strawberry.type
class UserQuotaMutation:
    @mutation("Counts afresh what accounts store.", role=Role.ADMIN, scope=Scope.MASTER)
    async def quota_recalculate(
        self, info: Info, input: QuotaRecalculateInput
    ) -> QuotaRecalculatePayload:
        result = await quota_recalculation.recalculate(info.context, users_named(input.users))
        rows = await info.context.load_all(
            user_loaders.by_ids, [key for key, _, _ in result.counts]
        )
        results = [
            QuotaResult(
                user=User.of(row),
                storage_used=ByteSize(now),
                previous_storage_used=ByteSize(max(before, 0)),
            )
            for row, (_, before, now) in zip(rows, result.counts, strict=True)
            if row
        ]
        return QuotaRecalculatePayload(results=results, task=Task.maybe(result.task))
