"""List and revoke the access that users have given to OAuth clients."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, select
from sqlmodel import col

from models.auth.security_log import SecurityEventAction
from models.oauth.tables import OauthClient, OauthGrant
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.users.roles import AdminPermission
from resolvers import pagination
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.list_orders import OwnerPageKey, list_orders, read_owner_pages
from resolvers.pagination import read_by_keys
from resolvers.users import managed_objects


class OauthGrantOrder(StrEnum):
    """The order of a list of OAuth grants; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(OauthGrantOrder)
GRANT_COLUMNS = frozenset(column.name for column in select_columns(OauthGrant))


def _is_visible_grant(ctx: Context) -> ColumnElement[bool]:
    return managed_objects.is_visible_sql(ctx, OauthGrant, AdminPermission.APP_PASSWORDS)


def _select_visible_grants(
    ctx: Context, columns: Collection[str] = GRANT_COLUMNS
) -> Select[*tuple[Any, ...]]:
    """Select the grants of the viewer and of users the viewer oversees, with their clients."""
    names = GRANT_COLUMNS.intersection(columns) | {"id"}
    return (
        select(
            *select_columns(OauthGrant, names),
            col(OauthClient.name).label("client_name"),
            col(OauthClient.client_id).label("public_client_id"),
        )
        .join(OauthClient, col(OauthClient.id) == col(OauthGrant.client_id))
        .where(_is_visible_grant(ctx))
    )


async def load_visible_grants_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load grants by id, in this order; None for a grant the viewer does not see."""
    return await read_by_keys(ctx, _select_visible_grants(ctx), col(OauthGrant.id), ids)


async def load_visible_grant_pages(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the grants of users that the viewer sees.

    Raises InvalidInput for a cursor of another order.
    """
    return await read_owner_pages(ctx, OauthGrant, page_keys, _select_of_user)


async def count_grants(ctx: Context, page_keys: list[OwnerPageKey]) -> list[int]:
    """Count the grants of the lists, in the order of the keys."""
    statements = [_select_of_user(ctx, key.owner_id, {"id"}) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


def _select_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return _select_visible_grants(ctx, columns).where(col(OauthGrant.user_id) == user_id)


async def revoke_grants(ctx: Context, ids: Sequence[int]) -> None:
    """Delete grants with all their codes and tokens, all or none.

    Raises NotFound for a grant the viewer does not see, Forbidden if the viewer does not manage
    its user.
    """
    visible_rows = await load_visible_grants_by_id(ctx, list(ids))
    owner_ids = managed_objects.require_owner_ids_of_rows(ids, visible_rows)
    clients = {row.id: row for row in visible_rows if row}
    async with ctx.write_session(*owner_ids) as session:
        rows = await managed_objects.require_managed_rows_in_transaction(
            ctx, session, OauthGrant, GRANT_COLUMNS, (ids, _is_visible_grant(ctx))
        )
        statement = delete(OauthGrant).where(col(OauthGrant.id).in_(ids))
        await (await session.connection()).execute(statement)
        for row in rows:
            client = clients[row.id]
            detail = {
                "client": client.client_name,
                "clientId": client.public_client_id,
                "scopes": row.scopes,
            }
            event = NewSecurityEvent(
                SecurityEventAction.OAUTH_GRANT_REVOKED,
                row.user_id,
                target=client.public_client_id,
                detail=detail,
            )
            await security_log.log_event_and_queue_notice(ctx, session, event)
            if ctx.viewer.user_id != row.user_id:
                entry = NewAuditLogEntry(
                    "oauthGrantRevoke", "OauthGrant", row.id, row.domain_id, detail
                )
                await audit_log.insert_audit_log_entries(ctx, session, entry)
    drop_cached_credentials(ctx.environment, *owner_ids)
