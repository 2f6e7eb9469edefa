"""Store new users: check names, addresses and limits of domains, then insert all rows at once.

The same checks run twice: before passwords are hashed, so that an error costs no hash, and again in
the transaction that locks the domains.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.paths import with_parents
from mail.text import confusables
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, Invalid, LimitReached, NotFound, Refused
from models.events import journal
from models.events.journal import PLATFORM, ChangeKind, Entry, Stream
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import picked
from models.users.roles import Role
from models.users.tables import DomainAdmin, User, UserTag
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.mailboxes.loaders import new_mailbox
from resolvers.users.creation import welcome_messages
from resolvers.users.creation.welcome_messages import Welcome
from resolvers.users.quota.quota_allocation import effective, give, seat

MONTH = 30 * 86_400  # seconds
PARAMETERS = 1000  # in one SELECT


@dataclass(slots=True)
class PreparedUser:
    """A validated user that is ready to be stored."""

    user: User
    address: str | None  # main address, as shown
    local_part: str  # normalized
    domain_name: str | None  # normalized; None if there is no address
    paths: Mapping[SpecialUse, str]
    administers: frozenset[int]  # domain ids
    tag_address: bool  # the address has the tags of the user
    welcome: list[Welcome] = field(default_factory=list)


@dataclass(slots=True)
class Admission:
    """The names and counters that new users can collide with.

    Each admitted user is counted, so the order of users matters.
    """

    ctx: Context
    domains: Mapping[str, Domain | Refused]  # by name
    usernames: set[str]  # keys of those that exist
    addresses: set[tuple[int, str]]  # domain id and local part of those that exist

    def admit(self, one: PreparedUser) -> None:
        """Count a user in. Raises Conflict, LimitReached or NotFound if it can't be stored."""
        domain = self._domain(one)
        if one.user.username_key in self.usernames:
            raise Conflict("the user name is taken", path=["username"])
        if domain is not None:
            place = (domain.id, one.local_part)
            if place in self.addresses:
                raise Conflict("the address is taken", path=["address"])
            seat(domain, path=["address"])
            give(self.ctx.world, domain, [], [effective(self.ctx.world, domain, one.user.quota)])
            domain.user_count += 1
            domain.address_count += 1
            self.addresses.add(place)
            one.user.domain_id = one.user.tenant_id = domain.id
        self.usernames.add(one.user.username_key)

    def _domain(self, one: PreparedUser) -> Domain | None:
        if one.domain_name is None:
            return None
        domain = self.domains[one.domain_name]
        if isinstance(domain, Refused):
            raise domain
        if domain.max_addresses and domain.address_count >= domain.max_addresses:
            raise LimitReached(
                "the domain has all its addresses",
                limit=domain.max_addresses,
                used=domain.address_count,
                path=["address"],
            )
        return domain

    def admit_all(
        self, prepared: Mapping[int, PreparedUser]
    ) -> tuple[dict[int, PreparedUser], dict[int, Refused]]:
        """Return the users that can be stored, and the errors of the others, by the same keys."""
        admitted, refused = dict[int, PreparedUser](), dict[int, Refused]()
        for key, one in prepared.items():
            try:
                self.admit(one)
            except Refused as refusal:
                refused[key] = refusal
            else:
                admitted[key] = one
        return admitted, refused


class NotAdmitted(Exception):
    """Some users can't be stored; `errors` has the reasons, by the keys of the caller."""

    def __init__(self, refusals: Mapping[int, Refused]) -> None:
        super().__init__("accounts are refused")
        self.refusals = refusals


async def check(ctx: Context, prepared: Mapping[int, PreparedUser]) -> dict[int, Refused]:
    """Return the errors of users that can't be stored at present, by the same keys.

    Stores nothing.
    """
    names = {one.domain_name for one in prepared.values() if one.domain_name}
    found = {row.name: Domain(**row._asdict()) for row in await _domain_rows(ctx, names)}
    known = await _resolve_domains(ctx, names, found)
    _, refused = (await _admission(ctx, prepared.values(), known)).admit_all(prepared)
    return refused


