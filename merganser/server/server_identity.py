"""The identity of a server: a restart keeps it, so its former leases end at once."""

import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

SIZE = 16  # bytes


@contextmanager
def server_identity(folder: Path) -> Generator[str]:
    """Hold the identity of the server with this data folder. Forks hold it, too.

    The lock of the file proves that the former process with this identity has ended. A second
    server with the same folder, and one with a copy of the folder, gets another identity.
    """
    handle = os.open(folder / "server-id", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield secrets.token_hex(SIZE)
            return
        stored = os.read(handle, 2 * SIZE)
        if len(stored) < 2 * SIZE:
            stored = secrets.token_hex(SIZE).encode()
            os.ftruncate(handle, 0)
            os.pwrite(handle, stored, 0)
        place = os.fstat(handle)
        parts = (stored.decode(), str(place.st_dev), str(place.st_ino), socket.gethostname())
        yield hashlib.sha256(" ".join(parts).encode()).hexdigest()[: 2 * SIZE]
    finally:
        os.close(handle)
