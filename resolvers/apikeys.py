"""Operations on API keys."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, false, func, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth import ApiKey
from models.columns import Picked, picked
from models.errors import Forbidden, Invalid, NotFound
from models.pages import Ask, Page
from models.roles import AdminPermission, Role, Scope
from models.users import User
from resolvers import adminlog, listing
from resolvers.access import visible_users
from resolvers.adminlog import Done
from resolvers.auth import KEY, digest_of, forget, new_secret
from resolvers.context import Context, Needs
from resolvers.listing import Scan, by_keys

log = logging.getLogger(__name__)

NEWEST = "apikeys-newest"
LONGEST = 128  # characters of a name
LOGGED = ("name", "role", "scopes", "read_only", "user_id", "expires_at")
SHOWN = frozenset(column.name for column in picked(ApiKey)) - {"digest"}


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be. Without scopes it is good for all its role may do.

    Without a user it is the caller's own, or, with the role of an ADMIN or above, nobody's.
    """

    name: str
    role: Role = Role.USER
    scopes: Collection[Scope] = ()
    read_only: bool = False
    user_id: int | None = None
    expires_at: datetime | None = None


async def create_key(ctx: Context, new: NewKey) -> tuple[ApiKey, str]:
    """Make a key; returns it with its secret, which is nowhere else.

    Its role and scopes go up to the caller's own, and up to the role of whose it is. To make
    one for somebody else needs LOGIN_AS of a DOMAIN_ADMIN: it opens that account.
    """
    world = ctx.world
    _check(ctx, new)
    owner = await _owner(ctx, new)
    secret = new_secret(world, KEY)
    row = ApiKey(
        id=world.key(),
        name=new.name.strip(),
        digest=digest_of(secret),
        role=new.role,
        scopes=sorted(new.scopes),
        read_only=new.read_only,
        user_id=owner,
        created_at=world.now(),
        expires_at=new.expires_at,
    )
    async with ctx.write(*([owner] if owner else [])) as session:
        session.add(row)
        await _log(ctx, session, "apiKeyCreate", [row])
    log.info("key made", extra={"key": row.id, "role": row.role, "by": ctx.viewer.principal})
    return row, secret


def _check(ctx: Context, new: NewKey) -> None:
    viewer = ctx.viewer
    if not 0 < len(new.name.strip()) <= LONGEST or "\0" in new.name:
        text = f"a name has 1 to {LONGEST} characters"
        raise Invalid(text, constraint="pattern", path=["name"])
    if new.role is Role.PUBLIC:
        raise Invalid("a key needs a role", constraint="role", path=["role"])
    viewer.require(Needs(role=new.role, scope=Scope.MASTER))
    if new.expires_at and new.expires_at <= ctx.world.now():
        raise Invalid("that is over already", constraint="min", path=["expiresAt"])


async def _owner(ctx: Context, new: NewKey) -> int | None:
    """Whose it will be; None: nobody's."""
    viewer = ctx.viewer
    asked = new.user_id
    if asked is None:
        if new.role.includes(Role.ADMIN):
            return None
        asked = viewer.user_id
    if not asked:
        raise Invalid("say whose key it is", constraint="required", path=["user"])
    there = select(col(User.id), col(User.role)).where(col(User.id) == asked, visible_users(ctx))
    for user in await ctx.read(there):
        if user.id != viewer.user_id:
            needs = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.LOGIN_AS)
            viewer.require(needs)
        for role, whose in ((user.role, viewer.role), (new.role, user.role)):
            if not whose.includes(role):
                raise Forbidden(f"this needs the role {role}", requires=role, path=["user"])
        return int(user.id)
    raise NotFound(str(asked), path=["user"])


def _visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for keys: one's own, or all."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    return col(ApiKey.user_id) == ctx.viewer.user_id if ctx.viewer.user_id else false()


async def keys(ctx: Context, ask: Ask, columns: Iterable[str] = SHOWN) -> Page[Picked]:
    """A page of the viewer's keys, newest first; of all keys for an ADMIN."""
    names = SHOWN.intersection(columns) | {"created_at", "id"}
    rows = select(*picked(ApiKey, names)).where(_visible(ctx))
    place = (col(ApiKey.created_at), col(ApiKey.id))
    return await listing.one(ctx, Scan(rows, ask, place, falling=True))


async def count_keys(ctx: Context) -> int:
    """How many keys the viewer sees."""
    (row,) = await ctx.read(select(func.count(col(ApiKey.id)).label("many")).where(_visible(ctx)))
    return int(row.many)


async def keys_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The keys with these ids, as far as the viewer sees them, in this order; else None."""
    theirs = select(*picked(ApiKey, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, theirs, col(ApiKey.id), ids)


async def delete_keys(ctx: Context, ids: list[int]) -> None:
    """Delete these keys, all or none. Nobody deletes one whose role is above their own."""
    rows = await keys_by_ids(ctx, ids)
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
        ctx.viewer.require(Needs(role=row.role, scope=Scope.MASTER))
    owners = {row.user_id or 0 for row in rows if row}
    async with ctx.write(*(owner for owner in owners if owner)) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.id).in_(ids)))
        await _log(ctx, session, "apiKeyDelete", [row for row in rows if row])
    for owner in owners:
        forget(ctx.world, owner)


async def _log(
    ctx: Context, session: AsyncSession, mutation: str, keys: Sequence[ApiKey | Picked]
) -> None:
    """Note what became of keys that are not the viewer's own."""
    viewer = ctx.viewer
    others = [
        key for key in keys if viewer.actor_id or not key.user_id or key.user_id != viewer.user_id
    ]
    owners = {key.user_id for key in others if key.user_id}
    asked = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(owners))
    found = (await (await session.connection()).execute(asked)).all() if owners else []
    domains = {row.id: row.domain_id for row in found}
    told = {key.id: {name: getattr(key, name) for name in LOGGED} for key in others}
    made = mutation == "apiKeyCreate"
    await adminlog.note(
        ctx,
        session,
        *(
            Done(
                mutation,
                "ApiKey",
                key.id,
                domains.get(key.user_id or 0),
                before=None if made else told[key.id],
                after=told[key.id] if made else None,
            )
            for key in others
        ),
    )
