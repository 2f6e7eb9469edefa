"""A server that is killed again and again under LMTP load, and a neighbour that tries again."""

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
TRIES = 100  # of one letter; then something is wrong with more than a crash
WAIT = 0.02  # seconds before a letter that was refused is sent again
GRACE = 3.0  # seconds that processes of a dead server have to notice
ROUND = 120.0  # seconds that a round may take
SIZES = (800, 3_000, 20_000)  # bytes of letters, in turn
FILES = {  # every so many letters have a file of so many bytes that cannot be compressed
    5: 40_000,  # an object of its own in the blob store
    11: 400_000,
    29: 1_500_000,  # received into a file, and read by another process
}
SHARED = 7  # every so many letters have the same file as others


@dataclass(frozen=True, slots=True)
class Death:
    """How a round ends: at the nth passing of a place, or by us at the nth letter answered."""

    place: str
    nth: int

    @property
    def fault(self) -> str:
        """What the server is told; nothing where we do it."""
        return "" if self.place == "outside" else f"{self.place}:{self.nth}"


@dataclass
class Ledger:
    """What was sent, and what was answered 250, by the mark in its subject."""

    sent: dict[str, str] = field(default_factory=dict)  # SHA-256 of the bytes, hex
    answered: Counter[str] = field(default_factory=Counter)
    waiting: list[str] = field(default_factory=list)  # not answered yet, the oldest first
    tried: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a restarted server had in its store before anything was sent again."""

    waiting: int  # letters without an answer
    stored: int  # … that were there all the same: only their answer was lost
    lost: Sequence[str]  # letters answered before that are not there
    double: Sequence[str]  # letters that are there twice

    @property
    def whole(self) -> bool:
        """Whether what was promised is there, once."""
        return not self.lost and not self.double


@dataclass(frozen=True, slots=True)
class Round:
    """One life of the server."""

    seen: Seen
    answered: int  # letters
    code: int  # the server's exit code
    orphans: bool  # processes that it left behind; they have been ended
    death: Death | None = None  # None: it was stopped in the usual way

    @property
    def as_planned(self) -> bool:
        """Whether it ended as it should have."""
        return self.code == (-signal.SIGKILL if self.death else 0)


@dataclass
class Post:
    """The letters of one soak: the same number gives the same bytes, also much later."""

    seed: int
    writer: Writer = field(init=False)
    shared: bytes = field(init=False)
    written: dict[str, bytes] = field(default_factory=dict)  # until they are answered

    def __post_init__(self) -> None:
        self.writer = Writer(self.seed)
        self.shared = self._file(0, 60_000)

    def envelope(self, mark: str) -> tuple[str, str]:
        """Sender and recipient of a letter."""
        return SENDER, TAKER

    def _file(self, number: int, size: int) -> bytes:
        return Random(f"{self.seed}.{number}").randbytes(size)  # noqa: S311 - no secret

    def next(self, ledger: Ledger) -> str:
        """Write another letter; returns its mark."""
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
    """Load a server until it dies; what was not answered waits in the ledger for the next."""
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
    """Send what is left to a server that nobody kills, and stop it in the usual way.

    It is stopped once it is `quiet`, where it has work of its own to end.
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
    last: int | None = None  # the letter, counted over all rounds, after whose answer we kill


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
    """Deliver one letter; without an answer of 250 it waits to be sent again."""
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
    there = stored(server)
    return Seen(
        waiting=len(ledger.waiting),
        stored=sum(there[mark] > 0 for mark in ledger.waiting),
        lost=[mark for mark in ledger.answered if not there[mark]],
        double=[mark for mark, times in there.items() if times > 1],
    )


def stored(server: Server) -> Counter[str]:
    """How often each subject is in the store, read beside the server."""
    db = sqlite3.connect(f"file:{server.folder / 'merganser.db'}?mode=ro", uri=True)
    try:
        return Counter(subject for (subject,) in db.execute("SELECT subject FROM messages"))
    finally:
        db.close()


async def buried(process: asyncio.subprocess.Process) -> bool:
    """End what is left of a server and its group; whether there was anything in the end."""
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
