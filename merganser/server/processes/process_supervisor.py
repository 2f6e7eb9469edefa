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

from merganser.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from merganser.server import lifecycle, sockets
from merganser.server.config_reload import with_reloadable_values
from merganser.server.environment_factory import (
    checked_database_url_without_password,
    create_data_folders,
)
from merganser.server.observability import logs
from merganser.server.process_memory import freeze_loaded_objects
from merganser.server.processes.process_roles import ProcessRole
from merganser.server.processes.process_shares import settings_with_process_share_of_limits
from merganser.server.processes.shared_metrics import (
    FleetMetrics,
    ProcessStatusBoard,
    SharedMetricsMemory,
)
from merganser.server.server_identity import hold_server_id
from merganser.server.service_notifier import notifier_from_environment
from merganser.server.store import store_lock
from merganser.server.store.spare_file import SpareFile
from merganser.settings.settings import Settings, read_settings

log = logging.getLogger("merganser")

HANDLED_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP}
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
BACKGROUND_NAME = "background"
MIN_LIFETIME = 5.0  # seconds; after a shorter life the next start is delayed
MIN_RESTART_DELAY = 1.0  # seconds; doubled each time
MAX_RESTART_DELAY = 30.0  # seconds
MAX_WAIT = 1.0  # seconds between two checks of the processes
MIN_HANG_TIMEOUT = 5.0  # seconds; a process records a heartbeat every second
STOP_TIMEOUT = 90.0  # seconds, after the time for draining


@dataclass
class SupervisedProcess:
    """A process of the server, with its sockets and the time of its next start."""

    name: str
    index: int
    sockets: dict[str, list[socket.socket]] = field(default_factory=dict)
    pid: int = 0
    started_at: float = 0.0
    restart_at: float | None = None  # by the monotonic clock
    restart_delay: float = MIN_RESTART_DELAY
    heartbeat_count: int = 0  # at the last check
    silent_seconds: float = 0.0  # since this number has changed


