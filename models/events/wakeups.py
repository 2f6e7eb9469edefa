"""Wake-ups: hints for followers that streams have grown. They have no content, and can be lost."""

import asyncio
import contextlib
import logging
import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager

from models.events.bus import Bus

log = logging.getLogger(__name__)

PAUSE = 0.005  # seconds between two messages of a process; wake-ups of that time share one message
LONGEST = 4000  # PostgreSQL allows 8,000
PATIENCE = 2.0  # seconds after which a bus counts as disconnected
AGAIN = 0.25  # seconds until the next try; it doubles each time
SELDOM = 5.0  # seconds

Recalled = Callable[[int | None], None]

# Ids of workers, which are woken when there is work for them.
WEBHOOKS, TASKS, UNINDEXED, PUSHES = -1, -2, -3, -4
LESSONS = -5
CONNECTORS = -6
CERTIFICATES = -7
QUEUE = -8
GATHERED = frozenset({WEBHOOKS, PUSHES})  # these workers follow all streams


class Gathering(asyncio.Event):
    """An event that remembers which streams have grown since they were last taken."""

    def __init__(self) -> None:
        super().__init__()
        self._grown: dict[int, int] = {}

    def rung(self, stream: int, last: int) -> None:
        """Set the event, and remember the last position of a stream."""
        self._grown[stream] = max(last, self._grown.get(stream, 0))
        self.set()

    def taken(self) -> set[int]:
        """Clear the event, and return the streams that have grown."""
        return set(self.numbers())

    def numbers(self) -> dict[int, int]:
        """Clear the event, and return the last position of each stream that has grown."""
        self.clear()
        grown, self._grown = self._grown, {}
        return grown


