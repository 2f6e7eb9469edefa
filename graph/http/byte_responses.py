"""File responses to GET and HEAD, with ranges, validators and security headers."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from graph.http.graphql_request import RequestRejected

INLINE_MEDIA_TYPES = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp", "text/plain"))
DEFAULT_MEDIA_TYPE = "application/octet-stream"
MAX_FILENAME_LENGTH = 150

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}", re.ASCII)
_CHARSET = re.compile(r"[A-Za-z0-9_.:+-]{1,40}", re.ASCII)
_RANGE = re.compile(
    r"bytes=[ \t]*(?:([0-9]{1,99})-([0-9]{0,99})|-([0-9]{1,99}))[ \t]*", re.IGNORECASE | re.ASCII
)
_ETAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# control characters, marks that change the text direction, halves of surrogate pairs
_UNSAFE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PATH_CHARACTERS = re.compile(r'[/\\:*?"<>|]')  # special in paths of some operating systems
_ATTR_CHAR = "!#$&+-.^_`|~"  # RFC 8187, section 3.2.1


@dataclass(frozen=True, slots=True)
class FileBytes:
    """The size of a file, and functions that stream and check the bytes of a range.

    `require_intact` raises an error if the bytes are damaged. It is called before the response
    starts, since a started response can't report an error.
    """

    size: int
    stream: Callable[[int, int], AsyncGenerator[bytes]]
    require_intact: Callable[[int, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ServedFile:
    """The metadata of a file to serve, with a function that opens its bytes.

    `count_access` is called before each response to GET that begins with the first byte.
    """

    etag: str  # differs for different bytes
    content_type: str
    filename: str
    open_bytes: Callable[[], Awaitable[FileBytes]]
    charset: str | None = None
    cache_control: str = "private"
    is_inline_allowed: bool = True  # a browser can display harmless media types
    count_access: Callable[[], Awaitable[None]] | None = None


class _ClosingStreamResponse(StreamingResponse):
    """A streaming response that closes its source as soon as the client disconnects."""

    def __init__(
        self, chunks: AsyncGenerator[bytes], status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(chunks, status, headers)
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._chunks):
            await super().stream_response(send)


async def serve_file(request: Request, served: ServedFile) -> Response:
    """Return the response with the whole file, the requested range, or 304 (RFC 9110).

    Several ranges in one request are ignored. Raises RequestRejected with status 412 or 416.
    """
    tag, headers = f'"{served.etag}"', _file_headers(served)
    if (if_match := request.headers.get("if-match")) and not matches_etag(
        if_match, tag, is_weak_comparison=False
    ):
        raise RequestRejected(412, "STALE", "The ETag differs from If-Match.")
    if (if_match := request.headers.get("if-none-match")) and matches_etag(
        if_match, tag, is_weak_comparison=True
    ):
        kept_headers = {name: headers[name] for name in ("ETag", "Cache-Control", "Vary")}
        return Response(status_code=304, headers=kept_headers)
    content = await served.open_bytes()
    start, end = 0, content.size
    if request.method == "GET" and request.headers.get("if-range", tag) == tag:
        span = parse_range_or_none(request.headers.get("range", ""), content.size)
        start, end = span or (start, end)
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(headers=headers)
    await content.require_intact(start, end)
    if served.count_access is not None and not start:
        await served.count_access()
    status = 206 if "Content-Range" in headers else 200
    return _ClosingStreamResponse(content.stream(start, end), status, headers)


def stream_file(
    request: Request, content_type: str, filename: str, chunks: AsyncGenerator[bytes]
) -> Response:
    """Return a response that streams a whole file of unknown size as an attachment."""
    headers = {
        "Content-Type": content_type,
        "Content-Disposition": content_disposition("attachment", filename),
        "Cache-Control": "no-store",
    }
    return (
        Response(headers=headers)
        if request.method == "HEAD"
        else _ClosingStreamResponse(chunks, 200, headers)
    )


def parse_range_or_none(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end offset of a Range header; None if the header must be ignored.

    Raises RequestRejected with status 416 if the range is outside the file (RFC 9110, section
    14.1.2).
    """
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size)
        if length:
            return size - length, size
        if int(suffix):
            return None  # all of nothing
    elif last and int(last) < int(first):
        return None
    elif int(first) < size:
        return int(first), min(int(last) + 1, size) if last else size
    headers = {"Content-Range": f"bytes */{size}"}
    raise RequestRejected(
        416,
        "BAD_USER_INPUT",
        f"The range is outside of the content, which has {size} bytes.",
        headers,
    )


def matches_etag(header_value: str, tag: str, *, is_weak_comparison: bool) -> bool:
    """True if `If-Match` or `If-None-Match` lists the tag (RFC 9110, section 13.1)."""
    if header_value.strip() == "*":
        return True
    return any(
        entity_tag == tag and (is_weak_comparison or not weak)
        for weak, entity_tag in _ETAG.findall(header_value)
    )


def _file_headers(served: ServedFile) -> dict[str, str]:
    kind = served.content_type if _MEDIA_TYPE.fullmatch(served.content_type) else DEFAULT_MEDIA_TYPE
    if kind.startswith("multipart/"):
        kind = DEFAULT_MEDIA_TYPE  # browsers may parse it, and the boundary parameter is missing
    disposition = (
        "inline" if served.is_inline_allowed and kind in INLINE_MEDIA_TYPES else "attachment"
    )
    if kind.startswith("text/"):
        charset = served.charset or ""
        kind += f"; charset={charset if _CHARSET.fullmatch(charset) else 'utf-8'}"
    return {
        "Content-Type": kind,
        "Content-Disposition": content_disposition(disposition, served.filename),
        "ETag": f'"{served.etag}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": served.cache_control,
        "Vary": "Authorization, X-Access-Token, X-API-Key",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }


def content_disposition(disposition_type: str, filename: str) -> str:
    """Return the value of Content-Disposition (RFC 6266), with `filename*` for non-ASCII names."""
    name = safe_filename(filename)
    plain = name.encode("ascii", "replace").decode().replace("?", "_").replace("%", "_")
    value = f'{disposition_type}; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=UTF-8''{quote(name, _ATTR_CHAR)}"


def safe_filename(filename: str) -> str:
    """Return a file name without path and control characters, of at most 150 characters."""
    name = _PATH_CHARACTERS.sub("_", _UNSAFE_CHARACTERS.sub("", filename)).strip(" .")
    if len(name) > MAX_FILENAME_LENGTH:
        stem, dot, ending = name.rpartition(".")
        if not dot or len(ending) > MAX_FILENAME_LENGTH // 4:
            stem, dot, ending = name, "", ""
        name = stem[: MAX_FILENAME_LENGTH - len(dot + ending)] + dot + ending
    return name or "file"
