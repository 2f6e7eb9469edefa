"""`python -m bench.scenarios.large_mailboxes`: late pages, many mailboxes, flags and moves."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
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
from bench.figures.measurements import ComparedFigure, MeasuredValue
from bench.load.http_client import BenchmarkTarget, encode_post_request, measure_load, request_json
from bench.load.message_generator import FIRST_DATE, MessageGenerator
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.scenarios.in_process_request import endpoint_without_rate_limits, send_request
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    MerganserServer,
    run_until_exit,
    run_with_timeout,
    wait_until_idle,
)
from graph.types.global_ids import encode
from mail.recipients import address_resolution
from mail.storage import received_messages
from mail.storage.message_sort_keys import sort_key_columns
from merganser.server.environment_factory import open_environment, root_context, user_context
from merganser.settings.settings import Settings
from models.events.event_types import EventType
from models.events.journal import Change
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Cursor
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.messages.message_orders import NEWEST_FIRST

TITLE = "large mailboxes"
RUN_TIMEOUT = 3600.0  # seconds
ROWS_PER_TRANSACTION = 5000
PAGE_SIZE, LATE_PAGE_NUMBER = 50, 1000
MANY_MESSAGES = 1000
PAGE_QUERY = """query ($box: ID!, $after: String) { viewer { user { mailbox(by: {id: $box}) {
  messages(first: 50, after: $after) {
    nodes { id subject from { name address } receivedAt seen flagged size preview }
    pageInfo { endCursor hasNextPage } } } } } }"""
MAILBOXES_QUERY = """{ viewer { user { mailboxes(first: 1500) {
  nodes { id path messageCount unseenCount size } } } } }"""
FLAG_MUTATION = """mutation ($input: MessageUpdateInput!) {
  messageUpdate(input: $input) { updatedCount errors { message } } }"""
MOVE_MUTATION = """mutation ($input: MessageMoveInput!) {
  messageMove(input: $input) { task { id } errors { message } } }"""
TASK_QUERY = "query ($id: ID!) { task(by: {id: $id}) { state done } }"


@dataclass(frozen=True, slots=True)
class LargeMailboxSize:
    """The size of the account."""

    message_count: int = 100_000
    mailbox_count: int = 1000
    moved_count: int = 10_000


@dataclass(frozen=True, slots=True)
class LargeMailboxAccount:
    """The IDs and paths of the account that the load needs."""

    api_key: str = field(repr=False)
    inbox_id: str
    late_cursor: str  # cursor before the late page
    newest_message_ids: list[str]
    target_path: str
    moved_path: str  # the mailbox with the messages to move


async def copy_message_into_mailbox(
    environment: Environment, mailbox: ColumnRow, message_count: int
) -> None:
    """Fill a mailbox with copies of the existing message."""
    rows = await environment.database.read(select(*select_columns(Message)).limit(1))
    model_row = dict(zip(rows[0]._fields, rows[0], strict=True))
    for start in range(0, message_count, ROWS_PER_TRANSACTION):
        given = [
            {
                **model_row,
                "id": environment.new_id(),
                "mailbox_id": mailbox.id,
                "uid": nth + 2,
                "seen": nth % 50 > 0,
                "received_at": FIRST_DATE + timedelta(minutes=nth),
                "listed_at": FIRST_DATE + timedelta(minutes=nth),
                "subject": f"Message {nth}",
                "indexed": True,
            }
            for nth in range(start, min(start + ROWS_PER_TRANSACTION, message_count))
        ]
        async with environment.write_session() as session:
            connection = await session.connection()
            await connection.execute(insert(Message), given)
            await connection.execute(insert(MessageSortKey), list(map(sort_key_columns, given)))


async def create_large_account(
    environment: Environment, size: LargeMailboxSize
) -> LargeMailboxAccount:
    """Create an account with a large inbox, another filled mailbox and many empty ones."""
    user = await create_user(environment, READER_ADDRESS)
    ctx = user_context(environment, user.id)
    paths = [f"Projects/No {nth:04}" for nth in range(size.mailbox_count)]
    for start in range(0, len(paths), 100):
        await mailbox_create.create_mailboxes(ctx, NewMailboxes([*paths[start : start + 100]]))
    to = await address_resolution.load_recipient_below_limits(environment, READER_ADDRESS)
    message = await received_messages.parse_storable_message(
        MessageGenerator().make_message(1, size=4000, attachment=b"")
    )
    await received_messages.store_once_for_recipient(environment, message, to, "carol@example.com")
    boxes = {
        mailbox.path: mailbox
        for mailbox in await mailbox_loaders.load_visible_mailboxes_of_user(
            ctx, user.id, {"id", "path"}
        )
    }
    await copy_message_into_mailbox(environment, boxes["INBOX"], size.message_count)
    await copy_message_into_mailbox(environment, boxes[paths[0]], size.moved_count)
    await _update_counters(environment)
    newest = (
        select(*select_columns(Message, {"id", "listed_at"}))
        .where(col(Message.mailbox_id) == boxes["INBOX"].id)
        .order_by(col(Message.listed_at).desc(), col(Message.id).desc())
    )
    rows = await environment.database.read(newest.limit(MANY_MESSAGES))
    skipped = min(PAGE_SIZE * (LATE_PAGE_NUMBER - 1), size.message_count // 2)
    (last,) = await environment.database.read(newest.offset(skipped).limit(1))
    _, secret = await api_key_mutations.create_api_key(
        root_context(environment), NewApiKey("bench", user_id=user.id)
    )
    return LargeMailboxAccount(
        secret,
        encode("Mailbox", boxes["INBOX"].id),
        str(Cursor(NEWEST_FIRST, last.listed_at, last.id)),
        [encode("Message", row.id) for row in rows],
        paths[1],
        paths[0],
    )


async def _update_counters(environment: Environment) -> None:
    """Update counters and quota from the inserted rows, and analyze the tables."""
    sums = "FROM messages WHERE mailbox_id = mailboxes.id"
    statements = [
        f"UPDATE mailboxes SET message_count = (SELECT count(*) {sums}), unseen_count = "  # noqa: S608
        f"(SELECT count(*) {sums} AND NOT seen), size = (SELECT coalesce(sum(size), 0) {sums}), "
        f"uid_next = (SELECT coalesce(max(uid), 0) + 1 {sums})",
        "UPDATE users SET used = (SELECT coalesce(sum(size), 0) FROM messages "
        "WHERE user_id = users.id)",
        "ANALYZE",
    ]
    async with environment.database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


def flag_requests(target: BenchmarkTarget, message_ids: list[str]) -> Iterator[bytes]:
    """Yield requests that flag and unflag these messages."""
    for flagged in itertools.cycle((True, False)):
        parameters = {"select": {"ids": message_ids}, "set": {"flagged": flagged}}
        yield encode_post_request(
            target, "/graphql", {"query": FLAG_MUTATION, "variables": {"input": parameters}}
        )


async def measure_large_mailboxes(
    database_kind: DatabaseKind,
    folder: Path,
    *,
    size: LargeMailboxSize,
    seconds: float = 2.0,
    name_part: str = "",
) -> tuple[list[ComparedFigure], list[MeasuredValue]]:
    """Return figures over HTTP without a baseline, and values read from the database."""
    lines, facts = list[ComparedFigure](), list[MeasuredValue]()
    async with _create_server(database_kind, folder, size) as prepared:
        account = prepared.account
        async with run_until_exit(prepared.server.start) as pid:
            target = BenchmarkTarget(prepared.server.http_port, pid, account.api_key)

            async def measure_line(
                name: str, requests: Iterator[bytes], connection_count: int
            ) -> None:
                if name_part in name:
                    figure = await measure_load(
                        target,
                        requests,
                        connection_count=connection_count,
                        seconds=seconds,
                        min_responses=5,
                    )
                    lines.append(ComparedFigure(f"{size.message_count:,} messages: {name}", figure))
                    await wait_until_idle(pid)

            def page_requests(after: str | None) -> Iterator[bytes]:
                parameters = {"box": account.inbox_id, "after": after}
                body = encode_post_request(
                    target, "/graphql", {"query": PAGE_QUERY, "variables": parameters}
                )
                return itertools.repeat(body)

            await measure_line("first page", page_requests(None), 2)
            await measure_line("page 1,000", page_requests(account.late_cursor), 2)
            boxes = itertools.repeat(
                encode_post_request(target, "/graphql", {"query": MAILBOXES_QUERY})
            )
            await measure_line(f"{size.mailbox_count:,} mailboxes", boxes, 2)
            await measure_line("flag 1", flag_requests(target, account.newest_message_ids[:1]), 1)
            await measure_line(
                f"flag {len(account.newest_message_ids):,}",
                flag_requests(target, account.newest_message_ids),
                1,
            )
            if name_part in "move":
                facts.append(await _measure_move(target, account, size))
        async with open_environment(prepared.settings) as environment:
            facts += [
                await _count_journaled_moves(environment),
                await _count_statements_of_list(environment, account, size),
            ]
    return lines, facts


@dataclass(frozen=True, slots=True)
class PreparedMailboxServer:
    """A server that is not started yet, its settings, and its account."""

    server: MerganserServer
    settings: Settings
    account: LargeMailboxAccount


@asynccontextmanager
async def _create_server(
    database_kind: DatabaseKind, folder: Path, size: LargeMailboxSize
) -> AsyncGenerator[PreparedMailboxServer]:
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "folders", url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        account = await create_large_account(environment, size)
    yield PreparedMailboxServer(server, settings, account)


async def _measure_move(
    target: BenchmarkTarget, account: LargeMailboxAccount, size: LargeMailboxSize
) -> MeasuredValue:
    """Move all messages of a mailbox with one mutation, and wait for its task."""
    parameters = {
        "select": {"mailbox": {"path": account.moved_path}},
        "to": {"path": account.target_path},
    }
    started_at = time.perf_counter()
    answer = await request_json(
        target, "/graphql", {"query": MOVE_MUTATION, "variables": {"input": parameters}}
    )
    task = answer["data"]["messageMove"]["task"]
    while task:
        body = {"query": TASK_QUERY, "variables": {"id": task["id"]}}
        now = (await request_json(target, "/graphql", body))["data"]["task"]
        if now["state"] not in ("QUEUED", "RUNNING"):
            break
        await asyncio.sleep(0.01)
    return MeasuredValue(
        f"{size.moved_count:,} messages moved", time.perf_counter() - started_at, "s"
    )


async def _count_journaled_moves(environment: Environment) -> MeasuredValue:
    """Return how many moved messages the journal has recorded."""
    moves = select(col(Change.ids)).where(col(Change.type) == EventType.MESSAGE_MOVED)
    rows = await environment.database.read(moves)
    return MeasuredValue("moved messages in the journal", sum(len(row.ids) for row in rows), "")


async def _count_statements_of_list(
    environment: Environment, account: LargeMailboxAccount, size: LargeMailboxSize
) -> MeasuredValue:
    """Return how many SQL statements the list of all mailboxes needs."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for engine in environment.database.engines:
        event.listen(engine, "before_cursor_execute", note)

    endpoint = endpoint_without_rate_limits(environment)
    for _ in range(3):  # parsed, then compiled, then from the plan
        del statements[:]
        await send_request(endpoint, orjson.dumps({"query": MAILBOXES_QUERY}), account.api_key)
    return MeasuredValue(
        f"SQL statements for a list of {size.mailbox_count:,} mailboxes", len(statements), ""
    )


def main(
    store: Annotated[DatabaseKind, typer.Option(help="Database.")] = DatabaseKind.SQLITE,
    messages: Annotated[int, typer.Option(help="In the inbox.")] = LargeMailboxSize().message_count,
    boxes: Annotated[int, typer.Option(help="Folders.")] = LargeMailboxSize().mailbox_count,
    moved: Annotated[
        int, typer.Option(help="Messages that are moved.")
    ] = LargeMailboxSize().moved_count,
    only: Annotated[str, typer.Option(help="Only what has this in its name.")] = "",
) -> None:
    """Print the figures."""
    uvloop.run(
        run_with_timeout(
            _print_measurements(store, LargeMailboxSize(messages, boxes, moved), only), RUN_TIMEOUT
        )
    )


async def _print_measurements(
    database_kind: DatabaseKind, size: LargeMailboxSize, name_part: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-folders-") as folder:
        lines, facts = await measure_large_mailboxes(
            database_kind, Path(folder), size=size, name_part=name_part
        )
    for line in lines:
        typer.echo(report.format_figure(line))
    for fact in facts:
        typer.echo(f"{fact.name}: {fact.value:,.3g} {fact.unit}")


if __name__ == "__main__":
    typer.run(main)
