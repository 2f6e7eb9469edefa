"""Recipient rewrites of the platform, which an ADMIN reads and changes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, false, func, select, true, union_all, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import Normal, normal
from mail.delivery.recipient_rewrites import circular, matched, replacement
from models.addresses.rewrites import RecipientRewrite
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Invalid, LimitReached, all_found
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from resolvers import pagination
from resolvers.access import maker, require_below
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.pagination import Scan, by_keys

OLDEST = "recipient-rewrites"
MOST = 5000  # rewrites of the platform
EXISTS = "there is such a rewrite already"


@dataclass(frozen=True, slots=True)
class NewRewrite:
    """The columns of a recipient rewrite to create."""

    match: str
    to: str
    active: bool = True


@dataclass(frozen=True, slots=True)
class Values:
    """The columns of recipient rewrites to change. None leaves a column unchanged."""

    match: str | None = None
    to: str | None = None
    active: bool | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _rewrites(ctx: Context, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    columns = None if names is None else {"id", "created_at", *names}
    return select(*picked(RecipientRewrite, columns)).where(_visible(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load recipient rewrites by id, in the given order. None for ids that the viewer can't see."""
    return await by_keys(ctx, _rewrites(ctx), col(RecipientRewrite.id), ids)


async def page(ctx: Context, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of all recipient rewrites, the oldest first."""
    place = (col(RecipientRewrite.created_at), col(RecipientRewrite.id))
    return await pagination.one(ctx, Scan(_rewrites(ctx, columns), ask, place, falling=False))


async def count(ctx: Context) -> int:
    """Count the recipient rewrites."""
    many = select(func.count().label("many")).select_from(RecipientRewrite)
    (row,) = await ctx.read(many.where(_visible(ctx)))
    return int(row.many)


async def create(ctx: Context, new: NewRewrite) -> int:
    """Create a recipient rewrite and return its id.

    Raises Conflict if a rewrite for the same recipient exists, InvalidInput if rewrites would
    form a loop, LimitReached if there are MAX_REWRITES, and Forbidden if the recipient belongs
    to an account with a higher role than the viewer.
    """
    name = matched(new.match, path="from")
    target = replacement(new.to, name)
    places = await _homes(ctx, [name.domain, normal(target).domain])
    at, key = ctx.world.now(), ctx.world.key()
    row = RecipientRewrite(
        id=key,
        local=name.local,
        domain=name.domain,
        target=target,
        outside=normal(target).domain not in places,
        active=new.active,
        created_at=at,
        updated_at=at,
        **maker(ctx),
    )
    async with ctx.write(PLATFORM, *places.values()) as session:  # one after another
        rules = await _all(ctx)
        if len(rules) >= MOST:
            text = f"at most {MOST} rewrites"
            raise LimitReached(text, limit=MOST, used=len(rules), path=["from"])
        if name in rules.values():
            raise Conflict(EXISTS, path=["from"])
        await _check(ctx, {key: (name, target)})
        await require_below(ctx, name, ["from"])
        session.add(row)
        await session.flush()
        await _tell(ctx, session, places)
        (made,) = await _seen(ctx, [key])
        done = Done("recipientRewriteCreate", "RecipientRewrite", key, after=_facts(made))
        await admin_log.note(ctx, session, done)
    return key


async def change(ctx: Context, ids: Sequence[int], values: Values) -> None:
    """Change recipient rewrites, all or none. Raises the errors of `create_rewrite`."""
    name = None if values.match is None else matched(values.match, path="from")
    if name is None and values.to is None and values.active is None:
        raise Invalid("say what to change", constraint="required", path=[])
    ends = _ends(await _seen(ctx, ids), name, values.to)
    places = await _homes(ctx, ends)
    async with ctx.write(PLATFORM, *places.values()) as session:
        before = await _seen(ctx, ids)
        if name is not None:
            others = {of for key, of in (await _all(ctx)).items() if key not in ids}
            if len(before) > 1 or name in others:
                raise Conflict(EXISTS, path=["from"])
        given: dict[str, Any] = {} if name is None else {"local": name.local, "domain": name.domain}
        given |= {} if values.active is None else {"active": values.active}
        if name is not None or values.to is not None:
            await _check(ctx, _become(before, name, values.to))
        if values.to is not None:
            target = replacement(values.to, name or _name(before[0]))
            given |= {"target": target, "outside": normal(target).domain not in places}
        for row in before:
            await require_below(ctx, name or _name(row), ["from"])
        given |= maker(ctx)
        connection = await session.connection()
        these = update(RecipientRewrite).where(col(RecipientRewrite.id).in_(ids))
        await connection.execute(these.values(**given, updated_at=ctx.world.now()))
        after = {row.id: row for row in await _seen(ctx, ids)}
        await _tell(ctx, session, places)
        done = (_changed(row, after[row.id]) for row in before)
        await admin_log.note(ctx, session, *done)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete recipient rewrites, all or none. Raises NotFound if one does not exist."""
    places = await _homes(ctx, _ends(await _seen(ctx, ids)))
    async with ctx.write(PLATFORM, *places.values()) as session:
        rows = await _seen(ctx, ids)
        connection = await session.connection()
        await connection.execute(delete(RecipientRewrite).where(col(RecipientRewrite.id).in_(ids)))
        await _tell(ctx, session, places)
        done = (
            Done("recipientRewriteDelete", "RecipientRewrite", row.id, before=_facts(row))
            for row in rows
        )
        await admin_log.note(ctx, session, *done)


def _name(row: Picked) -> Normal:
    return Normal(row.local, row.domain)


def _ends(rows: Sequence[Picked], name: Normal | None = None, to: str | None = None) -> set[str]:
    """Return the domains of the matches and targets of rewrites, before and after the change."""
    found = {row.domain for row in rows} | {normal(row.target).domain for row in rows}
    return found | ({name.domain} if name else set()) | ({normal(to).domain} if to else set())


def _become(
    rows: Sequence[Picked], name: Normal | None, to: str | None
) -> dict[int, tuple[Normal, str]]:
    """Return the match and target of each rewrite after the change, by id.

    Raises InvalidInput if a target is not allowed.
    """
    made = {}
    for index, row in enumerate(rows):
        of = name or _name(row)
        try:
            made[row.id] = of, replacement(row.target if to is None else to, of)
        except Invalid as problem:
            problem.index = index
            raise
    return made


async def _all(ctx: Context) -> dict[int, Normal]:
    """Load the matched addresses of all rewrites by rewrite id."""
    rows = await ctx.read(select(*picked(RecipientRewrite, ("id", "local", "domain"))))
    return {row.id: _name(row) for row in rows}


async def _check(ctx: Context, changed: Mapping[int, tuple[Normal, str]]) -> None:
    """Raise InvalidInput if a rewrite leads back to its own recipient.

    Inactive rewrites count, since they can be activated without this check.
    """
    for index, (name, target) in enumerate(changed.values()):
        to = normal(target)
        nth = index if len(changed) > 1 else None
        if to == name:
            text = "that is the recipient itself"
            raise Invalid(text, constraint="self", path=["to"], index=nth)
    columns = ("id", "local", "domain", "target")
    rows = await ctx.read(select(*picked(RecipientRewrite, columns)))
    rules = {_name(row): row.target for row in rows if row.id not in changed}
    if circular(rules | dict(changed.values())):
        raise Invalid("with others it goes in a circle", constraint="circle", path=["to"])


async def _homes(ctx: Context, names: Collection[str]) -> dict[str, int]:
    """Return the domain ids of these names that are domains or alias domains of the platform."""
    own: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("name"), col(Domain.id).label("key")
    ).where(col(Domain.name).in_(names))
    second = select(col(DomainAlias.alias), col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias).in_(names)
    )
    both = union_all(own, second).subquery()
    return {row.name: row.key for row in await ctx.read(select(both))}


async def _seen(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """Load recipient rewrites, each once.

    Raises NotFound if one is not visible and InvalidInput if none is given.
    """
    rows = {row.id: row for row in await by_ids(ctx, list(ids)) if row}
    all_found(ids, rows)
    if not rows:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    return list(rows.values())


def _facts(row: Picked) -> dict[str, Any]:
    """Return the values of a rewrite for the admin log."""
    return {"from": f"{row.local}@{row.domain}", "to": row.target, "active": row.active}


def _changed(row: Picked, now: Picked) -> Done:
    before, after = _facts(row), _facts(now)
    names = [name for name in after if before[name] != after[name]]
    old, new = ({name: facts[name] for name in names} for facts in (before, after))
    return Done("recipientRewriteUpdate", "RecipientRewrite", row.id, None, old, new)


async def _tell(ctx: Context, session: AsyncSession, places: Mapping[str, int]) -> None:
    """Record DOMAIN_CHANGED in the streams of the domains at either end and of the platform."""
    keys = sorted(set(places.values()))
    told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in [*keys, PLATFORM] if keys}
    if keys:
        await ctx.record_all(session, told | {PLATFORM: [(ChangeKind.DOMAIN_CHANGED, keys)]})
