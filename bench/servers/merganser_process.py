"""Start and stop server processes, and read their CPU time and memory."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bench.servers.ports import HOST, free_port

PROJECT_ROOT = Path(__file__).parents[2]
START_STOP_TIMEOUT = 60.0  # seconds to start, and to stop
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
IDLE_CPU_SHARE = 0.04  # share of a core: a server that uses less is idle
MERGANSER_COMMAND = (sys.executable, "-m", "merganser")

ProcessLauncher = Callable[
    [tuple[str, ...], dict[str, str], Path], Awaitable[asyncio.subprocess.Process]
]
_launchers: list[ProcessLauncher] = []  # the last one starts servers


@contextmanager
def use_launcher(launcher: ProcessLauncher) -> Generator[None]:
    """Start `python -m merganser` by a function of arguments, environment and log file.

    Tests fork a process that has imported the server, since the imports take 5 s of CPU.
    """
    _launchers.append(launcher)
    try:
        yield
    finally:
        _launchers.remove(launcher)


@dataclass
class MerganserServer:
    """`merganser serve` on a data folder. It can be started repeatedly."""

    data_folder: Path
    database_url: str | None = None  # default: SQLite in the folder
    serve_arguments: tuple[str, ...] = ()  # after `serve`
    extra_environment: dict[str, str] = field(default_factory=dict)
    http_port: int = field(default_factory=free_port)
    lmtp_port: int = field(default_factory=free_port)

    def process_environment(self, **extra: str) -> dict[str, str]:
        """Return the environment of the process.

        This one without MERGANSER_ variables, and its own.
        """
        inherited = {
            key: text for key, text in os.environ.items() if not key.startswith("MERGANSER_")
        }
        own = {
            "MERGANSER_DATA": str(self.data_folder),
            "MERGANSER_HTTP_LISTEN": f"{HOST}:{self.http_port}",
            "MERGANSER_LMTP_LISTEN": f"{HOST}:{self.lmtp_port}",
            "MERGANSER_COST_BUDGET_USER": "0",  # one user sends all requests
            "MERGANSER_SUBSCRIPTIONS_PER_USER": "10000",
            "MERGANSER_LIMITS_RECEIVED_PER_HOUR": "0",  # and receives all messages
            "MERGANSER_LIMITS_RECIPIENTS_PER_DAY": "0",
            "MERGANSER_AUTO_CREATE_DOMAINS": "on",
            "MERGANSER_LOG_SLOW_OPERATION_THRESHOLD": "0 s",  # any is slow on a busy machine
        }
        if self.database_url:
            own["MERGANSER_DATABASE_URL"] = self.database_url
        return {**inherited, **own, **self.extra_environment, **extra}

    async def start(
        self, *, fault: str = "", command_prefix: tuple[str, ...] = ()
    ) -> asyncio.subprocess.Process:
        """Start the server, and return its process once it is healthy.

        `command_prefix` is a command that runs the server. `fault` is a fault point at which it
        kills itself, such as "commit:3".
        """
        fault_setting = {"MERGANSER_FAULT": fault} if fault else {}
        command = (*command_prefix, *MERGANSER_COMMAND, "serve", *self.serve_arguments)
        process = await spawn(
            command, self.process_environment(**fault_setting), self.data_folder / "server.log"
        )
        await wait_until_healthy(
            self.http_port, process, "/health/ready" if self.serve_arguments else "/health"
        )
        return process


async def spawn(
    command: tuple[str, ...], process_environment: dict[str, str], log_file: Path
) -> asyncio.subprocess.Process:
    """Start a command in the project's folder, in a process group of its own."""
    if _launchers and command[:3] == MERGANSER_COMMAND and "LD_PRELOAD" not in process_environment:
        return await _launchers[-1](command[3:], process_environment, log_file)
    with log_file.open("ab") as out:
        return await asyncio.create_subprocess_exec(
            *command,
            env=process_environment,
            cwd=PROJECT_ROOT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


async def wait_until_healthy(
    port: int, process: asyncio.subprocess.Process, path: str = "/health"
) -> None:
    """Wait until the server is healthy at this path. Raises RuntimeError if it exits before."""
    async with asyncio.timeout(START_STOP_TIMEOUT):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"the server ended with {process.returncode} at its start")
            with suppress(OSError):
                if await _is_healthy(port, path):
                    return
            await asyncio.sleep(0.05)


