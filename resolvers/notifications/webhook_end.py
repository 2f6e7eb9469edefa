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
from resolvers.users.remaining_rights import RemainingRights


async def delete_webhooks_without_right(
    ctx: Context, maker_ids: Collection[int], rights: RemainingRights
) -> None:
    """Delete the webhooks that users made and may no longer make with these rights.

    The deletion is in the admin log, and in the security logs of the accounts of webhooks.
    """
    if rights.role is Role.ROOT:
        return
    statement = select(*select_columns(Webhook)).where(col(Webhook.made_by).in_(maker_ids))
    if rights.role is Role.ADMIN:
        root_users = select(col(User.id)).where(col(User.role) == Role.ROOT)
        statement = statement.where(col(Webhook.user_id).in_(root_users))
    elif rights.role is Role.DOMAIN_ADMIN:
        # the webhook of an ADMIN for a user follows the user to other domains
        domain_id = col(Webhook.domain_id)
        is_elsewhere = domain_id.not_in(sorted(rights.domain_ids))
        statement = statement.where(or_(domain_id.is_(None), is_elsewhere))
    rows = await ctx.read(statement)
    if rows:
        async with ctx.write_session(PLATFORM) as session:
            await delete_and_log_webhooks(ctx, session, rows)
