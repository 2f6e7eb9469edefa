"""The settings of mail programs by Thunderbird's autoconfig and Outlook's Autodiscover.

Only the domain is looked up, so responses and log entries do not reveal accounts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from graph.http.admission_control import AdmissionControl
from graph.http.graphql_request import RequestRejected, bad_request, is_compressed, read_body
from graph.http.http_errors import (
    client_ip_address,
    rejection_of_error,
    request_id_from_scope,
    run_handler_and_convert_errors,
)
from mail.addresses.address_syntax import (
    normalize_and_validate_address,
    normalize_and_validate_domain,
)
from mail.domains.client_configuration import (
    OUTLOOK_RESPONSE_SCHEMA,
    InvalidAutodiscoverRequest,
    outlook_settings,
    parse_autodiscover_request,
    thunderbird_configuration,
)
from mail.domains.submission_servers import SubmissionServer, public_submission_servers
from models.errors import InvalidInput, NotFound, RequestError
from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.runtime.environment import Environment
from resolvers.domains.served_domains import find_served_domain_id

AUTOCONFIG_PATHS = (
    "/.well-known/autoconfig/mail/config-v1.1.xml",
    "/mail/config-v1.1.xml",  # of the host autoconfig.DOMAIN
)
AUTODISCOVER_PATHS = ("/autodiscover/autodiscover.xml", "/Autodiscover/Autodiscover.xml")
AUTOCONFIG_HOST_PREFIX = "autoconfig."
MAX_QUERY_BYTES = 1024
MAX_BODY_BYTES = 16 << 10
BODY_SECONDS = 10.0
REQUEST_POINTS = 100  # of the rate budget of the network
CONTENT_TYPE = "text/xml; charset=utf-8"
CACHE_CONTROL = "public, max-age=3600"
NO_STORE = "no-store"  # of responses with an email address, and of refusals
STATUS_BY_CODE = {"RATE_LIMITED": 429, "UNAVAILABLE": 503}
FIRST_SERVER_ERROR = 500


class ConfigurationService(StrEnum):
    """The protocol that a mail program requests its settings by."""

    AUTOCONFIG = "autoconfig"
    AUTODISCOVER = "autodiscover"


@dataclass(slots=True)
class ConfigurationRequest:
    """A request for settings, with the domain as soon as it is known."""

    request: Request
    environment: Environment
    domain: str | None = None
    domain_id: int | None = None

    async def note_domain_and_require_servers(self, domain: str) -> tuple[SubmissionServer, ...]:
        """Note the domain, and return the submission servers for it.

        Raises NotFound if the domain is not served here, or if there is no submission server.
        """
        self.domain = domain
        self.domain_id = await find_served_domain_id(self.environment, domain)
        servers = public_submission_servers(self.environment.options)
        if self.domain_id is None or not servers:
            raise NotFound(domain)
        return servers


ConfigurationHandler = Callable[[ConfigurationRequest], Awaitable[Response]]


def configuration_routes(environment: Environment, admission: AdmissionControl) -> list[Route]:
    """Return the routes of autoconfig and Autodiscover."""
    autoconfig_endpoint = _endpoint(
        environment, admission, ConfigurationService.AUTOCONFIG, _serve_autoconfig
    )
    autodiscover_endpoint = _endpoint(
        environment, admission, ConfigurationService.AUTODISCOVER, _serve_autodiscover
    )
    return [
        *(Route(path, autoconfig_endpoint) for path in AUTOCONFIG_PATHS),
        *(Route(path, autodiscover_endpoint, methods=["POST"]) for path in AUTODISCOVER_PATHS),
    ]


def _endpoint(
    environment: Environment,
    admission: AdmissionControl,
    service: ConfigurationService,
    handler: ConfigurationHandler,
) -> Callable[[Request], Awaitable[Response]]:
    """Create the endpoint of a service, which calls the handler and logs the request.

    The endpoint counts REQUEST_POINTS against the rate limit of the IP address, and converts errors
    to responses.
    """

    async def serve_and_log(request: Request) -> Response:
        configuration_request = ConfigurationRequest(request, environment)

        async def charge_and_handle(request: Request) -> Response:
            admission.charge_anonymous_request(client_ip_address(request), REQUEST_POINTS)
            return await handler(configuration_request)

        response = await run_handler_and_convert_errors(
            request,
            environment,
            charge_and_handle,
            endpoint="autoconfig",
            error_response=_response_of_expected_error,
            rejection_response=_rejection_response,
        )
        request_id = request_id_from_scope(request.scope, environment)
        _log_request(configuration_request, service, response.status_code, request_id)
        return response

    return serve_and_log


def _response_of_expected_error(error: Exception) -> Response | None:
    if isinstance(error, NotFound):
        message = "There are no settings for this domain."
        return _rejection_response(RequestRejected(404, "NOT_FOUND", message))
    if isinstance(error, RequestError):
        return _rejection_response(rejection_of_error(error, STATUS_BY_CODE))
    return None


def _rejection_response(rejection: RequestRejected) -> Response:
    """Return a rejection as one line of text, since mail programs read no JSON."""
    headers = {"Cache-Control": NO_STORE, **rejection.headers}
    return rejection.response_class(
        f"{rejection.message}\n", rejection.status, headers, PlainTextResponse.media_type
    )


def _xml_response(document: bytes, cache_control: str) -> Response:
    return Response(document, 200, {"Cache-Control": cache_control}, CONTENT_TYPE)


async def _serve_autoconfig(configuration_request: ConfigurationRequest) -> Response:
    """Serve the settings of the domain of `emailaddress`, or else of the host name."""
    request = configuration_request.request
    if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
        raise RequestRejected(
            414, "BAD_USER_INPUT", f"A query string has at most {MAX_QUERY_BYTES} bytes."
        )
    address = request.query_params.get("emailaddress", "")
    domain = _domain_of_address(address) if address else _require_domain_of_host_header(request)
    servers = await configuration_request.note_domain_and_require_servers(domain)
    return _xml_response(thunderbird_configuration(domain, servers), CACHE_CONTROL)


def _domain_of_address(address: str) -> str:
    """Return the domain of an email address. Raises InvalidInput if it is not an address."""
    return normalize_and_validate_address(address, path="emailaddress").rpartition("@")[2]


def _require_domain_of_host_header(request: Request) -> str:
    """Return the domain in the Host header, which may begin with `autoconfig.`.

    Raises NotFound if it is not a domain name.
    """
    host = request.headers.get("host", "")
    name = (host.rpartition(":")[0] or host).lower().removeprefix(AUTOCONFIG_HOST_PREFIX)
    try:
        return normalize_and_validate_domain(name)
    except InvalidInput:
        raise NotFound("host") from None


async def _serve_autodiscover(configuration_request: ConfigurationRequest) -> Response:
    """Serve the settings of the address in the body."""
    request = configuration_request.request
    if is_compressed(request.headers):
        raise RequestRejected(
            415, "BAD_USER_INPUT", "The body must not be compressed.", {"Connection": "close"}
        )
    body = await read_body(
        request.headers, request.receive, limit=MAX_BODY_BYTES, timeout=BODY_SECONDS
    )
    try:
        autodiscover_request = parse_autodiscover_request(body)
    except InvalidAutodiscoverRequest as problem:
        raise bad_request(str(problem)) from problem
    if autodiscover_request.response_schema not in (None, OUTLOOK_RESPONSE_SCHEMA):
        raise bad_request(f"AcceptableResponseSchema must be {OUTLOOK_RESPONSE_SCHEMA}.")
    address = normalize_and_validate_address(autodiscover_request.address, path="EMailAddress")
    servers = await configuration_request.note_domain_and_require_servers(
        address.rpartition("@")[2]
    )
    return _xml_response(outlook_settings(address, servers[0]), NO_STORE)


def _log_request(
    configuration_request: ConfigurationRequest,
    service: ConfigurationService,
    status: int,
    request_id: str,
) -> None:
    """Record the request with its domain, but without its email address."""
    environment, request = configuration_request.environment, configuration_request.request
    level = LogLevel.ERROR if status >= FIRST_SERVER_ERROR else LogLevel.INFO
    if not environment.logs.is_recorded(LogComponent.AUTODISCOVER, level):
        return
    fields: dict[str, Any] = {
        "type": "autodiscover",
        "service": service.value,
        "userAgent": request.headers.get("user-agent"),
        "domain": configuration_request.domain,
        "method": request.method,
        "status": status,
        "ip": client_ip_address(request),
    }
    environment.logs.enqueue_or_drop_entry(
        NewLogEntry(
            environment.now(),
            LogComponent.AUTODISCOVER,
            level,
            __name__,
            f"{service} for {configuration_request.domain or 'no domain'}: {status}",
            fields,
            domain_id=configuration_request.domain_id,
            correlation_id=request_id,
        )
    )
