"""HTTP requests to URLs that users configure: no private addresses, limited time and size."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import httptools
import idna

from mail.network.special_ranges import embedded_ipv4_or_none, is_special
from models.errors import InvalidInput
from models.runtime.options import NO_NAME_SERVER, Options
from models.validation_constraints import ValidationConstraint

MAX_URL_LENGTH = 2048  # characters
MAX_HEADER_BYTES = 16 << 10  # of a response
READ_SIZE = 4096  # bytes
REQUEST_TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 4.0  # seconds, for one address
MAX_ADDRESSES = 3  # attempted for one host
PRIVATE_HOST_TEXT = "The host is in a private network: use a public address."
UNKNOWN_HOST_TEXT = "The host name was not found."
DEFAULT_PORTS = {"http": 80, "https": 443}
PRIVATE_SUFFIXES = (
    ".localhost",
    ".local",
    ".internal",
    ".home.arpa",
)  # host names with these suffixes are private
UNQUOTED_CHARACTERS = "/?:@!$&'()*+,;=-._~%[]"  # in path and query

ResolveHost = Callable[[str, int], Awaitable[Sequence[str]]]


class HttpRequestFailed(Exception):
    """The request failed or got no valid response. Its text can be shown to users."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A parsed URL, with the host in ASCII and the path with its query."""

    uses_tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default_port = self.port == DEFAULT_PORTS["https" if self.uses_tls else "http"]
        return host if is_default_port else f"{host}:{self.port}"


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Resolve the addresses of a host with the system's resolver."""
    loop = asyncio.get_running_loop()
    address_infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in address_infos))


def resolver_for_name_server(name_server: str | None) -> ResolveHost:
    """A lookup function for the name server `address:port`, or the system's for None.

    IP addresses, and names without a dot such as localhost, use the system's resolver. For
    `NO_NAME_SERVER` only localhost and loopback addresses are found.
    """

    async def resolve(host: str, port: int) -> Sequence[str]:
        if name_server == NO_NAME_SERVER:
            return _loopback_addresses(host)
        if name_server is None or "." not in host or _is_ip_address(host):
            return await resolve_by_system(host, port)
        from mail.network.dns_resolver import require_host_addresses  # noqa: PLC0415 - commands need no DNS

        return await require_host_addresses(name_server, host, CONNECT_TIMEOUT)

    return resolve


def _loopback_addresses(host: str) -> Sequence[str]:
    """The loopback addresses of a host, without DNS. Raises OSError if the host is another one."""
    if host == "localhost":
        return ["127.0.0.1", "::1"]
    if _is_ip_address(host) and ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return [host]
    raise OSError("this server is offline")


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Which addresses requests may go to, and how they are resolved and trusted."""

    allows_private: bool = False  # private networks too
    # instead of the system's authorities
    trusted_context: ssl.SSLContext | None = field(default=None, repr=False)
    resolve: ResolveHost = resolve_by_system
    timeout_seconds: float = REQUEST_TIMEOUT

    @classmethod
    def from_options(
        cls,
        options: Options,
        *,
        allows_private: bool = False,
        trusted_context: ssl.SSLContext | None = None,
    ) -> "NetworkPolicy":
        """A policy that resolves names with the configured name server."""
        return cls(allows_private, trusted_context, resolver_for_name_server(options.dns_resolver))

    async def resolve_allowed(self, host: str, port: int) -> list[str]:
        """Resolve the allowed addresses of a host. Raises HttpRequestFailed if there are none."""
        try:
            addresses = await self.resolve(host, port)
        except (OSError, UnicodeError):
            raise HttpRequestFailed(UNKNOWN_HOST_TEXT) from None
        allowed = [
            address
            for address in addresses
            if self.allows_private or not is_private_address(address)
        ]
        if not allowed:
            raise HttpRequestFailed(PRIVATE_HOST_TEXT if addresses else UNKNOWN_HOST_TEXT)
        return allowed


def parse_http_target(
    url: str, *, allow_private: bool, error_path: Sequence[str] = ("url",)
) -> HttpTarget:
    """Parse a URL that requests are sent to. Raises InvalidInput.

    Host names are resolved, and their addresses checked, when a request is sent.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        ascii_name = ascii_host(host)
    except (ValueError, idna.IDNAError):
        raise InvalidInput(
            "Not a URL.", constraint=ValidationConstraint.URL, path=error_path
        ) from None
    if (
        parts.scheme not in DEFAULT_PORTS
        or not host
        or len(url) > MAX_URL_LENGTH
        or not url.isprintable()
    ):
        text = f"Must be a URL with http:// or https://, of at most {MAX_URL_LENGTH} characters."
        raise InvalidInput(text, constraint=ValidationConstraint.URL, path=error_path)
    if "@" in parts.netloc or parts.fragment or " " in url:
        text = "The URL can't contain a username, password or fragment."
        raise InvalidInput(text, constraint=ValidationConstraint.URL, path=error_path)
    require_public_host_name(ascii_name, allow_private=allow_private, error_path=error_path)
    request_path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    uses_tls = parts.scheme == "https"
    return HttpTarget(
        uses_tls,
        ascii_name,
        port or DEFAULT_PORTS[parts.scheme],
        quote(request_path, safe=UNQUOTED_CHARACTERS),
    )


