"""A proxy before Pebble that adds what Pebble lacks: renewal information and unusual errors."""

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
    """A response of the proxy."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def problem(code: str, status: int = 403, **members: Any) -> "Said":
        """A problem document (RFC 7807) with an ACME error."""
        body = {"type": f"urn:ietf:params:acme:error:{code}", "detail": "As told.", **members}
        return Said(body, status, {"Content-Type": "application/problem+json"})


@dataclass
class Front:
    """The responses of the proxy, and the requests it received."""

    directory: str = ""
    renewals: Said | None = None  # the response to renewal queries
    instead: dict[str, list[Said]] = field(default_factory=dict)  # by path; each is sent once
    # run before the response, by path
    first: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    looks: list[str] = field(default_factory=list)  # certificate ids
    posts: list[tuple[str, Any]] = field(default_factory=list)  # paths and payloads

    @property
    def orders(self) -> list[Any]:
        """The payloads of new orders."""
        return [payload for path, payload in self.posts if path == ORDERS]


@asynccontextmanager
async def front(pebble_server: Pebble) -> AsyncGenerator[Front]:
    """Run a proxy that passes on to Pebble all requests without a response of its own."""
    proxy = Front()
    tls_context = ssl.create_default_context(cafile=str(pebble_server.ca))
    base_url = pebble_server.directory.removesuffix("/dir")

    async def respond(request: Request) -> Response:
        path, raw, host = request.url.path, await request.body(), request.headers["host"]
        if path.startswith("/renewal/"):
            proxy.looks.append(path.removeprefix("/renewal/"))
            assert proxy.renewals is not None
            return _response(proxy.renewals)
        if raw:
            payload = json.loads(raw)["payload"]
            text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            proxy.posts.append((path, json.loads(text) if text else None))
        if action := proxy.first.get(path):
            await action()
        if replies := proxy.instead.get(path):
            return _response(replies.pop(0))
        request_headers = {
            name: value
            for name, value in request.headers.items()
            if name in ("host", "content-type", "accept", "user-agent")
        }
        reply = await http.request(
            request.method, f"{base_url}{path}", content=raw, headers=request_headers
        )
        content = reply.content
        if path == "/dir" and proxy.renewals:
            content = json.dumps(reply.json() | {"renewalInfo": f"https://{host}/renewal"}).encode()
        reply_headers = {
            name: value
            for name, value in reply.headers.items()
            if name not in ("content-length", "content-encoding", "transfer-encoding", "date")
        }
        return Response(content, reply.status_code, reply_headers)

    app = Starlette(routes=[Route("/{path:path}", respond, methods=["GET", "HEAD", "POST"])])
    async with (
        httpx.AsyncClient(verify=tls_context) as http,
        served(app, pebble_server.pem) as port,
    ):
        proxy.directory = f"https://localhost:{port}/dir"
        yield proxy


def _response(reply: Said) -> Response:
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, dict(reply.headers))
    return JSONResponse(reply.body, reply.status, dict(reply.headers))
