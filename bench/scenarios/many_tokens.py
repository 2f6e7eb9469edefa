"""`python -m bench.scenarios.many_tokens`: 200 users with own tokens that send every 5 seconds.

Other benchmarks send requests with one token without a pause. Real clients send every few
seconds, so short-lived cache entries have expired. The same number of requests with one token
shows the difference.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.progress import Progress
from sqlalchemy import select
from sqlmodel import col

from bench.figures.measurements import MeasuredValue, percentile
from bench.load.http_client import BenchmarkTarget, encode_post_request
from bench.load.sample_account import create_user
from bench.scenarios.sign_ins import PersistentConnection, open_connections
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    MerganserServer,
    cpu_seconds_precise,
    run_until_exit,
    run_with_timeout,
    wait_until_idle,
)
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.tables import User
from resolvers.auth import access_tokens
from resolvers.auth.access_tokens import NewAccessToken
from resolvers.context import Context

TITLE = "many access tokens"
USER_COUNT = 200
REQUEST_INTERVAL = 5.0  # seconds
ROUNDS = 4  # requests of each user
RUN_TIMEOUT = 600.0  # seconds
DOCUMENTS = {  # by name
    "viewer": "{ viewer { role user { id username } } }",
    "mailboxes": "{ mailboxes { nodes { id path unseenCount } } }",
}


async def measure_many_tokens(
    database_kind: DatabaseKind,
    folder: Path,
    *,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> list[MeasuredValue]:
    """Return CPU and latency per document: with 200 tokens, and with one at the same rate."""
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "occasional", url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        secrets = await create_tokens(environment, USER_COUNT)
    task = progress.add_task(TITLE, total=len(DOCUMENTS)) if progress else None
    facts = list[MeasuredValue]()
    async with run_until_exit(server.start) as pid:
        for name, document in DOCUMENTS.items():
            for title, some in (
                (f"{USER_COUNT} access tokens", secrets),
                ("one access token", secrets[:1] * USER_COUNT),
            ):
                bodies = [_encode_request(server, pid, each, document) for each in some]
                await _send_evenly(server, bodies, 0)  # compiles the document
                await wait_until_idle(pid)
                cpu_before, latencies = cpu_seconds_precise(pid), list[float]()
                for _ in range(rounds):
                    latencies += await _send_evenly(server, bodies, REQUEST_INTERVAL)
                cost = (cpu_seconds_precise(pid) - cpu_before) * 1e6 / len(latencies)
                text = f"{name}, {title}, {USER_COUNT} requests in {REQUEST_INTERVAL:g} s"
                facts.append(MeasuredValue(f"{text}, CPU per request", cost, "µs"))
                facts.append(MeasuredValue(f"{text}, p50", percentile(latencies, 0.5) * 1e3, "ms"))
            if progress and task is not None:
                progress.advance(task)
    return facts


async def create_tokens(environment: Environment, user_count: int) -> list[str]:
    """Create users, and return an access token for each."""
    users = [
        await create_user(environment, f"now-and-then{nth}@bench.example")
        for nth in range(user_count)
    ]
    statement = select(*select_columns(User)).where(col(User.id).in_([user.id for user in users]))
    rows = await environment.database.read(statement)
    async with Context(environment, root_context(environment).viewer).write_session() as session:
        idle = environment.options.tokens_idle_timeout
        return [
            (
                await access_tokens.create_access_token(
                    root_context(environment), session, NewAccessToken(row, idle)
                )
            )[0]
            for row in rows
        ]


def _encode_request(server: MerganserServer, pid: int, token: str, document: str) -> bytes:
    return encode_post_request(
        BenchmarkTarget(server.http_port, pid, token), "/graphql", {"query": document}
    )


async def _send_evenly(
    server: MerganserServer, requests: Sequence[bytes], seconds: float
) -> list[float]:
    """Send each request once, evenly over some seconds. Returns latencies from the due times.

    Raises RuntimeError on an error response.
    """
    idle: asyncio.LifoQueue[PersistentConnection] = asyncio.LifoQueue()
    latencies = list[float]()

    async def send_when_due(request: bytes, due_at: float) -> None:
        line = await idle.get()
        answer = await line.send_request(request)
        latencies.append(time.perf_counter() - due_at)
        idle.put_nowait(line)
        if not answer.startswith(b"HTTP/1.1 200") or b'"errors":[{' in answer:
            raise RuntimeError(f"unexpected response: {answer[:2000]!r}")

    async with open_connections(server.http_port, 16) as some:
        for line in some:
            idle.put_nowait(line)
        begin, tasks = time.perf_counter(), list[asyncio.Task[None]]()
        for nth, body in enumerate(requests):
            due = begin + nth * seconds / len(requests)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(send_when_due(body, due)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(max(0.0, begin + seconds - time.perf_counter()))
    return latencies


def run_benchmark(
    store: Annotated[DatabaseKind, typer.Option(help="Database.")] = DatabaseKind.SQLITE,
    rounds: Annotated[int, typer.Option(help="Number of requests of each user.")] = ROUNDS,
) -> None:
    """Measure requests of many users with pauses."""

    async def print_measurements() -> None:
        with tempfile.TemporaryDirectory(prefix="merganser-occasional-") as folder:
            for fact in await measure_many_tokens(store, Path(folder), rounds=rounds):
                typer.echo(f"{fact.name:60} {fact.value:10.1f} {fact.unit}")

    uvloop.run(run_with_timeout(print_measurements(), RUN_TIMEOUT))


if __name__ == "__main__":
    typer.run(run_benchmark)
