"""The endpoint where programs register themselves as public clients (RFC 7591)."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from graph.http.graphql_request import JSON, RequestRejected, is_compressed, read_body
from graph.oauth.service import NO_STORE, OauthService, oauth_error
from resolvers.oauth import registration
from resolvers.oauth.registration import RegistrationRefused

REGISTRATION_PATH = "/oauth/register"
MAX_METADATA_BYTES = 16 << 10
METADATA_SECONDS = 10.0
REGISTRATION_POINTS = 5_000  # of the rate budget of the network: one registration in 20 seconds


def registration_route(service: OauthService) -> Route:
    """Return the route of the endpoint. While registration is turned off, it returns 404."""

    async def serve(request: Request) -> Response:
        return await _register_client_and_respond(service, request)

    return Route(REGISTRATION_PATH, service.charging_json_endpoint(serve), methods=["POST"])


async def _register_client_and_respond(service: OauthService, request: Request) -> Response:
    if not service.environment.options.oauth_registration:
        return oauth_error("access_denied", "Registration of clients is turned off", 404)
    service.issuer()  # without a public URL there is no OAuth
    try:
        columns = registration.validated_registration(await _read_metadata(request))
    except RegistrationRefused as refusal:
        return oauth_error(refusal.error, refusal.description)
    except RequestRejected as rejection:
        description = rejection.message.rstrip(".")
        return oauth_error("invalid_client_metadata", description, rejection.status)
    service.charge(request, REGISTRATION_POINTS)
    registered = await registration.register_client(service.context(request), columns)
    return JSONResponse(registered, 201, NO_STORE)


async def _read_metadata(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body. Raises RequestRejected and RegistrationRefused."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON or is_compressed(request.headers):
        raise RequestRejected(415, "", f"The body must be {JSON}.")
    body = await read_body(
        request.headers, request.receive, limit=MAX_METADATA_BYTES, timeout=METADATA_SECONDS
    )
    try:
        metadata = json.loads(body)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise RegistrationRefused("invalid_client_metadata", "The body must be a JSON object")
    return metadata
