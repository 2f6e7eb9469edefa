"""List sender rules, as far as the viewer may see them."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, true
from sqlmodel import col

from models.spam.sender_rules import (
    SenderAction,
    SenderRule,
    place_of_domain,
    place_of_tag,
    place_of_user,
)
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role
from models.users.tables import User, UserTag
from resolvers import pagination
from resolvers.access import is_visible_user
from resolvers.context import Context
from resolvers.domains.loaders import is_in_administered_domain
from resolvers.pagination import PageScan, read_by_keys, read_union
from resolvers.sql_text import contains_text_sql

CURSOR_KIND = "sender-rules"
SORT_COLUMNS = (col(SenderRule.pattern), col(SenderRule.id))


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
    """A request for a page of the sender rules of one domain."""

    domain_id: int
    page_request: PageRequest
    columns: frozenset[str]
    action: SenderAction | None = None


def is_visible_rule_sql(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for rules the viewer may see: the own rules, and all for an ADMIN.

    A domain administrator also sees the rules of administered domains and of tags of their
    users; with SPAM_POLICY those of the users as well.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    own = col(SenderRule.place) == place_of_user(viewer.user_id)
    if viewer.role is not Role.DOMAIN_ADMIN or not viewer.administered_domains:
        return own
    is_in_administered_domain = col(User.domain_id).in_(viewer.administered_domains)
    tags = (
        select(col(UserTag.tag))
        .join(User, col(User.id) == col(UserTag.user_id))
        .where(is_in_administered_domain)
    )
    is_visible = (
        own
        | col(SenderRule.domain_id).in_(viewer.administered_domains)
        | col(SenderRule.tag).in_(tags)
    )
    if AdminPermission.SPAM_POLICY not in viewer.permissions:
        return is_visible
    statement = select(col(User.id)).where(is_visible_user(ctx))
    return is_visible | col(SenderRule.user_id).in_(statement)


async def load_visible_rules_by_id(ctx: Context, rule_ids: list[int]) -> list[ColumnRow | None]:
    """Load sender rules in the order of the IDs; None for one the viewer may not see."""
    statement = select(*select_columns(SenderRule)).where(is_visible_rule_sql(ctx))
    return await read_by_keys(ctx, statement, col(SenderRule.id), rule_ids)


def _filter_conditions(ctx: Context, conditions: SenderRuleConditions) -> list[ColumnElement[bool]]:
    terms, order_columns = [is_visible_rule_sql(ctx)], col(SenderRule.place)
    if conditions.user_id is not None:
        terms.append(order_columns == place_of_user(conditions.user_id))
    if conditions.tag is not None:
        terms.append(order_columns == place_of_tag(conditions.tag.strip().casefold()))
    if conditions.domain_id is not None:
        terms.append(order_columns == place_of_domain(conditions.domain_id))
    if conditions.action is not None:
        terms.append(col(SenderRule.action) == conditions.action)
    if conditions.query:
        found = contains_text_sql(col(SenderRule.pattern), conditions.query)
        terms.append(found | contains_text_sql(col(SenderRule.comment), conditions.query))
    return terms


async def read_rule_page(
    ctx: Context,
    conditions: SenderRuleConditions,
    page_request: PageRequest,
    columns: Collection[str],
) -> Page[ColumnRow]:
    """Return a page of sender rules, by pattern."""
    names = {"id", "pattern", *columns}
    rows = select(*select_columns(SenderRule, names)).where(*_filter_conditions(ctx, conditions))
    return await pagination.read_page(
        ctx, PageScan(rows, page_request, SORT_COLUMNS, is_descending=False)
    )


async def count_rules(ctx: Context, conditions: SenderRuleConditions) -> int:
    """Return the number of sender rules that match."""
    many = select(func.count().label("many")).select_from(SenderRule)
    (row,) = await ctx.read(many.where(*_filter_conditions(ctx, conditions)))
    return int(row.many)


def _conditions_of_domain_listing(
    ctx: Context, listing: DomainRuleListing
) -> list[ColumnElement[bool]]:
    terms = [
        col(SenderRule.place) == place_of_domain(listing.domain_id),
        is_in_administered_domain(ctx, col(SenderRule.domain_id)),
    ]
    return terms if listing.action is None else [*terms, col(SenderRule.action) == listing.action]


async def load_rule_pages_by_domain(
    ctx: Context, listings: list[DomainRuleListing]
) -> list[Page[ColumnRow]]:
    """Load these pages of the sender rules of domains, by pattern."""
    columns = frozenset({"id", "pattern"}).union(*(key.columns for key in listings))
    scans = []
    for key in listings:
        rows = select(*select_columns(SenderRule, columns)).where(
            *_conditions_of_domain_listing(ctx, key)
        )
        scans.append(PageScan(rows, key.page_request, SORT_COLUMNS, is_descending=False))
    return await pagination.read_pages(ctx, scans)


async def count_rules_by_domain(ctx: Context, listings: list[DomainRuleListing]) -> list[int]:
    """Return the number of rules of each listing."""
    many = func.count().label("many")
    scans = [
        select(many).select_from(SenderRule).where(*_conditions_of_domain_listing(ctx, key))
        for key in listings
    ]
    return [row.many for (row,) in await read_union(ctx, scans)]
