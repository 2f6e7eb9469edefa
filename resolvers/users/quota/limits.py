"""What accounts may use, and what of it they have."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, select
from sqlmodel import col

from mail.limits.user_limits import Reached, level, refused, still, tell
from models.errors import RateLimited
from models.runtime.environment import Turn, World
from models.store.columns import Instant, Picked, insert_or, picked
from models.store.prepared_statements import Prepared, number, prepared
from models.users.tables import LimitKind, LimitSource, Usage, UsageKind, UsageLevel, User
from resolvers.access import visible_users
from resolvers.auth.credential_cache import memory_of
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.queue import rate_limits
from resolvers.users.quota.quota_allocation import effective

DAY = timedelta(days=1)
_RUNNING = Prepared(
    select(*picked(Usage)).where(
        col(Usage.user_id) == number("user"),
        col(Usage.kind) == UsageKind.RECIPIENTS,
        col(Usage.until) > bindparam("now", type_=Instant),
    )
)
_LIMIT = Prepared(select(col(User.recipients)).where(col(User.id) == number("user")))


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes; `allowed` 0 is any number."""

    allowed: int
    used: int
    source: LimitSource
    level: UsageLevel


@dataclass(frozen=True, slots=True)
class Window:
    """A counter that begins anew when its time is over; `allowed` 0 is any number."""

    allowed: int
    source: LimitSource
    used: int = 0
    level: UsageLevel = UsageLevel.NORMAL
    ttl: timedelta | None = None  # None: no time is running
    resets_at: datetime | None = None


async def storage(ctx: Context, user: Picked) -> Storage:
    """What this user may keep, and keeps; who has said so, and how full that is."""
    allowed, source = await _allowed(ctx, user)
    used = max(user.used, 0)
    return Storage(allowed, used, source, level(ctx.world.options, used, allowed))


async def allowed(ctx: Context, user: Picked) -> int:
    """The bytes this user may keep: the user's, else the domain's, else the platform's."""
    found, _ = await _allowed(ctx, user)
    return found


async def _allowed(ctx: Context, user: Picked) -> tuple[int, LimitSource]:
    if user.quota is not None:
        return int(user.quota), LimitSource.USER  # without a look at the domain
    domain = await ctx.load(domain_loaders.by_ids, user.domain_id) if user.domain_id else None
    of_domain = domain is not None and domain.default_user_quota is not None
    source = LimitSource.DOMAIN if of_domain else LimitSource.PLATFORM
    return effective(ctx.world, domain, None), source


async def most(ctx: Context, user: Picked) -> int | None:
    """The bytes this user could be given at most within the domain; None where nothing limits."""
    domain = await ctx.load(domain_loaders.by_ids, user.domain_id) if user.domain_id else None
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
    used, until = (row.used, row.until) if row else (0, None)
    return _window(ctx.world, user.recipients, ctx.world.options.recipients_daily, (used, until))


async def sent_on(ctx: Context, user: Picked) -> Window:
    """Messages sent on to targets, in 24 hours from the first."""
    row = await ctx.load(usages, (user.id, UsageKind.FORWARDS))
    used, until = (row.used, row.until) if row else (0, None)
    return _window(ctx.world, user.forwards, ctx.world.options.forwards_daily, (used, until))


def received(world: World, user: Picked) -> Window:
    """Messages that came, in an hour from the first."""
    count = (user.received, user.received_until)
    return _window(world, user.received_max, world.options.received_hourly, count)


def forwards(world: World, address: Picked) -> Window:
    """Messages that an address has forwarded, in 24 hours from the first."""
    count = (address.forwarded, address.forwarded_until)
    return _window(world, address.forwards_max, world.options.forwards_daily, count)


def _window(world: World, own: int | None, usual: int, count: tuple[int, Any]) -> Window:
    source = LimitSource.PLATFORM if own is None else LimitSource.USER
    limit = usual if own is None else own
    now, (used, until) = world.now(), count
    if until is None or until <= now:
        return Window(limit, source)
    return Window(limit, source, used, level(world.options, used, limit), until - now, until)


async def may_write(ctx: Context, user: Picked) -> None:
    """RateLimited where the account has sent, or written to, all it may: before one is built."""
    await rate_limits.may_send(ctx, user.id)
    if not (limit := _limit(ctx.world, user.recipients)):
        return
    given = {"user": user.id, "now": ctx.world.now()}
    row = next(iter(await ctx.find(_RUNNING, **given)), None)
    if row and row.used >= limit:
        raise _too_many(ctx, limit, row, row.used)


@prepared
def _more(dialect: str) -> Any:
    """To send: so many more `used` in the window that runs `now`, or in a new one."""
    new = insert_or(dialect, Usage)
    running = col(Usage.until) > bindparam("now", type_=Instant)
    again = {
        "used": case((running, Usage.used + new.excluded.used), else_=new.excluded.used),
        "until": case((running, col(Usage.until)), else_=new.excluded.until),
    }
    put = new.on_conflict_do_update(index_elements=["user_id", "kind"], set_=again)
    return put.returning(*picked(Usage))


class Overrun(RateLimited):
    """More addresses would be written to than are left."""

    def __init__(self, limit: int, row: Picked, used: int) -> None:
        super().__init__("", retry_after=DAY)
        self.limit, self.row, self.used = limit, row, used


@contextmanager
def refusing(ctx: Context) -> Generator[None]:
    """Refuse as RateLimited what overruns in a unit, whose thread may be none of ours."""
    try:
        yield
    except rate_limits.Exceeded as over:
        raise rate_limits.refusal(ctx, over) from None
    except Overrun as over:
        raise _too_many(ctx, over.limit, over.row, over.used) from None


def count_recipients(turn: Turn, user_id: int, many: int) -> None:
    """Count addresses that are written to, in the unit that queues, inside `refusing`. Overrun.

    Refused is what would go beyond the limit, be it one address. Who just reaches it is told.
    """
    now = turn.world.now()
    given = {"user_id": user_id, "kind": UsageKind.RECIPIENTS, "used": many, "until": now + DAY}
    (row,) = turn.fetched(_more(turn.connection.dialect.name), **given, told_until=None, now=now)
    own = turn.fetched(_LIMIT, user=user_id)
    limit = _limit(turn.world, own[0].recipients if own else None)
    if limit and row.used > limit:
        raise Overrun(limit, row, row.used - many)
    if limit and row.used == limit:
        tell(turn, user_id, Reached(LimitKind.RECIPIENTS, row.used, limit, row.until))


def _limit(world: World, own: int | None) -> int:
    return world.options.recipients_daily if own is None else own


def _too_many(ctx: Context, limit: int, row: Picked, used: int) -> RateLimited:
    """The refusal; the first of the time that is running is told to the account."""
    now = ctx.world.now()
    if not (ctx.trial or still(ctx.world, row.told_until)):
        reached = Reached(LimitKind.RECIPIENTS, used, limit, row.until, refused=True)
        # behind the answer: the unit around us goes back with what is refused
        memory_of(ctx.world.database).behind(refused(ctx.world, row.user_id, reached))
    words = f"{limit} recipients in 24 hours are all: {max(limit - used, 0)} are left"
    return RateLimited(words, retry_after=row.until - now)
