"""Cross-origin requests (CORS) of web pages, and the origins that are allowed to send them."""

import re
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

ANY_PORT = ":*"  # at the end of an origin, such as http://localhost:*
_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "X-API-Key", "X-Access-Token", "Idempotency-Key", "Range",
    "If-Range", "If-Match", "If-None-Match", "Content-Disposition", "Last-Event-ID",
    "Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata",
    "X-HTTP-Method-Override", "X-Request-Id",
)  # fmt: skip
_RESPONSE_HEADERS = (
    "Retry-After", "X-Request-Id", "ETag", "Content-Disposition", "Content-Range",
    "Accept-Ranges", "Content-Length", "Location", "Repr-Digest", "Tus-Resumable", "Tus-Version",
    "Tus-Extension", "Tus-Max-Size", "Upload-Length", "Upload-Offset", "Upload-Metadata",
    "Upload-Expires",
)  # fmt: skip
_REFUSAL = (
    "The origin {origin} isn't allowed to call this server: add it to MERGANSER_CORS_ORIGINS.\n"
)


def exact_origins(origins: Sequence[str]) -> list[str]:
    """Return the origins that name one port, and `*`."""
    return [origin for origin in origins if not origin.endswith(ANY_PORT)]


def any_port_pattern(origins: Sequence[str]) -> re.Pattern[str] | None:
    """Return the pattern of the origins that allow any port; None without such origins."""
    hosts = [origin.removesuffix(ANY_PORT) for origin in origins if origin.endswith(ANY_PORT)]
    if not hosts:
        return None
    return re.compile(rf"(?:{'|'.join(map(re.escape, hosts))})(?::\d{{1,5}})?")


class CorsMiddleware(CORSMiddleware):
    """Answers preflight requests; a refused origin gets 403 and the name of the setting."""

    def __init__(
        self, app: ASGIApp, origins: Sequence[str], *, excluded_paths: Collection[str] = ()
    ) -> None:
        self._excluded_paths = frozenset(excluded_paths)
        any_port = any_port_pattern(origins)
        super().__init__(
            app,
            allow_origins=exact_origins(origins),
            allow_origin_regex=any_port.pattern if any_port else None,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Responses of the excluded paths have no CORS headers."""
        if scope["type"] == "http" and scope["path"] in self._excluded_paths:
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def simple_response(
        self, scope: Scope, receive: Receive, send: Send, request_headers: Headers
    ) -> None:
        """Serve a request. Without allowed origins the response doesn't depend on its origin."""
        if self.allow_origins or self.allow_origin_regex:
            await super().simple_response(scope, receive, send, request_headers)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request."""
        origin = request_headers["origin"]
        if self.is_allowed_origin(origin):
            return super().preflight_response(request_headers)
        text = _REFUSAL.format(origin=origin[:200])
        return PlainTextResponse(text, 403, {"Vary": "Origin"})
