"""Wake-ups between the processes that share a folder on this machine."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from models.events.bus import MessageHandler

SOCKET_CHECK_INTERVAL = 1.0  # seconds between two checks whether the socket is still in the folder
FULL_QUEUE_DELAY = 0.01  # seconds until a process that reads too slowly is tried again
MAX_TRIES = 10
MAX_MESSAGE_SIZE = 65536
FILE_TIME_RESOLUTION = (
    1_000_000_000  # nanoseconds in which a file system may give two changes the same time
)


class LocalBus:
    """A folder with a datagram socket of each receiving process; senders write to all of them."""

    name = "unix"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._own_socket: Path | None = None
        self._socket_paths: list[Path] = []
        self._folder_changed_at = 0  # nanoseconds, when the paths were listed; 0: unknown
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def _socket_path_by_fd(self, path: Path) -> str:
        """Return the path of a socket through the handle of the folder, with few characters."""
        return f"/proc/self/fd/{self._handle}/{path.name}"  # a socket's path has 107 bytes at most

    async def send(self, message: str) -> None:
        """Send to all processes. A process that reads nothing for a while misses the message."""
        data = message.encode()
        pending = [path for path in self._list_sockets() if path != self._own_socket]
        for _ in range(MAX_TRIES):
            pending = [path for path in pending if not self._send_or_unlink_dead_socket(data, path)]
            if not pending:
                return
            await asyncio.sleep(FULL_QUEUE_DELAY)

    def _list_sockets(self) -> list[Path]:
        """Return the sockets in the folder, which is listed again if it has changed."""
        changed, now = os.fstat(self._handle).st_mtime_ns, time.time_ns()
        if changed != self._folder_changed_at:
            # another change within the resolution of file times would not be seen
            self._folder_changed_at = changed if now - changed > FILE_TIME_RESOLUTION else 0
            self._socket_paths = list(self._folder.iterdir())
        return self._socket_paths

    def _send_or_unlink_dead_socket(self, data: bytes, path: Path) -> bool:
        """Send to one socket; return False if its queue is full."""
        try:
            self._out.sendto(data, self._socket_path_by_fd(path))
        except BlockingIOError:
            return False
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # its process has died
        return True

    async def receive_until_disconnected(
        self, on_message: MessageHandler, on_connected: Callable[[], None]
    ) -> None:
        """Receive until the socket file of this process is removed."""
        path = self._folder / f"{os.getpid()}-{id(self):x}"
        path.unlink(missing_ok=True)  # of an earlier process with the same number
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as own_socket:
            own_socket.bind(self._socket_path_by_fd(path))
            self._own_socket = path

            def read_messages() -> None:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        on_message(own_socket.recv(MAX_MESSAGE_SIZE).decode())

            loop.add_reader(own_socket, read_messages)
            try:
                on_connected()
                while path.is_socket():  # noqa: ASYNC110 - its removal is no event
                    await asyncio.sleep(SOCKET_CHECK_INTERVAL)
            finally:
                loop.remove_reader(own_socket)
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Close the sending socket and the folder."""
        self._out.close()
        os.close(self._handle)
