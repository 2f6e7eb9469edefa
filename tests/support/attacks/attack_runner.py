"""Run attacks against a server process and measure their costs."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.servers.merganser_server import MerganserProcess
from tests.support.time_limits import HANG_SECONDS

MIB = 1 << 20
# Seconds, without the time in which the server waited for a CPU. Less than the time limits of the
# server, so that a test fails if a client waits until an attacker is disconnected.
MAX_WAIT_OF_OTHERS = 8.0
MAX_ATTACK_MS = 1500.0  # default limit; most attacks take some tens of ms
MAX_GROWTH_KIB = 12 * 1024  # default limit of the growth of the process
GRAPHQL_RESPONSE_TYPE = "application/graphql-response+json"
JSON_HEADERS = {"Content-Type": "application/json", "Accept": GRAPHQL_RESPONSE_TYPE}


@dataclass
class RawHttpResponse:
    """The bytes of an HTTP response. Status 0: the server closed the connection without one."""

    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1]) if self.raw.startswith(b"HTTP/1.1 ") else 0

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def summary(self) -> str:
        """Status and error code such as "400 BAD_USER_INPUT"; only the status if no error."""
        if not self.raw:
            return "hung up"
        try:
            errors = json.loads(self.body).get("errors")
        except (ValueError, AttributeError):
            return str(self.status)
        return f"{self.status} {errors[0]['extensions']['code']}" if errors else str(self.status)


def request(
    method: str, path: str, headers: dict[str, str], body: bytes = b"", *, host: str = "a"
) -> bytes:
    """The bytes of a request with `Connection: close`."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class AttackResult:
    """The response to an attack and its costs: a row of the table."""

    name: str
    summary: str
    duration_ms: float  # until the response, without the time in which the server waited for a CPU
    growth_kib: int
    cpu_ms: float  # CPU time of the server in ms; unlike `ms`, other processes don't affect it


@dataclass
class AttackedServer:
    """A server process under attack, and the results of the attacks."""

    server: MerganserProcess
    results: list[AttackResult] = field(default_factory=list)
    last_number: int = 0
    max_wait_of_others: float = 0.0  # seconds until the slowest response to another client

    @property
    def user_headers(self) -> dict[str, str]:
        """The Authorization header of the user ada, which most attacks use."""
        return self.credential_headers("ada")

    def credential_headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.server.secrets[name]}"}

    def next_number(self) -> int:
        """A new number, which makes a document unknown to the caches of the server."""
        self.last_number += 1
        return self.last_number

    def new_source(self) -> str:
        """A loopback address that no attack has used, so that its rate budget is full."""
        high, low = divmod(self.next_number(), 250)
        return f"127.1.{high}.{low + 1}"

    @asynccontextmanager
    async def open_connection(
        self, data: bytes = b"", *, source: str = "127.0.0.1", receive_buffer: int = 0
    ) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection from a loopback address, and abort it at the end of the block."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((source, 0))
            address = ("127.0.0.1", self.server.http_port)
            await asyncio.get_running_loop().sock_connect(sock, address)
            reader, writer = await asyncio.open_connection(
                sock=sock, limit=receive_buffer or 1 << 20
            )
        except BaseException:  # also if the test ends while it connects
            sock.close()
            raise
        try:
            writer.write(data)
            yield reader, writer
        finally:
            writer.transport.abort()

    async def send_raw(self, data: bytes, *, source: str = "127.0.0.1") -> RawHttpResponse:
        """Send bytes, and return what the server sends until it closes the connection."""
        async with (
            asyncio.timeout(HANG_SECONDS),
            self.open_connection(data, source=source) as (reader, _),
        ):
            received = bytearray()
            try:
                while chunk := await reader.read(1 << 16):
                    received += chunk
            except ConnectionError:
                pass
            return RawHttpResponse(bytes(received))

    async def post(
        self, body: bytes, *, source: str = "127.0.0.1", **headers: str
    ) -> RawHttpResponse:
        """Post a body to /graphql. The keyword arguments are headers, with `_` for `-`."""
        named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.send_raw(
            request("POST", "/graphql", JSON_HEADERS | named_headers, body), source=source
        )

    async def post_document(
        self, query: object, credential: dict[str, str] | None = None, **variables: Any
    ) -> RawHttpResponse:
        """Post a document with the Authorization header `credential`, by default of ada."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        return await self.post(body, **(self.user_headers if credential is None else credential))

    async def assert_others_are_served(self) -> None:
        """Require that the server answers another client within the limit."""
        started_at = time.monotonic() - self.server.seconds_not_serving()
        response = await self.post_document(
            "{ viewer { user { username } } }", self.credential_headers("dora")
        )
        assert json.loads(response.body)["data"] == {"viewer": {"user": {"username": "dora"}}}
        self.max_wait_of_others = max(
            self.max_wait_of_others,
            time.monotonic() - self.server.seconds_not_serving() - started_at,
        )
        assert self.max_wait_of_others < MAX_WAIT_OF_OTHERS

    def memory_kib(self) -> int:
        """The proportional set size of the process in KiB."""
        lines = Path(f"/proc/{self.server.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

    def socket_count(self) -> int:
        """The number of open sockets of the process."""
        count = 0
        for link in Path(f"/proc/{self.server.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += str(link.readlink()).startswith("socket:")
        return count

    def results_table(self) -> str:
        lines = ["| attack | answer | ms | KiB |", "|---|---|---:|---:|"]
        lines += [
            f"| {result.name} | {result.summary} | {result.duration_ms:.0f} | {result.growth_kib} |"
            for result in self.results
        ]
        return "\n".join(lines)


AttackFunction = Callable[[AttackedServer], Awaitable[str | RawHttpResponse]]


@dataclass(frozen=True)
class ServerAttack:
    """An attack, the expected response summaries, and the limits of its costs."""

    name: str
    expected: tuple[str, ...]
    run: AttackFunction
    max_ms: float = MAX_ATTACK_MS
    max_growth_kib: int = MAX_GROWTH_KIB
    repeat_count: int = 1

    async def run_and_measure(self, target: AttackedServer) -> str:
        """Run the attack, add its result to the table, and return the summary of the response."""
        memory_before, worst_ms, worst_cpu_ms = target.memory_kib(), 0.0, 0.0
        for _ in range(self.repeat_count):
            started_at = time.perf_counter() - target.server.seconds_not_serving()
            cpu_before = target.server.cpu_seconds() * 1e3
            response = await self.run(target)
            duration = time.perf_counter() - target.server.seconds_not_serving() - started_at
            worst_ms = max(worst_ms, duration * 1e3)
            worst_cpu_ms = max(worst_cpu_ms, target.server.cpu_seconds() * 1e3 - cpu_before)
        summary = response if isinstance(response, str) else response.summary
        target.results.append(
            AttackResult(
                self.name, summary, worst_ms, target.memory_kib() - memory_before, worst_cpu_ms
            )
        )
        return summary


class AttackList(list[ServerAttack]):
    """The attacks of a module; a call returns a decorator that adds a function."""

    def __call__(
        self, name: str, *expected: str, **limits: Any
    ) -> Callable[[AttackFunction], AttackFunction]:
        """Return a decorator that adds an attack by this function."""

        def add(run: AttackFunction) -> AttackFunction:
            self.append(ServerAttack(name, expected, run, **limits))
            return run

        return add
