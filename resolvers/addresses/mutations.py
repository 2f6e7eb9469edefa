"""Create and delete addresses, with the checks that all address mutations share."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normal
from mail.recipients import forward_targets
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.errors import Conflict, Forbidden, Invalid, Problems, all_found, check_count
from models.events.journal import PLATFORM
from models.store.columns import Picked
from models.users.roles import Role, Scope, UserPermission
from models.users.tables import User
from resolvers.addresses import autoreplies, main_address
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.autoreplies import Replies
from resolvers.addresses.events import News, tell
from resolvers.addresses.main_address import Changed
from resolvers.addresses.targets import Targets, checked_targets, names_of, refuse_itself
from resolvers.addresses.validation import EVERYWHERE, can_be_main, consistent, facts, spelled, word
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context, Needs
from resolvers.domains import loaders as domain_loaders
from resolvers.users.delete import count_places
from resolvers.users.selection import managed_one

TAKEN = "the address is taken"
REPLY = ("autoreply",)  # its place in the input
SHOWN = ("kind", "targets", "active", "main", "send_as", "expires_at", "forwards_max")


@dataclass(frozen=True, slots=True)
class NewAddress:
    """An address to create. `facts` holds optional columns by name."""

    address: str
    kind: AddressKind | None = None  # None: a MAILBOX of a user, else a FORWARD
    user_id: int | None = None
    main: bool = False
    wildcard: bool = False
    targets: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    autoreply: Mapping[str, Any] | None = None  # by column


async def create(ctx: Context, new: NewAddress) -> Address:
    """Create an address and return it.

    Raises InvalidInput with all problems of the input, Conflict if the address exists, and
    LimitReached if its domain has no room for another address.
    """
    problems, shown = Problems(), ""
    with problems.caught():
        shown = spelled(new.address, wildcard=new.wildcard)
    columns, to = facts(new.facts, problems), Targets()
    with problems.caught():
        to = checked_targets(ctx, new.targets, {}, ["targets"])
    kind = new.kind or (AddressKind.FORWARD if new.user_id is None else AddressKind.MAILBOX)
    with problems.caught():
        if (kind is AddressKind.MAILBOX) is (new.user_id is None):
            words = "a MAILBOX has a user, and nothing else has"
            raise Invalid(words, constraint="required", path=["user"])
    with problems.caught():
        if columns.get("expires_at") and columns["expires_at"] <= ctx.world.now():
            raise Invalid("that is over already", constraint="min", path=["expiresAt"])
    local, name = normal(shown)
    at, key = ctx.world.now(), ctx.world.key()
    wanted = SimpleNamespace(
        local=local,
        domain_id=None if name == EVERYWHERE else key,  # some domain: it is not looked for yet
        kind=kind,
        targets=to.shown,
        forwards_max=columns.get("forwards_max"),
        expires_at=columns.get("expires_at"),
        main=new.main,
    )
    consistent(wanted, problems, learns=bool(ctx.world.options.rspamd_learn))
    replies = Replies()
    if new.autoreply is not None:
        with problems.caught():
            autoreplies.able(kind, REPLY)
            said = autoreplies.facts(new.autoreply, REPLY)
            columns["answers"] = autoreplies.change(replies, key, said, at, REPLY)
    problems.settle()
    made = Address(
        id=key,
        local=local,
        shown=shown,
        kind=kind,
        user_id=new.user_id,
        targets=list(to.shown),
        relays=forward_targets.sealed(ctx.world, key, to.relays),
        created_at=at,
        updated_at=at,
        **columns,
    )
    return await added(ctx, made, name, main=new.main, replies=replies)


async def added(
    ctx: Context, made: Address, name: str, *, main: bool, replies: Replies | None = None
) -> Address:
    """Store an address in the domain of this name, record it in the journals and the admin log.

    Makes it the main address of its user if `is_main` is set or the user has none. Raises
    NotFound, Forbidden, Conflict or LimitReached.
    """
    user = None if made.user_id is None else await managed_one(ctx, made.user_id)
    here = None if name == EVERYWHERE else await domain_loaders.named(ctx, name)
    streams = [made.user_id or PLATFORM, here.id if here else PLATFORM]
    streams.append(user.domain_id or PLATFORM if user else PLATFORM)
    try:
        async with ctx.write(*streams) as session:
            if user is not None:
                place, user = user.domain_id, await managed_one(ctx, user.id)
                if user.domain_id != place:
                    raise Conflict("the account has moved meanwhile", path=["user"])
            domain = await _place(ctx, session, name)
            made.domain_id = domain.id if domain else None
            refuse_itself(made, await names_of(ctx, [made.domain_id]), ["targets"])
            await free(ctx, made.local, made.domain_id, ["address"])
            if domain:
                domain.address_count += 1
                session.add(domain)
            session.add(made)
            await session.flush()
            if replies:
                await autoreplies.store(session, replies)
            changed = Changed()
            if user is not None:
                first = can_be_main(made) and not await main_address.of(ctx, user.id)
                if main or first:
                    changed = await main_address.change(ctx, session, user, made, ["main"])
                    await session.refresh(made)
            await tell(ctx, session, [made], News("created"))
            await tell(ctx, session, changed.rows, News(users=changed.users))
            after = {"address": made.shown, "user": user and user.username, **facts_of(made, SHOWN)}
            if replies and made.id in replies.rows:
                after["autoreply"] = replies.logged(made.id)[1]
            done = Done("addressCreate", "Address", made.id, made.domain_id, None, after)
            await admin_log.note(ctx, session, done)
    except IntegrityError as clash:  # another writer inserted the same address first
        raise Conflict(TAKEN, path=["address"]) from clash
    return made


async def _place(ctx: Context, session: AsyncSession, name: str) -> Domain | None:
    """Return the locked domain of a new address; None for an address of all domains.

    Raises Forbidden if the viewer may not create addresses there, LimitReached if it has no
    room.
    """
    if name != EVERYWHERE:
        return await domain_loaders.ensure(ctx, session, name, path="address")
    if not ctx.viewer.role.includes(Role.ADMIN):
        words = "an address in all domains needs the role ADMIN"
        raise Forbidden(words, requires=Role.ADMIN, path=["address"])
    return None


async def free(
    ctx: Context, local: str, domain_id: int | None, path: Sequence[str], *, but: int = 0
) -> None:
    """Raise Conflict if another address has this normal form.

    The transaction must hold the lock on the stream of the domain.
    """
    here = col(Address.domain_id)
    same = here.is_(None) if domain_id is None else here == domain_id
    asked = select(col(Address.id)).where(col(Address.local) == local, same)
    if await ctx.read(asked.where(col(Address.id) != but)):
        raise Conflict(TAKEN, path=path)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete addresses, all or none.

    Raises NotFound if the viewer can't see an address, Conflict if one is the main address of
    its user, and Forbidden if the viewer does not administer it. Owners can delete the
    temporary addresses that they created.
    """
    most = ctx.world.options.bulk
    check_count(len(ids), most, f"name 1 to {most} addresses", path=["ids"])
    seen = await in_order(ctx, ids, ["ids"])
    async with ctx.write(*streams_of(seen)) as session:
        rows = await in_order(ctx, ids, ["ids"])
        if streams_of(rows) != streams_of(seen):
            raise Conflict("an address was changed meanwhile", path=["ids"])
        await refuse_others(ctx, rows, ["ids"])
        for index, row in enumerate(rows):
            if not in_charge(ctx, row) and not row.masked:
                words = "whoever is in charge of the domain deletes it"
                raise forbidden(words, Role.DOMAIN_ADMIN, ["ids"], index)
            if row.main:
                words = "the main address of a user: name another as main first"
                raise Conflict(words, path=["ids"], index=index)
        connection = await session.connection()
        await connection.execute(delete(Address).where(col(Address.id).in_([r.id for r in rows])))
        await count_places(ctx, session, [], [dict(row._mapping) for row in rows], sign=-1)  # noqa: SLF001
        await tell(ctx, session, rows, News("deleted"))
        others = [row for row in rows if row.user_id != ctx.viewer.user_id or not row.user_id]
        log = [
            Done("addressDelete", "Address", row.id, row.domain_id, {"address": row.shown})
            for row in others
        ]
        await admin_log.note(ctx, session, *log)


