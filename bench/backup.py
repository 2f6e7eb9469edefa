"""`python -m bench.backup`: measure a backup, a second backup, a restore and a check.

Each store gets an account with messages that have different contents. The text index is built. The
second backup follows after one hundredth of new messages.
"""

import asyncio
import itertools
import os
import platform
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.progress import Progress
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from bench.load.message_generator import endless_messages
from bench.load.sample_account import RECEIVER_ADDRESS, create_user
from bench.servers.compared_servers import (
    DatabaseKind,
    postgres_program_folder,
    server_settings,
    start_database,
)
from bench.servers.merganser_process import MERGANSER_COMMAND, PROJECT_ROOT, MerganserServer
from mail.delivery.listener_backend import LocalBackend
from mail.search.index_worker import index_next_batch_and_record_contacts
from merganser.server.environment_factory import open_environment
from models.runtime.environment import Environment

MESSAGE_SIZE = 20_000  # bytes
CONCURRENT_DELIVERIES = 8
NEW_SHARE = 100  # the second backup follows after one of so many messages
SENDER = "bob@example.com"
RESTORED_DATABASE = "restored"


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A step, its duration in seconds, and what it processed."""

    name: str
    seconds: float
    detail: str


async def measure_store(
    kind: DatabaseKind, folder: Path, message_count: int, progress: Progress
) -> list[MeasuredStep]:
    """Fill a store, back it up twice, and restore it into an empty one."""
    url = await asyncio.to_thread(start_database, kind, folder)
    source = MerganserServer(_make_folder(folder / "source"), url)
    restored = MerganserServer(
        _make_folder(folder / "restored"), await _create_empty_database(url) if url else None
    )
    messages = endless_messages(MESSAGE_SIZE)
    steps: list[MeasuredStep] = []
    for name, count in (
        ("first backup", message_count),
        ("second backup", max(message_count // NEW_SHARE, 1)),
    ):
        await _deliver_and_index(source, itertools.islice(messages, count), count, progress)
        steps.append(
            await _run_command(
                source, name, "backup", str(folder / "backup"), *_keys(folder), "--json"
            )
        )
    steps += [
        await _run_command(
            restored, "restore", "restore", str(folder / "backup"), *_keys(folder), "--json"
        ),
        await _run_command(restored, "check", "check"),
    ]
    return steps


def _keys(folder: Path) -> tuple[str, str]:
    return "--keys", str(folder / "keys")


def _make_folder(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


async def _create_empty_database(url: str) -> str:
    """Create a second database on the server, and return its URL."""
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {RESTORED_DATABASE}"))
    await engine.dispose()
    base, _, query = url.partition("?")
    return f"{base.rpartition('/')[0]}/{RESTORED_DATABASE}?{query}"


async def _deliver_and_index(
    server: MerganserServer, messages: Iterator[bytes], count: int, progress: Progress
) -> None:
    task = progress.add_task(f"{count:,} messages", total=count)
    async with _prepared_environment(server) as environment:
        backend = LocalBackend(environment)

        async def deliver() -> None:
            for message in messages:
                recipient = await backend.accept_recipient(RECEIVER_ADDRESS, SENDER)
                await backend.deliver(message, [recipient], SENDER)
                progress.advance(task)

        await asyncio.gather(*(deliver() for _ in range(CONCURRENT_DELIVERIES)))
        while await index_next_batch_and_record_contacts(environment):
            pass
    progress.remove_task(task)


@asynccontextmanager
async def _prepared_environment(server: MerganserServer) -> AsyncGenerator[Environment]:
    """Open the environment of a server that does not run, with the receiver's account."""
    is_new = not any(server.data_folder.iterdir())
    async with open_environment(server_settings(server), migrate=True) as environment:
        if is_new:
            await create_user(environment, RECEIVER_ADDRESS)
        yield environment


async def _run_command(server: MerganserServer, name: str, *arguments: str) -> MeasuredStep:
    """Run a command of Merganser that prints JSON. Raises RuntimeError if it fails."""
    own_programs = [str(postgres_program_folder())] if server.database_url else []
    path = os.pathsep.join([*own_programs, os.environ["PATH"]])  # for pg_dump and pg_restore
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(*MERGANSER_COMMAND, *arguments),
        env=server.process_environment(PATH=path),
        cwd=PROJECT_ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}: {errors.decode()[-1000:]}")
    return MeasuredStep(name, time.monotonic() - began, _summary(orjson.loads(out)))


def _summary(result: dict[str, object]) -> str:
    numbers = {name: value for name, value in result.items() if isinstance(value, int)}
    return ", ".join(f"{name} {value:,}" for name, value in numbers.items() if value)


def main(
    messages: Annotated[int, typer.Option(help="Messages of each store.")] = 100_000,
    store: Annotated[
        list[DatabaseKind] | None, typer.Option(help="Stores to measure; by default both.")
    ] = None,
) -> None:
    """Print a Markdown table of the steps for each store."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    typer.echo(f"{messages:,} messages of {MESSAGE_SIZE:,} bytes. {machine}")
    for kind in store or list(DatabaseKind):
        with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
            steps = asyncio.run(measure_store(kind, Path(folder), messages, progress))
        typer.echo(f"\n| {kind.value} | seconds | result |\n|---|---:|---|")
        for step in steps:
            typer.echo(f"| {step.name} | {step.seconds:.1f} | {step.detail} |")


if __name__ == "__main__":
    typer.run(main)
