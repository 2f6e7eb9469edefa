"""The identity of a server: a restart keeps it, so its former leases end at once."""

import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ID_SIZE = 16  # bytes


@contextmanager
def hold_server_id(folder: Path) -> Generator[str]:
    """Yield the ID of the server with this data folder, and lock its file. Forks hold the lock too.

    The lock of the file proves that the former process with this identity has ended. A second
    server with the same folder, and one with a copy of the folder, gets another identity.
    """
    descriptor = os.open(folder / "server-id", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield secrets.token_hex(ID_SIZE)
            return
        stored = os.read(descriptor, 2 * ID_SIZE)
        if len(stored) < 2 * ID_SIZE:
            stored = secrets.token_hex(ID_SIZE).encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, stored, 0)
        yield _server_id_from_file(stored, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def read_server_id(folder: Path) -> str:
    """Return the ID of the server with this data folder; empty if it never started."""
    path = folder / "server-id"
    try:
        return _server_id_from_file(path.read_bytes()[: 2 * ID_SIZE], path.stat())
    except FileNotFoundError:
        return ""


def _server_id_from_file(file_content: bytes, file_status: os.stat_result) -> str:
    parts = (
        file_content.decode(),
        str(file_status.st_dev),
        str(file_status.st_ino),
        socket.gethostname(),
    )
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[: 2 * ID_SIZE]
