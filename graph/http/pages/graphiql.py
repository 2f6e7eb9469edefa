"""The GraphiQL page and its files, which are built from `webui/` and served by this host only."""

import gzip
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from threading import Lock

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

_STATIC = Path(__file__).parents[2] / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
_CHUNK_BYTES = 64 << 10  # bytes
_DECOMPRESSION_LOCK = Lock()
_CACHE_FOR_A_YEAR = "public, max-age=31536000, immutable"
_CONTENT_SECURITY_POLICY = {
    "default-src": "'self'",
    "style-src": "'self' 'unsafe-inline'",  # Monaco writes style elements
    "font-src": "'self' data:",
    "img-src": "'self' data:",
    "worker-src": "'self'",
    "connect-src": "'self'",  # takes in WebSockets of the same host and port
    "object-src": "'none'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
}
_PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Merganser · GraphiQL</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{files}/graphiql.css">
<script src="{files}/graphiql.js" defer></script>
</head>
<body>
<div id="root" data-endpoint="{endpoint}"></div>
<noscript>GraphiQL needs JavaScript.</noscript>
</body>
</html>
"""


class _ChunkedResponse(Response):
    """A response that sends a large body in chunks, so that a slow client buffers one chunk."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for begin in range(0, len(self.body), _CHUNK_BYTES):
            chunk = bytes(self.body[begin : begin + _CHUNK_BYTES])
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def page_response(endpoint: str = "graphql") -> Response:
    """Return the page. `endpoint` and the folder `graphiql/` are relative to its URL."""
    body = _PAGE_TEMPLATE.format(files=f"graphiql/{_files_version()}", endpoint=escape(endpoint))
    return HTMLResponse(
        body,
        headers={
            "Content-Security-Policy": "; ".join(
                f"{k} {v}" for k, v in _CONTENT_SECURITY_POLICY.items()
            ),
            "Cache-Control": "no-cache",
            "Vary": "Accept",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
        },
    )


def file_routes() -> list[BaseRoute]:
    """Return the route of the page's files: `/graphiql/{version}/{name}`."""
    return [Route("/graphiql/{version}/{name}", _serve_graphiql_file)]


async def _serve_graphiql_file(request: Request) -> Response:
    """Serve a file, which browsers cache for a year if its URL has the current version.

    Another version gets the current files too, since a page that was opened before an upgrade
    starts its workers later. Raises HTTPException 404 for an unknown name.
    """
    version, name = request.path_params["version"], request.path_params["name"]
    if name not in _file_names():
        raise HTTPException(404)
    headers = {
        "Cache-Control": _CACHE_FOR_A_YEAR if version == _files_version() else "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    takes_gzip = _accepts_gzip(request.headers.get("accept-encoding", ""))
    content = await run_in_threadpool(_read_file, name, takes_gzip)
    if content.has_gzip_variant:
        headers["Vary"] = "Accept-Encoding"
    if content.is_gzip:
        headers["Content-Encoding"] = "gzip"
    return _ChunkedResponse(
        content.body, headers=headers, media_type=_TYPES.get(Path(name).suffix, "text/plain")
    )


def _accepts_gzip(accepted: str) -> bool:
    """True if an `Accept-Encoding` header accepts gzip (RFC 9110, section 12.5.3)."""
    weights = {}
    for choice in accepted.lower().replace(" ", "").split(","):
        coding, _, weight = choice.partition(";q=")
        weights[coding] = bool(weight.strip("0.")) or not weight
    return weights.get("gzip", weights.get("*", False))


@dataclass(frozen=True, slots=True)
class StaticFileContent:
    """The body of a response with a static file, and whether it is compressed."""

    body: bytes
    is_gzip: bool
    has_gzip_variant: bool


def _read_file(name: str, is_gzip_accepted: bool) -> StaticFileContent:
    """Read a file, compressed if the client accepts gzip and a gzip file exists."""
    has_gzip_variant = (_STATIC / f"{name}.gz").exists()
    is_gzip = is_gzip_accepted and has_gzip_variant
    with _DECOMPRESSION_LOCK:
        return StaticFileContent(_file_bytes(name, is_gzip), is_gzip, has_gzip_variant)


@cache
def _file_bytes(name: str, is_compressed: bool) -> bytes:
    """Return the bytes of a file, read once and shared by all requests."""
    if is_compressed or not (_STATIC / f"{name}.gz").exists():
        return (_STATIC / (f"{name}.gz" if is_compressed else name)).read_bytes()
    return gzip.decompress((_STATIC / f"{name}.gz").read_bytes())


@cache
def _file_names() -> frozenset[str]:
    return frozenset(path.name.removesuffix(".gz") for path in _STATIC.iterdir())


@cache
def _files_version() -> str:
    """Return a version of 12 hex digits from the content of all files."""
    digest = sha256()
    for path in sorted(_STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
