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

import pytest

from graph.notifications.webhooks import delivery_body
from mail.network.outbound_http import NetworkPolicy
from models.runtime.environment import CommittedOptions, Environment
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from resolvers.notifications.webhook_worker import WebhookWorker, start_lanes_returning_pause
from tests.conftest import GraphQLClient


@dataclass(frozen=True)
class ReceivedRequest:
    """A received request."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    def is_signed_with(self, secret: str) -> bool:
        """Check the signature by the specification, without code of the product."""
        key = base64.b64decode(secret.split("_", 1)[1])
        signed_prefix = self.headers["webhook-id"] + "." + self.headers["webhook-timestamp"] + "."
        mac = hmac.new(key, signed_prefix.encode() + self.raw, hashlib.sha256).digest()
        expected = "v1," + base64.b64encode(mac).decode()
        return expected in self.headers["webhook-signature"].split(" ")


OK_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RequestResponder = Callable[[ReceivedRequest, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class WebhookReceiver:
    """A server that records requests, and sends `response` or calls it."""

    port: int = 0
    response: bytes | RequestResponder = OK_RESPONSE
    requests: list[ReceivedRequest] = field(default_factory=list)
    open_requests: int = 0
    max_open_requests: int = 0
    request_arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?x=1"

    @property
    def event_types(self) -> list[str]:
        return [request.body["type"] for request in self.requests]

    async def wait_for_requests(self, count: int) -> None:
        """Wait until this many requests were received."""
        while len(self.requests) < count:
            self.request_arrived.clear()
            await self.request_arrived.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_requests += 1
        self.max_open_requests = max(self.max_open_requests, self.open_requests)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request_line, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            raw = await reader.readexactly(int(headers["content-length"]))
            request = ReceivedRequest(request_line.split(" ")[1], headers, raw)
            self.requests.append(request)
            self.request_arrived.set()
            if isinstance(self.response, bytes):
                writer.write(self.response)
                await writer.drain()
            else:
                await self.response(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client can close at any time
        finally:
            self.open_requests -= 1
            writer.close()


@asynccontextmanager
async def run_webhook_receiver(
    tls_context: ssl.SSLContext | None = None,
) -> AsyncIterator[WebhookReceiver]:
    """Run a receiver on a free port."""
    receiver = WebhookReceiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls_context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


def allow_local_webhooks(environment: Environment) -> None:
    """Allow webhooks to this machine."""
    environment.use_options_unless_outdated(
        CommittedOptions(
            replace(environment.options, webhooks_allow_private_networks=True),
            environment.options_position,
        )
    )


def make_webhook_worker(environment: Environment, **policy_options: Any) -> WebhookWorker:
    """Make a webhook worker, as a process has one."""
    return WebhookWorker(environment, delivery_body, NetworkPolicy(**policy_options))


async def post_until_idle(worker: WebhookWorker) -> None:
    """Create deliveries from the journal, and post until nothing is due."""
    await create_deliveries_if_webhooks_active(worker.environment)
    while True:
        await start_lanes_returning_pause(worker)
        if not worker.lanes and not worker.lane_freed.is_set():  # else a lane ended meanwhile
            return
        await asyncio.gather(*worker.lanes.values())


WEBHOOK_CREATE = """
mutation ($input: WebhookCreateInput!) { webhookCreate(input: $input) { secret
  webhook { id types url active user { username } domain { name } }
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
WEBHOOK_LOG_QUERY = """query ($id: ID!) { node(id: $id) { ... on Webhook {
  failures active lastDeliveryAt deliveries(first: 250) { totalCount nodes {
    id type state attempt status error nextAttemptAt body } } } } }"""


async def run_webhook_create(client: GraphQLClient, url: str, *types: str, **fields: Any) -> Any:
    """Run webhookCreate and return its payload."""
    input_fields = {"url": url, "types": list(types) or None, **fields}
    return (await client(WEBHOOK_CREATE, input=input_fields))["webhookCreate"]


async def create_webhook(
    client: GraphQLClient, url: str, *types: str, **fields: Any
) -> tuple[str, str]:
    """Create a webhook and return its id and secret."""
    payload = await run_webhook_create(client, url, *types, **fields)
    assert payload["errors"] == []
    return payload["webhook"]["id"], payload["secret"]


async def load_webhook_log(client: GraphQLClient, webhook_id: str) -> Any:
    """Read a webhook with its deliveries."""
    return (await client(WEBHOOK_LOG_QUERY, id=webhook_id))["node"]


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    allow_local_webhooks(environment)
    async with run_webhook_receiver() as http_receiver:
        yield http_receiver


async def delivery_states(client: GraphQLClient, webhook_id: str) -> list[str]:
    """Return the states of the deliveries, oldest first."""
    nodes = (await load_webhook_log(client, webhook_id))["deliveries"]["nodes"]
    return [node["state"] for node in reversed(nodes)]
