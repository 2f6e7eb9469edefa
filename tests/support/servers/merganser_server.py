"""The real command in a process of its own, and those who talk to it."""

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
from merganser.commands import user_operations
from merganser.commands.user_operations import ApiKeyRequest
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.users.creation.create import NewUser
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_client import connect as lmtp
from tests.support.servers.forked_process import ForkedProcess, Streams, run_forked
from tests.support.stores import store_fixtures

ROOT = Path(__file__).parents[3]
PASSWORD = "correct horse battery"  # noqa: S105 - a test's
OTHER = "another horse"
START = 240.0  # seconds, on a machine that does other things too
STOP = 30.0
ANSWER = 15.0
PASSED = ("PATH", "PYTHONPATH")  # of our environment


def is_complete(ready: httpx.Response) -> bool:
    """True if the answer of /health/ready says that every process is up."""
    processes = ready.json()["processes"]
    return ready.is_success and processes["up"] == processes["configured"]


@dataclass(frozen=True)
class Said:
    """What a command has said."""

    code: int
    out: str
    err: str


@dataclass
class Server:
    """A data folder, places to listen, and a process while it runs."""

    folder: Path
    store: str = ""  # SQLite in the folder, where nothing is said
    more: dict[str, str] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    lmtp: int = field(default_factory=free_port)
    hop: int = 0  # where its next hop may listen
    words: tuple[str, ...] = ()  # behind `serve`
    secrets: dict[str, str] = field(default_factory=dict)  # of the users that were made, by name
    _process: "subprocess.Popen[bytes] | ForkedProcess | None" = None

    @property
    def env(self) -> dict[str, str]:
        settings = {
            "DATA": str(self.folder / "var"),
            "HTTP": f"127.0.0.1:{self.http}",
            "LMTP": f"127.0.0.1:{self.lmtp}",
            "ARGON2_MEMORY": "8",
            "ARGON2_TIME": "1",
            "AUTO_CREATE_DOMAINS": "on",
            "HOSTNAME": "mx.example.org",
            **({"STORE": self.store} if self.store else {}),
            **self.more,
        }
        ours = {f"MERGANSER_{name}": value for name, value in settings.items()}
        theirs = {name: os.environ[name] for name in PASSED if name in os.environ}
        return {**theirs, "HOME": str(self.folder), **ours}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

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

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the log, each of which is a JSON object."""
        return [json.loads(line) for line in self.log.splitlines()]

    def complaints(self) -> list[Any]:
        """What it has logged beyond its usual facts; that somebody speaks no HTTP is none."""
        usual = ("Invalid HTTP request received.",)
        lines = [line for line in self.logged() if line["level"] != "info"]
        return [line for line in lines if line["event"] not in usual]

    def start(self) -> Self:
        """Run the command until it answers."""
        self._process = self._begin(["serve", *self.words])
        until = time.monotonic() + START
        while True:
            with contextlib.suppress(httpx.TransportError):
                path = "/health/ready" if self.words else "/health"  # of several, all
                answer = httpx.get(f"{self.url}{path}", timeout=ANSWER)
                if not self.words or is_complete(answer):
                    return self
            assert self._process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.02)

    def _begin(self, words: list[str]) -> "subprocess.Popen[bytes] | ForkedProcess":
        if "LD_PRELOAD" not in self.env:  # which acts when a program starts
            return ForkedProcess(words, self.env, Streams(self.folder / "log"))
        command = [sys.executable, "-m", "merganser", *words]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.env, stderr=log, stdout=log, stdin=subprocess.DEVNULL
            )

    def hindered(self) -> float:
        """Seconds so far in which the machine did something else for us than serve.

        It and we wait for a CPU (`run_delay` of the kernel's sched-stats.txt), and we work.
        """
        ours = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        theirs = f"/proc/{self.pid}/task/{self.pid}/schedstat"
        waited = sum(int(Path(file).read_text().split()[1]) for file in (ours, theirs))
        return waited / 1e9 + time.thread_time()

    def stop(self) -> None:
        """End it as a service manager does: it ends well, and has nothing to complain of."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        self._process = None
        assert code == 0, self.log
        assert "Traceback" not in self.log, self.log

    def kill(self) -> None:
        """End it without a word, as a power cut does."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None

    def command(self, *words: str | Path, stdin: str = "") -> Said:
        """Run another command beside it."""
        done = run_forked([*map(str, words)], self.env, stdin=stdin, timeout=START)
        return Said(done.returncode, done.stdout, done.stderr)

    @asynccontextmanager
    async def world(self) -> AsyncGenerator[Environment]:
        """The same store, opened by this process as by a command."""
        env = {name.removeprefix("MERGANSER_").lower(): each for name, each in self.env.items()}
        settings = Settings(**{k: v for k, v in env.items() if k in Settings.model_fields})  # type: ignore[arg-type]
        async with open_environment(settings, migrate=True) as world:
            yield world

    def make(self, *names: str) -> None:
        """Make users of example.org, each with a key, and the platform's own key `root`."""

        async def work() -> None:
            async with self.world() as world:
                for name in names:
                    address = f"{name}@example.org"
                    await user_operations.create_user(
                        world, NewUser(name, address=address, password=PASSWORD)
                    )
                    _, self.secrets[name] = await user_operations.create_api_key(
                        world, ApiKeyRequest(name, name)
                    )
                _, self.secrets["root"] = await user_operations.create_api_key(
                    world, ApiKeyRequest("root", role=Role.ROOT)
                )

        store_fixtures.run(work())

    @asynccontextmanager
    async def client(self, name: str | None = None) -> AsyncGenerator["Client"]:
        """A user's program, or a stranger's."""
        headers = {"Authorization": f"Bearer {self.secrets[name]}"} if name else {}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=ANSWER) as http:
            yield Client(http)

    @asynccontextmanager
    async def socket(self, secret: str | None = None, **more: Any) -> AsyncGenerator["Socket"]:
        """A websocket as a browser opens it; signed in, where there is a secret."""
        protocols = [Subprotocol("graphql-transport-ws")]
        url = f"ws{self.url[4:]}/graphql"
        async with asyncio.timeout(ANSWER):
            connection = await connect(url, subprotocols=protocols, **more)
        async with connection:
            socket = Socket(connection)
            if secret is not None:
                payload = {"Authorization": f"Bearer {secret}"}
                await socket.say({"type": "connection_init", "payload": payload})
                assert (await socket.hear())["type"] == "connection_ack"
            yield socket

    async def deliver(self, raw: bytes, *to: str, sender: str = "carol@example.com") -> str:
        """Hand in a message by LMTP; what was answered to its end."""
        neighbour = await lmtp(self.lmtp)
        try:
            await neighbour.begin(*to, sender=sender, more=" BODY=8BITMIME")
            neighbour.send(_stuffed(raw) + b".\r\n")
            return "\n".join([await neighbour.hear() for _ in to])
        finally:
            await neighbour.close()

    async def neighbour(self) -> Neighbour:
        return await lmtp(self.lmtp)


