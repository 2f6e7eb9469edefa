"""Subscriptions that are shared: one reader of the journal, one execution and one text for all.

Shared are those of the same document, operation and variables by viewers of the same account
with the same rights. What they are shown is made for the account and its rights alone: nothing
of the single credential, session or address is in their context, also while they read alone.
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

TURN = 50  # members that are told before others have their turn
SHORT = 1.0  # seconds: a newcomer may wait for the end of such a window
SLOW = 1.0  # seconds: who took a batch no faster looks again how far it is behind
ADDRESSED = "host", "x-forwarded-proto"  # the headers that answers depend on


class Sink(Protocol):
    """Where the results of one subscription go."""

    async def send(self, told: Told | None) -> None:
        """Hand on a result, None for the end; returns once it was taken.

        Raises WebSocketDisconnected where nobody is there any more.
        """


class Groups:
    """The groups of one endpoint, whose `watch` knows whose credential has ended."""

    def __init__(self, schema: Runner, watch: Watch) -> None:
        self.schema = schema
        self.watch = watch
        self.groups: dict[Hashable, Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Read for somebody, in a task of its own."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """End what still reads, and wait for it: no event is under way any more."""
        if tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def meet(self, seat: "Seat", at: Position) -> bool:
        """Sit down in the group of one's kind, if it stands where the seat does; make one."""
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
        """Find out with whom the seat may share; says whether it sits in a group already."""
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
        except Exception:  # noqa: BLE001 - the stream itself will say what is wrong
            return False
        if after is None:
            seat.at = now
            seat.tell_beginning(now)
        if after not in (None, now):
            return False
        group = self.groups.get(seat.key)
        if group and how.window > SHORT:  # its window may run for long yet: ours has not begun
            group.waiting.add(seat)
            return False
        return self.meet(seat, now)

    def _known(self, seat: "Seat") -> Sharing | None:
        """How a seat may share, and with whom; None where it may not, or will be refused."""
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
    """The context of all who share: the same for every credential of an account and its rights.

    Addresses that are signed in it end with what ends all of these: a new password, say.
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
    """The same context for a stream that goes on from there, whatever it was asked for."""
    return replace(context, trail=Trail(lambda _position: None, at))


def _headers(context: Context) -> dict[str, str]:
    headers = context.headers if isinstance(context, Operation) else {}
    return {name: headers[name] for name in ADDRESSED if name in headers}


class Group:
    """The members, what all of them have been told, and the one who reads for them."""

    def __init__(
        self, groups: Groups, key: Hashable, asked: Question, context: Context, at: Position
    ) -> None:
        self.groups = groups
        self.key = key
        self.asked = asked
        self.context = context
        self.position = at
        self.members: set[Seat] = set()
        self.waiting: set[Seat] = set()  # they read alone, and sit down where we meet
        guarded = replace(_from(context, at), vigil=self._judge)
        self._task = groups.begin(self._run(guarded))

    def add(self, seat: "Seat") -> None:
        """Let somebody sit down who has been told what we have."""
        self.waiting.discard(seat)
        self.members.add(seat)
        seat.group, seat.at = self, self.position
        seat.key, seat.asked, seat.context = self.key, self.asked, self.context  # one of each

    def remove(self, seat: "Seat") -> None:
        """Let somebody go. Without members there is no group."""
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
        except Exception:  # the edge of a task: each of its members tries alone
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
            if seat not in self.members:  # it left while others were told
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
    """One subscription of one connection: alone while it catches up, then in a group.

    `at` is the position after the last result that was taken; whatever was dropped later is
    read again from there.
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
        self.key: Hashable = None  # of those with whom it may share
        self.group: Group | None = None
        self.since: Position | None = None  # what the peer heard last, beside the document
        self.at: Position | None = None
        self.busy = False  # a result is on its way
        self.left = False
        self.task: asyncio.Task[None] | None = None

    def observe(self, known: Known) -> None:
        """Tell of the subscription as of other operations, until it ends."""
        self.observed = observed = Observed(self.context, self.asked.query)
        observed.judged(known)
        observed.cost = known.cost(self.asked.variables)
        observed.begin()

    def tell_beginning(self, position: Position) -> None:
        """Tell where it begins, where nobody said so: who is cut off soon misses nothing."""
        if self.trail:
            self.trail.begun(position)

    def start(self) -> None:
        """Begin."""
        self.task = self.groups.begin(self._begin())

    def resume(self) -> None:
        """Read alone, behind what was taken last."""
        self._leave_group()
        if not self.left:
            self.task = self.groups.begin(self._read())

    def fall(self) -> None:
        """Leave the group: the connection is slower than it."""
        self._leave_group()

    def stop(self) -> None:
        """Read no more alone."""
        if self.task:
            self.task.cancel()
            self.task = None

    def leave(self) -> None:
        """Hear no more."""
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
        """Hand a result on; nothing of it comes where the seat was left meanwhile."""
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
        """Read until the end, or until we sit in a group; False where it is to begin anew."""
        at = self.since if self.at is None else self.at
        context = self.context if at is None else _from(self.context, at)
        context = replace(context, vigil=self._judge)
        try:
            return await self._read_from(context)
        except StoreUnavailable as failure:
            if self.at is None and self.since is None:  # what it would miss is unknown
                await self.deliver(result_stream.farewell(self.groups.schema, failure, context))
            else:
                pause = failure.retry_after.total_seconds()
                await asyncio.sleep(random.uniform(pause / 5, pause))  # noqa: S311 - spreads load
                return False
        self._leave_group()
        await self.deliver(None)
        return True

    async def _read_from(self, context: Context) -> bool:
        """Read with this context, as `_alone` does."""
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
                await asyncio.sleep(0)  # a source that is never idle would let nobody else run
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
    """A sink for somebody who pulls."""

    async def send(self, told: Told | None) -> None:
        """Wait until the next is asked for."""
        await self.put(told)
        await self.join()


async def pulled(groups: Groups, asked: Question, context: Context) -> AsyncGenerator[Told]:
    """The results of an operation, for a reader who asks for each of them."""
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
