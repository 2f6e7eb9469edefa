"""A process of a server that is alive and does not respond."""

import os
import signal
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager

from tests.support.servers.merganser_server import MerganserProcess

LOCK_TIMEOUT = 0.1  # seconds; a transaction of a process that runs ends earlier


@contextmanager
def suspend_process(server: MerganserProcess, pid: int) -> Generator[None]:
    """Suspend a process of the server in the block.

    It is not suspended in a transaction on SQLite: the other processes could not write then.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        while not _can_write(server):
            os.kill(pid, signal.SIGCONT)
            _can_write(server)  # waits until the transaction has ended
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _can_write(server: MerganserProcess) -> bool:
    """True if no process has the lock of the database."""
    if server.store_url:
        return True
    path = server.folder / "var" / "merganser.db"
    with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        database.execute("ROLLBACK")
    return True
