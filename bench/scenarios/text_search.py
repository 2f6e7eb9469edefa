"""`python -m bench.scenarios.text_search`.

Searches for words in large accounts, newest 50 first.
"""

import tempfile
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
import uvloop
from sqlalchemy import insert, select, text

from bench.figures import report
from bench.figures.measurements import ComparedFigure
from bench.load.http_client import BenchmarkTarget, measure_documents
from bench.load.message_generator import FIRST_DATE, MessageGenerator
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import MerganserServer, run_until_exit, run_with_timeout
from mail.recipients import address_resolution
from mail.search.tokenizer import index_values, message_words
from mail.storage import received_messages
from mail.storage.message_sort_keys import sort_key_columns
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.search import text_index
from models.store.columns import select_columns
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "searches"
MESSAGE_COUNTS = (10_000, 100_000)
RUN_TIMEOUT = 900.0  # seconds
ROWS_PER_TRANSACTION = 2000
# messages per message with the word
COMMON_INTERVAL = 4
HALF_INTERVAL = 2
TENTH_INTERVAL = 10
HUNDREDTH_INTERVAL = 100
RARE_INTERVAL = 5000
SEARCH_QUERY = """query ($filter: MessageFilter, $orderBy: MessageOrder! = RECEIVED_AT_DESC) {
  messages(filter: $filter, orderBy: $orderBy, first: 50) {
    nodes { id subject from { name address } receivedAt seen flagged size preview }
    pageInfo { endCursor hasNextPage } } }"""
SEARCH_VARIABLES: dict[str, dict[str, Any]] = {
    "rare word": {"filter": {"query": "wordrare"}},
    "common word": {"filter": {"query": "wordcommon"}},
    "a word of 10 % of the messages": {"filter": {"query": "wordtenth"}},
    "a word of 1 % of the messages": {"filter": {"query": "wordhundredth"}},
    "two words": {"filter": {"query": "wordcommon wordtenth"}},
    "prefix": {"filter": {"query": "wordhun*"}},
    "common word, unseen": {"filter": {"query": "wordcommon", "seen": False}},
    "either of two words": {"filter": {"or": [{"query": "wordrare"}, {"query": "wordhundredth"}]}},
    "common word, by relevance": {"filter": {"query": "wordcommon"}, "orderBy": "RELEVANCE"},
    "without words, first page": {},
}


async def insert_indexed_messages(environment: Environment, message_count: int) -> None:
    """Insert copies of one message, each with its own words in the index."""
    to = await address_resolution.load_recipient_below_limits(environment, READER_ADDRESS)
    message = await received_messages.parse_storable_message(
        MessageGenerator().make_message(1, size=20_000, attachment=b"")
    )
    await received_messages.store_once_for_recipient(environment, message, to, "carol@example.com")
    (model_row,) = await environment.database.read(select(*select_columns(Message)).limit(1))
    dice, dialect = Random(5), environment.database.dialect  # noqa: S311 - the same words each time
    base = [f"w{n}" for n in range(30_000)]
    for start in range(0, message_count, ROWS_PER_TRANSACTION):
        rows, index_words = [], []
        for nth in range(start, min(start + ROWS_PER_TRANSACTION, message_count)):
            row = dict(zip(model_row._fields, model_row, strict=True))
            row |= {
                "id": environment.new_id(),
                "uid": nth + 2,
                "indexed": True,
                "seen": nth % 50 > 0,
            }
            row |= {"listed_at": FIRST_DATE + timedelta(minutes=nth), "subject": f"Message {nth}"}
            rows.append(row)
            words = [*dice.choices(base, k=150), *_marker_words(nth)]
            index_words.append(
                {
                    "id": row["id"],
                    **index_values(dialect, to.user_id, message_words(" ".join(words))),
                }
            )
        async with environment.write_session() as session:
            connection = await session.connection()
            await connection.execute(insert(Message), rows)
            await connection.execute(insert(MessageSortKey), list(map(sort_key_columns, rows)))
            await connection.run_sync(text_index.insert_messages, index_words)
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("UPDATE messages SET indexed = true"))
        await connection.execute(text("ANALYZE") if dialect != "sqlite" else text("SELECT 1"))


def _marker_words(message_number: int) -> list[str]:
    """Return the marker words of a message by its number."""
    found = ["wordcommon"] if message_number % COMMON_INTERVAL else []
    for name, each in (
        ("wordtenth", TENTH_INTERVAL),
        ("wordhundredth", HUNDREDTH_INTERVAL),
        ("wordrare", RARE_INTERVAL),
    ):
        found += [name] if message_number % each == 1 else []
    return found


async def measure_searches(
    database_kind: DatabaseKind,
    folder: Path,
    *,
    message_count: int,
    connection_count: int = 2,
    seconds: float = 2.0,
) -> list[ComparedFigure]:
    """Return the figure of each search over HTTP, without a baseline."""
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / f"searches{message_count}", url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        await insert_indexed_messages(environment, message_count)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("bench", user_id=user.id)
        )
    bodies = {
        name: {"query": SEARCH_QUERY, "variables": variable}
        for name, variable in SEARCH_VARIABLES.items()
    }
    async with run_until_exit(server.start) as pid:
        target = BenchmarkTarget(server.http_port, pid, secret)
        figures = await measure_documents(
            target, bodies, connection_count=connection_count, seconds=seconds
        )
    return [
        ComparedFigure(f"{message_count:,} messages: {name}", figure)
        for name, figure in figures.items()
    ]


def main(
    store: Annotated[DatabaseKind, typer.Option(help="Database.")] = DatabaseKind.SQLITE,
    many: Annotated[list[int], typer.Option(help="Messages per account.")] = list(MESSAGE_COUNTS),  # noqa: B006
) -> None:
    """Print the figures."""
    for count in many:
        uvloop.run(run_with_timeout(_print_measurements(store, count), RUN_TIMEOUT))


async def _print_measurements(database_kind: DatabaseKind, message_count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-searches-") as folder:
        lines = await measure_searches(database_kind, Path(folder), message_count=message_count)
    for line in lines:
        typer.echo(report.format_figure(line))


if __name__ == "__main__":
    typer.run(main)
