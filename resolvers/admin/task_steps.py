"""How a kind of background work is cut into units."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import Task
from models.events.wakeups import TASKS
from models.runtime.environment import ring
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next unit holds, and what it is about."""

    streams: Sequence[int] = ()
    ids: Sequence[int] = ()
    made: Any = None  # what took its time, and so came before the unit


@dataclass(slots=True)
class Step:
    """What one unit has done, and where the next one begins."""

    checkpoint: dict[str, Any]
    done: int = 0
    more: bool = False
    total: int | None = None  # where this unit found out
    objects: Sequence[str] = ()  # of uploads whose rows are gone: removed behind the unit


Planner = Callable[[Context, dict[str, Any], dict[str, Any]], Awaitable[Plan]]


class Kind(NamedTuple):
    """How a kind of task is worked on: `plan` before a unit, `step` in it.

    Both get the order and the checkpoint, and `stoppable` says whether it may end half-way.
    What has something open between its units has `begun`, which says what plans them.
    """

    plan: Planner
    step: Callable[[Context, AsyncSession, dict[str, Any], dict[str, Any], Plan], Awaitable[Step]]
    stoppable: bool = True
    begun: (
        Callable[[Context, dict[str, Any], dict[str, Any]], AbstractAsyncContextManager[Planner]]
        | None
    ) = None


def part(order: Mapping[str, Any], checkpoint: Mapping[str, Any], most: int) -> list[int]:
    """The ids of an order whose turn it is, so many at most."""
    at = checkpoint.get("at", 0)
    return list(order["ids"][at : at + most])


def past(
    ids: Sequence[int], order: Mapping[str, Any], checkpoint: Mapping[str, Any], done: int
) -> Step:
    """A unit that has come past these ids of an order."""
    at = checkpoint.get("at", 0) + len(ids)
    return Step({"at": at}, done, more=at < len(order["ids"]))


async def queue(
    ctx: Context,
    session: AsyncSession,
    kind: str,
    orders: Iterable[Mapping[str, Any]],
    **columns: Any,
) -> list[Task]:
    """Store a task for each order, in this order; who does so records them too.

    They are the account's whose `user_id` is given, or else nobody's, asked for by the viewer.
    """
    if not columns.get("user_id"):
        columns["actor_id"] = ctx.viewer.user_id or None
    tasks = [
        Task(
            id=ctx.world.key(),
            kind=kind,
            order={**order, "origin": ctx.origin, "reason": ctx.reason},
            created_at=ctx.world.now(),
            **columns,
        )
        for order in orders
    ]
    session.add_all(tasks)
    await session.flush()
    ring(session, TASKS)
    return tasks
