"""Several processes on one machine: some that listen, one that works behind them.

The first process binds, holds the store, begins the others as forks of itself, replaces those
that die, and does nothing else: it opens no store, has no loop and no thread.
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
YOUNG = 5.0  # seconds: what dies before that died at once
PAUSE = 1.0  # seconds until that is begun again; each time twice as long
LONGEST = 30.0
STUCK = 90.0  # seconds that processes have to end, besides the time for draining


@dataclass
class Worker:
    """A place for a process, and the process that has it."""

    name: str
    index: int
    sockets: dict[str, list[socket.socket]] = field(default_factory=dict)
    pid: int = 0
    begun: float = 0.0
    due: float | None = None  # when it is begun again
    pause: float = PAUSE


def run(settings: Settings, many: int) -> None:
    """Serve with so many processes that listen, until SIGTERM or SIGINT."""
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
    """The first process."""

    def __init__(self, settings: Settings, many: int, server: str) -> None:
        self._server = server
        self._settings = shared(settings, many)
        self._many = many
        names = [str(number) for number in range(1, many + 1)]
        self._workers = [Worker(name, index) for index, name in enumerate([*names, BACKGROUND])]
        self._board, self._slates = Board(len(self._workers)), Slates(len(self._workers))
        self._alive, self._parent = -1, -1  # the two ends of a pipe that nobody writes to
        self._complete = False  # all have been up at least once
        self._asked = 0  # how often we were told to stop
        self._give_up = float("inf")
        self._code = 0

    def run(self) -> None:
        """Begin all, and look after them until the last has ended."""
        code = self._wait_for(
            _fork(lambda: uvloop.run(lifecycle.prepare(self._settings, self._server)))
        )
        if code or self._asked:
            raise Trouble("", code=code)
        self._bind()
        self._parent, self._alive = os.pipe()
        for worker in self._workers:
            self._begin(worker)
        while any(worker.pid for worker in self._workers):
            self._look()
        if self._code:
            raise Trouble("", code=self._code)

    def _wait_for(self, pid: int) -> int:
        """Wait until a process has ended; its code. Signals are passed on to it."""
        while True:
            found = signal.sigtimedwait(WATCHED, 1)
            if found and found.si_signo != signal.SIGCHLD:
                self._asked += 1
                os.kill(pid, signal.SIGKILL)  # a migration is one transaction
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return 0 if self._asked else os.waitstatus_to_exitcode(status)

    def _bind(self) -> None:
        """Bind a socket for each process that listens; where somebody else listens, Trouble."""
        settings = self._settings
        for name, setting in sockets.listen_addresses(settings).items():
            for one in sockets.bind_sockets(name, setting):  # not shared, so that it can fail
                one.close()
            more = {"patience": settings.write_timeout} if name == "HTTP" else {}
            for worker in self._workers:
                if worker.name != BACKGROUND:
                    worker.sockets[name] = sockets.bind_sockets(name, setting, shared=True, **more)

    def _begin(self, worker: Worker) -> None:
        worker.begun, worker.due = time.monotonic(), None
        for one in (one for bound in worker.sockets.values() for one in bound):
            with suppress(OSError):
                one.listen(sockets.BACKLOG)  # where it was shut
        worker.pid = _fork(lambda: self._be(worker))

    def _be(self, worker: Worker) -> None:
        """Do the part of this worker, in its own process."""
        os.setpgid(0, 0)  # Ctrl-C is for the first process
        os.close(self._alive)
        for other in self._workers:
            if other is not worker:
                _close(other)
        settings = self._settings
        logs.set_up(settings.log_level, settings.log_format, worker.name)
        listens = worker.name != BACKGROUND
        names = [each.name for each in self._workers]
        part = Part(
            listens=listens,
            works=not listens,
            http=worker.sockets.get("HTTP", ()),
            lmtp=worker.sockets.get("LMTP", ()),
            smtp=worker.sockets,
            index=worker.index,
            many=self._many,
            board=self._board,
            ship=Ship(self._slates, self._board, names, worker.index),
            parent=self._parent,
            server=self._server,
        )
        uvloop.run(lifecycle.serve(settings, part=part))

    def _look(self) -> None:
        """Wait for a signal, or for the next thing to do; and do it."""
        now = time.monotonic()
        due = [worker.due - now for worker in self._workers if worker.due is not None]
        found = signal.sigtimedwait(WATCHED, max(0.0, min([1.0, *due])))
        if found and found.si_signo != signal.SIGCHLD:
            self._stop(signal.Signals(found.si_signo))
        for worker in self._workers:
            if worker.pid:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._ended(worker, os.waitstatus_to_exitcode(status))
        now = time.monotonic()
        for worker in self._workers:
            if worker.due is not None and worker.due <= now and not self._asked:
                self._begin(worker)
        self._complete = self._complete or self._board.all_up
        if now > self._give_up:
            log.error("processes did not end in time")
            self._signal(signal.SIGKILL, self._workers)
            self._give_up, self._code = float("inf"), WRONG

    def _ended(self, worker: Worker, code: int) -> None:
        """A process has ended: begin it again, unless all are to end."""
        was_up, worker.pid = self._board.is_up(worker.index), 0
        self._board.mark(worker.index, up=False)
        if self._asked:
            self._code = self._code or abs(code)
            self._end_background()
            return
        facts = {"which": worker.name, "code": code}
        if not self._complete and not was_up and code > 0:
            log.error("a process could not begin, so the server stops", extra=facts)
            self._code = code
            self._stop(signal.SIGTERM)
            return
        lived = time.monotonic() - worker.begun
        if lived < YOUNG:
            pause, worker.pause = worker.pause, min(worker.pause * 2, LONGEST)
            for one in (one for bound in worker.sockets.values() for one in bound):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # meanwhile the others are connected to
        else:
            pause, worker.pause = 0.0, PAUSE
        worker.due = time.monotonic() + pause
        log.error("a process ended, another takes its place", extra={**facts, "pause": pause})

    def _stop(self, which: signal.Signals) -> None:
        """End those that listen; the one behind them is last. Told again, do not wait."""
        self._asked += 1
        for worker in self._workers:
            worker.due = None
            _close(worker)
        if self._asked == 1:
            log.info("stopping", extra={"signal": which.name})
            self._give_up = time.monotonic() + self._settings.drain.total_seconds() + STUCK
            which = signal.SIGTERM
        self._signal(which, [one for one in self._workers if one.name != BACKGROUND])
        self._end_background()

    def _end_background(self) -> None:
        *listening_, behind = self._workers
        if not any(worker.pid for worker in listening_):
            self._signal(signal.SIGTERM, [behind])

    def _signal(self, which: signal.Signals, workers: Sequence[Worker]) -> None:
        for worker in workers:
            if worker.pid:
                os.kill(worker.pid, which)


def _close(worker: Worker) -> None:
    for bound in worker.sockets.values():
        for one in bound:
            one.close()


def _fork(work: Callable[[], None]) -> int:
    """Do `work` in a process of its own, which ends with it; the number of that process."""
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
    except BaseException:  # noqa: BLE001 - the process ends here: nobody else would tell
        os.write(2, traceback.format_exc().encode())
    finally:
        logging.shutdown()
        os._exit(code)
