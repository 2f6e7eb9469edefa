"""Shared subscriptions: one journal reader, one execution and one JSON text for a group.

The subscribers of a group have the same document, operation and variables, and their viewers are
the same user with the same rights. Results only depend on the user and the rights: the context
has no credential, session or address, even while a subscriber reads alone.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Coroutine, Hashable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Protocol

from strawberry.http.exceptions import WebSocketDisconnected

from graph.execution.documents.document_cache import Known
from graph.execution.operation_execution import Operation
from graph.execution.telemetry import Observed
from graph.http.graphql_request import Question
from graph.subscriptions import result_stream
from graph.subscriptions.result_queue import Outbox
from graph.subscriptions.result_stream import Runner, Sharing, Told
from graph.subscriptions.sse import Watch
from models.events.journal import Position
from models.store.outages import StoreUnavailable
from resolvers.context import Context, Trail

log = logging.getLogger(__name__)

TURN = 50  # then other tasks run
SHORT = 1.0  # seconds: a new subscriber can wait for the end of such a batch window
SLOW = 1.0  # after a slower delivery the subscriber reads again from its position
ADDRESSED = "host", "x-forwarded-proto"  # URLs in results depend on them


class Sink(Protocol):
    """The destination of the results of one subscription."""

    async def send(self, told: Told | None) -> None:
        """Send a result, None for the end; returns when the client has accepted it.

        Raises WebSocketDisconnected if the client is gone.
        """


class Groups:
    """The subscription groups of one endpoint, and the tasks that read for them."""

    def __init__(self, schema: Runner, watch: Watch) -> None:
        self.schema = schema
        self.watch = watch
        self.groups: dict[Hashable, Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task that `cancel_tasks` can end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """Cancel all reading tasks and wait until they have ended."""
        if tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def meet(self, seat: "Seat", at: Position) -> bool:
        """Join the subscriber's group if the group is at its positions; create a missing group.

        Returns False if the subscriber must read alone until it has caught up.
        """
        key = seat.key
        if key is None:
            return False
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(self, key, seat.asked, seat.context, at)
        if group.position != at:
            group.waiting.add(seat)
            return False
        group.add(seat)
        return True

    async def find(self, seat: "Seat") -> bool:
        """Check and prepare a subscription; return True if the subscriber joined a group."""
        how = self._known(seat)
        if how is None:
            return False
        after = how.after
        if seat.trail and seat.trail.since is not None:
            after = seat.since = seat.trail.since
        group = self.groups.get(seat.key)
        if group and how.window <= SHORT:
            if after is None:
                seat.tell_beginning(group.position)
            return self.meet(seat, group.position if after is None else after)
        try:
            now = await how.standing(seat.context)
        except Exception:  # noqa: BLE001 - the subscriber's own stream reports the error
            return False
        if after is None:
            seat.at = now
            seat.tell_beginning(now)
        if after not in (None, now):
            return False
        group = self.groups.get(seat.key)
        if group and how.window > SHORT:  # the group's window can take long: don't wait for it
            group.waiting.add(seat)
            return False
        return self.meet(seat, now)

    def _known(self, seat: "Seat") -> Sharing | None:
        """Return how a subscription can be shared, and set the subscriber's sharing key.

        Returns None if it can't be shared or will be refused.
        """
        known = result_stream.subscribed(self.schema, seat.asked, seat.context)
        if known is None:
            return None
        seat.observe(known)
        opened = result_stream.begun(self.schema, known, seat.asked, seat.context)
        if isinstance(opened, list):
            return None
        if isinstance(seat.context, Operation):
            seat.context = replace(seat.context, paid=True)
        if not seat.context.viewer.user_id:
            return None
        how = result_stream.sharing(opened, seat.asked)
        if how:
            seat.context = neutral(seat.context)
            seat.key = (
                seat.asked.query,
                seat.asked.operation_name,
                how.variables,
                seat.context.viewer,
                seat.context.viewer.auth_version,
                tuple(_headers(seat.context).items()),
            )
        return how


def neutral(context: Context) -> Context:
    """Return the context of a group: without credential, session and address of the viewer.

    URLs that are signed with it end with an event that ends all credentials, as a new password.
    """
    viewer = replace(context.viewer, token_id=None, api_key_id=None, ends_at=None)
    made = replace(
        context,
        viewer=viewer,
        connection_params=None,
        client_ip=None,
        session_id=None,
        trail=None,
    )
    if isinstance(made, Operation):
        return replace(
            made,
            headers=_headers(made),
            observed=None,
            presence=None,
            seat=None,
            reader=None,
            live=None,
        )
    return made


def _from(context: Context, at: Position) -> Context:
    """Return the same context for a stream that starts after these positions."""
    return replace(context, trail=Trail(lambda _position: None, at))


def _headers(context: Context) -> dict[str, str]:
    headers = context.headers if isinstance(context, Operation) else {}
    return {name: headers[name] for name in ADDRESSED if name in headers}


class Group:
    """The members of one group, their common position and the task that reads for them."""

    def __init__(
        self, groups: Groups, key: Hashable, asked: Question, context: Context, at: Position
    ) -> None:
        self.groups = groups
        self.key = key
        self.asked = asked
        self.context = context
        self.position = at
        self.members: set[Seat] = set()
        self.waiting: set[Seat] = set()  # they read alone until they reach the group's position
        guarded = replace(_from(context, at), vigil=self._judge)
        self._task = groups.begin(self._run(guarded))

    def add(self, seat: "Seat") -> None:
        """Add a subscriber that has received the same results as the group."""
        self.waiting.discard(seat)
        self.members.add(seat)
        seat.group, seat.at = self, self.position
        # shared objects save memory
        seat.key, seat.asked, seat.context = self.key, self.asked, self.context

    def remove(self, seat: "Seat") -> None:
        """Remove a subscriber. A group without members ends."""
        self.waiting.discard(seat)
        self.members.discard(seat)
        if not self.members:
            self._task.cancel()
            self._forget()

    async def _judge(self) -> None:
        await self.groups.watch.judge({seat.viewer for seat in self.members})

    def _forget(self) -> None:
        if self.groups.groups.get(self.key) is self:
            del self.groups.groups[self.key]

    async def _run(self, context: Context) -> None:
        try:
            async with aclosing(
                result_stream.stream(self.groups.schema, self.asked, context)
            ) as results:
                async for told in results:
                    await self._tell(told)
            await self._tell(None)
        except Exception:  # the edge of a task: each member reads alone
            log.exception("a group broke")
            for seat in list(self.members):
                seat.key = None
                seat.resume()
        finally:
            self._forget()

    async def _tell(self, told: Told | None) -> None:
        if told and told.cursor is not None:
            self.position = told.cursor
        ended = False
        for turn, seat in enumerate(list(self.members)):
            if seat not in self.members:  # it left in the meantime
                continue
            if self.groups.watch.expired(seat.viewer):
                ended = True
            else:
                seat.outbox.put(seat, told)
            if turn % TURN == TURN - 1:
                await asyncio.sleep(0)
        if ended:
            self.groups.watch.dismiss()
        for seat in list(self.waiting):
            if self.members and seat.at == self.position and not seat.busy:
                seat.stop()
                self.add(seat)


class Seat:
    """One subscription of one connection. It reads alone while it catches up, then in a group.

    `delivered_positions` are the positions after the last delivered result. Results that were
    dropped later are read again from there.
    """

    __slots__ = (
        "__weakref__", "asked", "at", "busy", "context", "group", "groups", "key", "left",
        "observed", "outbox", "since", "sink", "task", "trail", "viewer",
    )  # fmt: skip

    def __init__(
        self, groups: Groups, asked: Question, context: Context, outbox: "Outbox[Seat]", sink: Sink
    ) -> None:
        self.groups = groups
        self.asked = asked
        self.context = context
        self.viewer = context.viewer
        self.trail = context.trail
        self.observed: Observed | None = None
        self.outbox = outbox
        self.sink = sink
        self.key: Hashable = None  # of its group; None if it can't be shared
        self.group: Group | None = None
        self.since: Position | None = None  # from Last-Event-ID
        self.at: Position | None = None
        self.busy = False
        self.left = False
        self.task: asyncio.Task[None] | None = None

    def observe(self, known: Known) -> None:
        """Start to measure and log the subscription."""
        self.observed = observed = Observed(self.context, self.asked.query)
        observed.judged(known)
        observed.cost = known.cost(self.asked.variables)
        observed.begin()

    def tell_beginning(self, position: Position) -> None:
        """Report the start position, so that a client without results can resume there."""
        if self.trail:
            self.trail.begun(position)

    def start(self) -> None:
        """Start the subscription in a task."""
        self.task = self.groups.begin(self._begin())

    def resume(self) -> None:
        """Read alone from the position after the last delivered result."""
        self._leave_group()
        if not self.left:
            self.task = self.groups.begin(self._read())

    def fall(self) -> None:
        """Leave the group, since the connection is slower than the group."""
        self._leave_group()

    def stop(self) -> None:
        """Cancel the task in which the subscriber reads alone."""
        if self.task:
            self.task.cancel()
            self.task = None

    def leave(self) -> None:
        """End the subscription."""
        self.left = True
        self.stop()
        self._leave_group()
        self._close()

    def _close(self) -> None:
        observed, self.observed = self.observed, None
        if observed:
            observed.end()

    def _leave_group(self) -> None:
        group, self.group = self.group, None
        if group is None and self.key is not None:
            group = self.groups.groups.get(self.key)
            if group:
                group.waiting.discard(self)
        elif group:
            group.remove(self)

    async def deliver(self, told: Told | None) -> None:
        """Send a result to the client, unless the subscription has ended."""
        if self.left:
            return
        await self.sink.send(told)
        if told is None:
            self._close()
            return
        if self.observed:
            self.observed.passed(told.result)
        if told.cursor is not None:
            self.at = told.cursor

    async def _begin(self) -> None:
        try:
            found = await self.groups.find(self)
        except Exception:  # the edge of a task
            log.exception("a subscription broke at its beginning")
            found = False
        if not found:
            await self._read()
        elif not self.left:
            self.task = None

    async def _read(self) -> None:
        try:
            while not await self._alone():
                pass
        except WebSocketDisconnected:
            self.left = True
        except Exception:  # the edge of a task: a bug ends one stream, and is logged once
            log.exception("a stream broke")
            self._leave_group()
            with suppress(Exception):
                await self.sink.send(None)

    async def _judge(self) -> None:
        await self.groups.watch.judge({self.viewer})

    async def _alone(self) -> bool:
        """Read until the end or until a group is joined; False if reading must start again."""
        at = self.since if self.at is None else self.at
        context = self.context if at is None else _from(self.context, at)
        context = replace(context, vigil=self._judge)
        try:
            return await self._read_from(context)
        except StoreUnavailable as failure:
            if self.at is None and self.since is None:  # it has no position to resume from
                await self.deliver(result_stream.farewell(self.groups.schema, failure, context))
            else:
                pause = failure.retry_after.total_seconds()
                await asyncio.sleep(random.uniform(pause / 5, pause))  # noqa: S311 - spreads load
                return False
        self._leave_group()
        await self.deliver(None)
        return True

    async def _read_from(self, context: Context) -> bool:
        """Read results with a context; return True at the end or when a group is joined."""
        clock = asyncio.get_running_loop().time
        async with aclosing(
            result_stream.stream(self.groups.schema, self.asked, context)
        ) as results:
            async for told in results:
                if self.groups.watch.expired(self.viewer):
                    self.groups.watch.dismiss()
                    return True
                began, self.busy = clock(), True
                await self.deliver(told)
                await asyncio.sleep(0)  # a source that never waits would block other tasks
                self.busy = False
                if (
                    told.cursor is not None
                    and not told.more
                    and self.groups.meet(self, told.cursor)
                ):
                    self.task = None
                    return True
                if told.cursor is not None and clock() - began > SLOW:
                    return False
        self._leave_group()
        await self.deliver(None)
        return True


class Handing(asyncio.Queue[Told | None]):
    """A sink for a reader that pulls results one by one."""

    async def send(self, told: Told | None) -> None:
        """Pass a result to the reader; returns when the reader asks for the next one."""
        await self.put(told)
        await self.join()


async def pulled(groups: Groups, asked: Question, context: Context) -> AsyncGenerator[Told]:
    """Yield the results of an operation; the next is read when the reader asks for it."""
    outbox, sink = Outbox[Seat](), Handing(1)
    seat = Seat(groups, asked, context, outbox, sink)
    seat.start()
    try:
        while (told := await sink.get()) is not None:
            yield told
            sink.task_done()
    finally:
        seat.leave()
        outbox.close()
