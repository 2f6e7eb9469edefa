"""Processes of the real command, forked from one that has imported it."""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[2]


class ForkServer:
    """The process that forks, started with the first command of this test process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.fork_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._starting = threading.Lock()
        self._started = SimpleQueue[int]()
        self._ended = threading.Condition()
        self._codes: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self._close)

    def start(self, words: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Run a command, and return its process id."""
        request = {"words": [*words], "env": dict(env), "folder": str(ROOT), "log": str(log)}
        assert self._process.stdin
        with self._starting:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return self._started.get(timeout=240)

    def code(self, pid: int, timeout: float) -> int | None:
        """Wait for the end of a process. Returns its exit code, or None if it still runs."""
        with self._ended:
            self._ended.wait_for(lambda: pid in self._codes, timeout)
            return self._codes.get(pid)

    def _close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            facts = json.loads(line)
            with self._ended:
                if "code" in facts:
                    self._codes[facts["pid"]] = facts["code"]
                    self._ended.notify_all()
                else:
                    self._codes.pop(facts["pid"], None)  # of an earlier process with this id
                    self._started.put(facts["pid"])


class ForkedProcess:
    """A command that runs in a fork, with the methods of `subprocess.Popen` that tests need."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._server = fork_server()
        self.pid = self._server.start(words, env, log)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._server.code(self.pid, 0)

    def wait(self, timeout: float = 240) -> int:
        """Wait for the end, and return the exit code. Raises TimeoutExpired."""
        if (code := self._server.code(self.pid, timeout)) is None:
            raise subprocess.TimeoutExpired(["merganser"], timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(9)


@cache
def fork_server() -> ForkServer:
    """Return the fork server of this test process."""
    return ForkServer()
