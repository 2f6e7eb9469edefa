"""SCIM error responses (RFC 7644, section 3.12)."""

from typing import Any

from pydantic import ValidationError
from scim2_models import Error, SCIMException
from starlette.responses import Response

from graph.execution.public_errors import error_extensions
from graph.http.graphql_request import RequestRejected, encode_json
from models.errors import (
    AuthenticationFailed,
    Conflict,
    Forbidden,
    NotFound,
    RateLimited,
    RequestError,
    ServiceUnavailable,
    StaleObject,
    Unauthenticated,
)

MEDIA_TYPE = "application/scim+json"
ERROR_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:Error"
MAX_DETAIL_LENGTH = 2000  # characters
MAX_ERRORS_IN_DETAIL = 10

UNAUTHENTICATED = 401
STATUS_AND_TYPE_BY_ERROR: dict[type[RequestError], tuple[int, str | None]] = {
    Conflict: (409, "uniqueness"),
    Unauthenticated: (UNAUTHENTICATED, None),
    AuthenticationFailed: (UNAUTHENTICATED, None),
    Forbidden: (403, None),
    NotFound: (404, None),
    StaleObject: (412, None),
    RateLimited: (429, None),
    ServiceUnavailable: (503, None),
}

ATTRIBUTE_NAMES = {  # of the fields of mutations
    "username": "userName",
    "address": "emails",
    "main": "emails",
    "addresses": "emails",
    "name": "displayName",
    "language": "preferredLanguage",
    "suspended": "active",
}


def scim_response(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a response with a SCIM resource or message."""
    return Response(
        encode_json(body), status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE
    )


def resource_response(
    body: dict[str, Any], tag: str, status: int = 200, location: str | None = None
) -> Response:
    """Return a response with one resource, its entity tag and, if it is new, its URL."""
    headers = {"ETag": tag} if location is None else {"ETag": tag, "Location": location}
    return scim_response(body, status, headers)


def not_modified_response(tag: str) -> Response:
    """Return the response to a client that has the version with this entity tag."""
    return Response(status_code=304, headers={"ETag": tag})


def error_response(
    status: int,
    detail: str,
    scim_type: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return a SCIM error response."""
    body = {"schemas": [ERROR_SCHEMA], "status": str(status), "detail": detail[:MAX_DETAIL_LENGTH]}
    if scim_type:
        body["scimType"] = scim_type
    return scim_response(body, status, headers)


def response_of_expected_error(error: Exception) -> Response | None:
    """Return the response for an error that a request can cause; None for any other."""
    if isinstance(error, SCIMException):
        return error_response(error.status, str(error), error.scim_type or None)
    if isinstance(error, ValidationError):
        return _response_of_validation_error(error)
    if isinstance(error, RequestError):
        return _response_of_request_error(error)
    return None


def _response_of_validation_error(error: ValidationError) -> Response:
    """Return the response for a malformed resource or message. It has no values of the request."""
    errors = Error.from_validation_errors(error)[:MAX_ERRORS_IN_DETAIL]
    detail = "; ".join(item.detail or "" for item in errors)
    return error_response(errors[0].status or 400, detail, errors[0].scim_type)


def _response_of_request_error(error: RequestError) -> Response:
    """Return the response for a typed error of an operation."""
    detail = " ".join(map(_detail, error.all_errors))
    first_error = error.all_errors[0]
    if isinstance(first_error, NotFound) and first_error.path[:1] not in ([], ["users"], ["id"]):
        return error_response(400, detail, "invalidValue")  # what a value refers to
    status, scim_type = next(
        (
            status_and_type
            for kind, status_and_type in STATUS_AND_TYPE_BY_ERROR.items()
            if isinstance(first_error, kind)
        ),
        (400, "invalidValue"),
    )
    headers = {}
    if status == UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(first_error, RateLimited):
        headers["Retry-After"] = str(error_extensions(first_error)["retryAfterSeconds"])
    return error_response(status, detail, scim_type, headers)


def _detail(error: RequestError) -> str:
    """Return the message of an error with the attribute that it is about."""
    names = [part for part in error.path if part != "set"]
    if not names:
        return error.message
    return f"{'.'.join([ATTRIBUTE_NAMES.get(names[0], names[0]), *names[1:]])}: {error.message}"


def response_of_rejection(rejection: RequestRejected) -> Response:
    """Return the response for a request that was refused before it was run."""
    body = {
        "schemas": [ERROR_SCHEMA],
        "status": str(rejection.status),
        "detail": rejection.message,
    }
    headers = {"Cache-Control": "no-store", **rejection.headers}
    return rejection.response_class(encode_json(body), rejection.status, headers, MEDIA_TYPE)
