"""Read and change BCC rules. A DOMAIN_ADMIN has access to those of the administered domains."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, false, func, select, tuple_, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import Normal, checked, normal
from mail.delivery.recipient_rewrites import matched
from models.addresses.rewrites import BccDirection, BccRule
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Invalid, LimitReached, NotFound, Problems, all_found
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role
from resolvers import pagination
from resolvers.access import maker, require_below
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import Scan, by_keys

OLDEST = "bcc-rules"
MOST = 1000  # rules of one domain
EXISTS = "there is such a rule already"
DETAIL = ("bccTo", "direction", "active")  # what the security log tells of a rule


@dataclass(frozen=True, slots=True)
class NewRule:
    """The columns of a BCC rule to create."""

    match: str
    bcc_to: str
    direction: BccDirection
    active: bool = True


@dataclass(frozen=True, slots=True)
class Values:
    """The columns of BCC rules to change. None leaves a column unchanged."""

    match: str | None = None
    bcc_to: str | None = None
    direction: BccDirection | None = None
    active: bool | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the rules that the viewer can see.

    An ADMIN sees all rules; with the permission BCC_MAPS an administrator sees those of the
    administered domains.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN) or AdminPermission.BCC_MAPS in viewer.permissions:
        return domain_loaders.administered(ctx, col(BccRule.domain_id))
    return false()


def _rules(ctx: Context, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    """Select the visible rules with `name`, the name of their domain."""
    columns = None if names is None else {"id", "created_at", *names} - {"name"}
    return (
        select(*picked(BccRule, columns), col(Domain.name).label("name"))
        .join(Domain, col(Domain.id) == col(BccRule.domain_id))
        .where(_visible(ctx))
    )


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load BCC rules by id, in the given order. None for an id that the viewer can't see."""
    return await by_keys(ctx, _rules(ctx), col(BccRule.id), ids)


