"""`GET /rest/route`: the node that a load balancer connects a user to.

The response is JSON. Its headers are those of the protocol `auth_http` of nginx' mail proxy
(ngx_mail_auth_http_module), which sends the user in request headers.
"""

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import client_ip_address
from graph.http.upload_body import UploadService
from models.errors import InvalidInput, ServiceUnavailable
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.cluster import routes
from resolvers.context import Context

NO_STORE = {"Cache-Control": "no-store"}
RETRY_SECONDS = 3  # after which nginx tells the client to try again
_RECIPIENT = re.compile(r"RCPT TO:\s*<([^<>]*)>", re.IGNORECASE)


async def authorize_and_serve_node_of_user(service: UploadService, request: Request) -> Response:
    """Answer GET with the node of the user in `?user=`, or in the headers of nginx.

    Raises RequestRejected for another method, Forbidden unless the caller is an ADMIN, InvalidInput
    without a user, and ServiceUnavailable if no node is UP.
    """
    if request.method != "GET":
        text = "The method must be GET."
        raise RequestRejected(405, "BAD_USER_INPUT", text, {"Allow": "GET"})
    client_ip = client_ip_address(request)
    viewer = await service.authenticate_request(request.headers, client_ip)
    ctx = Context(service.environment, viewer, client_ip=client_ip)
    protocol = request.headers.get("auth-protocol")
    try:
        route = await routes.find_user_route(ctx, _username_of_request_or_raise(request))
        port = _require_port_of_protocol(route.node, request.headers)
        address = await routes.resolve_node_host(route.node.host)
    except ServiceUnavailable as problem:
        if protocol is None:
            raise
        return _nginx_retry_response(problem)
    body = {"host": route.node.host, "port": port, "pinned": route.is_pinned}
    headers = {"Auth-Status": "OK", "Auth-Server": address, "Auth-Port": str(port)}
    return JSONResponse(body, 200, {**NO_STORE, **headers})


def _username_of_request_or_raise(request: Request) -> str:
    """Return the name of the user. Raises InvalidInput if there is none."""
    name = request.query_params.get("user") or request.headers.get("auth-user")
    if not name and (recipient := _RECIPIENT.search(request.headers.get("auth-smtp-to", ""))):
        name = recipient[1]
    if not name:
        text = "The parameter `user` is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["user"])
    return name


def _require_port_of_protocol(node: ColumnRow, headers: Mapping[str, str]) -> int:
    """Return the port of HTTP, or that of the protocol of nginx.

    Raises ServiceUnavailable if the node has no listener for the protocol.
    """
    protocol = headers.get("auth-protocol")
    if protocol is None:
        return int(node.port)
    port: int | None = None
    if protocol.lower() == "smtp":
        receives_mail = headers.get("auth-method", "none").lower() == "none"
        port = node.smtp_port if receives_mail else node.submission_port
    if port is None:
        text = f"The node {node.host} has no listener for {protocol[:16]}."
        raise ServiceUnavailable(text, component="cluster")
    return port


def _nginx_retry_response(problem: ServiceUnavailable) -> Response:
    """Return the response with which nginx tells its client to try again later."""
    headers = {
        "Auth-Status": "Temporary server problem, try again later",
        "Auth-Error-Code": "451 4.3.2",
        "Auth-Wait": str(RETRY_SECONDS),
    }
    return JSONResponse({"error": problem.message}, 200, {**NO_STORE, **headers})
