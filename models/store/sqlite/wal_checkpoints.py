"""Bringing what is committed from the log of an SQLite store into its file, beside the writers.

SQLite does so by itself in a commit that finds the log long: everybody waits for that one. Here
most of it is done before, by a thread with a connection of its own, and what the commit still has
to do, so that the log begins anew, is little. See "Write-Ahead Logging" of SQLite's documents,
section 3.
"""

import logging
import sqlite3
import time
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

EVERY = 0.25  # seconds, while there are commits


class Checkpoints:
    """The thread that does it for one store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._connection: PoolProxiedConnection | None = None
        self._doing: Future[None] | None = None
        self._last = time.monotonic()

    def committed(self) -> None:
        """Something was: it may be time. Any thread of the writer's says so."""
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
                # passive: it waits for nobody, and nobody for it
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                cursor.close()
        except (sqlite3.Error, DBAPIError):  # a commit will do it, or say what is wrong
            log.warning("the log of the store could not be brought in", exc_info=True)

    def close(self) -> None:
        """Let go of the connection."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
