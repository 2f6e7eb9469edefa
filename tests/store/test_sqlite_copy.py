"""Copies of an SQLite database that is written meanwhile."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from mail.backup import sqlite_copy
from mail.backup.errors import BackupError

ROW_COUNT = 2000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database with a write-ahead log and several hundred pages."""
    path = tmp_path / "source.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE filled (id INTEGER PRIMARY KEY, data BLOB)")
        with database:
            database.executemany(
                "INSERT INTO filled (data) VALUES (?)", [(bytes(1000),)] * ROW_COUNT
            )
    return path


def count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM filled").fetchone()[0])


def test_copy_with_a_commit_after_each_step_ends_with_the_first_snapshot(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_copy, "PAGES_PER_STEP", 10)
    steps: list[int] = []
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:

        def commit_row(done_count: int, _total: int) -> None:
            steps.append(done_count)
            writer.execute("INSERT INTO filled (data) VALUES (?)", (bytes(1000),))

        copy = tmp_path / "copy.db"
        sqlite_copy.copy_database(source, copy, commit_row, threading.Event())
    assert steps == sorted(steps)
    assert len(steps) > 10
    assert count_rows(copy) == ROW_COUNT
    assert count_rows(source) == ROW_COUNT + len(steps)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("copy.db-*"))


def test_cancelled_copy_raises(source: Path, tmp_path: Path) -> None:
    is_cancelled = threading.Event()
    is_cancelled.set()
    with pytest.raises(BackupError, match="cancelled"):
        sqlite_copy.copy_database(
            source, tmp_path / "copy.db", lambda _done, _total: None, is_cancelled
        )
