"""Set and reset the rate limits of users and domains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden, Invalid
from models.events.journal import PLATFORM, ChangeKind
from models.queue.rate_limits import RateHold, RateLimit, RateWindow
from models.queue.rate_values import MOST, Rate
from models.store.columns import Picked, insert_or, picked
from models.users.roles import Role
from resolvers.access import require_charge
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import Named
from resolvers.users.selection import Users, chosen
from resolvers.users.user_locks import changing

Facts = dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Whose:
    """The users and domains of rate limits; None: no user, or no domain."""

    users: Users | None = None
    domains: Sequence[Named] | None = None


def checked(rate: Rate | None, *, path: Sequence[str] = ("value",)) -> Rate | None:
    """Return the rate. Raises InvalidInput if its value is not allowed."""
    if rate is not None and not 0 <= rate.value <= MOST:
        raise Invalid(f"from 0 to {MOST}", constraint="range", path=path)
    return rate


async def change(ctx: Context, whose: Whose, rate: Rate | None) -> list[int]:
    """Set the rate of users and domains, all or none; return their ids in order.

    None removes their own rate. The running count stays unless the time frame changes. Raises
    InvalidInput, NotFound or Forbidden.
    """
    _named(whose.users or whose.domains)
    checked(rate)
    async with ctx.together():
        await _hold(ctx, whose)
        keys: list[int] = []
        if whose.users is not None:
            async with changing(ctx, whose.users, "rateLimitSet") as held:
                require_charge(ctx, held.rows, ["users"])
                mine = {row.id: row for row in held.rows}
                before = await put(ctx, held.session, mine, rate, "user_id")
                for key, row in mine.items():
                    if before[key] != facts(rate):
                        held.tell(row, "rate_limit", before[key], facts(rate))
            keys += mine
        if whose.domains is not None:
            rows = await domain_loaders.chosen(ctx, whose.domains)
            ids = [row.id for row in rows]
            async with ctx.write(PLATFORM, *ids) as session:
                before = await put(ctx, session, ids, rate, "domain_id")
                changes = {key: (old, facts(rate)) for key, old in before.items()}
                await _tell(ctx, session, "rateLimitSet", changes)
            keys += ids
    return keys


async def reset(ctx: Context, whose: Whose, *, platform: bool = False) -> list[int]:
    """Reset the counts of sent messages, and return the ids of their owners in order.

    Raises InvalidInput, NotFound, or Forbidden for the platform's count unless the viewer is an
    ADMIN.
    """
    _named(whose.users or whose.domains or platform)
    if platform and not ctx.viewer.role.includes(Role.ADMIN):
        text = f"this needs the role {Role.ADMIN}"
        raise Forbidden(text, requires=Role.ADMIN, path=["includePlatform"])
    async with ctx.together():
        await _hold(ctx, whose)
        keys: list[int] = []
        if whose.users is not None:
            async with changing(ctx, whose.users, "rateLimitReset") as held:
                require_charge(ctx, held.rows, ["users"])
                gone = await _forgotten(ctx, held.session, [row.id for row in held.rows])
                for row in held.rows:
                    if row.id in gone:
                        held.tell(row, "rate_limit", {"used": gone[row.id]}, {"used": 0})
            keys += [row.id for row in held.rows]
        if whose.domains is not None:
            ids = [row.id for row in await domain_loaders.chosen(ctx, whose.domains)]
            async with ctx.write(PLATFORM, *ids) as session:
                gone = await _forgotten(ctx, session, ids)
                changes: dict[int, tuple[Facts, Facts]] = {
                    key: ({"used": used}, {"used": 0}) for key, used in gone.items()
                }
                await _tell(ctx, session, "rateLimitReset", changes)
            keys += ids
        if platform:
            async with ctx.write(PLATFORM) as session:
                gone = await _forgotten(ctx, session, [PLATFORM])
                used = {"rate_limit": {"used": gone.get(PLATFORM, 0)}}
                none = {"rate_limit": {"used": 0}}
                done = Done("rateLimitReset", before=used, after=none)
                await admin_log.note(ctx, session, *([done] if gone else []))
    return keys


def _named(given: object) -> None:
    if not given:
        text = "name users or domains"
        raise Invalid(text, constraint="required", path=["users"])


async def _hold(ctx: Context, whose: Whose) -> None:
    """Lock the streams of all owners at once, since locks must be taken in one order."""
    keys: set[int] = set()
    if whose.users is not None:
        for row in await chosen(ctx, whose.users):
            keys |= {row.id, row.domain_id or PLATFORM}
    if whose.domains is not None:
        keys |= {PLATFORM, *(row.id for row in await domain_loaders.chosen(ctx, whose.domains))}
    async with ctx.write(*keys):
        pass


def facts(rate: Rate | None) -> Facts:
    """Return the rate for the admin log."""
    return None if rate is None else {"value": rate.value, "frame": rate.frame.value}


async def put(
    ctx: Context, session: AsyncSession, keys: Iterable[int], rate: Rate | None, column: str
) -> dict[int, Facts]:
    """Set or delete the rate of users or domains; return the former rates by owner id.

    `owner_column` is `user_id` or `domain_id`. The transaction must hold the owners' locks.
    """
    keys, connection = list(keys), await session.connection()
    asked = select(*picked(RateLimit)).where(col(RateLimit.id).in_(keys))
    there = {row.id: _rate(row) for row in (await connection.execute(asked)).all()}
    if rate is None:
        await connection.execute(delete(RateLimit).where(col(RateLimit.id).in_(keys)))
    elif keys:
        now = ctx.world.now()
        values = {**rate._asdict(), "updated_at": now}
        new = insert_or(ctx.world.database.dialect, RateLimit).values(
            [{"id": key, column: key, "created_at": now, **values} for key in keys]
        )
        await connection.execute(
            new.on_conflict_do_update(
                index_elements=["id"], set_={name: new.excluded[name] for name in values}
            )
        )
    await connection.execute(delete(RateHold).where(col(RateHold.window_id).in_(keys)))
    return {key: facts(there.get(key)) for key in keys}


def _rate(row: Picked) -> Rate:
    return Rate(row.value, row.frame)


async def _forgotten(ctx: Context, session: AsyncSession, keys: Sequence[int]) -> dict[int, int]:
    """Delete the windows of these owners; return the counts of running ones by owner id."""
    connection, now = await session.connection(), ctx.world.now()
    columns = (col(RateWindow.id), col(RateWindow.used), col(RateWindow.until))
    removal = delete(RateWindow).where(col(RateWindow.id).in_(keys)).returning(*columns)
    gone = (await connection.execute(removal)).all()
    await connection.execute(delete(RateHold).where(col(RateHold.window_id).in_(keys)))
    return {row.id: row.used for row in gone if row.until > now}


async def _tell(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    changes: Mapping[int, tuple[Facts, Facts]],
) -> None:
    """Record changed domains in the journals and the admin log."""
    fresh = {key: pair for key, pair in changes.items() if pair[0] != pair[1]}
    if not fresh:
        return
    told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in fresh}
    await ctx.record_all(session, {**told, PLATFORM: [(ChangeKind.DOMAIN_CHANGED, list(fresh))]})
    done = (
        Done(mutation, "Domain", key, key, {"rate_limit": old}, {"rate_limit": new})
        for key, (old, new) in fresh.items()
    )
    await admin_log.note(ctx, session, *done)
