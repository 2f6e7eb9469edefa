"""Add and lift bans. For an ADMIN."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import delete, or_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.throttling.ban_changes import (
    increment_and_lock_change_counter,
    refresh_refused_networks_from_database,
)
from mail.throttling.network_failures import (
    NewNetworkBan,
    insert_or_replace_bans,
    log_bans,
)
from models.auth.credentials import Throttle
from models.errors import InvalidInput
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.throttling.networks import Network
from models.throttling.policy import MAX_BAN_TIME, BanCause
from models.throttling.tables import NetworkBan, NetworkFailure
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.throttling.loaders import overlap_clauses
from resolvers.throttling.update import WRITE_RULE
from resolvers.throttling.validation import (
    MIN_TIME,
    normalized_networks,
    require_caller_not_refused,
    require_narrow_network,
    require_refusable_network,
    validate_reason,
)

MAX_CLAUSES = 100  # networks of one statement
MAX_IDS = 1000  # of one statement
MAX_BANS_PER_TRANSACTION = 5000  # so that a wide lift holds no lock for seconds
MAX_AUDITED_BANS = 1000  # of one lift; more have one entry in the audit log
MAX_SHOWN_BANS = 1000  # lifted bans in a response
LIST_PATH = ("networks",)


@dataclass(frozen=True, slots=True)
class LiftedBans:
    """What a lift has ended."""

    ban_ids: list[int]
    penalty_count: int


async def add_bans(
    ctx: Context, networks: Sequence[str], duration: timedelta | None, reason: str | None
) -> list[int]:
    """Ban networks by hand, all or none; return the ids of the bans in their order.

    Without `duration` each ban lasts as long as the policy says. A ban in force is replaced.
    Raises InvalidInput, also for networks that are never refused, and Forbidden if a network
    contains the caller's address.
    """
    ctx.viewer.require(WRITE_RULE)
    reason, parsed = validate_reason(reason), normalized_networks(networks)
    ctx.reason = ctx.reason or reason
    for index, text in enumerate(networks):
        (network,) = normalized_networks([text]).values()
        require_narrow_network(network, LIST_PATH, index)
        require_refusable_network(ctx, network, LIST_PATH, index)
    if duration is not None and not MIN_TIME <= duration <= MAX_BAN_TIME:
        raise InvalidInput(
            "Must be from PT1M to P30D.", constraint=ValidationConstraint.RANGE, path=["duration"]
        )
    await refresh_refused_networks_from_database(ctx.environment)
    refused, now = ctx.environment.refused_networks, ctx.environment.now()
    after = refused.copy()
    for text in parsed:
        after.set_or_remove_ban(text, now + MAX_BAN_TIME, now)
    require_caller_not_refused(ctx, refused, after, LIST_PATH)
    new_bans = [
        NewNetworkBan(text, BanCause.MANUAL, reason=reason, duration=duration) for text in parsed
    ]
    async with ctx.write_session(PLATFORM) as session:
        bans = await ctx.environment.run_in_session(
            session, partial(insert_or_replace_bans, new_bans=new_bans)
        )
        ids = [ban.id for ban in bans]
        await ctx.record_change(session, PLATFORM, EventType.BAN_CREATED, ids)
        entries = [
            NewAuditLogEntry(
                "banAdd",
                "NetworkBan",
                ban.id,
                after={"network": ban.network, "endsAt": ban.ends_at.isoformat()},
            )
            for ban in bans
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    ctx.call_after_commit_or_now(partial(log_bans, bans))
    return ids


async def lift_bans(ctx: Context, networks: Sequence[str], reason: str | None) -> LiftedBans:
    """End all bans and delays of networks that overlap these networks.

    Their failures no longer count, and their next ban is as long as a first one, also if their last
    ban has already ended. The audit log gets the reason. Many bans are ended in several
    transactions, unless the caller has opened one. Raises InvalidInput.
    """
    ctx.viewer.require(WRITE_RULE)
    reason, parsed = validate_reason(reason), normalized_networks(networks)
    ctx.reason = ctx.reason or reason
    all_networks = list(parsed.values())
    parts = [
        all_networks[start : start + MAX_CLAUSES]
        for start in range(0, len(all_networks), MAX_CLAUSES)
    ]
    ids, penalty_count = set[int](), 0
    async with ctx.write_session(PLATFORM) as session:
        for part in parts:
            ids |= await _select_bans_in_force_and_reset_others(ctx, session, part)
            penalty_count += await _delete_failures_and_count_delays(session, part)
        ban_ids = sorted(ids)
        entries = await _audit_log_entries_or_summary_of_lift(session, ban_ids, list(parsed))
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
        await _end_bans_and_journal(ctx, session, ban_ids[:MAX_BANS_PER_TRANSACTION])
    for start in range(MAX_BANS_PER_TRANSACTION, len(ban_ids), MAX_BANS_PER_TRANSACTION):
        async with ctx.write_session(PLATFORM) as session:
            await _end_bans_and_journal(
                ctx, session, ban_ids[start : start + MAX_BANS_PER_TRANSACTION]
            )
    return LiftedBans(ban_ids, penalty_count)


async def _select_bans_in_force_and_reset_others(
    ctx: Context, session: AsyncSession, networks: Sequence[Network]
) -> set[int]:
    """Return the ids of the bans in force that overlap these networks.

    Resets the number of bans in a row of those that have already ended.
    """
    connection, now = await session.connection(), ctx.environment.now()
    overlaps = or_(*overlap_clauses(NetworkBan, networks))
    in_force = select(col(NetworkBan.id)).where(overlaps, col(NetworkBan.ends_at) > now)
    ids = set((await connection.execute(in_force)).scalars())
    await connection.execute(
        update(NetworkBan)
        .where(overlaps, col(NetworkBan.ends_at) <= now)
        .values(ban_count=0)
        .execution_options(synchronize_session=False)
    )
    return ids


async def _end_bans_and_journal(
    ctx: Context, session: AsyncSession, ban_ids: Sequence[int]
) -> None:
    if not ban_ids:
        return
    connection = await session.connection()
    change_number = await ctx.environment.run_in_session(session, increment_and_lock_change_counter)
    values = {"ends_at": ctx.environment.now(), "ban_count": 0, "change_number": change_number}
    for start in range(0, len(ban_ids), MAX_IDS):
        await connection.execute(
            update(NetworkBan)
            .where(col(NetworkBan.id).in_(ban_ids[start : start + MAX_IDS]))
            .values(**values)
            .execution_options(synchronize_session=False)
        )
    await ctx.record_change(session, PLATFORM, EventType.BAN_LIFTED, ban_ids)


async def _delete_failures_and_count_delays(
    session: AsyncSession, networks: Sequence[Network]
) -> int:
    """Delete the failures and delays of these networks. Return the number of counts of delays."""
    connection = await session.connection()
    await connection.execute(
        delete(NetworkFailure).where(or_(*overlap_clauses(NetworkFailure, networks)))
    )
    deleted = await connection.execute(
        delete(Throttle).where(or_(*overlap_clauses(Throttle, networks)))
    )
    return deleted.rowcount


async def _audit_log_entries_or_summary_of_lift(
    session: AsyncSession, ids: Sequence[int], networks: list[str]
) -> list[NewAuditLogEntry]:
    """Return an entry for each ban; one with their number if there are none or very many."""
    if not 0 < len(ids) <= MAX_AUDITED_BANS:
        before = {"networks": networks} | ({"banCount": len(ids)} if ids else {})
        return [NewAuditLogEntry("banLift", before=before)]
    statement = select(col(NetworkBan.id), col(NetworkBan.network)).where(
        col(NetworkBan.id).in_(ids)
    )
    rows = await (await session.connection()).execute(statement.order_by(col(NetworkBan.id)))
    return [
        NewAuditLogEntry("banLift", "NetworkBan", row.id, before={"network": row.network})
        for row in rows
    ]