def require_public_host_name(host: str, *, allow_private: bool, error_path: Sequence[str]) -> None:
    """Raise InvalidInput if the host name or IP address is private. The name is not resolved."""
    if not allow_private and (
        f".{host}".endswith(PRIVATE_SUFFIXES) or (_is_ip_address(host) and is_private_address(host))
    ):
        raise InvalidInput(
            PRIVATE_HOST_TEXT,
            constraint=ValidationConstraint.PRIVATE_NETWORK,
            path=error_path,
        )


def ascii_host(host: str) -> str:
    """The host in ASCII and lower case. Raises idna.IDNAError."""
    if host.isascii():
        return host.lower().rstrip(".")
    return idna.encode(host, uts46=True).decode()


def _is_ip_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return True
    return False


def is_private_address(address: str) -> bool:
    """True if the address is not public, also if it embeds an IPv4 address that is not."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if is_special(parsed):
        return True
    effective = embedded_ipv4_or_none(parsed) or parsed
    return not effective.is_global or effective.is_multicast or effective.is_reserved


async def post_and_return_status(
    http_target: HttpTarget, headers: Mapping[str, str], body: bytes, policy: NetworkPolicy
) -> int:
    """Send a POST request and return the status. Redirects are not followed.

    Raises HttpRequestFailed.
    """
    response = await _send_request(
        http_target, _encode_post_request(http_target, headers, body), policy, max_body_bytes=None
    )
    return response.status


class HttpResponse(NamedTuple):
    """The status and the body of a response."""

    status: int
    body: bytes  # empty if it was not read


async def post_and_read(
    http_target: HttpTarget,
    headers: Mapping[str, str],
    body: bytes,
    policy: NetworkPolicy,
    max_body_bytes: int,
) -> HttpResponse:
    """Send a POST request and return status and body.

    Raises HttpRequestFailed, also if the body is longer than `max_body_bytes` or incomplete.
    """
    return await _send_request(
        http_target, _encode_post_request(http_target, headers, body), policy, max_body_bytes
    )


async def get_and_read(
    http_target: HttpTarget,
    policy: NetworkPolicy,
    max_body_bytes: int,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """Send a GET request and return status and body, as `post_and_read`.

    Raises HttpRequestFailed.
    """
    request = _encode_get_request(http_target, headers or {})
    return await _send_request(http_target, request, policy, max_body_bytes)


async def _send_request(
    http_target: HttpTarget, request: bytes, policy: NetworkPolicy, max_body_bytes: int | None
) -> HttpResponse:
    """Send a request and return status and body; with limit None, the status without the body.

    Raises HttpRequestFailed.
    """
    try:
        async with asyncio.timeout(policy.timeout_seconds):
            reader, writer = await open_connection(http_target, policy)
            try:
                writer.write(request)
                await writer.drain()
                if max_body_bytes is None:
                    return HttpResponse(await _read_response_status(reader), b"")
                return await _read_response(reader, max_body_bytes)
            finally:
                writer.transport.abort()  # the rest of the response is not read
    except TimeoutError:
        raise HttpRequestFailed(
            f"The server did not respond within {policy.timeout_seconds:g} seconds."
        ) from None
    except ssl.SSLError as problem:
        reason = getattr(problem, "verify_message", None) or problem.reason or "not supported"
        raise HttpRequestFailed(f"The TLS handshake failed: {reason}.") from None
    except (OSError, httptools.HttpParserError) as problem:
        text = (
            "The connection failed."
            if isinstance(problem, OSError)
            else "The response is not HTTP."
        )
        raise HttpRequestFailed(text) from None


async def open_connection(
    http_target: HttpTarget, policy: NetworkPolicy
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Resolve the host of the target once, and connect to one of the addresses that are allowed.

    Raises HttpRequestFailed or OSError.
    """
    addresses = await policy.resolve_allowed(http_target.host, http_target.port)
    tls_context = policy.trusted_context or _default_tls_context() if http_target.uses_tls else None
    server_name = http_target.host if http_target.uses_tls else None
    last_error: OSError | None = None
    for address in addresses[:MAX_ADDRESSES]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await asyncio.open_connection(
                    address, http_target.port, ssl=tls_context, server_hostname=server_name
                )
        except (OSError, TimeoutError) as problem:  # the next address may answer
            last_error = problem
    raise last_error or OSError


