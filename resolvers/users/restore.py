"""Deleted users: find and restore them while their data waits for removal."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import String, cast, or_, select, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normalized_address, normalized_domain, username_key
from mail.autoreply.chosen_addresses import remove_deleted_addresses
from models.addresses.tables import Address
from models.admin.tasks import Task, TaskState
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.search_index import search_text
from models.users.tables import DeletedUser, User
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.authentication import drop_cached_credentials
from resolvers.context import Context
from resolvers.domains.loaders import require_address_room
from resolvers.users import loaders as user_loaders
from resolvers.users.delete import (
    can_restore_or_purge_deleted_sql,
    journal_users_and_addresses_in_domains,
    update_domain_counters,
)
from resolvers.users.quota.quota_allocation import (
    effective_quota,
    require_user_slot,
    validated_allocation_after_increase,
)

StoredAddress = Mapping[str, Any]  # an address row of a deleted user

MAX_LOCAL_PARTS = 5000  # of one statement: SQLite allows 32,766 parameters


@dataclass(frozen=True, slots=True)
class DeletedUserRef:
    """A reference to a deleted user: its id, or a username or address that it had."""

    id: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class RestoredUser:
    """A restored user, with the addresses it has again and those it has lost."""

    user: ColumnRow
    recovered_addresses: Sequence[str]
    lost_addresses: Sequence[str]


async def find_deleted_user(ctx: Context, ref: DeletedUserRef) -> ColumnRow | None:
    """Load the row of a deleted user; None if there is none the viewer can decide on.

    Of several users that had a name, returns the one deleted last.
    """
    statement = (
        select(
            *(column for column in select_columns(DeletedUser)),
            col(User.username),
            col(User.name),
            col(User.used),
            col(User.tags),
            col(User.quota),
        )
        .join(User, col(User.id) == col(DeletedUser.id))
        .where(can_restore_or_purge_deleted_sql(ctx))
        .order_by(col(DeletedUser.deleted_at).desc(), col(DeletedUser.id).desc())
    )
    if ref.id is not None:
        return next(iter(await ctx.read(statement.where(col(DeletedUser.id) == ref.id))), None)
    if "@" in ref.name:
        local, name = normalized_address(ref.name)
        domain_ids = await _domain_ids_of_name(ctx, name)
        # a filter on the JSON text, which is the same in both databases; checked in full below
        has_local_part = cast(col(DeletedUser.addresses), String).contains(
            f'"{local}"', autoescape=True
        )
        for row in await ctx.read(statement.where(has_local_part)) if local and domain_ids else ():
            if any(a["local"] == local and a["domain_id"] in domain_ids for a in row.addresses):
                return row
    has_username = col(DeletedUser.username_key) == username_key(ref.name)
    return next(iter(await ctx.read(statement.where(has_username))), None)


async def _domain_ids_of_name(ctx: Context, name: str) -> set[int]:
    """Load the ids of the domain of this name and of the domain it is an alias of."""
    name = normalized_domain(name)
    alias = select(col(DomainAlias.domain_id)).where(col(DomainAlias.alias) == name)
    statement = select(col(Domain.id)).where(
        or_(col(Domain.name) == name, col(Domain.id).in_(alias))
    )
    return {row.id for row in await ctx.read(statement)}


async def load_recoverable_addresses(
    ctx: Context, stored_addresses: Sequence[StoredAddress]
) -> list[StoredAddress]:
    """Return the addresses that are still free, in domains that still exist."""
    local_parts = sorted({address["local"] for address in stored_addresses})
    domain_ids = {address["domain_id"] for address in stored_addresses} - {None}
    is_in_domain = or_(col(Address.domain_id).in_(domain_ids), col(Address.domain_id).is_(None))
    taken_addresses = set[tuple[str, int | None]]()
    for start in range(0, len(local_parts), MAX_LOCAL_PARTS):
        part = local_parts[start : start + MAX_LOCAL_PARTS]
        statement = select(col(Address.local), col(Address.domain_id))
        statement = statement.where(col(Address.local).in_(part), is_in_domain)
        taken_addresses.update((row.local, row.domain_id) for row in await ctx.read(statement))
    domain_statement = select(col(Domain.id)).where(col(Domain.id).in_(domain_ids))
    existing_domain_ids = {None, *(row.id for row in await ctx.read(domain_statement))}
    return [
        address
        for address in stored_addresses
        if address["domain_id"] in existing_domain_ids
        and (address["local"], address["domain_id"]) not in taken_addresses
    ]


async def restore_user(ctx: Context, ref: DeletedUserRef) -> RestoredUser:
    """Restore a deleted user while its deletion task waits.

    Raises NotFound for an unknown user; Conflict if its data is being removed, its username is
    taken, or it is not deleted; LimitReached if its domain is full, or if the domain of an address
    has no room for it. If its domain no longer exists, the user has none.
    """
    row = await find_deleted_user(ctx, ref)
    if row is None:
        await _raise_if_not_deleted(ctx, ref)
        raise NotFound(ref.name or str(ref.id), path=["user"], noun="User")
    domain_ids = {address["domain_id"] for address in row.addresses} | {row.domain_id}
    try:
        async with ctx.write_session(PLATFORM, row.id, *(domain_ids - {None})) as session:
            row = await find_deleted_user(ctx, DeletedUserRef(row.id))
            if row is None:
                raise Conflict(
                    "Another request restored or removed the user at the same time.", path=["user"]
                )
            restored = await _restore_user_rows_and_log(ctx, session, row)
    except IntegrityError as clash:  # a concurrent request took the name
        raise Conflict("The username or an address already exists.", path=["user"]) from clash
    drop_cached_credentials(ctx.environment, row.id)
    return restored


async def _raise_if_not_deleted(ctx: Context, ref: DeletedUserRef) -> None:
    """Raise Conflict if the reference is that of a live user."""
    loading = (
        ctx.load(user_loaders.load_visible_users_by_id, ref.id)
        if ref.id is not None
        else user_loaders.find_user_by_name(ctx, ref.name)
    )
    if await loading:
        raise Conflict("The user is not deleted.", path=["user"])


async def _restore_user_rows_and_log(
    ctx: Context, session: AsyncSession, row: ColumnRow
) -> RestoredUser:
    """Restore the rows of a deleted user that is locked."""
    connection = await session.connection()
    await _cancel_deletion_task(ctx, session, row)
    statement = select(col(User.id)).where(col(User.username_key) == row.username_key)
    if await ctx.read(statement):
        raise Conflict("The username already exists.", path=["user"])
    addresses = await load_recoverable_addresses(ctx, row.addresses)
    main_address = _choose_main_address(ctx, row, addresses)
    domain_id = main_address["domain_id"] if main_address else row.domain_id
    domains = await _load_locked_domains(session, [domain_id, *(a["domain_id"] for a in addresses)])
    domain = domains.get(domain_id)
    user_place = SimpleNamespace(
        id=row.id, quota=row.quota, domain_id=domain.id if domain else None
    )
    if domain:
        quota = effective_quota(ctx.environment, domain, row.quota)
        require_user_slot(domain, path=["user"])
        validated_allocation_after_increase(domain, quota, is_unlimited=not quota, path=["user"])
    for key, count in Counter(address["domain_id"] for address in addresses).items():
        if key is not None:
            require_address_room(domains[key], path="user", count=count)
    await update_domain_counters(ctx, session, [user_place], addresses, sign=1)
    now = ctx.environment.now()
    session.add_all(
        Address.model_validate({**address, "main": address is main_address, "updated_at": now})
        for address in addresses
    )
    await session.flush()
    await ctx.environment.run_in_session(
        session, lambda transaction: remove_deleted_addresses(transaction, [row.id])
    )
    user = await _mark_as_restored(ctx, connection, row, user_place.domain_id, main_address)
    if addresses:
        ids = [address["id"] for address in addresses]
        await ctx.record_change(session, row.id, EventType.ADDRESS_RESTORED, ids)
    await journal_users_and_addresses_in_domains(ctx, session, [user], addresses, is_restored=True)
    recovered_addresses = [address["display_address"] for address in addresses]
    lost_addresses = [
        address["display_address"] for address in row.addresses if address not in addresses
    ]
    new_values = {"recoveredAddresses": recovered_addresses, "lostAddresses": lost_addresses}
    await audit_log.insert_audit_log_entries(
        ctx,
        session,
        NewAuditLogEntry("userRestore", "User", row.id, user_place.domain_id, None, new_values),
    )
    return RestoredUser(user, recovered_addresses, lost_addresses)


async def _load_locked_domains(
    session: AsyncSession, domain_ids: Iterable[int | None]
) -> dict[int | None, Domain]:
    """Load the domains that exist, by id, with their current counters."""
    statement = instances(Domain).where(col(Domain.id).in_({*domain_ids} - {None}))
    fresh_statement = statement.execution_options(populate_existing=True)
    return {domain.id: domain for domain in await session.exec(fresh_statement)}


async def _mark_as_restored(
    ctx: Context,
    connection: AsyncConnection,
    deleted_row: ColumnRow,
    domain_id: int | None,
    main_address: StoredAddress | None,
) -> ColumnRow:
    """Delete the row of the deleted user, and return the user that exists again."""
    await connection.execute(delete_rows(DeletedUser).where(col(DeletedUser.id) == deleted_row.id))
    display_address = main_address["display_address"] if main_address else None
    result = await connection.execute(
        update(User)
        .where(col(User.id) == deleted_row.id)
        .values(
            deleted_at=None,
            active=deleted_row.active,
            username_key=deleted_row.username_key,
            domain_id=domain_id,
            words=search_text(deleted_row.username, deleted_row.name, display_address),
            updated_at=ctx.environment.now(),
        )
        .returning(*select_columns(User))
    )
    user: ColumnRow = result.one()
    return user


async def _cancel_deletion_task(ctx: Context, session: AsyncSession, user_row: ColumnRow) -> None:
    """Cancel the waiting deletion task. Raises Conflict if it has begun."""
    if user_row.task_id is None:
        return
    now, is_this_task = ctx.environment.now(), col(Task.id) == user_row.task_id
    cancelled_values = {"state": TaskState.CANCELLED, "cancelled": True, "finished_at": now}
    statement = update(Task).where(is_this_task, col(Task.state) == TaskState.QUEUED)
    if (await (await session.connection()).execute(statement.values(**cancelled_values))).rowcount:
        await ctx.record_change(session, PLATFORM, EventType.TASK_UPDATED, [user_row.task_id])
        return
    started_statement = select(col(Task.id)).where(is_this_task, col(Task.started_at).is_not(None))
    if await ctx.read(started_statement):
        raise Conflict("The removal of the user's data has already started.", path=["user"])


def _choose_main_address(
    ctx: Context, user_row: ColumnRow, addresses: Sequence[StoredAddress]
) -> StoredAddress | None:
    """Choose the main address: the former one, else the first, if possible in the user's domain.

    A DOMAIN_ADMIN can't restore a user into a domain of others.
    """
    viewer = ctx.viewer
    candidates = [
        address
        for address in addresses
        if "*" not in address["local"]
        and address["domain_id"]
        and (
            viewer.role.includes(Role.ADMIN) or address["domain_id"] in viewer.administered_domains
        )
    ]
    ranked = sorted(candidates, key=lambda a: (not a["main"], a["domain_id"] != user_row.domain_id))
    return next(iter(ranked), None)
