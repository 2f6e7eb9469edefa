"""Create, copy and delete DKIM keys."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, select, true, union_all, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import ascii_domain, normal_domain
from mail.authentication import private_keys
from mail.authentication.private_keys import SIZES, PrivateKey, Unusable
from mail.authentication.public_keys import NAME_MAX, is_domain
from mail.authentication.signing_keys import place_of
from models.domains.dkim_keys import ALL, DkimAlgorithm, DkimKey, DkimKeyState
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Forbidden, Invalid, LimitReached, NotFound, Problems, all_found
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked
from models.users.roles import Role
from resolvers import sql_text
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.domains import dkim_keys
from resolvers.domains import loaders as domain_loaders

MOST = 50  # a key is generated for each
KEYS = 20
LABEL = 63  # characters between two dots of a selector
DESCRIPTION = 1000  # characters
AT_ONCE = 2  # keys generated at the same time
WEAK = 2048  # some receivers refuse shorter RSA keys
CHOSEN = "dkim"  # used if the input has none


@dataclass(frozen=True, slots=True)
class Place:
    """A domain or alias domain with keys of its own, or ALL_DOMAINS."""

    name: str
    domain_id: int | None

    @property
    def stream(self) -> int:
        """The stream that records changes of its keys, besides the platform's."""
        return PLATFORM if self.domain_id is None else self.domain_id


@dataclass(frozen=True, slots=True)
class NewKey:
    """The values of a key to set. Without a private key a new one is generated."""

    selector: str = CHOSEN
    description: str | None = None
    private: str | None = field(default=None, repr=False)
    algorithm: DkimAlgorithm = DkimAlgorithm.RSA
    key_size: int = 2048
    replace: bool = True


@dataclass(frozen=True, slots=True)
class Made:
    """A key with its domain, selector and state before it is stored."""

    place: Place
    selector: str
    key: PrivateKey
    description: str | None = None
    state: DkimKeyState = DkimKeyState.ACTIVE

    def columns(self, ctx: Context, key: int) -> dict[str, Any]:
        """Return the column values, with the private key encrypted for the row `key_id`."""
        now, active = ctx.world.now(), self.state is DkimKeyState.ACTIVE
        return {
            "algorithm": self.key.algorithm,
            "key_size": self.key.bits,
            "private": ctx.world.vault.seal(self.key.pem(), place_of(key)),
            "public": self.key.public(),
            "description": self.description,
            "state": self.state,
            "looks": 0,
            "due_at": None if active else now,
            "activated_at": now if active else None,
            "retired_at": None,
        }


async def put(ctx: Context, names: Sequence[str], new: NewKey) -> list[int]:
    """Make domains sign with a new or given key; return the key ids in the order of domains.

    A key with the same selector is replaced, others of the same algorithm are retired. Raises
    InvalidInput, NotFound, Forbidden, LimitReached, or Conflict if a domain has a key and
    `replaces_existing` is false.
    """
    problems = Problems()
    with problems.caught():
        selector = checked_selector(new.selector)
    with problems.caught():
        description = sql_text.checked(new.description, most=DESCRIPTION, path=["description"])
    with problems.caught():
        if new.private is None and new.algorithm is DkimAlgorithm.RSA:
            checked_size(new.key_size)
    problems.settle()
    given = None if new.private is None else await _read(new.private)
    places = await chosen(ctx, names, selector=selector)
    keys = (
        [given] * len(places)
        if given
        else await fresh(ctx, [(new.algorithm, new.key_size)] * len(places))
    )
    made = [
        Made(place, selector, key, description) for place, key in zip(places, keys, strict=True)
    ]
    return await store(ctx, made, "dkimKeySet", replace=new.replace)


async def copy(ctx: Context, name: str, to: Sequence[str]) -> list[int]:
    """Make other domains sign with the active keys of a domain; return the ids of the copies.

    Raises NotFound if the source has no active key, InvalidInput if a target is the source.
    """
    (source,) = await chosen(ctx, [name], path="from")
    active = col(DkimKey.state) == DkimKeyState.ACTIVE
    columns = picked(DkimKey, ("id", "selector", "description", "private"))
    asked = select(*columns).where(col(DkimKey.domain) == source.name, active)
    rows = await ctx.read(asked.order_by(col(DkimKey.id)))
    if not rows:
        raise NotFound(name, path=["from"])
    places = await chosen(ctx, to, path="to")
    for index, place in enumerate(places):
        if place.name == source.name:
            raise Invalid("that is where they are", constraint="self", path=["to"], index=index)
    vault = ctx.world.vault
    opened = [
        (row, private_keys.read(vault.open(row.private, place_of(row.id)), ours=True))
        for row in rows
    ]
    made = [
        Made(place, row.selector, key, row.description) for place in places for row, key in opened
    ]
    return await store(ctx, made, "dkimKeyCopy")


