"""The addresses of a connection: that of the client, and that at which it arrived."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import client_ip_address, normalized_ip_address_or_none
from models.cluster.own_node import RETRY_AFTER_SECONDS
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionPeer

CONNECTED_ADDRESS = "merganser.connected_address"  # key of the ASGI scope


class ConnectedAddressRecorder:
    """ASGI middleware around the one that replaces the address of a trusted proxy.

    It keeps the address of the connection itself, which shows that there is a proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app."""
        scope[CONNECTED_ADDRESS] = scope.get("client")
        await self.app(scope, receive, send)


def session_peer(request: HTTPConnection) -> SessionPeer:
    """Return the addresses of a connection."""
    scope = request.scope
    host, port = scope.get("server") or (None, None)
    destination_ip = normalized_ip_address_or_none(host)
    client = scope.get("client")
    connected_address = scope.get(CONNECTED_ADDRESS, client)
    return SessionPeer(
        client_ip_address(request),
        is_proxied=connected_address != client,
        destination_ip=destination_ip,
        destination_port=port if destination_ip else None,
    )


def node_refusal_or_none(environment: Environment) -> RequestRejected | None:
    """Return the rejection of streams while the node is DRAINING or DOWN; None while it is UP."""
    if not (reason := environment.own_node.refusal_reason):
        return None
    return RequestRejected(503, "UNAVAILABLE", reason, {"Retry-After": str(RETRY_AFTER_SECONDS)})


def sessions_refused_rejection() -> RequestRejected:
    """Return the rejection of a stream while new sessions of its user are refused."""
    text = "No sessions of this user are accepted now."
    return RequestRejected(503, "UNAVAILABLE", text, {"Retry-After": "5"})
