"""The service that all OAuth routes of a process share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graph.http.admission_control import AdmissionControl
from graph.http.graphql_request import RequestRejected
from graph.http.http_errors import (
    client_ip_address,
    rejection_of_error,
    run_handler_and_convert_errors,
)
from graph.oauth.request_parameters import InvalidParameters
from graph.types import global_ids
from models.errors import RequestError
from models.runtime.environment import Environment
from resolvers.context import Context
from resolvers.oauth.issuer import Issuer, require_issuer
from resolvers.viewer import Viewer

PROGRAM_POINTS, PAGE_POINTS = 40, 100  # of the rate budget of the network
NO_STORE = {"Cache-Control": "no-store"}
STATUS_BY_CODE = {"RATE_LIMITED": 429, "UNAVAILABLE": 503, "LIMIT_REACHED": 503}
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OauthService:
    """The environment and the rate budgets of the OAuth routes."""

    environment: Environment
    admission: AdmissionControl

    def issuer(self) -> Issuer:
        """Return the issuer. The subject of a user is its ID in GraphQL.

        Raises ServiceUnavailable if no public URL is set.
        """
        return require_issuer(self.environment.options, partial(global_ids.encode, "User"))

    def context(self, request: Request) -> Context:
        """Return the context of an anonymous client."""
        return Context(self.environment, Viewer(), client_ip=client_ip_address(request))

    def charge(self, request: Request, points: int) -> None:
        """Charge the rate budget of the client's network. Raises RateLimited."""
        self.admission.charge_anonymous_request(client_ip_address(request), points)

    def charging_json_endpoint(self, handler: Handler, *, points: int = PROGRAM_POINTS) -> Handler:
        """Return an endpoint that charges a request and turns errors into JSON."""

        async def charge_and_handle(request: Request) -> Response:
            self.charge(request, points)
            return await handler(request)

        async def serve(request: Request) -> Response:
            return await run_handler_and_convert_errors(
                request,
                self.environment,
                charge_and_handle,
                endpoint="oauth",
                error_response=_response_of_expected_error,
                rejection_response=_response_of_rejection,
            )

        return serve


def oauth_error(error: str, description: str, status: int = 400) -> Response:
    """Return an error in the form of RFC 6749, section 5.2."""
    return JSONResponse({"error": error, "error_description": description}, status, NO_STORE)


def _response_of_expected_error(error: Exception) -> Response | None:
    if isinstance(error, InvalidParameters):
        return oauth_error("invalid_request", error.description, error.status)
    if isinstance(error, RequestError):
        return _response_of_rejection(rejection_of_error(error, STATUS_BY_CODE))
    return None


def _response_of_rejection(rejection: RequestRejected) -> Response:
    error = "server_error" if rejection.status == 500 else "temporarily_unavailable"  # noqa: PLR2004
    response = oauth_error(error, rejection.message, rejection.status)
    response.headers.update(rejection.headers)
    return response
