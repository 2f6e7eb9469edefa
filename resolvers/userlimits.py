"""What accounts may use, and what of it they have."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, select
from sqlmodel import col

from models.columns import Picked, insert_or, picked
from models.errors import RateLimited
from models.users import Usage, UsageKind, User
from models.world import Turn, World
from resolvers import domains
from resolvers.access import visible_users
from resolvers.context import Context
from resolvers.quotas import effective

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """A counter that begins anew when its time is over; `allowed` 0 is any number."""

    allowed: int
    used: int = 0
    ttl: timedelta | None = None  # None: no time is running


async def allowed(ctx: Context, user: Picked) -> int:
    """The bytes this user may keep: the user's, else the domain's, else the platform's."""
    if user.quota is not None:
        return int(user.quota)  # without a look at the domain
    domain = await ctx.load(domains.by_ids, user.domain_id) if user.domain_id else None
    return effective(ctx.world, domain, None)


async def most(ctx: Context, user: Picked) -> int | None:
    """The bytes this user could be given at most within the domain; None where nothing limits."""
    domain = await ctx.load(domains.by_ids, user.domain_id) if user.domain_id else None
    if domain is None:
        return None
    limits = [domain.max_user_quota] if domain.max_user_quota else []
    if domain.quota:
        own = await allowed(ctx, user)
        limits.append(max(0, domain.quota - domain.quota_allocated + own))
    return min(limits, default=None)


async def usages(ctx: Context, keys: list[tuple[int, UsageKind]]) -> list[Picked | None]:
    """The counters of these users whose time is running, in this order."""
    seen = select(col(User.id)).where(col(User.id) == col(Usage.user_id), visible_users(ctx))
    asked = select(*picked(Usage)).where(
        col(Usage.user_id).in_({user_id for user_id, _ in keys}),
        seen.exists(),
        col(Usage.until) > ctx.world.now(),
    )
    found = {(row.user_id, row.kind): row for row in await ctx.read(asked)}
    return [found.get(key) for key in keys]


async def recipients(ctx: Context, user: Picked) -> Window:
    """Addresses written to, in 24 hours from the first."""
    row = await ctx.load(usages, (user.id, UsageKind.RECIPIENTS))
    limit = _limit(ctx.world, user.recipients)
    return _window(ctx.world, limit, row.used if row else 0, row.until if row else None)


def received(world: World, user: Picked) -> Window:
    """Messages that came, in an hour from the first."""
    own = user.received_max
    limit = world.options.received_hourly if own is None else int(own)
    return _window(world, limit, user.received, user.received_until)


def _limit(world: World, own: int | None) -> int:
    return world.options.recipients_daily if own is None else own


def _window(world: World, limit: int, used: int, until: datetime | None) -> Window:
    now = world.now()
    running = until is not None and until > now
    return Window(limit, used, until - now) if running and until else Window(limit)


async def may_write(ctx: Context, user: Picked) -> None:
    """RateLimited where the account has written to all it may: before a message is built."""
    (row,) = await usages(ctx, [(user.id, UsageKind.RECIPIENTS)])
    limit = _limit(ctx.world, user.recipients)
    if row and limit and row.used >= limit:
        raise _too_many(limit, row.until - ctx.world.now())


def count_recipients(turn: Turn, user_id: int, many: int) -> None:
    """Count addresses that are written to, in the unit that queues; RateLimited.

    Refused is who has used up the limit before: one message may go beyond it.
    """
    connection, now = turn.connection, turn.world.now()
    new = insert_or(connection.dialect.name, Usage).values(
        user_id=user_id, kind=UsageKind.RECIPIENTS, used=many, until=now + DAY
    )
    running = col(Usage.until) > now
    again = {
        "used": case((running, Usage.used + many), else_=many),
        "until": case((running, col(Usage.until)), else_=new.excluded.until),
    }
    put = new.on_conflict_do_update(index_elements=["user_id", "kind"], set_=again)
    row = connection.execute(put.returning(col(Usage.used), col(Usage.until))).one()
    own = connection.execute(select(col(User.recipients)).where(col(User.id) == user_id)).scalar()
    limit = _limit(turn.world, own)
    if limit and row.used - many >= limit:
        raise _too_many(limit, row.until - now)


def _too_many(limit: int, wait: timedelta) -> RateLimited:
    return RateLimited(f"{limit} recipients in 24 hours are all", retry_after=wait)
