"""Refusal of connections right after they are accepted: before TLS, and before any session."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

IsRefused = Callable[[str | None], bool]


def peer_ip_or_none(transport: asyncio.BaseTransport) -> str | None:
    """Return the IP address of the peer, without a zone; None for a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]).partition("%")[0] if isinstance(peer, tuple) else None


class ConnectionGate(asyncio.Protocol):
    """The first protocol of a connection. It closes refused ones, and hands others over."""

    __slots__ = ("_create_session", "_is_refused")

    def __init__(
        self,
        is_refused: IsRefused,
        create_session: Callable[[], Any],
    ) -> None:
        self._is_refused = is_refused
        self._create_session = create_session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection if its peer is refused, else hand it over to a session."""
        socket_transport = cast("asyncio.Transport", transport)
        if not self._is_refused(peer_ip_or_none(transport)):
            session = self._create_session()
            socket_transport.set_protocol(session)
            session.connection_made(transport)
        else:
            socket_transport.abort()
