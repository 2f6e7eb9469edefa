"""A server tells systemd its state, over a real datagram socket."""

import asyncio
import os
import secrets
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from merganser.server.processes.process_supervisor import MIN_HANG_TIMEOUT
from merganser.server.service_notifier import ServiceNotifier, notifier_from_environment
from tests.support.clients.plain_http import plain_blocking_client
from tests.support.servers.merganser_server import MerganserProcess, is_complete
from tests.support.servers.observed_server import wait_until
from tests.support.servers.suspended_process import suspend_process
from tests.support.time_limits import HANG_SECONDS

WATCHDOG_SECONDS = 1.0
LONG_SILENCE_SECONDS = 1.5 * MIN_HANG_TIMEOUT
SHORT_WATCHDOG_SECONDS = 0.1


@dataclass
class NotifiedService:
    """The socket of a service manager, and the name of it for the service."""

    receiver: socket.socket
    name: str

    def variables(self, watchdog_seconds: float = WATCHDOG_SECONDS) -> dict[str, str]:
        """The variables that systemd sets for a service of the type `notify`."""
        return {
            "NOTIFY_SOCKET": self.name,
            "WATCHDOG_USEC": str(int(watchdog_seconds * 1_000_000)),
        }

    def receive(self, seconds: float = HANG_SECONDS) -> str:
        """Return the next notification. Raises TimeoutError if none arrives."""
        self.receiver.settimeout(seconds)
        return self.receiver.recv(4096).decode()

    def receive_until(self, awaited: str) -> list[str]:
        """Return the notifications before this one."""
        notifications: list[str] = []
        while (notification := self.receive()) != awaited:
            notifications.append(notification)
        return notifications

    def discard_received(self) -> None:
        """Read all notifications that have arrived."""
        self.receiver.setblocking(False)
        try:
            while self.receiver.recv(4096):
                pass
        except BlockingIOError:
            pass


@dataclass
class NotifyingProcess(MerganserProcess):
    """A server with the variables of systemd."""

    service_variables: dict[str, str] | None = None

    @property
    def process_env(self) -> dict[str, str]:
        return {**super().process_env, **(self.service_variables or {})}


@contextmanager
def service_manager(address: str, name: str) -> Iterator[NotifiedService]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        yield NotifiedService(receiver, name)


