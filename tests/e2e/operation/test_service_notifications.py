"""A server tells systemd its state, over a real datagram socket."""

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from merganser.server.processes.process_supervisor import MIN_HANG_TIMEOUT
from merganser.server.service_notifier import ServiceNotifier, notifier_from_environment
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
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifiedService]:
    """A service manager with a socket at a path, or with the parameter "abstract" without one."""
    if getattr(request, "param", "path") == "path":
        address = name = str(tmp_path / "notify")
    else:
        name = f"@merganser-test-{secrets.token_hex(8)}"
        address = f"\0{name[1:]}"
    with service_manager(address, name) as service:
        yield service


@pytest.fixture
def notifying_server(manager: NotifiedService, tmp_path: Path) -> Iterator[NotifyingProcess]:
    folder = tmp_path / "server"
    folder.mkdir()
    process = NotifyingProcess(folder, service_variables=manager.variables())
    yield process
    if process.is_running:
        process.kill()


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
def test_server_reports_start_and_stop(
    manager: NotifiedService, notifying_server: NotifyingProcess
) -> None:
    notifying_server.start()
    assert set(manager.receive_until("READY=1")) <= {"WATCHDOG=1"}
    notifying_server.stop()
    assert set(manager.receive_until("STOPPING=1")) <= {"WATCHDOG=1"}


def test_ready_is_reported_when_all_listeners_accept_connections(
    manager: NotifiedService, notifying_server: NotifyingProcess
) -> None:
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(notifying_server.start)
        manager.receive_until("READY=1")
        response = httpx.get(f"{notifying_server.url}/health/ready", timeout=HANG_SECONDS)
        assert response.status_code == 200
        socket.create_connection(("127.0.0.1", notifying_server.lmtp_port), HANG_SECONDS).close()
        starting.result()


def test_stop_is_reported_when_the_drain_begins(
    manager: NotifiedService, notifying_server: NotifyingProcess
) -> None:
    notifying_server.extra_settings["SHUTDOWN_DRAIN"] = "10 min"
    notifying_server.start()
    manager.receive_until("READY=1")
    os.kill(notifying_server.pid, signal.SIGTERM)
    manager.receive_until("STOPPING=1")
    url = f"{notifying_server.url}/health/ready"  # the server still answers
    wait_until(lambda: httpx.get(url, timeout=HANG_SECONDS).status_code == 503)
    notifying_server.kill()


def test_watchdog_is_notified_repeatedly(
    manager: NotifiedService, notifying_server: NotifyingProcess
) -> None:
    notifying_server.start()
    manager.receive_until("READY=1")
    assert [manager.receive() for _ in range(4)] == ["WATCHDOG=1"] * 4


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


def test_first_of_several_processes_notifies(
    manager: NotifiedService, notifying_server: NotifyingProcess
) -> None:
    notifying_server.serve_arguments = ("--workers", "2")
    notifying_server.start()
    assert manager.receive_until("READY=1") == []
    pids = child_pids(notifying_server)
    assert [manager.receive() for _ in range(2)] == ["WATCHDOG=1"] * 2
    with suspend_process(notifying_server, notifying_server.pid):  # the other processes run on
        manager.discard_received()
        with pytest.raises(TimeoutError):
            manager.receive(LONG_SILENCE_SECONDS)
    assert [manager.receive() for _ in range(4)] == ["WATCHDOG=1"] * 4
    assert child_pids(notifying_server) == pids
    notifying_server.stop()
    assert set(manager.receive_until("STOPPING=1")) <= {"WATCHDOG=1"}


@pytest.mark.parametrize("index", [0, -1], ids=["listening", "background"])
def test_process_that_hangs_is_replaced(
    manager: NotifiedService, notifying_server: NotifyingProcess, index: int
) -> None:
    notifying_server.serve_arguments = ("--workers", "2")
    notifying_server.start()
    pids = child_pids(notifying_server)
    os.kill(pids[index], signal.SIGSTOP)

    def is_replaced() -> bool:
        manager.discard_received()  # as systemd reads them
        remaining_pids = child_pids(notifying_server)
        return pids[index] not in remaining_pids and len(remaining_pids) == len(pids)

    wait_until(is_replaced)
    assert set(pids) - set(child_pids(notifying_server)) == {pids[index]}
    wait_until(
        lambda: is_complete(httpx.get(f"{notifying_server.url}/health/ready", timeout=HANG_SECONDS))
    )
    notifying_server.stop()
    events = {record["event"] for record in notifying_server.unexpected_log_records()}
    assert events >= {"Process hangs; killing it", "Process ended; restarting it"}


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
