"""Run a server as several processes: some accept connections, one runs the workers.

The first process binds the sockets, locks the database, forks the other processes, and replaces
those that die. It opens no database and has no event loop and no thread, so forking is safe.
"""

import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import uvloop

from merganser.errors import MISUSED, WRONG, Trouble
from merganser.server import lifecycle, sockets
from merganser.server.environment_factory import make_folder, url_of
from merganser.server.observability import logs
from merganser.server.processes.process_roles import Part
from merganser.server.processes.process_shares import shared
from merganser.server.processes.shared_metrics import Board, Ship, Slates
from merganser.server.server_identity import server_identity
from merganser.server.store import store_lock
from merganser.settings.settings import Settings

log = logging.getLogger("merganser")

WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
BACKGROUND = "background"
YOUNG = 5.0  # seconds; after a shorter life the next start is delayed
PAUSE = 1.0  # seconds; doubled each time
LONGEST = 30.0  # seconds
STUCK = 90.0  # seconds, after the time for draining


@dataclass
class Worker:
    """A process of the server, with its sockets and the time of its next start."""

    name: str
    index: int
    sockets: dict[str, list[socket.socket]] = field(default_factory=dict)
    pid: int = 0
    begun: float = 0.0
    due: float | None = None  # by the monotonic clock
    pause: float = PAUSE


