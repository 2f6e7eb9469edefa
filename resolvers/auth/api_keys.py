"""API keys: create, list, update and delete."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_network
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import ApiKey
from models.domains.tables import Domain
from models.errors import Forbidden, Invalid, NotFound, Problems
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role, Scope, opened
from models.users.tables import DomainAdmin, User
from resolvers import pagination
from resolvers.access import managed_users, visible_users
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import credential_makers, security_log
from resolvers.auth.credential_cache import forget
from resolvers.auth.credential_makers import ACTING, is_operator, key_of
from resolvers.auth.credential_status import KEY, digest_of, new_secret
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.pagination import Scan, by_keys

log = logging.getLogger(__name__)

NEWEST = "apikeys-newest"
LONGEST = 128  # characters of a name
MOST = 100  # networks, domains or operations of a key
LOGGED = (
    "name", "role", "scopes", "read_only", "active", "user_id", "domains", "operations",
    "allowed_ips", "expires_at", "maker",
)  # fmt: skip
SHOWN = frozenset(column.name for column in picked(ApiKey)) - {"digest"}


@dataclass(frozen=True, slots=True)
class NewKey:
    """An API key to create. Without scopes it has all rights of its role.

    Without a user it belongs to the caller or, with the role ADMIN or above, to no user. With
    `domains` it acts for these as a DOMAIN_ADMIN, and for no user.
    """

    name: str
    role: Role = Role.USER
    scopes: Collection[Scope] = ()
    read_only: bool = False
    user_id: int | None = None
    expires_at: datetime | None = None
    domains: Collection[int] = ()
    operations: Collection[str] = ()  # root fields; empty = all
    allowed_ips: Collection[str] = ()  # networks; empty = all


@dataclass(frozen=True, slots=True)
class KeyChange:
    """Changes to API keys; None leaves a field unchanged."""

    name: str | None = None
    active: bool | None = None
    allowed_ips: Collection[str] | None = None
    expires_at: datetime | None = None
    endless: bool = False  # remove the end

    @property
    def facts(self) -> dict[str, Any]:
        """The changed columns with their new values."""
        given = {
            "name": self.name and self.name.strip(),
            "active": self.active,
            "allowed_ips": None if self.allowed_ips is None else sorted(set(self.allowed_ips)),
            "expires_at": self.expires_at,
        }
        facts = {name: value for name, value in given.items() if value is not None}
        return facts | ({"expires_at": None} if self.endless else {})


async def create_key(
    ctx: Context, new: NewKey, problems: Problems | None = None
) -> tuple[ApiKey, str]:
    """Create an API key. Returns it with its secret, which is not stored.

    Raises all errors of its fields together with the `problems` found before. Role, scopes and
    domains can't exceed those of the caller or of the owner. If a key creates it, its operations,
    networks and end can't exceed those of that key. A DOMAIN_ADMIN needs LOGIN_AS to create a key
    for another user. Such a key has at most the scopes and the lifetime of a token of actAs, names
    its maker, and ends when the maker loses the role or the permission.
    """
    world, problems = ctx.world, problems or Problems()
    new = _within_caller(await _calling(ctx), new)
    _check(ctx, new, problems)
    problems.settle()
    owner = await _owner(ctx, new)
    if by_another := bool(owner) and owner != ctx.viewer.user_id and not is_operator(ctx.viewer):
        new = _within_acting(ctx, new)
    secret = new_secret(world, KEY)
    row = ApiKey(
        id=world.key(),
        name=new.name.strip(),
        digest=digest_of(secret),
        role=new.role,
        scopes=sorted(new.scopes),
        read_only=new.read_only,
        user_id=owner,
        domains=sorted(set(new.domains)),
        operations=sorted(set(new.operations)),
        allowed_ips=sorted(set(new.allowed_ips)),
        created_at=world.now(),
        expires_at=new.expires_at,
    )
    async with ctx.write(*([owner] if owner else [])) as session:
        if by_another:
            row.made_by, row.made_by_key = ctx.viewer.user_id or None, key_of(ctx.viewer)
            row.maker = (await security_log.actor(session, ctx.viewer))[1]
        session.add(row)
        await session.flush()
        await _log(ctx, session, "apiKeyCreate", [row])
    log.info("key made", extra={"key": row.id, "role": row.role, "by": ctx.viewer.principal})
    return row, secret


async def _calling(ctx: Context) -> Picked | None:
    """Load the API key of the current request; None if it has no key."""
    asked = select(*picked(ApiKey, SHOWN)).where(col(ApiKey.id) == (ctx.viewer.api_key_id or 0))
    return next(iter(await ctx.read(asked)), None)


def _within_caller(calling: Picked | None, new: NewKey) -> NewKey:
    """Limit the new key to the rights of the key that creates it.

    Raises Forbidden if the new key asks for more.
    """
    if calling is None:
        return new
    if calling.read_only:
        raise Forbidden("a key for reading makes no keys", requires="a key for writing")
    if not set(new.operations or calling.operations) <= set(calling.operations or new.operations):
        raise _beyond("operations", "operations")
    _check_networks(calling, new.allowed_ips)
    _check_end(calling, new.expires_at)
    return replace(
        new,
        operations=new.operations or calling.operations,
        allowed_ips=new.allowed_ips or calling.allowed_ips,
        expires_at=new.expires_at or calling.expires_at,
    )


def _within_acting(ctx: Context, new: NewKey) -> NewKey:
    """Limit a key for another user to the rights of a token of actAs.

    Raises Forbidden or Invalid if the new key asks for more.
    """
    text = "a key for another account has at most the {} of a token of actAs"
    if new.role is not Role.USER:
        raise Forbidden(text.format("role"), requires=Role.USER, path=["role"])
    if not opened(frozenset(new.scopes)) <= opened(ACTING):
        raise Forbidden(text.format("scopes"), requires="the account itself", path=["scopes"])
    if ctx.viewer.user_id == 0 and key_of(ctx.viewer) is None:
        raise Forbidden("a key for domains acts for no account", requires=Role.ADMIN, path=["user"])
    latest = ctx.world.now() + credential_makers.LONGEST
    if new.expires_at and new.expires_at > latest:
        raise Invalid(text.format("lifetime"), constraint="max", path=["expiresAt"])
    scopes = new.scopes or sorted(ACTING)
    return replace(new, scopes=scopes, expires_at=new.expires_at or latest)


def _check_networks(calling: Picked, allowed: Collection[str]) -> None:
    """Raise Forbidden if a network is not inside the networks of the calling key."""
    theirs = [ip_network(each) for each in calling.allowed_ips]
    for each in map(ip_network, allowed):
        if theirs and not any(_inside(each, wide) for wide in theirs):
            raise _beyond("networks", "allowedIps")


def _inside(narrow: Any, wide: Any) -> bool:
    return narrow.version == wide.version and bool(narrow.subnet_of(wide))


def _check_end(calling: Picked, end: datetime | None) -> None:
    """Raise Forbidden if the end is later than that of the calling key."""
    if calling.expires_at and end and end > calling.expires_at:
        raise _beyond("end", "expiresAt")


def _beyond(what: str, path: str) -> Forbidden:
    """Return the error for a key that would exceed the calling key."""
    text = f"the {what} of a key go no further than those of the key that asks"
    return Forbidden(text, requires=f"a key with these {what}", path=[path])


def _check(ctx: Context, new: NewKey, problems: Problems) -> None:
    """Collect validation errors of a new key. Raises Forbidden if the caller lacks its role."""
    viewer = ctx.viewer
    change = KeyChange(new.name, None, new.allowed_ips, new.expires_at)
    _check_facts(ctx, change, problems)
    with problems.caught():
        if new.role is Role.PUBLIC:
            raise Invalid("a key needs a role", constraint="role", path=["role"])
    viewer.require(Needs(role=new.role, scope=Scope.MASTER))
    with problems.caught():
        if len(new.operations) > MOST:
            raise Invalid(f"at most {MOST}", constraint="max", path=["operations"])
    with problems.caught():
        _check_charge(ctx, new)


def _check_charge(ctx: Context, new: NewKey) -> None:
    """Raise Invalid if the key can't be restricted to domains, or must be."""
    viewer = ctx.viewer
    if new.domains:
        if new.role is Role.USER:
            text = "a USER is in charge of no domain"
            raise Invalid(text, constraint="exclusive", path=["domains"])
        if len(new.domains) > MOST:
            raise Invalid(f"at most {MOST}", constraint="max", path=["domains"])
        if new.role.includes(Role.ADMIN) and new.user_id is not None:
            text = "a key of an ADMIN for some domains belongs to nobody"
            raise Invalid(text, constraint="exclusive", path=["user"])
    elif viewer.role is Role.DOMAIN_ADMIN and not viewer.user_id and new.role is not Role.USER:
        raise Invalid("say for which domains", constraint="required", path=["domains"])