async def remove(ctx: Context, ids: Sequence[int], names: Sequence[str]) -> list[int]:
    """Delete these keys and all keys of these domains, all or none; return their ids.

    Raises InvalidInput if nothing is given, NotFound if a key or a domain's keys are missing.
    """
    if not ids and not names:
        raise Invalid("name a key or a domain", constraint="required", path=["ids"])
    places = await chosen(ctx, names) if names else []
    homes = {row.domain_id for row in await seen(ctx, ids)} | {one.domain_id for one in places}
    async with ctx.write(PLATFORM, *(key for key in homes if key)) as session:
        rows = {row.id: row for row in await seen(ctx, ids)}
        theirs = await of_places(ctx, places)
        for index, place in enumerate(places):
            if not any(row.domain == place.name for row in theirs):
                raise NotFound(place.name, path=["domains"], index=index)
        rows |= {row.id: row for row in theirs}
        connection = await session.connection()
        await connection.execute(delete(DkimKey).where(col(DkimKey.id).in_(rows)))
        await tell(ctx, session, list(rows.values()), did="deleted")
        done = (
            Done("dkimKeyDelete", "DkimKey", row.id, row.domain_id, before=facts(row))
            for row in rows.values()
        )
        await admin_log.note(ctx, session, *done)
    return list(rows)


def checked_selector(text: str, path: str = "selector") -> str:
    """Return the selector in lower case. Raises InvalidInput if it is not allowed."""
    name = text.strip().lower()
    labels = name.split(".")
    if not is_domain(name) or not all(0 < len(label) <= LABEL for label in labels):
        words = "letters, digits and hyphens; dots between parts of at most 63"
        raise Invalid(words, constraint="selector", path=[path])
    return name


def checked_size(bits: int) -> None:
    """Raise InvalidInput if this number of bits is not allowed for an RSA key."""
    if bits not in SIZES:
        text = f"one of {', '.join(map(str, SIZES))}"
        raise Invalid(text, constraint="keySize", path=["keySize"])


async def _read(text: str) -> PrivateKey:
    """Parse a private key in a thread. Raises InvalidInput if it can't be used."""
    try:
        return await asyncio.to_thread(private_keys.read, text)
    except Unusable as problem:
        raise Invalid(str(problem), constraint="key", path=["privateKey"]) from None


async def fresh(ctx: Context, wanted: Sequence[tuple[DkimAlgorithm, int]]) -> list[PrivateKey]:
    """Generate private keys in threads, since the work releases the interpreter lock.

    Raises Forbidden for several RSA keys inside a transaction, which would stay open as long.
    """
    if ctx.writing and sum(kind is DkimAlgorithm.RSA for kind, _ in wanted) > 1:
        raise Forbidden("in a larger unit keys are made one by one")
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(algorithm: DkimAlgorithm, bits: int) -> PrivateKey:
        async with turns:
            return await asyncio.to_thread(private_keys.made, algorithm, bits)

    return await asyncio.gather(*(one(*each) for each in wanted))


async def chosen(
    ctx: Context, names: Sequence[str], *, path: str = "domains", selector: str = CHOSEN
) -> list[Place]:
    """Return the named domains and alias domains, each once.

    Raises NotFound if the viewer does not administer one, Forbidden for ALL_DOMAINS unless the
    viewer is an ADMIN, and InvalidInput if selector and name are too long for a DNS name.
    """
    if not 0 < len(names) <= MOST:
        raise Invalid(f"name 1 to {MOST} domains", constraint="max", path=[path])
    spelled = [name if name == ALL else normal_domain(name) for name in names]
    own, second = (
        domain_loaders.visible_domains(ctx),
        domain_loaders.administered(ctx, col(DomainAlias.domain_id)),
    )
    rows = await ctx.read(_named(spelled, own, second))
    known: dict[str, int | None] = {row.name: row.key for row in rows}
    if ctx.viewer.role.includes(Role.ADMIN):
        known[ALL] = None
    found: dict[str, Place] = {}
    for index, name in enumerate(spelled):
        if name == ALL and ALL not in known:
            text = "keys for all domains are an ADMIN's"
            raise Forbidden(text, requires=Role.ADMIN, path=[path])
        if name not in known:
            raise NotFound(names[index], path=[path], index=index)
        if _too_long(selector, name):
            words = "with the domain it is too long for a name in DNS"
            raise Invalid(words, constraint="selector", path=["selector"], index=index)
        found.setdefault(name, Place(name, known[name]))
    return list(found.values())


