"""Lists of webhooks and of their deliveries, as far as the viewer can see them."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    cast,
    false,
    func,
    select,
    true,
)
from sqlmodel import col

from models.events.event_types import WebhookEventType
from models.notifications.webhooks import (
    Webhook,
    WebhookDelivery,
    WebhookDeliveryState,
)
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import is_managed_user
from resolvers.context import Context
from resolvers.list_orders import (
    OwnerPageKey,
    SortColumn,
    list_orders,
    read_list_pages,
    read_ordered_page,
)
from resolvers.pagination import read_by_keys

VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(Webhook)) - {
    "secret",
    "old_secret",
}


class WebhookOrder(StrEnum):
    """The order of a list of webhooks; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


class WebhookDeliveryOrder(StrEnum):
    """The order of a list of deliveries."""

    CREATED_ASC = "CREATED_ASC"
    CREATED_DESC = "CREATED_DESC"


LIST_ORDERS = list_orders(WebhookOrder)
# ids are in the order of creation
DELIVERY_ORDERS = list_orders(WebhookDeliveryOrder, {"CREATED": SortColumn("id", int)})


@dataclass(frozen=True, slots=True)
class WebhookWhere:
    """The conditions of a list of webhooks; all of them hold."""

    type: WebhookEventType | None = None  # webhooks that receive events of this type
    user_id: int | None = None


@dataclass(frozen=True, slots=True)
class WebhookDeliveryPageKey(OwnerPageKey):
    """A page of the deliveries of a webhook, of all states or only those of one."""

    state: WebhookDeliveryState | None = None


def is_visible_webhook(ctx: Context) -> ColumnElement[bool]:
    """Return the SQL condition for webhooks that the viewer sees."""
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is not Role.DOMAIN_ADMIN or not viewer.administered_domains:
        return false()
    managed_user_ids = select(col(User.id)).where(
        is_managed_user(ctx), col(User.domain_id).in_(viewer.administered_domains)
    )
    return col(Webhook.domain_id).in_(viewer.administered_domains) | col(Webhook.user_id).in_(
        managed_user_ids
    )


async def load_visible_webhooks_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load webhooks, in the order of the ids; None if the viewer does not see one."""
    visible_webhooks = select(*select_columns(Webhook, VISIBLE_COLUMNS)).where(
        is_visible_webhook(ctx)
    )
    return await read_by_keys(ctx, visible_webhooks, col(Webhook.id), ids)


def _visible_and_filtered_conditions(
    ctx: Context, where: WebhookWhere
) -> list[ColumnElement[bool]]:
    terms = [is_visible_webhook(ctx)]
    if where.user_id is not None:
        terms.append(col(Webhook.user_id) == where.user_id)
    if where.type is not None:
        types = col(Webhook.types)
        has_type = cast(types, String).contains(f'"{where.type.value}"', autoescape=True)
        terms.append(types.is_(None) | has_type)
    return terms


async def read_visible_webhook_page(
    ctx: Context,
    where: WebhookWhere,
    page_request: PageRequest,
    columns: Collection[str],
    order: WebhookOrder = WebhookOrder.CREATED_AT_ASC,
) -> Page[ColumnRow]:
    """Read a page of webhooks. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    names = VISIBLE_COLUMNS.intersection(columns) | {list_order.column, "id"}
    rows = select(*select_columns(Webhook, names)).where(
        *_visible_and_filtered_conditions(ctx, where)
    )
    return await read_ordered_page(ctx, rows, Webhook, page_request, list_order)


async def count_visible_webhooks(ctx: Context, where: WebhookWhere) -> int:
    """Count the webhooks of a list."""
    count_statement = select(func.count().label("many")).select_from(Webhook)
    (row,) = await ctx.read(count_statement.where(*_visible_and_filtered_conditions(ctx, where)))
    return int(row.many)


async def load_delivery_pages_by_webhook(
    ctx: Context, page_keys: list[WebhookDeliveryPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the deliveries of webhooks, which the viewer is known to see."""
    return await read_list_pages(ctx, WebhookDelivery, page_keys, _select_deliveries_of_page)


def _select_deliveries_of_page(
    _ctx: Context, page_key: WebhookDeliveryPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    statement = select(*select_columns(WebhookDelivery, columns)).where(
        col(WebhookDelivery.webhook_id) == page_key.owner_id
    )
    if page_key.state is None:
        return statement
    return statement.where(col(WebhookDelivery.state) == page_key.state)


async def count_deliveries_by_webhook(
    ctx: Context, page_keys: list[WebhookDeliveryPageKey]
) -> list[int]:
    """Count the stored deliveries of each list, in the given order."""
    statements = [_select_deliveries_of_page(ctx, key, ["id"]) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


async def load_visible_deliveries_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load deliveries, in the order of the ids; None if the viewer does not see one."""
    visible_webhook_ids = select(col(Webhook.id)).where(is_visible_webhook(ctx))
    visible_deliveries = select(*select_columns(WebhookDelivery)).where(
        col(WebhookDelivery.webhook_id).in_(visible_webhook_ids)
    )
    return await read_by_keys(ctx, visible_deliveries, col(WebhookDelivery.id), ids)
