"""A real HTTP server that webhooks are posted to, and does as it is told."""

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
from resolvers.notifications.webhook_feed import create_deliveries
from resolvers.notifications.webhook_worker import WebhookWorker, start_lanes
from tests.conftest import Client


@dataclass(frozen=True)
class Got:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    def signed_with(self, secret: str) -> bool:
        """Check a signature as the specification says, with nothing of ours."""
        key = base64.b64decode(secret.split("_", 1)[1])
        text = self.headers["webhook-id"] + "." + self.headers["webhook-timestamp"] + "."
        mac = hmac.new(key, text.encode() + self.raw, hashlib.sha256).digest()
        wanted = "v1," + base64.b64encode(mac).decode()
        return wanted in self.headers["webhook-signature"].split(" ")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[Got, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """What has come, and what is answered: bytes, or whatever is done instead."""

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
        return [each.body["type"] for each in self.got]

    async def wait(self, many: int) -> None:
        """Until so many have come."""
        while len(self.got) < many:
            self.came.clear()
            await self.came.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            raw = await reader.readexactly(int(headers["content-length"]))
            got = Got(first.split(" ")[1], headers, raw)
            self.got.append(got)
            self.came.set()
            if isinstance(self.answer, bytes):
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.answer(got, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever posts goes when it has heard enough
        finally:
            self.at_once -= 1
            writer.close()


@asynccontextmanager
async def receiving(secure: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=secure)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def inward(world: Environment) -> None:
    """Let webhooks be posted to this machine."""
    world.apply_options(
        CommittedOptions(replace(world.options, webhooks_private=True), world.options_position)
    )


def worker_of(world: Environment, **gate: Any) -> WebhookWorker:
    """A worker, as a process has one."""
    return WebhookWorker(world, delivery_body, NetworkPolicy(**gate))


async def pump(worker: WebhookWorker) -> None:
    """Read the journal, and post until nothing is due."""
    await create_deliveries(worker.environment)
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
LOG = """query ($id: ID!) { node(id: $id) { ... on Webhook { failures active lastDeliveryAt
  deliveries(first: 250) { totalCount nodes {
    id type state attempt status error nextAttemptAt body } } } } }"""


async def create(client: Client, url: str, *types: str, **more: Any) -> Any:
    """The payload of a webhook that is made."""
    given = {"url": url, "types": list(types or "*"), **more}
    return (await client(CREATE, input=given))["webhookCreate"]


async def made(client: Client, url: str, *types: str, **more: Any) -> tuple[str, str]:
    """The id and the secret of a webhook that is made."""
    payload = await create(client, url, *types, **more)
    assert payload["errors"] == []
    return payload["webhook"]["id"], payload["secret"]


async def log_of(client: Client, key: str) -> Any:
    """A webhook with its log."""
    return (await client(LOG, id=key))["node"]
