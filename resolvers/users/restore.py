"""Deleted users: find and restore them while their data waits for removal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import String, cast, or_, select, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normal, normal_domain, username_key
from models.addresses.tables import Address
from models.admin.tasks import Task, TaskState
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, NotFound
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked
from models.users.roles import Role
from models.users.search_index import words_of
from models.users.tables import DeletedUser, User
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth.authentication import forget
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.delete import buried, count_places, tell
from resolvers.users.quota.quota_allocation import effective, room, seat

Kept = Mapping[str, Any]  # an address row of a deleted user


@dataclass(frozen=True, slots=True)
class Named:
    """A reference to a deleted user: its id, or a username or address that it had."""

    id: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """A restored user, with the addresses it has again and those it has lost."""

    user: Picked
    recovered: Sequence[str]
    lost: Sequence[str]


async def find(ctx: Context, by: Named) -> Picked | None:
    """Load the row of a deleted user; None if there is none the viewer can decide on.

    Of several users that had a name, returns the one deleted last.
    """
    asked = (
        select(
            *(column for column in picked(DeletedUser)),
            col(User.username),
            col(User.name),
            col(User.used),
            col(User.tags),
            col(User.quota),
        )
        .join(User, col(User.id) == col(DeletedUser.id))
        .where(buried(ctx))
        .order_by(col(DeletedUser.deleted_at).desc(), col(DeletedUser.id).desc())
    )
    if by.id is not None:
        return next(iter(await ctx.read(asked.where(col(DeletedUser.id) == by.id))), None)
    if "@" in by.name:
        local, name = normal(by.name)
        places = await _places(ctx, name)
        # a filter on the JSON text, which is the same in both databases; checked in full below
        like = cast(col(DeletedUser.addresses), String).contains(f'"{local}"', autoescape=True)
        for row in await ctx.read(asked.where(like)) if local and places else ():
            if any(a["local"] == local and a["domain_id"] in places for a in row.addresses):
                return row
    key = col(DeletedUser.username_key) == username_key(by.name)
    return next(iter(await ctx.read(asked.where(key))), None)


async def _places(ctx: Context, name: str) -> set[int]:
    """Load the ids of the domain of this name and of the domain it is an alias of."""
    name = normal_domain(name)
    alias = select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == name)
    asked = select(col(Domain.id)).where(or_(col(Domain.name) == name, col(Domain.id).in_(alias)))
    return {row.id for row in await ctx.read(asked)}


async def recoverable(ctx: Context, kept: Sequence[Kept]) -> list[Kept]:
    """Return the addresses that are still free, in domains that still exist."""
    locals_ = [address["local"] for address in kept]
    asked = select(col(Address.local), col(Address.domain_id))
    taken = {tuple(row) for row in await ctx.read(asked.where(col(Address.local).in_(locals_)))}
    places = {address["domain_id"] for address in kept} - {None}
    there = select(col(Domain.id)).where(col(Domain.id).in_(places))
    known = {None, *(row.id for row in await ctx.read(there))}
    return [
        address
        for address in kept
        if address["domain_id"] in known and (address["local"], address["domain_id"]) not in taken
    ]


async def restore(ctx: Context, by: Named) -> Restored:
    """Restore a deleted user while its deletion task waits.

    Raises NotFound for an unknown user; Conflict if its data is being removed, its username is
    taken, or it is not deleted; LimitReached if its domain is full. If its domain no longer exists,
    the user has none.
    """
    row = await find(ctx, by)
    if row is None:
        await _refuse(ctx, by)
        raise NotFound(by.name or str(by.id), path=["by"])
    places = {address["domain_id"] for address in row.addresses} | {row.domain_id}
    try:
        async with ctx.write(PLATFORM, row.id, *(places - {None})) as session:
            row = await find(ctx, Named(row.id))
            if row is None:
                raise Conflict("it was brought back, or removed, meanwhile", path=["by"])
            restored = await _bring_back(ctx, session, row)
    except IntegrityError as clash:  # a concurrent request took the name
        raise Conflict("user name or address is taken", path=["by"]) from clash
    forget(ctx.world, row.id)
    return restored


async def _refuse(ctx: Context, by: Named) -> None:
    """Raise Conflict if the reference is that of a live user."""
    known = (
        ctx.load(user_loaders.by_ids, by.id)
        if by.id is not None
        else user_loaders.named(ctx, by.name)
    )
    if await known:
        raise Conflict("this account is not deleted", path=["by"])


async def _bring_back(ctx: Context, session: AsyncSession, row: Picked) -> Restored:
    """Restore the rows of a deleted user that is locked."""
    connection = await session.connection()
    await _call_off(ctx, session, row)
    taken = select(col(User.id)).where(col(User.username_key) == row.username_key)
    if await ctx.read(taken):
        raise Conflict("the user name is taken", path=["by"])
    back = await recoverable(ctx, row.addresses)
    main = _main(ctx, row, back)
    key = main["domain_id"] if main else row.domain_id
    domain = await session.get(Domain, key, populate_existing=True) if key else None
    place = SimpleNamespace(id=row.id, quota=row.quota, domain_id=domain.id if domain else None)
    if domain:
        quota = effective(ctx.world, domain, row.quota)
        seat(domain, path=["by"])
        room(domain, quota, unlimited=not quota, path=["by"])
    await count_places(ctx, session, [place], back, sign=1)
    now = ctx.world.now()
    session.add_all(
        Address.model_validate({**address, "main": address is main, "updated_at": now})
        for address in back
    )
    await session.flush()
    await connection.execute(delete_rows(DeletedUser).where(col(DeletedUser.id) == row.id))
    changed = await connection.execute(
        update(User)
        .where(col(User.id) == row.id)
        .values(
            deleted_at=None,
            disabled=row.disabled,
            username_key=row.username_key,
            domain_id=place.domain_id,
            words=words_of(row.username, row.name, main["shown"] if main else None),
            updated_at=now,
        )
        .returning(*picked(User))
    )
    user: Picked = changed.one()
    if back:
        ids = [address["id"] for address in back]
        await ctx.record(session, row.id, ChangeKind.ADDRESS_CHANGED, ids)
    await tell(ctx, session, [user], back, did="restored")
    recovered = [address["shown"] for address in back]
    lost = [address["shown"] for address in row.addresses if address not in back]
    after = {"recoveredAddresses": recovered, "lostAddresses": lost}
    await admin_log.note(
        ctx, session, Done("userRestore", "User", row.id, place.domain_id, None, after)
    )
    return Restored(user, recovered, lost)


async def _call_off(ctx: Context, session: AsyncSession, row: Picked) -> None:
    """Cancel the waiting deletion task. Raises Conflict if it has begun."""
    if row.task_id is None:
        return
    now, this = ctx.world.now(), col(Task.id) == row.task_id
    ended = {"state": TaskState.CANCELLED, "cancelled": True, "finished_at": now}
    waiting = update(Task).where(this, col(Task.state) == TaskState.QUEUED)
    if (await (await session.connection()).execute(waiting.values(**ended))).rowcount:
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [row.task_id])
        return
    begun = select(col(Task.id)).where(this, col(Task.started_at).is_not(None))
    if await ctx.read(begun):
        raise Conflict("its data is being removed already", path=["by"])


def _main(ctx: Context, row: Picked, back: Sequence[Kept]) -> Kept | None:
    """Choose the main address: the former one, else the first, if possible in the user's domain.

    A DOMAIN_ADMIN can't restore a user into a domain of others.
    """
    viewer = ctx.viewer
    able = [
        address
        for address in back
        if "*" not in address["local"]
        and address["domain_id"]
        and (viewer.role.includes(Role.ADMIN) or address["domain_id"] in viewer.administers)
    ]
    rank = sorted(able, key=lambda a: (not a["main"], a["domain_id"] != row.domain_id))
    return next(iter(rank), None)
