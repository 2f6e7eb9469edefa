"""Repeat webhook events from the journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import TaskKind
from models.errors import InvalidInput, NotFound
from models.events import journal
from models.events.journal import Stream, StreamPositions
from models.notifications.webhooks import Webhook, insert_deliveries_and_lanes_if_webhook_exists
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult
from resolvers.context import Context
from resolvers.notifications.webhook_feed import WebhookTarget, webhook_delivery_rows

TASK_KIND = TaskKind.WEBHOOK_REPLAY
MAX_CHANGES_PER_STEP = 100  # in one transaction


async def validated_replay_order(
    ctx: Context, webhook: ColumnRow, since: StreamPositions
) -> dict[str, Any]:
    """Return the order of a replay task.

    Raises InvalidInput if the position is unknown, expired, or not of a stream of the webhook.
    """
    statement = select(*select_columns(Stream)).where(col(Stream.id).in_(list(since)))
    streams = {row.id: row for row in await ctx.read(statement)}
    user_statement = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(list(since)))
    domain_by_user = {row.id: row.domain_id for row in await ctx.read(user_statement)}
    for key, position in since.items():
        row, path = streams.get(key), ["after"]
        if (
            row is None
            or not _covers_stream(webhook, key, domain_by_user.get(key))
            or position > row.last
        ):
            text = "The cursor is not a position of a user or domain of this webhook."
            raise InvalidInput(text, constraint=ValidationConstraint.CURSOR, path=path)
        if position < row.pruned_position:
            raise InvalidInput(
                "The events after this cursor are older than the retention of the journal.",
                constraint=ValidationConstraint.EXPIRED,
                path=path,
            )
    return {
        "webhook": webhook.id,
        "after": {str(key): number for key, number in since.items()},
        "until": {str(key): streams[key].last for key in since},
    }


def _covers_stream(webhook: ColumnRow, stream_id: int, domain_id: int | None) -> bool:
    is_in_domain = webhook.domain_id in (None, stream_id, domain_id)
    return is_in_domain and webhook.user_id in (None, stream_id)


@dataclass(frozen=True, slots=True)
class PreparedReplay:
    """The delivery rows for the next changes of a stream, and the position after them."""

    stream: str  # the stream ID, as in the stored order
    position: int
    delivery_rows: Sequence[dict[str, Any]]


async def plan_deliveries_of_next_changes(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Read the next changes of one stream and prepare their delivery rows."""
    positions = {**task_order["after"], **checkpoint}
    stream = next((key for key, last in task_order["until"].items() if positions[key] < last), None)
    if stream is None:
        return TaskStepPlan()
    statement = journal.next_changes_select({int(stream): positions[stream]}).limit(
        MAX_CHANGES_PER_STEP
    )
    changes = [c for c in await ctx.read(statement) if c.last <= task_order["until"][stream]]
    webhook = await _read_webhook(ctx, task_order["webhook"])
    target = WebhookTarget(
        webhook.id,
        webhook.user_id,
        webhook.domain_id,
        webhook.types,
        changes[0].at if changes else webhook.since,
        webhook.made_by,
    )
    rows = await webhook_delivery_rows(ctx.environment, changes, [target])
    position = changes[-1].last if changes else task_order["until"][stream]
    return TaskStepPlan(prepared=PreparedReplay(stream, position, rows))


async def _read_webhook(ctx: Context, webhook_id: int) -> ColumnRow:
    statement = select(*select_columns(Webhook)).where(col(Webhook.id) == webhook_id)
    for row in await ctx.read(statement):
        return row
    raise NotFound(str(webhook_id), path=["webhook"])


async def insert_prepared_deliveries(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Insert the prepared delivery rows and return the new checkpoint."""
    if task_plan.prepared is None:
        return TaskStepResult(checkpoint)
    replay: PreparedReplay = task_plan.prepared
    positions_before = {**order["after"], **checkpoint}
    await (await session.connection()).run_sync(
        insert_deliveries_and_lanes_if_webhook_exists, ctx.environment.now(), replay.delivery_rows
    )
    positions_after = {**checkpoint, replay.stream: replay.position}
    has_more = any(
        {**positions_before, **positions_after}[key] < last for key, last in order["until"].items()
    )
    return TaskStepResult(
        positions_after,
        done_count=replay.position - positions_before[replay.stream],
        has_more=has_more,
    )
