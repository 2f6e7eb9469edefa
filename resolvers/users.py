"""Operations on accounts."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlmodel import col

from mail import addresses
from models.addresses import Address
from models.columns import Picked, picked
from models.domains import Domain
from models.errors import NotFound
from models.mailboxes import Mailbox, SpecialUse
from models.pages import Ask, Page
from models.prepared import number, prepared
from models.roles import Role
from models.users import DomainAdmin, User
from resolvers import domains, listing
from resolvers.access import own, visible_users
from resolvers.context import Context
from resolvers.listing import Scan, by_keys
from resolvers.quotas import effective
from resolvers.texts import within


@dataclass(frozen=True, slots=True)
class UserWhere:
    """Which accounts to list; all conditions hold."""

    query: str | None = None
    roles: tuple[Role, ...] = ()
    domain: str | None = None
    disabled: bool | None = None
    suspended: bool | None = None


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The accounts with these ids, in this order; None where the viewer sees none."""
    if ids == [ctx.viewer.user_id]:
        return [next(iter(await ctx.find(_oneself())), None)]
    seen = select(*picked(User)).where(visible_users(ctx))
    return await by_keys(ctx, seen, col(User.id), ids)


@prepared
def _oneself() -> Select[*tuple[Any, ...]]:
    return select(*picked(User)).where(col(User.id) == number("viewer"))


async def named(ctx: Context, name: str) -> Picked | None:
    """The account of this user name or address, as far as the viewer may see it."""
    key = await addresses.login_of(ctx.world, name)
    return await ctx.load(by_ids, key) if key else None


async def pages(ctx: Context, where: UserWhere, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """A page of accounts by user name, as they are compared: there is an index of that."""
    names = {"id", "username_key", *columns}
    rows = select(*picked(User, names)).where(*_conditions(ctx, where))
    place = (col(User.username_key), col(User.id))
    return await listing.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: UserWhere) -> int:
    """How many accounts such a list has."""
    asked = select(func.count()).select_from(User).where(*_conditions(ctx, where))
    (row,) = await ctx.read(asked)
    return int(row[0])


def _conditions(ctx: Context, where: UserWhere) -> list[ColumnElement[bool]]:
    conditions = [visible_users(ctx)]
    if where.query:
        part = where.query
        main = select(col(Address.user_id)).where(
            col(Address.main), within(col(Address.shown), part)
        )
        named_so = or_(within(col(User.username), part), within(col(User.name), part))
        conditions.append(named_so | col(User.id).in_(main))
    if where.roles:
        conditions.append(col(User.role).in_(where.roles))
    if where.domain is not None:
        name = addresses.normal_domain(where.domain)
        domain = select(col(Domain.id)).where(col(Domain.name) == name)
        conditions.append(col(User.domain_id).in_(domain))
    if where.disabled is not None:
        conditions.append(col(User.disabled).is_(where.disabled))
    if where.suspended is not None:
        conditions.append(col(User.suspended).is_(where.suspended))
    return conditions


async def reached(ctx: Context, key: int | None) -> int:
    """The account an operation is about: one the viewer sees, or the viewer's own."""
    if key is None:
        return own(ctx)
    if await ctx.load(by_ids, key) is None:
        raise NotFound(str(key), path=["user"])
    return key


async def folders_of(ctx: Context, user_id: int, use: SpecialUse) -> int | None:
    """The id of a user's folder of this role."""
    asked = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == use
    )
    row = next(iter(await ctx.read(asked)), None)
    return None if row is None else int(row.id)


async def allowed(ctx: Context, user: Picked) -> int:
    """The bytes this user may keep: the user's, else the domain's, else the platform's."""
    needed = user.quota is None and user.domain_id
    domain = await ctx.load(domains.by_ids, user.domain_id) if needed else None
    return effective(ctx.world, domain, user.quota)


async def administered(ctx: Context, user_ids: list[int]) -> list[list[Picked]]:
    """The domains these users are in charge of, by name, as far as the viewer may see them."""
    charges = (
        select(*picked(Domain), col(DomainAdmin.user_id).label("admin"))
        .join(DomainAdmin, col(DomainAdmin.domain_id) == col(Domain.id))
        .where(col(DomainAdmin.user_id).in_(user_ids), domains.visible_domains(ctx))
        .order_by(col(Domain.name))
    )
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(charges):
        found[row.admin].append(row)
    return [found[key] for key in user_ids]
