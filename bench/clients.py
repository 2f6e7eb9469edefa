"""`python -m bench.clients`: measure documents of mail clients in small and large accounts.

The database has other accounts too, so that its statistics know several users. The messages are
copied by SQL, and the statistics are up to date.
"""

import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from sqlalchemy import Table, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from bench.figures import report
from bench.figures.measurements import ComparedFigure
from bench.load.http_client import BenchmarkTarget, measure_documents
from bench.load.message_generator import FIRST_DATE, MessageGenerator
from bench.load.sample_account import create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import MerganserServer, run_until_exit, run_with_timeout
from graph.types.global_ids import encode
from mail.recipients import address_resolution
from mail.storage import received_messages
from mail.storage.message_sort_keys import sort_key_columns
from merganser.server.environment_factory import open_environment, root_context, user_context
from merganser.settings.settings import Settings
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message, Thread
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes

TITLE = "mail clients"
MESSAGE_COUNTS = (10_000, 100_000, 1_000_000)  # of the measured accounts
# Other accounts, and their messages: they have many small mailboxes, so that PostgreSQL expects any
# mailbox to be small if it plans a statement without its values.
OTHER_ACCOUNT_COUNT, OTHER_MESSAGE_COUNT = 12, 200
RUN_TIMEOUT = 3600.0  # seconds
BLOCK_SIZE = 1000  # messages that are copied at once
THREAD_SIZE = 3  # messages
SENT, PROJECTS = range(0, 1000, 5), range(1, 1000, 5)  # messages of a block that aren't in INBOX
MAILBOX_COUNT = 40  # in three levels
UNSEEN_INTERVAL = 50  # one of 50 messages is unseen

_ROW = (
    "id subject from { name address } to { name address } date imap { flags } size preview "
    "attachmentCount"
)
DOCUMENTS = {
    "page with threads": f"""query ($inbox: ID!) {{ mailbox(by: {{id: $inbox}}) {{
  id messageCount unseenCount messages(first: 50) {{ nodes {{ {_ROW} thread {{ id }} }}
    pageInfo {{ endCursor hasNextPage }} }} }} }}""",
    "folders with parents": """{ user { mailboxes { nodes {
  id path specialUse messageCount unseenCount parent { id } } } } }""",
    "lists of different length": f"""query ($inbox: ID!, $sent: ID!, $project: ID!) {{
  inbox: mailbox(by: {{id: $inbox}}) {{ messages(first: 50) {{ nodes {{ {_ROW} }} }} }}
  sent: mailbox(by: {{id: $sent}}) {{ messages(first: 10) {{ nodes {{ id subject date }} }} }}
  project: mailbox(by: {{id: $project}}) {{
    messages(first: 25) {{ nodes {{ id subject seen size }} }} }} }}""",
    "start": f"""query ($inbox: ID!, $sent: ID!) {{
  user {{ mailboxes {{ nodes {{ id path messageCount unseenCount parent {{ id }} }} }}
    labels {{ name }} }}
  inbox: mailbox(by: {{id: $inbox}}) {{
    messages(first: 50) {{ nodes {{ {_ROW} thread {{ id }} }} }} }}
  sent: mailbox(by: {{id: $sent}}) {{
    messages(first: 5) {{ nodes {{ id subject thread {{ id }} }} }} }} }}""",
}


@dataclass(frozen=True, slots=True)
class MeasuredAccount:
    """An account with its number of messages, an API key and the variables of documents."""

    message_count: int
    api_key: str = field(repr=False)
    variables: dict[str, str]

    def request_body(self, document: str) -> dict[str, Any]:
        """Return a request with the variables that the document declares."""
        declared = {name: key for name, key in self.variables.items() if f"${name}:" in document}
        return {"query": document, "variables": declared}


async def create_accounts(
    environment: Environment, message_counts: Sequence[int], other_account_count: int
) -> list[MeasuredAccount]:
    """Create an account of each size, and other accounts. Returns those of each size."""
    accounts = []
    first_id = 1  # lower than any id that the server creates
    for nth, count in enumerate([*message_counts, *[OTHER_MESSAGE_COUNT] * other_account_count]):
        address = f"client{nth}@bench.example"
        accounts.append(await _create_account(environment, address, count, first_id))
        first_id += count + BLOCK_SIZE
    return accounts[: len(message_counts)]


