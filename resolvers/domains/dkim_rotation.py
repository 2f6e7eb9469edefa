"""Replace DKIM keys without a time in which signatures can't be verified.

A new key waits until DNS has its record. Then it signs, and the old key is kept for a while.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.domains.dns_advice import DnsState
from models.domains.dkim_keys import ALL, DkimAlgorithm, DkimKey, DkimKeyState
from models.errors import Conflict, Invalid, NotFound
from models.events.journal import PLATFORM
from models.observability import metrics
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from resolvers.domains import dkim_key_mutations, dkim_keys
from resolvers.domains.dkim_key_mutations import Made, Place
from resolvers.domains.dkim_keys import Record

log = logging.getLogger(__name__)

EACH = 30.0  # between checks for due keys
ROUND = 100  # per check
FIRST, LONGEST = (
    timedelta(minutes=1),
    timedelta(hours=1),
)  # pauses between DNS queries for a pending key
AGAIN = timedelta(days=1)  # until the next check whether a retired key can be deleted
TRIES = 26

ROTATED = metrics.counter(
    "merganser_dkim_rotation", "Keys whose record was seen, and old ones deleted.", "step"
)


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Values of the keys of a rotation. None takes the value of the active key."""

    selector: str | None = None
    algorithm: DkimAlgorithm | None = None
    key_size: int | None = None


async def rotate(ctx: Context, names: Sequence[str], new: NewKeys) -> list[int]:
    """Create a pending successor for each active key of these domains, and return their ids.

    Raises Conflict if a key is pending already or the selector is in use, and NotFound if no
    key is active.
    """
    selector = None if new.selector is None else dkim_key_mutations.checked_selector(new.selector)
    if new.key_size is not None:
        dkim_key_mutations.checked_size(new.key_size)
    places = await dkim_key_mutations.chosen(
        ctx, names, selector=selector or dkim_key_mutations.CHOSEN
    )
    plan = _planned(ctx, places, await dkim_key_mutations.of_places(ctx, places), (selector, new))
    keys = await dkim_key_mutations.fresh(
        ctx, [(algorithm, size) for _, _, algorithm, size in plan]
    )
    waits = DkimKeyState.PENDING
    made = [
        Made(place, name, key, state=waits)
        for (place, name, _, _), key in zip(plan, keys, strict=True)
    ]
    async with ctx.write(PLATFORM, *(p.domain_id for p in places if p.domain_id is not None)):
        there = await dkim_key_mutations.of_places(
            ctx, places
        )  # check that no other transaction changed them
        if [each[:3] for each in _planned(ctx, places, there, (selector, new))] != [
            each[:3] for each in plan
        ]:
            raise Conflict("its keys were changed meanwhile", path=["domains"])
        return await dkim_key_mutations.store(ctx, made, "dkimKeyRotate")


Planned = tuple[Place, str, DkimAlgorithm, int]


def _planned(
    ctx: Context,
    places: Sequence[Place],
    there: Sequence[Picked],
    wanted: tuple[str | None, NewKeys],
) -> list[Planned]:
    """Decide which keys to create, with which selectors.

    Raises NotFound, InvalidInput or Conflict as `rotate_keys`.
    """
    (selector, new), plan = wanted, list[Planned]()
    for index, place in enumerate(places):
        theirs = [row for row in there if row.domain == place.name]
        active = [row for row in theirs if row.state is DkimKeyState.ACTIVE]
        kinds = {row.algorithm: row for row in active if new.algorithm in (None, row.algorithm)}
        if not active or not (kinds or new.algorithm):
            raise NotFound(place.name, path=["domains"], index=index)
        follow = list(kinds) or [new.algorithm]
        if selector is not None and len(follow) > 1:
            text = "say of which algorithm: two keys cannot have one selector"
            raise Invalid(text, constraint="required", path=["algorithm"])
        taken = {row.selector for row in theirs}
        for kind in follow:
            if any(row.algorithm is kind and row.state is DkimKeyState.PENDING for row in theirs):
                text = f"a new key of {place.name} waits already"
                raise Conflict(text, path=["domains"], index=index)
            old = kinds.get(kind)
            name = selector or _free(ctx, old.selector if old else dkim_key_mutations.CHOSEN, taken)
            if name in taken:
                text = f"{place.name} has a key with this selector"
                raise Conflict(text, path=["selector"], index=index)
            taken.add(name)
            size = new.key_size or (old.key_size if old else None) or 2048
            plan.append((place, name, kind, max(size, 2048) if new.key_size is None else size))
    return plan


def _free(ctx: Context, old: str, taken: set[str]) -> str:
    """Return an unused selector with today's date: `dkim-20300131`, `dkim-20300131b` and so on."""
    head, _, tail = old.rpartition("-")
    begin = head if head and tail[:8].isdecimal() and len(tail) in (8, 9) else old
    day = f"{begin[:40]}-{ctx.world.now():%Y%m%d}"
    letters = ["", *(chr(ord("a") + nth) for nth in range(1, TRIES))]
    return next((f"{day}{each}" for each in letters if f"{day}{each}" not in taken), day)