def _named(
    names: Sequence[str], own: ColumnElement[bool], second: ColumnElement[bool]
) -> Select[*tuple[Any, ...]]:
    """Select id and name of the domains and alias domains with these names."""
    first: Select[*tuple[Any, ...]] = select(
        col(Domain.id).label("key"), col(Domain.name).label("name")
    ).where(col(Domain.name).in_(names), own)
    other = select(col(DomainAlias.domain_id), col(DomainAlias.alias)).where(
        col(DomainAlias.alias).in_(names), second
    )
    return select(union_all(first, other).subquery())


async def of_places(ctx: Context, places: Sequence[Place]) -> list[Picked]:
    """Load all keys of these domains, the oldest first."""
    names = [place.name for place in places]
    asked = select(*picked(DkimKey, dkim_keys.SHOWN)).where(col(DkimKey.domain).in_(names))
    return list(await ctx.read(asked.order_by(col(DkimKey.id))))


def checked_place(name: str, *, path: Sequence[str]) -> None:
    """Raise InvalidInput if the DNS name of a key with the default selector is too long."""
    if _too_long(CHOSEN, name):
        words = "the record of its key would have too long a name for DNS"
        raise Invalid(words, constraint="selector", path=path)


def _too_long(selector: str, name: str) -> bool:
    suffix = name if name == ALL else ascii_domain(name)
    return len(f"{selector}._domainkey.{suffix}") > NAME_MAX


async def put_first(
    ctx: Context, session: AsyncSession, place: Place, key: PrivateKey
) -> dict[str, Any]:
    """Insert the first key of a new domain and return its admin log values.

    It is PENDING until DNS has its record.
    """
    one = Made(place, CHOSEN, key, state=DkimKeyState.PENDING)
    row = _row(ctx, one, ctx.world.key())
    session.add(row)
    await session.flush()
    await tell(ctx, session, [row], did="created")
    return facts(row)


def _row(ctx: Context, one: Made, key: int) -> DkimKey:
    return DkimKey(
        id=key,
        domain_id=one.place.domain_id,
        domain=one.place.name,
        selector=one.selector,
        created_at=ctx.world.now(),
        **one.columns(ctx, key),
    )


async def store(
    ctx: Context, made: Sequence[Made], mutation: str, *, replace: bool = True
) -> list[int]:
    """Store keys, replace those with the same selector and retire those that they supersede.

    Raises NotFound, LimitReached, or Conflict if there are keys that must not be replaced.
    """
    places = list(dict.fromkeys(one.place for one in made))
    streams = {place.domain_id for place in places if place.domain_id is not None}
    ids = []
    async with ctx.write(PLATFORM, *streams) as session:
        await _still(ctx, places)
        there = await of_places(ctx, places)
        if not replace:
            _free(there, made)
        _room(there, made)
        retired, by_name = set[int](), {(row.domain, row.selector): row for row in there}
        new = list[DkimKey]()
        for one in made:
            row = by_name.get((one.place.name, one.selector))
            key = row.id if row else ctx.world.key()
            if row is None:
                new.append(_row(ctx, one, key))
            else:
                columns = one.columns(ctx, key)
                await session.exec(update(DkimKey).where(col(DkimKey.id) == key).values(**columns))
            ids.append(key)
            retired |= follows(there, one) if one.state is DkimKeyState.ACTIVE else set()
        session.add_all(new)
        await session.flush()
        await retire(ctx, session, retired - set(ids))
        changed = [*ids, *sorted(retired - set(ids))]
        await told_of(ctx, session, mutation, ({row.id: row for row in there}, changed))
    return ids


def follows(there: Sequence[Picked], one: Made) -> set[int]:
    """Return the ids of the keys that a new key supersedes.

    These have the same domain and algorithm, and another selector.
    """
    return {
        row.id
        for row in there
        if row.domain == one.place.name
        and row.algorithm is one.key.algorithm
        and row.selector != one.selector
        and row.state is not DkimKeyState.RETIRED
    }


async def retire(ctx: Context, session: AsyncSession, ids: set[int]) -> None:
    """Set keys to RETIRED. They are deleted when their DNS records are no longer needed."""
    if not ids:
        return
    now = ctx.world.now()
    due = now + ctx.world.options.dkim_overlap
    connection = await session.connection()
    await connection.execute(
        update(DkimKey)
        .where(col(DkimKey.id).in_(ids))
        .values(state=DkimKeyState.RETIRED, retired_at=now, due_at=due)
    )


