"""The errors of a result as clients see them: with codes, without internal details."""

from typing import Any

from graphql import GraphQLError
from strawberry.exceptions import MissingQueryError, StrawberryInputCoercionError

from graph.execution.damaged_data import damage_error_body
from graph.execution.deadlines import DeadlineExceeded
from graph.execution.response_size import ResponseTooLarge
from graph.http.admission_control import AdmissionControl
from graph.types.error_references import not_found_error_with_noun
from mail.storage.blobs.errors import CorruptBlob
from models.errors import (
    ErrorCode,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    RequestError,
    SecondFactorRequired,
    Unauthenticated,
)
from models.store.outages import StorageUnavailable, storage_failure
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint

# extensions.code of a refused query
ERROR_CODE_BY_CONSTRAINT = {
    ValidationConstraint.ID: "BAD_ID",
    ValidationConstraint.CURSOR: "BAD_CURSOR",
    ValidationConstraint.PAGE: "BAD_PAGINATION",
}
EXPECTED_ERRORS = (
    ResponseTooLarge,
    CorruptBlob,
    RequestError,
    DeadlineExceeded,
    MissingQueryError,
    StrawberryInputCoercionError,
)


def is_bug(error: GraphQLError) -> bool:
    """True if an error is a bug of the server: not expected and not caused by the client."""
    cause = error.original_error
    if cause is None or isinstance(cause, EXPECTED_ERRORS) or storage_failure(cause):
        return False
    if isinstance(cause, GraphQLError):  # of the type of an argument or of a field's value
        inside = error.path is not None and not error.message.startswith("Argument '")
        return inside and "code" not in (error.extensions or {})
    return True


def make_errors_public(result: Any, context: object) -> None:
    """Replace the errors of a result by public errors: with codes, without internal details."""
    errors: list[GraphQLError] | None = getattr(result, "errors", None)
    if errors:
        result.errors = [_public_error(error, context) for error in errors]


def _public_error(error: GraphQLError, context: object) -> GraphQLError:
    message, extensions = error.message, error.extensions or {}
    viewer = getattr(context, "viewer", None)
    if is_bug(error):
        message = "Internal error."
        extensions = {
            "code": "INTERNAL_SERVER_ERROR",
            "requestId": getattr(context, "request_id", ""),
        }
    elif isinstance(error.original_error, CorruptBlob):
        message, extensions = damage_error_body(getattr(context, "request_id", ""))
    elif failure := storage_failure(error.original_error):
        message, extensions = failure.message, outage_extensions(failure)
    elif isinstance(error.original_error, RequestError):
        extensions = error_extensions(error.original_error)
        if isinstance(error.original_error, NotFound):
            message = not_found_error_with_noun(error.original_error).message
    elif isinstance(error.original_error, ResponseTooLarge | DeadlineExceeded):
        extensions = error.original_error.extensions
    elif isinstance(error.original_error, StrawberryInputCoercionError):
        message = "A member of an input is null, but must be omitted or have a value."
        extensions = {"code": "BAD_USER_INPUT"}
    elif "code" not in extensions:  # a variable or an argument of the wrong type
        extensions = {"code": "BAD_USER_INPUT"}
    guards: AdmissionControl | None = getattr(context, "guards", None)
    if (
        viewer is None
        or viewer.role is Role.PUBLIC
        or (guards and guards.introspection_error_code(viewer))
    ):
        message = message.partition(" Did you mean ")[0]
    public_error = GraphQLError(message, path=error.path, extensions=extensions)
    public_error.locations = error.locations
    return public_error


def outage_extensions(failure: StorageUnavailable) -> dict[str, Any]:
    """Return the extensions of a temporary failure: the component and the time to retry."""
    seconds = max(1, round(failure.retry_after.total_seconds()))
    return {
        "code": "UNAVAILABLE",
        "component": str(failure.component),
        "retryAfter": f"PT{seconds}S",
        "retryAfterSeconds": seconds,
    }


def error_extensions(error: RequestError) -> dict[str, Any]:
    """Return the extensions of a typed error: the code, and for RateLimited the seconds to wait."""
    match error:
        case Unauthenticated():
            is_pending = isinstance(error, SecondFactorRequired)
            return {"code": "SECOND_FACTOR_REQUIRED" if is_pending else "UNAUTHENTICATED"}
        case Forbidden():
            return {"code": "FORBIDDEN"}
        case InvalidInput():
            return {"code": ERROR_CODE_BY_CONSTRAINT.get(error.constraint, "BAD_USER_INPUT")}
        case RateLimited():
            seconds = max(1, round(error.retry_after.total_seconds()))
            return {"code": "RATE_LIMITED", "retryAfterSeconds": seconds}
        case _ if error.code is ErrorCode.VALIDATION:
            return {"code": "BAD_USER_INPUT"}
        case _:
            return {"code": str(error.code)}
