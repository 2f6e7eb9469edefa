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

INTERVAL = 0.25  # seconds between two checkpoints, while there are commits


class CheckpointThread:
    """The thread that runs the checkpoints of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._connection: PoolProxiedConnection | None = None
        self._running: Future[None] | None = None
        self._started_at = time.monotonic()

    def start_if_due(self) -> None:
        """Start a checkpoint after a commit if one is due. Any writer's thread calls it."""
        now = time.monotonic()
        if now - self._started_at < INTERVAL or (self._running and not self._running.done()):
            return
        self._started_at = now
        self._running = self._thread.submit(self._run_checkpoint)

    def _run_checkpoint(self) -> None:
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
            log.warning("WAL checkpoint failed", exc_info=True)

    def close(self) -> None:
        """Wait for the last checkpoint, and close the connection."""
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
