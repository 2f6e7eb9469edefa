"""A server before pebble, which says what pebble cannot: when to renew, and odd refusals."""

import base64
import json
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.servers.http_server import served
from tests.support.servers.pebble_server import Pebble

ORDERS, REVOKES = "/order-plz", "/revoke-cert"  # of pebble


@dataclass(frozen=True)
class Said:
    """An answer."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def problem(code: str, status: int = 403, **more: Any) -> "Said":
        body = {"type": f"urn:ietf:params:acme:error:{code}", "detail": "As told.", **more}
        return Said(body, status, {"Content-Type": "application/problem+json"})


@dataclass
class Front:
    """What it says of renewals, if anything, and instead of pebble; what it was asked."""

    directory: str = ""
    renewals: Said | None = None
    instead: dict[str, list[Said]] = field(default_factory=dict)  # by path, one each
    first: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)  # is done before
    looks: list[str] = field(default_factory=list)  # ids
    posts: list[tuple[str, Any]] = field(default_factory=list)  # paths and payloads

    @property
    def orders(self) -> list[Any]:
        return [payload for path, payload in self.posts if path == ORDERS]


@asynccontextmanager
async def front(there: Pebble) -> AsyncGenerator[Front]:
    """One that hands on to this pebble what it has nothing to say to."""
    made = Front()
    trust = ssl.create_default_context(cafile=str(there.ca))
    base = there.directory.removesuffix("/dir")

    async def answered(request: Request) -> Response:
        path, raw, host = request.url.path, await request.body(), request.headers["host"]
        if path.startswith("/renewal/"):
            made.looks.append(path.removeprefix("/renewal/"))
            assert made.renewals is not None
            return _response(made.renewals)
        if raw:
            payload = json.loads(raw)["payload"]
            text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            made.posts.append((path, json.loads(text) if text else None))
        if work := made.first.get(path):
            await work()
        if told := made.instead.get(path):
            return _response(told.pop(0))
        sent = {
            name: value
            for name, value in request.headers.items()
            if name in ("host", "content-type", "accept", "user-agent")
        }
        reply = await http.request(request.method, f"{base}{path}", content=raw, headers=sent)
        content = reply.content
        if path == "/dir" and made.renewals:
            content = json.dumps(reply.json() | {"renewalInfo": f"https://{host}/renewal"}).encode()
        kept = {
            name: value
            for name, value in reply.headers.items()
            if name not in ("content-length", "content-encoding", "transfer-encoding", "date")
        }
        return Response(content, reply.status_code, kept)

    app = Starlette(routes=[Route("/{path:path}", answered, methods=["GET", "HEAD", "POST"])])
    async with httpx.AsyncClient(verify=trust) as http, served(app, there.pem) as port:
        made.directory = f"https://localhost:{port}/dir"
        yield made


def _response(said: Said) -> Response:
    if isinstance(said.body, bytes):
        return Response(said.body, said.status, dict(said.headers))
    return JSONResponse(said.body, said.status, dict(said.headers))