async def _is_healthy(port: int, path: str) -> bool:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    finally:
        await close_connection(writer)


async def close_connection(writer: asyncio.StreamWriter) -> None:
    """Close a connection, also one that the peer has broken."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def stop_process(process: asyncio.subprocess.Process) -> int:
    """Stop a process by SIGTERM, after the timeout by SIGKILL. Returns its exit code."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(START_STOP_TIMEOUT):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


def logged_errors(log_file: Path) -> list[str]:
    """Return the errors in a server's log, each with the last error line of its traceback."""
    found = []
    for line in log_file.read_text().splitlines():
        fact = orjson.loads(line)
        if fact["level"] == "error":
            cause = fact.get("traceback", "").strip().splitlines()
            error_line = next((one for one in reversed(cause) if "Error" in one), "")
            found.append(f"{fact['from']}: {fact['event']}: {error_line}")
    return found


async def run_consistency_check(server: MerganserServer) -> list[str]:
    """Return the findings of `merganser check`."""
    output = server.data_folder / "check.log"
    output.unlink(missing_ok=True)
    process = await spawn((*MERGANSER_COMMAND, "check"), server.process_environment(), output)
    code = await process.wait()
    text = output.read_text()
    try:
        findings = orjson.loads(text)["findings"]
    except orjson.JSONDecodeError:  # it ended early, or its output has error lines
        return [f"merganser check ended with {code}: {text[-300:]}"]
    return [f"merganser check: {finding}" for finding in findings]


@asynccontextmanager
async def run_until_exit(
    start: Callable[[], Awaitable[asyncio.subprocess.Process]],
) -> AsyncGenerator[int]:
    """Start a server, yield its process ID, and stop it at the end."""
    process = await start()
    try:
        yield process.pid
    finally:
        await stop_process(process)


async def run_with_timeout(coroutine: Coroutine[Any, Any, None], max_seconds: float) -> None:
    """Run a coroutine for at most this many seconds. SIGTERM cancels it."""
    task = asyncio.create_task(coroutine)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with asyncio.timeout(max_seconds):
        await task


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process with its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def cpu_seconds_precise(pid: int) -> float:
    """Return the CPU seconds of a process to the nanosecond, without threads that have ended."""
    nanoseconds = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has just ended
            nanoseconds += int(file.read_text().split()[0])
    return nanoseconds / 1e9


def cpu_seconds_with_children(pid: int) -> float:
    """Return the CPU seconds of a process and its running children."""
    child_pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return sum(map(cpu_seconds_precise, (pid, *child_pids)))


def memory_of_process(pid: int) -> tuple[int, int]:
    """Return PSS and RSS of a process in KiB."""
    found = {"Pss": 0, "Rss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0])
    return found["Pss"], found["Rss"]


def memory_of_process_tree(pid: int) -> int:
    """Return the PSS of a process and all its descendants in KiB."""
    found, left = 0, [pid]
    while left:
        one = left.pop()
        with suppress(OSError):  # it has just ended
            found += memory_of_process(one)[0]
            for file in Path(f"/proc/{one}/task").glob("*/children"):
                left += map(int, file.read_text().split())
    return found


async def wait_until_idle(pid: int, max_seconds: float = 60) -> None:
    """Wait until a server is idle, at most this many seconds."""
    end = time.monotonic() + max_seconds
    quiet = 0
    while quiet < 2 and time.monotonic() < end:  # noqa: PLR2004 - twice, since workers pause between batches
        before = cpu_seconds(pid)
        await asyncio.sleep(0.3)
        quiet = quiet + 1 if cpu_seconds(pid) - before <= 0.3 * IDLE_CPU_SHARE else 0
