"""Deletion of users: at once, or after a grace period.

The row stays until a task has removed the data, without a domain and under a username key that no
user can have: for all others the user is gone at once. `DeletedUser` has what a restore needs.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    bindparam,
    cast,
    false,
    insert,
    literal,
    select,
    true,
    update,
)
from sqlalchemy import delete as delete_rows
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import username_key
from models.addresses.tables import Address
from models.admin.tasks import Task, TaskState
from models.auth.credentials import AccessToken
from models.domains.tables import Domain
from models.errors import Conflict, Forbidden, Invalid, NotFound
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, picked, table_of
from models.users.roles import Role
from models.users.tables import DeletedUser, User
from resolvers.access import managed_users
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import queue
from resolvers.auth.authentication import forget
from resolvers.context import Context
from resolvers.mailboxes import shares
from resolvers.users.quota.quota_allocation import effective
from resolvers.users.selection import Users, chosen

KIND = "USER_DELETE"  # of the task that removes the data


@dataclass(frozen=True, slots=True)
class Deletion:
    """Deleted users with the tasks that remove their data, in the same order."""

    ids: Sequence[int]
    tasks: Sequence[Picked]


def buried(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for deleted users that the viewer can restore or delete.

    The select must join `DeletedUser` to `User`.
    """
    viewer = ctx.viewer
    if viewer.role is Role.ROOT:
        return true()
    if viewer.role is Role.ADMIN:
        return col(User.role) != Role.ROOT
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administers:
        theirs = col(DeletedUser.domain_id).in_(viewer.administers)
        return theirs & (col(User.role) == Role.USER)
    return false()


async def delete(
    ctx: Context, users: Users, after: datetime | None = None, *, mutation: str = "userDelete"
) -> Deletion:
    """Delete these users; their data is removed at once, or not before `after`.

    A user that is deleted already, named by id or former username, gets the new time for its task.
    Raises Conflict if that task has begun, Forbidden for the viewer's own account, Invalid for an
    empty selection.
    """
    if not users.given:
        raise Invalid("say which accounts", constraint="required", path=["users"])
    try:
        again, rows = await _named(ctx, users)
    except NotFound:  # a concurrent request may have deleted it
        again, rows = await _named(ctx, users)
    if any(row.id == ctx.viewer.user_id for row in rows):
        raise Forbidden("nobody deletes the own account", path=["users"])
    ids = sorted({*again, *(row.id for row in rows)})
    streams = {PLATFORM, *ids, *(row.domain_id for row in rows if row.domain_id)}
    places = select(col(Address.domain_id)).where(col(Address.user_id).in_(ids)).distinct()
    streams |= {row.domain_id for row in await ctx.read(places) if row.domain_id}
    streams |= {*await shares.grantees(ctx, ids), *await shares.benefactors(ctx, ids)}
    after = after if after and after > ctx.world.now() else None
    async with ctx.write(*streams) as session:
        tasks = await _schedule(ctx, session, ids, after)
        late = select(col(User.id), col(User.username), col(DeletedUser.domain_id))
        late = late.join(DeletedUser, col(DeletedUser.id) == col(User.id))
        moved = await ctx.read(late.where(col(User.id).in_(tasks)).order_by(col(User.id)))
        live = select(*picked(User)).where(col(User.id).in_(ids), managed_users(ctx))
        ending = await ctx.read(live.order_by(col(User.id)))
        tasks |= await _bury(ctx, session, ending, after)
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, list(tasks.values()))
        what = {"deleteAfter": after}
        log = [
            Done(mutation, "User", row.id, row.domain_id, {"username": row.username}, what)
            for row in [*moved, *ending]
        ]
        await admin_log.note(ctx, session, *log)
        ids = [key for key in ids if key in tasks]
        found = select(*picked(Task)).where(col(Task.id).in_(tasks.values()))
        made = {row.id: row for row in await ctx.read(found)}
    forget(ctx.world, *ids)
    return Deletion(ids, [made[tasks[key]] for key in ids])