async def analyze(environment: Environment) -> None:
    """Update the statistics of the database."""
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))


async def _create_account(
    environment: Environment, address: str, message_count: int, first_id: int
) -> MeasuredAccount:
    user = await create_user(environment, address)
    ctx = user_context(environment, user.id)
    paths = [f"Projects/Year {nth % 5}/No {nth:02}" for nth in range(MAILBOX_COUNT)]
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(paths))
    recipient = await address_resolution.load_recipient_below_limits(environment, address)
    message = await received_messages.parse_storable_message(
        MessageGenerator().make_message(1, size=4000, attachment=b"")
    )
    await received_messages.store_once_for_recipient(
        environment, message, recipient, "carol@example.com"
    )
    rows = await mailbox_loaders.load_visible_mailboxes_of_user(ctx, user.id, {"id", "path"})
    ids_by_path = {row.path: row.id for row in rows}
    mailbox_ids = {
        "inbox": ids_by_path["INBOX"],
        "sent": ids_by_path["Sent"],
        "project": ids_by_path[paths[0]],
    }
    async with environment.database.engine.begin() as connection:
        target_ids = {"projects": [ids_by_path[path] for path in paths], **mailbox_ids}
        first_block = range(first_id, first_id + min(message_count, BLOCK_SIZE))
        await _insert_block(connection, user.id, target_ids, first_block)
        if message_count > BLOCK_SIZE:
            for table in (core_table(Thread), core_table(Message), core_table(MessageSortKey)):
                await _copy_block(connection, table, first_id, message_count // BLOCK_SIZE)
        for statement in _COUNTERS:
            await connection.execute(text(statement), {"user": user.id})
    _, api_key = await api_key_mutations.create_api_key(
        root_context(environment), NewApiKey("bench", user_id=user.id)
    )
    variables = {name: str(encode("Mailbox", key)) for name, key in mailbox_ids.items()}
    return MeasuredAccount(message_count, api_key, variables)


async def _insert_block(
    connection: AsyncConnection, user_id: int, mailbox_ids: dict[str, Any], ids: range
) -> None:
    """Insert the first messages as copies of the one that was delivered."""
    message_query = select(*select_columns(Message)).where(col(Message.user_id) == user_id)
    message_row = (await connection.execute(message_query.limit(1))).one()._asdict()
    thread_query = select(*select_columns(Thread)).where(col(Thread.id) == message_row["thread_id"])
    thread_row = (await connection.execute(thread_query)).one()._asdict()
    message_rows = [
        {
            **message_row,
            "id": message_id,
            "mailbox_id": _mailbox_of_message(mailbox_ids, nth),
            "thread_id": ids.start + nth // THREAD_SIZE,
            "uid": nth + 2,
            "seen": nth % UNSEEN_INTERVAL > 0,
            "received_at": FIRST_DATE + timedelta(minutes=nth),
            "listed_at": FIRST_DATE + timedelta(minutes=nth),
            "subject": f"Message {nth}",
            "indexed": True,
        }
        for nth, message_id in enumerate(ids)
    ]
    thread_rows = [
        {**thread_row, "id": ids.start + nth} for nth in range(len(ids) // THREAD_SIZE + 1)
    ]
    await connection.execute(insert(Thread), thread_rows)
    await connection.execute(insert(Message), message_rows)
    await connection.execute(insert(MessageSortKey), list(map(sort_key_columns, message_rows)))


def _mailbox_of_message(mailbox_ids: dict[str, Any], nth: int) -> int:
    if nth in PROJECTS:
        return int(mailbox_ids["projects"][nth // PROJECTS.step % MAILBOX_COUNT])
    return int(mailbox_ids["sent" if nth in SENT else "inbox"])


async def _copy_block(
    connection: AsyncConnection, table: Table, first_id: int, block_count: int
) -> None:
    """Copy the first block until there are `block_count` blocks, with increasing ids."""
    shifted = {"id", "uid", "thread_id"}
    columns = [f'"{column.name}"' for column in table.columns]
    values = [
        f'm."{column.name}" + n.x * {BLOCK_SIZE}'
        if column.name in shifted
        else f'm."{column.name}"'
        for column in table.columns
    ]
    await connection.execute(
        text(
            f"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x + 1 < :blocks)"  # noqa: S608 - our own names
            f" INSERT INTO {table.name} ({', '.join(columns)}) SELECT {', '.join(values)}"
            f" FROM n CROSS JOIN {table.name} m WHERE m.id >= :first AND m.id < :last"
            " AND n.x < :blocks"
        ),
        {"blocks": block_count, "first": first_id, "last": first_id + BLOCK_SIZE},
    )


_SUMS = "FROM messages WHERE mailbox_id = mailboxes.id"
_COUNTERS = (
    f"UPDATE mailboxes SET message_count = (SELECT count(*) {_SUMS}), unseen_count = "  # noqa: S608
    f"(SELECT count(*) {_SUMS} AND NOT seen), size = (SELECT coalesce(sum(size), 0) {_SUMS}), "
    f"uid_next = (SELECT coalesce(max(uid), 0) + 1 {_SUMS}) WHERE user_id = :user",
    "UPDATE users SET used = (SELECT coalesce(sum(size), 0) FROM messages "
    "WHERE user_id = users.id) WHERE id = :user",
)


@dataclass(frozen=True, slots=True)
class PreparedClientServer:
    """A server that is not started yet, its settings, and its accounts."""

    server: MerganserServer
    settings: Settings
    accounts: list[MeasuredAccount]


@asynccontextmanager
async def create_client_server(
    kind: DatabaseKind,
    folder: Path,
    message_counts: Sequence[int],
    *,
    other_account_count: int = OTHER_ACCOUNT_COUNT,
    has_statistics: bool = True,
) -> AsyncGenerator[PreparedClientServer]:
    """Create a server with accounts of these sizes. It is not started."""
    url = start_database(kind, folder)
    server = MerganserServer(folder / TITLE, url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        accounts = await create_accounts(environment, message_counts, other_account_count)
        if has_statistics:
            await analyze(environment)
    yield PreparedClientServer(server, settings, accounts)


async def measure_client_documents(
    kind: DatabaseKind,
    folder: Path,
    *,
    message_counts: Sequence[int] = MESSAGE_COUNTS,
    connection_count: int = 2,
    seconds: float = 2.0,
) -> list[ComparedFigure]:
    """Measure each document in each account over HTTP, without a baseline."""
    lines = []
    async with (
        create_client_server(kind, folder, message_counts) as prepared,
        run_until_exit(prepared.server.start) as pid,
    ):
        for account in prepared.accounts:
            target = BenchmarkTarget(prepared.server.http_port, pid, account.api_key)
            bodies = {name: account.request_body(document) for name, document in DOCUMENTS.items()}
            figures = await measure_documents(
                target, bodies, connection_count=connection_count, seconds=seconds
            )
            lines += [
                ComparedFigure(f"{account.message_count:,} messages: {name}", figure)
                for name, figure in figures.items()
            ]
    return lines


def main(
    store: Annotated[DatabaseKind, typer.Option(help="Database.")] = DatabaseKind.SQLITE,
    many: Annotated[list[int], typer.Option(help="Messages per account.")] = list(MESSAGE_COUNTS),  # noqa: B006
    seconds: Annotated[float, typer.Option(help="Duration of each run in seconds.")] = 2.0,
) -> None:
    """Print the figures."""
    uvloop.run(run_with_timeout(_measure_and_print(store, many, seconds), RUN_TIMEOUT))


async def _measure_and_print(
    store: DatabaseKind, message_counts: Sequence[int], seconds: float
) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-clients-") as folder:
        lines = await measure_client_documents(
            store, Path(folder), message_counts=message_counts, seconds=seconds
        )
    for line in lines:
        typer.echo(report.format_figure(line))


if __name__ == "__main__":
    typer.run(main)