def run(settings: Settings, many: int) -> None:
    """Run the server with this number of listening processes until SIGTERM or SIGINT.

    Raises CommandError if the server can't start, or with the exit code of a failed process.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise Trouble("several workers need SO_REUSEPORT: use Linux, or one worker", code=MISUSED)
    url_of(settings)
    make_folder(settings)
    with ExitStack() as stack:
        stack.enter_context(store_lock.held(settings.store))
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        server = stack.enter_context(server_identity(settings.data))
        First(settings, many, server).run()


class First:
    """The first process, which starts, watches and stops all others."""

    def __init__(self, settings: Settings, many: int, server: str) -> None:
        self._server = server
        self._settings = shared(settings, many)
        self._many = many
        names = [str(number) for number in range(1, many + 1)]
        self._workers = [Worker(name, index) for index, name in enumerate([*names, BACKGROUND])]
        self._board, self._slates = Board(len(self._workers)), Slates(len(self._workers))
        self._alive, self._parent = -1, -1  # both ends of a pipe that is never written to
        self._complete = False  # each process was up once
        self._asked = 0  # counted, since the second one stops at once
        self._give_up = float("inf")
        self._code = 0

    def run(self) -> None:
        """Start all processes, and watch them until the last one has ended."""
        code = self._wait_for(
            _fork(lambda: uvloop.run(lifecycle.prepare(self._settings, self._server)))
        )
        if code or self._asked:
            raise Trouble("", code=code)
        self._bind()
        self._parent, self._alive = os.pipe()
        for process in self._workers:
            self._begin(process)
        while any(process.pid for process in self._workers):
            self._look()
        if self._code:
            raise Trouble("", code=self._code)

    def _wait_for(self, pid: int) -> int:
        """Wait for the end of a process and return its exit code. A signal to stop kills it."""
        while True:
            signal_info = signal.sigtimedwait(WATCHED, 1)
            if signal_info and signal_info.si_signo != signal.SIGCHLD:
                self._asked += 1
                os.kill(pid, signal.SIGKILL)  # a migration is one transaction
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return 0 if self._asked else os.waitstatus_to_exitcode(status)

    def _bind(self) -> None:
        """Bind sockets for each listening process. Raises CommandError if an address is in use."""
        settings = self._settings
        for name, setting in sockets.listen_addresses(settings).items():
            for bound_socket in sockets.bind_sockets(
                name, setting
            ):  # not shared, so it fails if the address is in use
                bound_socket.close()
            options = {"patience": settings.write_timeout} if name == "HTTP" else {}
            for process in self._workers:
                if process.name != BACKGROUND:
                    process.sockets[name] = sockets.bind_sockets(
                        name, setting, shared=True, **options
                    )

    def _begin(self, process: Worker) -> None:
        process.begun, process.due = time.monotonic(), None
        for bound_socket in (
            bound_socket for bound in process.sockets.values() for bound_socket in bound
        ):
            with suppress(OSError):
                bound_socket.listen(sockets.BACKLOG)  # it may have been shut down
        process.pid = _fork(lambda: self._be(process))

    def _be(self, process: Worker) -> None:
        """Run the role of this process, after the fork."""
        os.setpgid(0, 0)  # Ctrl-C is for the first process
        os.close(self._alive)
        for other_process in self._workers:
            if other_process is not process:
                _close(other_process)
        settings = self._settings
        logs.set_up(settings.log_level, settings.log_format, process.name)
        listens = process.name != BACKGROUND
        names = [each.name for each in self._workers]
        part = Part(
            listens=listens,
            works=not listens,
            http=process.sockets.get("HTTP", ()),
            lmtp=process.sockets.get("LMTP", ()),
            smtp=process.sockets,
            index=process.index,
            many=self._many,
            board=self._board,
            ship=Ship(self._slates, self._board, names, process.index),
            parent=self._parent,
            server=self._server,
        )
        uvloop.run(lifecycle.serve(settings, part=part))

    def _look(self) -> None:
        """Wait for a signal, an ended process or a due restart, and handle it."""
        now = time.monotonic()
        due = [process.due - now for process in self._workers if process.due is not None]
        signal_info = signal.sigtimedwait(WATCHED, max(0.0, min([1.0, *due])))
        if signal_info and signal_info.si_signo != signal.SIGCHLD:
            self._stop(signal.Signals(signal_info.si_signo))
        for process in self._workers:
            if process.pid:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    self._ended(process, os.waitstatus_to_exitcode(status))
        now = time.monotonic()
        for process in self._workers:
            if process.due is not None and process.due <= now and not self._asked:
                self._begin(process)
        self._complete = self._complete or self._board.all_up
        if now > self._give_up:
            log.error("processes did not end in time")
            self._signal(signal.SIGKILL, self._workers)
            self._give_up, self._code = float("inf"), WRONG

    def _ended(self, process: Worker, code: int) -> None:
        """Schedule the restart of an ended process, unless the server stops.

        A process that fails before all were up once stops the server.
        """
        was_up, process.pid = self._board.is_up(process.index), 0
        self._board.mark(process.index, up=False)
        if self._asked:
            self._code = self._code or abs(code)
            self._end_background()
            return
        facts = {"which": process.name, "code": code}
        if not self._complete and not was_up and code > 0:
            log.error("a process could not begin, so the server stops", extra=facts)
            self._code = code
            self._stop(signal.SIGTERM)
            return
        lived = time.monotonic() - process.begun
        if lived < YOUNG:
            pause, process.pause = process.pause, min(process.pause * 2, LONGEST)
            for bound_socket in (
                bound_socket for bound in process.sockets.values() for bound_socket in bound
            ):
                with suppress(OSError):
                    bound_socket.shutdown(
                        socket.SHUT_RDWR
                    )  # so that clients connect to the other processes
        else:
            pause, process.pause = 0.0, PAUSE
        process.due = time.monotonic() + pause
        log.error("a process ended, another takes its place", extra={**facts, "pause": pause})

    def _stop(self, signal_number: signal.Signals) -> None:
        """Stop the listening processes, then the background process.

        A second signal is passed on as it is, so that they stop without waiting.
        """
        self._asked += 1
        for process in self._workers:
            process.due = None
            _close(process)
        if self._asked == 1:
            log.info("stopping", extra={"signal": signal_number.name})
            self._give_up = time.monotonic() + self._settings.drain.total_seconds() + STUCK
            signal_number = signal.SIGTERM
        self._signal(
            signal_number,
            [bound_socket for bound_socket in self._workers if bound_socket.name != BACKGROUND],
        )
        self._end_background()

    def _end_background(self) -> None:
        *listening, background = self._workers
        if not any(process.pid for process in listening):
            self._signal(signal.SIGTERM, [background])

    def _signal(self, signal_number: signal.Signals, processes: Sequence[Worker]) -> None:
        for process in processes:
            if process.pid:
                os.kill(process.pid, signal_number)


def _close(process: Worker) -> None:
    for bound in process.sockets.values():
        for bound_socket in bound:
            bound_socket.close()


def _fork(work: Callable[[], None]) -> int:
    """Run a function in a new process, which ends after it, and return its process ID.

    The exit code is that of a CommandError, or 1 after another exception.
    """
    pid = os.fork()
    if pid:
        return pid
    code = WRONG
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        work()
        code = 0
    except Trouble as trouble:
        code = trouble.code
        os.write(2, f"merganser: {trouble.message}\n".encode())
    except BaseException:  # noqa: BLE001 - the process ends here, so the error must be reported
        os.write(2, traceback.format_exc().encode())
    finally:
        logging.shutdown()
        os._exit(code)