async def _named(ctx: Context, users: Users) -> tuple[list[int], list[Picked]]:
    """Resolve the selection to the ids of deleted users and the rows of the others."""
    again, rest = await _deleted_already(ctx, users)
    return again, await chosen(ctx, rest) if rest.given else []


async def _deleted_already(ctx: Context, users: Users) -> tuple[list[int], Users]:
    """Return the ids of named users that are deleted already, and the selection without them."""
    if not (users.ids or users.usernames):
        return [], users
    keys = {username_key(name): name for name in users.usernames}
    asked = (
        select(col(DeletedUser.id), col(DeletedUser.username_key))
        .join(User, col(User.id) == col(DeletedUser.id))
        .where(
            buried(ctx),
            col(DeletedUser.id).in_(users.ids) | col(DeletedUser.username_key).in_(keys),
        )
    )
    taken = select(col(User.username_key)).where(col(User.username_key).in_(keys))
    live = {row.username_key for row in await ctx.read(taken)} if keys else set[str]()
    rows = await ctx.read(asked.order_by(col(DeletedUser.deleted_at)))
    named = {row.username_key: row.id for row in rows if row.username_key in keys}  # the newest
    named = {key: found for key, found in named.items() if key not in live}
    again = {row.id for row in rows if row.id in users.ids} | set(named.values())
    rest = replace(
        users,
        ids=tuple(key for key in users.ids if key not in again),
        usernames=tuple(name for key, name in keys.items() if key not in named),
    )
    return sorted(again), rest


async def _schedule(
    ctx: Context, session: AsyncSession, ids: Sequence[int], after: datetime | None
) -> dict[int, int]:
    """Change the time of the deletion tasks of deleted users; return task ids by user id.

    A user gets a new task if the old one has ended. Raises Conflict if a task with a new time is
    running.
    """
    asked = (
        select(col(DeletedUser.id), col(DeletedUser.task_id), col(Task.state))
        .join(User, col(User.id) == col(DeletedUser.id))
        .outerjoin(Task, col(Task.id) == col(DeletedUser.task_id))
        .where(col(DeletedUser.id).in_(ids), buried(ctx))
    )
    rows = await ctx.read(asked)
    connection = await session.connection()
    waiting = update(Task).where(
        col(Task.id).in_([row.task_id for row in rows]), col(Task.state) == TaskState.QUEUED
    )
    put_off = await connection.execute(waiting.values(not_before=after).returning(col(Task.id)))
    queued = set(put_off.scalars())
    if after and any(
        row.state in (TaskState.QUEUED, TaskState.RUNNING) and row.task_id not in queued
        for row in rows
    ):
        raise Conflict("its data is being removed already", path=["deleteAfter"])
    ended = [row.id for row in rows if row.state not in (TaskState.QUEUED, TaskState.RUNNING)]
    tasks = {row.id: row.task_id for row in rows} | await _new_tasks(ctx, session, ended, after)
    for key in ended:
        this = update(DeletedUser).where(col(DeletedUser.id) == key)
        await connection.execute(this.values(task_id=tasks[key]))
    late = update(DeletedUser).where(col(DeletedUser.id).in_(list(tasks)))
    await connection.execute(late.values(delete_after=after))
    return tasks


async def _new_tasks(
    ctx: Context, session: AsyncSession, ids: Sequence[int], after: datetime | None
) -> dict[int, int]:
    """Queue a deletion task for each user; return task ids by user id.

    The tasks belong to no user, since they outlive them.
    """
    orders = [{"user": key} for key in ids]
    made = await queue(ctx, session, KIND, orders, not_before=after)
    return {key: task.id for key, task in zip(ids, made, strict=True)}


