"""Create, update and delete domains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, String, cast, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import checked_domain
from mail.text import confusables
from models.addresses.rewrites import RecipientRewrite
from models.addresses.tables import Address
from models.auth.credentials import ApiKey
from models.domains.dkim_keys import DkimAlgorithm, DkimKey
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Forbidden, Invalid, LimitReached, NotFound, Problems, Refused
from models.events.journal import PLATFORM, ChangeKind, Stream
from models.store.columns import Picked, picked
from models.users.roles import AdminPermission, Role
from models.users.tables import DomainAdmin, User
from resolvers import sql_text
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth.authentication import forget
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.password_policy import KINDS
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.dkim_key_mutations import Place
from resolvers.domains.loaders import Named
from resolvers.queue import rate_limit_mutations
from resolvers.routing import mutations as routing_mutations
from resolvers.users import delete as user_delete
from resolvers.users.quota.quota_allocation import effective
from resolvers.users.selection import Users

DESCRIPTION = 1000  # characters
MOST = (1 << 31) - 1  # of users and addresses
LIMITS = ("default_user_quota", "max_user_quota", "quota")
COUNTS = ("max_addresses", "max_users")
FIRST_KEY = (
    DkimAlgorithm.RSA,
    dkim_key_mutations.WEAK,
)  # every receiver supports it and none considers it weak
RATE = "rate_limit"  # stored in another table
FLAGS = ("backup_mx", "relay_all_recipients", "relay_unknown_only")
WORDS = {  # names of these columns in the schema
    "max_addresses": "maxAddresses",
    "max_users": "maxUsers",
    "default_user_quota": "defaultUserQuota",
    "max_user_quota": "maxUserQuota",
    "quota": "quota",
    "backup_mx": "backupMx",
    "relay_all_recipients": "relayAllRecipients",
    "relay_unknown_only": "relayUnknownOnly",
    "relay_host_id": "relayHost",
    "global_address_list": "globalAddressList",
    "password_min": "passwordPolicy.minLength",
    "password_classes": "passwordPolicy.minClasses",
    RATE: "rateLimit",
}
STRENGTHS = {"password_min": password_hashes.LONGEST, "password_classes": KINDS}
OF_DOMAIN_ADMINS = {"description": AdminPermission.DOMAIN_DESC, RATE: AdminPermission.RATELIMIT}


@dataclass(frozen=True, slots=True)
class Values:
    """New values of a domain by column, and the path of them in the input."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    within: Sequence[str] = ()

    def path(self, name: str) -> list[str]:
        """Return the path of a column in the input."""
        return [*self.within, *WORDS.get(name, name).split(".")]

    def checked(self, problems: Problems) -> dict[str, Any]:
        """Return the values in their stored form.

        Adds an error to `problems` for each invalid one.
        """
        made = {}
        for name, value in self.columns.items():
            with problems.caught():
                made[name] = self._checked(name, value)
        return made

    def _checked(self, name: str, value: Any) -> Any:
        path = self.path(name)
        if name == "description":
            return sql_text.checked(value, most=DESCRIPTION, path=path)
        if name == RATE:
            return rate_limit_mutations.checked(value, path=[*path, "value"])
        if name == "tags":
            return sql_text.labels(value or (), path=path)
        if name in COUNTS and not 0 <= (value or 0) <= MOST:
            raise Invalid("0 or more; 0 is no limit", constraint="min", path=path)
        if name in STRENGTHS and value is not None and not 1 <= value <= STRENGTHS[name]:
            text = f"from 1 to {STRENGTHS[name]}"
            raise Invalid(text, constraint="range", path=path)
        if name in STRENGTHS or name == "relay_host_id":
            return value
        if name in COUNTS or name in LIMITS:
            return value if name == "default_user_quota" else value or 0
        if value is None:
            text = "it is either so or not: null says neither"
            raise Invalid(text, constraint="required", path=path)
        return value