async def store(
    ctx: Context,
    prepared: Mapping[int, PreparedUser],
    *,
    mutation: str,
    partly: bool = False,
    within: Callable[[int], Sequence[str]] = lambda _: (),
) -> dict[int, Refused]:
    """Store users in one transaction; return the errors of those not stored, by the same keys.

    Raises NewUsersRefused if there are errors, unless `partly`: then no user is stored. The admin
    log has one entry for each user, with the name of the `mutation`. `path_of` returns the input
    path of a user, for warnings.
    """
    if not prepared:
        return {}
    names = {one.domain_name for one in prepared.values() if one.domain_name}
    async with ctx.write(*await streams(ctx, prepared.values())) as session:
        found = await _held_domains(ctx, session, names)
        known = await _resolve_domains(ctx, names, found)
        admission = await _admission(ctx, prepared.values(), known)
        admitted, refused = admission.admit_all(prepared)
        if refused and not partly:
            raise NotAdmitted(refused)
        for name, domain in known.items():
            if name not in found and isinstance(domain, Domain) and domain.user_count:
                await domain_loaders.added(ctx, session, domain)
                first = next(key for key, one in admitted.items() if one.domain_name == name)
                domain_loaders.warn_created(ctx, name, path=[*within(first), "address"])
        await _insert(ctx, session, list(admitted.values()))
        done = (_done(mutation, one.user) for one in admitted.values())
        await admin_log.note(ctx, session, *done)
    return refused


async def streams(ctx: Context, prepared: Iterable[PreparedUser]) -> list[int]:
    """Return the ids of the streams to lock for a transaction that stores these users."""
    prepared = list(prepared)
    names = {one.domain_name for one in prepared if one.domain_name}
    rows = await _domain_rows(ctx, names)
    keys = [row.id for row in rows]
    if len(rows) < len(names) or any(one.domain_name is None for one in prepared):
        keys.append(PLATFORM)
    return keys


async def _held_domains(
    ctx: Context, session: AsyncSession, names: Iterable[str]
) -> dict[str, Domain]:
    """Lock the streams of the domains with these names; return the domains by name."""
    keys = [row.id for row in await _domain_rows(ctx, names)]
    await journal.lock(session, sorted(keys))  # also domains created since the transaction began
    asked = instances(Domain).where(col(Domain.id).in_(keys), col(Domain.name).in_(names))
    again = asked.execution_options(populate_existing=True)
    return {one.name: one for one in (await session.exec(again)).all()}


async def _domain_rows(ctx: Context, names: Iterable[str]) -> Sequence[Any]:
    if not (names := list(names)):
        return []
    return await ctx.read(select(*picked(Domain)).where(col(Domain.name).in_(names)))


async def _resolve_domains(
    ctx: Context, names: Iterable[str], found: Mapping[str, Domain]
) -> dict[str, Domain | Refused]:
    """Return the domain of each name that the viewer can use, or the error.

    A missing domain is created if the viewer may create it.
    """
    if not (names := list(names)):
        return {}
    viewer, free = ctx.viewer, ctx.viewer.role.includes(Role.ADMIN)
    asked = select(col(DomainAlias.alias), col(DomainAlias.domain_id))
    aliases = {
        row.alias: row.domain_id
        for row in await ctx.read(asked.where(col(DomainAlias.alias).in_(names)))
    }
    known: dict[str, Domain | Refused] = {}
    for name in names:
        domain = found.get(name)
        if name in aliases and (free or aliases[name] in viewer.administers):
            known[name] = Conflict(f"{name} is an alias of another domain", path=["address"])
        elif domain is not None and (free or domain.id in viewer.administers):
            known[name] = domain
        elif domain is None and domain_loaders.may_create(ctx):
            try:
                confusables.refuse_domain(name, path="address")
                known[name] = domain_loaders.new(ctx, name)
            except Invalid as refusal:
                known[name] = refusal
        else:
            missing = domain is None and name not in aliases
            known[name] = (
                domain_loaders.unknown(ctx, name, path=["address"])
                if missing
                else NotFound(name, path=["address"])
            )
    return known


