"""Reset of the counters of users."""

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import delete
from sqlmodel import col

from models.store.columns import ColumnRow
from models.users.tables import Usage, UsageKind
from resolvers.access import require_users_in_administered_domains
from resolvers.context import Context
from resolvers.users.selection import UserSelector
from resolvers.users.user_locks import LockedUsers, lock_users_and_store_changes

RESET_RECEIVED = {"received": 0, "received_until": None, "received_notified_until": None}


async def reset_usage(
    ctx: Context, selection: UserSelector, kinds: Collection[UsageKind]
) -> list[int]:
    """Reset these counters of users; return the user ids.

    A DOMAIN_ADMIN can do so for users of administered domains only. Raises Forbidden otherwise.
    """
    now = ctx.environment.now()
    async with lock_users_and_store_changes(ctx, selection, "userUsageReset") as locked_users:
        require_users_in_administered_domains(ctx, locked_users.rows, ["users"])
        old_counts: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for deleted in await delete_usage(
            locked_users, [row.id for row in locked_users.rows], kinds
        ):
            if deleted.until > now:
                old_counts[deleted.user_id][deleted.kind.lower()] = deleted.used
        for row in locked_users.rows:
            if UsageKind.RECEIVED in kinds and row.received_until and row.received_until > now:
                old_counts[row.id]["received"] = row.received
                locked_users.new_values.setdefault(row.id, {}).update(RESET_RECEIVED)
            if row.id in old_counts:
                locked_users.report_change(
                    row, "limits", old_counts[row.id], dict.fromkeys(old_counts[row.id], 0)
                )
    return [row.id for row in locked_users.rows]


async def delete_usage(
    locked_users: LockedUsers, user_ids: Collection[int], kinds: Collection[UsageKind]
) -> Collection[ColumnRow]:
    """Delete counters of locked users; return the deleted rows."""
    condition = col(Usage.user_id).in_(user_ids) & col(Usage.kind).in_(kinds)
    columns = (col(Usage.user_id), col(Usage.kind), col(Usage.used), col(Usage.until))
    result = await (await locked_users.session.connection()).execute(
        delete(Usage).where(condition).returning(*columns)
    )
    return result.all()
