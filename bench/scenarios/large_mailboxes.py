"""`python -m bench.scenarios.large_mailboxes`: late pages, many mailboxes, flags and moves."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from sqlalchemy import event, insert, select, text
from sqlmodel import col

from bench.figures import report
from bench.figures.measurements import Fact, Line
from bench.load.http_client import Target, loaded, once, post
from bench.load.message_generator import START, Writer
from bench.load.sample_account import READER, make_user
from bench.scenarios.in_process_request import asked
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, bounded, running, settled
from graph.http.admission_control import Guards
from graph.http.graphql_endpoint import Endpoint
from graph.http.graphql_endpoint import Settings as Limits
from graph.http.rate_budgets import Budgets, Rates
from graph.schema import schema
from graph.types.global_ids import encode
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import on_behalf, opened, owner
from merganser.settings.settings import Settings
from models.events.journal import Change, ChangeKind
from models.messages.tables import Message
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.keyset_pages import Cursor
from resolvers.auth import api_keys, authentication
from resolvers.auth.api_keys import NewKey
from resolvers.context import Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.messages.loaders import NEWEST

NAME = "folders"
LONGEST = 3600.0  # seconds
CHUNK = 5000
PAGE, LATE = 50, 1000
FLAGGED = 1000
LIST = """query ($box: ID!, $after: String) { viewer { user { mailbox(by: {id: $box}) {
  messages(first: 50, after: $after) {
    nodes { id subject from { name address } receivedAt seen flagged size intro }
    pageInfo { endCursor hasNextPage } } } } } }"""
BOXES = "{ viewer { user { mailboxes { id path total unseen size } } } }"
FLAG = """mutation ($input: MessageUpdateInput!) {
  messageUpdate(input: $input) { updatedCount errors { message } } }"""
MOVE = """mutation ($input: MessageMoveInput!) {
  messageMove(input: $input) { task { id } errors { message } } }"""
TASK = "query ($id: ID!) { task(id: $id) { state done } }"


@dataclass(frozen=True, slots=True)
class Size:
    """The size of the account."""

    messages: int = 100_000
    boxes: int = 1000
    moved: int = 10_000


@dataclass(frozen=True, slots=True)
class Folders:
    """The IDs and paths of the account that the load needs."""

    secret: str = field(repr=False)
    box: str
    late: str  # cursor before the late page
    newest: list[str]
    away: str
    few: str  # the mailbox with the messages to move


async def fill(world: World, box: Picked, many: int) -> None:
    """Fill a mailbox with copies of the existing message."""
    rows = await world.database.read(select(*picked(Message)).limit(1))
    like = dict(zip(rows[0]._fields, rows[0], strict=True))
    for start in range(0, many, CHUNK):
        given = [
            {
                **like,
                "id": world.key(),
                "mailbox_id": box.id,
                "uid": nth + 2,
                "seen": nth % 50 > 0,
                "received_at": START + timedelta(minutes=nth),
                "listed_at": START + timedelta(minutes=nth),
                "subject": f"Letter {nth}",
                "indexed": True,
            }
            for nth in range(start, min(start + CHUNK, many))
        ]
        async with world.write() as session:
            await (await session.connection()).execute(insert(Message), given)


async def furnish(world: World, size: Size) -> Folders:
    """Create an account with a large inbox, another filled mailbox and many empty ones."""
    user = await make_user(world, READER)
    ctx = on_behalf(world, user.id)
    paths = [f"Projects/No {nth:04}" for nth in range(size.boxes)]
    for start in range(0, len(paths), 100):
        await mailbox_loaders.create(ctx, NewMailboxes([*paths[start : start + 100]]))
    to = await address_resolution.recipient(world, READER)
    letter = await received_messages.read(Writer().letter(1, size=4000, attached=b""))
    await received_messages.receive(world, letter, to, "carol@example.com")
    boxes = {box.path: box for box in await mailbox_loaders.all_of(ctx, user.id, {"id", "path"})}
    await fill(world, boxes["INBOX"], size.messages)
    await fill(world, boxes[paths[0]], size.moved)
    await _count(world)
    newest = (
        select(*picked(Message, {"id", "listed_at"}))
        .where(col(Message.mailbox_id) == boxes["INBOX"].id)
        .order_by(col(Message.listed_at).desc(), col(Message.id).desc())
    )
    rows = await world.database.read(newest.limit(FLAGGED))
    skipped = min(PAGE * (LATE - 1), size.messages // 2)
    (last,) = await world.database.read(newest.offset(skipped).limit(1))
    _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
    return Folders(
        secret,
        encode("Mailbox", boxes["INBOX"].id),
        str(Cursor(NEWEST, last.listed_at, last.id)),
        [encode("Message", row.id) for row in rows],
        paths[1],
        paths[0],
    )


async def _count(world: World) -> None:
    """Update counters and quota from the inserted rows, and analyze the tables."""
    sums = "FROM messages WHERE mailbox_id = mailboxes.id"
    statements = [
        f"UPDATE mailboxes SET total = (SELECT count(*) {sums}), unseen = "  # noqa: S608
        f"(SELECT count(*) {sums} AND NOT seen), size = (SELECT coalesce(sum(size), 0) {sums}), "
        f"uid_next = (SELECT coalesce(max(uid), 0) + 1 {sums})",
        "UPDATE users SET used = (SELECT coalesce(sum(size), 0) FROM messages "
        "WHERE user_id = users.id)",
        "ANALYZE",
    ]
    async with world.database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


def flags(target: Target, ids: list[str]) -> Iterator[bytes]:
    """Yield requests that flag and unflag these messages."""
    for flagged in itertools.cycle((True, False)):
        given = {"select": {"ids": ids}, "set": {"flagged": flagged}}
        yield post(target, "/graphql", {"query": FLAG, "variables": {"input": given}})


async def measured(
    kind: Kind, folder: Path, *, size: Size, seconds: float = 2.0, only: str = ""
) -> tuple[list[Line], list[Fact]]:
    """Return figures over HTTP without a baseline, and values read from the database."""
    lines, facts = list[Line](), list[Fact]()
    async with _furnished(kind, folder, size) as (server, settings, there):
        async with running(server.start) as pid:
            target = Target(server.http, pid, there.secret)

            async def line(name: str, requests: Iterator[bytes], connections: int) -> None:
                if only in name:
                    figure = await loaded(
                        target, requests, connections=connections, seconds=seconds, least=5
                    )
                    lines.append(Line(f"{size.messages:,} messages: {name}", figure))
                    await settled(pid)

            def page(after: str | None) -> Iterator[bytes]:
                given = {"box": there.box, "after": after}
                body = post(target, "/graphql", {"query": LIST, "variables": given})
                return itertools.repeat(body)

            await line("first page", page(None), 2)
            await line("page 1,000", page(there.late), 2)
            boxes = itertools.repeat(post(target, "/graphql", {"query": BOXES}))
            await line(f"{size.boxes:,} mailboxes", boxes, 2)
            await line("flag 1", flags(target, there.newest[:1]), 1)
            await line(f"flag {len(there.newest):,}", flags(target, there.newest), 1)
            if only in "move":
                facts.append(await _moved(target, there, size))
        async with opened(settings) as world:
            facts += [await _told(world), await _statements(world, there, size)]
    return lines, facts


@asynccontextmanager
async def _furnished(
    kind: Kind, folder: Path, size: Size
) -> AsyncGenerator[tuple[Server, Settings, Folders]]:
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "folders", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    async with opened(settings, migrate=True) as world:
        there = await furnish(world, size)
    yield server, settings, there


async def _moved(target: Target, there: Folders, size: Size) -> Fact:
    """Move all messages of a mailbox with one mutation, and wait for its task."""
    given = {"select": {"mailbox": {"path": there.few}}, "to": {"path": there.away}}
    began = time.perf_counter()
    answer = await once(target, "/graphql", {"query": MOVE, "variables": {"input": given}})
    task = answer["data"]["messageMove"]["task"]
    while task:
        body = {"query": TASK, "variables": {"id": task["id"]}}
        now = (await once(target, "/graphql", body))["data"]["task"]
        if now["state"] not in ("QUEUED", "RUNNING"):
            break
        await asyncio.sleep(0.01)
    return Fact(f"{size.moved:,} messages moved", time.perf_counter() - began, "s")


async def _told(world: World) -> Fact:
    """Return how many moved messages the journal has recorded."""
    moves = select(col(Change.ids)).where(col(Change.kind) == ChangeKind.MESSAGE_MOVED)
    rows = await world.database.read(moves)
    return Fact("moves in the journal", sum(len(row.ids) for row in rows), "")


async def _statements(world: World, there: Folders, size: Size) -> Fact:
    """Return how many SQL statements the list of all mailboxes needs."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    for engine in world.database.engines:
        event.listen(engine, "before_cursor_execute", note)

    async def sign_in(
        headers: Mapping[str, str], params: Mapping[str, Any] | None, ip: str | None
    ) -> Viewer:
        return await authentication.sign_in(world, headers, params, ip=ip)

    unpaid = Limits(guards=Guards(Budgets(Rates(0, 0, 0))))
    endpoint = Endpoint(schema, world, sign_in, unpaid)
    for _ in range(3):  # parsed, then compiled, then from the plan
        del sent[:]
        await asked(endpoint, orjson.dumps({"query": BOXES}), there.secret)
    return Fact(f"statements for {size.boxes:,} mailboxes", len(sent), "")


def main(
    store: Annotated[Kind, typer.Option(help="Where rows lie.")] = Kind.SQLITE,
    messages: Annotated[int, typer.Option(help="In the inbox.")] = Size().messages,
    boxes: Annotated[int, typer.Option(help="Folders.")] = Size().boxes,
    moved: Annotated[int, typer.Option(help="Messages that are moved.")] = Size().moved,
    only: Annotated[str, typer.Option(help="Only what has this in its name.")] = "",
) -> None:
    """Print the figures."""
    uvloop.run(bounded(_shown(store, Size(messages, boxes, moved), only), LONGEST))


async def _shown(store: Kind, size: Size, only: str) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-folders-") as folder:
        lines, facts = await measured(store, Path(folder), size=size, only=only)
    for line in lines:
        typer.echo(report.line(line))
    for fact in facts:
        typer.echo(f"{fact.name}: {fact.value:,.3g} {fact.unit}")


if __name__ == "__main__":
    typer.run(main)