async def _still(ctx: Context, places: Sequence[Place]) -> None:
    """Raise NotFound if a domain was deleted or renamed since it was loaded."""
    names = [place.name for place in places]
    rows = await ctx.read(_named(names, true(), true()))
    known = {(row.name, row.key) for row in rows} | {(ALL, None)}
    for index, place in enumerate(places):
        if (place.name, place.domain_id) not in known:
            raise NotFound(place.name, path=["domains"], index=index)


def _free(there: Sequence[Picked], made: Sequence[Made]) -> None:
    for index, one in enumerate(made):
        same = any(row.domain == one.place.name and row.selector == one.selector for row in there)
        if same or follows(there, one):
            text = f"{one.place.name} has a key already"
            raise Conflict(text, path=["domains"], index=index)


def _room(there: Sequence[Picked], made: Sequence[Made]) -> None:
    names = {(row.domain, row.selector) for row in there}
    many = Counter(name for name, _ in names | {(one.place.name, one.selector) for one in made})
    for count in many.values():
        if count > KEYS:
            text = f"at most {KEYS} keys of a domain"
            raise LimitReached(text, limit=KEYS, used=KEYS, path=["domains"])


async def told_of(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    changed: tuple[Mapping[int, Picked], Sequence[int]],
) -> None:
    """Record created and updated keys in the journals and in the admin log.

    `rows_before_and_ids` holds the former rows by id and the ids of all changed keys.
    """
    before, ids = changed
    asked = select(*picked(DkimKey, dkim_keys.SHOWN)).where(col(DkimKey.id).in_(ids))
    after = {row.id: row for row in await ctx.read(asked)}
    await tell(ctx, session, [after[key] for key in ids if key in before], did="updated")
    await tell(ctx, session, [after[key] for key in ids if key not in before], did="created")
    done = []
    for key in ids:
        row, old = after[key], before.get(key)
        was = None if old is None else facts(old)
        done.append(Done(mutation, "DkimKey", key, row.domain_id, was, facts(row)))
    await admin_log.note(ctx, session, *done)


def facts(row: Picked | DkimKey) -> dict[str, Any]:
    """Return the values of a DKIM key for the admin log."""
    return {
        "domain": row.domain,
        "selector": row.selector,
        "algorithm": row.algorithm.value,
        "keySize": row.key_size,
        "fingerprint": private_keys.fingerprint(row.public),
        "state": row.state.value,
    }


async def tell(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked | DkimKey], *, did: str
) -> None:
    """Record DKIM_CHANGED in the streams of the domains and of the platform."""
    told: dict[int, list[int]] = {}
    for row in rows:
        told.setdefault(PLATFORM, []).append(row.id)
        if row.domain_id is not None:
            told.setdefault(row.domain_id, []).append(row.id)
    if told:
        kinds = {key: [(ChangeKind.DKIM_CHANGED, ids)] for key, ids in told.items()}
        await ctx.record_all(session, kinds, did=did)


async def seen(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """Load DKIM keys, each once. Raises NotFound if one is not visible."""
    rows = {row.id: row for row in await dkim_keys.by_ids(ctx, list(ids)) if row}
    all_found(ids, rows)
    return list(rows.values())


async def follow_rename(ctx: Context, session: AsyncSession, key: int, old: str, new: str) -> int:
    """Set the new domain name in the keys of a renamed domain, and return their number."""
    asked = select(*picked(DkimKey, dkim_keys.SHOWN)).where(
        col(DkimKey.domain_id) == key, col(DkimKey.domain) == old
    )
    rows = await ctx.read(asked)
    if rows:
        connection = await session.connection()
        these = update(DkimKey).where(col(DkimKey.id).in_([row.id for row in rows]))
        await connection.execute(these.values(domain=new))
        await tell(ctx, session, rows, did="updated")
    return len(rows)


async def follow_alias(ctx: Context, session: AsyncSession, names: Sequence[str]) -> None:
    """Delete the keys of deleted alias domains, in the same transaction."""
    asked = select(*picked(DkimKey, dkim_keys.SHOWN)).where(col(DkimKey.domain).in_(names))
    rows = await ctx.read(asked)
    if rows:
        connection = await session.connection()
        keys = [row.id for row in rows]
        await connection.execute(delete(DkimKey).where(col(DkimKey.id).in_(keys)))
        await tell(ctx, session, rows, did="deleted")
