"""What all SCIM routes share: authentication, rate limits and error responses."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response

from graph.http.admission_control import AdmissionControl
from graph.http.http_errors import (
    client_ip_address,
    request_id_from_scope,
    run_handler_and_convert_errors,
)
from graph.http.rate_budgets import min_capacity_of_viewer, payer_key
from graph.http.upload_body import AuthenticateRequest
from graph.scim.errors import (
    error_response,
    response_of_expected_error,
    response_of_rejection,
)
from graph.scim.route_table import PREFIX, ScimEndpoint
from models.errors import Forbidden, RateLimited
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.files.signed_urls import absolute_url
from resolvers.viewer import GuardRule

# Points of the rate budget; a point is about ten microseconds of work. A change costs less than its
# work: Microsoft Entra ID requires 25 requests per second, which is the rate of a user's budget.
READ_POINTS = 80
WRITE_POINTS = 100
ACCOUNT_POINTS = 20  # each account or group of a page
MEMBER_POINTS = 2  # each member of a group that is changed or returned
PASSWORD_POINTS = 1000  # the hash of a password
ACCOUNTS_PER_SCAN_POINT = 10  # accounts that are compared with a filter, or sorted
ACCOUNTS_PER_INDEX_POINT = 100  # accounts that are compared in an index, without their rows
QUERY_SECONDS = 10.0
RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class ScimService:
    """The environment, authentication and limits of the SCIM routes."""

    environment: Environment
    authenticate_request: AuthenticateRequest
    admission: AdmissionControl


@dataclass(frozen=True, slots=True)
class ScimCall:
    """An authenticated request with its context."""

    ctx: Context
    request: Request
    admission: AdmissionControl

    def charge(self, points: int) -> None:
        """Charge the rate budget of the API key for work. Raises RateLimited.

        A full budget can pay for any request.
        """
        self.admission.charge_viewer(self.ctx, min(points, min_capacity_of_viewer(self.ctx.viewer)))

    def charge_members(self, count: int) -> None:
        """Charge for members of groups. Raises RateLimited."""
        self.charge(count * MEMBER_POINTS)

    @property
    def base_url(self) -> str:
        """The URL of the SCIM endpoints, without a slash at the end."""
        return absolute_url(self.ctx.environment, PREFIX, str(self.request.base_url))


ScimHandler = Callable[[ScimCall], Awaitable[Response]]


async def _authorize_scim_key_with_full_scope(
    service: ScimService, request: Request, *, is_write: bool
) -> Context:
    """Authenticate a request and return its context.

    Raises Unauthenticated without a valid credential, and Forbidden unless it is an API key with
    the scope SCIM that is restricted to domains, or if a read-only key writes.
    """
    client_ip = client_ip_address(request)
    viewer = await service.authenticate_request(request.headers, client_ip)
    viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, scope=Scope.SCIM))
    is_key_for_domains = viewer.api_key_id and not viewer.user_id and viewer.administered_domains
    if not is_key_for_domains or viewer.role is not Role.DOMAIN_ADMIN:
        text = "SCIM requires an API key that is restricted to domains."
        raise Forbidden(text, requires="an API key for domains")
    if viewer.read_only and is_write:
        raise Forbidden("The API key is read-only.", requires="a key for writing")
    # The operations require FULL for other users. Only SCIM operations are reachable from here.
    viewer = replace(viewer, scopes=frozenset({Scope.FULL}))
    request_id = request_id_from_scope(request.scope, service.environment)
    return Context(service.environment, viewer, client_ip=client_ip, request_id=request_id)


async def _authenticate_charge_and_handle(
    service: ScimService, request: Request, handler: ScimHandler, *, is_write: bool
) -> Response:
    """Charge the rate budget of the API key and run the handler in a concurrency slot."""
    ctx = await _authorize_scim_key_with_full_scope(service, request, is_write=is_write)
    call = ScimCall(ctx, request, service.admission)
    call.charge(WRITE_POINTS if is_write else READ_POINTS)
    slot = service.admission.operation_limiter.acquire(payer_key(ctx))
    if slot is None:
        text = "Too many requests of this API key run at once."
        raise RateLimited(text, retry_after=RETRY_AFTER)
    try:
        return await handler(call)
    finally:
        slot.release()


def scim_endpoint(
    service: ScimService, handlers: Mapping[str, ScimHandler], *, reads_by_post: bool = False
) -> ScimEndpoint:
    """Return the endpoint of a route with a handler for each HTTP method.

    `reads_by_post` is true for a search, which is no change although its method is POST.
    """

    async def respond(request: Request) -> Response:
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(handlers)
            text = f"The method {request.method} is not allowed here."
            return error_response(405, text, headers={"Allow": allowed})
        is_write = request.method not in ("GET", "HEAD") and not reads_by_post
        return await _authenticate_charge_and_handle(service, request, handler, is_write=is_write)

    async def endpoint(request: Request) -> Response:
        return await run_handler_and_convert_errors(
            request,
            service.environment,
            respond,
            endpoint="scim",
            error_response=response_of_expected_error,
            rejection_response=response_of_rejection,
        )

    return endpoint
