"""Unlink users from their accounts at identity providers. For an ADMIN."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlmodel import col

from models.identity_providers import IdentityLink
from models.store.columns import ColumnRow, select_columns
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.context import Context
from resolvers.identity_providers.accounts import admins_by_group_sql, withdraw_group_role
from resolvers.oauth.refresh_token_end import delete_tokens_of_users
from resolvers.users.selection import UserSelector
from resolvers.users.user_locks import lock_users_and_store_changes


async def delete_links_and_sign_out(ctx: Context, selection: UserSelector) -> list[int]:
    """Delete the links of these users and end their tokens; return the ids of all these users.

    Application passwords and API keys remain. A role DOMAIN_ADMIN that groups gave is withdrawn,
    since a new link does not show it. Users without a link stay unchanged.
    """
    async with (
        ctx.combined_transaction(),
        lock_users_and_store_changes(ctx, selection, "identityLinkDelete") as locked_users,
    ):
        links = await _load_links(ctx, [row.id for row in locked_users.rows])
        linked_ids = [link.user_id for link in links]
        subjects = {link.user_id: f"{link.issuer} {link.subject}" for link in links}
        for row in locked_users.rows:
            if row.id in subjects:
                locked_users.report_change(row, "identity_link", subjects[row.id], None)
                locked_users.sign_out_when_stored(row)
        is_linked = col(IdentityLink.user_id).in_(linked_ids)
        for admin in await ctx.read(admins_by_group_sql(is_linked)):
            await withdraw_group_role(ctx, admin.user_id, admin.domain_id)
        statement = delete(IdentityLink).where(is_linked)
        await (await locked_users.session.connection()).execute(statement)
        await delete_tokens_of_users(locked_users.session, linked_ids)
    ctx.call_after_commit_or_now(lambda: drop_cached_credentials(ctx.environment, *linked_ids))
    return [row.id for row in locked_users.rows]


async def _load_links(ctx: Context, user_ids: Sequence[int]) -> Sequence[ColumnRow]:
    columns = select_columns(IdentityLink, ("user_id", "issuer", "subject"))
    return await ctx.read(select(*columns).where(col(IdentityLink.user_id).in_(user_ids)))
