"""The turn to write an SQLite store, among all processes that do."""

import asyncio
import fcntl
import os

from models.store import cancel_safety


class StoreTurn:
    """A lock on a file beside the store, whose end wakes who waits for it.

    SQLite alone sleeps and looks again, up to a tenth of a second each time: with several busy
    writers one that is unlucky waits for seconds. Whoever has the turn finds SQLite's lock free,
    but for programs that are none of ours.
    """

    def __init__(self, database: str | None) -> None:
        self._handle = -1  # a store in memory has one process
        if database and database != ":memory:":
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._handle = os.open(f"{database}.turn", flags, 0o600)

    def take(self) -> None:
        """Wait for the turn; for threads."""
        if self._handle >= 0:
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def wait(self) -> None:
        """Wait for the turn, in a thread only where somebody else has it."""
        if self._handle >= 0 and not self._taken():
            loop = asyncio.get_running_loop()
            await cancel_safety.to_the_end(loop.run_in_executor(None, self.take))

    def give(self) -> None:
        """Let others write."""
        if self._handle >= 0:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Write no more."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
