"""Lists of users: filters, orders, pages and counts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, or_, select, text, union_all
from sqlmodel import col

from mail.addresses import address_syntax
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Invalid
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from models.users.search_index import LETTERS, beginning, holding, last_login
from models.users.tables import DeletedUser, User
from resolvers import pagination
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import Form
from resolvers.sql_text import LONGEST, within
from resolvers.sql_text import holding as any_holding
from resolvers.users.selection import masked, tagged, tagged_all

TERMS = 100  # of one filter
APART = 50  # domains of an administrator: each is one index scan


class UserOrder(StrEnum):
    """The order of a list of users; ties by id."""

    USERNAME = "USERNAME"  # as compared
    CREATED = "CREATED"  # oldest first
    QUOTA_USED = "QUOTA_USED"  # most bytes first
    LAST_LOGIN = "LAST_LOGIN"  # latest first; users that never signed in are last


@dataclass(frozen=True, slots=True)
class UserWhere:
    """Conditions on users; all must hold."""

    query: str | None = None
    tags: tuple[str, ...] | None = None  # any of
    required_tags: tuple[str, ...] | None = None  # all of
    masks: tuple[str, ...] | None = None  # usernames with * and ?
    roles: tuple[Role, ...] | None = None
    domain: str | None = None
    disabled: bool | None = None
    suspended: bool | None = None
    created_after: datetime | None = None
    forward: str | None = None  # part of a target


def place_of(order: UserOrder, row: Any) -> Any:
    """Return the sort key of a row, which its cursor has beside the id."""
    return getattr(row, _KEYS[order])


_KEYS = {
    UserOrder.USERNAME: "username_key",
    UserOrder.CREATED: "created_at",
    UserOrder.QUOTA_USED: "used",
    UserOrder.LAST_LOGIN: "last_seen",
}
_TYPES = {
    UserOrder.USERNAME: str,
    UserOrder.CREATED: datetime,
    UserOrder.QUOTA_USED: int,
    UserOrder.LAST_LOGIN: datetime,
}
_FALLING = (UserOrder.QUOTA_USED, UserOrder.LAST_LOGIN)


async def pages(
    ctx: Context,
    where: UserWhere,
    ask: Ask,
    columns: Collection[str],
    order: UserOrder = UserOrder.USERNAME,
) -> Page[Picked]:
    """Load a page of users that the viewer sees. Each order has an index.

    Raises Invalid for a cursor of another order.
    """
    if ask.place and not isinstance(ask.place.at, _TYPES[order]):
        raise Invalid("not a cursor of this list", constraint="cursor", path=["after"])
    domain_id = await _domain(ctx, where)
    if where.domain is not None and domain_id is None:
        return ask.page([])
    names, seen = {"id", *columns}, last_login(ctx.world.database.dialect)
    asked: list[ColumnElement[Any]] = [seen]
    key: Any = seen
    if order is not UserOrder.LAST_LOGIN:
        names.add(_KEYS[order])
        asked, key = [], col(getattr(User, _KEYS[order]))
    form = Form.of(ask, frozenset(), falling=order in _FALLING)
    place = (key, col(User.id))
    narrowed = _narrowed(ctx, where)
    rows = select(*picked(User, names), *asked)
    scans = [
        pagination.form_of_page(rows.where(*part, *narrowed), form, place)
        for part in _parts(ctx, domain_id)
    ]
    one = scans[0] if len(scans) == 1 else _merged(scans, form, [_KEYS[order], "id"])
    return pagination.page_of(await ctx.read(one, pagination.parameters(ask, place)), ask)


def _merged(
    scans: Sequence[Select[*tuple[Any, ...]]], form: Form, place: Sequence[str]
) -> Select[*tuple[Any, ...]]:
    """SQL: one page of several short index scans. An OR over them would be sorted as a whole."""
    found = union_all(*(select(scan.subquery()) for scan in scans)).subquery()
    up = form.back is form.falling
    keys = (found.c[name] if up else found.c[name].desc() for name in place)
    return select(found).order_by(*keys).limit(pagination.COUNT)


def _parts(ctx: Context, domain_id: int | None) -> list[list[ColumnElement[bool]]]:
    """The WHERE clauses of the visible users, in parts that have one index each."""
    viewer, there = ctx.viewer, col(User.deleted_at).is_(None)
    in_domain = col(User.domain_id)
    if domain_id is not None:
        known = viewer.role.includes(Role.ADMIN) or domain_id in viewer.administers
        return [[there if known else visible_users(ctx), in_domain == domain_id]]
    if viewer.role is not Role.DOMAIN_ADMIN or not 0 < len(viewer.administers) <= APART:
        return [[visible_users(ctx)]]
    elsewhere = or_(in_domain.is_(None), in_domain.not_in(viewer.administers))
    own = [there, col(User.id) == viewer.user_id, elsewhere]
    return [*([there, in_domain == key] for key in sorted(viewer.administers)), own]


async def count(ctx: Context, where: UserWhere) -> int:
    """Count the users of a list.

    The count of all users reads an index only; that of a domain reads its counter.
    """
    domain_id = await _domain(ctx, where)
    if where.domain is not None and domain_id is None:
        return 0
    narrowed = _narrowed(ctx, where)
    asked = select(func.count()).select_from(User).where(visible_users(ctx), *narrowed)
    if domain_id is not None:
        asked = asked.where(col(User.domain_id) == domain_id)
    if not narrowed and ctx.viewer.role.includes(Role.ADMIN):
        asked = _of_domain(domain_id) if domain_id else _of_all()
    (row,) = await ctx.read(asked)
    return int(row[0])


async def unfit(ctx: Context, where: UserWhere, keys: Collection[int]) -> set[int]:
    """Return those of these users that the viewer sees and that do not match the filter."""
    seen = select(col(User.id)).where(col(User.id).in_(keys), visible_users(ctx))
    fitting = {row.id for row in await ctx.read(seen.where(*_narrowed(ctx, where)))}
    return {row.id for row in await ctx.read(seen)} - fitting


def _of_all() -> Select[int]:
    every = select(func.count()).select_from(User).scalar_subquery()
    gone = select(func.count()).select_from(DeletedUser).scalar_subquery()
    return select(every - gone)


def _of_domain(domain_id: int) -> Select[int]:
    return select(col(Domain.user_count)).where(col(Domain.id) == domain_id)


async def _domain(ctx: Context, where: UserWhere) -> int | None:
    """Load the id of the domain in the filter; None if there is no condition or no such domain."""
    if where.domain is None:
        return None
    name = address_syntax.normal_domain(where.domain)
    asked = select(col(Domain.id)).where(col(Domain.name) == name)
    if not ctx.viewer.role.includes(Role.ADMIN):
        theirs = select(col(User.domain_id)).where(visible_users(ctx))
        asked = asked.where(domain_loaders.visible_domains(ctx) | col(Domain.id).in_(theirs))
    row = next(iter(await ctx.read(asked)), None)
    return None if row is None else int(row.id)


def _narrowed(ctx: Context, where: UserWhere) -> list[Any]:
    """The conditions of a filter, apart from the domain.

    Raises Invalid for a filter that is too long.
    """
    _check(where)
    if () in (where.tags, where.required_tags, where.masks, where.roles):
        return [false()]
    dialect, found = ctx.world.database.dialect, list[Any]()
    if where.query:
        found.append(_named_like(dialect, where.query))
    if where.forward:
        some = text("users.targets <> '[]'")  # as in the partial index of users with targets
        found += [some, any_holding(dialect, col(User.targets), within, [where.forward])]
    found += [tagged(where.tags)] if where.tags else []
    found += [tagged_all(where.required_tags)] if where.required_tags else []
    found += [masked(dialect, where.masks)] if where.masks else []
    if where.roles:
        found.append(col(User.role).in_(where.roles))
        if Role.USER not in where.roles:  # as in the partial index of the other roles
            found.append(text("users.role <> 'USER'"))
    for name, wanted in (("disabled", where.disabled), ("suspended", where.suspended)):
        if wanted is not None:  # as in the partial indexes
            found.append(text(f"users.{name}" if wanted else f"NOT users.{name}"))
    if where.created_after is not None:
        found.append(col(User.created_at) > where.created_after)
    return found


def _check(where: UserWhere) -> None:
    """Raise Invalid if the filter has too many or too long terms."""
    for name, terms in (
        ("tags", where.tags),
        ("requiredTags", where.required_tags),
        ("masks", where.masks),
    ):
        if len(terms or ()) > TERMS:
            raise Invalid(f"at most {TERMS}", constraint="max", path=["filter", name])
    for name, looked_for in (("query", where.query), ("forward", where.forward)):
        if len(looked_for or "") > LONGEST:
            words = f"what is looked for has at most {LONGEST} characters"
            raise Invalid(words, constraint="max", path=["filter", name])


def _named_like(dialect: str, query: str) -> ColumnElement[bool]:
    """SQL: users with this text in username, name or main address; a short text as their beginning.

    The text is searched as written, and in the normalized form of usernames: without dots and
    label, the domain in Unicode.
    """
    forms = dict.fromkeys([query.casefold(), address_syntax.username_key(query)])
    return or_(*(_like(dialect, form) for form in forms if form))


def _like(dialect: str, form: str) -> ColumnElement[bool]:
    if len(form) >= LETTERS:
        return holding(dialect, form)
    mains = select(col(Address.user_id)).where(
        col(Address.main), beginning(dialect, col(Address.local), form)
    )
    named = select(col(User.id)).where(beginning(dialect, col(User.username_key), form))
    return col(User.id).in_(named.union(mains))
