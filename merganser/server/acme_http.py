"""A listener on port 80 that answers only HTTP-01 challenges of ACME (RFC 8555, section 8.3).

It reads one short request per connection and has no other feature of HTTP.
"""

import asyncio
import logging
import re
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from typing import Any

from mail.network.connection_gate import ConnectionGate
from mail.network.ip_networks import network_for_limits
from mail.tls.acme_client import CHALLENGE_PATH, MAX_TOKEN_CHARACTERS
from merganser.server import sockets
from merganser.server.components.listener_component import ListenerDefinition
from merganser.server.processes.process_roles import ProcessRole
from merganser.settings.settings import Settings
from models.runtime.concurrency_limits import ConcurrencyLimiter
from models.runtime.environment import Environment
from resolvers.certificates import acme_challenges

log = logging.getLogger(__name__)

LISTENER_NAME = "ACME_HTTP"
COMPONENT_NAME = "acmeHttp"
MAX_REQUEST_SIZE = 8192  # bytes
REQUEST_TIMEOUT = 10.0  # seconds to receive the request, and to send the response
MAX_CONNECTIONS, MAX_CONNECTIONS_PER_NETWORK = 200, 20
CHALLENGE_REQUEST = re.compile(
    (
        rf"(GET|HEAD) {re.escape(CHALLENGE_PATH)}([A-Za-z0-9_-]{{1,{MAX_TOKEN_CHARACTERS}}}) "
        r"HTTP/1\.[01]\r\n"
    ).encode()
)


class AcmeHttpListener:
    """A listener for HTTP-01 challenges of ACME, with limits on open connections."""

    def __init__(self, environment: Environment) -> None:
        self._world = environment
        self._limiter = ConcurrencyLimiter(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_NETWORK)
        self._servers: list[asyncio.Server] = []

    @property
    def port(self) -> int:
        """The TCP port of the first socket."""
        port: int = self._servers[0].sockets[0].getsockname()[1]
        return port

    async def start(self, **socket_options: Any) -> None:
        """Listen on `host` and `port`, or on the bound socket `sock`. Raises OSError."""
        loop = asyncio.get_running_loop()

        def create_stream() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=MAX_REQUEST_SIZE, loop=loop)
            return asyncio.StreamReaderProtocol(reader, self._answer_challenge_and_close, loop=loop)

        def create_gate() -> ConnectionGate:
            return ConnectionGate(self._world.refuses_ip, create_stream)

        server = await loop.create_server(
            create_gate,
            **socket_options,
        )
        self._servers.append(server)

    async def close(self, timeout: float = 0) -> None:  # noqa: ASYNC109
        """Stop accepting connections. Open ones end by their own timeout."""
        for server in self._servers:
            server.close()

    async def _answer_challenge_and_close(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = writer.get_extra_info("peername")
        ip = str(peer[0]).partition("%")[0] if isinstance(peer, tuple) else None
        slot = self._limiter.acquire(network_for_limits(ip))
        try:
            if slot is not None:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    request_head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._challenge_response(request_head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not a certificate authority
        except Exception:  # other connections must still be served
            log.exception("Could not answer an ACME challenge")
        finally:
            if slot is not None:
                slot.release()
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await writer.wait_closed()

    async def _challenge_response(self, request_head: bytes) -> bytes:
        """The HTTP response to a request head: the key authorization, or 404."""
        request = CHALLENGE_REQUEST.match(request_head)
        key_authorization = (
            await acme_challenges.find_challenge_answer(self._world, request[2].decode())
            if request
            else None
        )
        status, text = (
            ("200 OK", key_authorization)
            if key_authorization
            else ("404 Not Found", "There is nothing here.\n")
        )
        body = text.encode()
        fields = (
            f"HTTP/1.1 {status}",
            "Content-Type: application/octet-stream",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        )
        response_head = "\r\n".join((*fields, "", "")).encode()
        return response_head if request and request[1] == b"HEAD" else response_head + body


def open_and_define_acme_listener(
    settings: Settings, environment: Environment, process_role: ProcessRole
) -> Generator[ListenerDefinition]:
    """Yield the ACME listener if MERGANSER_ACME_HTTP_LISTEN is set, with its open socket.

    Raises CommandError if the address can't be bound.
    """
    if (address := settings.acme_http_listen) is None:
        return
    yield ListenerDefinition(
        COMPONENT_NAME,
        address=address,
        bound_sockets=process_role.smtp_sockets.get(LISTENER_NAME)
        or sockets.open_listening_sockets(LISTENER_NAME, address),
        create_listener=partial(AcmeHttpListener, environment),
        finish_timeout=REQUEST_TIMEOUT,
    )
