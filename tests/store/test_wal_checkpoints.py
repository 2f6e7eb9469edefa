"""WAL checkpoints of SQLite run beside transactions."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, text

from models.store.database import Database
from models.store.sqlite import wal_checkpoints
from tests.support.time_limits import HANG_SECONDS

ROW_COUNT = 20  # rows with far fewer pages than an automatic checkpoint needs


def count_rows_without_wal(file: Path) -> int:
    """Return the number of rows in the database file without the WAL."""
    with closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM ducks").fetchone()[0])
        except sqlite3.DatabaseError:  # the table is only in the WAL, or a page is being written
            return 0


async def execute_in_transaction(database: Database, statement: str) -> None:
    def execute_statement(connection: Connection) -> None:
        connection.execute(text(statement))

    await database.run_transaction(execute_statement)


async def test_checkpoint_runs_beside_transactions(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    database = Database(f"sqlite+aiosqlite:///{file}")
    try:
        await execute_in_transaction(database, "CREATE TABLE ducks (name)")
        inserted_count = 0
        async with asyncio.timeout(HANG_SECONDS):
            while count_rows_without_wal(file) < ROW_COUNT:
                await execute_in_transaction(database, "INSERT INTO ducks VALUES ('Anas')")
                inserted_count += 1
                async with database.write_session() as session:  # sessions, too
                    await (await session.connection()).execute(text("DELETE FROM ducks WHERE 0"))
                await asyncio.sleep(wal_checkpoints.INTERVAL / 20)
        wal_stat = await asyncio.to_thread(Path(f"{file}-wal").stat)
        assert wal_stat.st_size < 4000 * 4096  # not an automatic checkpoint of a commit
    finally:
        await database.close()
    assert count_rows_without_wal(file) == inserted_count


async def test_blocked_checkpoint_delays_no_transaction(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    database = Database(f"sqlite+aiosqlite:///{file}")
    reader = sqlite3.connect(file, isolation_level=None)
    try:
        await execute_in_transaction(database, "CREATE TABLE ducks (name)")
        reader.execute("BEGIN")
        # a read transaction blocks the checkpoint
        reader.execute("SELECT count(*) FROM ducks").fetchone()
        for _ in range(10):
            await execute_in_transaction(database, "INSERT INTO ducks VALUES ('Anas')")
            await asyncio.sleep(wal_checkpoints.INTERVAL / 4)
        assert count_rows_without_wal(file) < 10
        reader.execute("COMMIT")
        async with asyncio.timeout(HANG_SECONDS):
            while count_rows_without_wal(file) < 10:
                await asyncio.sleep(wal_checkpoints.INTERVAL)
                await execute_in_transaction(database, "DELETE FROM ducks WHERE 0")
    finally:
        reader.close()
        await database.close()