async def create(ctx: Context, name: str, values: Values, *, with_key: bool) -> Domain:
    """Create a domain, on request with a DKIM key that signs when DNS has its record.

    Raises InvalidInput with all problems of the input, NotFound for an unknown relay host, and
    Conflict if the name belongs to a domain or alias domain.
    """
    problems = Problems()
    with problems.caught():
        name = checked_domain(name, path="name")
        confusables.refuse_domain(name)
        if with_key:
            dkim_key_mutations.checked_place(name, path=["createDkim"])
    columns = values.checked(problems)
    rate = columns.pop(RATE, None)
    domain = domain_loaders.new(ctx, name, **columns)
    _consistent(ctx, domain, values, problems)
    problems.settle()
    keys = await dkim_key_mutations.fresh(ctx, [FIRST_KEY] if with_key else [])
    try:
        async with ctx.write(PLATFORM) as session:
            await domain_loaders.free_name(session, name, path="name")
            await _relayed(ctx, values, columns)
            await domain_loaders.added(ctx, session, domain)
            after = {"name": name, **columns}
            for key in keys:
                place = Place(name, domain.id)
                after["dkimKey"] = await dkim_key_mutations.put_first(ctx, session, place, key)
            if rate:
                await rate_limit_mutations.put(ctx, session, [domain.id], rate, "domain_id")
                after[RATE] = rate_limit_mutations.facts(rate)
            await admin_log.note(
                ctx, session, _done("domainCreate", domain.id, after=after, domain_id=domain.id)
            )
    except IntegrityError as clash:  # an address created it at the same time
        raise Conflict(f"{name} is a domain already", path=["name"]) from clash
    return domain


async def change(ctx: Context, refs: Sequence[Named], values: Values) -> list[Picked]:
    """Update domains, all or none, and return their rows in the order of the references.

    Raises Forbidden, InvalidInput, NotFound, or LimitReached with the current use if a limit
    would be below it.
    """
    _allowed(ctx, values)
    if not values.columns:
        raise Invalid("say what to change", constraint="required", path=list(values.within))
    problems = Problems()
    columns = values.checked(problems)
    problems.settle()
    keys = [row.id for row in await domain_loaders.chosen(ctx, refs)]
    async with ctx.write(PLATFORM, *keys) as session:
        before = await _rows(ctx, keys)
        await _relayed(ctx, values, columns)
        use = await _use(ctx, keys) if set(LIMITS) & set(columns) else {}
        for index, row in enumerate(before):
            try:
                _fits(ctx, row, values, columns, use.get(row.id))
            except Refused as refusal:
                for one in refusal.each:
                    one.index = index
                raise
        rates = {}
        if RATE in columns:
            rate = columns.pop(RATE)
            old = await rate_limit_mutations.put(ctx, session, keys, rate, "domain_id")
            rates = {key: (was, rate_limit_mutations.facts(rate)) for key, was in old.items()}
        await _write(ctx, session, keys, columns)
        after = await _rows(ctx, keys)
        told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in keys}
        await ctx.record_all(session, {**told, PLATFORM: [(ChangeKind.DOMAIN_CHANGED, keys)]})
        pairs = zip(before, after, strict=True)
        await admin_log.note(ctx, session, *(_changed(columns, rates, *pair) for pair in pairs))
    return after


async def _relayed(ctx: Context, values: Values, columns: Mapping[str, Any]) -> None:
    """Raise NotFound if the new relay host does not exist. PLATFORM must be locked."""
    if (key := columns.get("relay_host_id")) is not None:
        await routing_mutations.relay_host_there(ctx, key, path=values.path("relay_host_id"))


def _allowed(ctx: Context, values: Values) -> None:
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return
    for name in values.columns:
        permission = OF_DOMAIN_ADMINS.get(name)
        if permission is None or permission not in viewer.permissions:
            needed = permission or Role.ADMIN
            text = f"to change {WORDS.get(name, name)} needs {needed}"
            raise Forbidden(text, requires=needed, path=values.path(name))


