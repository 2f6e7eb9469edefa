"""Task kinds and their division into steps, one transaction each."""

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
    """What the next step of a task locks and works on."""

    streams: Sequence[int] = ()
    ids: Sequence[int] = ()
    made: Any = None  # computed before the transaction, since it takes long


@dataclass(slots=True)
class Step:
    """What one step has done, and the checkpoint of the next step."""

    checkpoint: dict[str, Any]
    done: int = 0
    more: bool = False
    total: int | None = None  # if this step determined it
    objects: Sequence[str] = ()  # of deleted uploads, to delete after the commit


Planner = Callable[[Context, dict[str, Any], dict[str, Any]], Awaitable[Plan]]


class Kind(NamedTuple):
    """How tasks of a kind are run: `plan` before each transaction, `step` in it.

    Both get the order and the checkpoint. `stoppable` says whether a task can be cancelled
    half-way. A kind that keeps something open between its steps has `begun`, a context manager
    that returns the planner.
    """

    plan: Planner
    step: Callable[[Context, AsyncSession, dict[str, Any], dict[str, Any], Plan], Awaitable[Step]]
    stoppable: bool = True
    begun: (
        Callable[[Context, dict[str, Any], dict[str, Any]], AbstractAsyncContextManager[Planner]]
        | None
    ) = None


def part(order: Mapping[str, Any], checkpoint: Mapping[str, Any], most: int) -> list[int]:
    """Return the next ids of an order, at most `limit`."""
    at = checkpoint.get("at", 0)
    return list(order["ids"][at : at + most])


def past(
    ids: Sequence[int], order: Mapping[str, Any], checkpoint: Mapping[str, Any], done: int
) -> Step:
    """Return the result of a step that has handled these ids of an order."""
    at = checkpoint.get("at", 0) + len(ids)
    return Step({"at": at}, done, more=at < len(order["ids"]))


async def queue(
    ctx: Context,
    session: AsyncSession,
    kind: str,
    orders: Iterable[Mapping[str, Any]],
    **columns: Any,
) -> list[Task]:
    """Insert a task for each order and wake the task workers; return them in this order.

    The caller records the journal entries. With `user_id` in the columns the tasks belong to
    that user. Otherwise they have no user, and the viewer is their actor.
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
