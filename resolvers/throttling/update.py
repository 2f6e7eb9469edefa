"""Change of the ban policy. For an ADMIN."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from mail.throttling import list_hosts
from mail.throttling.ban_changes import (
    increment_and_lock_change_counter,
    policy_from_row,
    refresh_refused_networks_from_database,
)
from mail.throttling.list_hosts import HostAnswers
from models.errors import InvalidInput
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.quantities import format_iso_duration
from models.store.columns import insert_with_conflict, select_columns
from models.throttling.policy import POLICY_ID, BanPolicyValues
from models.throttling.tables import BanPolicy, NetworkFailure
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.throttling.validation import normalized_changes, require_caller_not_refused
from resolvers.viewer import GuardRule

WRITE_RULE = GuardRule(role=Role.ADMIN, scope=Scope.FULL)
MAX_QUERY_SECONDS = 5.0  # for all new host names of a change; the worker queries the others
_LOGGED_NAMES = {
    "ban_time": "banTime",
    "ban_time_increment": "banTimeIncrement",
    "max_attempts": "maxAttempts",
    "retry_window": "retryWindow",
    "netmask_ipv4": "netmaskIpv4",
    "netmask_ipv6": "netmaskIpv6",
    "allowlist": "allowlist",
    "denylist": "denylist",
}


async def update_policy(ctx: Context, changes: Mapping[str, Any]) -> BanPolicyValues:
    """Change values of the ban policy; return the new policy.

    Absent values stay. All processes apply it within a second. If `retry_window` becomes
    shorter, open windows end at the latest one `retry_window` from now. New host names are
    resolved first, for at most `MAX_QUERY_SECONDS`. Raises InvalidInput, and Forbidden if the new
    policy would refuse the caller's address.
    """
    ctx.viewer.require(WRITE_RULE)
    if not changes:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    changes = normalized_changes(changes)
    await refresh_refused_networks_from_database(ctx.environment)
    answers = await _query_new_hosts(ctx, changes)
    async with ctx.write_session(PLATFORM) as session:
        connection = await session.connection()
        rows = (await connection.execute(select(*select_columns(BanPolicy)))).all()
        policy = policy_from_row(rows[0]) if rows else BanPolicyValues()
        new_policy = replace(policy, **changes)
        if new_policy == policy:
            return policy
        _require_caller_accepted(ctx, new_policy, changes, answers)
        values = _row_values(new_policy) | {"updated_at": ctx.environment.now()}
        insert = insert_with_conflict(ctx.environment.database.dialect, BanPolicy)
        changed = {name: insert.excluded[name] for name in values}
        await connection.execute(
            insert.values(id=POLICY_ID, **values).on_conflict_do_update(
                index_elements=[col(BanPolicy.id)], set_=changed
            )
        )
        if new_policy.retry_window < policy.retry_window:
            latest_end = ctx.environment.now() + new_policy.retry_window
            await connection.execute(
                update(NetworkFailure)
                .where(col(NetworkFailure.window_ends_at) > latest_end)
                .values(window_ends_at=latest_end)
                .execution_options(synchronize_session=False)
            )
        await ctx.environment.run_in_session(session, increment_and_lock_change_counter)
        await ctx.environment.run_in_session(
            session, partial(list_hosts.store_answers_and_delete_unlisted_hosts, answers=answers)
        )
        await ctx.record_change(session, PLATFORM, EventType.BAN_POLICY_UPDATED, [POLICY_ID])
        before, after = _logged_differences(policy, new_policy)
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            NewAuditLogEntry("banPolicyUpdate", "BanPolicy", POLICY_ID, before=before, after=after),
        )
    return new_policy


async def _query_new_hosts(ctx: Context, changes: Mapping[str, Any]) -> HostAnswers:
    """Query the host names that are new in both lists.

    So a deny list with a name of the caller's own host is refused. Queries none after a write of an
    open transaction, which would keep its locks meanwhile.
    """
    if ctx.is_writing:
        return {}
    entries = (*changes.get("allowlist", ()), *changes.get("denylist", ()))
    known_names = ctx.environment.refused_networks.host_addresses.keys()
    new_names = list_hosts.host_names(entries) - known_names
    return await list_hosts.query_hosts(
        ctx.environment, sorted(new_names), total_timeout=MAX_QUERY_SECONDS
    )


def _require_caller_accepted(
    ctx: Context, new_policy: BanPolicyValues, changes: Mapping[str, Any], answers: HostAnswers
) -> None:
    """Raise an error if the new policy would refuse the network of the caller."""
    before = ctx.environment.refused_networks
    after = before.copy()
    new_addresses = {
        name: answer for name, answer in answers.items() if not isinstance(answer, str)
    }
    after.use_policy(new_policy, {**before.host_addresses, **new_addresses})
    name = "denylist" if "denylist" in changes else "allowlist"
    require_caller_not_refused(ctx, before, after, ["set", name])


def _row_values(policy: BanPolicyValues) -> dict[str, Any]:
    return {
        "ban_seconds": int(policy.ban_time.total_seconds()),
        "ban_time_increment": policy.ban_time_increment,
        "max_attempts": policy.max_attempts,
        "retry_window_seconds": int(policy.retry_window.total_seconds()),
        "netmask_ipv4": policy.netmask_ipv4,
        "netmask_ipv6": policy.netmask_ipv6,
        "allowlist": list(policy.allowlist),
        "denylist": list(policy.denylist),
    }


def _logged_differences(
    policy: BanPolicyValues, new_policy: BanPolicyValues
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changed values before and after. Of the lists: the removed and added entries."""
    before, after = {}, {}
    for name, old in asdict(policy).items():
        new = getattr(new_policy, name)
        if old == new:
            continue
        key = _LOGGED_NAMES[name]
        if isinstance(old, tuple):
            old_entries, new_entries = set(old), set(new)
            before[key] = [entry for entry in old if entry not in new_entries]
            after[key] = [entry for entry in new if entry not in old_entries]
        else:
            before[key], after[key] = _logged_value(old), _logged_value(new)
    return before, after


def _logged_value(value: Any) -> Any:
    return format_iso_duration(value) if isinstance(value, timedelta) else value
