"""Statistics by which SQLite's planner chooses an index. PostgreSQL's autovacuum has its own."""

from sqlalchemy import Connection

SAMPLED_ROWS = 1000  # of each index: a few milliseconds for a database of any size
MIN_TABLE_ROWS = 1000  # rows of a table whose statistics are kept

STATEMENTS = (
    f"PRAGMA analysis_limit={SAMPLED_ROWS}",
    "ANALYZE",
    # a small table may grow before the next run, and the planner would still read all of it
    "DELETE FROM sqlite_stat1 WHERE tbl IN (SELECT tbl FROM sqlite_stat1 GROUP BY tbl"  # noqa: S608
    f" HAVING max(CAST(stat AS INTEGER)) < {MIN_TABLE_ROWS})",
    # a change of the schema makes other connections read the statistics again
    "CREATE TABLE statistics_changed (id INTEGER)",
    "DROP TABLE statistics_changed",
    "ANALYZE sqlite_schema",  # as does this connection
)


def refresh_statistics(connection: Connection) -> None:
    """Update the statistics of all indexes, and make every connection read them."""
    for statement in STATEMENTS:
        connection.exec_driver_sql(statement)
