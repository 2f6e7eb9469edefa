"""Measure fetching of messages from a local Dovecot, and a run that finds nothing new.

Another client reads pages of the same inbox at the same time.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.figures.goals import EMPTY_RUN, FETCH_MEMORY, FETCHED_MESSAGES
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.http_client import (
    BenchmarkTarget,
    encode_post_request,
    open_connections,
    request_json,
)
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.dovecot_server import PASSWORD, DovecotAccount, run_dovecot
from bench.servers.merganser_process import (
    START_STOP_TIMEOUT,
    MerganserServer,
    cpu_seconds,
    logged_errors,
    memory_of_process_tree,
    run_until_exit,
    wait_until_idle,
)
from bench.servers.ports import HOST
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "mail fetched by a connector"
MESSAGE_COUNT, MESSAGE_SIZE = 10_000, 20_000
RUN_TIMEOUT = 600.0  # seconds of a run
POLL_SECONDS = 0.2
PAGE_INTERVAL = 0.05  # seconds
ALONE_SECONDS = 5.0  # reading pages without a fetch
CREATE_MUTATION = """mutation ($input: ConnectorCreateInput!) {
  connectorCreate(input: $input) { connector { id } errors { message } } }"""
RUN_MUTATION = """mutation ($input: ConnectorStartInput!) {
  connectorStart(input: $input) { connectorRuns { id } errors { message } } }"""
RUN_QUERY = """query ($id: ID!) {
  connectorRun(by: {id: $id}) {
    state error seenCount importedCount skippedCount startedAt finishedAt log } }"""
PAGE_QUERY = """{ viewer { user { mailbox(by: {path: "INBOX"}) { messageCount messages(first: 50) {
  nodes { id subject from { name address } receivedAt seen flagged size preview } } } } } }"""


@dataclass
class FetchObservation:
    """Memory and page latencies during a fetch."""

    max_memory: int = 0  # PSS in KiB
    page_latencies: list[float] = field(default_factory=list)  # latencies in seconds


async def measure_fetch(
    database_kind: DatabaseKind, folder: Path, message_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Fetch messages, and run the connector again."""
    url = start_database(database_kind, folder)
    server = MerganserServer(
        folder / "fetching",
        url,
        extra_environment={"MERGANSER_CONNECTORS_ALLOW_PRIVATE_NETWORKS": "on"},
    )
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    task = progress.add_task(TITLE, total=3)
    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("bench", user_id=user.id)
        )
    await asyncio.to_thread(folder.chmod, 0o755)  # for the user of Dovecot
    with run_dovecot(folder / "dovecot") as dovecot:
        await asyncio.to_thread(dovecot.save_messages, list(make_messages(message_count)))
        dovecot.count_messages()  # Dovecot indexes the mailbox now, as on a server in use
        progress.advance(task)
        async with run_until_exit(server.start) as pid:
            facts = await _measure_run_and_rerun(
                BenchmarkTarget(server.http_port, pid, secret), dovecot, message_count
            )
    progress.remove_task(task)
    if problems := logged_errors(server.data_folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


def make_messages(message_count: int, size: int = MESSAGE_SIZE) -> Iterator[bytes]:
    """Yield unique messages."""
    writer = MessageGenerator(seed=size)
    return (writer.make_message(number, size=size) for number in range(message_count))


async def _measure_run_and_rerun(
    target: BenchmarkTarget, remote: DovecotAccount, message_count: int
) -> list[MeasuredValue]:
    await wait_until_idle(target.pid)
    await _read_pages(target, ALONE_SECONDS / 5)
    await wait_until_idle(target.pid)
    idle, before = memory_of_process_tree(target.pid), cpu_seconds(target.pid)
    key = await create_connector(target, remote, interval=None)
    started_at = time.perf_counter()
    async with _observe(target) as observation:
        run = await run_connector(target, key)
        took, used = time.perf_counter() - started_at, cpu_seconds(target.pid) - before
    if run["importedCount"] != message_count:
        raise RuntimeError(
            f"{run['importedCount']} of {message_count} messages were fetched: {run['log']}"
        )
    await wait_until_idle(target.pid, RUN_TIMEOUT)
    later_cpu = cpu_seconds(target.pid) - before - used
    alone = await _read_pages(target, ALONE_SECONDS)
    await wait_until_idle(target.pid)
    second_run = await run_connector(target, key)
    if second_run["importedCount"] or second_run["seenCount"] != message_count:
        raise RuntimeError(f"messages were fetched twice: {second_run['log']}")
    page = "of an inbox page while a connector fetches mail"
    return [
        MeasuredValue(FETCHED_MESSAGES.format(message_count), took, "s"),
        MeasuredValue("messages fetched per second", message_count / took, ""),
        MeasuredValue(
            "CPU per fetched message, with the inbox pages read meanwhile",
            used / message_count * 1e3,
            "ms",
        ),
        MeasuredValue("… and after the run", later_cpu / message_count * 1e3, "ms"),
        MeasuredValue(FETCH_MEMORY, (observation.max_memory - idle) / 1024, "MiB"),
        MeasuredValue(EMPTY_RUN, _run_seconds(second_run), "s"),
        MeasuredValue(f"p50 {page}", percentile(observation.page_latencies, 0.5) * 1e3, "ms"),
        MeasuredValue(f"p99 {page}", percentile(observation.page_latencies, 0.99) * 1e3, "ms"),
        MeasuredValue(
            "p99 of an inbox page without a connector run", percentile(alone, 0.99) * 1e3, "ms"
        ),
    ]


async def create_connector(
    target: BenchmarkTarget, remote: DovecotAccount, **extra_fields: Any
) -> str:
    """Create a connector of the target's account that is enabled, and return its ID."""
    server = {
        "host": HOST,
        "port": remote.ports["imap"],
        "security": "NONE",
        "username": remote.user,
        "password": PASSWORD,
    }
    parameters = {"server": server, **extra_fields}
    payload = await _request_payload(target, CREATE_MUTATION, {"input": parameters})
    return str(payload["connector"]["id"])


async def run_connector(target: BenchmarkTarget, connector_id: str) -> Any:
    """Run a connector, or wait for its current run, and return the finished run.

    Raises RuntimeError if the run fails.
    """
    input_fields = {"connectors": [{"id": connector_id}]}
    payload = await _request_payload(target, RUN_MUTATION, {"input": input_fields})
    (run,) = payload["connectorRuns"]
    async with asyncio.timeout(RUN_TIMEOUT):
        while True:
            row = await _request_payload(target, RUN_QUERY, {"id": run["id"]})
            if row["finishedAt"]:
                break
            await asyncio.sleep(POLL_SECONDS)
    if row["state"] != "SUCCEEDED":
        raise RuntimeError(f"a run ended as {row['state']}: {row['error']}")
    return row


async def _request_payload(target: BenchmarkTarget, query: str, variables: Any) -> Any:
    """Return the value of the only field of a document. Raises RuntimeError for errors."""
    answer = await request_json(target, "/graphql", {"query": query, "variables": variables})
    (payload,) = answer["data"].values()
    if payload.get("errors"):
        raise RuntimeError(f"refused: {payload['errors']}")
    return payload


def _run_seconds(run: Any) -> float:
    started_at, ended = (datetime.fromisoformat(run[name]) for name in ("startedAt", "finishedAt"))
    return (ended - started_at).total_seconds()


@asynccontextmanager
async def _observe(target: BenchmarkTarget) -> AsyncGenerator[FetchObservation]:
    """Measure the server's memory and read pages while the context is open."""
    observation, over = FetchObservation(), asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            observation.max_memory = max(
                observation.max_memory, await asyncio.to_thread(memory_of_process_tree, target.pid)
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), POLL_SECONDS)

    async def read() -> None:
        while not over.is_set():
            observation.page_latencies += await _read_pages(target, 1.0)

    tasks = asyncio.gather(look(), read())
    try:
        yield observation
    finally:
        over.set()
        await tasks


async def _read_pages(target: BenchmarkTarget, seconds: float) -> list[float]:
    """Read pages for some seconds, and return the latencies."""
    (asker,) = await open_connections(target, 1)
    request, took = encode_post_request(target, "/graphql", {"query": PAGE_QUERY}), list[float]()
    end = time.perf_counter() + min(seconds, START_STOP_TIMEOUT)
    while (started_at := time.perf_counter()) < end:
        _, at = await asker.request_data(request)
        took.append(at - started_at)
        await asyncio.sleep(PAGE_INTERVAL)
    asker.close()
    return took
