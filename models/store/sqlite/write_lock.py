"""The lock for writing an SQLite database, among all processes that write it."""

import asyncio
import fcntl
import os

from models.store import cancel_safety


class WriteLock:
    """A lock on a file beside the database. Its release wakes a waiting process.

    SQLite alone sleeps and checks again, up to a tenth of a second each time, so an unlucky writer
    would wait for seconds. The holder of this lock finds SQLite's lock free, unless another program
    uses the database.
    """

    def __init__(self, database: str | None) -> None:
        self._handle = -1  # a database in memory has one process
        if database and database != ":memory:":
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._handle = os.open(f"{database}.turn", flags, 0o600)

    def acquire_blocking(self) -> None:
        """Wait for the lock; for threads."""
        if self._handle >= 0:
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def _try_acquire(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def acquire(self) -> None:
        """Wait for the lock, in a thread only if another process has it."""
        if self._handle >= 0 and not self._try_acquire():
            loop = asyncio.get_running_loop()
            await cancel_safety.await_to_end(loop.run_in_executor(None, self.acquire_blocking))

    def release(self) -> None:
        """Release the lock."""
        if self._handle >= 0:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
