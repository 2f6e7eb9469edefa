"""Temporary failures of the database and the object store, as opposed to bugs.

One place decides whether an exception means "try again later": a lost connection, a lock that was
not free in time, an exhausted pool, a transaction rolled back because of another one, a full or
busy disk.
"""

import errno
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum

import sqlalchemy.exc
from sqlalchemy.exc import DBAPIError, DisconnectionError

RETRY_AFTER = timedelta(seconds=5)


class StorageComponent(StrEnum):
    """A component that can be unavailable."""

    STORE = "store"
    BLOBS = "blobs"
    DISK = "disk"  # of the data folder


class StorageUnavailable(Exception):
    """The database or the object store can't do this now; the same request can succeed later.

    It is no refusal of the request (`models.errors.RequestError`). A task must stop and retry, and
    must not count as failed.
    """

    def __init__(
        self,
        message: str = "The database does not respond: retry later.",
        *,
        component: StorageComponent = StorageComponent.STORE,
        retry_after: timedelta = RETRY_AFTER,
    ) -> None:
        super().__init__(message)
        self.is_noted = False  # the outage log has counted this failure
        self.message = message
        self.component = component
        self.retry_after = retry_after


class StreamBusy(StorageUnavailable):
    """Another transaction holds the lock of a stream for too long."""

    def __init__(self) -> None:
        super().__init__("The account is locked by another transaction: retry later.")


class DiskFull(StorageUnavailable):
    """A disk is full: that of the database, of the object store, or of the data folder."""

    def __init__(self, component: StorageComponent) -> None:
        super().__init__(f"{FULL_DISKS[component]} is full: retry later.", component=component)


FULL_DISKS = {
    StorageComponent.STORE: "The disk of the database",
    StorageComponent.BLOBS: "The disk of the object storage",
    StorageComponent.DISK: "The disk of the data folder",
}
# error numbers of a system call: the disk, or the process' share of it, is full
NO_SPACE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# error numbers of a disk that fails, is mounted read-only or is no longer connected, and of a
# process with too many open files
UNAVAILABLE_DISK_ERRNOS = frozenset({
    errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
})  # fmt: skip
NO_SPACE_SQLSTATE = "53100"  # PostgreSQL: disk_full
CONFLICT_SQLSTATES = ("40001", "40P01")  # PostgreSQL: serialization failure, deadlock
LOCK_TIMEOUT_SQLSTATE = "55P03"  # PostgreSQL: lock_timeout
# PostgreSQL manual, appendix A: connection exceptions, insufficient resources, operator
# intervention, system error; and a transaction that was ended while it was idle.
TEMPORARY_SQLSTATE_CLASSES = ("08", "53", "57P", "58")
TEMPORARY_SQLSTATES = (*CONFLICT_SQLSTATES, LOCK_TIMEOUT_SQLSTATE, "25P03", "25006", "XX001")
TEMPORARY_SQLITE_CODES = frozenset((
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_READONLY,
))  # fmt: skip
CONNECTION_ENDED_MESSAGES = (
    "connection was closed in the middle of operation",
    "connection is closed",
    "underlying connection is closed",
    "connection has been released back to the pool",
    "cannot switch to state",  # its end was announced, and it is not closed yet
)


def is_deadlock(problem: BaseException | None) -> bool:
    """True if the database rolled a transaction back because of another one, as in a deadlock."""
    return any(_sqlstate(cause) in CONFLICT_SQLSTATES for cause in _error_and_causes(problem))


def storage_failure(problem: BaseException | None) -> StorageUnavailable | None:
    """Return the StorageUnavailable that this failure, or its cause, means; None if it is a bug."""
    for cause in _error_and_causes(problem):
        if isinstance(cause, StorageUnavailable):
            return cause
        if _sqlstate(cause) == LOCK_TIMEOUT_SQLSTATE:
            return StreamBusy()
        if (component := _component_of_full_disk_or_none(cause)) is not None:
            return DiskFull(component)
        if _is_temporary(cause):
            return StorageUnavailable()
    return None


@contextmanager
def skip_if_disk_full() -> Generator[None]:
    """Leave the block at a write for which a disk has no room, without an error."""
    try:
        yield
    except Exception as problem:
        if not isinstance(storage_failure(problem), DiskFull):
            raise


def outage_of_disk_or_none(
    problem: OSError, component: StorageComponent, message: str
) -> StorageUnavailable | None:
    """Return the outage that a failed system call on the disk of a component means, or None.

    `message` is that of a disk that is not full, but fails.
    """
    if problem.errno in NO_SPACE_ERRNOS:
        return DiskFull(component)
    if problem.errno in UNAVAILABLE_DISK_ERRNOS:
        return StorageUnavailable(message, component=component)
    return None


def _component_of_full_disk_or_none(problem: BaseException) -> StorageComponent | None:
    """Return the component with the full disk, if the exception means that."""
    if isinstance(problem, OSError):
        return StorageComponent.DISK if problem.errno in NO_SPACE_ERRNOS else None
    code: int = getattr(problem, "sqlite_errorcode", 0)
    is_full = code & 0xFF == sqlite3.SQLITE_FULL or _sqlstate(problem) == NO_SPACE_SQLSTATE
    return StorageComponent.STORE if is_full else None


def _error_and_causes(problem: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception, that of the driver, and those it was raised from."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        original = getattr(problem, "orig", None) or getattr(problem, "original_error", None)
        problem = original if isinstance(original, BaseException) else problem.__cause__


def _sqlstate(problem: BaseException) -> str:
    return str(getattr(problem, "sqlstate", None) or "")


def _is_temporary(problem: BaseException) -> bool:
    if isinstance(problem, DBAPIError) and problem.connection_invalidated:
        return True
    if isinstance(problem, DisconnectionError | sqlalchemy.exc.TimeoutError):
        return True
    if isinstance(problem, sqlite3.Error):
        return getattr(problem, "sqlite_errorcode", 0) & 0xFF in TEMPORARY_SQLITE_CODES
    state = _sqlstate(problem)
    if state:
        return state.startswith(TEMPORARY_SQLSTATE_CLASSES) or state in TEMPORARY_SQLSTATES
    return _is_of_driver(problem) and any(
        words in str(problem) for words in CONNECTION_ENDED_MESSAGES
    )


def _is_of_driver(problem: BaseException) -> bool:
    """True for errors that asyncpg, or SQLAlchemy's adapter of it, raises without a SQLSTATE."""
    module = type(problem).__module__
    return module.startswith(("asyncpg.", "sqlalchemy.dialects.postgresql"))