async def _rows(ctx: Context, keys: Sequence[int]) -> list[Picked]:
    """Load the current rows of domains, in this order. Raises NotFound if one was deleted."""
    found = {
        row.id: row
        for row in await ctx.read(select(*picked(Domain)).where(col(Domain.id).in_(keys)))
    }
    for index, key in enumerate(keys):
        if key not in found:
            raise NotFound(str(key), path=["domains"], index=index)
    return [found[key] for key in keys]


def _fits(
    ctx: Context, row: Picked, values: Values, columns: Mapping[str, Any], use: Picked | None
) -> None:
    """Raise InvalidInput if the new values contradict each other.

    Raises LimitReached if a limit is below the current use.
    """
    stored = {column.name: getattr(row, column.name) for column in picked(Domain)}
    domain = Domain(**{**stored, **columns})
    problems = Problems()
    _consistent(ctx, domain, values, problems)
    problems.settle()
    for name, used in (("max_users", row.user_count), ("max_addresses", row.address_count)):
        limit = columns.get(name)
        if limit and used > limit:
            text = f"the domain has {used} already"
            raise LimitReached(text, limit=limit, used=used, path=values.path(name))
    if use is None:
        return
    changed = [
        name for name in ("quota", "max_user_quota", "default_user_quota") if name in columns
    ]
    default = effective(ctx.world, domain, None)
    allocated = row.quota_allocated + use.inheriting * (default - effective(ctx.world, row, None))
    highest = max(use.highest or 0, default if use.inheriting else 0)
    limited = domain.quota or domain.max_user_quota
    if limited and (use.unlimited or (use.inheriting and not default)):
        text = "a user of the domain has unlimited storage"
        raise LimitReached(text, limit=limited, used=allocated, path=values.path(changed[0]))
    if domain.max_user_quota and highest > domain.max_user_quota:
        where = "max_user_quota" if "max_user_quota" in columns else changed[0]
        text = f"a user of the domain has {highest} bytes already"
        limit = domain.max_user_quota
        raise LimitReached(text, limit=limit, used=highest, path=values.path(where))
    if domain.quota and allocated > domain.quota:
        text = f"the users of the domain have {allocated} bytes together"
        path = values.path(changed[0])
        raise LimitReached(text, limit=domain.quota, used=allocated, path=path)


def _consistent(ctx: Context, domain: Domain, values: Values, problems: Problems) -> None:
    """Add errors to `problems` for limits and flags of the input that contradict each other."""
    given = [name for name in LIMITS if name in values.columns]
    default = effective(ctx.world, domain, None)
    pairs = (
        ("max_user_quota", domain.max_user_quota, "quota", domain.quota, False),
        ("default_user_quota", default, "max_user_quota", domain.max_user_quota, True),
        ("default_user_quota", default, "quota", domain.quota, True),
    )
    with problems.caught():
        for low, small, high, large, unlimited in pairs if given else ():
            if large and (small > large or (unlimited and not small)):
                where = low if low in given else high if high in given else given[0]
                names = WORDS[low], WORDS[high]
                text = f"{names[0]} is {small or 'unlimited'}, more than {names[1]}, {large}"
                raise Invalid(text, constraint="max", path=values.path(where))
    flags = [name for name in FLAGS if name in values.columns]
    needs = (
        ("relay_all_recipients", domain.relay_all_recipients, "backup_mx", domain.backup_mx),
        (
            "relay_unknown_only",
            domain.relay_unknown_only,
            "relay_all_recipients",
            domain.relay_all_recipients,
        ),
    )
    with problems.caught():
        for said, on, needed, there in needs if flags else ():
            if on and not there:
                text = f"{WORDS[said]} is for a domain with {WORDS[needed]}"
                name = said if said in flags else needed
                raise Invalid(text, constraint="requires", path=values.path(name))


async def _use(ctx: Context, keys: Sequence[int]) -> dict[int, Picked]:
    """Load the quotas given to users by domain, with one statement."""
    own = col(User.quota)
    asked: Select[*tuple[Any, ...]] = (
        select(
            col(User.domain_id).label("domain_id"),
            func.max(own).label("highest"),
            func.count().filter(own == 0).label("unlimited"),
            func.count().filter(own.is_(None)).label("inheriting"),
        )
        .where(col(User.domain_id).in_(keys))
        .group_by(col(User.domain_id))
    )
    return {row.domain_id: row for row in await ctx.read(asked)}


