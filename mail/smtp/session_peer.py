"""The addresses of an SMTP or LMTP connection."""

import asyncio

from models.sessions.live_sessions import SessionPeer


def peer_of_transport(transport: asyncio.Transport) -> SessionPeer:
    """Return the addresses of a connection, without those of a socket that has no IP address."""
    remote, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    ip = str(remote[0]).partition("%")[0] if isinstance(remote, tuple) else None
    if not isinstance(local, tuple):
        return SessionPeer(ip)
    return SessionPeer(
        ip, destination_ip=str(local[0]).partition("%")[0], destination_port=local[1]
    )
