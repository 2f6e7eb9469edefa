"""A `merganser` process, and clients of its protocols."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.servers.ports import free_port
from merganser.commands.users import user_operations
from merganser.commands.users.user_operations import ApiKeyRequest
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.users.creation.create import NewUser
from tests.support.clients.plain_http import plain_blocking_client, plain_client
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_client import connect_lmtp as lmtp
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams, run_forked
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[3]
PASSWORD = "correct horse battery"  # noqa: S105 - a test's
OTHER_PASSWORD = "another horse"  # noqa: S105
START_TIMEOUT = 240.0  # seconds, on a busy machine
STOP_TIMEOUT = 120.0
ANSWER_TIMEOUT = 120.0
INHERITED_VARIABLES = ("PATH", "PYTHONPATH")  # variables that the process inherits


def is_complete(ready: httpx.Response) -> bool:
    """True if the response of /health/ready says that every process is up."""
    processes = ready.json()["processes"]
    return ready.is_success and processes["up"] == processes["configured"]


@dataclass(frozen=True)
class CommandOutput:
    """The result of a command."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class MerganserProcess:
    """A data folder, the ports of its listeners, and the process while it runs."""

    folder: Path
    store_url: str = ""  # default: SQLite in the folder
    extra_settings: dict[str, str] = field(default_factory=dict)
    http_port: int = field(default_factory=free_port)
    lmtp_port: int = field(default_factory=free_port)
    next_hop_port: int = 0  # the port of the next hop, if a test needs one
    serve_arguments: tuple[str, ...] = ()  # arguments after `serve`
    source_folder: Path = ROOT  # of the version whose code runs
    secrets: dict[str, str] = field(default_factory=dict)  # API keys of the created users, by name
    _process: "subprocess.Popen[bytes] | ForkedProcess | None" = None

    @property
    def process_env(self) -> dict[str, str]:
        settings = {
            "DATA": str(self.folder / "var"),
            "HTTP_LISTEN": f"127.0.0.1:{self.http_port}",
            "LMTP_LISTEN": f"127.0.0.1:{self.lmtp_port}",
            "ARGON2_MEMORY_COST": "8",
            "ARGON2_TIME_COST": "1",
            "AUTO_CREATE_DOMAINS": "on",
            "HOSTNAME": "mx.example.org",
            **({"DATABASE_URL": self.store_url} if self.store_url else {}),
            **self.extra_settings,
        }
        inherited_variables = {
            name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ
        }
        if self.source_folder == ROOT:  # an older version refuses unknown settings
            # any operation is slow on a busy machine
            settings.setdefault("LOG_SLOW_OPERATION_THRESHOLD", "0 s")
        else:
            inherited_variables["PYTHONPATH"] = str(self.source_folder)
        merganser_variables = {f"MERGANSER_{name}": value for name, value in settings.items()}
        return {
            **inherited_variables,
            "HOME": str(self.folder),
            "PGCONNECT_TIMEOUT": f"{HANG_SECONDS:.0f}",  # a server opens many connections at once
            **merganser_variables,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True from the start of the process until it was stopped or killed."""
        return self._process is not None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def log_records(self) -> list[dict[str, Any]]:
        """The lines of the log as JSON objects."""
        return [json.loads(line) for line in self.log.splitlines()]

    def unexpected_log_records(self) -> list[Any]:
        """The log records above level info, but not those about clients that speak no HTTP."""
        expected_events = ("Invalid HTTP request received.",)
        records = [record for record in self.log_records() if record["level"] != "info"]
        return [record for record in records if record["event"] not in expected_events]

    def start(self) -> Self:
        """Start the process and wait until it answers."""
        self._process = self._start_process(["serve", *self.serve_arguments])
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_ready(self, process: "subprocess.Popen[bytes] | ForkedProcess") -> None:
        deadline = time.monotonic() + START_TIMEOUT
        path = "/health/ready" if self.serve_arguments else "/health"  # of all processes
        with plain_blocking_client(base_url=self.url, timeout=ANSWER_TIMEOUT) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = http.get(path)
                    if not self.serve_arguments or is_complete(response):
                        return
                assert process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)

    def _start_process(self, arguments: list[str]) -> "subprocess.Popen[bytes] | ForkedProcess":
        if "LD_PRELOAD" not in self.process_env:  # a preloaded library needs a new program
            streams = ProcessStreams(self.folder / "log")
            return ForkedProcess(
                arguments, self.process_env, streams, source_folder=self.source_folder
            )
        command = [sys.executable, "-m", "merganser", *arguments]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.source_folder,
                env=self.process_env,
                stderr=log,
                stdout=log,
                stdin=subprocess.DEVNULL,
            )

    def cpu_seconds(self) -> float:
        """CPU time of the threads of the process, which other processes don't affect."""
        nanoseconds = 0
        for file in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread ends at this moment
                nanoseconds += int(file.read_text().split()[0])
        return nanoseconds / 1e9

    def seconds_not_serving(self) -> float:
        """Seconds so far in which the machine ran the test instead of the server.

        That is the time that both waited for a CPU (`run_delay` of the kernel's sched-stats.txt),
        and the CPU time of the test.
        """
        own_statistics = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        server_statistics = f"/proc/{self.pid}/task/{self.pid}/schedstat"
        waiting_nanoseconds = sum(
            int(Path(file).read_text().split()[1]) for file in (own_statistics, server_statistics)
        )
        return waiting_nanoseconds / 1e9 + time.thread_time()

    def stop(self) -> None:
        """Stop the process by SIGTERM; its exit code must be 0, and its log without a traceback."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        self._process = None
        assert code == 0, self.log
        assert "Traceback" not in self.log, self.log

    def wait_for_exit(self) -> int:
        """Wait for the end of the process, which the test has caused; return its exit code."""
        assert self._process
        code = self._process.wait(STOP_TIMEOUT)
        self._process = None
        return code

    def kill(self) -> None:
        """Kill the process, as a power cut does."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None

    def run_command(self, *arguments: str | Path, stdin: str = "") -> CommandOutput:
        """Run another command with the same settings."""
        completed = run_forked(
            [*map(str, arguments)],
            self.process_env,
            stdin=stdin,
            timeout=START_TIMEOUT,
            source_folder=self.source_folder,
        )
        return CommandOutput(completed.returncode, completed.stdout, completed.stderr)

    @asynccontextmanager
    async def environment(self) -> AsyncGenerator[Environment]:
        """Open the same database in this process, as a command does."""
        env = {
            name.removeprefix("MERGANSER_").lower(): value
            for name, value in self.process_env.items()
        }
        settings = Settings(**{k: v for k, v in env.items() if k in Settings.model_fields})  # type: ignore[arg-type]
        async with open_environment(settings, migrate=True) as environment:
            yield environment

    def create_users(self, *names: str) -> None:
        """Create users of example.org, each with an API key, and the platform key `root`."""

        async def create_all() -> None:
            async with self.environment() as environment:
                for name in names:
                    address = f"{name}@example.org"
                    await user_operations.create_user(
                        environment, NewUser(name, address=address, password=PASSWORD)
                    )
                    _, self.secrets[name] = await user_operations.create_api_key(
                        environment, ApiKeyRequest(name, name)
                    )
                _, self.secrets["root"] = await user_operations.create_api_key(
                    environment, ApiKeyRequest("root", role=Role.ROOT)
                )

        database = self.folder / "var" / "merganser.db"
        if not self.store_url and not database.exists():
            store_fixtures.write_migrated_sqlite_database(database)  # takes less than migrations
        store_fixtures.run_in_new_loop(create_all())

    @asynccontextmanager
    async def open_client(self, name: str | None = None) -> AsyncGenerator["HttpClient"]:
        """Yield an HTTP client with the API key of a user, or without one."""
        headers = {"Authorization": f"Bearer {self.secrets[name]}"} if name else {}
        async with plain_client(base_url=self.url, headers=headers, timeout=ANSWER_TIMEOUT) as http:
            yield HttpClient(http)

    @asynccontextmanager
    async def open_websocket(
        self, secret: str | None = None, **options: Any
    ) -> AsyncGenerator["WebsocketClient"]:
        """Yield a WebSocket connection as a browser opens it; signed in if a secret is given."""
        protocols = [Subprotocol("graphql-transport-ws")]
        url = f"ws{self.url[4:]}/graphql"
        async with asyncio.timeout(ANSWER_TIMEOUT):
            connection = await connect(url, subprotocols=protocols, **options)
        async with connection:
            socket = WebsocketClient(connection)
            if secret is not None:
                payload = {"Authorization": f"Bearer {secret}"}
                await socket.send_frame({"type": "connection_init", "payload": payload})
                assert (await socket.read_frame())["type"] == "connection_ack"
            yield socket

    async def deliver_by_lmtp(
        self, raw: bytes, *recipients: str, sender: str = "carol@example.com"
    ) -> str:
        """Deliver a message by LMTP and return the replies to its end."""
        client = await lmtp(self.lmtp_port)
        try:
            await client.start_data(*recipients, sender=sender, mail_parameters=" BODY=8BITMIME")
            client.send_bytes(_dot_stuffed(raw) + b".\r\n")
            return "\n".join([await client.read_reply() for _ in recipients])
        finally:
            await client.close()

    async def connect_lmtp(self) -> SmtpTestClient:
        """Connect to the LMTP listener."""
        return await lmtp(self.lmtp_port)


def _dot_stuffed(raw: bytes) -> bytes:
    """Return a message with the dots of RFC 5321, section 4.5.2, and with a line end."""
    lines = b"\r\n" + raw.removesuffix(b"\r\n")  # so that the first line also follows a line end
    return lines.replace(b"\r\n.", b"\r\n..").removeprefix(b"\r\n") + b"\r\n"


@dataclass
class HttpClient:
    """A GraphQL client over HTTP."""

    http: httpx.AsyncClient

    async def __call__(self, document: str, **variables: Any) -> Any:
        """Run a document and return its data; fails on errors."""
        response = await self.raw(document, **variables)
        assert "errors" not in response, response
        return response["data"]

    async def raw(self, document: str, **variables: Any) -> Any:
        return (await self.post({"query": document, "variables": variables})).json()

    async def post(self, payload: Any, **headers: str) -> httpx.Response:
        return await self.http.post("/graphql", json=payload, headers=headers)

    async def run_mutation(
        self, name: str, input_fields: Any, selection: str = "__typename"
    ) -> Any:
        """Run a mutation and return its payload; fails on errors."""
        input_type = f"{name[0].upper()}{name[1:]}Input"
        document = (
            f"mutation ($input: {input_type}!) {{ it: {name}(input: $input) "
            f"{{ {selection} errors {{ code message path }} }} }}"
        )
        result = (await self(document, input=input_fields))["it"]
        assert result.pop("errors") == [], result
        return result

    async def load_cursor(self) -> str:
        """Read the current cursor of the account."""
        return str((await self("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"])

    @asynccontextmanager
    async def subscribe_by_sse(
        self, document: str, **variables: Any
    ) -> AsyncGenerator["SseEvents"]:
        """Subscribe by server-sent events."""
        request_body = {"query": document, "variables": variables}
        headers = {"Accept": "text/event-stream"}
        request = self.http.stream("POST", "/graphql", json=request_body, headers=headers)
        async with asyncio.timeout(ANSWER_TIMEOUT), request as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            yield SseEvents(response)


class SseEvents:
    """Reads server-sent events."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def read_event(self) -> Any:
        """Return the payload of the next event, or None at the end."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            async for line in self._lines:
                if line.startswith("data:") and line != "data:" and line.strip() != "data:":
                    return json.loads(line.removeprefix("data:"))
                if line.startswith("event: complete"):
                    return None
        return None


@dataclass
class WebsocketClient:
    """A graphql-transport-ws client."""

    ws: ClientConnection

    async def send_frame(self, frame: Any) -> None:
        await self.ws.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def read_frame(self, seconds: float = ANSWER_TIMEOUT) -> Any:
        async with asyncio.timeout(seconds):
            return json.loads(await self.ws.recv())

    async def subscribe(self, document: str, id: str = "1", **variables: Any) -> None:
        payload = {"query": document, "variables": variables}
        await self.send_frame({"id": id, "type": "subscribe", "payload": payload})

    async def read_changes(self) -> Any:
        """Return the next batch of `changes`."""
        frame = await self.read_frame()
        assert frame["type"] == "next", frame
        assert "errors" not in frame["payload"], frame
        return frame["payload"]["data"]["changes"]

    async def read_events(self, count: int) -> list[Any]:
        """Read exactly this many events."""
        events: list[Any] = []
        while len(events) < count:
            events += (await self.read_changes())["events"]
        assert len(events) == count, events[count:]
        return events

    async def receives_nothing(self, seconds: float = 0.3) -> bool:
        """True if no frame comes for a while."""
        try:
            await self.read_frame(seconds)
        except TimeoutError:
            return True
        return False

    async def wait_for_close_code(self, seconds: float = ANSWER_TIMEOUT) -> int:
        """Wait until the server closes the connection, and return the close code."""
        async with asyncio.timeout(seconds):
            await self.ws.wait_closed()
        return self.ws.close_code or 0


def event_types(events: Sequence[Any]) -> list[str]:
    return [event["type"] for event in events]
