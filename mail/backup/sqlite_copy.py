"""A consistent copy of a running SQLite database, by the online backup API.

Without an open read transaction, `sqlite3_backup_step` begins again from the first page after every
commit of another process, so a copy of a busy database never ends. Here the source connection holds
a read transaction for the whole copy. It sees one snapshot of the write-ahead log. Readers and
writers don't wait for the copy. The write-ahead log can't be reset until the copy ends, so it grows
by what is committed meanwhile.
"""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mail.backup.errors import BackupError
from mail.backup.object_list import NamedObject, write_line
from models.store.text_folding import add_fold_text_to_sqlite

PAGES_PER_STEP = 2048  # 8 MiB with pages of 4 KiB
LOCK_TIMEOUT = 30.0  # seconds to wait for a lock of the source
# Every column with the name of an object, as `load_object_names_in_use` reads them
NAMED_OBJECTS_SQL = """
SELECT name, stored_size AS size FROM blobs WHERE name IS NOT NULL
UNION ALL SELECT blob_name, size FROM uploads WHERE blob_name IS NOT NULL
UNION ALL SELECT name, size FROM upload_parts
"""
REVISION_SQL = "SELECT version_num FROM alembic_version"
INCARNATION_SQL = "SELECT store, number, beat FROM store_incarnation"
MARKS_SQL = "SELECT name, digest FROM store_facts WHERE name IN ('blobs', 'cold blobs')"
ReportPages = Callable[[int, int], None]  # copied pages, all pages


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """What the copied database says of itself."""

    revision: str
    store: str
    incarnation: int
    beat: int
    object_store_marks: dict[str, str]
    object_count: int


def copy_database(
    source: Path, copy: Path, report_pages: ReportPages, is_cancelled: threading.Event
) -> None:
    """Copy the database into a new file that only this user can read, and sync it to the disk.

    It takes long: run it in a thread. Raises BackupError if it is cancelled, or if the integrity
    check of the copy fails.
    """

    def report_step(_status: int, remaining: int, total: int) -> None:
        if is_cancelled.is_set():
            raise BackupError("The backup was cancelled.")
        report_pages(total - remaining, total)

    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(
                sqlite3.connect(
                    f"{source.absolute().as_uri()}?mode=rw",
                    uri=True,
                    timeout=LOCK_TIMEOUT,
                    isolation_level=None,
                )
            ) as database,
            closing(sqlite3.connect(copy, isolation_level=None)) as copied,
        ):
            database.execute("BEGIN")
            database.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # takes the snapshot
            database.backup(copied, pages=PAGES_PER_STEP, progress=report_step)
            database.execute("ROLLBACK")
            # the copied header asks for a write-ahead log: a backup is one file
            copied.execute("PRAGMA journal_mode = DELETE").fetchone()
        _require_integrity(copy)
    except sqlite3.Error as problem:
        raise BackupError(f"The database can't be copied: {problem}.") from problem
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def _require_integrity(path: Path) -> None:
    """Raise BackupError with the first problem that SQLite finds in a database file."""
    with closing(_open_read_only(path)) as database:
        (result,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if result != "ok":
        raise BackupError(f"The copy of the database is damaged: {result}.")


def write_named_objects(copy: Path, names_path: Path) -> CopyFacts:
    """Write the list of objects that a database file names; return what the file says of itself.

    Run it in a thread.
    """
    count = 0
    with closing(_open_read_only(copy)) as database, names_path.open("wb") as names:
        for name, size in database.execute(f"{NAMED_OBJECTS_SQL} ORDER BY name"):
            write_line(names, NamedObject(name, size))
            count += 1
        (revision,) = database.execute(REVISION_SQL).fetchone()
        store, incarnation, beat = database.execute(INCARNATION_SQL).fetchone() or ("", 0, 0)
        marks = dict(database.execute(MARKS_SQL).fetchall())
    return CopyFacts(revision, str(store), int(incarnation), int(beat), marks, count)


def _open_read_only(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    add_fold_text_to_sqlite(database)  # indexes use it
    return database
