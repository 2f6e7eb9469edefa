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
from models.admin.tasks import Task, TaskKind, TaskState
from models.auth.credentials import AccessToken
from models.domains.tables import Domain
from models.errors import Conflict, Forbidden, InvalidInput, NotFound, RequestError
from models.events.event_types import EventType, ids_by_event_type
from models.events.journal import PLATFORM
from models.identity_providers import IdentityLink
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.roles import Role
from models.users.tables import DeletedUser, User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_managed_user
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import insert_tasks_and_wake_workers
from resolvers.auth.authentication import drop_cached_credentials
from resolvers.context import Context
from resolvers.mailboxes import shares
from resolvers.oauth.refresh_token_end import delete_grants_of_users
from resolvers.users import grant_end
from resolvers.users.quota.quota_allocation import effective_quota
from resolvers.users.selection import UserSelector, require_selected_users

KIND = TaskKind.USER_DELETE  # of the task that removes the data


@dataclass(frozen=True, slots=True)
class UserDeletion:
    """Deleted users with the tasks that remove their data, in the same order."""

    user_ids: Sequence[int]
    tasks: Sequence[ColumnRow]


def can_restore_or_purge_deleted_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for deleted users that the viewer can restore or purge.

    The select must join `DeletedUser` to `User`.
    """
    viewer = ctx.viewer
    if viewer.role is Role.ROOT:
        return true()
    if viewer.role is Role.ADMIN:
        return col(User.role) != Role.ROOT
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administered_domains:
        is_in_administered_domain = col(DeletedUser.domain_id).in_(viewer.administered_domains)
        return is_in_administered_domain & (col(User.role) == Role.USER)
    return false()


async def delete_users_or_reschedule_purge(
    ctx: Context,
    selection: UserSelector,
    purge_at: datetime | None = None,
    *,
    mutation: str = "userDelete",
    path: str = "users",
) -> UserDeletion:
    """Delete these users; their data is removed at once, or not before `purge_at`.

    A user that is deleted already, named by id or former username, gets the new time for its task.
    `path` is the field of the input that selects the users. Raises Conflict if that task has begun,
    Forbidden for the viewer's own account, InvalidInput for an empty selection.
    """
    if not selection.is_given:
        raise InvalidInput(
            "The users to delete are required.",
            constraint=ValidationConstraint.REQUIRED,
            path=[path],
        )
    try:
        deleted_ids, rows = await _load_deleted_ids_and_live_users(ctx, selection, path)
    except NotFound:  # a concurrent request may have deleted it
        deleted_ids, rows = await _load_deleted_ids_and_live_users(ctx, selection, path)
    if any(row.id == ctx.viewer.user_id for row in rows):
        error = Forbidden("The caller can't delete their own account.", path=[path])
        raise selection.move_error_path_to_user(error, ctx.viewer.user_id)
    ids = sorted({*deleted_ids, *(row.id for row in rows)})
    stream_ids = await _load_changed_stream_ids(ctx, ids)
    stream_ids |= {row.domain_id for row in rows if row.domain_id}
    purge_at = purge_at if purge_at and purge_at > ctx.environment.now() else None
    async with ctx.write_session(*stream_ids) as session:
        tasks = await _reschedule_or_queue_deletion_tasks(ctx, session, ids, purge_at)
        statement = select(col(User.id), col(User.username), col(DeletedUser.domain_id))
        statement = statement.join(DeletedUser, col(DeletedUser.id) == col(User.id))
        rescheduled = await ctx.read(
            statement.where(col(User.id).in_(tasks)).order_by(col(User.id))
        )
        live_statement = select(*select_columns(User)).where(
            col(User.id).in_(ids), is_managed_user(ctx)
        )
        live_users = await ctx.read(live_statement.order_by(col(User.id)))
        await grant_end.end_all_grants_of_users(ctx, live_users)
        types_by_id = dict.fromkeys(tasks.values(), EventType.TASK_UPDATED)
        tasks |= await _mark_deleted_and_queue_purge_tasks(ctx, session, live_users, purge_at)
        types_by_id = dict.fromkeys(tasks.values(), EventType.TASK_CREATED) | types_by_id
        await ctx.record_changes(session, {PLATFORM: ids_by_event_type(types_by_id)})
        new_values = {"purgeAt": purge_at}
        admin_entries = [
            NewAuditLogEntry(
                mutation, "User", row.id, row.domain_id, {"username": row.username}, new_values
            )
            for row in [*rescheduled, *live_users]
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *admin_entries)
        ids = [key for key in ids if key in tasks]
        task_statement = select(*select_columns(Task)).where(col(Task.id).in_(tasks.values()))
        tasks_by_id = {row.id: row for row in await ctx.read(task_statement)}
    drop_cached_credentials(ctx.environment, *ids)
    return UserDeletion(ids, [tasks_by_id[tasks[key]] for key in ids])


async def _load_changed_stream_ids(ctx: Context, user_ids: Sequence[int]) -> set[int]:
    """Load the IDs of the streams that a deletion of these users changes.

    These are PLATFORM, the users, the domains of their addresses, the users with whom they share
    mailboxes, and the users who share mailboxes with them. The caller adds the users' own domains.
    """
    address_domains = (
        select(col(Address.domain_id)).where(col(Address.user_id).in_(user_ids)).distinct()
    )
    return {
        PLATFORM,
        *user_ids,
        *(row.domain_id for row in await ctx.read(address_domains) if row.domain_id),
        *await shares.load_grantee_ids(ctx, user_ids),
        *await shares.load_sharing_owner_ids(ctx, user_ids),
    }


async def _load_deleted_ids_and_live_users(
    ctx: Context, selection: UserSelector, path: str
) -> tuple[list[int], list[ColumnRow]]:
    """Resolve the selection to the ids of deleted users and the rows of the others."""
    deleted_ids, rest = await _deleted_ids_and_remaining_selection(ctx, selection)
    if not rest.is_given:
        return deleted_ids, []
    try:
        return deleted_ids, await require_selected_users(ctx, rest, path=path)
    except RequestError as error:
        _set_index_in_whole_selection(error, rest, selection)
        raise


def _set_index_in_whole_selection(
    error: RequestError, part: UserSelector, whole_selector: UserSelector
) -> None:
    """Change the index of an error from that in a part of a selection to that in the whole."""
    list_name = error.path[-1] if error.path else ""
    if error.index is not None and list_name in ("ids", "usernames"):
        value = getattr(part, list_name)[error.index]
        error.index = getattr(whole_selector, list_name).index(value)


async def _deleted_ids_and_remaining_selection(
    ctx: Context, selection: UserSelector
) -> tuple[list[int], UserSelector]:
    """Return the ids of named users that are deleted already, and the selection without them."""
    if not (selection.ids or selection.usernames):
        return [], selection
    names_by_key = {username_key(name): name for name in selection.usernames}
    statement = (
        select(col(DeletedUser.id), col(DeletedUser.username_key))
        .join(User, col(User.id) == col(DeletedUser.id))
        .where(
            can_restore_or_purge_deleted_sql(ctx),
            col(DeletedUser.id).in_(selection.ids)
            | col(DeletedUser.username_key).in_(names_by_key),
        )
    )
    live_statement = select(col(User.username_key)).where(col(User.username_key).in_(names_by_key))
    live_keys = (
        {row.username_key for row in await ctx.read(live_statement)} if names_by_key else set[str]()
    )
    rows = await ctx.read(statement.order_by(col(DeletedUser.deleted_at)))
    # the newest
    ids_by_key = {row.username_key: row.id for row in rows if row.username_key in names_by_key}
    ids_by_key = {key: ids for key, ids in ids_by_key.items() if key not in live_keys}
    deleted_ids = {row.id for row in rows if row.id in selection.ids} | set(ids_by_key.values())
    rest = replace(
        selection,
        ids=tuple(key for key in selection.ids if key not in deleted_ids),
        usernames=tuple(name for key, name in names_by_key.items() if key not in ids_by_key),
    )
    return sorted(deleted_ids), rest


async def _reschedule_or_queue_deletion_tasks(
    ctx: Context, session: AsyncSession, ids: Sequence[int], purge_at: datetime | None
) -> dict[int, int]:
    """Change the time of the deletion tasks of deleted users; return task ids by user id.

    A user gets a new task if the old one has ended. Raises Conflict if a task with a new time is
    running.
    """
    statement = (
        select(col(DeletedUser.id), col(DeletedUser.task_id), col(Task.state))
        .join(User, col(User.id) == col(DeletedUser.id))
        .outerjoin(Task, col(Task.id) == col(DeletedUser.task_id))
        .where(col(DeletedUser.id).in_(ids), can_restore_or_purge_deleted_sql(ctx))
    )
    rows = await ctx.read(statement)
    connection = await session.connection()
    task_update = update(Task).where(
        col(Task.id).in_([row.task_id for row in rows]), col(Task.state) == TaskState.QUEUED
    )
    rescheduled = await connection.execute(
        task_update.values(not_before=purge_at).returning(col(Task.id))
    )
    rescheduled_ids = set(rescheduled.scalars())
    if purge_at and any(
        row.state in (TaskState.QUEUED, TaskState.RUNNING) and row.task_id not in rescheduled_ids
        for row in rows
    ):
        raise Conflict("The removal of the user's data has already started.", path=["purgeAt"])
    without_task = [
        row.id for row in rows if row.state not in (TaskState.QUEUED, TaskState.RUNNING)
    ]
    tasks = {row.id: row.task_id for row in rows} | await _queue_deletion_tasks(
        ctx, session, without_task, purge_at
    )
    for key in without_task:
        statement_of_user = update(DeletedUser).where(col(DeletedUser.id) == key)
        await connection.execute(statement_of_user.values(task_id=tasks[key]))
    purge_at_update = update(DeletedUser).where(col(DeletedUser.id).in_(list(tasks)))
    await connection.execute(purge_at_update.values(purge_at=purge_at))
    return tasks


async def _queue_deletion_tasks(
    ctx: Context, session: AsyncSession, ids: Sequence[int], purge_at: datetime | None
) -> dict[int, int]:
    """Queue a deletion task for each user; return task ids by user id.

    The tasks belong to no user, since they outlive them.
    """
    orders = [{"user": key} for key in ids]
    tasks = await insert_tasks_and_wake_workers(ctx, session, KIND, orders, not_before=purge_at)
    return {key: task.id for key, task in zip(ids, tasks, strict=True)}


async def _mark_deleted_and_queue_purge_tasks(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], purge_at: datetime | None
) -> dict[int, int]:
    """Mark live users, which are locked, as deleted, and store what a restore needs.

    Returns the ids of the deletion tasks by user id.
    """
    if not rows:
        return {}
    now, ids = ctx.environment.now(), [row.id for row in rows]
    tasks = await _queue_deletion_tasks(ctx, session, ids, purge_at)
    statement = select(*(getattr(Address, name) for name in Address.model_fields)).where(
        col(Address.user_id).in_(ids)
    )
    addresses_by_user: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for address in await ctx.read(statement.order_by(col(Address.id))):
        addresses_by_user[address.user_id].append(
            dict(zip(Address.model_fields, address, strict=True))
        )
    deleted_rows = [
        {
            "id": row.id,
            "username_key": row.username_key,
            "active": row.active,
            "domain_id": row.domain_id,
            "addresses": addresses_by_user[row.id],
            "deleted_at": now,
            "purge_at": purge_at,
            "task_id": tasks[row.id],
        }
        for row in rows
    ]
    await shares.end_shares_of_users(ctx, session, ids)
    connection = await session.connection()
    await connection.execute(insert(DeletedUser), deleted_rows)
    await connection.execute(delete_rows(Address).where(col(Address.user_id).in_(ids)))
    await connection.execute(delete_rows(AccessToken).where(col(AccessToken.user_id).in_(ids)))
    await delete_grants_of_users(session, ids)
    await connection.execute(delete_rows(IdentityLink).where(col(IdentityLink.user_id).in_(ids)))
    await connection.execute(
        update(User)
        .where(col(User.id).in_(ids))
        .values(
            deleted_at=now,
            active=False,
            username_key=literal("#") + cast(col(User.id), String),
            domain_id=None,
            auth_version=User.auth_version + 1,
            sessions_ended_at=now,
            updated_at=now,
        )
    )
    addresses_to_free = [
        address for addresses in addresses_by_user.values() for address in addresses
    ]
    await update_domain_counters(ctx, session, rows, addresses_to_free, sign=-1)
    await journal_users_and_addresses_in_domains(
        ctx, session, rows, addresses_to_free, is_restored=False
    )
    return tasks


async def update_domain_counters(
    ctx: Context,
    session: AsyncSession,
    users: Iterable[Any],
    addresses: Iterable[Mapping[str, Any]],
    *,
    sign: int,
) -> None:
    """Add users with their quota, and addresses, to the counters of their domains.

    `sign` is 1 to add, -1 to subtract.
    """
    users = [row for row in users if row.domain_id]
    address_counts = Counter(address["domain_id"] for address in addresses if address["domain_id"])
    domain_ids = sorted({*address_counts, *(row.domain_id for row in users)})
    domain_statement = select(col(Domain.id), col(Domain.default_user_quota)).where(
        col(Domain.id).in_(domain_ids)
    )
    domains = {row.id: row for row in await ctx.read(domain_statement)}
    increments = {
        key: {"key": key, "users": 0, "addresses": sign * address_counts[key], "bytes": 0}
        for key in domain_ids
    }
    for row in users:
        quota = effective_quota(ctx.environment, domains[row.domain_id], row.quota)
        increments[row.domain_id]["users"] += sign
        increments[row.domain_id]["bytes"] += sign * quota
    table = core_table(Domain)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(
            user_count=table.c.user_count + bindparam("users"),
            address_count=table.c.address_count + bindparam("addresses"),
            quota_allocated=table.c.quota_allocated + bindparam("bytes"),
            updated_at=ctx.environment.now(),
        )
    )
    if increments:
        await (await session.connection()).execute(statement, list(increments.values()))


async def journal_users_and_addresses_in_domains(
    ctx: Context,
    session: AsyncSession,
    users: Collection[Any],
    addresses: Collection[Mapping[str, Any]],
    *,
    is_restored: bool,
) -> None:
    """Record the deletion or restoration of users and addresses in the journals of their domains.

    Those without a domain are in the journal of the platform.
    """
    user_event_type, address_event_type = (
        (EventType.USER_RESTORED, EventType.ADDRESS_RESTORED)
        if is_restored
        else (EventType.USER_DELETED, EventType.ADDRESS_DELETED)
    )
    changes: defaultdict[int, defaultdict[EventType, list[int]]]
    changes = defaultdict(lambda: defaultdict(list))
    for address in addresses:
        changes[address["domain_id"] or PLATFORM][address_event_type].append(address["id"])
    for row in users:
        changes[row.domain_id or PLATFORM][user_event_type].append(row.id)
    entries = {stream: list(kinds.items()) for stream, kinds in changes.items()}
    await ctx.record_changes(session, entries)
