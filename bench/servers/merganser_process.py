"""Servers in processes of their own, and what the kernel says of a process."""

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
PATIENCE = 60.0  # seconds that a server has to start, and to stop
TICKS = os.sysconf("SC_CLK_TCK")
QUIET = 0.04  # of a core: a server that takes less has nothing more to do
COMMAND = (sys.executable, "-m", "merganser")

Launcher = Callable[[tuple[str, ...], dict[str, str], Path], Awaitable[asyncio.subprocess.Process]]
_launchers: list[Launcher] = []  # the last one starts servers


@contextmanager
def launched_by(launcher: Launcher) -> Generator[None]:
    """Let `spawned` start `python -m merganser` by this function of words, environment and log.

    Tests fork a process that has imported the server: the imports take 5 s of CPU.
    """
    _launchers.append(launcher)
    try:
        yield
    finally:
        _launchers.remove(launcher)


@dataclass
class Server:
    """`merganser serve` on a folder; it may be started again and again."""

    folder: Path
    store: str | None = None  # by default SQLite in the folder
    words: tuple[str, ...] = ()  # behind `serve`
    more: dict[str, str] = field(default_factory=dict)  # of its environment
    http: int = field(default_factory=free_port)
    lmtp: int = field(default_factory=free_port)

    def settings(self, **more: str) -> dict[str, str]:
        """Its environment: ours without any setting of Merganser's, and its own."""
        known = {key: text for key, text in os.environ.items() if not key.startswith("MERGANSER_")}
        own = {
            "MERGANSER_DATA": str(self.folder),
            "MERGANSER_HTTP": f"{HOST}:{self.http}",
            "MERGANSER_LMTP": f"{HOST}:{self.lmtp}",
            "MERGANSER_BUDGET_USERS": "0",  # one user asks for more than any would
            "MERGANSER_FOLLOWERS_EACH": "10000",
            "MERGANSER_RECEIVED_HOURLY": "0",  # and is sent more than anybody would
            "MERGANSER_RECIPIENTS_DAILY": "0",
            "MERGANSER_AUTO_CREATE_DOMAINS": "on",
        }
        if self.store:
            own["MERGANSER_STORE"] = self.store
        return {**known, **own, **self.more, **more}

    async def start(
        self, *, fault: str = "", before: tuple[str, ...] = ()
    ) -> asyncio.subprocess.Process:
        """Start it, behind the command `before` if there is one; returns once it answers.

        `fault` names the place where it will kill itself, such as "commit:3".
        """
        more = {"MERGANSER_FAULT": fault} if fault else {}
        command = (*before, *COMMAND, "serve", *self.words)
        process = await spawned(command, self.settings(**more), self.folder / "server.log")
        await answering(self.http, process, "/health/ready" if self.words else "/health")
        return process


async def spawned(
    command: tuple[str, ...], env: dict[str, str], log: Path
) -> asyncio.subprocess.Process:
    """Start a command in the project's folder, in a group of its own."""
    if _launchers and command[:3] == COMMAND and "LD_PRELOAD" not in env:
        return await _launchers[-1](command[3:], env, log)
    with log.open("ab") as out:
        return await asyncio.create_subprocess_exec(
            *command, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )


async def answering(port: int, process: asyncio.subprocess.Process, path: str = "/health") -> None:
    """Wait until it says at this path that it is well. RuntimeError where it ends before."""
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
    """Close a connection, also one that the other side has broken."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def stop(process: asyncio.subprocess.Process) -> int:
    """End it by SIGTERM, or, where that takes too long, for good; returns its exit code."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(PATIENCE):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


def broken(log: Path) -> list[str]:
    """What a server has logged as an error, each with the last line of its traceback."""
    found = []
    for line in log.read_text().splitlines():
        fact = orjson.loads(line)
        if fact["level"] == "error":
            cause = fact.get("traceback", "").strip().splitlines()
            known = next((one for one in reversed(cause) if "Error" in one), "")
            found.append(f"{fact['from']}: {fact['event']}: {known}")
    return found


async def checked(server: Server) -> list[str]:
    """What `merganser check` finds wrong."""
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
    """The pid of a server that is ended behind the block."""
    process = await begin()
    try:
        yield process.pid
    finally:
        await stop(process)


async def bounded(work: Coroutine[Any, Any, None], longest: float) -> None:
    """Do it, in at most so many seconds; SIGTERM breaks it off, and what it started is ended."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with asyncio.timeout(longest):
        await task


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken, its threads included, its children not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def fine_cpu(pid: int) -> float:
    """The same to the nanosecond, without the threads that have ended."""
    taken = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it ends at this moment
            taken += int(file.read_text().split()[0])
    return taken / 1e9


def memory(pid: int) -> tuple[int, int]:
    """PSS and RSS of a process, in KiB."""
    found = {"Pss": 0, "Rss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0])
    return found["Pss"], found["Rss"]


def whole_memory(pid: int) -> int:
    """PSS of a process and of all that it has begun, in KiB."""
    found, left = 0, [pid]
    while left:
        one = left.pop()
        with suppress(OSError):  # it ends at this moment
            found += memory(one)[0]
            for file in Path(f"/proc/{one}/task").glob("*/children"):
                left += map(int, file.read_text().split())
    return found


async def settled(pid: int, longest: float = 60) -> None:
    """Wait until a server has nothing more to do, at most so many seconds."""
    end = time.monotonic() + longest
    quiet = 0
    while quiet < 2 and time.monotonic() < end:  # noqa: PLR2004 - twice: it rests between batches
        before = cpu(pid)
        await asyncio.sleep(0.3)
        quiet = quiet + 1 if cpu(pid) - before <= 0.3 * QUIET else 0