async def page(ctx: Context, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of the visible rules, the oldest first."""
    place = (col(BccRule.created_at), col(BccRule.id))
    return await pagination.one(ctx, Scan(_rules(ctx, columns), ask, place, falling=False))


async def count(ctx: Context) -> int:
    """Count the visible rules."""
    many = select(func.count().label("many")).select_from(BccRule)
    (row,) = await ctx.read(many.where(_visible(ctx)))
    return int(row.many)


async def create(ctx: Context, new: NewRule) -> int:
    """Create a BCC rule and return its id.

    Raises InvalidInput if an address is not allowed, NotFound if the viewer does not administer
    the domain, Conflict if a rule for the same mail exists, LimitReached if the domain has too
    many rules, and Forbidden if the address belongs to an account with a higher role than the
    viewer.
    """
    problems = Problems()
    with problems.caught():
        name = matched(new.match, path="match")
    with problems.caught():
        bcc_to = checked(new.bcc_to, path="bccTo")
    problems.settle()
    home = await _home(ctx, name)
    _other(name, home.name, bcc_to)
    at, key = ctx.world.now(), ctx.world.key()
    row = BccRule(
        id=key,
        direction=new.direction,
        local=name.local,
        domain_id=home.id,
        bcc_to=bcc_to,
        active=new.active,
        created_at=at,
        updated_at=at,
        **maker(ctx),
    )
    async with ctx.write(PLATFORM, home.id) as session:  # rules are made one after another
        await _still(ctx, name, home)
        await require_below(ctx, name, ["match"])
        await _room(ctx, home, 1)
        await _free(ctx, [], {(row.direction, row.domain_id, row.local): 0})
        session.add(row)
        await session.flush()
        after = _facts(await _seen(ctx, [key]))[key]
        await _tell(ctx, session, {home.id})
        done = Done("bccRuleCreate", "BccRule", key, home.id, None, after)
        await _note(ctx, session, [done], [after["match"]])
    return key


async def change(ctx: Context, ids: Sequence[int], values: Values) -> None:
    """Change BCC rules, all or none, and make the viewer their maker.

    Raises Conflict if two rules would match the same mail, and the errors of `create_rule`.
    """
    problems = Problems()
    name = None
    given: dict[str, Any] = {}
    with problems.caught():
        if values.match is not None:
            name = matched(values.match, path="match")
    with problems.caught():
        if values.bcc_to is not None:
            given["bcc_to"] = checked(values.bcc_to, path="bccTo")
    problems.settle()
    home = await _home(ctx, name) if name else None
    given |= {"local": name.local, "domain_id": home.id} if name and home else {}
    rest = {"direction": values.direction, "active": values.active}
    given |= {column: value for column, value in rest.items() if value is not None}
    if not given:
        raise Invalid("say what to change", constraint="required", path=[])
    places = {row.domain_id for row in await _seen(ctx, ids)} | ({home.id} if home else set())
    async with ctx.write(PLATFORM, *places) as session:
        if name and home:
            await _still(ctx, name, home)
        before = await _seen(ctx, ids)
        await _fits(ctx, before, given, home)
        connection = await session.connection()
        these = update(BccRule).where(col(BccRule.id).in_(ids))
        given |= {**maker(ctx), "updated_at": ctx.world.now()}
        await connection.execute(these.values(**given))
        after = _facts(await _seen(ctx, ids))
        await _tell(ctx, session, places)
        pairs = _pairs(before, after)
        done = [_changed(row, *pair) for row, pair in pairs]
        await _note(ctx, session, done, *([old["match"], new["match"]] for _, (old, new) in pairs))


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete BCC rules, all or none. Raises the errors of `create_rule` for a rule's address."""
    places = {row.domain_id for row in await _seen(ctx, ids)}
    async with ctx.write(PLATFORM, *places) as session:
        rows = await _seen(ctx, ids)
        for row in rows:
            if row.local:
                await require_below(ctx, Normal(row.local, row.name), ["ids"])
        connection = await session.connection()
        await connection.execute(delete(BccRule).where(col(BccRule.id).in_(ids)))
        await _tell(ctx, session, places)
        before = _facts(rows)
        done = [
            Done("bccRuleDelete", "BccRule", row.id, row.domain_id, before[row.id]) for row in rows
        ]
        await _note(ctx, session, done, *([before[row.id]["match"]] for row in rows))


async def _note(
    ctx: Context, session: AsyncSession, done: Sequence[Done], *matches: Collection[str]
) -> None:
    """Write the entries to the admin log and to the security logs of the accounts concerned.

    `rule_matches` holds, for each entry, the address patterns of its rule before and after the
    change.
    """
    await admin_log.note(ctx, session, *done)
    pairs = zip(done, matches, strict=True)
    names = {normal(text): one for one, of in pairs for text in of if not text.startswith("@")}
    if not names:
        return
    asked = (
        select(col(Address.user_id), col(Address.local), col(Domain.name))
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .where(
            tuple_(col(Address.local), col(Domain.name)).in_([tuple(name) for name in names]),
            col(Address.user_id).is_not(None),
        )
    )
    for row in await ctx.read(asked):
        one = names[Normal(row.local, row.name)]
        action = "bcc rule " + one.mutation.removeprefix("bccRule").lower()
        told = {**(one.before or {}), **(one.after or {})}
        detail: dict[str, Any] = {name: told[name] for name in DETAIL if name in told}
        async with ctx.write(row.user_id) as inner:
            event = Event(action, row.user_id, target=str(one.target_id), detail=detail)
            await security_log.note(ctx, inner, event)


async def _home(ctx: Context, name: Normal) -> Picked:
    """Return the domain that a rule applies to, found by its name or an alias domain.

    Raises NotFound if the viewer can't see the domain.
    """
    second = select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == name.domain)
    named = (col(Domain.name) == name.domain) | col(Domain.id).in_(second)
    asked = select(col(Domain.id), col(Domain.name)).where(
        named, domain_loaders.visible_domains(ctx)
    )
    for row in await ctx.read(asked):
        return row
    raise NotFound(name.domain, path=["match"])


async def _still(ctx: Context, name: Normal, home: Picked) -> None:
    """Raise NotFound if the domain name belongs to another domain than before the transaction."""
    if (await _home(ctx, name)).id != home.id:  # the name has passed to another meanwhile
        raise NotFound(name.domain, path=["match"])