class Wakeups:
    """Wakes the followers of streams in this process. Negative ids are those of workers."""

    dead = False  # wake-ups of other processes do not arrive now
    shared = False  # other processes may use the same database

    def __init__(self) -> None:
        self._bells: defaultdict[int, set[asyncio.Event]] = defaultdict(set)
        self._rung: dict[int, int] = {}
        self._gathering: set[Gathering] = set()
        self._wardens: list[Recalled] = []

    @property
    def followed(self) -> list[int]:
        """The streams that have followers."""
        return list(self._bells)

    @contextmanager
    def listen(
        self, streams: Iterable[int], bell: asyncio.Event | None = None
    ) -> Generator[asyncio.Event]:
        """Set an event, by default a new one, whenever one of these streams grows."""
        streams, bell = list(streams), bell or asyncio.Event()
        for stream in streams:
            self._bells[stream].add(bell)
        try:
            yield bell
        finally:
            for stream in streams:
                self._bells[stream].discard(bell)
                if not self._bells[stream]:
                    del self._bells[stream]
                    self._rung.pop(stream, None)

    @contextmanager
    def gather(self) -> Generator[Gathering]:
        """Return an event for all streams, and for changes of webhooks and push channels."""
        bell = Gathering()
        self._gathering.add(bell)
        try:
            yield bell
        finally:
            self._gathering.discard(bell)

    def ring(self, stream: int, last: int) -> None:
        """Wake the followers in this process, unless they were woken for this position before."""
        if stream >= 0 or stream in GATHERED:
            for gathering in self._gathering:
                gathering.rung(stream, last)
        if stream in self._bells and (stream < 0 or last > self._rung.get(stream, 0)):
            self._rung[stream] = last
            for bell in self._bells[stream]:
                bell.set()

    def tell(self, reached: Mapping[int, int]) -> None:
        """Wake the followers of these streams, in all processes."""
        for stream, last in reached.items():
            self.ring(stream, last)

    def guard(self, warden: Recalled) -> None:
        """Call `listener` with the user id when credentials of a user must be checked again.

        The id is 0 for credentials without a user, and None for all credentials.
        """
        self._wardens.append(warden)

    def recall(self, accounts: Collection[int | None]) -> None:
        """Call the credentials listeners for these users, in all processes."""
        for account in accounts:
            self.recalled(account)

    def recalled(self, account: int | None) -> None:
        """Call the credentials listeners in this process."""
        for warden in self._wardens:
            warden(account)

    def rouse(self) -> None:
        """Wake all workers."""
        for bell in set().union(*(self._bells[key] for key in self._bells if key < 0)):
            bell.set()

    async def hear(self, joined: Callable[[], None]) -> None:
        """Receive wake-ups of other processes until cancelled.

        `on_connected` is called whenever that begins, also after a reconnect.
        """
        joined()
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Send the remaining wake-ups."""


class Shared(Wakeups):
    """Wakes followers in all processes on an event bus.

    Wake-ups that arise while a message is being sent share the next message, so there are few
    messages for any number of transactions. A message that the bus refuses is lost; followers also
    read from time to time.
    """

    shared = True

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self._bus = bus
        self._name = secrets.token_hex(8)  # to ignore the messages of this process
        self._waiting: dict[int, int] = {}
        self._recalls: dict[int | None, None] = {}
        self._sending: asyncio.Task[None] | None = None
        self._retry = 0.0  # time of the loop, before which nothing is sent
        self._pause = AGAIN
        self._told = False

    def tell(self, reached: Mapping[int, int]) -> None:
        """Wake the followers in this process, and send the positions to other processes."""
        super().tell(reached)
        if reached:
            self._waiting.update(reached)
            self._send()

    def recall(self, accounts: Collection[int | None]) -> None:
        """Call the credentials listeners of this process and of other processes."""
        super().recall(accounts)
        if accounts:
            self._recalls.update(dict.fromkeys(accounts))
            self._send()

    def _send(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting or self._recalls:
            told, self._waiting = self._waiting, {}
            recalls, self._recalls = self._recalls, {}
            lines = [f"!{'' if account is None else account}" for account in recalls]
            lines += [f"{stream} {last}" for stream, last in told.items()]
            if asyncio.get_running_loop().time() < self._retry:
                return  # disconnected; followers find the changes when they read
            try:
                for message in _messages(self._name, lines):
                    await self._deliver(message)
            except Exception as problem:  # noqa: BLE001 - no event depends on the bus
                self._trouble(problem)
                self._retry = asyncio.get_running_loop().time() + self._next_pause()
                return
            self._well()
            await asyncio.sleep(PAUSE)

    async def _deliver(self, message: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._bus.send(message)
        except Exception:  # the connection may be older than an outage of the bus
            if self.dead:
                raise
            async with asyncio.timeout(PATIENCE):
                await self._bus.send(message)

    def _trouble(self, problem: BaseException | None) -> None:
        """Log a failure once until the bus works again."""
        if not self._told:
            reason = type(problem).__name__ if problem else "it was closed"
            facts = {"bus": self._bus.name, "problem": reason}
            log.warning("wake-ups are not passed on, changes are looked for", extra=facts)
        self._told = True

    def _well(self) -> None:
        if self._told and not self.dead:
            log.info("wake-ups are passed on again", extra={"bus": self._bus.name})
            self._told = False
        self._retry, self._pause = 0.0, AGAIN

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, SELDOM)
        return pause * random.uniform(0.75, 1)  # noqa: S311 - so that not all come at once

    async def hear(self, joined: Callable[[], None]) -> None:
        """Receive wake-ups of other processes until cancelled; reconnect after each failure."""

        def note_connected() -> None:
            self.dead = False
            self._well()
            joined()

        while True:
            problem: Exception | None = None
            try:
                await self._bus.hear(self._heard, note_connected)
            except Exception as broken:  # noqa: BLE001 - no event depends on the bus
                problem = broken
            self.dead = True
            self._trouble(problem)
            await asyncio.sleep(self._next_pause())

    def _heard(self, message: str) -> None:
        name, *lines = message.split("\n")
        if name == self._name:
            return
        with contextlib.suppress(ValueError):  # of another version or program
            for line in lines:
                if line.startswith("!"):
                    self.recalled(int(line[1:]) if line[1:] else None)
                else:
                    stream, _, last = line.partition(" ")
                    self.ring(int(stream), int(last))

    async def close(self) -> None:
        """Send the remaining wake-ups, and close the bus."""
        if self._sending:
            await self._sending
        try:
            async with asyncio.timeout(PATIENCE):
                await self._bus.close()
        except Exception as problem:  # noqa: BLE001 - it is gone either way
            log.info("the bus was not left in peace", extra={"problem": type(problem).__name__})


def _messages(name: str, lines: list[str]) -> Iterator[str]:
    """Yield the lines as messages of limited length, each with the sender's name first."""
    message = name
    for line in lines:
        if len(message) + len(line) >= LONGEST:
            yield message
            message = name
        message += f"\n{line}"
    yield message


async def rest(events: Iterable[asyncio.Event], pause: float) -> None:
    """Wait for one of these events, or for the timeout."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(pause, 0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
