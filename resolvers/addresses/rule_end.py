"""End the rules of administrators who lose the right to them."""

from collections.abc import Collection

from sqlalchemy import select
from sqlmodel import col

from models.addresses.rewrites import BccRule
from models.events.journal import PLATFORM
from models.users.roles import AdminPermission, Role
from resolvers.addresses import bcc_rules
from resolvers.context import Context


async def delete_bcc_rules_without_right(
    ctx: Context,
    maker_id: int,
    role: Role,
    permissions: Collection[str],
    administered_domain_ids: Collection[int],
) -> None:
    """Delete the BCC rules that a user made and may no longer make with its new rights.

    The deletion is in the audit log, and in the security logs of the accounts that were copied.
    """
    if role.includes(Role.ADMIN):
        return
    statement = select(col(BccRule.id)).where(col(BccRule.made_by) == maker_id)
    if role is Role.DOMAIN_ADMIN and AdminPermission.BCC_RULES in permissions:
        statement = statement.where(col(BccRule.domain_id).not_in(list(administered_domain_ids)))
    rule_ids = [row.id for row in await ctx.read(statement)]
    rows = [row for row in await bcc_rules.load_visible_rules_by_id(ctx, rule_ids) if row]
    if rows:
        async with ctx.write_session(PLATFORM, *{row.domain_id for row in rows}) as session:
            await bcc_rules.delete_and_log_rules(ctx, session, rows)