async def activate(ctx: Context, ids: Sequence[int]) -> list[int]:
    """Make keys sign now, whatever DNS says, and retire the keys that they replace.

    Raises InvalidInput, NotFound, or Conflict for two keys of one domain and algorithm.
    """
    if not ids:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    rows = await dkim_key_mutations.seen(ctx, ids)
    if len({(row.domain, row.algorithm) for row in rows}) < len(rows):
        text = "two of one domain and algorithm cannot both sign"
        raise Conflict(text, path=["ids"])
    homes = {row.domain_id for row in rows if row.domain_id is not None}
    async with ctx.write(PLATFORM, *homes) as session:
        await _activated(ctx, session, await dkim_key_mutations.seen(ctx, ids))
    return list(ids)


async def _activated(ctx: Context, session: AsyncSession, rows: Sequence[Picked]) -> None:
    names = [row.domain for row in rows]
    asked = select(*picked(DkimKey, dkim_keys.SHOWN)).where(col(DkimKey.domain).in_(names))
    there = {row.id: row for row in await ctx.read(asked)}
    keys = [row.id for row in rows if row.state is not DkimKeyState.ACTIVE]
    retired = {
        other.id
        for other in there.values()
        for row in rows
        if (other.domain, other.algorithm) == (row.domain, row.algorithm)
        and other.id != row.id
        and other.state is not DkimKeyState.RETIRED
    }
    values = {
        "state": DkimKeyState.ACTIVE,
        "activated_at": ctx.world.now(),
        "retired_at": None,
        "due_at": None,
    }
    connection = await session.connection()
    await connection.execute(update(DkimKey).where(col(DkimKey.id).in_(keys)).values(values))
    await dkim_key_mutations.retire(ctx, session, retired)
    changed = [*keys, *sorted(retired)]
    if changed:
        await dkim_key_mutations.told_of(ctx, session, "dkimKeyActivate", (there, changed))


async def run(world: World) -> None:
    """Activate pending keys and delete retired ones, until cancelled."""
    while True:
        try:
            while await step(world) == ROUND:
                pass
        except Exception:  # keep running: the database or DNS can be back at the next attempt
            log.exception("keys could not be looked after")
        await asyncio.sleep(EACH)


async def step(world: World) -> int:
    """Process the due keys and return their number."""
    columns = {*dkim_keys.SHOWN, "looks"}
    due = col(DkimKey.due_at) <= world.now()
    asked = select(*picked(DkimKey, columns)).where(due).order_by(col(DkimKey.due_at))
    rows = await world.database.read(asked.limit(ROUND))
    ctx = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    waiting = [row for row in rows if row.state is DkimKeyState.PENDING]
    found = await dkim_keys.states(ctx, [Record.of(row) for row in waiting]) if waiting else []
    for row, state in zip(waiting, found, strict=True):
        await _looked(ctx, row, seen=state is DnsState.OK)
    for row in rows:
        if row.state is not DkimKeyState.PENDING:
            await _over(ctx, row)
    return len(rows)


async def _looked(ctx: Context, row: Picked, *, seen: bool) -> None:
    """Activate a pending key if its DNS record exists, else check again after a longer pause."""
    same = [col(DkimKey.id) == row.id, col(DkimKey.state) == DkimKeyState.PENDING]
    async with ctx.write(PLATFORM, *_stream(row)) as session:
        if not seen or row.domain == ALL:
            pause = min(FIRST * 2 ** min(row.looks, 10), LONGEST)
            later = (
                None if row.domain == ALL else ctx.world.now() + pause
            )  # such a key has no DNS record
            connection = await session.connection()
            await connection.execute(
                update(DkimKey).where(*same).values(looks=DkimKey.looks + 1, due_at=later)
            )
            return
        there = await ctx.read(select(*picked(DkimKey, dkim_keys.SHOWN)).where(*same))
        if there and there[0].public == row.public:
            await _activated(ctx, session, there)
            ROTATED.add("seen")
            log.info("key active", extra={"domain": row.domain, "selector": row.selector})


async def _over(ctx: Context, row: Picked) -> None:
    """Delete a key whose retention has ended, unless its domain has no active key."""
    other: Any = aliased(DkimKey)
    now = ctx.world.now()
    another = exists().where(
        other.domain == col(DkimKey.domain), other.state == DkimKeyState.ACTIVE
    )
    same = [col(DkimKey.id) == row.id, col(DkimKey.state) == DkimKeyState.RETIRED]
    async with ctx.write(PLATFORM, *_stream(row)) as session:
        connection = await session.connection()
        gone = await connection.execute(
            delete(DkimKey).where(*same, col(DkimKey.due_at) <= now, another)
        )
        if gone.rowcount:
            await dkim_key_mutations.tell(ctx, session, [row], did="deleted")
            ROTATED.add("deleted")
            return
        later = now + AGAIN if row.state is DkimKeyState.RETIRED else None
        await connection.execute(
            update(DkimKey)
            .where(col(DkimKey.id) == row.id, col(DkimKey.state) == row.state)
            .values(due_at=later)
        )


def _stream(row: Picked) -> list[int]:
    return [] if row.domain_id is None else [row.domain_id]
