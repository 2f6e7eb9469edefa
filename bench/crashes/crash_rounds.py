"""Kill a server repeatedly under LMTP load, while the client retries."""

import asyncio
import hashlib
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from bench.load.lmtp_client import SENDER, Neighbour, connected
from bench.load.message_generator import Writer
from bench.load.sample_account import TAKER
from bench.servers.merganser_process import Server, stop

CONNECTIONS = 8
TRIES = 100  # of one message
WAIT = 0.02  # seconds
GRACE = 3.0  # seconds for the child processes of a dead server to exit
ROUND = 120.0  # seconds
SIZES = (800, 3_000, 20_000)  # bytes, in rotation
FILES = {  # interval of messages: bytes of an incompressible attachment
    5: 40_000,  # an object of its own in the blob store
    11: 400_000,
    29: 1_500_000,  # received into a file, and read by another process
}
SHARED = 7  # every seventh message has the same attachment


@dataclass(frozen=True, slots=True)
class Death:
    """When a round ends: at the n-th passing of a fault point, or by a kill after n messages."""

    place: str
    nth: int

    @property
    def fault(self) -> str:
        """The setting for the server; empty if the client kills it."""
        return "" if self.place == "outside" else f"{self.place}:{self.nth}"


@dataclass
class Ledger:
    """The messages sent, and those accepted with 250, by subject."""

    sent: dict[str, str] = field(default_factory=dict)  # SHA-256 of the bytes, hex
    answered: Counter[str] = field(default_factory=Counter)
    waiting: list[str] = field(default_factory=list)  # oldest first
    tried: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a restarted server had stored before anything was sent again."""

    waiting: int  # messages without a reply
    stored: int  # of these: only the reply was lost
    lost: Sequence[str]  # accepted messages that are missing
    double: Sequence[str]  # messages stored twice

    @property
    def whole(self) -> bool:
        """True if each accepted message is stored once."""
        return not self.lost and not self.double


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the server."""

    seen: Seen
    answered: int
    code: int  # the server's exit code
    orphans: bool  # child processes survived the server and were killed
    death: Death | None = None  # None: stopped by SIGTERM

    @property
    def as_planned(self) -> bool:
        """True if the server ended as planned."""
        return self.code == (-signal.SIGKILL if self.death else 0)


@dataclass
class Post:
    """The messages of one soak. The same number always gives the same bytes."""

    seed: int
    writer: Writer = field(init=False)
    shared: bytes = field(init=False)
    written: dict[str, bytes] = field(default_factory=dict)  # by subject

    def __post_init__(self) -> None:
        self.writer = Writer(self.seed)
        self.shared = self._file(0, 60_000)

    def envelope(self, mark: str) -> tuple[str, str]:
        """Return sender and recipient of a message."""
        return SENDER, TAKER

    def _file(self, number: int, size: int) -> bytes:
        return Random(f"{self.seed}.{number}").randbytes(size)  # noqa: S311 - no secret

    def next(self, ledger: Ledger) -> str:
        """Generate the next message, and return its subject."""
        number = len(ledger.sent)
        attached = b""
        for every, size in FILES.items():
            if number % every == every - 1:
                attached = self._file(number, size)
        if number % SHARED == SHARED - 1:
            attached = self.shared
        mark = f"Soak {self.seed}-{number}"
        size = SIZES[number % len(SIZES)]
        raw = self.writer.letter(number, size=size, subject=mark, attached=attached)
        raw += b".a line that begins with a dot\r\n..and one with two\r\n"
        self.written[mark] = raw
        ledger.sent[mark] = hashlib.sha256(raw).hexdigest()
        return mark


async def killed(server: Server, post: Post, ledger: Ledger, death: Death) -> Round:
    """Load a server until it is killed.

    Unanswered messages wait in the ledger for the next round.
    """
    process = await server.start(fault=death.fault)
    try:
        seen, before = _look(server, ledger), ledger.answered.total()
        last = before + death.nth if death.place == "outside" else None
        load = Load(post, ledger, process, last)
        async with asyncio.timeout(ROUND):
            await asyncio.gather(*(_work(server.lmtp, load) for _ in range(CONNECTIONS)))
            code = await process.wait()
    finally:
        orphans = await buried(process)
    return Round(seen, ledger.answered.total() - before, code, orphans, death)


async def drained(
    server: Server,
    post: Post,
    ledger: Ledger,
    quiet: Callable[[], Awaitable[None]] | None = None,
) -> Round:
    """Deliver the rest to a server that is not killed, and stop it by SIGTERM.

    If `wait_until_idle` is given, it is awaited before the stop.
    """
    process = await server.start()
    try:
        seen, before = _look(server, ledger), ledger.answered.total()
        load, neighbour = Load(post, ledger, process), await connected(server.lmtp)
        async with asyncio.timeout(ROUND):
            while ledger.waiting:
                await _one(neighbour, load, ledger.waiting.pop(0))
        await neighbour.close()
        if quiet:
            await quiet()
        code = await stop(process)
    finally:
        orphans = await buried(process)
    return Round(seen, ledger.answered.total() - before, code, orphans)


@dataclass(frozen=True, slots=True)
class Load:
    """What the connections of a round share."""

    post: Post
    ledger: Ledger
    process: asyncio.subprocess.Process
    last: int | None = None  # number over all rounds


async def _work(port: int, load: Load) -> None:
    """Deliver over one connection until it breaks."""
    waiting = load.ledger.waiting
    with suppress(OSError):
        neighbour = await connected(port)
        try:
            while True:
                mark = waiting.pop(0) if waiting else load.post.next(load.ledger)
                await _one(neighbour, load, mark)
        finally:
            await neighbour.close()


async def _one(neighbour: Neighbour, load: Load, mark: str) -> None:
    """Deliver a message. Without the reply 250 it waits to be sent again.

    Raises RuntimeError after too many attempts.
    """
    ledger, taken = load.ledger, False
    ledger.tried[mark] += 1
    if ledger.tried[mark] > TRIES:
        raise RuntimeError(f"{mark} was refused too often")
    try:
        sender, to = load.post.envelope(mark)
        reply = await neighbour.deliver(to, load.post.written[mark], sender)
        taken = reply.startswith("250")
        if not taken:
            await asyncio.sleep(WAIT)
    finally:
        if not taken:
            ledger.waiting.append(mark)
    if taken:
        ledger.answered[mark] += 1
        del load.post.written[mark]
        if load.last is not None and ledger.answered.total() == load.last:
            load.process.kill()


def _look(server: Server, ledger: Ledger) -> Seen:
    """Compare the database of a server with the ledger."""
    there = stored(server)
    return Seen(
        waiting=len(ledger.waiting),
        stored=sum(there[mark] > 0 for mark in ledger.waiting),
        lost=[mark for mark in ledger.answered if not there[mark]],
        double=[mark for mark, times in there.items() if times > 1],
    )


def stored(server: Server) -> Counter[str]:
    """Count the stored messages by subject, read from the database file."""
    db = sqlite3.connect(f"file:{server.folder / 'merganser.db'}?mode=ro", uri=True)
    try:
        return Counter(subject for (subject,) in db.execute("SELECT subject FROM messages"))
    finally:
        db.close()


async def buried(process: asyncio.subprocess.Process) -> bool:
    """Kill a server and its process group. Returns True if child processes survived."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    for _ in range(int(GRACE / 0.1)):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        await asyncio.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return True
