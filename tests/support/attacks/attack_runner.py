"""A server under attack: how it is asked, byte by byte, and what an attack has cost it."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.servers.merganser_server import Server

PATIENCE = 15.0  # seconds for any answer
MIB = 1 << 20
NOBODY_WAITS = 3.0  # seconds that the server lets others wait
SLOW = 1500.0  # ms that any attack may take, unless it says otherwise: tens of them in truth
FLAT = 12 * 1024  # KiB that the process may grow by
RESPONSE = "application/graphql-response+json"
JSON = {"Content-Type": "application/json", "Accept": RESPONSE}


@dataclass
class Answer:
    """What came back. No status: the server hung up without a word."""

    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1]) if self.raw.startswith(b"HTTP/1.1 ") else 0

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def said(self) -> str:
        """Status and code, as in "400 BAD_USER_INPUT"; 200 alone where all went well."""
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
    """A whole request, after which the connection is closed."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Row:
    """A line of the table."""

    name: str
    said: str
    ms: float  # until the answer, without the time in which the server waited for a CPU
    kib: int
    work: float  # ms of the server's CPU: the time until then is also that of its neighbours


@dataclass
class Siege:
    """The server, and what has become of attacks on it."""

    server: Server
    rows: list[Row] = field(default_factory=list)
    count: int = 0
    slowest: float = 0.0  # seconds in which somebody else was answered

    @property
    def key(self) -> dict[str, str]:
        """The credential of most attackers: a user's, who may try much."""
        return self.key_of("ada")

    def key_of(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.server.secrets[name]}"}

    def next(self) -> int:
        """A number that was not there before: no text is known to the server."""
        self.count += 1
        return self.count

    @asynccontextmanager
    async def opened(
        self, sent: bytes = b"", *, source: str = "127.0.0.1", receive: int = 0
    ) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection from an address of the loopback; at the end it is gone without a word."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.http))
        limit = max(receive, 1) if receive else 1 << 20
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        try:
            writer.write(sent)
            yield reader, writer
        finally:
            writer.transport.abort()

    async def raw(self, sent: bytes, *, source: str = "127.0.0.1") -> Answer:
        """All that comes back for these bytes until the server hangs up."""
        async with asyncio.timeout(PATIENCE), self.opened(sent, source=source) as (reader, _):
            got = bytearray()
            try:
                while piece := await reader.read(1 << 16):
                    got += piece
            except ConnectionError:
                pass
            return Answer(bytes(got))

    async def post(self, body: bytes, *, source: str = "127.0.0.1", **headers: str) -> Answer:
        """Ask /graphql; names of headers are written with underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.raw(request("POST", "/graphql", JSON | given, body), source=source)

    async def ask(
        self, query: object, key: dict[str, str] | None = None, **variables: Any
    ) -> Answer:
        """Run a document as the attacker with a credential."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        return await self.post(body, **(self.key if key is None else key))

    async def served(self) -> None:
        """Somebody else is answered at once."""
        began = time.monotonic() - self.server.hindered()
        answer = await self.ask("{ viewer { user { username } } }", self.key_of("dora"))
        assert json.loads(answer.body)["data"] == {"viewer": {"user": {"username": "dora"}}}
        self.slowest = max(self.slowest, time.monotonic() - self.server.hindered() - began)
        assert self.slowest < NOBODY_WAITS

    def memory(self) -> int:
        """KiB of the process that no other shares."""
        lines = Path(f"/proc/{self.server.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

    def work(self) -> float:
        """Milliseconds of CPU that the process has taken."""
        taken = 0
        for file in Path(f"/proc/{self.server.pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # the thread ends at this moment
                taken += int(file.read_text().split()[0])
        return taken / 1e6

    def connections(self) -> int:
        """Open sockets of the process."""
        found = 0
        for each in Path(f"/proc/{self.server.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found += str(each.readlink()).startswith("socket:")
        return found

    def table(self) -> str:
        lines = ["| attack | answer | ms | KiB |", "|---|---|---:|---:|"]
        lines += [f"| {r.name} | {r.said} | {r.ms:.0f} | {r.kib} |" for r in self.rows]
        return "\n".join(lines)


Run = Callable[[Siege], Awaitable[str | Answer]]


@dataclass(frozen=True)
class Attack:
    """What is tried, and what must be answered to it: one of these."""

    name: str
    expected: tuple[str, ...]
    run: Run
    ms: float = SLOW
    kib: int = FLAT
    times: int = 1

    async def fought(self, siege: Siege) -> str:
        """Run it; what was said, the worst time of all and the growth go into the table."""
        before, worst, work = siege.memory(), 0.0, 0.0
        for _ in range(self.times):
            began, done = time.perf_counter() - siege.server.hindered(), siege.work()
            said = await self.run(siege)
            took = time.perf_counter() - siege.server.hindered() - began
            worst = max(worst, took * 1e3)
            work = max(work, siege.work() - done)
        answer = said if isinstance(said, str) else said.said
        siege.rows.append(Row(self.name, answer, worst, siege.memory() - before, work))
        return answer


class Attacks(list[Attack]):
    """Those of a module."""

    def __call__(self, name: str, *expected: str, **more: Any) -> Callable[[Run], Run]:
        """Add a function."""

        def added(run: Run) -> Run:
            self.append(Attack(name, expected, run, **more))
            return run

        return added