async def _write(
    ctx: Context, session: AsyncSession, keys: Sequence[int], columns: Mapping[str, Any]
) -> None:
    values = {**columns, "updated_at": ctx.world.now()}
    if "default_user_quota" in columns:  # the quota allocated to users without their own changes
        platform = ctx.world.options.default_quota
        given = columns["default_user_quota"]
        new = platform if given is None else given
        heirs = (
            select(func.count())
            .where(col(User.domain_id) == col(Domain.id), col(User.quota).is_(None))
            .scalar_subquery()
        )
        old = func.coalesce(col(Domain.default_user_quota), platform)
        values["quota_allocated"] = col(Domain.quota_allocated) + heirs * (new - old)
    connection = await session.connection()
    await connection.execute(update(Domain).where(col(Domain.id).in_(keys)).values(values))


def _changed(
    columns: Mapping[str, Any], rates: Mapping[int, tuple[Any, Any]], before: Picked, after: Picked
) -> Done:
    names = [name for name in columns if getattr(before, name) != getattr(after, name)]
    was, now = rates.get(before.id, (None, None))
    return _done(
        "domainUpdate",
        before.id,
        before={name: getattr(before, name) for name in names}
        | ({RATE: was} if was != now else {}),
        after={name: getattr(after, name) for name in names} | ({RATE: now} if was != now else {}),
        domain_id=before.id,
    )


def _done(mutation: str, key: int, **more: Any) -> Done:
    return Done(mutation=mutation, kind="Domain", target_id=key, **more)


async def remove(ctx: Context, refs: Sequence[Named], *, cascade: bool) -> list[int]:
    """Delete domains, all or none, and return their ids.

    Raises Conflict if a domain has users, addresses or aliases and `cascade` is false. With
    `cascade` its users are deleted as by `userDelete`, at most the bulk limit.
    """
    rows = await domain_loaders.chosen(ctx, refs)
    async with ctx.together():
        living = select(col(User.id)).where(col(User.domain_id).in_([row.id for row in rows]))
        if cascade and await ctx.read(living.limit(1)):
            theirs = Users(domains=tuple(row.name for row in rows))
            await user_delete.delete(ctx, theirs, mutation="domainDelete")
        return await _removed(ctx, [row.id for row in rows], cascade=cascade)


async def _removed(ctx: Context, keys: list[int], *, cascade: bool) -> list[int]:
    async with ctx.write() as session:
        await hold_all(session, keys)
        rows = await _rows(ctx, keys)
        await _unused(ctx, rows, cascade=cascade)
        told = await of_owners(ctx, keys)
        told.setdefault(PLATFORM, []).append((ChangeKind.DOMAIN_CHANGED, keys))
        signing = select(col(DkimKey.id)).where(col(DkimKey.domain_id).in_(keys))
        if signed := [row.id for row in await ctx.read(signing.order_by(col(DkimKey.id)))]:
            told[PLATFORM].append((ChangeKind.DKIM_CHANGED, signed))
        charges = select(col(DomainAdmin.user_id)).where(col(DomainAdmin.domain_id).in_(keys))
        admins = {row.user_id for row in await ctx.read(charges)}
        connection = await session.connection()
        admins |= await _drop_rules(ctx, session, rows)
        for table, column in (
            (Address, col(Address.domain_id)),
            (DomainAlias, col(DomainAlias.domain_id)),
            (Domain, col(Domain.id)),
            (Stream, col(Stream.id)),
        ):
            await connection.execute(delete(table).where(column.in_(keys)))
        await ctx.record_all(session, told, did="deleted")
        done = (_done("domainDelete", row.id, before={"name": row.name}) for row in rows)
        await admin_log.note(ctx, session, *done)
    forget(ctx.world, *admins)
    return keys


