"""Check, count and list sending rates, and the users that are rate limited now."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, or_, select
from sqlmodel import col

from mail.limits import sending_rates
from mail.limits.sending_rates import Full, held_up
from models.domains.tables import Domain
from models.errors import RateLimited
from models.queue.rate_limits import RateHold, RateLimit, RateWindow
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.tables import LimitSource, User
from resolvers import pagination
from resolvers.access import visible_users
from resolvers.auth.credential_cache import memory_of
from resolvers.context import Context
from resolvers.domains.loaders import visible_domains
from resolvers.pagination import Scan, by_keys

LIMITS = "rate-limits"
HOLDS = "rate-holds"
RUNNING = frozenset({"used", "until"})  # columns of the current window
ALL = RUNNING | {column.name for column in picked(RateLimit)}
DOMAIN = "domain_id"  # of a hold whose limit is that of a domain


@dataclass(frozen=True, slots=True)
class RateWhere:
    """Conditions of a list of rate limits: of these users or domains, or all."""

    users: Collection[int] | None = None
    domains: Collection[int] | None = None
    exhausted: bool | None = None


class Exceeded(RateLimited):
    """The message would exceed the rate of the user, the domain or the platform."""

    def __init__(self, user_id: int, full: Full) -> None:
        super().__init__("", retry_after=timedelta())
        self.user_id, self.full = user_id, full


async def may_send(ctx: Context, user_id: int) -> None:
    """Raise RateLimited if the user, the domain or the platform has used up its rate."""
    statement, given = sending_rates.asking(ctx.world, user_id)
    rows = await ctx.find(statement, **given)
    if rows:
        raise refusal(ctx, Exceeded(user_id, sending_rates.longest(rows, user_id)))


def count(turn: Turn, user_id: int, many: int = 1) -> None:
    """Count messages of a user, last in the transaction that queues them.

    Raises SendingRateExceeded if they exceed a rate.
    """
    if full := sending_rates.count(turn, user_id, many):
        raise Exceeded(user_id, full)


def refusal(ctx: Context, over: Exceeded) -> RateLimited:
    """Return the RateLimited error. The first one of a window is also recorded for the user."""
    if not ctx.trial:
        # in the background, since the current transaction is rolled back
        told = held_up(ctx.world, over.user_id, over.full)
        memory_of(ctx.world.database).behind(told)
    return over.full.refusal(ctx.world.now())


def _seen(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for limits of visible users and domains."""
    users = select(col(User.id)).where(visible_users(ctx))
    domains = select(col(Domain.id)).where(visible_domains(ctx))
    return col(RateLimit.user_id).in_(users) | col(RateLimit.domain_id).in_(domains)


def _limits(ctx: Context, *columns: Any) -> Select[*tuple[Any, ...]]:
    """Select visible limits with their current window."""
    window = RateWindow
    running = (
        (col(window.id) == col(RateLimit.id))
        & (col(window.until) > ctx.world.now())
        & (col(window.frame) == col(RateLimit.frame))
    )
    return (
        select(*columns)
        .select_from(RateLimit)
        .join(window, running, isouter=True)
        .where(_seen(ctx))
    )


def _shown(ctx: Context, names: Collection[str] = ALL) -> Select[*tuple[Any, ...]]:
    """Select columns of visible limits. WINDOW_COLUMNS are those of the current window."""
    running = picked(RateWindow, RUNNING.intersection(names))
    return _limits(ctx, *picked(RateLimit, set(names) - RUNNING), *running)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the limits of users and domains, in the given order.

    None for one without own limit or that the viewer can't see.
    """
    return await by_keys(ctx, _shown(ctx), col(RateLimit.id), ids)


async def page(ctx: Context, where: RateWhere, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of the limits that are set, the oldest first."""
    place = (col(RateLimit.created_at), col(RateLimit.id))
    rows = _shown(ctx, {"id", "created_at", *columns}).where(*_terms(where))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def how_many(ctx: Context, where: RateWhere) -> int:
    """Count the limits that meet the conditions."""
    (row,) = await ctx.read(_limits(ctx, func.count()).where(*_terms(where)))
    return int(row[0])


def _terms(where: RateWhere) -> list[ColumnElement[bool]]:
    whose = []
    if where.users is not None:
        whose.append(col(RateLimit.user_id).in_(where.users))
    if where.domains is not None:
        whose.append(col(RateLimit.domain_id).in_(where.domains))
    terms = [or_(*whose)] if whose else []
    if where.exhausted is not None:
        used = func.coalesce(col(RateWindow.used), 0)
        full = (col(RateLimit.value) > 0) & (used >= col(RateLimit.value))
        terms.append(full if where.exhausted else ~full)
    return terms


def _holds(ctx: Context, users: Collection[int] | None, *columns: Any) -> Select[*tuple[Any, ...]]:
    """Select the visible users that are rate limited now, all or these."""
    seen = col(RateHold.id).in_(select(col(User.id)).where(visible_users(ctx)))
    theirs = [] if users is None else [col(RateHold.id).in_(users)]
    return (
        select(*columns)
        .select_from(RateHold)
        .where(col(RateHold.until) > ctx.world.now(), seen, *theirs)
    )


def _held(
    ctx: Context, users: Collection[int] | None, names: Collection[str] | None
) -> Select[*tuple[Any, ...]]:
    of_domain = col(RateHold.source) == LimitSource.DOMAIN
    domain = case((of_domain, col(RateHold.window_id))).label(DOMAIN)
    some = None if names is None else {"id", "since", *names} - {DOMAIN}
    more = [domain] if names is None or DOMAIN in names else []
    return _holds(ctx, users, *picked(RateHold, some), *more)


async def holds_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the holds of rate limited users, in the given order.

    None for a user without hold or that the viewer can't see.
    """
    return await by_keys(ctx, _held(ctx, None, None), col(RateHold.id), ids)


async def holds(
    ctx: Context, users: Collection[int] | None, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Read a page of the users that are rate limited now, the last first."""
    place = (col(RateHold.since), col(RateHold.id))
    rows = _held(ctx, users, columns)
    return await pagination.one(ctx, Scan(rows, ask, place, falling=True))


async def how_many_holds(ctx: Context, users: Collection[int] | None) -> int:
    """Count the users that are rate limited now."""
    (row,) = await ctx.read(_holds(ctx, users, func.count()))
    return int(row[0])
