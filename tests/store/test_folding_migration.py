"""The migration to the folding of letters such as ø and of parts of Korean words."""

from typing import Any

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text, update
from sqlmodel import col

from mail.search import index_worker
from merganser.bundled_folders import bundled_folder
from merganser.server.store.alembic_commands import alembic_config
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.search import text_index
from models.users.tables import User
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.operations.search_operations import search_subjects

REVISION = "0105"
SUBJECT, BODY = "Øresund", "한국어시험입니다"
OLD_WORDS = "øresund 한국어시험입니다"
QUERIES = ("oresund", "Øresund", "국어시")


async def change_tables(environment: Environment, change: Any, *arguments: Any) -> None:
    """Run a function in a transaction that can change tables, as at the start of a server."""
    engine = environment.database.engine.execution_options(merganser_write=True)
    async with engine.begin() as connection:
        await connection.run_sync(change, *arguments)


def store_as_before(connection: Connection, user: Any) -> None:
    """Store the words of the message and the search text of the user by the old rule."""
    dialect = connection.dialect.name
    for statement in (*text_index.DROP_TABLE, *text_index.CREATE_TABLE[dialect]):
        connection.execute(text(statement))
    owner = text_index.user_token(user.id)
    words = OLD_WORDS if dialect == "sqlite" else f"'{owner}' {OLD_WORDS}"
    message_id = connection.execute(select(col(Message.id))).scalar_one()
    parameters = {"id": message_id, "owner": owner, "words": words}
    text_index.insert_messages(connection, [parameters])
    is_user = col(User.id) == user.id
    connection.execute(update(User).where(is_user).values(name="Bjørn", words="ada\nbjørn"))
    if dialect == "postgresql":
        connection.execute(text("DROP FUNCTION fold_text(text)"))


def run_migration_again(connection: Connection) -> None:
    """Mark the database as one of the version before, and upgrade it."""
    script = ScriptDirectory(str(bundled_folder("migrations"))).get_revision(REVISION)
    config = alembic_config(connection)
    command.stamp(config, str(script.down_revision))
    command.upgrade(config, REVISION)
    command.stamp(config, "head")


async def test_message_of_an_older_version_is_found_by_the_new_folding(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, raw_message(SUBJECT, body=BODY))
    await index_worker.index_next_batch_and_record_contacts(environment)
    await change_tables(environment, store_as_before, ada.user)
    assert [await search_subjects(ada, query) for query in QUERIES] == [[], [], []]
    await change_tables(environment, run_migration_again)
    while await tasks.run_next_task(environment):
        pass
    assert [await search_subjects(ada, query) for query in QUERIES] == [[SUBJECT]] * 3
    assert await search_subjects(ada, f"subject:{SUBJECT}") == [SUBJECT]
    words = await environment.database.read(
        select(col(User.words)).where(col(User.id) == ada.user.id)
    )
    assert words[0].words == "ada\nbjorn"
    for query in ("bjorn", "Bjørn"):
        answer = await root(
            "query ($query: String) { users(filter: {query: $query}) { nodes { username } } }",
            query=query,
        )
        assert answer["users"]["nodes"] == [{"username": "ada"}]