def run_processes(settings: Settings, listening_process_count: int) -> None:
    """Run the server with this number of listening processes until SIGTERM or SIGINT.

    Raises CommandError if the server can't start, or with the exit code of a failed process.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise CommandError(
            "Several workers require SO_REUSEPORT: use Linux, or one worker.", exit_code=EXIT_USAGE
        )
    checked_database_url_without_password(settings)
    create_data_folders(settings)
    with ExitStack() as stack:
        stack.enter_context(store_lock.lock_sqlite_as_server(settings.database_url))
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        server_id = stack.enter_context(hold_server_id(settings.data))
        ProcessSupervisor(settings, listening_process_count, server_id).run()


class ProcessSupervisor:
    """The first process, which starts, watches and stops all others."""

    def __init__(self, settings: Settings, listening_process_count: int, server_id: str) -> None:
        self._server_id = server_id
        self._settings = settings_with_process_share_of_limits(settings, listening_process_count)
        self._listening_process_count = listening_process_count
        names = [str(number) for number in range(1, listening_process_count + 1)]
        self._processes = [
            SupervisedProcess(name, index) for index, name in enumerate([*names, BACKGROUND_NAME])
        ]
        self._status_board, self._metrics_memory = (
            ProcessStatusBoard(len(self._processes)),
            SharedMetricsMemory(len(self._processes)),
        )
        self._alive_pipe, self._parent_pipe = -1, -1  # both ends of a pipe that is never written to
        self._all_were_up = False  # each process was up once
        self._notifier = notifier_from_environment()
        self._checked_at = time.monotonic()
        self._stop_request_count = 0  # counted, since the second one stops at once
        self._kill_at = float("inf")
        self._exit_code = 0

    def run(self) -> None:
        """Start all processes, and watch them until the last one has ended."""
        freeze_loaded_objects()
        code = self._wait_for_process_or_kill_on_signal(
            fork_process(
                lambda: uvloop.run(
                    lifecycle.migrate_free_old_leases_and_check_settings(
                        self._settings, self._server_id
                    )
                )
            )
        )
        if code or self._stop_request_count:
            raise CommandError("", exit_code=code)
        spare_file = SpareFile.from_settings(self._settings)
        spare_file.release_if_disk_is_full()  # the background process refills it
        self._bind_sockets()
        self._parent_pipe, self._alive_pipe = os.pipe()
        for process in self._processes:
            self._start_process(process)
        while any(process.pid for process in self._processes):
            self._wait_for_signal_then_check_processes()
        spare_file.refill()
        if self._exit_code:
            raise CommandError("", exit_code=self._exit_code)

    def _wait_for_process_or_kill_on_signal(self, pid: int) -> int:
        """Wait for the end of a process and return its exit code. A signal to stop kills it."""
        while True:
            signal_info = signal.sigtimedwait(HANDLED_SIGNALS, 1)
            if signal_info and signal_info.si_signo in STOP_SIGNALS:
                self._stop_request_count += 1
                os.kill(pid, signal.SIGKILL)  # a migration is one transaction
            ended_pid, status = os.waitpid(pid, os.WNOHANG)
            if ended_pid:
                return 0 if self._stop_request_count else os.waitstatus_to_exitcode(status)

    def _bind_sockets(self) -> None:
        """Bind sockets for each listening process. Raises CommandError if an address is in use."""
        settings = self._settings
        for name, setting in sockets.listen_addresses(settings).items():
            for bound_socket in sockets.open_listening_sockets(
                name, setting
            ):  # not shared, so it fails if the address is in use
                bound_socket.close()
            options = {"unread_timeout": settings.http_write_timeout} if name == "HTTP" else {}
            for process in self._processes:
                if process.name != BACKGROUND_NAME:
                    process.sockets[name] = sockets.open_listening_sockets(
                        name, setting, is_shared=True, **options
                    )

    def _start_process(self, process: SupervisedProcess) -> None:
        process.started_at, process.restart_at = time.monotonic(), None
        for bound_socket in (
            bound_socket
            for bound_sockets in process.sockets.values()
            for bound_socket in bound_sockets
        ):
            with suppress(OSError):
                bound_socket.listen(sockets.BACKLOG)  # it may have been shut down
        process.pid = fork_process(lambda: self._run_process(process))

    def _run_process(self, process: SupervisedProcess) -> None:
        """Run the role of this process, after the fork."""
        os.setpgid(0, 0)  # Ctrl-C is for the first process
        os.close(self._alive_pipe)
        for other_process in self._processes:
            if other_process is not process:
                _close_sockets(other_process)
        settings = self._settings_with_reloaded_values()
        logs.configure_logging(settings.log_level, settings.log_format, process.name)
        listens = process.name != BACKGROUND_NAME
        names = [process.name for process in self._processes]
        part = ProcessRole(
            accepts_connections=listens,
            runs_workers=not listens,
            http_sockets=process.sockets.get("HTTP", ()),
            lmtp_sockets=process.sockets.get("LMTP", ()),
            smtp_sockets=process.sockets,
            process_index=process.index,
            listening_process_count=self._listening_process_count,
            status_board=self._status_board,
            fleet_metrics=FleetMetrics(
                self._metrics_memory, self._status_board, names, process.index
            ),
            parent_pipe=self._parent_pipe,
            server_id=self._server_id,
        )
        uvloop.run(lifecycle.serve(settings, process_role=part))

    def _settings_with_reloaded_values(self) -> Settings:
        """Return the settings for a process that starts: the other processes may have reloaded.

        An invalid settings file changes nothing.
        """
        try:
            latest = settings_with_process_share_of_limits(
                read_settings(), self._listening_process_count
            )
        except CommandError as problem:
            log.warning("Settings not read again", extra={"why": problem.message})
            return self._settings
        return with_reloadable_values(self._settings, latest)

    def _wait_for_signal_then_check_processes(self) -> None:
        """Wait for a signal, an ended process or a due restart, and handle it."""
        now = time.monotonic()
        restart_delays = [
            process.restart_at - now
            for process in self._processes
            if process.restart_at is not None
        ]
        max_wait = min(MAX_WAIT, self._notifier.watchdog_interval or MAX_WAIT)
        signal_info = signal.sigtimedwait(
            HANDLED_SIGNALS, max(0.0, min([max_wait, *restart_delays]))
        )
        if signal_info and signal_info.si_signo == signal.SIGHUP:
            self._send_signal(signal.SIGHUP, self._processes)  # each one reads its settings again
        if signal_info and signal_info.si_signo in STOP_SIGNALS:
            self._signal_listeners_then_background_to_stop(signal.Signals(signal_info.si_signo))
        for process in self._processes:
            if process.pid:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    self._schedule_restart_or_stop_server(
                        process, os.waitstatus_to_exitcode(status)
                    )
        now = time.monotonic()
        self._kill_hanging_processes(now)
        for process in self._processes:
            if (
                process.restart_at is not None
                and process.restart_at <= now
                and not self._stop_request_count
            ):
                self._start_process(process)
        self._notify_service_manager()
        if now > self._kill_at:
            log.error("Processes did not end in time; killing them")
            self._send_signal(signal.SIGKILL, self._processes)
            self._kill_at, self._exit_code = float("inf"), EXIT_FAILURE

    def _notify_service_manager(self) -> None:
        """Report to systemd that all processes are up once, and from then on that this one runs."""
        if not self._all_were_up and self._status_board.all_up:
            self._all_were_up = True
            self._notifier.notify_ready()
        if self._all_were_up:
            self._notifier.notify_watchdog_if_due()

    def _kill_hanging_processes(self, now: float) -> None:
        """Kill the processes whose event loop didn't run for the time of systemd's watchdog.

        Without a watchdog none is killed. Time in which this process didn't run doesn't count,
        since the others were suspended too.
        """
        seconds, self._checked_at = min(now - self._checked_at, 2 * MAX_WAIT), now
        if self._notifier.watchdog_interval is None or self._stop_request_count:
            return
        hang_timeout = max(MIN_HANG_TIMEOUT, 2 * self._notifier.watchdog_interval)
        for process in self._processes:
            count = self._status_board.heartbeat_count(process.index)
            if count != process.heartbeat_count or not self._status_board.is_up(process.index):
                process.heartbeat_count, process.silent_seconds = count, 0.0
                continue
            process.silent_seconds += seconds
            if process.silent_seconds > hang_timeout:
                log.error("Process hangs; killing it", extra={"which": process.name})
                self._status_board.set_up(process.index, up=False)
                self._send_signal(signal.SIGKILL, [process])

    def _schedule_restart_or_stop_server(self, process: SupervisedProcess, exit_code: int) -> None:
        """Schedule the restart of an ended process, unless the server stops.

        A process that fails before all were up once stops the server.
        """
        was_up, process.pid = self._status_board.is_up(process.index), 0
        self._status_board.set_up(process.index, up=False)
        if self._stop_request_count:
            self._exit_code = self._exit_code or abs(exit_code)
            self._stop_background_if_last()
            return
        facts = {"which": process.name, "code": exit_code}
        if not self._all_were_up and not was_up and exit_code > 0:
            log.error("A process could not start; stopping the server", extra=facts)
            self._exit_code = exit_code
            self._signal_listeners_then_background_to_stop(signal.SIGTERM)
            return
        lived = time.monotonic() - process.started_at
        if lived < MIN_LIFETIME:
            pause, process.restart_delay = (
                process.restart_delay,
                min(process.restart_delay * 2, MAX_RESTART_DELAY),
            )
            for bound_socket in (
                bound_socket
                for bound_sockets in process.sockets.values()
                for bound_socket in bound_sockets
            ):
                with suppress(OSError):
                    # so that clients connect to the other processes
                    bound_socket.shutdown(socket.SHUT_RDWR)
        else:
            pause, process.restart_delay = 0.0, MIN_RESTART_DELAY
        process.restart_at = time.monotonic() + pause
        log.error("Process ended; restarting it", extra={**facts, "pause": pause})

    def _signal_listeners_then_background_to_stop(self, signal_number: signal.Signals) -> None:
        """Stop the listening processes, then the background process.

        A second signal is passed on unchanged, so that the processes stop without waiting.
        """
        self._stop_request_count += 1
        self._notifier.notify_stopping()
        for process in self._processes:
            process.restart_at = None
            _close_sockets(process)
        if self._stop_request_count == 1:
            log.info("Stopping", extra={"signal": signal_number.name})
            self._kill_at = (
                time.monotonic() + self._settings.shutdown_drain.total_seconds() + STOP_TIMEOUT
            )
            signal_number = signal.SIGTERM
        self._send_signal(
            signal_number,
            [
                bound_socket
                for bound_socket in self._processes
                if bound_socket.name != BACKGROUND_NAME
            ],
        )
        self._stop_background_if_last()

    def _stop_background_if_last(self) -> None:
        *listening, background = self._processes
        if not any(process.pid for process in listening):
            self._send_signal(signal.SIGTERM, [background])

    def _send_signal(
        self, signal_number: signal.Signals, processes: Sequence[SupervisedProcess]
    ) -> None:
        for process in processes:
            if process.pid:
                os.kill(process.pid, signal_number)


def _close_sockets(process: SupervisedProcess) -> None:
    for listening_sockets in process.sockets.values():
        for bound_socket in listening_sockets:
            bound_socket.close()


def fork_process(function: Callable[[], None]) -> int:
    """Run a function in a new process, which ends after it, and return its process ID.

    The exit code is that of a CommandError, or 1 after another exception.
    """
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_FAILURE
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server handles it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        function()
        code = 0
    except CommandError as trouble:
        code = trouble.exit_code
        os.write(2, f"merganser: {trouble.message}\n".encode())
    except BaseException:  # noqa: BLE001 - the process ends here, so the error must be reported
        os.write(2, traceback.format_exc().encode())
    finally:
        logging.shutdown()
        os._exit(code)
