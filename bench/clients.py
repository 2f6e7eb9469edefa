"""`python -m bench.clients`: documents of mail clients, in small and large accounts.

The accounts are in one store with some others, so that its statistics know several users. Their
messages are copied by SQL, and the statistics are up to date.
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
from bench.figures.measurements import Line
from bench.load.http_client import Target, measure_documents
from bench.load.message_generator import START, Writer
from bench.load.sample_account import make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, bounded, running
from graph.types.global_ids import encode
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import on_behalf, opened, owner
from merganser.settings.settings import Settings
from models.messages.tables import Message, Thread
from models.runtime.environment import World
from models.store.columns import picked, table_of
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes

NAME = "clients"
MANY = (10_000, 100_000, 1_000_000)  # messages of the accounts
# Accounts besides, and their messages: so many mailboxes with so few of them that PostgreSQL takes
# any mailbox for a small one when it does not look at the values of a statement.
NEIGHBOURS, FEW = 12, 200
LONGEST = 3600.0  # seconds of a whole run
BLOCK = 1000  # messages that are copied at once
IN_THREAD = 3  # messages of a conversation
SENT, PROJECTS = range(0, 1000, 5), range(1, 1000, 5)  # messages of a block outside of INBOX
BOXES = 40  # in three levels
EVERY_UNSEEN = 50

_ROW = "id subject from { name address } to { name address } date flags size intro attachmentCount"
DOCUMENTS = {
    "page with threads": f"""query ($inbox: ID!) {{ mailbox(by: {{id: $inbox}}) {{
  id total unseen messages(first: 50) {{ nodes {{ {_ROW} thread {{ id }} }}
    pageInfo {{ endCursor hasNextPage }} }} }} }}""",
    "folders with parents": """{ user { mailboxes {
  id path specialUse total unseen parent { id } } } }""",
    "lists of different length": f"""query ($inbox: ID!, $sent: ID!, $project: ID!) {{
  inbox: mailbox(by: {{id: $inbox}}) {{ messages(first: 50) {{ nodes {{ {_ROW} }} }} }}
  sent: mailbox(by: {{id: $sent}}) {{ messages(first: 10) {{ nodes {{ id subject date }} }} }}
  project: mailbox(by: {{id: $project}}) {{
    messages(first: 25) {{ nodes {{ id subject seen size }} }} }} }}""",
    "start": f"""query ($inbox: ID!, $sent: ID!) {{
  user {{ mailboxes {{ id path total unseen parent {{ id }} }} labels {{ name }} }}
  inbox: mailbox(by: {{id: $inbox}}) {{
    messages(first: 50) {{ nodes {{ {_ROW} thread {{ id }} }} }} }}
  sent: mailbox(by: {{id: $sent}}) {{
    messages(first: 5) {{ nodes {{ id subject thread {{ id }} }} }} }} }}""",
}


@dataclass(frozen=True, slots=True)
class Account:
    """An account with so many messages."""

    messages: int
    secret: str = field(repr=False)
    variables: dict[str, str]

    def body(self, document: str) -> dict[str, Any]:
        """A request with those variables that the document has."""
        known = {name: key for name, key in self.variables.items() if f"${name}:" in document}
        return {"query": document, "variables": known}


async def furnish(world: World, many: Sequence[int], neighbours: int) -> list[Account]:
    """Make an account of each size, and others besides."""
    accounts = []
    first = 1  # no key that the server makes is that low
    for nth, count in enumerate([*many, *[FEW] * neighbours]):
        accounts.append(await _account(world, f"client{nth}@bench.example", count, first))
        first += count + BLOCK
    return accounts[: len(many)]


async def analyze(world: World) -> None:
    """Bring the statistics of the store up to date."""
    async with world.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))


async def _account(world: World, address: str, count: int, first: int) -> Account:
    user = await make_user(world, address)
    ctx = on_behalf(world, user.id)
    paths = [f"Projects/Year {nth % 5}/No {nth:02}" for nth in range(BOXES)]
    await mailbox_loaders.create(ctx, NewMailboxes(paths))
    to = await address_resolution.recipient(world, address)
    letter = await received_messages.read(Writer().letter(1, size=4000, attached=b""))
    await received_messages.receive(world, letter, to, "carol@example.com")
    rows = await mailbox_loaders.all_of(ctx, user.id, {"id", "path"})
    boxes = {box.path: box.id for box in rows}
    there = {"inbox": boxes["INBOX"], "sent": boxes["Sent"], "project": boxes[paths[0]]}
    async with world.database.engine.begin() as connection:
        places = {"projects": [boxes[path] for path in paths], **there}
        await _block(connection, user.id, places, range(first, first + min(count, BLOCK)))
        for table in (table_of(Thread), table_of(Message)) if count > BLOCK else ():
            await _copies(connection, table, first, count // BLOCK)
        for statement in _COUNTERS:
            await connection.execute(text(statement), {"user": user.id})
    _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
    keys = {name: str(encode("Mailbox", key)) for name, key in there.items()}
    return Account(count, secret, keys)


async def _block(
    connection: AsyncConnection, user_id: int, places: dict[str, Any], keys: range
) -> None:
    """Put the first messages in, like the one that was delivered."""
    asked = select(*picked(Message)).where(col(Message.user_id) == user_id)
    like = (await connection.execute(asked.limit(1))).one()._asdict()
    thread = select(*picked(Thread)).where(col(Thread.id) == like["thread_id"])
    threads = (await connection.execute(thread)).one()._asdict()
    rows = [
        {
            **like,
            "id": key,
            "mailbox_id": _mailbox(places, nth),
            "thread_id": keys.start + nth // IN_THREAD,
            "uid": nth + 2,
            "seen": nth % EVERY_UNSEEN > 0,
            "received_at": START + timedelta(minutes=nth),
            "listed_at": START + timedelta(minutes=nth),
            "subject": f"Letter {nth}",
            "indexed": True,
        }
        for nth, key in enumerate(keys)
    ]
    some = [{**threads, "id": keys.start + nth} for nth in range(len(keys) // IN_THREAD + 1)]
    await connection.execute(insert(Thread), some)
    await connection.execute(insert(Message), rows)


def _mailbox(places: dict[str, Any], nth: int) -> int:
    if nth in PROJECTS:
        return int(places["projects"][nth // PROJECTS.step % BOXES])
    return int(places["sent" if nth in SENT else "inbox"])


async def _copies(connection: AsyncConnection, table: Table, first: int, blocks: int) -> None:
    """Copy the first thousand so often that there are so many thousands, by rising keys."""
    moved = {"id", "uid", "thread_id"}
    columns = [f'"{column.name}"' for column in table.columns]
    values = [
        f'm."{column.name}" + n.x * {BLOCK}' if column.name in moved else f'm."{column.name}"'
        for column in table.columns
    ]
    await connection.execute(
        text(
            f"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x + 1 < :blocks)"  # noqa: S608 - our own names
            f" INSERT INTO {table.name} ({', '.join(columns)}) SELECT {', '.join(values)}"
            f" FROM n CROSS JOIN {table.name} m WHERE m.id >= :first AND m.id < :last"
            " AND n.x < :blocks"
        ),
        {"blocks": blocks, "first": first, "last": first + BLOCK},
    )


_SUMS = "FROM messages WHERE mailbox_id = mailboxes.id"
_COUNTERS = (
    f"UPDATE mailboxes SET total = (SELECT count(*) {_SUMS}), unseen = "  # noqa: S608
    f"(SELECT count(*) {_SUMS} AND NOT seen), size = (SELECT coalesce(sum(size), 0) {_SUMS}), "
    f"uid_next = (SELECT coalesce(max(uid), 0) + 1 {_SUMS}) WHERE user_id = :user",
    "UPDATE users SET used = (SELECT coalesce(sum(size), 0) FROM messages "
    "WHERE user_id = users.id) WHERE id = :user",
)


@asynccontextmanager
async def furnished(
    kind: Kind,
    folder: Path,
    many: Sequence[int],
    *,
    neighbours: int = NEIGHBOURS,
    analyzed: bool = True,
) -> AsyncGenerator[tuple[Server, Settings, list[Account]]]:
    """A server that isn't started yet, its settings, and its accounts."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / NAME, url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    async with opened(settings, migrate=True) as world:
        accounts = await furnish(world, many, neighbours)
        if analyzed:
            await analyze(world)
    yield server, settings, accounts


