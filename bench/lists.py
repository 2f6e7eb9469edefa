"""`python -m bench.lists`: lists that clients ask for together, in accounts of several sizes.

The endpoint runs in this process, without sockets. On SQLite the figures are CPU time; on
PostgreSQL, whose work is done by another process, they are the time of the whole request.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from sqlalchemy import text

from bench.folders import Size, furnish
from bench.house import make_user
from bench.inside import asked
from bench.server import bounded
from bench.sides import Kind, postgres
from graph.budgets import Budgets, Rates
from graph.endpoint import Endpoint
from graph.endpoint import Settings as Limits
from graph.guards import Guards
from graph.schema import schema
from mail import searchindex
from merganser.building import on_behalf, opened
from merganser.settings import Settings
from models.world import World
from resolvers import auth, mailboxes
from resolvers.context import Viewer

LONGEST = 3600.0  # seconds of a whole run
ROUNDS, EACH = 7, 30  # the best round counts
OTHERS = 40  # accounts that have mail, too
FEW = 500  # messages of each of these
PAGE = "messages(first: 50) { nodes { id subject receivedAt seen %s } }"
INBOX = "{ viewer { user { mailbox(by: {specialUse: INBOX}) { %s } } } }"
BOXES = "{ viewer { user { mailboxes { id path unseen %s } } } }"
DOCUMENTS = {
    "page": INBOX % (PAGE % ""),
    "page, thread { id }": INBOX % (PAGE % "thread { id }"),
    "page, thread { id subject messageCount }": INBOX
    % (PAGE % "thread { id subject messageCount }"),
    "mailboxes": BOXES % "",
    "mailboxes, parent { id }": BOXES % "parent { id }",
    "two lists": """{ viewer { user {
      inbox: mailbox(by: {specialUse: INBOX}) { messages(first: 50) { nodes { id subject } } }
      sent: mailbox(by: {specialUse: SENT}) { messages(first: 20) { nodes { id subject } } }
    } } }""",
}
# A conversation of each two messages, in place of one of all.
THREADS = (
    """INSERT INTO threads (id, user_id, subject, created_at, muted)
       SELECT id, user_id, subject, received_at, false FROM messages
       WHERE uid % 2 = 0 AND id NOT IN (SELECT id FROM threads)""",
    """UPDATE messages SET thread_id = coalesce((SELECT t.id FROM messages AS m
       JOIN threads AS t ON t.id = m.id
       WHERE m.mailbox_id = messages.mailbox_id AND m.uid = messages.uid - messages.uid % 2),
       thread_id)""",
)
COPIED = """INSERT INTO messages (id, user_id, mailbox_id, {rest})
SELECT id + {by}, {user}, {box}, {rest} FROM (
  SELECT * FROM messages WHERE mailbox_id = {like} ORDER BY uid LIMIT {many}) AS m"""


async def share_out(world: World, like: int) -> None:
    """Give other accounts mail, too."""
    async with world.database.engine.begin() as connection:
        row = (await connection.execute(text("SELECT * FROM messages LIMIT 1"))).one()
    names = [f'"{n}"' for n in row._fields if n not in ("id", "user_id", "mailbox_id")]
    for nth in range(OTHERS):
        user = await make_user(world, f"other{nth}@bench.example")
        boxes = await mailboxes.all_of(on_behalf(world, user.id), user.id, {"id", "path"})
        box = next(row.id for row in boxes if row.path == "INBOX")
        copied = COPIED.format(
            rest=", ".join(names), by=(nth + 1) << 40, user=user.id, box=box, like=like, many=FEW
        )
        async with world.database.engine.begin() as connection:
            await connection.execute(text(copied))


@asynccontextmanager
async def account(kind: Kind, folder: Path, many: int) -> AsyncGenerator[tuple[World, str]]:
    """A store with the account, its statistics as they come; and the secret of its key."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    data = folder / "lists"
    settings = Settings(data=data, store=url) if url else Settings(data=data)
    async with opened(settings, migrate=True) as world:
        there = await furnish(world, Size(many, 50, 10))
        async with world.database.engine.begin() as connection:
            for statement in THREADS:
                await connection.execute(text(statement))
            ((like,),) = await connection.execute(
                text("SELECT mailbox_id FROM messages GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
            )
        await share_out(world, like)
        async with world.database.engine.begin() as connection:
            if kind is Kind.POSTGRES:
                await connection.execute(text("ANALYZE"))
            else:  # what `furnish` has found out of one account alone
                await connection.execute(text("DELETE FROM sqlite_stat1"))
    async with opened(settings) as world:
        yield world, there.secret


async def measured(kind: Kind, world: World, secret: str) -> dict[str, float]:
    """Milliseconds of each document: the best round's mean."""

    async def sign_in(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        return await auth.sign_in(world, headers, params, ip=ip)

    clock = time.process_time if kind is Kind.SQLITE else time.perf_counter
    endpoint = Endpoint(schema, world, sign_in, Limits(guards=Guards(Budgets(Rates(0, 0, 0)))))
    found = {}
    for name, document in DOCUMENTS.items():
        body = orjson.dumps({"query": document})
        rounds = []
        for _ in range(ROUNDS):
            began = clock()
            for _ in range(EACH):
                await asked(endpoint, body, secret)
            rounds.append((clock() - began) / EACH * 1e3)
            await asyncio.sleep(0)
        found[name] = min(rounds)
    return found


def words_measured() -> dict[str, float]:
    """Milliseconds to divide a message of 4 KB into words, plain and with one accent."""
    plain = "Please find attached the minutes of our last meeting, as agreed.\n" * 64
    found = {}
    for name, given in (("words, ASCII", plain), ("words, one accent", plain + "Müller\n")):
        rounds = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(EACH):
                searchindex.words_of(given)
            rounds.append((time.process_time() - began) / EACH * 1e3)
        found[name] = statistics.fmean(sorted(rounds)[:3])
    return found


def main(
    store: Annotated[Kind, typer.Option(help="Where rows lie.")] = Kind.SQLITE,
    messages: Annotated[int, typer.Option(help="In the inbox.")] = 10_000,
) -> None:
    """Print milliseconds, and how many times the page each is."""
    uvloop.run(bounded(_shown(store, messages), LONGEST))


async def _shown(store: Kind, messages: int) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-lists-") as folder:
        async with account(store, Path(folder), messages) as (world, secret):
            found = await measured(store, world, secret)
    for name, value in (found | words_measured()).items():
        typer.echo(f"{name}: {value:.3f} ms, {value / found['page']:.2f} pages")


if __name__ == "__main__":
    typer.run(main)