def _check_facts(ctx: Context, change: KeyChange, problems: Problems) -> None:
    """Collect validation errors of name, networks and end."""
    with problems.caught():
        if change.name is not None and (
            not 0 < len(change.name.strip()) <= LONGEST or not change.name.isprintable()
        ):
            text = f"a name has 1 to {LONGEST} printable characters"
            raise Invalid(text, constraint="pattern", path=["name"])
    with problems.caught():
        if change.expires_at and change.expires_at <= ctx.world.now():
            raise Invalid("that is over already", constraint="min", path=["expiresAt"])
    with problems.caught():
        if len(change.allowed_ips or ()) > MOST:
            raise Invalid(f"at most {MOST}", constraint="max", path=["allowedIps"])
        for index, each in enumerate(change.allowed_ips or ()):
            try:
                ip_network(each)
            except ValueError:
                raise Invalid(
                    "not a network", constraint="cidr", path=["allowedIps"], index=index
                ) from None


async def _owner(ctx: Context, new: NewKey) -> int | None:
    """Return the user id that the new key will belong to; None for a key of the platform.

    Raises NotFound or Forbidden if the viewer can't create a key for that user.
    """
    viewer = ctx.viewer
    asked = new.user_id
    if asked is None:
        nobodys = bool(new.domains) and not viewer.user_id and viewer.role.includes(Role.ADMIN)
        if new.role.includes(Role.ADMIN) or nobodys:
            await _check_domains(ctx, new, None)
            return None
        asked = viewer.user_id
    if not asked:
        raise Invalid("say whose key it is", constraint="required", path=["user"])
    there = select(col(User.id), col(User.role), managed_users(ctx).label("free"))
    for user in await ctx.read(there.where(col(User.id) == asked, visible_users(ctx))):
        if user.id != viewer.user_id:
            needs = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.LOGIN_AS)
            viewer.require(needs)
            if not user.free:
                raise Forbidden(
                    f"this needs more than the role {viewer.role}",
                    requires=user.role,
                    path=["user"],
                )
        for role, whose in ((user.role, viewer.role), (new.role, user.role)):
            if not whose.includes(role):
                raise Forbidden(f"this needs the role {role}", requires=role, path=["user"])
        await _check_domains(ctx, new, user)
        return int(user.id)
    raise NotFound(str(asked), path=["user"])