async def _drop_rules(ctx: Context, session: AsyncSession, rows: Sequence[Picked]) -> set[int]:
    """Delete the recipient rewrites and API keys of deleted domains.

    They have no foreign key. An API key for several domains keeps the others; one without
    remaining domains is deleted, since it would be valid for all domains. Returns the owners of
    the keys, 0 for none.
    """
    connection, gone = await session.connection(), {row.id for row in rows}
    second = select(col(DomainAlias.alias)).where(col(DomainAlias.domain_id).in_(gone))
    names = col(RecipientRewrite.domain).in_([row.name for row in rows])
    rewritten = names | col(RecipientRewrite.domain).in_(second)
    keys = select(*picked(ApiKey, {"id", "user_id", "domains"})).where(
        cast(col(ApiKey.domains), String) != "[]"
    )
    limited = [key for key in await ctx.read(keys) if gone & {*key.domains}]
    ended = [key.id for key in limited if gone >= {*key.domains}]
    taken = await connection.execute(
        delete(RecipientRewrite).where(rewritten).returning(col(RecipientRewrite.id))
    )
    done = [Done("domainDelete", "RecipientRewrite", key) for key in taken.scalars()]
    for key in limited:
        left = [one for one in key.domains if one not in gone]
        kept = update(ApiKey).where(col(ApiKey.id) == key.id).values(domains=left)
        if left:
            await connection.execute(kept)
    await connection.execute(delete(ApiKey).where(col(ApiKey.id).in_(ended)))
    done += [Done("domainDelete", "ApiKey", key) for key in ended]
    await admin_log.note(ctx, session, *done)
    return {key.user_id or 0 for key in limited}


async def hold_all(session: AsyncSession, keys: Sequence[int]) -> None:
    """Lock PLATFORM, these domains, and all users that live or have an address in them.

    Runs the query twice, since users can be added while it waits for the locks.
    """
    living = select(col(User.id)).where(col(User.domain_id).in_(keys))
    owners = select(col(Address.user_id)).where(
        col(Address.domain_id).in_(keys), col(Address.user_id).is_not(None)
    )
    homes = select(col(User.domain_id)).where(col(User.id).in_(owners))
    theirs = (col(Stream.id).in_(part) for part in (living, owners, homes))
    asked = (
        select(col(Stream.id))
        .where(or_(col(Stream.id).in_([PLATFORM, *keys]), *theirs))
        .order_by(col(Stream.id))
        .with_for_update()
    )
    connection = await session.connection()
    for _ in range(2):
        await connection.execute(asked)


async def _unused(ctx: Context, rows: Sequence[Picked], *, cascade: bool) -> None:
    """Raise Conflict with the index of the first domain that has users, addresses or aliases.

    With `cascade` only users count.
    """
    keys = [row.id for row in rows]
    kinds = {
        "users live in it": col(User.domain_id),
        "addresses are in it": col(Address.domain_id),
        "other names stand for it": col(DomainAlias.domain_id),
    }
    for text, column in list(kinds.items())[: 1 if cascade else None]:
        used: Select[*tuple[Any, ...]] = (
            select(column.label("key")).where(column.in_(keys)).distinct()
        )
        there = {row.key for row in await ctx.read(used)}
        for index, row in enumerate(rows):
            if row.id in there:
                raise Conflict(f"{row.name}: {text}", path=["domains"], index=index)


async def of_owners(
    ctx: Context, keys: Sequence[int]
) -> dict[int, list[tuple[ChangeKind, list[int]]]]:
    """Return ADDRESS_CHANGED of all addresses of domains, by the stream that records them.

    Addresses without user belong to the stream of the platform.
    """
    asked = select(col(Address.id), col(Address.user_id)).where(col(Address.domain_id).in_(keys))
    owned: dict[int, list[int]] = {}
    for row in await ctx.read(asked.order_by(col(Address.id))):
        owned.setdefault(row.user_id or PLATFORM, []).append(row.id)
    return {stream: [(ChangeKind.ADDRESS_CHANGED, ids)] for stream, ids in owned.items()}
