"""The paths and methods of SCIM's routes. This module imports nothing of scim2_models."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

ScimEndpoint = Callable[[Request], Awaitable[Response]]

PREFIX = "/scim/v2"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
PATHS = (  # the first path that matches is used
    "/Users/.search",
    "/Groups/.search",
    "/.search",
    "/ServiceProviderConfig",
    "/Schemas",
    "/Schemas/{id}",
    "/ResourceTypes",
    "/ResourceTypes/{id}",
    "/Users",
    "/Users/{id}",
    "/Groups",
    "/Groups/{id}",
    "/Me",
    "/Bulk",
    "/{path:path}",
)
