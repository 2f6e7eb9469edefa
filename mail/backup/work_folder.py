"""The folder for the temporary files of a backup or restore, with a lock."""

import errno
import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mail.backup.errors import BackupError

LOCK_NAME = "lock"
FILES_NAME = "files"
NO_LOCK_ERRNOS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


@contextmanager
def locked_work_folder(folder: Path) -> Generator[Path]:
    """Create an empty folder in `folder` that only this user can read, and delete it at the end.

    First deletes the files that a killed process has left there. Raises BackupError if another
    process uses the folder. A file system without locks can't tell that.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    # the lock file stays: after its removal two processes could lock different files
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, folder)
        files = folder / FILES_NAME
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(mode=0o700)
        try:
            yield files
        finally:
            shutil.rmtree(files, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackupError(
            f"Another backup or restore uses the folder {folder}: wait until it has ended."
        ) from None
    except OSError as problem:
        if problem.errno not in NO_LOCK_ERRNOS:
            raise
