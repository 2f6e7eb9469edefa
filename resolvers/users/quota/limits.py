"""Limits of users, and how much of them is used."""

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
    """Storage of a user in bytes; `allowed` 0 is unlimited."""

    allowed: int
    used: int
    source: LimitSource
    level: UsageLevel


@dataclass(frozen=True, slots=True)
class Window:
    """A counter in a time window, with its limit; `allowed` 0 is unlimited."""

    allowed: int
    source: LimitSource
    used: int = 0
    level: UsageLevel = UsageLevel.NORMAL
    ttl: timedelta | None = None  # None: no window is open
    resets_at: datetime | None = None


async def storage(ctx: Context, user: Picked) -> Storage:
    """Return quota and storage in use, where the quota comes from, and the warning level."""
    allowed, source = await _allowed(ctx, user)
    used = max(user.used, 0)
    return Storage(allowed, used, source, level(ctx.world.options, used, allowed))


async def allowed(ctx: Context, user: Picked) -> int:
    """Return the quota in bytes: the user's own, else the domain's, else the platform's."""
    found, _ = await _allowed(ctx, user)
    return found


async def _allowed(ctx: Context, user: Picked) -> tuple[int, LimitSource]:
    """Return the quota in bytes, and whether user, domain or platform sets it."""
    if user.quota is not None:
        return int(user.quota), LimitSource.USER  # the domain need not be read
    domain = await ctx.load(domain_loaders.by_ids, user.domain_id) if user.domain_id else None
    of_domain = domain is not None and domain.default_user_quota is not None
    source = LimitSource.DOMAIN if of_domain else LimitSource.PLATFORM
    return effective(ctx.world, domain, None), source


async def most(ctx: Context, user: Picked) -> int | None:
    """Return the highest quota that this user can be given within the domain; None for no limit."""
    domain = await ctx.load(domain_loaders.by_ids, user.domain_id) if user.domain_id else None
    if domain is None:
        return None
    limits = [domain.max_user_quota] if domain.max_user_quota else []
    if domain.quota:
        own = await allowed(ctx, user)
        limits.append(max(0, domain.quota - domain.quota_allocated + own))
    return min(limits, default=None)


async def usages(ctx: Context, keys: list[tuple[int, UsageKind]]) -> list[Picked | None]:
    """Load the open counters by (user id, kind), in this order; None if no window is open."""
    seen = select(col(User.id)).where(col(User.id) == col(Usage.user_id), visible_users(ctx))
    asked = select(*picked(Usage)).where(
        col(Usage.user_id).in_({user_id for user_id, _ in keys}),
        seen.exists(),
        col(Usage.until) > ctx.world.now(),
    )
    found = {(row.user_id, row.kind): row for row in await ctx.read(asked)}
    return [found.get(key) for key in keys]


async def recipients(ctx: Context, user: Picked) -> Window:
    """Load the count of addresses written to, in 24 hours from the first."""
    row = await ctx.load(usages, (user.id, UsageKind.RECIPIENTS))
    used, until = (row.used, row.until) if row else (0, None)
    return _window(ctx.world, user.recipients, ctx.world.options.recipients_daily, (used, until))


async def sent_on(ctx: Context, user: Picked) -> Window:
    """Load the count of messages forwarded to targets, in 24 hours from the first."""
    row = await ctx.load(usages, (user.id, UsageKind.FORWARDS))
    used, until = (row.used, row.until) if row else (0, None)
    return _window(ctx.world, user.forwards, ctx.world.options.forwards_daily, (used, until))


def received(world: World, user: Picked) -> Window:
    """Return the count of received messages, in an hour from the first."""
    count = (user.received, user.received_until)
    return _window(world, user.received_max, world.options.received_hourly, count)


def forwards(world: World, address: Picked) -> Window:
    """Return the count of messages that an address has forwarded, in 24 hours from the first."""
    count = (address.forwarded, address.forwarded_until)
    return _window(world, address.forwards_max, world.options.forwards_daily, count)


def _window(world: World, own: int | None, usual: int, count: tuple[int, Any]) -> Window:
    """Return a counter with its own limit, or else the default of the platform."""
    source = LimitSource.PLATFORM if own is None else LimitSource.USER
    limit = usual if own is None else own
    now, (used, until) = world.now(), count
    if until is None or until <= now:
        return Window(limit, source)
    return Window(limit, source, used, level(world.options, used, limit), until - now, until)


async def may_write(ctx: Context, user: Picked) -> None:
    """Raise RateLimited if the user has reached a limit of sending.

    Call it before a message is built.
    """
    await rate_limits.may_send(ctx, user.id)
    if not (limit := _limit(ctx.world, user.recipients)):
        return
    given = {"user": user.id, "now": ctx.world.now()}
    row = next(iter(await ctx.find(_RUNNING, **given)), None)
    if row and row.used >= limit:
        raise _too_many(ctx, limit, row, row.used)


@prepared
def _more(dialect: str) -> Any:
    """SQL: add to `used` in the window that is open at `now`, or open a new one."""
    new = insert_or(dialect, Usage)
    running = col(Usage.until) > bindparam("now", type_=Instant)
    again = {
        "used": case((running, Usage.used + new.excluded.used), else_=new.excluded.used),
        "until": case((running, col(Usage.until)), else_=new.excluded.until),
    }
    put = new.on_conflict_do_update(index_elements=["user_id", "kind"], set_=again)
    return put.returning(*picked(Usage))


class Overrun(RateLimited):
    """More recipients than the limit allows."""

    def __init__(self, limit: int, row: Picked, used: int) -> None:
        super().__init__("", retry_after=DAY)
        self.limit, self.row, self.used = limit, row, used


@contextmanager
def refusing(ctx: Context) -> Generator[None]:
    """Convert exceeded limits of a transaction to RateLimited.

    A transaction can run in a thread, so it raises errors without a context.
    """
    try:
        yield
    except rate_limits.Exceeded as over:
        raise rate_limits.refusal(ctx, over) from None
    except Overrun as over:
        raise _too_many(ctx, over.limit, over.row, over.used) from None


def count_recipients(turn: Turn, user_id: int, many: int) -> None:
    """Count recipients in the transaction that queues them, inside `raise_rate_limited`.

    Raises RecipientLimitExceeded beyond the limit. A user who just reaches it gets a message.
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
    """Return the error; the user gets a message about the first one of a window."""
    now = ctx.world.now()
    if not (ctx.trial or still(ctx.world, row.told_until)):
        reached = Reached(LimitKind.RECIPIENTS, used, limit, row.until, refused=True)
        # in the background: the error rolls the open transaction back
        memory_of(ctx.world.database).behind(refused(ctx.world, row.user_id, reached))
    words = f"{limit} recipients in 24 hours are all: {max(limit - used, 0)} are left"
    return RateLimited(words, retry_after=row.until - now)
