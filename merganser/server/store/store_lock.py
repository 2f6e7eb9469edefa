"""Who may use a store as its server, and who may repair it: never both, whoever is first."""

import fcntl
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy import make_url, text
from sqlalchemy.pool import NullPool

from merganser.errors import Trouble
from models.store.postgres.address import is_postgres

SERVED = 0x6D657268  # of PostgreSQL's advisory locks, which are each database's own


@asynccontextmanager
async def serving(store: str) -> AsyncGenerator[None]:
    """Hold the store as a server. Trouble where an SQLite store has one, or is being repaired."""
    if lock_of(store) is None:
        async with _advisory(store, shared=True) as got:
            if not got:
                raise Trouble("this store is being repaired: wait until `merganser check` is done")
            yield
        return
    with held(store):
        yield


@contextmanager
def held(store: str) -> Generator[None]:
    """Hold an SQLite store as its server; forks hold it too, until the last of them has ended."""
    path = lock_of(store)
    if path is None:
        yield
        return
    with _Flock(path) as holder:
        if holder:
            raise Trouble(
                f"another merganser uses this store (pid {holder}): stop it, or set MERGANSER_STORE"
            )
        yield


@asynccontextmanager
async def repairing(store: str, then: str = "repair") -> AsyncGenerator[None]:
    """Hold the store alone, to do what `then` says. Trouble while it is served."""
    path = lock_of(store)
    if path is None:
        async with _advisory(store, shared=False) as got:
            if not got:
                raise Trouble(f"a merganser serves this store: stop all of them, then {then}")
            yield
        return
    with _Flock(path) as holder:
        if holder:
            raise Trouble(f"a merganser serves this store (pid {holder}): stop it, then {then}")
        yield


def lock_of(store: str) -> Path | None:
    """The file whose lock a server of this SQLite store holds; None for PostgreSQL."""
    return None if is_postgres(store) else Path(f"{make_url(store).database}.lock")


def holder_of(store: str) -> str | None:
    """The number of the process that serves this SQLite store; None where there is none."""
    path = lock_of(store)
    if path is None or not path.exists():
        return None
    with _Flock(path, keep=False) as holder:
        return holder


class _Flock:
    """The lock of a file for the time of a `with`; entering tells who has it already, if any."""

    def __init__(self, path: Path, *, keep: bool = True) -> None:
        self._path = path
        self._keep = keep

    def __enter__(self) -> str | None:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.read(self._handle, 20).decode().strip() or "unknown"
        if self._keep:
            os.truncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()}\n".encode())
        return None

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)  # the file stays: who removes it lets two hold "the" lock


@asynccontextmanager
async def _advisory(store: str, *, shared: bool) -> AsyncGenerator[bool]:
    from models.store.postgres.connection import postgres_engine  # noqa: PLC0415 - needs asyncpg

    engine = postgres_engine(store, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    how = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
    try:
        async with engine.connect() as connection:
            yield bool((await connection.execute(text(f"SELECT {how}({SERVED})"))).scalar())
    finally:
        await engine.dispose()
