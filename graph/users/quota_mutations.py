"""Mutation that recalculates the used storage of users."""

import strawberry

from graph.admin.tasks import Task
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import OVERSEEN
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.scalars import ByteSize
from graph.users.types import User
from models.users.roles import Role, Scope
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import quota_recalculation


@strawberry.input(description="Input of quotaRecalculate.")
class QuotaRecalculateInput(Options):
    users: UserSelection = attribute_field(
        "Accounts whose storage is counted. With `all`, a task counts every account."
    )


@strawberry.type(description="Used storage of an account before and after a recalculation.")
class QuotaResult:
    user: User = attribute_field("Account that was counted.")
    storage_used: ByteSize = attribute_field(
        "Sum of the sizes of the account's messages, before deduplication and compression, and of "
        "its custom data (`QuotaUsage.used`), in bytes. Deleted messages that can be restored do "
        "not count."
    )
    previous_storage_used: ByteSize = attribute_field(
        "Used storage in bytes that the counter of the account had before the recalculation."
    )


@strawberry.type(description="Payload of quotaRecalculate.")
class QuotaRecalculatePayload(MutationPayload):
    quota_results: list[QuotaResult] = attribute_field(
        "Counted accounts with their used storage. Empty if a task counts them, or the mutation "
        "failed.",
        default_factory=list,
    )
    task: Task | None = attribute_field(
        "Task that recalculates the used storage of the accounts. Null: the accounts in "
        "`quotaResults` are complete, or the mutation failed.",
        default=None,
    )


@strawberry.type
class UserQuotaMutation:
    @mutation(
        "Recalculates the used storage of accounts from their stored messages and custom data, "
        "and their `messageCount`, and corrects the counters. Up to 100 accounts are counted "
        "before the response. A task counts more accounts, or `all`. LIMIT_REACHED for more than "
        "1,000 accounts (by default) without `all`.",
        role=Role.ADMIN,
        scope=Scope.FULL,
        access=OVERSEEN,
    )
    async def quota_recalculate(
        self, info: Info, input: QuotaRecalculateInput
    ) -> QuotaRecalculatePayload:
        result = await quota_recalculation.recalculate_storage_usage_or_queue(
            info.context, user_selector_from_selection(input.users)
        )
        rows = await info.context.load_many(
            user_loaders.load_visible_users_by_id, [count.user_id for count in result.counts]
        )
        quota_results = [
            QuotaResult(
                user=User.from_row(row),
                storage_used=ByteSize(count.bytes_now),
                previous_storage_used=ByteSize(max(count.bytes_before, 0)),
            )
            for row, count in zip(rows, result.counts, strict=True)
            if row
        ]
        task = Task.from_row_or_none(result.task)
        return QuotaRecalculatePayload(quota_results=quota_results, task=task)
