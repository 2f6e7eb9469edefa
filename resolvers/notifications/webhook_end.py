"""End the webhooks of administrators who lose the right to them."""

from collections.abc import Collection

from sqlalchemy import or_, select
from sqlmodel import col

from models.events.journal import PLATFORM
from models.notifications.webhooks import Webhook
from models.store.columns import select_columns
from models.users.roles import Role
from models.users.tables import User
from resolvers.context import Context
from resolvers.notifications.webhooks import delete_and_log_webhooks


async def delete_webhooks_without_right(
    ctx: Context, maker_id: int, role: Role, administered_domain_ids: Collection[int]
) -> None:
    """Delete the webhooks that a user made and may no longer make with its new rights.

    The deletion is in the admin log.
    """
    if role is Role.ROOT:
        return
    statement = select(*select_columns(Webhook)).where(col(Webhook.made_by) == maker_id)
    if role is Role.ADMIN:
        root_users = select(col(User.id)).where(col(User.role) == Role.ROOT)
        statement = statement.where(col(Webhook.user_id).in_(root_users))
    elif role is Role.DOMAIN_ADMIN:
        # the webhook of an ADMIN for a user follows the user to other domains
        domain_id = col(Webhook.domain_id)
        is_elsewhere = domain_id.not_in(list(administered_domain_ids))
        statement = statement.where(or_(domain_id.is_(None), is_elsewhere))
    rows = await ctx.read(statement)
    if rows:
        async with ctx.write_session(PLATFORM) as session:
            await delete_and_log_webhooks(ctx, session, rows)
