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

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds to start, and to stop
TICKS = os.sysconf("SC_CLK_TCK")
QUIET = 0.04  # share of a core: a server that uses less is idle
COMMAND = (sys.executable, "-m", "merganser")

Launcher = Callable[[tuple[str, ...], dict[str, str], Path], Awaitable[asyncio.subprocess.Process]]
_launchers: list[Launcher] = []  # the last one starts servers


@contextmanager
def launched_by(launcher: Launcher) -> Generator[None]:
    """Start `python -m merganser` by a function of arguments, environment and log file.

    Tests fork a process that has imported the server, since the imports take 5 s of CPU.
    """
    _launchers.append(launcher)
    try:
        yield
    finally:
        _launchers.remove(launcher)


@dataclass
class Server:
    """`merganser serve` on a data folder. It can be started repeatedly."""

    folder: Path
    store: str | None = None  # default: SQLite in the folder
    words: tuple[str, ...] = ()  # after `serve`
    more: dict[str, str] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    lmtp: int = field(default_factory=free_port)

    def settings(self, **more: str) -> dict[str, str]:
        """Return the environment of the process.

        This one without MERGANSER_ variables, and its own.
        """
        known = {key: text for key, text in os.environ.items() if not key.startswith("MERGANSER_")}
        own = {
            "MERGANSER_DATA": str(self.folder),
            "MERGANSER_HTTP": f"{HOST}:{self.http}",
            "MERGANSER_LMTP": f"{HOST}:{self.lmtp}",
            "MERGANSER_BUDGET_USERS": "0",  # one user sends all requests
            "MERGANSER_FOLLOWERS_EACH": "10000",
            "MERGANSER_RECEIVED_HOURLY": "0",  # and receives all messages
            "MERGANSER_RECIPIENTS_DAILY": "0",
            "MERGANSER_AUTO_CREATE_DOMAINS": "on",
        }
        if self.store:
            own["MERGANSER_STORE"] = self.store
        return {**known, **own, **self.more, **more}

    async def start(
        self, *, fault: str = "", before: tuple[str, ...] = ()
    ) -> asyncio.subprocess.Process:
        """Start the server, and return its process once it is healthy.

        `command_prefix` is a command that runs the server. `fault` is a fault point at which it
        kills itself, such as "commit:3".
        """
        more = {"MERGANSER_FAULT": fault} if fault else {}
        command = (*before, *COMMAND, "serve", *self.words)
        process = await spawned(command, self.settings(**more), self.folder / "server.log")
        await answering(self.http, process, "/health/ready" if self.words else "/health")
        return process


async def spawned(
    command: tuple[str, ...], env: dict[str, str], log: Path
) -> asyncio.subprocess.Process:
    """Start a command in the project's folder, in a process group of its own."""
    if _launchers and command[:3] == COMMAND and "LD_PRELOAD" not in env:
        return await _launchers[-1](command[3:], env, log)
    with log.open("ab") as out:
        return await asyncio.create_subprocess_exec(
            *command, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )


async def answering(port: int, process: asyncio.subprocess.Process, path: str = "/health") -> None:
    """Wait until the server is healthy at this path. Raises RuntimeError if it exits before."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"the server ended with {process.returncode} at its start")
            with suppress(OSError):
                if await _healthy(port, path):
                    return
            await asyncio.sleep(0.05)


async def _healthy(port: int, path: str) -> bool:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    finally:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection, also one that the peer has broken."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def stop(process: asyncio.subprocess.Process) -> int:
    """Stop a process by SIGTERM, after the timeout by SIGKILL. Returns its exit code."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(PATIENCE):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


def broken(log: Path) -> list[str]:
    """Return the errors in a server's log, each with the last error line of its traceback."""
    found = []
    for line in log.read_text().splitlines():
        fact = orjson.loads(line)
        if fact["level"] == "error":
            cause = fact.get("traceback", "").strip().splitlines()
            known = next((one for one in reversed(cause) if "Error" in one), "")
            found.append(f"{fact['from']}: {fact['event']}: {known}")
    return found


async def checked(server: Server) -> list[str]:
    """Return the findings of `merganser check`."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "check"),
        env=server.settings(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problem = await process.communicate()
    if not out:
        return [f"merganser check ended with {process.returncode}: {problem.decode()[-300:]}"]
    return [f"merganser check: {finding}" for finding in orjson.loads(out)["findings"]]


@asynccontextmanager
async def running(
    begin: Callable[[], Awaitable[asyncio.subprocess.Process]],
) -> AsyncGenerator[int]:
    """Start a server, yield its process ID, and stop it at the end."""
    process = await begin()
    try:
        yield process.pid
    finally:
        await stop(process)


async def bounded(work: Coroutine[Any, Any, None], longest: float) -> None:
    """Run a coroutine for at most this many seconds. SIGTERM cancels it."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with asyncio.timeout(longest):
        await task


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process with its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def fine_cpu(pid: int) -> float:
    """Return the CPU seconds of a process to the nanosecond, without threads that have ended."""
    taken = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has just ended
            taken += int(file.read_text().split()[0])
    return taken / 1e9


def memory(pid: int) -> tuple[int, int]:
    """Return PSS and RSS of a process in KiB."""
    found = {"Pss": 0, "Rss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0])
    return found["Pss"], found["Rss"]


def whole_memory(pid: int) -> int:
    """Return the PSS of a process and all its descendants in KiB."""
    found, left = 0, [pid]
    while left:
        one = left.pop()
        with suppress(OSError):  # it has just ended
            found += memory(one)[0]
            for file in Path(f"/proc/{one}/task").glob("*/children"):
                left += map(int, file.read_text().split())
    return found


async def settled(pid: int, longest: float = 60) -> None:
    """Wait until a server is idle, at most this many seconds."""
    end = time.monotonic() + longest
    quiet = 0
    while quiet < 2 and time.monotonic() < end:  # noqa: PLR2004 - twice, since workers pause between batches
        before = cpu(pid)
        await asyncio.sleep(0.3)
        quiet = quiet + 1 if cpu(pid) - before <= 0.3 * QUIET else 0
