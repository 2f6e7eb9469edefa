"""Bells that tell readers of the journal to look. They carry no news, and may be lost."""

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

PAUSE = 0.005  # seconds between two messages of a process: what is told meanwhile is one message
LONGEST = 4000  # bytes of a message; PostgreSQL takes 8,000
PATIENCE = 2.0  # seconds in which a bus takes a message, or is dead
AGAIN = 0.25  # seconds until a dead bus is tried again; each time twice as long
SELDOM = 5.0  # seconds at most

Recalled = Callable[[int | None], None]

# Bells of those who work behind all streams: rung where there is something for them to do.
WEBHOOKS, TASKS, UNINDEXED, PUSHES = -1, -2, -3, -4
LESSONS = -5
CONNECTORS = -6
CERTIFICATES = -7
QUEUE = -8
GATHERED = frozenset({WEBHOOKS, PUSHES})  # of those who gather all that grows


class Gathering(asyncio.Event):
    """A bell that remembers which streams have grown since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self._grown: dict[int, int] = {}

    def rung(self, stream: int, last: int) -> None:
        """Ring for this stream, which has come to the number `last`."""
        self._grown[stream] = max(last, self._grown.get(stream, 0))
        self.set()

    def taken(self) -> set[int]:
        """Be silent again, and tell for which streams it rang."""
        return set(self.numbers())

    def numbers(self) -> dict[int, int]:
        """Be silent again, and return the highest number of each stream for which it rang."""
        self.clear()
        grown, self._grown = self._grown, {}
        return grown


class Wakeups:
    """In-process bells, one set per stream; below zero are those of workers."""

    dead = False  # whether we know that we do not hear what other processes do
    shared = False  # whether other processes may work on the same store

    def __init__(self) -> None:
        self._bells: defaultdict[int, set[asyncio.Event]] = defaultdict(set)
        self._rung: dict[int, int] = {}
        self._gathering: set[Gathering] = set()
        self._wardens: list[Recalled] = []

    @property
    def followed(self) -> list[int]:
        """The streams that somebody listens to."""
        return list(self._bells)

    @contextmanager
    def listen(
        self, streams: Iterable[int], bell: asyncio.Event | None = None
    ) -> Generator[asyncio.Event]:
        """A bell that rings whenever one of the streams grows; a new one, or this too."""
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
        """A bell that rings whatever stream grows, and where webhooks or push channels change."""
        bell = Gathering()
        self._gathering.add(bell)
        try:
            yield bell
        finally:
            self._gathering.discard(bell)

    def ring(self, stream: int, last: int) -> None:
        """Tell that `stream` has come to `last`; who was told before is not told again."""
        if stream >= 0 or stream in GATHERED:
            for gathering in self._gathering:
                gathering.rung(stream, last)
        if stream in self._bells and (stream < 0 or last > self._rung.get(stream, 0)):
            self._rung[stream] = last
            for bell in self._bells[stream]:
                bell.set()

    def tell(self, reached: Mapping[int, int]) -> None:
        """Ring for all these streams, here and wherever else the bells are heard."""
        for stream, last in reached.items():
            self.ring(stream, last)

    def guard(self, warden: Recalled) -> None:
        """Call `warden` for each account whose credentials are to be looked at again.

        0 stands for credentials of no account, None for all there are.
        """
        self._wardens.append(warden)

    def recall(self, accounts: Collection[int | None]) -> None:
        """Let credentials of these be looked at again, as `guard` has it, here and elsewhere."""
        for account in accounts:
            self.recalled(account)

    def recalled(self, account: int | None) -> None:
        """The same, here alone."""
        for warden in self._wardens:
            warden(account)

    def rouse(self) -> None:
        """Ring for those who work behind all streams, and whoever follows no row."""
        for bell in set().union(*(self._bells[key] for key in self._bells if key < 0)):
            bell.set()

    async def hear(self, joined: Callable[[], None]) -> None:
        """Hear other processes until cancelled; `joined` is called whenever that begins."""
        joined()
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Tell what is left to be told."""


class Shared(Wakeups):
    """Bells that are heard in all processes on a bus.

    What is told while a message is under way waits for the next: so they are few, however many
    units there are. A message that the bus does not take is lost; whoever misses it looks.
    """

    shared = True

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self._bus = bus
        self._name = secrets.token_hex(8)  # so that we do not hear ourselves
        self._waiting: dict[int, int] = {}
        self._recalls: dict[int | None, None] = {}
        self._sending: asyncio.Task[None] | None = None
        self._retry = 0.0  # of the loop's clock: until then nothing is sent
        self._pause = AGAIN
        self._told = False  # the log knows that there is trouble

    def tell(self, reached: Mapping[int, int]) -> None:
        """Ring here, and send the numbers to the other processes."""
        super().tell(reached)
        if reached:
            self._waiting.update(reached)
            self._send()

    def recall(self, accounts: Collection[int | None]) -> None:
        """Recall here, and in the other processes."""
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
                return  # it is dead, and what it would have told is found by looking
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
        except Exception:  # the connection may be an old one, of before the bus was away
            if self.dead:
                raise
            async with asyncio.timeout(PATIENCE):
                await self._bus.send(message)

    def _trouble(self, problem: BaseException | None) -> None:
        """Tell the log, once until all is well again."""
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
        """Hear other processes until cancelled; a bus that is dead is tried again and again."""

        def begun() -> None:
            self.dead = False
            self._well()
            joined()

        while True:
            problem: Exception | None = None
            try:
                await self._bus.hear(self._heard, begun)
            except Exception as broken:  # noqa: BLE001 - no event depends on the bus
                problem = broken
            self.dead = True
            self._trouble(problem)
            await asyncio.sleep(self._next_pause())

    def _heard(self, message: str) -> None:
        name, *lines = message.split("\n")
        if name == self._name:
            return
        with contextlib.suppress(ValueError):  # of another version, or of no process of ours
            for line in lines:
                if line.startswith("!"):
                    self.recalled(int(line[1:]) if line[1:] else None)
                else:
                    stream, _, last = line.partition(" ")
                    self.ring(int(stream), int(last))

    async def close(self) -> None:
        """Tell what is left to be told, and let go of the bus."""
        if self._sending:
            await self._sending
        try:
            async with asyncio.timeout(PATIENCE):
                await self._bus.close()
        except Exception as problem:  # noqa: BLE001 - it is gone either way
            log.info("the bus was not left in peace", extra={"problem": type(problem).__name__})


def _messages(name: str, lines: list[str]) -> Iterator[str]:
    """The lines as messages that are not too long, each below the name of who sends it."""
    message = name
    for line in lines:
        if len(message) + len(line) >= LONGEST:
            yield message
            message = name
        message += f"\n{line}"
    yield message


async def rest(events: Iterable[asyncio.Event], pause: float) -> None:
    """Wait for one of these, or for so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(pause, 0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
