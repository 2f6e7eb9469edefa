"""Bells that tell readers of the journal to look. They carry no news, and may be lost."""

import asyncio
import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

# Bells of those who work behind all streams: rung where there is something for them to do.
WEBHOOKS, TASKS, UNINDEXED = -1, -2, -3


class Gathering(asyncio.Event):
    """A bell that remembers which streams have grown since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self._grown: set[int] = set()

    def rung(self, stream: int) -> None:
        """Ring for this stream."""
        self._grown.add(stream)
        self.set()

    def taken(self) -> set[int]:
        """Be silent again, and tell for which streams it rang."""
        self.clear()
        grown, self._grown = self._grown, set()
        return grown


class Wakeups:
    """In-process bells, one set per stream; below zero are those of workers."""

    def __init__(self) -> None:
        self._bells: defaultdict[int, set[asyncio.Event]] = defaultdict(set)
        self._rung: dict[int, int] = {}
        self._gathering: set[Gathering] = set()

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
        """A bell that rings whatever stream grows, and the bell of webhooks."""
        bell = Gathering()
        self._gathering.add(bell)
        try:
            yield bell
        finally:
            self._gathering.discard(bell)

    def ring(self, stream: int, last: int) -> None:
        """Tell that `stream` has come to `last`; who was told before is not told again."""
        if stream >= WEBHOOKS:
            for gathering in self._gathering:
                gathering.rung(stream)
        if stream in self._bells and (stream < 0 or last > self._rung.get(stream, 0)):
            self._rung[stream] = last
            for bell in self._bells[stream]:
                bell.set()

    def tell(self, reached: Mapping[int, int]) -> None:
        """Ring for all these streams, here and wherever else the bells are heard."""
        for stream, last in reached.items():
            self.ring(stream, last)


class Neighbours(Wakeups):
    """Bells that are heard in all processes that share a folder on this machine.

    Each process that hears has a datagram socket in the folder; whoever changes something
    sends a line to all of them. What cannot be sent at once is dropped.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "bells"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mine: Path | None = None
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._in: socket.socket | None = None
        self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)

    def _short(self, path: Path) -> str:
        return f"/proc/self/fd/{self._handle}/{path.name}"  # a socket's path has 107 bytes at most

    def hear(self) -> None:
        """Hear the other processes from now on; needs a running loop."""
        self._mine = self._folder / f"{os.getpid()}-{id(self):x}"
        with contextlib.suppress(FileNotFoundError):
            self._mine.unlink()  # of a process that had this number before us
        self._in = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._in.bind(self._short(self._mine))
        asyncio.get_running_loop().add_reader(self._in.fileno(), self._receive)

    def _receive(self) -> None:
        assert self._in is not None  # noqa: S101 - the reader is set by `hear`, behind the socket
        with contextlib.suppress(BlockingIOError, ValueError):
            while True:
                for line in self._in.recv(65536).decode().splitlines():
                    stream, _, last = line.partition(" ")
                    self.ring(int(stream), int(last))

    def tell(self, reached: Mapping[int, int]) -> None:
        """Ring here, and send the numbers to the other processes."""
        super().tell(reached)
        if not reached:
            return
        text = "\n".join(f"{stream} {last}" for stream, last in reached.items()).encode()
        for name in os.listdir(self._handle):  # noqa: PTH208 - at each change: it is quick
            if self._mine is not None and name == self._mine.name:
                continue
            other = self._folder / name
            try:
                self._out.sendto(text, self._short(other))
            except (ConnectionRefusedError, FileNotFoundError):
                other.unlink(missing_ok=True)  # its process has died
            except OSError:  # full: that process looks by itself soon
                continue

    def close(self) -> None:
        """Hear no more."""
        if self._in is not None:
            asyncio.get_running_loop().remove_reader(self._in.fileno())
            self._in.close()
        if self._mine is not None:
            self._mine.unlink(missing_ok=True)
        self._out.close()
        os.close(self._handle)
