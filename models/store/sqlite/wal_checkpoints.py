"""Checkpoints of the write-ahead log of an SQLite database, in a thread beside the writers.

SQLite runs a checkpoint in a commit that finds the log long, and all callers wait for that
commit. Here a thread with its own connection does most of it before, so that little is left for the
commit. See "Write-Ahead Logging" of SQLite's documentation, section 3.
"""

import logging
import sqlite3
import time
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

EVERY = 0.25  # seconds between two checkpoints, while there are commits


class Checkpoints:
    """The thread that runs the checkpoints of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._connection: PoolProxiedConnection | None = None
        self._doing: Future[None] | None = None
        self._last = time.monotonic()

    def committed(self) -> None:
        """Start a checkpoint after a commit if one is due. Any writer's thread calls it."""
        now = time.monotonic()
        if now - self._last < EVERY or (self._doing and not self._doing.done()):
            return
        self._last = now
        self._doing = self._thread.submit(self._do)

    def _do(self) -> None:
        try:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            cursor = self._connection.cursor()
            try:
                # passive: it does not wait for readers or writers, nor they for it
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                cursor.close()
        except (sqlite3.Error, DBAPIError):  # a commit will do it, or raise
            log.warning("the log of the store could not be brought in", exc_info=True)

    def close(self) -> None:
        """Wait for the last checkpoint, and close the connection."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
