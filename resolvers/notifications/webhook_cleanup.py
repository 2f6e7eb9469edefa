"""Delete old deliveries of webhooks."""

from typing import Any

from sqlalchemy import (
    Select,
    and_,
    delete,
    literal,
    or_,
    select,
    true,
    union_all,
)
from sqlmodel import col

from models.notifications.webhooks import (
    Webhook,
    WebhookDelivery,
    WebhookDeliveryState,
)
from models.runtime.environment import Environment
from models.store.columns import core_table

MAX_STORED_DELIVERIES = 1000  # of a webhook in each final state
MAX_CONDITIONS = 100  # webhooks and states of one statement
FINAL_STATES = (WebhookDeliveryState.DELIVERED, WebhookDeliveryState.FAILED)


async def delete_all_but_newest_deliveries(environment: Environment) -> None:
    """Delete all but the newest 1,000 deliveries of each webhook and final state."""
    oldest_kept = await environment.database.read(_deletion_ends_query())
    for start in range(0, len(oldest_kept), MAX_CONDITIONS):
        statement = delete(WebhookDelivery).where(
            or_(
                *(
                    and_(
                        col(WebhookDelivery.webhook_id) == row.id,
                        col(WebhookDelivery.state) == row.state,
                        col(WebhookDelivery.id) <= row.end,
                    )
                    for row in oldest_kept[start : start + MAX_CONDITIONS]
                )
            )
        )
        async with environment.write_session() as session:
            await (await session.connection()).execute(statement)


def _deletion_ends_query() -> Select[*tuple[Any, ...]]:
    """Return the query for the newest delivery to delete of each webhook and final state.

    It walks MAX_STORED_DELIVERIES entries of an index for each; a window function would read all
    rows.
    """
    state_type = core_table(WebhookDelivery).c.state.type
    states = union_all(
        *(select(literal(state, state_type).label("state")) for state in FINAL_STATES)
    ).subquery()
    hooks = select(col(Webhook.id), states.c.state).join(states, true()).subquery()
    newest_to_delete = (
        select(col(WebhookDelivery.id))
        .where(
            col(WebhookDelivery.webhook_id) == hooks.c.id,
            col(WebhookDelivery.state) == hooks.c.state,
        )
        .order_by(col(WebhookDelivery.id).desc())
        .offset(MAX_STORED_DELIVERIES)
        .limit(1)
        .scalar_subquery()
    )
    ends_query = select(hooks.c.id, hooks.c.state, newest_to_delete.label("end")).subquery()
    return select(ends_query).where(ends_query.c.end.is_not(None))
