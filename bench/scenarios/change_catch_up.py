"""Measure how fast a client reads a journal of a million changes that it has missed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from sqlalchemy import insert, select, text, update
from sqlmodel import col

from bench.figures.goals import REPLAY_RATE
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import (
    BenchmarkTarget,
    SequentialConnection,
    encode_post_request,
    open_connections,
)
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.scenarios.live_subscriptions import CHANGES_QUERY
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    MerganserServer,
    cpu_seconds_precise,
    run_until_exit,
    wait_until_idle,
)
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import open_environment, root_context, user_context
from merganser.settings.settings import Settings
from models.events.event_types import EventType
from models.events.journal import Change, Stream
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector

TITLE = "live: missed changes"
JOURNAL_EVENTS = 2_000_000
ROWS_PER_TRANSACTION = 5000  # must be even
MODEL_TYPES = (EventType.MESSAGE_RECEIVED, EventType.MESSAGE_UPDATED)

AdvanceProgress = Callable[[int], None]  # called with the number of new changes


async def measure_catch_up(
    database_kind: DatabaseKind, folder: Path, change_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return how many changes are read per second, page by page, from the first to the last."""
    url = start_database(database_kind, folder)
    server = MerganserServer(
        folder / "behind",
        url,
        extra_environment={"MERGANSER_JOURNAL_MAX_EVENTS": str(JOURNAL_EVENTS)},
    )
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    task = progress.add_task(f"{change_count:,} changes", total=2 * change_count)

    def advance(count: int) -> None:
        progress.advance(task, count)

    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("bench", user_id=user.id)
        )
        last = await insert_changes(environment, user.id, change_count, advance)
    async with run_until_exit(server.start) as pid:
        target = BenchmarkTarget(server.http_port, pid, secret)
        await wait_until_idle(pid)
        (asker,) = await open_connections(target, 1)
        used, started_at = cpu_seconds_precise(pid), time.perf_counter()
        await read_all_changes(asker, target, user.id, last, advance)
        took, spent = time.perf_counter() - started_at, cpu_seconds_precise(pid) - used
        asker.close()
    progress.remove_task(task)
    return [
        MeasuredValue(f"{last:,} {REPLAY_RATE}", last / took, ""),
        MeasuredValue("the same, per CPU second", last / spent, ""),
    ]


async def insert_changes(
    environment: Environment, user_id: int, change_count: int, advance: AdvanceProgress
) -> int:
    """Insert changes into an account's journal, and return the number of the newest."""
    models, last = await _create_model_rows(environment, user_id)
    for start in range(0, change_count, ROWS_PER_TRANSACTION):
        numbers = range(start, min(start + ROWS_PER_TRANSACTION, change_count))
        rows = _change_rows(environment, models, numbers, last)
        last += len(numbers)
        stream_update = update(Stream).where(col(Stream.id) == user_id).values(last=last)
        async with environment.write_session(user_id) as session:
            connection = await session.connection()
            await connection.execute(insert(Change), rows)
            await connection.execute(stream_update)
        advance(len(numbers))
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return last


async def _create_model_rows(
    environment: Environment, user_id: int
) -> tuple[list[dict[str, Any]], int]:
    """Create a message and flag it. Returns these journal rows and the last position."""
    message = await received_messages.parse_storable_message(MessageGenerator().make_message(0))
    to = await address_resolution.load_recipient_below_limits(environment, READER_ADDRESS)
    stored = await received_messages.store_once_for_recipient(
        environment, message, to, "bob@example.com"
    )
    flag = BulkRequest(
        MessageSelector([stored.message_id]), FlagChanges.from_flag_names({"flagged": True})
    )
    await bulk_changes.apply_or_queue_bulk_request(user_context(environment, user_id), flag)
    statement = select(*select_columns(Change)).where(col(Change.stream_id) == user_id)
    rows = await environment.database.read(statement.order_by(col(Change.last)))
    found = {row.type: _row_as_dict(row) for row in rows}
    return [found[event_type] for event_type in MODEL_TYPES], rows[-1].last


def _row_as_dict(change: ColumnRow) -> dict[str, Any]:
    return dict(zip(change._fields, change, strict=True))


def _change_rows(
    environment: Environment,
    model_rows: Sequence[dict[str, Any]],
    numbers: range,
    last_position: int,
) -> list[dict[str, Any]]:
    """Return rows of changes after `last_position`: each message is added, then flagged."""
    rows, key = [], 0
    for nth, number in enumerate(numbers):
        model_row = model_rows[number % len(model_rows)]
        if number % len(model_rows) == 0:
            key = environment.new_id()
        position = last_position + nth + 1
        facts = {**model_row["facts"], "modseq": position, "uid": [2 + number // len(model_rows)]}
        row = {"last": position, "at": environment.now(), "ids": [key], "facts": facts}
        rows.append({**model_row, **row})
    return rows


async def read_all_changes(
    connection: SequentialConnection,
    target: BenchmarkTarget,
    user_id: int,
    last_number: int,
    advance: AdvanceProgress,
) -> None:
    """Read the journal from its first change on. Raises RuntimeError if a change is missing."""
    at, number, has_more = f"1.{user_id}.0", 0, True
    while has_more:
        request = encode_post_request(
            target, "/graphql", {"query": CHANGES_QUERY, "variables": {"after": at}}
        )
        data, _ = await connection.request_data(request)
        page = data["changes"]
        at, has_more, number = page["cursor"], page["hasMore"], number + len(page["events"])
        if at != f"1.{user_id}.{number}":
            raise RuntimeError(f"{number} changes were read, and the cursor is {at}")
        advance(len(page["events"]))
    if number != last_number:
        raise RuntimeError(f"{number} changes were read of {last_number}")
