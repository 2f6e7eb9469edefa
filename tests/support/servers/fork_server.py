"""A process that has imported the server, and runs commands in forks of itself.

Imports take most of the CPU time of a start, so all processes of a test run share this process.
`python -m tests.support.servers.fork_server NAME` starts it in the background, and ends as soon as
clients can connect to the abstract Unix socket NAME. The process ends after its last client.

Requests of a client are lines of JSON. The answer to each is the line {"pid": …}. When a command
ends, the line {"pid": …, "code": …} follows; the code is negative if a signal ended it. Commands
are killed when their client ends.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

PR_SET_PDEATHSIG = 1  # prctl(2): the signal that the process gets when its parent ends
CLONE_NEWNET = 0x40000000  # setns(2): the descriptor is of a network namespace
OWN_NETWORK = Path("/proc/thread-self/ns/net")
MAX_WAITING_CLIENTS = 64
IMPORTED_WHEN_USED = (  # by the server, or by libraries
    "alembic.command",
    "asyncpg",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against others that start, connect to or end its fork server."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def join_network_namespace(namespace: int) -> None:
    """Move this thread to the network namespace of a descriptor. Raises OSError.

    Moving to the own namespace needs no permission.
    """
    is_own = os.path.samestat(os.fstat(namespace), OWN_NETWORK.stat())
    if not is_own and ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _import_server() -> None:
    """Import the server, and what commands and database drivers import when they are used."""
    import graph.schema  # noqa: F401 - only in the fork server
    import merganser.__main__
    import merganser.commands
    import merganser.server.lifecycle

    commands = pkgutil.walk_packages(merganser.commands.__path__, "merganser.commands.")
    for name in (*IMPORTED_WHEN_USED, *(module.name for module in commands)):
        importlib.import_module(name)


def _run(request: dict[str, Any]) -> Never:
    """Become the command of a request: its environment, folder, arguments and files."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a failed test may not stop it
    if request["session"]:
        os.setsid()
    join_network_namespace(os.open(request["network_namespace"], os.O_RDONLY))
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), number)
    os.closerange(3, 64)
    sys.argv = ["merganser", *request["words"]]
    from merganser.__main__ import main

    _end_process(main())


def _end_process(code: int) -> Never:
    """End as Python does, but do not delete the modules: that takes 0.2 s of CPU."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - waits for threads
    atexit._run_exitfuncs()  # noqa: SLF001
    gc.collect()  # objects report there that their results were never used
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass(eq=False)
class _Client:
    """A connected client, and its running commands."""

    connection: socket.socket
    pids: set[int] = field(default_factory=set)
    unread: bytes = b""

    def read_requests(self) -> list[dict[str, Any]] | None:
        """Read the requests that have arrived. Returns None if the client has ended."""
        with contextlib.suppress(ConnectionError):
            if chunk := self.connection.recv(1 << 20):
                *lines, self.unread = (self.unread + chunk).split(b"\n")
                return [json.loads(line) for line in lines]
        return None

    def write_answer(self, **members: int) -> None:
        with contextlib.suppress(ConnectionError):  # the next read reports the end of the client
            self.connection.sendall(json.dumps(members).encode() + b"\n")


class _CommandForks:
    """The clients and the running commands."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._clients = dict[int, _Client]()  # by file descriptor

    def serve(self) -> None:
        """Run the requested commands until the last client has ended."""
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_reader, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        while self._clients or self._has_waiting_client():
            descriptors = [wake_reader, self._listener.fileno(), *self._clients]
            for descriptor in select.select(descriptors, [], [])[0]:
                if client := self._clients.get(descriptor):
                    self._run_requests(client)
                elif descriptor == wake_reader:
                    os.read(wake_reader, 4096)
                    self._report_ended()
                else:
                    self._accept()

    def _has_waiting_client(self) -> bool:
        """Return whether a client has connected. Closes the listener if not."""
        with (
            contextlib.suppress(FileNotFoundError),  # a test has deleted the code of its version
            lock_folder(Path.cwd()),  # a client that has started this process connects first
        ):
            if select.select([self._listener], [], [], 0)[0]:
                return True
            self._listener.close()
        return False

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        if struct.unpack("3i", credentials)[1] == os.getuid():  # any user can connect
            self._clients[connection.fileno()] = _Client(connection)
        else:
            connection.close()

    def _run_requests(self, client: _Client) -> None:
        requests = client.read_requests()
        if requests is None:
            del self._clients[client.connection.fileno()]
            client.connection.close()
            for pid in client.pids:
                os.kill(pid, signal.SIGKILL)
            return
        for request in requests:
            pid = os.fork()
            if pid == 0:
                _run(request)
            client.pids.add(pid)
            client.write_answer(pid=pid)

    def _report_ended(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for client in self._clients.values():
                if pid in client.pids:
                    client.pids.discard(pid)
                    client.write_answer(pid=pid, code=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Listen, continue in the background, and serve."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{sys.argv[1]}")
    listener.listen(MAX_WAITING_CLIENTS)
    if os.fork():
        return
    _import_server()
    gc.collect()
    gc.freeze()  # else each fork scans and copies all imported objects when it ends: 1.5 s of CPU
    _CommandForks(listener).serve()
    os._exit(0)  # it has nothing to store, and a regular end takes seconds


if __name__ == "__main__":
    main()
