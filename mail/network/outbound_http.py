"""Requests to addresses that others have named: never inward, and never without an end."""

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

LONGEST = 2048  # characters of an address
HEAD = 16 << 10  # bytes of the head of an answer
WHOLE = 10.0  # seconds for all of it
CONNECTING = 4.0  # seconds for one address
TRIED = 3  # addresses of a host
PORTS = {"http": 80, "https": 443}
LOCAL = (".localhost", ".local", ".internal", ".home.arpa")  # how such names end
SAFE = "/?:@!$&'()*+,;=-._~%[]"  # what stays as it is in path and query

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Unsent(Exception):
    """It could not be sent, or was not answered. The text is fit to be shown."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address, taken apart: as its certificate, and as its request line have it."""

    secure: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What stands in the field Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == PORTS["https" if self.secure else "http"]
        return host if usual else f"{host}:{self.port}"


async def by_system(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system has them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def by_server(place: str | None) -> Resolve:
    """Return a lookup of hosts at a name server, `address:port`; the system's without one.

    Addresses, and names without a dot such as localhost, are left to the system.
    """

    async def resolve(host: str, port: int) -> Sequence[str]:
        if place is None or "." not in host or _literal(host):
            return await by_system(host, port)
        from mail.network.dns_resolver import host_addresses  # noqa: PLC0415 - commands need no DNS

        return await host_addresses(place, host, CONNECTING)

    return resolve


@dataclass(frozen=True, slots=True)
class Gate:
    """What may be reached, and how it is found."""

    private: bool = False  # our own networks, too
    trust: ssl.SSLContext | None = field(default=None, repr=False)  # instead of the system's
    resolve: Resolve = by_system
    whole: float = WHOLE

    @classmethod
    def of(
        cls, options: Options, *, private: bool = False, trust: ssl.SSLContext | None = None
    ) -> "Gate":
        """Build a gate that looks up names at the name server of the settings."""
        return cls(private, trust, by_server(options.dns_resolver))

    async def allowed(self, host: str, port: int) -> list[str]:
        """The addresses of a host that may be connected to; Unsent where there are none."""
        try:
            found = await self.resolve(host, port)
        except (OSError, UnicodeError):
            raise Unsent("the host is not known") from None
        allowed = [each for each in found if self.private or not inward(each)]
        if not allowed:
            raise Unsent("the host is inside" if found else "the host is not known")
        return allowed


def target(url: str, *, private: bool, path: Sequence[str] = ("url",)) -> Target:
    """Take an address apart; Invalid where nothing can be posted there.

    What a name stands for is looked up when something is sent, and judged then.
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
    """Invalid where a host, as `host_of` has it, is in one of our own networks by its very name."""
    if not private and (f".{host}".endswith(LOCAL) or (_literal(host) and inward(host))):
        raise Invalid("that is inside: use a public address", constraint="private", path=path)


def host_of(host: str) -> str:
    """The host as the wire has it; raises idna.IDNAError where there is no such form."""
    if host.isascii():
        return host.lower().rstrip(".")
    return idna.encode(host, uts46=True).decode()


def _literal(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return True
    return False


def inward(address: str) -> bool:
    """True if the address is not of the public internet, in whichever form it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if is_special(found):
        return True
    real = embedded_ipv4(found) or found
    return not real.is_global or real.is_multicast or real.is_reserved


async def post(to: Target, headers: Mapping[str, str], body: bytes, gate: Gate) -> int:
    """Post this, and return the status of the answer; Unsent where there is none.

    A redirection is an answer like others: it is not followed.
    """
    status, _ = await ask(to, headers, body, gate)
    return status


async def ask(
    to: Target, headers: Mapping[str, str], body: bytes, gate: Gate, most: int = 0
) -> tuple[int, bytes]:
    """Post this; the status, and the body, which `most` = 0 does not wait for.

    Unsent also where the body has more than `most` bytes, or ends before it should.
    """
    return await _talked(to, _request(to, headers, body), gate, most)


async def fetch(to: Target, gate: Gate, most: int) -> tuple[int, bytes]:
    """Get a page of at most `most` bytes: status and body. As `ask`."""
    return await _talked(to, _get(to), gate, most)


async def _talked(to: Target, request: bytes, gate: Gate, most: int) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(gate.whole):
            reader, writer = await connected(to, gate)
            try:
                writer.write(request)
                await writer.drain()
                return await _answer(reader, most)
            finally:
                writer.transport.abort()  # what else it has to say is not waited for
    except TimeoutError:
        raise Unsent(f"no answer within {gate.whole:g} seconds") from None
    except ssl.SSLError as problem:
        reason = getattr(problem, "verify_message", None) or problem.reason or "no TLS"
        raise Unsent(f"TLS: {reason}") from None
    except (OSError, httptools.HttpParserError) as problem:
        what = "the connection failed" if isinstance(problem, OSError) else "the answer is no HTTP"
        raise Unsent(what) from None


async def connected(to: Target, gate: Gate) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an address that was judged: the name is not looked up again."""
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
        except (OSError, TimeoutError) as problem:  # the next one may do better
            last = problem
    raise last or OSError


@cache
def _usual_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _request(to: Target, headers: Mapping[str, str], body: bytes) -> bytes:
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
    lines = f"Host: {to.authority}\r\nUser-Agent: Merganser\r\nAccept: */*\r\n"
    return f"GET {to.path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode()


class _Answer:
    """Hears of the end of a head, and of the body behind it."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.body = bytearray()
        self.whole = False
        self.measured = False  # it says where its body ends

    def on_message_begin(self) -> None:
        self.measured = False

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.measured |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200 and not self.status:  # noqa: PLR2004 - before there are only hints
            self.status = status

    def on_body(self, piece: bytes) -> None:
        if not self.whole:
            self.body += piece

    def on_message_complete(self) -> None:
        self.whole |= bool(self.status)


async def _answer(reader: asyncio.StreamReader, most: int) -> tuple[int, bytes]:
    answer, read = _Answer(), 0
    while not (answer.whole if most else answer.status):
        piece = await reader.read(4096)
        read += len(piece)
        if not piece and answer.status and not answer.measured:
            break  # it ends with the connection
        if not piece or read > HEAD + most:
            raise Unsent("the answer ends early" if not piece else "the answer has no end")
        try:
            answer.parser.feed_data(piece)
        except httptools.HttpParserError:
            over = answer.whole if most else answer.status
            if not over:  # what stands behind it is not our concern
                raise
        if most and len(answer.body) > most:
            raise Unsent(f"an answer of more than {most} bytes")
    return answer.status, bytes(answer.body)


def refused(status: int) -> str | None:
    """What is wrong with this status."""
    if 200 <= status < 300:  # noqa: PLR2004 - the hundreds of HTTP
        return None
    if 300 <= status < 400:  # noqa: PLR2004
        return f"status {status}: redirections are not followed"
    return f"status {status}"
