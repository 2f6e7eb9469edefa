"""Clients that use all servers of a platform and follow the documented rules when one stops.

They send new requests only to servers that are ready. They repeat a request, if its connection
breaks before the response or if the server refuses it for now.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from bench.change_stream.account_replica import AccountReplica
from bench.change_stream.follow_transports import (
    RETRYABLE_ERRORS,
    TRANSPORTS,
    AccountEndpoint,
    ConnectionEnded,
    open_http_client,
    read_snapshot,
)
from tests.conftest import raw_message
from tests.support.clients.plain_http import plain_client
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.servers.merganser_server import ANSWER_TIMEOUT, MerganserProcess

RECEIVER, SENDER, RECIPIENT = "ada", "bob", "eve"  # of LMTP; of messageSend
USERS = (RECEIVER, SENDER, RECIPIENT)
FOLLOWER_TRANSPORTS = ("socket", "events")  # graphql-transport-ws, and GraphQL over SSE
PROBE_INTERVAL = 0.25  # seconds, of a load balancer
RETRY_PAUSE = 0.1  # seconds
MAX_RETRIES_PER_STOP = 10  # usually none: this allows two of each client, and late probes
REQUEST_PAUSE = 0.1  # seconds between two requests of a client
START_PAUSE = 0.5  # seconds, while a server starts: the load must not keep it from starting
SETTINGS = {  # one client sends all requests
    "COST_BUDGET_USER": "0",
    "LIMITS_RECEIVED_PER_HOUR": "0",
    "LIMITS_RECIPIENTS_PER_DAY": "0",
    "SHUTDOWN_DRAIN": "1 s",  # longer than the interval of the probes
}
READ_QUERY = """{ viewer { user { messages(first: 5) { totalCount nodes { subject text } }
  mailboxes(first: 1500) { nodes { path } } } } }"""
CREATE_MAILBOX = """mutation ($path: String!, $key: String!) {
  it: mailboxCreate(input: {paths: [$path], options: {idempotencyKey: $key}}) {
    mailboxes { path } errors { code message } } }"""
SEND_MESSAGE = f"""mutation ($subject: String!, $key: String!) {{
  it: messageSend(input: {{to: [{{address: "{RECIPIENT}@example.org"}}], subject: $subject,
    text: "Hello.", options: {{idempotencyKey: $key}}}}) {{
    submissions {{ id }} errors {{ code message }} }} }}"""
RECEIVED_COUNT = "{ viewer { user { messages(first: 1) { totalCount } } } }"
CURSOR_QUERY = "{ viewer { user { cursor } } }"


class RefusedForNow(Exception):
    """The server can't do it now; nothing was stored."""


@dataclass
class AcknowledgedChanges:
    """What the servers have acknowledged: subjects of messages and paths of mailboxes."""

    delivered: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    created: set[str] = field(default_factory=set)