async def _admission(
    ctx: Context, prepared: Iterable[PreparedUser], known: Mapping[str, Domain | Refused]
) -> Admission:
    """Load the existing names and addresses that these users could collide with."""
    keys, locals_ = set[str](), dict[int, set[str]]()
    for one in prepared:
        keys.add(one.user.username_key)
        domain = known[one.domain_name] if one.domain_name else None
        if isinstance(domain, Domain):
            locals_.setdefault(domain.id, set()).add(one.local_part)
    usernames = {
        row.username_key
        for part in _parts(keys)
        for row in await ctx.read(
            select(col(User.username_key)).where(col(User.username_key).in_(part))
        )
    }
    taken = {
        (domain_id, row.local)
        for domain_id, local_parts in locals_.items()
        for part in _parts(local_parts)
        for row in await ctx.read(
            select(col(Address.local)).where(
                col(Address.domain_id) == domain_id, col(Address.local).in_(part)
            )
        )
    }
    return Admission(ctx, known, usernames, taken)


def _parts(names: Iterable[str]) -> list[list[str]]:
    names = sorted(names)
    return [names[start : start + PARAMETERS] for start in range(0, len(names), PARAMETERS)]


async def _insert(ctx: Context, session: AsyncSession, prepared: Sequence[PreparedUser]) -> None:
    """Insert the rows of admitted users and their journal entries."""
    for one in prepared:
        session.add_all([one.user, Stream(id=one.user.id)])
    await session.flush()  # the rows below refer to these
    entries: dict[int, list[Entry]] = {}
    boxes = dict[int, list[Mailbox]]()
    for one in prepared:
        user = one.user
        entries[user.id] = []
        session.add_all(UserTag(tag=tag.casefold(), user_id=user.id) for tag in user.tags)
        session.add_all(
            DomainAdmin(user_id=user.id, domain_id=key) for key in sorted(one.administers)
        )
        if one.address:
            address = _address(ctx, one)
            session.add(address)
            kind = ChangeKind.ADDRESS_CHANGED
            entries[user.id] += ctx.entries(kind, [address.id], did="created")
        boxes[user.id] = _folders(ctx, user, one.paths)
        session.add_all(boxes[user.id])
        entries[user.id] += ctx.entries(
            ChangeKind.MAILBOX_CREATED,
            [box.id for box in boxes[user.id]],
            path=[box.path for box in boxes[user.id]],
        )
    await session.flush()
    await journal.record_all(session, entries, at=ctx.world.now())
    for one in prepared:
        if one.welcome:
            await welcome_messages.put(ctx, session, one.user, boxes[one.user.id], one.welcome)
            await session.refresh(one.user)
    told: dict[int, list[int]] = {}
    for one in prepared:
        told.setdefault(one.user.domain_id or PLATFORM, []).append(one.user.id)
    changed = {
        stream: ctx.entries(ChangeKind.USER_CHANGED, ids, did="created")
        for stream, ids in told.items()
    }
    await journal.record_all(session, changed, at=ctx.world.now())


def _address(ctx: Context, one: PreparedUser) -> Address:
    at = ctx.world.now()
    return Address(
        id=ctx.world.key(),
        local=one.local_part,
        domain_id=one.user.domain_id,
        shown=one.address or "",
        user_id=one.user.id,
        main=True,
        tags=one.user.tags if one.tag_address else [],
        created_at=at,
        updated_at=at,
    )


def _folders(ctx: Context, user: User, paths: Mapping[SpecialUse, str]) -> list[Mailbox]:
    uses = {path: use for use, path in paths.items()}
    boxes = [new_mailbox(ctx, user, path, uses.get(path)) for path in with_parents(uses)]
    for box in boxes:
        if box.special_use in {SpecialUse.TRASH, SpecialUse.JUNK}:
            box.retention = min(MONTH, box.retention or MONTH)
    return boxes


def _done(mutation: str, user: User) -> Done:
    after = {"username": user.username, "role": user.role}
    return Done(mutation, "User", user.id, user.domain_id, None, after)
