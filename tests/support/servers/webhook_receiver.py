"""An HTTP server that receives webhooks, with responses that tests choose."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from graph.notifications.webhooks import delivery_body
from mail.network.outbound_http import NetworkPolicy
from models.runtime.environment import CommittedOptions, Environment
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from resolvers.notifications.webhook_worker import WebhookWorker, start_lanes
from tests.conftest import GraphQLClient


@dataclass(frozen=True)
class Got:
    """A received request."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    def signed_with(self, secret: str) -> bool:
        """Check the signature by the specification, without code of the product."""
        key = base64.b64decode(secret.split("_", 1)[1])
        signed_prefix = self.headers["webhook-id"] + "." + self.headers["webhook-timestamp"] + "."
        mac = hmac.new(key, signed_prefix.encode() + self.raw, hashlib.sha256).digest()
        expected = "v1," + base64.b64encode(mac).decode()
        return expected in self.headers["webhook-signature"].split(" ")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[Got, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """A server that records requests, and sends `response` or calls it."""

    port: int = 0
    answer: bytes | Answer = OK
    got: list[Got] = field(default_factory=list)
    at_once: int = 0
    most: int = 0
    came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?x=1"

    @property
    def types(self) -> list[str]:
        return [request.body["type"] for request in self.got]

    async def wait(self, count: int) -> None:
        """Wait until this many requests were received."""
        while len(self.got) < count:
            self.came.clear()
            await self.came.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request_line, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            raw = await reader.readexactly(int(headers["content-length"]))
            request = Got(request_line.split(" ")[1], headers, raw)
            self.got.append(request)
            self.came.set()
            if isinstance(self.answer, bytes):
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.answer(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client can close at any time
        finally:
            self.at_once -= 1
            writer.close()


@asynccontextmanager
async def receiving(tls_context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Run a receiver on a free port."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls_context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


def inward(environment: Environment) -> None:
    """Allow webhooks to this machine."""
    environment.use_options_unless_outdated(
        CommittedOptions(
            replace(environment.options, webhooks_private=True), environment.options_position
        )
    )


def worker_of(environment: Environment, **policy_options: Any) -> WebhookWorker:
    """Make a webhook worker, as a process has one."""
    return WebhookWorker(environment, delivery_body, NetworkPolicy(**policy_options))


async def pump(worker: WebhookWorker) -> None:
    """Create deliveries from the journal, and post until nothing is due."""
    await create_deliveries_if_webhooks_active(worker.environment)
    while True:
        await start_lanes(worker)
        if not worker.lanes:
            return
        await asyncio.gather(*worker.lanes.values())


CREATE = """
mutation ($input: WebhookCreateInput!) { webhookCreate(input: $input) { secret
  webhook { id types url active user { username } domain { name } }
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
LOG = """query ($id: ID!) { node(id: $id) { ... on Webhook {
  failures active lastDeliveryAt deliveries(first: 250) { totalCount nodes {
    id type state attempt status error nextAttemptAt body } } } } }"""


async def create(client: GraphQLClient, url: str, *types: str, **fields: Any) -> Any:
    """Run webhookCreate and return its payload."""
    input_fields = {"url": url, "types": list(types or "*"), **fields}
    return (await client(CREATE, input=input_fields))["webhookCreate"]


async def made(client: GraphQLClient, url: str, *types: str, **fields: Any) -> tuple[str, str]:
    """Create a webhook and return its id and secret."""
    payload = await create(client, url, *types, **fields)
    assert payload["errors"] == []
    return payload["webhook"]["id"], payload["secret"]


async def log_of(client: GraphQLClient, webhook_id: str) -> Any:
    """Read a webhook with its deliveries."""
    return (await client(LOG, id=webhook_id))["node"]
