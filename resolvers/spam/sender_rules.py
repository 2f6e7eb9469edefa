"""List sender rules, as far as the viewer may see them."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select, true
from sqlmodel import col

from models.spam.sender_rules import SenderAction, SenderRule, of_domain, of_tag, of_user
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role
from models.users.tables import User, UserTag
from resolvers import pagination
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.domains.loaders import administered
from resolvers.pagination import Scan, by_keys, together
from resolvers.sql_text import within

ORDER = "sender-rules"
PLACE = (col(SenderRule.pattern), col(SenderRule.id))


@dataclass(frozen=True, slots=True)
class RuleWhere:
    """The conditions of a list of rules.

    All of them must hold. The ID 0 matches no user or domain.
    """

    user_id: int | None = None
    tag: str | None = None
    domain_id: int | None = None
    action: SenderAction | None = None
    query: str | None = None  # part of pattern or comment


@dataclass(frozen=True, slots=True)
class OfDomain:
    """A request for a page of the sender rules of one domain."""

    domain_id: int
    ask: Ask
    columns: frozenset[str]
    action: SenderAction | None = None


def visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for rules the viewer may see: the own rules, and all for an ADMIN.

    A domain administrator also sees the rules of administered domains and of tags of their
    users; with SPAM_POLICY those of the users as well.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    own = col(SenderRule.place) == of_user(viewer.user_id)
    if viewer.role is not Role.DOMAIN_ADMIN or not viewer.administers:
        return own
    here = col(User.domain_id).in_(viewer.administers)
    tags = select(col(UserTag.tag)).join(User, col(User.id) == col(UserTag.user_id)).where(here)
    seen = own | col(SenderRule.domain_id).in_(viewer.administers) | col(SenderRule.tag).in_(tags)
    if AdminPermission.SPAM_POLICY not in viewer.permissions:
        return seen
    theirs = select(col(User.id)).where(visible_users(ctx))
    return seen | col(SenderRule.user_id).in_(theirs)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load sender rules in the order of the IDs; None for one the viewer may not see."""
    seen = select(*picked(SenderRule)).where(visible(ctx))
    return await by_keys(ctx, seen, col(SenderRule.id), ids)


def _terms(ctx: Context, where: RuleWhere) -> list[ColumnElement[bool]]:
    terms, place = [visible(ctx)], col(SenderRule.place)
    if where.user_id is not None:
        terms.append(place == of_user(where.user_id))
    if where.tag is not None:
        terms.append(place == of_tag(where.tag.strip().casefold()))
    if where.domain_id is not None:
        terms.append(place == of_domain(where.domain_id))
    if where.action is not None:
        terms.append(col(SenderRule.action) == where.action)
    if where.query:
        found = within(col(SenderRule.pattern), where.query)
        terms.append(found | within(col(SenderRule.comment), where.query))
    return terms


async def page(ctx: Context, where: RuleWhere, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Return a page of sender rules, by pattern."""
    names = {"id", "pattern", *columns}
    rows = select(*picked(SenderRule, names)).where(*_terms(ctx, where))
    return await pagination.one(ctx, Scan(rows, ask, PLACE, falling=False))


async def count(ctx: Context, where: RuleWhere) -> int:
    """Return the number of sender rules that match."""
    many = select(func.count().label("many")).select_from(SenderRule)
    (row,) = await ctx.read(many.where(*_terms(ctx, where)))
    return int(row.many)


def _of_domain(ctx: Context, key: OfDomain) -> list[ColumnElement[bool]]:
    terms = [
        col(SenderRule.place) == of_domain(key.domain_id),
        administered(ctx, col(SenderRule.domain_id)),
    ]
    return terms if key.action is None else [*terms, col(SenderRule.action) == key.action]


async def of_domains(ctx: Context, keys: list[OfDomain]) -> list[Page[Picked]]:
    """Load these pages of the sender rules of domains, by pattern."""
    columns = frozenset({"id", "pattern"}).union(*(key.columns for key in keys))
    scans = []
    for key in keys:
        rows = select(*picked(SenderRule, columns)).where(*_of_domain(ctx, key))
        scans.append(Scan(rows, key.ask, PLACE, falling=False))
    return await pagination.pages(ctx, scans)


async def counts_of_domains(ctx: Context, keys: list[OfDomain]) -> list[int]:
    """Return the number of rules of each listing."""
    many = func.count().label("many")
    scans = [select(many).select_from(SenderRule).where(*_of_domain(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]
