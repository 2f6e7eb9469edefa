"""Set and reset the rate limits of users and domains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden, InvalidInput
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.queue.rate_limits import RateLimit, RateLimitHold, RateWindow
from models.queue.rate_values import MAX_RATE, Rate, RatePeriod
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_users_in_administered_domains
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.users.limit_values import STORED_UNLIMITED, limit_or_none
from resolvers.users.selection import UserSelector, require_selected_users
from resolvers.users.user_locks import lock_users_and_store_changes

LoggedRate = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RateLimitOwners:
    """The users and domains of rate limits; None: no user, or no domain."""

    users: UserSelector | None = None
    domains: Sequence[DomainIdOrName] | None = None


@dataclass(frozen=True, slots=True)
class NewRateLimit:
    """The rate that an input sets. `messages` None is unlimited."""

    messages: int | None
    per: RatePeriod


def validate_rate(
    new_limit: NewRateLimit | None, *, path: Sequence[str] = ("rateLimit",)
) -> Rate | None:
    """Return the rate to store; None inherits the rate of the settings.

    Raises InvalidInput if the number of messages is not allowed.
    """
    if new_limit is None:
        return None
    if new_limit.messages is None:
        return Rate(STORED_UNLIMITED, new_limit.per)
    if not 1 <= new_limit.messages <= MAX_RATE:
        message = f"Must be from 1 to {MAX_RATE:,}. Null means unlimited."
        raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=[*path, "messages"])
    return Rate(new_limit.messages, new_limit.per)


async def set_or_remove_rate_limits(
    ctx: Context, owners: RateLimitOwners, new_limit: NewRateLimit | None
) -> list[int]:
    """Set the rate of users and domains, all or none; return their ids in order.

    None removes their own rate, so that they inherit that of the settings. The running count
    stays unless the time frame changes. Raises InvalidInput, NotFound or Forbidden.
    """
    if not (owners.users or owners.domains):
        _raise_owner_required("`users` or `domains` is required.")
    rate = validate_rate(new_limit)
    async with ctx.combined_transaction():
        await _lock_streams_of_owners(ctx, owners)
        owner_ids: list[int] = []
        if owners.users is not None:
            async with lock_users_and_store_changes(
                ctx, owners.users, "rateLimitSet"
            ) as locked_users:
                require_users_in_administered_domains(ctx, locked_users.rows, ["users"])
                users_by_id = {row.id: row for row in locked_users.rows}
                rates_before = await set_or_delete_rates_and_return_former(
                    ctx, locked_users.session, users_by_id, rate, "user_id"
                )
                for owner_id, row in users_by_id.items():
                    if rates_before[owner_id] != audit_log_values(rate):
                        locked_users.report_change(
                            row, "rate_limit", rates_before[owner_id], audit_log_values(rate)
                        )
            owner_ids += users_by_id
        if owners.domains is not None:
            rows = await domain_loaders.require_administered_domains_by_ref(ctx, owners.domains)
            domain_ids = [row.id for row in rows]
            async with ctx.write_session(PLATFORM, *domain_ids) as session:
                rates_before = await set_or_delete_rates_and_return_former(
                    ctx, session, domain_ids, rate, "domain_id"
                )
                changes = {
                    key: (old_rate, audit_log_values(rate))
                    for key, old_rate in rates_before.items()
                }
                await _journal_and_audit_domain_changes(ctx, session, "rateLimitSet", changes)
            owner_ids += domain_ids
    return owner_ids


async def reset_rate_limits(
    ctx: Context, owners: RateLimitOwners, *, includes_platform: bool = False
) -> list[int]:
    """Reset the counts of sent messages, and return the ids of their owners in order.

    Raises InvalidInput, NotFound, or Forbidden for the platform's count unless the viewer is an
    ADMIN.
    """
    if not (owners.users or owners.domains or includes_platform):
        _raise_owner_required("`users`, `domains` or `includePlatform: true` is required.")
    if includes_platform and not ctx.viewer.role.includes(Role.ADMIN):
        message = f"Requires the role {Role.ADMIN}."
        raise Forbidden(message, requires=Role.ADMIN, path=["includePlatform"])
    async with ctx.combined_transaction():
        await _lock_streams_of_owners(ctx, owners)
        owner_ids: list[int] = []
        if owners.users is not None:
            async with lock_users_and_store_changes(
                ctx, owners.users, "rateLimitReset"
            ) as locked_users:
                require_users_in_administered_domains(ctx, locked_users.rows, ["users"])
                deleted_counts = await _delete_windows_and_holds_returning_counts(
                    ctx, locked_users.session, [row.id for row in locked_users.rows]
                )
                for row in locked_users.rows:
                    if row.id in deleted_counts:
                        locked_users.report_change(
                            row, "rate_limit", {"used": deleted_counts[row.id]}, {"used": 0}
                        )
            owner_ids += [row.id for row in locked_users.rows]
        if owners.domains is not None:
            domain_ids = [
                row.id
                for row in await domain_loaders.require_administered_domains_by_ref(
                    ctx, owners.domains
                )
            ]
            async with ctx.write_session(PLATFORM, *domain_ids) as session:
                deleted_counts = await _delete_windows_and_holds_returning_counts(
                    ctx, session, domain_ids
                )
                changes: dict[int, tuple[LoggedRate, LoggedRate]] = {
                    owner_id: ({"used": used}, {"used": 0})
                    for owner_id, used in deleted_counts.items()
                }
                await _journal_and_audit_domain_changes(ctx, session, "rateLimitReset", changes)
            owner_ids += domain_ids
        if includes_platform:
            async with ctx.write_session(PLATFORM) as session:
                deleted_counts = await _delete_windows_and_holds_returning_counts(
                    ctx, session, [PLATFORM]
                )
                values_before = {"rateLimit": {"used": deleted_counts.get(PLATFORM, 0)}}
                values_after = {"rateLimit": {"used": 0}}
                entry = NewAuditLogEntry("rateLimitReset", before=values_before, after=values_after)
                await audit_log.insert_audit_log_entries(
                    ctx, session, *([entry] if deleted_counts else [])
                )
    return owner_ids


def _raise_owner_required(message: str) -> NoReturn:
    raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=["users"])


async def _lock_streams_of_owners(ctx: Context, owners: RateLimitOwners) -> None:
    """Lock the streams of all owners at once, since locks must be taken in one order."""
    stream_ids: set[int] = set()
    if owners.users is not None:
        for row in await require_selected_users(ctx, owners.users):
            stream_ids |= {row.id, row.domain_id or PLATFORM}
    if owners.domains is not None:
        stream_ids |= {
            PLATFORM,
            *(
                row.id
                for row in await domain_loaders.require_administered_domains_by_ref(
                    ctx, owners.domains
                )
            ),
        }
    async with ctx.write_session(*stream_ids):
        pass


def audit_log_values(rate: Rate | None) -> LoggedRate:
    """Return the rate for the audit log."""
    if rate is None:
        return None
    return {"messages": limit_or_none(rate.messages), "per": rate.per.value}


async def set_or_delete_rates_and_return_former(
    ctx: Context,
    session: AsyncSession,
    owner_ids: Iterable[int],
    rate: Rate | None,
    owner_column: str,
) -> dict[int, LoggedRate]:
    """Set or delete the rate of users or domains; return the former rates by owner id.

    `owner_column` is `user_id` or `domain_id`. The transaction must hold the owners' locks.
    """
    owner_ids, connection = list(owner_ids), await session.connection()
    statement = select(*select_columns(RateLimit)).where(col(RateLimit.id).in_(owner_ids))
    stored_rates = {
        row.id: _rate_from_row(row) for row in (await connection.execute(statement)).all()
    }
    if rate is None:
        await connection.execute(delete(RateLimit).where(col(RateLimit.id).in_(owner_ids)))
    elif owner_ids:
        created_at = ctx.environment.now()
        values = {**rate._asdict(), "updated_at": created_at}
        insert = insert_with_conflict(ctx.environment.database.dialect, RateLimit).values(
            [
                {"id": key, owner_column: key, "created_at": created_at, **values}
                for key in owner_ids
            ]
        )
        await connection.execute(
            insert.on_conflict_do_update(
                index_elements=["id"], set_={name: insert.excluded[name] for name in values}
            )
        )
    await connection.execute(
        delete(RateLimitHold).where(col(RateLimitHold.window_id).in_(owner_ids))
    )
    return {key: audit_log_values(stored_rates.get(key)) for key in owner_ids}


def _rate_from_row(row: ColumnRow) -> Rate:
    return Rate(row.messages, row.per)


async def _delete_windows_and_holds_returning_counts(
    ctx: Context, session: AsyncSession, owner_ids: Sequence[int]
) -> dict[int, int]:
    """Delete the windows of these owners; return the counts of running ones by owner id."""
    connection, now = await session.connection(), ctx.environment.now()
    columns = (col(RateWindow.id), col(RateWindow.used), col(RateWindow.until))
    statement = delete(RateWindow).where(col(RateWindow.id).in_(owner_ids)).returning(*columns)
    deleted_rows = (await connection.execute(statement)).all()
    await connection.execute(
        delete(RateLimitHold).where(col(RateLimitHold.window_id).in_(owner_ids))
    )
    return {row.id: row.used for row in deleted_rows if row.until > now}


async def _journal_and_audit_domain_changes(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    rates_before_and_after: Mapping[int, tuple[LoggedRate, LoggedRate]],
) -> None:
    """Record changed domains in the journals and the audit log."""
    actual_changes = {
        key: pair for key, pair in rates_before_and_after.items() if pair[0] != pair[1]
    }
    if not actual_changes:
        return
    changes_by_stream = {
        domain_id: [(EventType.DOMAIN_UPDATED, [domain_id])] for domain_id in actual_changes
    }
    await ctx.record_changes(
        session,
        {**changes_by_stream, PLATFORM: [(EventType.DOMAIN_UPDATED, list(actual_changes))]},
    )
    entries = (
        NewAuditLogEntry(mutation, "Domain", key, key, {"rateLimit": old}, {"rateLimit": new})
        for key, (old, new) in actual_changes.items()
    )
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
