"""Operations on recipients that are replaced: of an ADMIN, for the whole platform."""

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
    """A rewrite to be made."""

    match: str
    to: str
    active: bool = True


@dataclass(frozen=True, slots=True)
class Values:
    """What to set; None leaves it as it is."""

    match: str | None = None
    to: str | None = None
    active: bool | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _rewrites(ctx: Context, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    columns = None if names is None else {"id", "created_at", *names}
    return select(*picked(RecipientRewrite, columns)).where(_visible(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The rewrites with these ids, in this order; None where the viewer sees none."""
    return await by_keys(ctx, _rewrites(ctx), col(RecipientRewrite.id), ids)


async def page(ctx: Context, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """A page of all rewrites, in the order they were made."""
    place = (col(RecipientRewrite.created_at), col(RecipientRewrite.id))
    return await pagination.one(ctx, Scan(_rewrites(ctx, columns), ask, place, falling=False))


async def count(ctx: Context) -> int:
    """How many rewrites there are."""
    many = select(func.count().label("many")).select_from(RecipientRewrite)
    (row,) = await ctx.read(many.where(_visible(ctx)))
    return int(row.many)


async def create(ctx: Context, new: NewRewrite) -> int:
    """Make a rewrite; its key.

    Conflict where there is one for the same recipient; Invalid where it would lead to itself,
    alone or with others.
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
    """Change rewrites, all or none; refused as in `create`."""
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
    """Remove these rewrites, all or none."""
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
    """The domains at the ends of these rewrites, as they are and as they become."""
    found = {row.domain for row in rows} | {normal(row.target).domain for row in rows}
    return found | ({name.domain} if name else set()) | ({normal(to).domain} if to else set())


def _become(
    rows: Sequence[Picked], name: Normal | None, to: str | None
) -> dict[int, tuple[Normal, str]]:
    """What these rewrites are to be: from where to where. Invalid where that cannot be."""
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
    """What all rewrites are for, by their keys."""
    rows = await ctx.read(select(*picked(RecipientRewrite, ("id", "local", "domain"))))
    return {row.id: _name(row) for row in rows}


async def _check(ctx: Context, changed: Mapping[int, tuple[Normal, str]]) -> None:
    """Refuse rewrites that would lead to themselves or in a circle.

    Those that are switched off count: one could be switched on without a word.
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
    """The keys of our domains among these names, also second ones."""
    own: Select[*tuple[Any, ...]] = select(
        col(Domain.name).label("name"), col(Domain.id).label("key")
    ).where(col(Domain.name).in_(names))
    second = select(col(DomainAlias.alias), col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias).in_(names)
    )
    both = union_all(own, second).subquery()
    return {row.name: row.key for row in await ctx.read(select(both))}


async def _seen(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """These rewrites, each once; NotFound where the viewer sees one not."""
    rows = {row.id: row for row in await by_ids(ctx, list(ids)) if row}
    all_found(ids, rows)
    if not rows:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    return list(rows.values())


def _facts(row: Picked) -> dict[str, Any]:
    """What the log of administrators says of a rewrite."""
    return {"from": f"{row.local}@{row.domain}", "to": row.target, "active": row.active}


def _changed(row: Picked, now: Picked) -> Done:
    before, after = _facts(row), _facts(now)
    names = [name for name in after if before[name] != after[name]]
    old, new = ({name: facts[name] for name in names} for facts in (before, after))
    return Done("recipientRewriteUpdate", "RecipientRewrite", row.id, None, old, new)


async def _tell(ctx: Context, session: AsyncSession, places: Mapping[str, int]) -> None:
    """Let who follows the domains of ours at either end, or all, look at them again."""
    keys = sorted(set(places.values()))
    told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in [*keys, PLATFORM] if keys}
    if keys:
        await ctx.record_all(session, told | {PLATFORM: [(ChangeKind.DOMAIN_CHANGED, keys)]})
