"""The routes under /scim/v2 (RFC 7644, section 3.2).

The first request imports their endpoints, with scim2_models: few servers use SCIM, and the import
takes about a tenth of the time that a server needs to start.
"""

import asyncio
from collections.abc import Mapping
from functools import cache

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from graph.http.admission_control import AdmissionControl
from graph.http.upload_body import AuthenticateRequest
from graph.scim.route_table import METHODS, PATHS, PREFIX, ScimEndpoint
from models.runtime.environment import Environment


def scim_routes(
    environment: Environment,
    authenticate_request: AuthenticateRequest,
    admission: AdmissionControl,
) -> list[Route]:
    """Create the routes of SCIM.

    `authenticate_request` gets headers and IP address, and raises Unauthenticated for a wrong
    credential.
    """

    @cache
    def import_endpoints() -> Mapping[str, ScimEndpoint]:
        from graph.scim.endpoints import scim_endpoints  # noqa: PLC0415 - see the module's docstring
        from graph.scim.service import ScimService  # noqa: PLC0415

        return scim_endpoints(ScimService(environment, authenticate_request, admission))

    def route(path: str) -> Route:
        async def respond(request: Request) -> Response:
            endpoints = await asyncio.to_thread(import_endpoints)
            return await endpoints[path](request)

        return Route(PREFIX + path, respond, methods=METHODS)

    return [route(path) for path in PATHS]
