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
from models.errors import Invalid
from models.runtime.options import Options

LONGEST = 2048  # characters
HEAD = 16 << 10  # of a response
WHOLE = 10.0  # seconds
CONNECTING = 4.0  # seconds, for one address
TRIED = 3  # attempted for one host
PORTS = {"http": 80, "https": 443}
LOCAL = (
    ".localhost",
    ".local",
    ".internal",
    ".home.arpa",
)  # host names with these suffixes are private
SAFE = "/?:@!$&'()*+,;=-._~%[]"  # in path and query

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Unsent(Exception):
    """The request failed or got no valid response. Its text can be shown to users."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL, with the host in ASCII and the path with its query."""

    secure: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == PORTS["https" if self.secure else "http"]
        return host if usual else f"{host}:{self.port}"


async def by_system(host: str, port: int) -> Sequence[str]:
    """Resolve the addresses of a host with the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def by_server(place: str | None) -> Resolve:
    """A lookup function for the name server `address:port`, or the system's for None.

    IP addresses, and names without a dot such as localhost, use the system's resolver.
    """

    async def resolve(host: str, port: int) -> Sequence[str]:
        if place is None or "." not in host or _literal(host):
            return await by_system(host, port)
        from mail.network.dns_resolver import host_addresses  # noqa: PLC0415 - commands need no DNS

        return await host_addresses(place, host, CONNECTING)

    return resolve


@dataclass(frozen=True, slots=True)
class Gate:
    """Which addresses requests may go to, and how they are resolved and trusted."""

    private: bool = False  # private networks too
    trust: ssl.SSLContext | None = field(
        default=None, repr=False
    )  # instead of the system's authorities
    resolve: Resolve = by_system
    whole: float = WHOLE

    @classmethod
    def of(
        cls, options: Options, *, private: bool = False, trust: ssl.SSLContext | None = None
    ) -> "Gate":
        """A policy that resolves names with the configured name server."""
        return cls(private, trust, by_server(options.dns_resolver))

    async def allowed(self, host: str, port: int) -> list[str]:
        """Resolve the allowed addresses of a host. Raises HttpRequestFailed if there are none."""
        try:
            found = await self.resolve(host, port)
        except (OSError, UnicodeError):
            raise Unsent("the host is not known") from None
        allowed = [address for address in found if self.private or not inward(address)]
        if not allowed:
            raise Unsent("the host is inside" if found else "the host is not known")
        return allowed


def target(url: str, *, private: bool, path: Sequence[str] = ("url",)) -> Target:
    """Parse a URL that requests are sent to. Raises Invalid.

    Host names are resolved, and their addresses checked, when a request is sent.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        named = host_of(host)
    except (ValueError, idna.IDNAError):
        raise Invalid("not an address", constraint="url", path=path) from None
    if parts.scheme not in PORTS or not host or len(url) > LONGEST or not url.isprintable():
        text = f"http:// or https://, at most {LONGEST} characters"
        raise Invalid(text, constraint="url", path=path)
    if "@" in parts.netloc or parts.fragment or " " in url:
        text = "without user, password and fragment"
        raise Invalid(text, constraint="url", path=path)
    check_outside(named, private=private, path=path)
    wanted = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure = parts.scheme == "https"
    return Target(secure, named, port or PORTS[parts.scheme], quote(wanted, safe=SAFE))


def check_outside(host: str, *, private: bool, path: Sequence[str]) -> None:
    """Raise Invalid if the host name or IP address is private. The name is not resolved."""
    if not private and (f".{host}".endswith(LOCAL) or (_literal(host) and inward(host))):
        raise Invalid("that is inside: use a public address", constraint="private", path=path)


def host_of(host: str) -> str:
    """The host in ASCII and lower case. Raises idna.IDNAError."""
    if host.isascii():
        return host.lower().rstrip(".")
    return idna.encode(host, uts46=True).decode()


