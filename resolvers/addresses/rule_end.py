"""End the rules of administrators who lose the right to them."""

from collections.abc import Collection

from sqlalchemy import select
from sqlmodel import col

from models.addresses.rewrites import BccRule
from models.domains.tables import Domain
from models.events.journal import PLATFORM
from models.store.columns import select_columns
from models.users.roles import AdminPermission, Role
from resolvers.addresses import bcc_rules
from resolvers.context import Context
from resolvers.users.remaining_rights import RemainingRights


async def delete_bcc_rules_without_right(
    ctx: Context, maker_ids: Collection[int], rights: RemainingRights
) -> None:
    """Delete the BCC rules that users made and may no longer make with these rights.

    The viewer may lack the right to see the rules. The deletion is in the audit log, and in the
    security logs of the accounts that were copied.
    """
    if rights.role.includes(Role.ADMIN):
        return
    statement = (
        select(*select_columns(BccRule), col(Domain.name).label("name"))
        .join(Domain, col(Domain.id) == col(BccRule.domain_id))
        .where(col(BccRule.made_by).in_(maker_ids))
    )
    if rights.role is Role.DOMAIN_ADMIN and AdminPermission.BCC_RULES in rights.permissions:
        statement = statement.where(col(BccRule.domain_id).not_in(sorted(rights.domain_ids)))
    rows = await ctx.read(statement)
    if rows:
        async with ctx.write_session(PLATFORM, *{row.domain_id for row in rows}) as session:
            await bcc_rules.delete_and_log_rules(ctx, session, rows)
