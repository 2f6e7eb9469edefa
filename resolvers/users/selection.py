"""Selections of users that a mutation is for."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlmodel import col

from mail.addresses import address_syntax
from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import Forbidden, Invalid, LimitReached, NotFound, check_limit
from models.store.columns import Picked, picked
from models.users.roles import Role
from models.users.search_index import LETTERS, beginning, holding
from models.users.tables import User, UserTag
from resolvers.access import managed_users, own, visible_users
from resolvers.context import Context, Needs

LONGEST = 128  # characters, as of a username
_WILD = re.compile(r"[*?]+")


@dataclass(frozen=True, slots=True)
class Users:
    """A selection of users: those that meet any of the conditions.

    A selection that was not `chosen` and has no condition means the viewer. One that was chosen and
    has none, as with empty lists, means no user. Each id and name must be that of a user.
    """

    chosen: bool = False  # the client sent a selection, maybe with empty lists

    all: bool = False
    ids: tuple[int, ...] = ()
    usernames: tuple[str, ...] = ()  # or addresses
    masks: tuple[str, ...] = ()  # usernames with * and ?
    domains: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """True if the client sent a selection, even of no user."""
        return any(getattr(self, field.name) for field in fields(self))


MINE = Users()


async def chosen(
    ctx: Context, users: Users, *, managed: bool = True, path: str = "users"
) -> list[Picked]:
    """Load the rows of the selected users, by id, up to the limit of one mutation.

    With `managed`, only users that the viewer can change. Raises NotFound if a named user is not
    visible, Forbidden if it can't be changed or if the viewer selects `all` without the role ADMIN,
    and LimitReached for too many users.
    """
    most = ctx.world.options.bulk
    if not users.given:
        users = Users(ids=(own(ctx),))
    named = await _checked(ctx, users, path)
    where = [*_conditions(ctx.world.database.dialect, users), col(User.id).in_(named)]
    seen = visible_users(ctx)
    free = managed_users(ctx).label("free") if managed else seen.label("free")
    asked = select(*picked(User), free).where(seen, or_(*where)).order_by(col(User.id))
    rows: Sequence[Picked] = await ctx.read(asked.limit(most + 1))
    there = {row.id: row for row in rows}
    for index, key in enumerate(users.ids):
        if key not in there and len(rows) <= most:
            raise NotFound(str(key), path=[path, "ids"], index=index)
    if len(rows) > most:
        raise LimitReached(
            f"at most {most} accounts at once: narrow the selection",
            limit=most,
            used=len(rows),
            path=[path],
        )
    picked_ones = {*named, *users.ids}
    for row in rows:
        if not row.free and (row.id in picked_ones or users.all):
            raise Forbidden(f"this needs the role {row.role}", requires=row.role, path=[path])
    return [row for row in rows if row.free]


async def described(ctx: Context, users: Users, *, path: str = "users") -> ColumnElement[bool]:
    """The WHERE clause for the selected users, without limit, as far as the viewer sees them.

    Raises NotFound for an unknown username or address; `all` needs the role ADMIN.
    """
    if not users.given:
        users = Users(ids=(own(ctx),))
    named = await _checked(ctx, users, path)
    where = [*_conditions(ctx.world.database.dialect, users), col(User.id).in_(named)]
    return visible_users(ctx) & or_(*where)


async def _checked(ctx: Context, users: Users, path: str) -> list[int]:
    """Check the sizes of a selection; return the ids of its usernames and addresses.

    Raises LimitReached, NotFound, or Forbidden for `all` without the role ADMIN.
    """
    most = ctx.world.options.bulk
    if users.all:
        ctx.viewer.require(Needs(role=Role.ADMIN))
    for name in ("ids", "usernames", "masks", "domains", "tags"):
        text = f"at most {most} at once"
        check_limit(len(getattr(users, name)), most, text, path=[path, name])
    return await _named(ctx, users, path)


async def managed_one(ctx: Context, key: int, *, path: str = "user") -> Picked:
    """Load a user that the viewer can change.

    Raises NotFound or Forbidden as `load_managed_users` does.
    """
    (row,) = await managed_all(ctx, [key], path=path)
    return row


async def managed_all(ctx: Context, keys: Collection[int], *, path: str) -> Sequence[Picked]:
    """Load users that the viewer can change, by id.

    Raises NotFound if the viewer does not see one, Forbidden if one can't be changed.
    """
    free = managed_users(ctx).label("free")
    asked = select(*picked(User), free).where(col(User.id).in_(keys), visible_users(ctx))
    rows: Sequence[Picked] = await ctx.read(asked.order_by(col(User.id)))
    for key in set(keys) - {row.id for row in rows}:
        raise NotFound(str(key), path=[path])
    for row in rows:
        if not row.free:
            raise Forbidden(f"this needs the role {row.role}", requires=row.role, path=[path])
    return rows


async def _named(ctx: Context, users: Users, path: str) -> list[int]:
    """Return the ids of the selected usernames and addresses.

    Raises NotFound for an unknown one.
    """
    found = []
    for index, name in enumerate(users.usernames):
        key = await address_resolution.login_of(ctx.world, name)
        seen = select(col(User.id)).where(col(User.id) == (key or 0), visible_users(ctx))
        if key is None or not await ctx.read(seen):
            raise NotFound(name, path=[path, "usernames"], index=index)
        found.append(key)
    return found


def _conditions(dialect: str, users: Users) -> list[ColumnElement[bool]]:
    """The alternative conditions of a selection, without its names."""
    found: list[ColumnElement[bool]] = []
    if users.all:
        found.append(col(User.id) > 0)
    if users.ids:
        found.append(col(User.id).in_(users.ids))
    if users.masks:
        found.append(masked(dialect, users.masks))
    if users.domains:
        names = [address_syntax.normal_domain(name) for name in users.domains]
        domains = select(col(Domain.id)).where(col(Domain.name).in_(names))
        found.append(col(User.domain_id).in_(domains))
    if users.tags:
        found.append(tagged(users.tags))
    return found


def masked(dialect: str, masks: Sequence[str]) -> ColumnElement[bool]:
    """SQL: users with a normalized username that matches one of these masks with * and ?.

    An index finds the fixed beginning of a mask, or else three letters at any place.
    """
    return or_(*(_fitting(dialect, mask, nth) for nth, mask in enumerate(masks)))


def _fitting(dialect: str, mask: str, nth: int) -> ColumnElement[bool]:
    """SQL: users with a username that matches a mask.

    Raises Invalid if the mask is too long.
    """
    if len(mask) > LONGEST:
        text = f"a mask has at most {LONGEST} characters"
        raise Invalid(text, constraint="max", path=["masks"], index=nth)
    key: Any = col(User.username_key)
    mask = address_syntax.username_key(mask)
    text = mask
    for sign in "/%_":
        text = text.replace(sign, "/" + sign)
    fits: ColumnElement[bool] = key.like(text.replace("*", "%").replace("?", "_"), escape="/")
    first, *others = _WILD.split(mask)
    if first:
        return beginning(dialect, key, first) & fits
    longest = max(others, key=len, default="")
    return holding(dialect, longest) & fits if len(longest) >= LETTERS else fits


def tagged(tags: Sequence[str]) -> ColumnElement[bool]:
    """SQL: users with any of these tags, in any case."""
    folded = {tag.strip().casefold() for tag in tags}
    with_one = select(col(UserTag.user_id)).where(col(UserTag.tag).in_(folded))
    return col(User.id).in_(with_one)


def tagged_all(tags: Sequence[str]) -> ColumnElement[bool]:
    """SQL: users with all of these tags, in any case."""
    folded = {tag.strip().casefold() for tag in tags}
    many = func.count(col(UserTag.tag).distinct())
    with_all = (
        select(col(UserTag.user_id))
        .where(col(UserTag.tag).in_(folded))
        .group_by(col(UserTag.user_id))
        .having(many == len(folded))
    )
    return col(User.id).in_(with_all)
