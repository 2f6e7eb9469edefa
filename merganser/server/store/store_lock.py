"""The lock of a database, which servers share and a repair takes exclusively."""

import fcntl
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy import make_url, text
from sqlalchemy.pool import NullPool

from merganser.errors import CommandError
from models.store.postgres.address import is_postgres

SERVER_LOCK = 0x6D657268  # a PostgreSQL advisory lock; each database has its own


@asynccontextmanager
async def lock_as_server(database_url: str) -> AsyncGenerator[None]:
    """Lock the database as a server.

    Raises CommandError if it is being repaired, or is an SQLite database with another server.
    """
    if sqlite_lock_path(database_url) is None:
        async with _try_server_lock(database_url, is_shared=True) as has_lock:
            if not has_lock:
                raise CommandError(
                    "The database is being repaired: wait until `merganser check` is finished."
                )
            yield
        return
    with lock_sqlite_as_server(database_url):
        yield


@contextmanager
def lock_sqlite_as_server(database_url: str) -> Generator[None]:
    """Lock an SQLite database as its server; do nothing for PostgreSQL.

    Forks hold the lock until the last one has ended. Raises CommandError if it is locked.
    """
    path = sqlite_lock_path(database_url)
    if path is None:
        yield
        return
    with _FileLock(path) as holder_pid:
        if holder_pid:
            raise CommandError(
                f"Another merganser process uses this database (pid {holder_pid}): stop "
                "it, or set MERGANSER_DATABASE_URL."
            )
        yield


@asynccontextmanager
async def lock_database_exclusively(
    database_url: str, purpose: str = "repair"
) -> AsyncGenerator[None]:
    """Lock the database exclusively. Raises CommandError with the purpose if a server runs."""
    path = sqlite_lock_path(database_url)
    if path is None:
        async with _try_server_lock(database_url, is_shared=False) as has_lock:
            if not has_lock:
                raise CommandError(
                    f"A merganser server uses this database: stop all servers, then {purpose}."
                )
            yield
        return
    with _FileLock(path) as holder_pid:
        if holder_pid:
            raise CommandError(
                f"A merganser server uses this database (pid {holder_pid}): stop it, then "
                f"{purpose}."
            )
        yield


def sqlite_lock_path(store: str) -> Path | None:
    """The lock file of an SQLite database; None for PostgreSQL."""
    return None if is_postgres(store) else Path(f"{make_url(store).database}.lock")


def sqlite_server_pid(database_url: str) -> str | None:
    """The process ID of the server of an SQLite database; None if no server runs."""
    path = sqlite_lock_path(database_url)
    if path is None or not path.exists():
        return None
    with _FileLock(path, writes_pid=False) as holder_pid:
        return holder_pid


class _FileLock:
    """A file lock for a `with` block. Entering returns the process ID of another holder, if any."""

    def __init__(self, path: Path, *, writes_pid: bool = True) -> None:
        self._path = path
        self._writes_pid = writes_pid
        self._handle = -1

    def __enter__(self) -> str | None:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.read(self._handle, 20).decode().strip() or "unknown"
        if self._writes_pid:
            os.truncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()}\n".encode())
        return None

    def __exit__(self, *_: object) -> None:
        # the file stays: after a removal two processes could lock different files
        os.close(self._handle)


@asynccontextmanager
async def _try_server_lock(database_url: str, *, is_shared: bool) -> AsyncGenerator[bool]:
    """Try to take the advisory lock of a PostgreSQL database; yields whether it was taken."""
    # asyncpg is an optional dependency
    from models.store.postgres.connection import postgres_engine  # noqa: PLC0415

    engine = postgres_engine(database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    function = "pg_try_advisory_lock_shared" if is_shared else "pg_try_advisory_lock"
    try:
        async with engine.connect() as connection:
            yield bool(
                (await connection.execute(text(f"SELECT {function}({SERVER_LOCK})"))).scalar()
            )
    finally:
        await engine.dispose()