def streams_of(rows: Iterable[Any]) -> set[int]:
    """Return the stream ids of the users and domains of addresses, or the platform's."""
    keys: set[int] = set()
    for row in rows:
        keys |= {key for key in (row.user_id, row.domain_id) if key} or {PLATFORM}
    return keys


async def in_order(ctx: Context, ids: Sequence[int], path: Sequence[str]) -> list[Picked]:
    """Load addresses in the order of the ids, each once.

    Raises NotFound if one is not visible.
    """
    rows = {row.id: row for row in await address_loaders.by_ids(ctx, list(ids)) if row}
    all_found(ids, rows, path=path)
    return list(rows.values())


def in_charge(ctx: Context, row: Any) -> bool:
    """True if the viewer administers the address; being its owner is not enough."""
    return ctx.viewer.role.includes(Role.ADMIN) or row.domain_id in ctx.viewer.administers


async def refuse_others(ctx: Context, rows: Sequence[Picked], path: Sequence[str]) -> None:
    """Raise Forbidden if the viewer may not change one of the addresses.

    Owners change their own addresses, administrators those of their domains. The owner's role
    must not exceed the viewer's. Checks role, scope and permission.
    """
    viewer, mine = ctx.viewer, ctx.viewer.user_id
    if any(row.user_id != mine or not mine for row in rows):
        viewer.require(Needs(role=Role.DOMAIN_ADMIN, scope=Scope.MASTER))
    if any(row.masked and row.user_id == mine for row in rows):
        viewer.require(Needs(user_permission=UserPermission.SPAM_ALIAS))
    above = {Role.ROOT: (), Role.ADMIN: (Role.ROOT,)}.get(viewer.role)
    asked = select(col(User.id), col(User.role)).where(
        col(User.id).in_({row.user_id for row in rows} - {None, mine})
    )
    standing = {row.id: row.role for row in await ctx.read(asked)}
    for index, row in enumerate(rows):
        role = standing.get(row.user_id, Role.USER)
        if row.user_id != mine and not in_charge(ctx, row):
            words = "this needs to be in charge of its domain"
            raise forbidden(words, Role.ADMIN, path, index)
        if role is not Role.USER if above is None else role in above:
            raise forbidden(f"this needs the role {role}", role, path, index)


def forbidden(words: str, needed: Role, path: Sequence[str], index: int) -> Forbidden:
    """Return a Forbidden error for one of several addresses."""
    refusal = Forbidden(words, requires=needed, path=path)
    refusal.index = index
    return refusal


def facts_of(row: Any, names: Collection[str]) -> dict[str, Any]:
    """Return the columns of an address that are not None, by their GraphQL name."""
    return {word(name): getattr(row, name) for name in names if getattr(row, name) is not None}
