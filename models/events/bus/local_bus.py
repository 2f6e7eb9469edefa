"""Wake-ups between the processes that share a folder on this machine."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from models.events.bus import Heard

LOOK = 1.0  # seconds between two checks whether the socket is still in the folder
FULL = 0.01  # seconds until a process that reads too slowly is tried again
TRIES = 10
LARGEST = 65536
TICK = 1_000_000_000  # nanoseconds in which a file system may give two changes the same time


class LocalBus:
    """A folder with a datagram socket of each receiving process; senders write to all of them."""

    name = "unix"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._mine: Path | None = None
        self._there: list[Path] = []
        self._changed = 0  # nanoseconds, when the paths were listed; 0: unknown
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def _short(self, path: Path) -> str:
        return f"/proc/self/fd/{self._handle}/{path.name}"  # a socket's path has 107 bytes at most

    async def send(self, message: str) -> None:
        """Send to all processes. A process that reads nothing for a while misses the message."""
        data = message.encode()
        pending = [path for path in self._heard() if path != self._mine]
        for _ in range(TRIES):
            pending = [path for path in pending if not self._taken(data, path)]
            if not pending:
                return
            await asyncio.sleep(FULL)

    def _heard(self) -> list[Path]:
        """Return the sockets in the folder, which is listed again if it has changed."""
        changed, now = os.fstat(self._handle).st_mtime_ns, time.time_ns()
        if changed != self._changed:
            # another change within the resolution of file times would not be seen
            self._changed = changed if now - changed > TICK else 0
            self._there = list(self._folder.iterdir())
        return self._there

    def _taken(self, data: bytes, path: Path) -> bool:
        """Send to one socket; return False if its queue is full."""
        try:
            self._out.sendto(data, self._short(path))
        except BlockingIOError:
            return False
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # its process has died
        return True

    async def hear(self, heard: Heard, begun: Callable[[], None]) -> None:
        """Receive until the socket file of this process is removed."""
        path = self._folder / f"{os.getpid()}-{id(self):x}"
        path.unlink(missing_ok=True)  # of an earlier process with the same number
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as own_socket:
            own_socket.bind(self._short(path))
            self._mine = path

            def read_messages() -> None:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        heard(own_socket.recv(LARGEST).decode())

            loop.add_reader(own_socket, read_messages)
            try:
                begun()
                while path.is_socket():  # noqa: ASYNC110 - its removal is no event
                    await asyncio.sleep(LOOK)
            finally:
                loop.remove_reader(own_socket)
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Close the sending socket and the folder."""
        self._out.close()
        os.close(self._handle)
