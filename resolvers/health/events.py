"""Changes of the states of components, for the subscription `health`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from weakref import WeakKeyDictionary

from models.runtime.components import ComponentRegistry, ComponentState
from models.runtime.environment import Environment
from resolvers.cluster.process_requests import ask_all_processes
from resolvers.context import Context
from resolvers.health.loaders import (
    LIST_COMPONENTS,
    READ_RULE,
    ComponentRow,
    rows_from_answers,
)

log = logging.getLogger(__name__)

POLL_SECONDS = 0.8  # between two looks, each of which takes some time, too
MAX_WAITING = 1000  # changes of one subscriber; a slower one misses the oldest

Snapshot = Mapping[tuple[str, int, str], ComponentRow]  # by node, process id and name


class ComponentWatcher:
    """Asks all processes for their components while there are subscribers, and reports changes."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._queues: set[asyncio.Queue[ComponentRow]] = set()
        self._task: asyncio.Task[None] | None = None

    async def follow_changes(self) -> AsyncIterator[ComponentRow]:
        """Yield components whose state has changed since the start."""
        queue: asyncio.Queue[ComponentRow] = asyncio.Queue(MAX_WAITING)
        self._queues.add(queue)
        if self._task is None:
            self._task = asyncio.create_task(self._watch_until_cancelled())
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
            if not self._queues and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _watch_until_cancelled(self) -> None:
        previous: Snapshot | None = None
        while True:
            try:
                previous = await self._report_changes_and_return_snapshot(previous)
            except Exception:  # in a database outage: the next look repeats it
                log.exception("Could not read the components")
            await asyncio.sleep(POLL_SECONDS)

    async def _report_changes_and_return_snapshot(self, previous: Snapshot | None) -> Snapshot:
        answers = await ask_all_processes(self._environment, LIST_COMPONENTS, {})
        current = {(row.node, row.pid, row.name): row for row in rows_from_answers(answers)}
        if previous is None:
            return current
        for key, row in previous.items():  # a process that does not answer keeps its components
            if key[0] in answers.unresponsive_nodes:
                current.setdefault(key, row)
        for row in changed_rows(previous, current, self._environment):
            for queue in self._queues:
                if queue.full():
                    with suppress(asyncio.QueueEmpty):
                        queue.get_nowait()
                queue.put_nowait(row)
        return current


def changed_rows(
    previous: Snapshot, current: Snapshot, environment: Environment
) -> Sequence[ComponentRow]:
    """Return the components with another state, those that are new, and those that have ended."""
    changed = [
        row
        for key, row in current.items()
        if key not in previous
        or (row.state, row.state_changed_at)
        != (previous[key].state, previous[key].state_changed_at)
    ]
    ended = [
        replace(
            row,
            state=ComponentState.STOPPED,
            state_changed_at=environment.now(),
            detail="The process has ended.",
        )
        for key, row in previous.items()
        if key not in current
    ]
    return [*ended, *changed]


_WATCHERS: WeakKeyDictionary[ComponentRegistry, ComponentWatcher] = WeakKeyDictionary()


async def follow_component_changes(ctx: Context) -> AsyncIterator[ComponentRow]:
    """Yield each component of any node whose state changes, within about a second.

    All subscribers of a process share one watcher. Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    registry = ctx.environment.components
    watcher = _WATCHERS.get(registry)
    if watcher is None:
        watcher = _WATCHERS[registry] = ComponentWatcher(ctx.environment)
    async for row in watcher.follow_changes():
        yield row
