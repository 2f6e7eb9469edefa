"""Create the first tables.

The folder `first_tables` holds the statements of each dialect.
"""

from pathlib import Path

from alembic import op

from models.auth import credential_changes
from models.domains import total_triggers
from models.search import text_index
from models.store import text_folding
from models.users import search_index

revision = "0101"
down_revision = None

# added by later migrations, which create the triggers again
MISSING_COLUMNS = {"access_tokens": ["scopes"]}
FOLDER = Path(__file__).parents[1] / "first_tables"


def upgrade() -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    script = (FOLDER / f"{dialect}.sql").read_text(encoding="utf-8")
    for statement in script.split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
    if dialect == "postgresql":
        text_folding.recreate_fold_text_function(connection)
    for statement in (
        # the stream of the platform
        "INSERT INTO streams (id, last, pruned_position) VALUES (0, 0, 0)",
        *text_index.CREATE_TABLE[dialect],
        *search_index.CREATE_INDEXES[dialect],
        *total_triggers.CREATE_TRIGGERS[dialect],
        *credential_changes.create_triggers_sql(dialect, MISSING_COLUMNS),
    ):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("no older version: delete the database instead")
