"""Pages of SCIM accounts: filters, orders and counts."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scim2_models import InvalidPathException
from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import aliased
from sqlalchemy.sql.visitors import iterate
from sqlmodel import col

from mail.addresses.address_syntax import normalized_address, username_key
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.scim import ScimAddress, ScimGroup, ScimGroupMember, ScimUser
from models.store.columns import core_table
from models.store.query_hints import without_index
from models.store.text_folding import FoldedText
from models.users.tables import User
from resolvers.context import Context
from resolvers.scim.accounts import (
    DEFAULT_MAIN_TYPE,
    ScimAccount,
    is_in_tenant_sql,
    is_shown_address_sql,
    is_tenant_group_sql,
    load_accounts,
)
from resolvers.scim.filter_attributes import (
    AbsentAttribute,
    BooleanAttribute,
    EntryListAttribute,
    FilterAccess,
    FilterAttributes,
    IdAttribute,
    ResourceRows,
    TextAttribute,
    TimeAttribute,
    exact_text,
)
from resolvers.scim.filters import filter_condition
from resolvers.scim.resources import GROUP_SCHEMA, ONLY_OF_GROUPS, USER, USER_SCHEMA
from resolvers.scim.search_parameters import ScimIds, ScimSearch

IS_ACTIVE = and_(col(User.active), ~col(User.suspended))


@dataclass(frozen=True, slots=True)
class AccountPage:
    """A page of accounts, and how many match the query."""

    total_count: int
    accounts: Sequence[ScimAccount]


@dataclass(frozen=True, slots=True)
class AccountQuery:
    """The conditions and the order of a query, and the part of the result that is wanted."""

    search: ScimSearch
    conditions: Sequence[ColumnElement[bool]]
    order: Sequence[ColumnElement[Any]]
    access: FilterAccess  # LOOKUP: the rows of the result only, in the order of an index


def account_query(ctx: Context, search: ScimSearch, ids: ScimIds) -> AccountQuery:
    """Return the query of a search. Raises InvalidFilterException or InvalidPathException."""
    order = order_by_attribute(search, ACCOUNT_ORDERS)
    has_indexed_order = ACCOUNT_ORDERS.sort_name(search) in INDEXED_ORDERS
    tenant = is_in_tenant_sql(ctx)
    # Deleted users have no domain. The condition makes SQLite read the table, in the order of its
    # rows, if most of them are of the tenant.
    scan = [tenant, col(User.deleted_at).is_(None)]
    if not search.filter:
        conditions = [tenant] if has_indexed_order else scan
        access = FilterAccess.LOOKUP if has_indexed_order else FilterAccess.SCAN
        return AccountQuery(search, conditions, order, access)
    attributes = _account_attributes(ctx, ids)
    if search.of_all_types:
        attributes = replace(attributes, absent_names=ONLY_OF_GROUPS, absent_schema=GROUP_SCHEMA)
    condition = filter_condition(search.filter, attributes)
    if condition.access is FilterAccess.LOOKUP:
        conditions = [condition.sql, without_index(tenant)]
        return AccountQuery(search, conditions, order, condition.access)
    if condition.access is FilterAccess.INDEX and has_indexed_order:
        return AccountQuery(search, [tenant, condition.sql], order, condition.access)
    return AccountQuery(search, [*scan, condition.sql], order, FilterAccess.SCAN)


async def load_account_page(ctx: Context, query: AccountQuery) -> AccountPage:
    """Load a page of the accounts that match a query, with at most five statements."""
    search, conditions = query.search, query.conditions
    if search.filter:
        (row,) = await ctx.read(_select_count(conditions).where(*conditions))
        total_count = int(row[0])
    else:
        total_count = await count_tenant_accounts(ctx)
    if not search.count or search.start_index > total_count:
        return AccountPage(total_count, [])
    statement = _join_scim_user(select(col(User.id))).where(*conditions).order_by(*query.order)
    page = statement.offset(search.start_index - 1).limit(search.count)
    user_ids = [row.id for row in await ctx.read(page)]
    return AccountPage(total_count, await load_accounts(ctx, user_ids))


async def count_tenant_accounts(ctx: Context) -> int:
    """Return the number of accounts that the API key sees, from the counters of its domains."""
    statement = select(func.coalesce(func.sum(col(Domain.user_count)), 0)).where(
        col(Domain.id).in_(sorted(ctx.viewer.administered_domains))
    )
    (row,) = await ctx.read(statement)
    return int(row[0])


def _select_count(conditions: Sequence[ColumnElement[bool]]) -> Select[int]:
    """Return a SELECT that counts users. It joins the attributes of SCIM if conditions use them."""
    statement, scim_table = select(func.count()), core_table(ScimUser)
    elements = (element for condition in conditions for element in iterate(condition))
    if any(getattr(element, "table", None) is scim_table for element in elements):
        return _join_scim_user(statement)
    return statement.select_from(User)


def _join_scim_user(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return statement.select_from(User).outerjoin(ScimUser, col(ScimUser.user_id) == col(User.id))


def _account_attributes(ctx: Context, ids: ScimIds) -> FilterAttributes:
    """Return the attributes of accounts for filters. Passwords are not among them."""
    return FilterAttributes(
        USER_SCHEMA,
        ResourceRows(col(User.id), _join_scim_user(select(col(User.id)))),
        {
            "id": IdAttribute(col(User.id), ids.decode_user_id),
            "externalid": exact_text(col(ScimUser.external_id), _has_external_id_sql),
            "username": TextAttribute(
                col(User.username),
                lambda username: username,
                str.lower,
                lambda value: col(User.username_key) == username_key(value),
            ),
            "displayname": TextAttribute(col(User.name)),
            "name.formatted": TextAttribute(col(ScimUser.formatted_name)),
            "name.familyname": TextAttribute(col(ScimUser.family_name)),
            "name.givenname": TextAttribute(col(ScimUser.given_name)),
            "name.middlename": TextAttribute(col(ScimUser.middle_name)),
            "name.honorificprefix": TextAttribute(col(ScimUser.honorific_prefix)),
            "name.honorificsuffix": TextAttribute(col(ScimUser.honorific_suffix)),
            "active": BooleanAttribute(IS_ACTIVE, is_in_index=True),
            "preferredlanguage": TextAttribute(col(User.language)),
            "meta.created": TimeAttribute(col(User.created_at)),
            "meta.lastmodified": TimeAttribute(col(User.updated_at), is_in_tenant_sql(ctx)),
            "meta.resourcetype": TextAttribute(literal(USER)),
            # is not stored; Microsoft Entra ID queries it before it sends a change
            "manager": AbsentAttribute(),
        },
        {
            "emails": EntryListAttribute(
                partial(_has_email_sql, ctx),
                {
                    "value": TextAttribute(col(Address.display_address), equal=_is_address_sql),
                    "type": TextAttribute(
                        func.coalesce(
                            col(ScimAddress.type), case((col(Address.main), DEFAULT_MAIN_TYPE))
                        )
                    ),
                    "primary": BooleanAttribute(col(Address.main).is_(True)),
                },
            ),
            "groups": EntryListAttribute(
                partial(_is_member_sql, ctx),
                {
                    "value": IdAttribute(col(ScimGroup.id), ids.decode_group_id),
                    "display": TextAttribute(col(ScimGroup.display_name)),
                },
            ),
            "roles": EntryListAttribute(
                lambda condition: condition, {"value": TextAttribute(col(User.role))}
            ),
        },
    )


def _has_email_sql(ctx: Context, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """SQL: a user with an address that SCIM shows and that meets the condition."""
    owner = aliased(User)  # in the domains of the viewer: no other addresses are read
    user_ids = (
        select(col(Address.user_id))
        .join(owner, col(owner.id) == col(Address.user_id))
        .outerjoin(ScimAddress, col(ScimAddress.address_id) == col(Address.id))
        .where(
            without_index(
                col(owner.domain_id).in_(sorted(ctx.viewer.administered_domains)),
                is_shown_address_sql(ctx),
            ),
            condition,
        )
    )
    return col(User.id).in_(user_ids)


def _has_external_id_sql(text: str) -> ColumnElement[bool]:
    """SQL: a user with this external ID. An index finds it."""
    row = aliased(ScimUser)  # not that of the outer join, which is read after the user
    return col(User.id).in_(select(col(row.user_id)).where(col(row.external_id) == text))


def _is_address_sql(text: str) -> ColumnElement[bool]:
    """SQL: the address is the same, in normalized form. An index finds it."""
    local, domain = normalized_address(text)
    domain_ids = select(col(Domain.id)).where(col(Domain.name) == domain)
    return and_(col(Address.local) == local, col(Address.domain_id).in_(domain_ids))


def _is_member_sql(ctx: Context, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """SQL: a member of a group that the API key sees and that meets the condition."""
    user_ids = (
        select(col(ScimGroupMember.user_id))
        .join(ScimGroup, col(ScimGroup.id) == col(ScimGroupMember.group_id))
        .where(without_index(is_tenant_group_sql(ctx)), condition)
    )
    return col(User.id).in_(user_ids)


def _main_address_sql() -> ColumnElement[Any]:
    """SQL: the text of the main address of a user."""
    statement = select(func.lower(col(Address.display_address))).where(
        col(Address.user_id) == col(User.id), col(Address.main)
    )
    return statement.correlate(User).scalar_subquery()


ACCOUNT_SORT_COLUMNS: dict[str, Any] = {
    "id": col(User.id),
    "externalid": col(ScimUser.external_id),
    "username": col(User.username_key),
    "displayname": FoldedText(col(User.name)),
    "name.formatted": FoldedText(col(ScimUser.formatted_name)),
    "name.familyname": FoldedText(col(ScimUser.family_name)),
    "name.givenname": FoldedText(col(ScimUser.given_name)),
    "active": case((or_(~col(User.active), col(User.suspended)), 0), else_=1),
    "preferredlanguage": col(User.language),
    "meta.created": col(User.created_at),
    "meta.lastmodified": col(User.updated_at),
    "emails": _main_address_sql(),
    "emails.value": _main_address_sql(),
}

NEVER_NULL = frozenset({"id", "username", "meta.created", "meta.lastmodified"})
INDEXED_ORDERS = frozenset({"id", "username"})


@dataclass(frozen=True, slots=True)
class ResourceOrders:
    """The orders of a resource type: the columns by attribute, and the default attribute.

    `absent_names` are attributes of another type.
    """

    schema: str
    columns: Mapping[str, Any]
    default_name: str
    absent_names: Set[str]

    def sort_name(self, search: ScimSearch) -> str:
        """Return the attribute of a query's order, in lower case."""
        name = (search.sort_by or self.default_name).lower().removeprefix(f"{self.schema.lower()}:")
        is_absent = search.of_all_types and name.partition(".")[0] in self.absent_names
        return self.default_name if is_absent else name


ACCOUNT_ORDERS = ResourceOrders(USER_SCHEMA, ACCOUNT_SORT_COLUMNS, "username", ONLY_OF_GROUPS)


def order_by_attribute(search: ScimSearch, orders: ResourceOrders) -> list[ColumnElement[Any]]:
    """Return the ORDER BY of a query: missing values last, or first if it is descending; then id.

    Raises InvalidPathException for an attribute that has no order.
    """
    name, id_column = orders.sort_name(search), orders.columns["id"]
    column = orders.columns.get(name)
    if column is None:
        raise InvalidPathException(detail=f"Resources can't be sorted by {search.sort_by}.")
    if name in NEVER_NULL:
        return [column.desc(), id_column.desc()] if search.is_descending else [column, id_column]
    if search.is_descending:
        return [column.desc().nulls_first(), id_column.desc()]
    return [column.asc().nulls_last(), id_column]