@dataclass
class PlatformLoad:
    """Deliveries, reads, mutations and followers of the events, all at the same time."""

    servers: list[MerganserProcess]
    acknowledged: AcknowledgedChanges = field(default_factory=AcknowledgedChanges)
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)  # by HTTP port and kind
    retries: Counter[str] = field(default_factory=Counter)  # by reason
    replicas: dict[str, AccountReplica] = field(default_factory=dict)  # by transport
    connections: Counter[str] = field(default_factory=Counter)  # of followers, by transport
    _ready_ports: set[int] = field(default_factory=set)
    _pause: float = REQUEST_PAUSE
    _turn: int = 0
    _has_progress: asyncio.Event = field(default_factory=asyncio.Event)
    _is_ended: bool = False

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Run the clients during the block, then until the followers have all events.

        Raises an ExceptionGroup if a client gets an answer that the rules don't allow.
        """
        async with asyncio.TaskGroup() as group, plain_client(timeout=ANSWER_TIMEOUT) as http:
            probe = group.create_task(self._probe_servers())
            followers = [group.create_task(self._follow(name)) for name in FOLLOWER_TRANSPORTS]
            clients = [
                group.create_task(self._repeat(http, action))
                for action in (self._deliver, self._read, self._create_mailbox, self._send)
            ]
            yield
            self._is_ended = True
            await asyncio.wait(clients)
            await self._wait_until_everything_arrived(http)
            for task in (probe, *followers):
                task.cancel()

    def require_few_retries(self, stop_count: int) -> None:
        """Fail if the clients repeated many requests, of so many servers that were stopped.

        A client finds another server before the stopped one closes its listeners. If the probes
        were late, each client can need a retry.
        """
        retry_count = self.retries.total()
        assert retry_count <= MAX_RETRIES_PER_STOP * stop_count, (self.retries, self.answers)

    async def start(self, *servers: MerganserProcess) -> None:
        """Start servers one after the other; the clients send fewer requests meanwhile."""
        self._pause = START_PAUSE
        for server in servers:
            await asyncio.to_thread(server.start)
        self._pause = REQUEST_PAUSE

    async def wait_for_answers(self, servers: list[MerganserProcess], count: int) -> None:
        """Wait until each of these servers has answered so many more requests of each kind."""
        kinds = ("delivery", "read", "mutation")
        keys = [(server.http_port, kind) for server in servers for kind in kinds]
        before = self.answers.copy()
        await self._wait_until(
            lambda: all(self.answers[key] - before[key] >= count for key in keys)
        )

    async def _wait_until(self, is_true: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while not is_true():
                    self._has_progress.clear()
                    await self._has_progress.wait()
        except TimeoutError as problem:
            state = f"ready: {self._ready_ports}, answers: {self.answers}, retries: {self.retries}"
            raise TimeoutError(state) from problem

    async def _repeat(
        self, http: httpx.AsyncClient, action: Callable[[httpx.AsyncClient, int], Awaitable[None]]
    ) -> None:
        number = 0
        while not self._is_ended:
            await action(http, number)
            number += 1
            await asyncio.sleep(self._pause)

    async def _probe_servers(self) -> None:
        """Ask each server whether it is ready, as a load balancer does, until cancelled."""
        async with plain_client(timeout=ANSWER_TIMEOUT) as http:
            while True:
                await asyncio.gather(*(self._probe(http, server) for server in self.servers))
                await asyncio.sleep(PROBE_INTERVAL)

    async def _probe(self, http: httpx.AsyncClient, server: MerganserProcess) -> None:
        is_ready = False
        with suppress(httpx.TransportError):
            is_ready = (await http.get(f"{server.url}/health/ready")).is_success
        (self._ready_ports.add if is_ready else self._ready_ports.discard)(server.http_port)
        self._has_progress.set()

    async def _next_server(self) -> MerganserProcess:
        """Wait until a server is ready, and return the next ready one."""
        while not self._ready_ports:  # noqa: ASYNC110 - the event has one waiter
            await asyncio.sleep(PROBE_INTERVAL)
        ready = [server for server in self.servers if server.http_port in self._ready_ports]
        self._turn += 1
        return ready[self._turn % len(ready)]

    def _count_answer(self, server: MerganserProcess, kind: str) -> None:
        self.answers[server.http_port, kind] += 1
        self._has_progress.set()

    async def _request(
        self, http: httpx.AsyncClient, kind: str, name: str, document: str, **variables: Any
    ) -> Any:
        """Run an operation, repeat it as the rules say, and return its data."""
        body = {"query": document, "variables": variables}
        while True:
            server = await self._next_server()
            headers = {"Authorization": f"Bearer {server.secrets[name]}"}
            try:
                response = await http.post(f"{server.url}/graphql", json=body, headers=headers)
            except httpx.TransportError as problem:
                self.retries[type(problem).__name__] += 1
                self._ready_ports.discard(server.http_port)  # until a probe finds it ready
                await asyncio.sleep(RETRY_PAUSE)
                continue
            result = response.json()
            errors = [error["extensions"] for error in result.get("errors", ())]
            if errors and all(error["code"] == "UNAVAILABLE" for error in errors):
                self.retries["UNAVAILABLE"] += 1
                await asyncio.sleep(max(error["retryAfterSeconds"] for error in errors))
                continue
            assert "errors" not in result, (response.status_code, result)
            self._count_answer(server, kind)
            return result["data"]

    async def _read(self, http: httpx.AsyncClient, _number: int) -> None:
        """Read the account; each server must know what any server has acknowledged before."""
        delivered, created = len(self.acknowledged.delivered), {*self.acknowledged.created}
        user = (await self._request(http, "read", RECEIVER, READ_QUERY))["viewer"]["user"]
        assert user["messages"]["totalCount"] >= delivered
        assert created <= {mailbox["path"] for mailbox in user["mailboxes"]["nodes"]}

    async def _create_mailbox(self, http: httpx.AsyncClient, number: int) -> None:
        path = f"Created {number}"
        data = await self._request(http, "mutation", RECEIVER, CREATE_MAILBOX, path=path, key=path)
        assert data["it"] == {"mailboxes": [{"path": path}], "errors": []}
        self.acknowledged.created.add(path)

    async def _send(self, http: httpx.AsyncClient, number: int) -> None:
        subject = f"Sent {number}"
        variables = {"subject": subject, "key": subject}
        data = await self._request(http, "mutation", SENDER, SEND_MESSAGE, **variables)
        assert (len(data["it"]["submissions"]), data["it"]["errors"]) == (1, [])
        self.acknowledged.sent.add(subject)

    async def _deliver(self, _http: httpx.AsyncClient, number: int) -> None:
        """Deliver a message by LMTP, as an MTA does: it tries again until the reply is 250."""
        subject = f"Delivered {number}"
        while True:
            server = await self._next_server()
            try:
                await _deliver_once(server, raw_message(subject, body="Hello.\r\n"))
            except (OSError, EOFError, RefusedForNow) as problem:
                self.retries[f"LMTP: {problem!r}"] += 1
                self._ready_ports.discard(server.http_port)
                await asyncio.sleep(RETRY_PAUSE)
                continue
            self._count_answer(server, "delivery")
            self.acknowledged.delivered.add(subject)
            return

    async def _follow(self, transport: str) -> None:
        """Follow the events of the receiver from the last cursor, until cancelled."""
        while True:
            server = await self._next_server()
            endpoint = AccountEndpoint(server.http_port, server.secrets[RECEIVER], user_id="")
            try:
                if transport not in self.replicas:
                    async with open_http_client(endpoint) as http:
                        self.replicas[transport] = await read_snapshot(http)
                replica = self.replicas[transport]
                self.connections[transport] += 1
                batches = TRANSPORTS[transport](endpoint, replica.cursor, Random(0), is_slow=False)  # noqa: S311
                async with aclosing(batches) as coming:
                    async for events, cursor in coming:
                        replica.apply_batch(events, cursor)
                        self._has_progress.set()
            except (*RETRYABLE_ERRORS, ConnectionEnded):
                await asyncio.sleep(RETRY_PAUSE)

    async def _wait_until_everything_arrived(self, http: httpx.AsyncClient) -> None:
        """Wait until sent messages are delivered, and the followers have all events."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while True:
                data = await self._request(http, "read", RECIPIENT, RECEIVED_COUNT)
                if data["viewer"]["user"]["messages"]["totalCount"] >= len(self.acknowledged.sent):
                    break
                await asyncio.sleep(RETRY_PAUSE)
        data = await self._request(http, "read", RECEIVER, CURSOR_QUERY)
        last = AccountReplica(data["viewer"]["user"]["cursor"]).event_number
        await self._wait_until(
            lambda: all(replica.event_number >= last for replica in self.replicas.values())
        )


async def _deliver_once(server: MerganserProcess, raw: bytes) -> None:
    """Deliver a message.

    Raises OSError, EOFError or RefusedForNow if the server hasn't got it. After the end of the
    message there must be a reply, else the client would not know whether it was stored.
    """
    client = await connect_lmtp(server.lmtp_port)
    try:
        commands = {
            "MAIL FROM:<carol@example.com>": "250",
            f"RCPT TO:<{RECEIVER}@example.org>": "250",
            "DATA": "354",
        }
        for command, code in commands.items():
            _check_reply(await client.run_command(command), code)
        client.send_bytes(raw + b".\r\n")
        try:
            reply = await client.read_reply()
        except (OSError, EOFError) as problem:
            raise AssertionError(f"no reply after the end of the message: {problem!r}") from problem
        _check_reply(reply, "250")
    finally:
        await client.close()


def _check_reply(reply: str, expected_code: str) -> None:
    if reply.startswith("4"):
        raise RefusedForNow(reply)
    assert reply.startswith(expected_code), reply