@cache
def _default_tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _encode_post_request(http_target: HttpTarget, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a POST request."""
    fields = {
        "Host": http_target.authority,
        "User-Agent": "Merganser",
        "Accept": "*/*",
        "Connection": "close",
        "Content-Length": str(len(body)),
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {http_target.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _encode_get_request(http_target: HttpTarget, headers: Mapping[str, str]) -> bytes:
    """The bytes of a GET request."""
    fields = {
        "Host": http_target.authority,
        "User-Agent": "Merganser",
        "Accept": "*/*",
        **headers,
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"GET {http_target.path} HTTP/1.1\r\n{lines}\r\n".encode()


class _ResponseParser:
    """Callbacks of httptools that collect status and body of a response."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.body = bytearray()
        self.is_complete = False
        self.has_length = False  # a header field gives the length of the body

    def on_message_begin(self) -> None:
        self.has_length = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.has_length |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200 and not self.status:  # noqa: PLR2004 - 1xx are interim responses
            self.status = status

    def on_body(self, chunk: bytes) -> None:
        if not self.is_complete:
            self.body += chunk

    def on_message_complete(self) -> None:
        self.is_complete |= bool(self.status)


async def _read_response_status(reader: asyncio.StreamReader) -> int:
    """Read a response up to the end of its header, and return the status."""
    parser, read_bytes = _ResponseParser(), 0
    while not parser.status:
        data = await reader.read(READ_SIZE)
        read_bytes += len(data)
        _require_bytes_within_limit(data, read_bytes, MAX_HEADER_BYTES)
        try:
            parser.parser.feed_data(data)
        except httptools.HttpParserError:
            if not parser.status:  # data after the header is ignored
                raise
    return parser.status


async def _read_response(reader: asyncio.StreamReader, max_body_bytes: int) -> HttpResponse:
    """Read status and body of a response.

    Raises HttpRequestFailed if the response is too long or incomplete.
    """
    parser, read_bytes = _ResponseParser(), 0
    while not parser.is_complete:
        data = await reader.read(READ_SIZE)
        read_bytes += len(data)
        if not data and parser.status and not parser.has_length:
            break  # without a length, the body ends with the connection
        _require_bytes_within_limit(data, read_bytes, MAX_HEADER_BYTES + max_body_bytes)
        try:
            parser.parser.feed_data(data)
        except httptools.HttpParserError:
            if not parser.is_complete:  # data after the response is ignored
                raise
        if len(parser.body) > max_body_bytes:
            raise HttpRequestFailed(f"The response has more than {max_body_bytes} bytes.")
    return HttpResponse(parser.status, bytes(parser.body))


def _require_bytes_within_limit(data: bytes, read_bytes: int, max_bytes: int) -> None:
    if not data or read_bytes > max_bytes:
        raise HttpRequestFailed(
            "The response is truncated." if not data else "The end of the response is missing."
        )


def status_problem(status: int) -> str | None:
    """The problem of a status that is not 2xx, as text. None for 2xx."""
    if 200 <= status < 300:  # noqa: PLR2004 - status classes of HTTP
        return None
    if 300 <= status < 400:  # noqa: PLR2004
        return f"Unexpected status {status}: redirects are not followed."
    return f"Unexpected status {status}."