def _stuffed(raw: bytes) -> bytes:
    lines = raw.removesuffix(b"\r\n").split(b"\r\n")
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)


@dataclass
class Client:
    """Asks over HTTP."""

    http: httpx.AsyncClient

    async def __call__(self, document: str, **variables: Any) -> Any:
        """The data of an answer without errors."""
        answer = await self.raw(document, **variables)
        assert "errors" not in answer, answer
        return answer["data"]

    async def raw(self, document: str, **variables: Any) -> Any:
        return (await self.post({"query": document, "variables": variables})).json()

    async def post(self, payload: Any, **headers: str) -> httpx.Response:
        return await self.http.post("/graphql", json=payload, headers=headers)

    async def do(self, name: str, given: Any, payload: str = "__typename") -> Any:
        """Call a mutation that succeeds."""
        kind = f"{name[0].upper()}{name[1:]}Input"
        document = (
            f"mutation ($input: {kind}!) {{ it: {name}(input: $input) "
            f"{{ {payload} errors {{ code message path }} }} }}"
        )
        done = (await self(document, input=given))["it"]
        assert done.pop("errors") == [], done
        return done

    async def cursor(self) -> str:
        """Where the account stands."""
        return str((await self("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"])

    @asynccontextmanager
    async def stream(self, document: str, **variables: Any) -> AsyncGenerator["Events"]:
        """A subscription as server-sent events."""
        sent = {"query": document, "variables": variables}
        headers = {"Accept": "text/event-stream"}
        asked = self.http.stream("POST", "/graphql", json=sent, headers=headers)
        async with asyncio.timeout(ANSWER), asked as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            yield Events(response)


class Events:
    """Server-sent events, as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def hear(self) -> Any:
        """The payload of the next event; None at the end."""
        async with asyncio.timeout(ANSWER):
            async for line in self._lines:
                if line.startswith("data:") and line != "data:" and line.strip() != "data:":
                    return json.loads(line.removeprefix("data:"))
                if line.startswith("event: complete"):
                    return None
        return None


@dataclass
class Socket:
    """Speaks graphql-transport-ws."""

    ws: ClientConnection

    async def say(self, frame: Any) -> None:
        await self.ws.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def hear(self, seconds: float = ANSWER) -> Any:
        async with asyncio.timeout(seconds):
            return json.loads(await self.ws.recv())

    async def subscribe(self, document: str, id: str = "1", **variables: Any) -> None:
        payload = {"query": document, "variables": variables}
        await self.say({"id": id, "type": "subscribe", "payload": payload})

    async def batch(self) -> Any:
        """The next batch of `changes`."""
        frame = await self.hear()
        assert frame["type"] == "next", frame
        assert "errors" not in frame["payload"], frame
        return frame["payload"]["data"]["changes"]

    async def events(self, many: int) -> list[Any]:
        """So many events, and no more."""
        heard: list[Any] = []
        while len(heard) < many:
            heard += (await self.batch())["events"]
        assert len(heard) == many, heard[many:]
        return heard

    async def silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        try:
            await self.hear(seconds)
        except TimeoutError:
            return True
        return False

    async def closed(self, seconds: float = ANSWER) -> int:
        """The code with which the server closes."""
        async with asyncio.timeout(seconds):
            await self.ws.wait_closed()
        return self.ws.close_code or 0


def kinds(events: Sequence[Any]) -> list[str]:
    return [event["kind"] for event in events]
