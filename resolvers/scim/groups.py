"""Read SCIM groups and their members."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scim2_models import NotFoundException, TooManyException
from sqlalchemy import ColumnElement, func, literal, select
from sqlmodel import col

from models.scim import ScimGroup, ScimGroupMember
from models.store.columns import ColumnRow, select_columns
from models.store.query_hints import without_index
from models.store.text_folding import FoldedText, fold_text
from models.users.tables import User
from resolvers.context import Context
from resolvers.scim.account_listing import ResourceOrders, order_by_attribute
from resolvers.scim.accounts import is_in_tenant_sql, is_tenant_group_sql
from resolvers.scim.filter_attributes import (
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
from resolvers.scim.resources import GROUP, GROUP_SCHEMA, ONLY_OF_ACCOUNTS, USER_SCHEMA
from resolvers.scim.search_parameters import ScimIds, ScimSearch

MAX_MEMBERS = 10_000  # of one group
MAX_MEMBERS_OF_PAGE = 50_000


@dataclass(frozen=True, slots=True)
class ScimGroupWithMembers:
    """A group with the ids of those of its members that the API key sees."""

    row: ColumnRow
    member_ids: Sequence[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GroupPage:
    """A page of groups, and how many match the query."""

    total_count: int
    groups: Sequence[ScimGroupWithMembers]


async def require_group(
    ctx: Context, group_id: int | None, *, with_members: bool = True
) -> ScimGroupWithMembers:
    """Load a group. Raises NotFoundException if it is not in a domain of the API key."""
    statement = select(*select_columns(ScimGroup)).where(
        col(ScimGroup.id) == (group_id or 0), is_tenant_group_sql(ctx)
    )
    rows = await ctx.read(statement)
    if not rows:
        raise NotFoundException(detail="There is no group with this ID.")
    members = await _load_member_ids_within_limit(ctx, [rows[0].id]) if with_members else {}
    return ScimGroupWithMembers(rows[0], members.get(rows[0].id, []))


async def _load_member_ids_within_limit(
    ctx: Context, group_ids: Sequence[int]
) -> dict[int, list[int]]:
    """Load the members of groups that the API key sees, by group id.

    Raises TooManyException if they are too many for one response.
    """
    member_ids = defaultdict[int, list[int]](list)
    statement = (
        select(col(ScimGroupMember.group_id), col(ScimGroupMember.user_id))
        .join(User, col(User.id) == col(ScimGroupMember.user_id))
        .where(col(ScimGroupMember.group_id).in_(group_ids), without_index(is_in_tenant_sql(ctx)))
        .order_by(col(ScimGroupMember.group_id), col(ScimGroupMember.user_id))
        .limit(MAX_MEMBERS_OF_PAGE + 1)
    )
    rows = await ctx.read(statement)
    if len(rows) > MAX_MEMBERS_OF_PAGE:
        text = "The groups have too many members: use a lower count or excludedAttributes=members."
        raise TooManyException(detail=text)
    for row in rows:
        member_ids[row.group_id].append(row.user_id)
    return member_ids


async def load_group_page(
    ctx: Context, search: ScimSearch, ids: ScimIds, *, with_members: bool
) -> GroupPage:
    """Load a page of the groups that match a query, with at most three statements.

    Raises InvalidFilterException, InvalidPathException, or TooManyException.
    """
    tenant = is_tenant_group_sql(ctx)
    conditions = [tenant]
    if search.filter:
        attributes = _group_attributes(ctx, ids)
        if search.of_all_types:
            attributes = replace(
                attributes, absent_names=ONLY_OF_ACCOUNTS, absent_schema=USER_SCHEMA
            )
        condition = filter_condition(search.filter, attributes)
        is_lookup = condition.access is FilterAccess.LOOKUP
        conditions = [without_index(tenant) if is_lookup else tenant, condition.sql]
    order = order_by_attribute(search, GROUP_ORDERS)
    count = select(func.count()).select_from(ScimGroup).where(*conditions)
    total_count = int((await ctx.read(count))[0][0])
    if not search.count or search.start_index > total_count:
        return GroupPage(total_count, [])
    page = select(*select_columns(ScimGroup)).where(*conditions).order_by(*order)
    rows = await ctx.read(page.offset(search.start_index - 1).limit(search.count))
    members = (
        await _load_member_ids_within_limit(ctx, [row.id for row in rows]) if with_members else {}
    )
    return GroupPage(
        total_count, [ScimGroupWithMembers(row, members.get(row.id, [])) for row in rows]
    )


GROUP_SORT_COLUMNS = {
    "id": col(ScimGroup.id),
    "displayname": FoldedText(col(ScimGroup.display_name)),
    "externalid": col(ScimGroup.external_id),
    "meta.created": col(ScimGroup.created_at),
    "meta.lastmodified": col(ScimGroup.updated_at),
}
GROUP_ORDERS = ResourceOrders(GROUP_SCHEMA, GROUP_SORT_COLUMNS, "id", ONLY_OF_ACCOUNTS)


def _group_attributes(ctx: Context, ids: ScimIds) -> FilterAttributes:
    """Return the attributes of groups for filters."""

    def has_member_sql(condition: ColumnElement[bool]) -> ColumnElement[bool]:
        group_ids = (
            select(col(ScimGroupMember.group_id))
            .join(User, col(User.id) == col(ScimGroupMember.user_id))
            .where(without_index(is_in_tenant_sql(ctx)), condition)
        )
        return col(ScimGroup.id).in_(group_ids)

    def has_external_id_sql(text: str) -> ColumnElement[bool]:
        return col(ScimGroup.external_id) == text

    def has_name_sql(text: str) -> ColumnElement[bool]:
        return is_tenant_group_sql(ctx) & (col(ScimGroup.name_key) == fold_text(text))

    return FilterAttributes(
        GROUP_SCHEMA,
        ResourceRows(col(ScimGroup.id), select(col(ScimGroup.id))),
        {
            "id": IdAttribute(col(ScimGroup.id), ids.decode_group_id),
            "externalid": exact_text(col(ScimGroup.external_id), has_external_id_sql),
            "displayname": TextAttribute(col(ScimGroup.display_name), equal=has_name_sql),
            "meta.created": TimeAttribute(col(ScimGroup.created_at)),
            "meta.lastmodified": TimeAttribute(col(ScimGroup.updated_at)),
            "meta.resourcetype": TextAttribute(literal(GROUP)),
        },
        {
            "members": EntryListAttribute(
                has_member_sql,
                {"value": IdAttribute(col(ScimGroupMember.user_id), ids.decode_user_id)},
            )
        },
    )


def group_version(group: ScimGroupWithMembers) -> str:
    """Return the version of a group, which increases with each change."""
    return f"{group.row.id:x}.{group.row.version}"