async def _seen(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """Load BCC rules, each once.

    Raises NotFound if one is not visible and InvalidInput if none is given.
    """
    rows = {row.id: row for row in await by_ids(ctx, list(ids)) if row}
    all_found(ids, rows)
    if not rows:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    return list(rows.values())


async def _room(ctx: Context, home: Picked, more: int) -> None:
    """Raise LimitReached if the domain can't have this number of additional rules."""
    many = select(func.count().label("many")).where(col(BccRule.domain_id) == home.id)
    (found,) = await ctx.read(many)
    if found.many + more > MOST:
        text = f"a domain has at most {MOST} rules"
        raise LimitReached(text, limit=MOST, used=found.many, path=["match"])


async def _free(
    ctx: Context, ids: Sequence[int], wanted: Mapping[tuple[BccDirection, int, str], int]
) -> None:
    """Raise Conflict if a rule other than `rule_ids` has one of these keys.

    A key is direction, domain id and local part. The error has the first index.
    """
    of = (col(BccRule.direction), col(BccRule.domain_id), col(BccRule.local))
    asked: Select[*tuple[Any, ...]] = select(*of).where(
        tuple_(*of).in_(list(wanted)), col(BccRule.id).not_in(ids)
    )
    taken = [wanted[row.direction, row.domain_id, row.local] for row in await ctx.read(asked)]
    if taken:
        raise Conflict(EXISTS, path=["match"], index=min(taken) if ids else None)


async def _fits(
    ctx: Context, rows: Sequence[Picked], given: Mapping[str, Any], home: Picked | None
) -> None:
    """Raise an error if the changed columns lead to rules that are not allowed.

    Raises InvalidInput, Conflict, Forbidden or LimitReached.
    """
    wanted: dict[tuple[BccDirection, int, str], int] = {}
    for index, row in enumerate(rows):
        new = {column.name: getattr(row, column.name) for column in picked(BccRule)}
        new.update(given)
        name = home.name if home else row.name
        _other(Normal(new["local"], name), name, new["bcc_to"], index=index)
        place = new["direction"], new["domain_id"], new["local"]
        if place in wanted:
            raise Conflict(EXISTS, path=["match"], index=index)
        wanted[place] = index
        if new["local"]:
            await require_below(ctx, Normal(new["local"], name), ["match"])
    if {"direction", "local"} & set(given):
        await _free(ctx, [row.id for row in rows], wanted)
    if home:
        await _room(ctx, home, sum(row.domain_id != home.id for row in rows))


def _other(name: Normal, home: str, bcc_to: str, *, index: int | None = None) -> None:
    """Raise InvalidInput if the copy would go to the same address as the original."""
    to = normal(bcc_to)
    if name.local and to.local == name.local and to.domain in (name.domain, home):
        text = "that is the address itself"
        raise Invalid(text, constraint="self", path=["bccTo"], index=index)


def _facts(rows: Sequence[Picked]) -> dict[int, dict[str, Any]]:
    """Return the values of rules for the admin log, by rule id."""
    return {
        row.id: {
            "match": f"{row.local}@{row.name}",
            "bccTo": row.bcc_to,
            "direction": row.direction,
            "active": row.active,
        }
        for row in rows
    }


def _pairs(
    before: Sequence[Picked], after: Mapping[int, dict[str, Any]]
) -> list[tuple[Picked, tuple[dict[str, Any], dict[str, Any]]]]:
    """Pair each rule with its admin log values before and after the change."""
    facts = _facts(before)
    return [(row, (facts[row.id], after[row.id])) for row in before]


def _changed(row: Picked, before: dict[str, Any], after: dict[str, Any]) -> Done:
    """Return the admin log entry of a changed rule, with the changed values only."""
    names = [name for name in after if before[name] != after[name]]
    old, new = ({name: facts[name] for name in names} for facts in (before, after))
    return Done("bccRuleUpdate", "BccRule", row.id, row.domain_id, old, new)


async def _tell(ctx: Context, session: AsyncSession, places: Collection[int]) -> None:
    """Record DOMAIN_CHANGED in the streams of these domains and of the platform."""
    keys = sorted(places)
    told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in keys}
    await ctx.record_all(session, {**told, PLATFORM: [(ChangeKind.DOMAIN_CHANGED, keys)]})
