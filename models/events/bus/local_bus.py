"""Wake-ups between the processes that share a folder on this machine."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from models.events.bus import Heard

LOOK = 1.0  # seconds between two looks whether our socket is still where others find it
FULL = 0.01  # seconds until a process that reads too slowly is tried again
TRIES = 10
LARGEST = 65536
TICK = 1_000_000_000  # nanoseconds in which a file system may give two changes the same time


class LocalBus:
    """Each process that hears has a datagram socket in the folder; who tells sends to all."""

    name = "unix"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._mine: Path | None = None
        self._there: list[Path] = []
        self._changed = 0  # when the folder did, as far as we know what is in it
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def _short(self, path: Path) -> str:
        return f"/proc/self/fd/{self._handle}/{path.name}"  # a socket's path has 107 bytes at most

    async def send(self, message: str) -> None:
        """Send to all; whoever reads nothing for a while misses it."""
        data = message.encode()
        left = [path for path in self._heard() if path != self._mine]
        for _ in range(TRIES):
            left = [path for path in left if not self._taken(data, path)]
            if not left:
                return
            await asyncio.sleep(FULL)

    def _heard(self) -> list[Path]:
        """The sockets in the folder, which is listed again where it has changed."""
        changed, now = os.fstat(self._handle).st_mtime_ns, time.time_ns()
        if changed != self._changed:
            # one more within the same tick of the clock of files would not be seen
            self._changed = changed if now - changed > TICK else 0
            self._there = list(self._folder.iterdir())
        return self._there

    def _taken(self, data: bytes, path: Path) -> bool:
        try:
            self._out.sendto(data, self._short(path))
        except BlockingIOError:
            return False
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # its process has died
        return True

    async def hear(self, heard: Heard, begun: Callable[[], None]) -> None:
        """Hear until somebody has removed our socket."""
        path = self._folder / f"{os.getpid()}-{id(self):x}"
        path.unlink(missing_ok=True)  # of a process that had this number before us
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ours:
            ours.bind(self._short(path))
            self._mine = path

            def receive() -> None:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        heard(ours.recv(LARGEST).decode())

            loop.add_reader(ours, receive)
            try:
                begun()
                while path.is_socket():  # noqa: ASYNC110 - nobody tells us of its end
                    await asyncio.sleep(LOOK)
            finally:
                loop.remove_reader(ours)
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Send no more."""
        self._out.close()
        os.close(self._handle)
