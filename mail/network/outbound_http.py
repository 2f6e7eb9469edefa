"""HTTP requests to URLs that users configure: no private addresses, limited time and size."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, urlsplit

import httptools
import idna

from mail.network.special_ranges import embedded_ipv4, is_special
from models.errors import InvalidInput
from models.runtime.options import Options
from models.validation_constraints import ValidationConstraint

MAX_URL_LENGTH = 2048  # characters
MAX_HEADER_BYTES = 16 << 10  # of a response
REQUEST_TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 4.0  # seconds, for one address
MAX_ADDRESSES = 3  # attempted for one host
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
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def resolver_for_name_server(name_server: str | None) -> ResolveHost:
    """A lookup function for the name server `address:port`, or the system's for None.

    IP addresses, and names without a dot such as localhost, use the system's resolver.
    """

    async def resolve(host: str, port: int) -> Sequence[str]:
        if name_server is None or "." not in host or _is_ip_address(host):
            return await resolve_by_system(host, port)
        from mail.network.dns_resolver import resolve_host  # noqa: PLC0415 - commands need no DNS

        return await resolve_host(name_server, host, CONNECT_TIMEOUT)

    return resolve


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Which addresses requests may go to, and how they are resolved and trusted."""

    allows_private: bool = False  # private networks too
    trusted_context: ssl.SSLContext | None = field(
        default=None, repr=False
    )  # instead of the system's authorities
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
            raise HttpRequestFailed("the host is not known") from None
        allowed = [
            address
            for address in addresses
            if self.allows_private or not is_private_address(address)
        ]
        if not allowed:
            raise HttpRequestFailed("the host is inside" if addresses else "the host is not known")
        return allowed


def parse_target(
    url: str, *, allow_private: bool, error_path: Sequence[str] = ("url",)
) -> HttpTarget:
    """Parse a URL that requests are sent to. Raises Invalid.

    Host names are resolved, and their addresses checked, when a request is sent.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        ascii_name = ascii_host(host)
    except (ValueError, idna.IDNAError):
        raise InvalidInput(
            "Not a URL", constraint=ValidationConstraint.URL, path=error_path
        ) from None
    if (
        parts.scheme not in DEFAULT_PORTS
        or not host
        or len(url) > MAX_URL_LENGTH
        or not url.isprintable()
    ):
        text = f"A URL with http:// or https://, at most {MAX_URL_LENGTH} characters"
        raise InvalidInput(text, constraint=ValidationConstraint.URL, path=error_path)
    if "@" in parts.netloc or parts.fragment or " " in url:
        text = "The URL can't contain a username, password or fragment"
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
    """Raise Invalid if the host name or IP address is private. The name is not resolved."""
    if not allow_private and (
        f".{host}".endswith(PRIVATE_SUFFIXES) or (_is_ip_address(host) and is_private_address(host))
    ):
        raise InvalidInput(
            "The host is in a private network: use a public address",
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
    effective = embedded_ipv4(parsed) or parsed
    return not effective.is_global or effective.is_multicast or effective.is_reserved


async def post(
    http_target: HttpTarget, headers: Mapping[str, str], body: bytes, policy: NetworkPolicy
) -> int:
    """Send a POST request and return the status. Redirects are not followed.

    Raises HttpRequestFailed.
    """
    status, _ = await post_and_read(http_target, headers, body, policy)
    return status


async def post_and_read(
    http_target: HttpTarget,
    headers: Mapping[str, str],
    body: bytes,
    policy: NetworkPolicy,
    max_body_bytes: int = 0,
) -> tuple[int, bytes]:
    """Send a POST request and return status and body. Does not read a body for limit 0.

    Raises HttpRequestFailed, also if the body is longer than `max_body_bytes` or incomplete.
    """
    return await _send_request(
        http_target, _post_request(http_target, headers, body), policy, max_body_bytes
    )


async def fetch(
    http_target: HttpTarget, policy: NetworkPolicy, max_body_bytes: int
) -> tuple[int, bytes]:
    """Send a GET request and return status and body, as `post_and_read`.

    Raises HttpRequestFailed.
    """
    return await _send_request(http_target, _get_request(http_target), policy, max_body_bytes)


async def _send_request(
    http_target: HttpTarget, request: bytes, policy: NetworkPolicy, max_body_bytes: int
) -> tuple[int, bytes]:
    """Send a request and return status and body. Raises HttpRequestFailed."""
    try:
        async with asyncio.timeout(policy.timeout_seconds):
            reader, writer = await open_connection(http_target, policy)
            try:
                writer.write(request)
                await writer.drain()
                return await _read_response(reader, max_body_bytes)
            finally:
                writer.transport.abort()  # the rest of the response is not read
    except TimeoutError:
        raise HttpRequestFailed(f"no answer within {policy.timeout_seconds:g} seconds") from None
    except ssl.SSLError as problem:
        reason = getattr(problem, "verify_message", None) or problem.reason or "no TLS"
        raise HttpRequestFailed(f"TLS: {reason}") from None
    except (OSError, httptools.HttpParserError) as problem:
        text = "the connection failed" if isinstance(problem, OSError) else "the answer is no HTTP"
        raise HttpRequestFailed(text) from None


async def open_connection(
    http_target: HttpTarget, policy: NetworkPolicy
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an allowed address of the target, without resolving the name again.

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


def _post_request(http_target: HttpTarget, headers: Mapping[str, str], body: bytes) -> bytes:
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


def _get_request(http_target: HttpTarget) -> bytes:
    """The bytes of a GET request."""
    lines = f"Host: {http_target.authority}\r\nUser-Agent: Merganser\r\nAccept: */*\r\n"
    return f"GET {http_target.path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode()


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

    def on_body(self, piece: bytes) -> None:
        if not self.is_complete:
            self.body += piece

    def on_message_complete(self) -> None:
        self.is_complete |= bool(self.status)


async def _read_response(reader: asyncio.StreamReader, max_body_bytes: int) -> tuple[int, bytes]:
    """Read status and body of a response. For limit 0 it stops after the header.

    Raises HttpRequestFailed if the response is too long or incomplete.
    """
    parser, read_bytes = _ResponseParser(), 0
    while not (parser.is_complete if max_body_bytes else parser.status):
        data = await reader.read(4096)
        read_bytes += len(data)
        if not data and parser.status and not parser.has_length:
            break  # without a length, the body ends with the connection
        if not data or read_bytes > MAX_HEADER_BYTES + max_body_bytes:
            raise HttpRequestFailed(
                "the answer ends early" if not data else "the answer has no end"
            )
        try:
            parser.parser.feed_data(data)
        except httptools.HttpParserError:
            is_done = parser.is_complete if max_body_bytes else parser.status
            if not is_done:  # data after the response is ignored
                raise
        if max_body_bytes and len(parser.body) > max_body_bytes:
            raise HttpRequestFailed(f"an answer of more than {max_body_bytes} bytes")
    return parser.status, bytes(parser.body)


def status_problem(status: int) -> str | None:
    """The problem of a status that is not 2xx, as text. None for 2xx."""
    if 200 <= status < 300:  # noqa: PLR2004 - status classes of HTTP
        return None
    if 300 <= status < 400:  # noqa: PLR2004
        return f"status {status}: redirections are not followed"
    return f"status {status}"