def _literal(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return True
    return False


def inward(address: str) -> bool:
    """True if the address is not public, also if it embeds an IPv4 address that is not."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if is_special(found):
        return True
    real = embedded_ipv4(found) or found
    return not real.is_global or real.is_multicast or real.is_reserved


async def post(to: Target, headers: Mapping[str, str], body: bytes, gate: Gate) -> int:
    """Send a POST request and return the status. Redirects are not followed.

    Raises HttpRequestFailed.
    """
    status, _ = await ask(to, headers, body, gate)
    return status


async def ask(
    to: Target, headers: Mapping[str, str], body: bytes, gate: Gate, most: int = 0
) -> tuple[int, bytes]:
    """Send a POST request and return status and body. Does not read a body for limit 0.

    Raises HttpRequestFailed, also if the body is longer than `max_body_bytes` or incomplete.
    """
    return await _talked(to, _request(to, headers, body), gate, most)


async def fetch(to: Target, gate: Gate, most: int) -> tuple[int, bytes]:
    """Send a GET request and return status and body, as `post_and_read`.

    Raises HttpRequestFailed.
    """
    return await _talked(to, _get(to), gate, most)


async def _talked(to: Target, request: bytes, gate: Gate, most: int) -> tuple[int, bytes]:
    """Send a request and return status and body. Raises HttpRequestFailed."""
    try:
        async with asyncio.timeout(gate.whole):
            reader, writer = await connected(to, gate)
            try:
                writer.write(request)
                await writer.drain()
                return await _answer(reader, most)
            finally:
                writer.transport.abort()  # the rest of the response is not read
    except TimeoutError:
        raise Unsent(f"no answer within {gate.whole:g} seconds") from None
    except ssl.SSLError as problem:
        reason = getattr(problem, "verify_message", None) or problem.reason or "no TLS"
        raise Unsent(f"TLS: {reason}") from None
    except (OSError, httptools.HttpParserError) as problem:
        what = "the connection failed" if isinstance(problem, OSError) else "the answer is no HTTP"
        raise Unsent(what) from None


async def connected(to: Target, gate: Gate) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an allowed address of the target, without resolving the name again.

    Raises HttpRequestFailed or OSError.
    """
    allowed = await gate.allowed(to.host, to.port)
    secure = gate.trust or _usual_trust() if to.secure else None
    name = to.host if to.secure else None
    last: OSError | None = None
    for address in allowed[:TRIED]:
        try:
            async with asyncio.timeout(CONNECTING):
                return await asyncio.open_connection(
                    address, to.port, ssl=secure, server_hostname=name
                )
        except (OSError, TimeoutError) as problem:  # the next address may answer
            last = problem
    raise last or OSError


@cache
def _usual_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _request(to: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a POST request."""
    fields = {
        "Host": to.authority,
        "User-Agent": "Merganser",
        "Accept": "*/*",
        "Connection": "close",
        "Content-Length": str(len(body)),
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {to.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _get(to: Target) -> bytes:
    """The bytes of a GET request."""
    lines = f"Host: {to.authority}\r\nUser-Agent: Merganser\r\nAccept: */*\r\n"
    return f"GET {to.path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode()


class _Answer:
    """Callbacks of httptools that collect status and body of a response."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.body = bytearray()
        self.whole = False
        self.measured = False  # a header field gives the length of the body

    def on_message_begin(self) -> None:
        self.measured = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.measured |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200 and not self.status:  # noqa: PLR2004 - 1xx are interim responses
            self.status = status

    def on_body(self, piece: bytes) -> None:
        if not self.whole:
            self.body += piece

    def on_message_complete(self) -> None:
        self.whole |= bool(self.status)


async def _answer(reader: asyncio.StreamReader, most: int) -> tuple[int, bytes]:
    """Read status and body of a response. For limit 0 it stops after the header.

    Raises HttpRequestFailed if the response is too long or incomplete.
    """
    answer, read = _Answer(), 0
    while not (answer.whole if most else answer.status):
        piece = await reader.read(4096)
        read += len(piece)
        if not piece and answer.status and not answer.measured:
            break  # without a length, the body ends with the connection
        if not piece or read > HEAD + most:
            raise Unsent("the answer ends early" if not piece else "the answer has no end")
        try:
            answer.parser.feed_data(piece)
        except httptools.HttpParserError:
            over = answer.whole if most else answer.status
            if not over:  # data after the response is ignored
                raise
        if most and len(answer.body) > most:
            raise Unsent(f"an answer of more than {most} bytes")
    return answer.status, bytes(answer.body)


def refused(status: int) -> str | None:
    """The problem of a status that is not 2xx, as text. None for 2xx."""
    if 200 <= status < 300:  # noqa: PLR2004 - status classes of HTTP
        return None
    if 300 <= status < 400:  # noqa: PLR2004
        return f"status {status}: redirections are not followed"
    return f"status {status}"
