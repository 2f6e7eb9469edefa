"""Log stores for tests, entries in them, and the entries as the API shows them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from merganser.server.observability.log_store import record_logs_in_log_store
from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.logs.postgres_store import PostgresLogStore
from models.logs.sqlite_store import SqliteLogStore
from models.logs.store import LogStore
from models.runtime.environment import Environment
from models.store.database import Database
from tests.conftest import GraphQLClient

ENTRY_FIELDS = """__typename at component level program message user { username } queueId
messageIdHeader correlationId fields"""
LIST_LOGS = """query ($filter: LogFilter, $orderBy: LogOrder, $first: Int, $after: String,
    $last: Int, $before: String) {
  logs(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    nodes { ENTRY_FIELDS } } }""".replace("ENTRY_FIELDS", ENTRY_FIELDS)


def new_log_store(database: Database, url: str, folder: Path) -> LogStore:
    """Create the log store that belongs to a database."""
    if database.dialect == "sqlite":
        return SqliteLogStore(folder / "logs.sqlite3", folder / "mail.db")
    return PostgresLogStore(url, database)


@asynccontextmanager
async def run_log_store(environment: Environment, url: str, folder: Path) -> AsyncIterator[None]:
    """Record the logs of an environment in an empty log store, and delete that at the end."""
    await _delete_postgres_logs(environment.database)
    environment.logs.store = new_log_store(environment.database, url, folder)
    with record_logs_in_log_store(environment):
        yield
    await environment.logs.stop()
    await _delete_postgres_logs(environment.database)


async def _delete_postgres_logs(database: Database) -> None:
    if database.dialect == "postgresql":
        async with database.engine.begin() as connection:
            await connection.execute(text("DROP TABLE IF EXISTS log_entries"))


def new_entry(environment: Environment, message: str, **values: Any) -> NewLogEntry:
    """Build an entry of the component MTA and the level INFO, unless others are given."""
    columns = {
        "at": environment.now(),
        "component": LogComponent.MTA,
        "level": LogLevel.INFO,
        "program": "mail.tests",
    }
    return NewLogEntry(message=message, **{**columns, **values})


async def list_logs(client: GraphQLClient, **variables: Any) -> list[Any]:
    """List entries after all recorded ones are stored. Page arguments are variables, too."""
    return list((await load_log_page(client, **variables))["nodes"])


async def load_log_page(client: GraphQLClient, **variables: Any) -> Any:
    """Load the connection of entries after all recorded ones are stored."""
    await client.environment.logs.flush_within_timeout()
    return (await client(LIST_LOGS, **variables))["logs"]


async def log_messages(client: GraphQLClient, **filter: Any) -> list[str]:
    """List the messages of the entries that meet a filter, the oldest first."""
    nodes = await list_logs(client, filter=filter or None, orderBy="AT_ASC", first=250)
    return [node["message"] for node in nodes]
