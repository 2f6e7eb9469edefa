"""Which servers can use a database after its migrations: the oldest revision of compatible code.

A migration that sets `expand_only = True` leaves all that older code reads and writes as it is.
The revision of the last migration without it is stored as a fact of the database, in the
transaction of the migration. Code of this revision, or of a later one, can use the database.
"""

import socket
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, String, column, delete, insert, select, table

from models.store.columns import UtcDateTime

OLDEST_REVISION_FACT = "oldest revision"

# The columns of the first tables: `StoreFact` can have those of later migrations.
_FACTS = table(
    "store_facts",
    column("name", String),
    column("digest", String),
    column("host", String),
    column("location", String),
    column("at", UtcDateTime()),
)
SELECT_OLDEST_REVISION: Select[Any] = select(_FACTS.c.digest).where(
    _FACTS.c.name == OLDEST_REVISION_FACT
)


def load_oldest_revision(connection: Connection) -> str | None:
    """Load the oldest revision of compatible code; None if no migration has stored it."""
    revision: str | None = connection.execute(SELECT_OLDEST_REVISION).scalar()
    return revision


def record_migration(
    connection: Connection, revision: str, previous_revision: str, *, expand_only: bool
) -> None:
    """Store the oldest revision of compatible code after a migration."""
    if expand_only and load_oldest_revision(connection) is not None:
        return
    connection.execute(delete(_FACTS).where(_FACTS.c.name == OLDEST_REVISION_FACT))
    connection.execute(
        insert(_FACTS).values(
            name=OLDEST_REVISION_FACT,
            digest=previous_revision if expand_only else revision,
            host=socket.gethostname(),
            location=f"migration {revision}",
            at=datetime.now(UTC),
        )
    )


def is_code_compatible(
    code_revision: str, database_revisions: Collection[str], oldest_revision: str | None
) -> bool:
    """True if code can use a database of newer revisions, whose migrations the code lacks."""
    return (
        oldest_revision is not None
        and oldest_revision <= code_revision
        and all(revision > code_revision for revision in database_revisions)
    )
