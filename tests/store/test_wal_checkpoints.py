"""What is committed comes from the log of an SQLite store into its file, beside the writers."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, text

from models.store.database import Database
from models.store.sqlite import wal_checkpoints

FEW = 20  # rows: far from as many pages as a commit brings in by itself


def in_file(file: Path) -> int:
    """How many rows are there without the log."""
    with closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM ducks").fetchone()[0])
        except sqlite3.DatabaseError:  # the table is in the log only, or a page is on its way
            return 0


async def written(database: Database, statement: str) -> None:
    def unit(connection: Connection) -> None:
        connection.execute(text(statement))

    await database.run_transaction(unit)


async def test_it_comes_into_the_file_while_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    database = Database(f"sqlite+aiosqlite:///{file}")
    try:
        await written(database, "CREATE TABLE ducks (name)")
        many = 0
        async with asyncio.timeout(20):
            while in_file(file) < FEW:
                await written(database, "INSERT INTO ducks VALUES ('Anas')")
                many += 1
                async with database.write_session() as session:  # units of either kind
                    await (await session.connection()).execute(text("DELETE FROM ducks WHERE 0"))
                await asyncio.sleep(wal_checkpoints.INTERVAL / 20)
        log = await asyncio.to_thread(Path(f"{file}-wal").stat)
        assert log.st_size < 4000 * 4096  # no commit has done it
    finally:
        await database.close()
    assert in_file(file) == many


async def test_a_store_that_cannot_be_reached_holds_up_nobody(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    database = Database(f"sqlite+aiosqlite:///{file}")
    held = sqlite3.connect(file, isolation_level=None)
    try:
        await written(database, "CREATE TABLE ducks (name)")
        held.execute("BEGIN")
        held.execute("SELECT count(*) FROM ducks").fetchone()  # who reads holds the log where it is
        for _ in range(10):
            await written(database, "INSERT INTO ducks VALUES ('Anas')")
            await asyncio.sleep(wal_checkpoints.INTERVAL / 4)
        assert in_file(file) < 10
        held.execute("COMMIT")
        async with asyncio.timeout(20):
            while in_file(file) < 10:
                await asyncio.sleep(wal_checkpoints.INTERVAL)
                await written(database, "DELETE FROM ducks WHERE 0")
    finally:
        held.close()
        await database.close()
