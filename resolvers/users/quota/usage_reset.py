"""Reset of the counters of users."""

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import delete
from sqlmodel import col

from models.store.columns import Picked
from models.users.tables import Usage, UsageKind
from resolvers.access import require_charge
from resolvers.context import Context
from resolvers.users.selection import Users
from resolvers.users.user_locks import Held, changing

NONE_CAME = {"received": 0, "received_until": None, "received_told_until": None}


async def reset(ctx: Context, users: Users, kinds: Collection[UsageKind]) -> list[int]:
    """Reset these counters of users; return the user ids.

    A DOMAIN_ADMIN can do so for users of administered domains only. Raises Forbidden otherwise.
    """
    now = ctx.world.now()
    async with changing(ctx, users, "usageReset") as held:
        require_charge(ctx, held.rows, ["users"])
        were: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for gone in await forget(held, [row.id for row in held.rows], kinds):
            if gone.until > now:
                were[gone.user_id][gone.kind.lower()] = gone.used
        for row in held.rows:
            if UsageKind.RECEIVED in kinds and row.received_until and row.received_until > now:
                were[row.id]["received"] = row.received
                held.values.setdefault(row.id, {}).update(NONE_CAME)
            if row.id in were:
                held.tell(row, "limits", were[row.id], dict.fromkeys(were[row.id], 0))
    return [row.id for row in held.rows]


async def forget(
    held: Held, ids: Collection[int], kinds: Collection[UsageKind]
) -> Collection[Picked]:
    """Delete counters of locked users; return the deleted rows."""
    theirs = col(Usage.user_id).in_(ids) & col(Usage.kind).in_(kinds)
    columns = (col(Usage.user_id), col(Usage.kind), col(Usage.used), col(Usage.until))
    gone = await (await held.session.connection()).execute(
        delete(Usage).where(theirs).returning(*columns)
    )
    return gone.all()