async def _bury(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], after: datetime | None
) -> dict[int, int]:
    """Mark live users, which are locked, as deleted, and store what a restore needs.

    Returns the ids of the deletion tasks by user id.
    """
    if not rows:
        return {}
    now, ids = ctx.world.now(), [row.id for row in rows]
    tasks = await _new_tasks(ctx, session, ids, after)
    asked = select(*(getattr(Address, name) for name in Address.model_fields)).where(
        col(Address.user_id).in_(ids)
    )
    theirs: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for address in await ctx.read(asked.order_by(col(Address.id))):
        theirs[address.user_id].append(dict(zip(Address.model_fields, address, strict=True)))
    kept = [
        {
            "id": row.id,
            "username_key": row.username_key,
            "disabled": row.disabled,
            "domain_id": row.domain_id,
            "addresses": theirs[row.id],
            "deleted_at": now,
            "delete_after": after,
            "task_id": tasks[row.id],
        }
        for row in rows
    ]
    await shares.leave(ctx, session, ids)
    connection = await session.connection()
    await connection.execute(insert(DeletedUser), kept)
    await connection.execute(delete_rows(Address).where(col(Address.user_id).in_(ids)))
    await connection.execute(delete_rows(AccessToken).where(col(AccessToken.user_id).in_(ids)))
    await connection.execute(
        update(User)
        .where(col(User.id).in_(ids))
        .values(
            deleted_at=now,
            disabled=True,
            username_key=literal("#") + cast(col(User.id), String),
            domain_id=None,
            auth_version=User.auth_version + 1,
            kicked_at=now,
            updated_at=now,
        )
    )
    freed = [address for addresses in theirs.values() for address in addresses]
    await count_places(ctx, session, rows, freed, sign=-1)
    await tell(ctx, session, rows, freed, did="deleted")
    return tasks


async def count_places(
    ctx: Context,
    session: AsyncSession,
    rows: Iterable[Any],
    addresses: Iterable[Mapping[str, Any]],
    *,
    sign: int,
) -> None:
    """Add users with their quota, and addresses, to the counters of their domains.

    `sign` is 1 to add, -1 to subtract.
    """
    rows = [row for row in rows if row.domain_id]
    kept = Counter(address["domain_id"] for address in addresses if address["domain_id"])
    keys = sorted({*kept, *(row.domain_id for row in rows)})
    asked = select(col(Domain.id), col(Domain.default_user_quota)).where(col(Domain.id).in_(keys))
    places = {row.id: row for row in await ctx.read(asked)}
    given = {
        key: {"key": key, "users": 0, "addresses": sign * kept[key], "bytes": 0} for key in keys
    }
    for row in rows:
        quota = effective(ctx.world, places[row.domain_id], row.quota)
        given[row.domain_id]["users"] += sign
        given[row.domain_id]["bytes"] += sign * quota
    table = table_of(Domain)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(
            user_count=table.c.user_count + bindparam("users"),
            address_count=table.c.address_count + bindparam("addresses"),
            quota_allocated=table.c.quota_allocated + bindparam("bytes"),
            updated_at=ctx.world.now(),
        )
    )
    if given:
        await (await session.connection()).execute(statement, list(given.values()))


async def tell(
    ctx: Context,
    session: AsyncSession,
    rows: Collection[Any],
    addresses: Collection[Mapping[str, Any]],
    *,
    did: str,
) -> None:
    """Write an action on users and addresses to the journals of their domains.

    Those without a domain are in the journal of the platform. `action` is the word for the journal,
    such as `deleted`.
    """
    told: defaultdict[int, defaultdict[ChangeKind, list[int]]]
    told = defaultdict(lambda: defaultdict(list))
    for address in addresses:
        told[address["domain_id"] or PLATFORM][ChangeKind.ADDRESS_CHANGED].append(address["id"])
    for row in rows:
        told[row.domain_id or PLATFORM][ChangeKind.USER_CHANGED].append(row.id)
    entries = {stream: list(kinds.items()) for stream, kinds in told.items()}
    await ctx.record_all(session, entries, did=did)
