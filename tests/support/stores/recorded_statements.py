"""The SQL statements that a test sends to its database."""

import re
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.sql.selectable import SelectBase

from models.store.database import Database

TRANSACTION_STATEMENTS = ("BEGIN", "PRAGMA", "SAVEPOINT", "RELEASE")
# Delivery trace steps, the poll for changed credentials, and the last use of keys and tokens: these
# statements are sent in the background, at times that depend on the load of the machine.
BACKGROUND_STATEMENT = re.compile(
    r"INSERT INTO delivery_trace_steps|credential_changes"
    r"|UPDATE (api_keys|access_tokens) SET .*\blast_used_at=",
    re.DOTALL,
)


def record_sql(database: Database, *, with_background: bool = False) -> list[str]:
    """Record SQL statements from now on, in order; those of background tasks only if asked for."""
    statements: list[str] = []

    def record_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(TRANSACTION_STATEMENTS):
            return
        if with_background or not BACKGROUND_STATEMENT.search(statement):
            statements.append(statement)

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", record_statement)
    return statements


def record_built_selects(database: Database) -> list[str]:
    """Record the SELECT statements that SQLAlchemy runs from now on, without background tasks.

    They are built for each request. Prepared statements are not recorded.
    """
    selects: list[str] = []

    def record_select(_connection: Any, statement: Any, *_: Any) -> None:
        if isinstance(statement, SelectBase) and not BACKGROUND_STATEMENT.search(str(statement)):
            selects.append(str(statement))

    for engine in database.engines:
        event.listen(engine, "before_execute", record_select)
    return selects


@pytest.fixture
def statements(database: Database) -> Any:
    """The SQL statements that are sent, in order. `del statements[:]` forgets the previous ones.

    The list excludes the statements of background tasks.
    """
    return record_sql(database)