async def measured(
    kind: Kind,
    folder: Path,
    *,
    many: Sequence[int] = MANY,
    connections: int = 2,
    seconds: float = 2.0,
) -> list[Line]:
    """Figures of each document in each account, over HTTP, without a floor."""
    lines = []
    async with (
        furnished(kind, folder, many) as (server, _, accounts),
        running(server.start) as pid,
    ):
        for account in accounts:
            target = Target(server.http, pid, account.secret)
            bodies = {name: account.body(document) for name, document in DOCUMENTS.items()}
            figures = await measure_documents(
                target, bodies, connections=connections, seconds=seconds
            )
            lines += [
                Line(f"{account.messages:,} messages: {name}", figure)
                for name, figure in figures.items()
            ]
    return lines


def main(
    store: Annotated[Kind, typer.Option(help="Where rows lie.")] = Kind.SQLITE,
    many: Annotated[list[int], typer.Option(help="Messages.")] = list(MANY),  # noqa: B006
    seconds: Annotated[float, typer.Option(help="Of each run.")] = 2.0,
) -> None:
    """Print the figures."""
    uvloop.run(bounded(_shown(store, many, seconds), LONGEST))


async def _shown(store: Kind, many: Sequence[int], seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-clients-") as folder:
        lines = await measured(store, Path(folder), many=many, seconds=seconds)
    for line in lines:
        typer.echo(report.line(line))


if __name__ == "__main__":
    typer.run(main)
