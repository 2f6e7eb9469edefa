"""The GraphiQL page and its files, which are built from `webui/` and served by this host only."""

import gzip
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

_STATIC = Path(__file__).parents[1] / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
_PIECE = 64 << 10  # bytes
_READING = Lock()
_YEAR = "public, max-age=31536000, immutable"
_POLICY = {
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
_PAGE = """<!doctype html>
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


class _Pieces(Response):
    """A response that sends a large body in chunks, so that a slow client buffers one chunk."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for begin in range(0, len(self.body), _PIECE):
            piece = bytes(self.body[begin : begin + _PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def page(endpoint: str = "graphql") -> Response:
    """Return the page. `endpoint` and the folder `graphiql/` are relative to its URL."""
    body = _PAGE.format(files=f"graphiql/{_version()}", endpoint=escape(endpoint))
    return HTMLResponse(
        body,
        headers={
            "Content-Security-Policy": "; ".join(f"{k} {v}" for k, v in _POLICY.items()),
            "Cache-Control": "no-cache",
            "Vary": "Accept",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
        },
    )


def routes() -> list[BaseRoute]:
    """Return the route of the page's files: `/graphiql/{version}/{name}`."""
    return [Route("/graphiql/{version}/{name}", _file)]


async def _file(request: Request) -> Response:
    """Serve a file, which browsers cache for a year if its URL has the current version.

    Another version gets the current files too, since a page that was opened before an upgrade
    starts its workers later. Raises HTTPException 404 for an unknown name.
    """
    version, name = request.path_params["version"], request.path_params["name"]
    if name not in _names():
        raise HTTPException(404)
    headers = {
        "Cache-Control": _YEAR if version == _version() else "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    takes_gzip = _takes_gzip(request.headers.get("accept-encoding", ""))
    body, packed, choice = await run_in_threadpool(_read, name, takes_gzip)
    if choice:
        headers["Vary"] = "Accept-Encoding"
    if packed:
        headers["Content-Encoding"] = "gzip"
    return _Pieces(body, headers=headers, media_type=_TYPES.get(Path(name).suffix, "text/plain"))


def _takes_gzip(accepted: str) -> bool:
    """True if an `Accept-Encoding` header accepts gzip (RFC 9110, section 12.5.3)."""
    weights = {}
    for choice in accepted.lower().replace(" ", "").split(","):
        coding, _, weight = choice.partition(";q=")
        weights[coding] = bool(weight.strip("0.")) or not weight
    return weights.get("gzip", weights.get("*", False))


def _read(name: str, packed: bool) -> tuple[bytes, bool, bool]:
    """Return the file's bytes, whether they are gzip, and whether a gzip file exists."""
    choice = (_STATIC / f"{name}.gz").exists()
    with _READING:
        return _bytes(name, packed and choice), packed and choice, choice


@cache
def _bytes(name: str, packed: bool) -> bytes:
    """Return the bytes of a file, read once and shared by all requests."""
    if packed or not (_STATIC / f"{name}.gz").exists():
        return (_STATIC / (f"{name}.gz" if packed else name)).read_bytes()
    return gzip.decompress((_STATIC / f"{name}.gz").read_bytes())


@cache
def _names() -> frozenset[str]:
    return frozenset(path.name.removesuffix(".gz") for path in _STATIC.iterdir())


@cache
def _version() -> str:
    """Return a version of 12 hex digits from the content of all files."""
    digest = sha256()
    for path in sorted(_STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
