"""List sender rules, as far as the viewer may see them."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, true
from sqlmodel import col

from models.spam.sender_rules import (
    SenderAction,
    SenderRule,
    scope_of_domain,
    scope_of_tag,
    scope_of_user,
)
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role
from models.users.tables import User, UserTag
from resolvers import pagination
from resolvers.access import is_visible_user
from resolvers.context import Context
from resolvers.domains.loaders import is_in_administered_domain
from resolvers.list_orders import (
    ListOrder,
    SortColumn,
    list_orders,
    read_list_pages,
    read_ordered_page,
)
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class SenderRuleOrder(StrEnum):
    """The order of a list of sender rules; ties by id."""

    PATTERN_ASC = "PATTERN_ASC"
    PATTERN_DESC = "PATTERN_DESC"


LIST_ORDERS = list_orders(SenderRuleOrder, {"PATTERN": SortColumn("pattern", str)})


@dataclass(frozen=True, slots=True)
class SenderRuleConditions:
    """The conditions of a list of rules.

    All of them must hold. The ID 0 matches no user or domain.
    """

    user_id: int | None = None
    tag: str | None = None
    domain_id: int | None = None
    action: SenderAction | None = None
    query: str | None = None  # part of pattern or comment


@dataclass(frozen=True, slots=True)
class DomainRuleListing:
    """A request for a page of the sender rules of one domain that meet conditions."""

    domain_id: int
    page_request: PageRequest
    order: ListOrder
    columns: frozenset[str]
    conditions: SenderRuleConditions


def is_visible_rule_sql(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for rules the viewer may see: the own rules, and all for an ADMIN.

    A domain administrator also sees the rules of administered domains and of tags of their
    users; with SENDER_RULES those of the users as well.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    is_own_rule = col(SenderRule.scope) == scope_of_user(viewer.user_id)
    if viewer.role is not Role.DOMAIN_ADMIN or not viewer.administered_domains:
        return is_own_rule
    is_in_administered_domain = col(User.domain_id).in_(viewer.administered_domains)
    tags = (
        select(col(UserTag.tag))
        .join(User, col(User.id) == col(UserTag.user_id))
        .where(is_in_administered_domain)
    )
    is_visible = (
        is_own_rule
        | col(SenderRule.domain_id).in_(viewer.administered_domains)
        | col(SenderRule.tag).in_(tags)
    )
    if AdminPermission.SENDER_RULES not in viewer.permissions:
        return is_visible
    statement = select(col(User.id)).where(is_visible_user(ctx))
    return is_visible | col(SenderRule.user_id).in_(statement)


async def load_visible_rules_by_id(ctx: Context, rule_ids: list[int]) -> list[ColumnRow | None]:
    """Load sender rules in the order of the IDs; None for one the viewer may not see."""
    statement = select(*select_columns(SenderRule)).where(is_visible_rule_sql(ctx))
    return await read_by_keys(ctx, statement, col(SenderRule.id), rule_ids)


def _where_clauses(conditions: SenderRuleConditions) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    scope = col(SenderRule.scope)
    if conditions.user_id is not None:
        terms.append(scope == scope_of_user(conditions.user_id))
    if conditions.tag is not None:
        terms.append(scope == scope_of_tag(conditions.tag.strip().casefold()))
    if conditions.domain_id is not None:
        terms.append(scope == scope_of_domain(conditions.domain_id))
    if conditions.action is not None:
        terms.append(col(SenderRule.action) == conditions.action)
    if conditions.query:
        condition = contains_text_sql(col(SenderRule.pattern), conditions.query)
        terms.append(condition | contains_text_sql(col(SenderRule.comment), conditions.query))
    return terms


async def read_rule_page(
    ctx: Context,
    conditions: SenderRuleConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: SenderRuleOrder = SenderRuleOrder.PATTERN_ASC,
) -> Page[ColumnRow]:
    """Return a page of sender rules. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    names = {"id", list_order.column, *columns}
    rows = select(*select_columns(SenderRule, names)).where(
        is_visible_rule_sql(ctx), *_where_clauses(conditions)
    )
    return await read_ordered_page(ctx, rows, SenderRule, page_request, list_order)


async def count_rules(ctx: Context, conditions: SenderRuleConditions) -> int:
    """Return the number of sender rules that match."""
    count_statement = select(func.count().label("many")).select_from(SenderRule)
    (row,) = await ctx.read(
        count_statement.where(is_visible_rule_sql(ctx), *_where_clauses(conditions))
    )
    return int(row.many)


def _select_rules_of_domain(
    ctx: Context, listing: DomainRuleListing, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(SenderRule, columns)).where(
        col(SenderRule.scope) == scope_of_domain(listing.domain_id),
        is_in_administered_domain(ctx, col(SenderRule.domain_id)),
        *_where_clauses(listing.conditions),
    )


async def load_rule_pages_by_domain(
    ctx: Context, listings: list[DomainRuleListing]
) -> list[Page[ColumnRow]]:
    """Load these pages of the sender rules of domains.

    Raises InvalidInput for a cursor of another order.
    """
    return await read_list_pages(ctx, SenderRule, listings, _select_rules_of_domain)


async def count_rules_by_domain(ctx: Context, listings: list[DomainRuleListing]) -> list[int]:
    """Return the number of rules of each listing."""
    statements = [_select_rules_of_domain(ctx, listing, ["id"]) for listing in listings]
    return await pagination.count_rows(ctx, statements)
