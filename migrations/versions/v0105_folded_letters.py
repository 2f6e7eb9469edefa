"""Fold ø, ł, đ, æ and other letters without a Unicode decomposition, and split Korean words.

The stored names that are compared by `fold_text` are folded again here. The text index is built
again by a task, in a new index, so that searches work meanwhile.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from alembic import op
from sqlalchemy import Connection, String, bindparam, column, insert, select, table, update

from models.admin.tasks import Task, TaskKind
from models.messages.tables import Message
from models.store import text_folding
from models.store.columns import BIG_INTEGER, core_table
from models.store.id_generator import IdGenerator
from models.store.text_folding import fold_text

revision = "0105"
down_revision = "0104"

BATCH_SIZE = 1000  # rows of one statement


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        text_folding.recreate_fold_text_function(connection)
    _fold_again(connection, "users", "words", "words", _folded_lines)
    _fold_again(connection, "scim_groups", "display_name", "name_key", fold_text)
    _fold_again(connection, "resources", "name", "folded_name", fold_text)
    _queue_rebuild_of_text_index(connection)


def _folded_lines(words: str) -> str:
    """Fold the search text of a user, in which no line occurs twice."""
    return "\n".join(dict.fromkeys(map(fold_text, words.split("\n"))))


def _fold_again(
    connection: Connection,
    table_name: str,
    source_name: str,
    target_name: str,
    fold: Callable[[str], str],
) -> None:
    """Write the folded text of each row whose stored one differs, in batches."""
    row_id = column("id", BIG_INTEGER)
    source, target = column(source_name, String), column(target_name, String)
    folded_table = table(table_name, row_id, source, target)
    change = update(folded_table).where(row_id == bindparam("row_id"))
    change = change.values({target_name: bindparam("folded")})
    last_id = -1
    while rows := connection.execute(
        select(row_id, source.label("source"), target.label("target"))
        .where(row_id > last_id)
        .order_by(row_id)
        .limit(BATCH_SIZE)
    ).all():
        last_id = rows[-1].id
        folded_rows = [(row, fold(row.source or "")) for row in rows]
        changes = [
            {"row_id": row.id, "folded": folded}
            for row, folded in folded_rows
            if folded != row.target
        ]
        if changes:
            connection.execute(change, changes)


def _queue_rebuild_of_text_index(connection: Connection) -> None:
    """Queue the task of `searchIndexRebuild` for all messages, if there are any.

    It replaces an unfinished rebuild, whose index is partly of the old rule.
    """
    tasks, messages = core_table(Task), core_table(Message)
    connection.execute(
        tasks.delete().where(
            tasks.c.kind == TaskKind.SEARCH_INDEX_REBUILD, tasks.c.finished_at.is_(None)
        )
    )
    if connection.execute(select(messages.c.id).limit(1)).first() is None:
        return
    connection.execute(
        insert(tasks).values(
            id=IdGenerator()(),
            kind=TaskKind.SEARCH_INDEX_REBUILD,
            state="QUEUED",
            done_count=0,
            order={"ids": None, "origin": None, "reason": None},
            cancelled=False,
            attempts=0,
            created_at=datetime.now(UTC),
        )
    )


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a backup instead")