def child_pids(server: MerganserProcess) -> list[int]:
    """The processes that the first process has started, the background process last."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return sorted(map(int, children.split()))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifiedService]:
    """A service manager with a socket at a path."""
    address = str(tmp_path / "notify")
    with service_manager(address, address) as service:
        yield service


@contextmanager
def notifying_server(
    manager: NotifiedService, folder: Path, *serve_arguments: str
) -> Iterator[NotifyingProcess]:
    """A server of this service manager that is not started. It is killed after the block."""
    folder.mkdir()
    process = NotifyingProcess(
        folder, serve_arguments=serve_arguments, service_variables=manager.variables()
    )
    try:
        yield process
    finally:
        if process.is_running:
            process.kill()


def test_server_reports_start_and_stop_to_an_abstract_socket(tmp_path: Path) -> None:
    name = f"@merganser-test-{secrets.token_hex(8)}"
    with (
        service_manager(f"\0{name[1:]}", name) as manager,
        notifying_server(manager, tmp_path / "server") as server,
    ):
        server.start()
        assert set(manager.receive_until("READY=1")) <= {"WATCHDOG=1"}
        server.stop()
        assert set(manager.receive_until("STOPPING=1")) <= {"WATCHDOG=1"}


def test_server_reports_readiness_watchdog_and_drain(
    manager: NotifiedService, tmp_path: Path
) -> None:
    """READY=1 when all listeners accept connections, STOPPING=1 when the drain begins."""
    with (
        notifying_server(manager, tmp_path / "server") as server,
        ThreadPoolExecutor(1) as threads,
        plain_blocking_client(base_url=server.url, timeout=HANG_SECONDS) as http,
    ):
        server.extra_settings["SHUTDOWN_DRAIN"] = "10 min"
        starting = threads.submit(server.start)
        assert set(manager.receive_until("READY=1")) <= {"WATCHDOG=1"}
        assert http.get("/health/ready").status_code == 200
        socket.create_connection(("127.0.0.1", server.lmtp_port), HANG_SECONDS).close()
        starting.result()
        assert [manager.receive() for _ in range(4)] == ["WATCHDOG=1"] * 4
        os.kill(server.pid, signal.SIGTERM)
        assert set(manager.receive_until("STOPPING=1")) <= {"WATCHDOG=1"}
        wait_until(lambda: http.get("/health/ready").status_code == 503)  # it still answers


async def test_watchdog_is_not_notified_while_the_event_loop_is_blocked(
    manager: NotifiedService,
) -> None:
    notifier = notifier_from_environment(manager.variables(SHORT_WATCHDOG_SECONDS))
    async with notifier.watchdog_of_event_loop():
        assert await asyncio.to_thread(manager.receive) == "WATCHDOG=1"
        manager.discard_received()
        with pytest.raises(TimeoutError):
            manager.receive(5 * SHORT_WATCHDOG_SECONDS)  # it blocks the event loop
        assert await asyncio.to_thread(manager.receive) == "WATCHDOG=1"
    manager.discard_received()
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(manager.receive, 5 * SHORT_WATCHDOG_SECONDS)


def check_first_process_notifies(manager: NotifiedService, server: NotifyingProcess) -> None:
    """Suspend the first process: the service manager gets no notification meanwhile."""
    pids = child_pids(server)
    assert [manager.receive() for _ in range(2)] == ["WATCHDOG=1"] * 2
    with suspend_process(server, server.pid):  # the other processes run on
        manager.discard_received()
        with pytest.raises(TimeoutError):
            manager.receive(LONG_SILENCE_SECONDS)
    assert [manager.receive() for _ in range(4)] == ["WATCHDOG=1"] * 4
    assert child_pids(server) == pids


def check_hanging_process_is_replaced(
    manager: NotifiedService, server: NotifyingProcess, hanging_pid: int
) -> None:
    """Suspend a process that the first one has started: only this one is replaced."""
    pids = child_pids(server)
    os.kill(hanging_pid, signal.SIGSTOP)

    def is_replaced() -> bool:
        manager.discard_received()  # as systemd reads them
        remaining_pids = child_pids(server)
        return hanging_pid not in remaining_pids and len(remaining_pids) == len(pids)

    wait_until(is_replaced)
    assert set(pids) - set(child_pids(server)) == {hanging_pid}
    with plain_blocking_client(base_url=server.url, timeout=HANG_SECONDS) as http:

        def is_ready() -> bool:
            manager.discard_received()
            with suppress(httpx.TransportError):  # the connection was of the process that hung
                return is_complete(http.get("/health/ready"))
            return False

        wait_until(is_ready)


def test_first_of_several_processes_notifies_and_replaces_those_that_hang(
    manager: NotifiedService, tmp_path: Path
) -> None:
    with notifying_server(manager, tmp_path / "server", "--workers", "2") as server:
        server.start()
        assert manager.receive_until("READY=1") == []
        check_first_process_notifies(manager, server)
        listening_pid, *_, background_pid = child_pids(server)
        check_hanging_process_is_replaced(manager, server, listening_pid)
        check_hanging_process_is_replaced(manager, server, background_pid)
        server.stop()
        assert set(manager.receive_until("STOPPING=1")) <= {"WATCHDOG=1"}
        events = Counter(record["event"] for record in server.unexpected_log_records())
        assert events["Process hangs; killing it"] >= 2
        assert events["Process ended; restarting it"] >= 2


def test_server_runs_without_the_socket_of_the_service_manager(tmp_path: Path) -> None:
    variables = {"NOTIFY_SOCKET": str(tmp_path / "missing")}
    server = NotifyingProcess(tmp_path, service_variables=variables)
    server.start()
    server.stop()
    events = {record["event"] for record in server.unexpected_log_records()}
    assert events == {"Could not notify the service manager"}


@pytest.mark.parametrize(
    ("variables", "address", "interval"),
    [
        ({}, None, None),
        ({"WATCHDOG_USEC": "4000000"}, None, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, None, None),
        ({"NOTIFY_SOCKET": "/run/notify"}, "/run/notify", None),
        ({"NOTIFY_SOCKET": "@name"}, "\0name", None),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "4000000"}, "/n", 2.0),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, "/n", None),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"}, "/n", None),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, "/n", None),
        (
            {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())},
            "/n",
            2.0,
        ),
    ],
)
def test_notifier_follows_the_environment(
    variables: dict[str, str], address: str | None, interval: float | None
) -> None:
    assert notifier_from_environment(variables) == ServiceNotifier(address, interval)
