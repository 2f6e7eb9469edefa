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
from bench.figures.measurements import Line
from bench.load.http_client import Target, measure_documents
from bench.load.message_generator import START, Writer
from bench.load.sample_account import READER, make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, bounded, running
from mail.recipients import address_resolution
from mail.search.tokenizer import indexed, words_of
from mail.storage import received_messages
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from models.messages.tables import Message
from models.runtime.environment import World
from models.search import text_index
from models.store.columns import picked
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

NAME = "searches"
MANY = (10_000, 100_000)
LONGEST = 900.0  # seconds
CHUNK = 2000
COMMON, HALF, TENTH, HUNDREDTH, RARE = 4, 2, 10, 100, 5000  # messages per message with the word
LIST = """query ($filter: MessageFilter, $orderBy: MessageOrder! = RECEIVED_DESC) {
  messages(filter: $filter, orderBy: $orderBy, first: 50) {
    nodes { id subject from { name address } receivedAt seen flagged size intro }
    pageInfo { endCursor hasNextPage } } }"""
ASKED: dict[str, dict[str, Any]] = {
    "rare word": {"filter": {"query": "wordrare"}},
    "common word": {"filter": {"query": "wordcommon"}},
    "a word of a tenth": {"filter": {"query": "wordtenth"}},
    "a word of a hundredth": {"filter": {"query": "wordhundredth"}},
    "two words": {"filter": {"query": "wordcommon wordtenth"}},
    "prefix": {"filter": {"query": "wordhun*"}},
    "common, unseen": {"filter": {"query": "wordcommon", "seen": False}},
    "either of two": {"filter": {"or": [{"query": "wordrare"}, {"query": "wordhundredth"}]}},
    "by relevance": {"filter": {"query": "wordcommon"}, "orderBy": "RELEVANCE"},
    "no word, first page": {},
}


async def fill(world: World, many: int) -> None:
    """Insert copies of one message, each with its own words in the index."""
    to = await address_resolution.recipient(world, READER)
    letter = await received_messages.read(Writer().letter(1, size=20_000, attached=b""))
    await received_messages.receive(world, letter, to, "carol@example.com")
    (like,) = await world.database.read(select(*picked(Message)).limit(1))
    dice, dialect = Random(5), world.database.dialect  # noqa: S311 - the same words each time
    base = [f"w{n}" for n in range(30_000)]
    for start in range(0, many, CHUNK):
        rows, words = [], []
        for nth in range(start, min(start + CHUNK, many)):
            row = dict(zip(like._fields, like, strict=True))
            row |= {"id": world.key(), "uid": nth + 2, "indexed": True, "seen": nth % 50 > 0}
            row |= {"listed_at": START + timedelta(minutes=nth), "subject": f"Letter {nth}"}
            rows.append(row)
            said = [*dice.choices(base, k=150), *_marked(nth)]
            words.append(
                {"id": row["id"], **indexed(dialect, to.user_id, words_of(" ".join(said)))}
            )
        async with world.write() as session:
            connection = await session.connection()
            await connection.execute(insert(Message), rows)
            await connection.execute(text_index.insert(dialect), words)
    async with world.database.engine.begin() as connection:
        await connection.execute(text("UPDATE messages SET indexed = true"))
        await connection.execute(text("ANALYZE") if dialect != "sqlite" else text("SELECT 1"))


def _marked(nth: int) -> list[str]:
    """Return the marker words of a message by its number."""
    found = ["wordcommon"] if nth % COMMON else []
    for name, each in (("wordtenth", TENTH), ("wordhundredth", HUNDREDTH), ("wordrare", RARE)):
        found += [name] if nth % each == 1 else []
    return found


async def measured(
    kind: Kind, folder: Path, *, many: int, connections: int = 2, seconds: float = 2.0
) -> list[Line]:
    """Return the figure of each search over HTTP, without a baseline."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / f"searches{many}", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER)
        await fill(world, many)
        _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
    bodies = {name: {"query": LIST, "variables": given} for name, given in ASKED.items()}
    async with running(server.start) as pid:
        target = Target(server.http, pid, secret)
        figures = await measure_documents(target, bodies, connections=connections, seconds=seconds)
    return [Line(f"{many:,} messages: {name}", figure) for name, figure in figures.items()]


def main(
    store: Annotated[Kind, typer.Option(help="Where rows lie.")] = Kind.SQLITE,
    many: Annotated[list[int], typer.Option(help="Messages.")] = list(MANY),  # noqa: B006
) -> None:
    """Print the figures."""
    for count in many:
        uvloop.run(bounded(_shown(store, count), LONGEST))


async def _shown(store: Kind, many: int) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-searches-") as folder:
        lines = await measured(store, Path(folder), many=many)
    for line in lines:
        typer.echo(report.line(line))


if __name__ == "__main__":
    typer.run(main)
