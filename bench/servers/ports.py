"""Ports for the servers of tests and benchmarks."""

import fcntl
import itertools
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

HOST = "127.0.0.1"
# The byte at the offset of a port is locked by the process that uses the port. The path does not
# depend on TMPDIR: all processes of the machine must use the same file.
LOCK_FILE = Path("/tmp/merganser-ports.lock")  # noqa: S108
FIRST_PORT, LAST_PORT = 10_000, 65_535
BLOCK_SIZE = 250  # ports; the distance of the first ports of processes with neighbouring ids
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Claim a port of loopback on which nothing listens.

    No other call returns the port, in any process, until this process ends. The kernel does not
    give the port to outgoing connections. Raises AssertionError if no port is free.
    """
    lock_file = _open_lock_file()
    for port in _remaining_ports():
        try:
            fcntl.lockf(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except (BlockingIOError, PermissionError):
            continue
        if _is_unused(port):
            return port
    raise AssertionError(f"no port is free from {FIRST_PORT} to {LAST_PORT}")


@cache
def _remaining_ports() -> Iterator[int]:
    """The ports that this process has not tried yet."""
    first_ephemeral, last_ephemeral = map(int, _EPHEMERAL_RANGE.read_text().split())
    ports = [
        port
        for port in range(FIRST_PORT, LAST_PORT + 1)
        if not first_ephemeral <= port <= last_ephemeral
    ]
    start = os.getpid() * BLOCK_SIZE % len(ports)  # a former process may have left connections
    return itertools.chain(ports[start:], ports[:start])


@cache
def _open_lock_file() -> int:
    """Open the lock file of all users until the process ends, and return its descriptor."""
    if not LOCK_FILE.exists():
        # The kernel refuses to open a file of another user in /tmp with O_CREAT.
        try:
            descriptor = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            pass  # another process created it in the meantime
        else:
            os.fchmod(descriptor, 0o666)
            return descriptor
    return os.open(LOCK_FILE, os.O_RDWR)


def _is_unused(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