async def _check_domains(ctx: Context, new: NewKey, owner: Picked | None) -> None:
    """Raise NotFound if the owner does not administer one of the domains.

    An ADMIN administers all.
    """
    if not new.domains:
        return
    asked = select(col(Domain.id)).where(col(Domain.id).in_(new.domains))
    if ctx.viewer.role is Role.DOMAIN_ADMIN:
        asked = asked.where(col(Domain.id).in_(ctx.viewer.administers))
    if owner and not owner.role.includes(Role.ADMIN):
        theirs = select(col(DomainAdmin.domain_id)).where(col(DomainAdmin.user_id) == owner.id)
        asked = asked.where(col(Domain.id).in_(theirs))
    there = {row.id for row in await ctx.read(asked)}
    for index, key in enumerate(new.domains):
        if key not in there:
            raise NotFound(str(key), path=["domains"], index=index)


async def _log(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    keys: Sequence[ApiKey | Picked],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a mutation to the owners' security logs, and to the admin log if the viewer is another.

    `facts` are the changed columns.
    """
    viewer, action = ctx.viewer, f"api key {mutation.removeprefix('apiKey').lower()}"
    for key in keys:
        if key.user_id:
            detail = {"key": str(key.id), "name": key.name}
            seen = Event(action, key.user_id, target=str(key.id), detail=detail)
            await security_log.note(ctx, session, seen)
    others = [
        key for key in keys if viewer.acting or not key.user_id or key.user_id != viewer.user_id
    ]
    owners = {key.user_id for key in others if key.user_id}
    asked = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(owners))
    found = (await (await session.connection()).execute(asked)).all() if owners else []
    domains = {row.id: row.domain_id for row in found}
    told = {key.id: {name: getattr(key, name) for name in facts or LOGGED} for key in others}
    after = {"apiKeyUpdate": facts}.get(mutation)
    made = mutation == "apiKeyCreate"
    await admin_log.note(
        ctx,
        session,
        *(
            Done(
                mutation,
                "ApiKey",
                key.id,
                domains.get(key.user_id or 0),
                before=None if made else told[key.id],
                after=told[key.id] if made else after,
            )
            for key in others
        ),
    )


def _visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for the keys that the viewer sees: the viewer's own, or all for an ADMIN."""
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    own = col(ApiKey.id) == (viewer.api_key_id or 0)
    return own | (col(ApiKey.user_id) == viewer.user_id) if viewer.user_id else own


async def keys(ctx: Context, ask: Ask, columns: Iterable[str] = SHOWN) -> Page[Picked]:
    """Load a page of the keys that the viewer sees, newest first."""
    names = SHOWN.intersection(columns) | {"created_at", "id"}
    rows = select(*picked(ApiKey, names)).where(_visible(ctx))
    place = (col(ApiKey.created_at), col(ApiKey.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=True))


async def count_keys(ctx: Context) -> int:
    """Count the keys that the viewer sees."""
    (row,) = await ctx.read(select(func.count(col(ApiKey.id)).label("many")).where(_visible(ctx)))
    return int(row.many)


async def keys_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load keys by id, in this order; None for a key that the viewer does not see."""
    theirs = select(*picked(ApiKey, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, theirs, col(ApiKey.id), ids)


async def update_keys(ctx: Context, ids: list[int], change: KeyChange) -> list[Picked]:
    """Change these keys, all or none; return them.

    Raises Forbidden for a key with a higher role than the viewer's, and if a key would exceed the
    limits of the calling key. Raises NotFound for a key that the viewer does not see.
    """
    problems = Problems()
    _check_facts(ctx, change, problems)
    problems.settle()
    facts = change.facts
    if not facts:
        raise Invalid("say what is to change", constraint="required", path=["name"])
    if calling := await _calling(ctx):
        if change.allowed_ips is not None:
            _check_networks(calling, change.allowed_ips or ["0.0.0.0/0"])
        if change.endless and calling.expires_at:
            raise _beyond("end", "expiresAt")
        _check_end(calling, change.expires_at)
    rows = await _managed(ctx, ids)
    for row in rows:
        latest = row.created_at + credential_makers.LONGEST
        if row.maker and (change.endless or (change.expires_at and change.expires_at > latest)):
            text = "a key that was made for another account ends four hours after it was made"
            raise Invalid(text, constraint="max", path=["expiresAt"])
    owners = {row.user_id or 0 for row in rows}
    async with ctx.write(*(owner for owner in owners if owner)) as session:
        connection = await session.connection()
        changed = update(ApiKey).where(col(ApiKey.id).in_(ids)).values(**facts)
        await connection.execute(changed)
        await _log(ctx, session, "apiKeyUpdate", rows, facts)
    forget(ctx.world, *owners)
    return [row for row in await keys_by_ids(ctx, ids) if row]


async def delete_keys(ctx: Context, ids: list[int]) -> None:
    """Delete these keys, all or none.

    Raises NotFound for a key that the viewer does not see, Forbidden for one with a higher role.
    """
    rows = await _managed(ctx, ids)
    owners = {row.user_id or 0 for row in rows}
    async with ctx.write(*(owner for owner in owners if owner)) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.id).in_(ids)))
        await _log(ctx, session, "apiKeyDelete", rows)
    forget(ctx.world, *owners)


async def _managed(ctx: Context, ids: list[int]) -> list[Picked]:
    """Load these keys, each once, for a change.

    Raises NotFound if the viewer does not see one, Forbidden if one has a higher role.
    """
    viewer = ctx.viewer
    viewer.require(Needs(scope=Scope.MASTER))
    rows = await keys_by_ids(ctx, ids)
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
        viewer.require(Needs(role=row.role))
    found = {row.id: row for row in rows if row}
    others = {row.user_id for row in found.values() if row.user_id} - {viewer.user_id}
    if viewer.api_key_id:  # a key for domains sees itself, also if another user owns it
        others -= {row.user_id for key, row in found.items() if key == viewer.api_key_id}
    theirs = select(col(User.id)).where(col(User.id).in_(others), managed_users(ctx))
    if others and len(await ctx.read(theirs)) < len(others):
        raise Forbidden("a key of somebody above you", requires=Role.ROOT)
    return list(found.values())
