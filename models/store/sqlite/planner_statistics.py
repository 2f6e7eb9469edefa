"""Statistics by which SQLite's planner chooses an index. PostgreSQL's autovacuum has its own."""

from sqlalchemy import Connection

ROWS = 1000  # of each index that are looked at: a few milliseconds, however large the store is
LARGE = 1000  # rows of a table whose statistics are kept

STATEMENTS = (
    f"PRAGMA analysis_limit={ROWS}",
    "ANALYZE",
    # a small table may grow before the next time, and the planner would go on to read all of it
    "DELETE FROM sqlite_stat1 WHERE tbl IN (SELECT tbl FROM sqlite_stat1 GROUP BY tbl"  # noqa: S608
    f" HAVING max(CAST(stat AS INTEGER)) < {LARGE})",
    # a change of the schema lets other connections read the statistics again
    "CREATE TABLE statistics_changed (id INTEGER)",
    "DROP TABLE statistics_changed",
    "ANALYZE sqlite_schema",  # and this one
)


def refresh_statistics(connection: Connection) -> None:
    """Look at the indexes of an SQLite store, and let every connection know what was found."""
    for statement in STATEMENTS:
        connection.exec_driver_sql(statement)
