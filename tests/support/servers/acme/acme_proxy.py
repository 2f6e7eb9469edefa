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

from tests.support.servers.acme.pebble_server import PebbleServer
from tests.support.servers.http_server import run_http_server
from tests.support.time_limits import HANG_SECONDS

NEW_ORDER_PATH, REVOKE_PATH = "/order-plz", "/revoke-cert"  # of pebble


@dataclass(frozen=True)
class AcmeReply:
    """A response of the proxy."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def from_problem(code: str, status: int = 403, **members: Any) -> "AcmeReply":
        """A problem document (RFC 7807) with an ACME error."""
        body = {"type": f"urn:ietf:params:acme:error:{code}", "detail": "As told.", **members}
        return AcmeReply(body, status, {"Content-Type": "application/problem+json"})


@dataclass
class AcmeProxy:
    """The responses of the proxy, and the requests it received."""

    directory_url: str = ""
    renewal_reply: AcmeReply | None = None  # the response to renewal queries
    # by path; each is sent once
    replies_by_path: dict[str, list[AcmeReply]] = field(default_factory=dict)
    # run before the response, by path
    actions_by_path: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    before_each_request: Callable[[str], Awaitable[None]] | None = None  # gets the path
    renewal_queries: list[str] = field(default_factory=list)  # certificate ids
    posts: list[tuple[str, Any]] = field(default_factory=list)  # paths and payloads

    @property
    def orders(self) -> list[Any]:
        """The payloads of new orders."""
        return [payload for path, payload in self.posts if path == NEW_ORDER_PATH]


@asynccontextmanager
async def run_acme_proxy(pebble_server: PebbleServer) -> AsyncGenerator[AcmeProxy]:
    """Run a proxy that passes on to Pebble all requests without a response of its own."""
    proxy = AcmeProxy()
    tls_context = ssl.create_default_context(cafile=str(pebble_server.ca))
    base_url = pebble_server.directory_url.removesuffix("/dir")

    async def respond(request: Request) -> Response:
        path, raw, host = request.url.path, await request.body(), request.headers["host"]
        if proxy.before_each_request:
            await proxy.before_each_request(path)
        if path.startswith("/renewal/"):
            proxy.renewal_queries.append(path.removeprefix("/renewal/"))
            assert proxy.renewal_reply is not None
            return _response(proxy.renewal_reply)
        if raw:
            payload = json.loads(raw)["payload"]
            text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            proxy.posts.append((path, json.loads(text) if text else None))
        if action := proxy.actions_by_path.get(path):
            await action()
        if replies := proxy.replies_by_path.get(path):
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
        if path == "/dir" and proxy.renewal_reply:
            content = json.dumps(reply.json() | {"renewalInfo": f"https://{host}/renewal"}).encode()
        reply_headers = {
            name: value
            for name, value in reply.headers.items()
            if name not in ("content-length", "content-encoding", "transfer-encoding", "date")
        }
        return Response(content, reply.status_code, reply_headers)

    app = Starlette(routes=[Route("/{path:path}", respond, methods=["GET", "HEAD", "POST"])])
    async with (
        httpx.AsyncClient(verify=tls_context, timeout=HANG_SECONDS) as http,
        run_http_server(app, pebble_server.pem) as port,
    ):
        proxy.directory_url = f"https://localhost:{port}/dir"
        yield proxy


def _response(reply: AcmeReply) -> Response:
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, dict(reply.headers))
    return JSONResponse(reply.body, reply.status, dict(reply.headers))
