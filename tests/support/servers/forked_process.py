"""Processes of the `merganser` command, forked from a process that has imported it."""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.servers.fork_server import lock_folder

ROOT = Path(__file__).parents[3]
# the same in all processes of pytest-xdist
RUN_ID = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(16)


@dataclass(frozen=True)
class ProcessStreams:
    """The files that a command reads and writes. By default stderr goes to stdout's file."""

    stdout: Path
    stderr: Path | None = None
    stdin: Path = Path(os.devnull)


class ForkServer:
    """The connection of this process to the fork server of a version.

    All processes of a test run share the fork server. The first one that needs it starts it.
    """

    def __init__(self, source_folder: Path) -> None:
        self._connection = _connect_to_fork_server(source_folder)
        self._starting = threading.Lock()
        self._started = SimpleQueue[int]()
        self._ended = threading.Condition()
        self._codes: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, request: Mapping[str, Any]) -> int:
        """Run a command of `ForkedProcess`, and return its process id."""
        with self._starting:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            return self._started.get(timeout=240)

    def code(self, pid: int, timeout: float) -> int | None:
        """Wait for the end of a process. Returns its exit code, or None if it still runs."""
        with self._ended:
            self._ended.wait_for(lambda: pid in self._codes, timeout)
            return self._codes.get(pid)

    def _listen(self) -> None:
        for line in self._connection.makefile():
            answer = json.loads(line)
            with self._ended:
                if "code" in answer:
                    self._codes[answer["pid"]] = answer["code"]
                    self._ended.notify_all()
                else:
                    self._codes.pop(answer["pid"], None)  # from an earlier process with this id
                    self._started.put(answer["pid"])


def _connect_to_fork_server(source_folder: Path) -> socket.socket:
    """Connect to the fork server of a folder, and start it before if it does not run."""
    digest = hashlib.sha256(bytes(source_folder)).hexdigest()[:16]
    name = f"merganser-fork-server-{RUN_ID}-{digest}"
    connection = socket.socket(socket.AF_UNIX)
    with lock_folder(source_folder):
        try:
            connection.connect(f"\0{name}")
        except ConnectionRefusedError:
            env = dict(os.environ)
            if source_folder != ROOT:
                env["PYTHONPATH"] = str(source_folder)
            subprocess.run(
                [sys.executable, "-m", "tests.support.servers.fork_server", name],
                cwd=source_folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            connection.connect(f"\0{name}")
    return connection


class ForkedProcess:
    """A command that runs in a fork, with the methods of `subprocess.Popen` that tests use.

    With `session` it gets a session of its own. Its folder is by default that of the source code,
    and its network namespace that of the calling thread.
    """

    def __init__(  # noqa: PLR0913 - the facts of a process
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        streams: ProcessStreams,
        *,
        session: bool = False,
        source_folder: Path = ROOT,
        folder: Path | None = None,
        network_namespace: Path | None = None,
    ) -> None:
        thread = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}")
        self._server = fork_server(source_folder)
        self.pid = self._server.start(
            {
                "words": [*arguments],
                "env": dict(env),
                "folder": str(folder or source_folder),
                "network_namespace": str(network_namespace or thread / "ns/net"),
                "stdin": str(streams.stdin),
                "stdout": str(streams.stdout),
                "stderr": str(streams.stderr or streams.stdout),
                "session": session,
            }
        )

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._server.code(self.pid, 0)

    def wait(self, timeout: float = 240) -> int:
        """Wait for the end, and return the exit code. Raises subprocess.TimeoutExpired."""
        if (code := self._server.code(self.pid, timeout)) is None:
            raise subprocess.TimeoutExpired(["merganser"], timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.poll() is None:
            # The process can have ended since, or before the fork server has reported its end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(9)


@cache
def fork_server(source_folder: Path) -> ForkServer:
    """Return the connection of this process to the fork server for the code of a folder."""
    return ForkServer(source_folder)


class ForkedSubprocess(asyncio.subprocess.Process):
    """A forked command, with the methods of asyncio's processes, but without pipes."""

    def __init__(self, forked: ForkedProcess) -> None:
        self._forked = forked
        self.pid = forked.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._forked.poll()

    async def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        while (code := self._forked.poll()) is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
        return code

    def send_signal(self, signal: int) -> None:
        """Send a signal if it still runs."""
        self._forked.send_signal(signal)

    def kill(self) -> None:
        """Kill the process."""
        self._forked.kill()


async def fork_subprocess(
    arguments: Sequence[str], env: Mapping[str, str], log: Path
) -> asyncio.subprocess.Process:
    """Start a command in a session of its own, as `bench.servers.merganser_process.spawn` does."""
    return ForkedSubprocess(
        await asyncio.to_thread(ForkedProcess, arguments, env, ProcessStreams(log), session=True)
    )


def run_forked(
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: str = "",
    timeout: float = 240,
    source_folder: Path = ROOT,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, as `subprocess.run` does. Raises subprocess.TimeoutExpired."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = {stream: folder / stream for stream in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(stdin)
        process = ForkedProcess(
            arguments, env, ProcessStreams(**files), source_folder=source_folder
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out, err = files["stdout"].read_text(), files["stderr"].read_text()
    return subprocess.CompletedProcess(["merganser", *arguments], code, out, err)
