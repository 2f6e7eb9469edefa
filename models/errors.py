"""Errors of requests. They are raised anywhere below graph/, which converts each to data.

* RequestError
  - InvalidInput           the input is wrong; `constraint` names the rule
  - NotFound               no such object, or none that the viewer can see
  - Forbidden              the viewer can see the object, but not do this
  - Conflict               it collides with an existing object
  - StaleObject            it changed after the caller read it
  - AuthenticationFailed   wrong credentials
  - Unauthenticated        no credential, or an expired one
    - SecondFactorRequired the sign-in lacks its second factor
  - LimitReached           a count or size limit of domain or platform
  - OverQuota              it would exceed `limit` bytes
  - RateLimited            too often; wait `retry_after`
  - ScriptError            a Sieve script has an error at `line` and `column`
  - DamagedContent         stored bytes are lost or damaged
  - ServiceUnavailable     a component does not answer, or the transaction was rolled back
"""

from collections.abc import Container, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import Self, TypeVar

from models.validation_constraints import ValidationConstraint

Value = TypeVar("Value")


class ErrorCode(StrEnum):
    """Stable error codes; clients switch on them."""

    VALIDATION = "VALIDATION"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    STALE = "STALE"
    FORBIDDEN = "FORBIDDEN"
    FORBIDDEN_OPERATION = "FORBIDDEN_OPERATION"
    AUTHENTICATION_FAILED = "AUTHENTICATION_FAILED"
    LIMIT_REACHED = "LIMIT_REACHED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"
    IN_USE = "IN_USE"
    NO_SESSION = "NO_SESSION"
    USER_OFFLINE = "USER_OFFLINE"
    UNAVAILABLE = "UNAVAILABLE"
    ABORTED = "ABORTED"
    SIEVE_COMPILE = "SIEVE_COMPILE"
    CONNECTOR_FAILURE = "CONNECTOR_FAILURE"
    DAMAGED = "DAMAGED"


class RequestError(Exception):
    """A valid request that is refused. Any other exception that reaches the client is a bug."""

    code = ErrorCode.VALIDATION

    def __init__(self, message: str, *, path: Sequence[str] = (), index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = list(path)  # of the input field: ["set", "expiresAt"]
        self.index = index  # of the item, if a field on the path is a list; not part of `path`

    def copy_with_path(self, path: Sequence[str]) -> Self:
        """Return a copy with another path. A cached error is raised for several inputs."""
        other = type(self).__new__(type(self), *self.args)
        vars(other).update(vars(self), path=list(path))
        return other

    @property
    def all_errors(self) -> list["RequestError"]:
        """The errors that this error consists of: itself, or all errors of a MultipleErrors."""
        return [self]


class InvalidInput(RequestError):
    """The input breaks the rule `constraint`.

    If only certain values are valid, `allowed_values` has them.
    """

    code = ErrorCode.VALIDATION

    def __init__(
        self,
        message: str,
        *,
        constraint: ValidationConstraint,
        path: Sequence[str] = (),
        index: int | None = None,
        allowed_values: Iterable[object] | None = None,
    ) -> None:
        super().__init__(message, path=path, index=index)
        self.constraint = constraint
        self.allowed_values = None if allowed_values is None else [*map(str, allowed_values)]


class MultipleErrors(RequestError):
    """All errors of one input, found in one pass."""

    code = ErrorCode.VALIDATION

    def __init__(self, errors: Sequence[RequestError]) -> None:
        super().__init__(" ".join(refusal.message for refusal in errors))
        self.errors = list(errors)

    @property
    def all_errors(self) -> list[RequestError]:
        """The errors that were found."""
        return self.errors


def raise_errors(errors: Sequence[RequestError]) -> None:
    """Raise the error, or MultipleErrors if there are several. Does nothing without errors."""
    if errors:
        raise errors[0] if len(errors) == 1 else MultipleErrors(errors)


class ErrorCollector:
    """Collects the errors of an input's fields; of each field the first error counts.

    Each independent check goes into a `with collector.collecting():`. Call `raise_collected` before
    the checked values are used. Errors other than InvalidInput, LimitReached and MultipleErrors are
    raised at once.
    """

    def __init__(self) -> None:
        self._errors_by_path: dict[tuple[str, ...], RequestError] = {}  # by path

    def collecting(self) -> Self:
        """Return a context manager that collects the error of a check."""
        return self

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, wrong: BaseException | None, _trace: object
    ) -> bool:
        if not isinstance(wrong, InvalidInput | LimitReached | MultipleErrors):
            return False
        for error in wrong.all_errors:
            self._errors_by_path.setdefault(tuple(error.path), error)
        return True

    def raise_collected(self) -> None:
        """Raise the collected error, or MultipleErrors in the order of the fields."""
        raise_errors(sorted(self._errors_by_path.values(), key=_sort_key))


def _sort_key(error: RequestError) -> list[str]:
    """Return a key for the order of fields in the input, which is alphabetical."""
    return [part.zfill(9) if part.isdecimal() else part for part in error.path]


class NotFound(RequestError):
    """No such object, or none that the viewer can see: the two must look the same.

    `noun` is the type of the object for people. Without it, `graph/types/error_references.py`
    takes the type from the input.
    """

    code = ErrorCode.NOT_FOUND

    def __init__(
        self,
        ref: str,
        *,
        path: Sequence[str] = ("id",),
        index: int | None = None,
        noun: str = "Object",
    ) -> None:
        super().__init__(not_found_text_without_numeric_ref(noun, ref), path=path, index=index)
        self.ref = ref


def not_found_text_without_numeric_ref(noun: str, ref: str) -> str:
    """Return the message for an object that was not found, with its reference unless it is a key.

    A row key says nothing to users.
    """
    return f"{noun} not found: {ref}." if ref and not ref.isdecimal() else f"{noun} not found."


class Forbidden(RequestError):
    """The credential lacks `requires`; if that is None, no credential allows this."""

    def __init__(
        self,
        message: str,
        *,
        requires: str | None = None,
        path: Sequence[str] = (),
        index: int | None = None,
    ) -> None:
        super().__init__(message, path=path, index=index)
        self.code = ErrorCode.FORBIDDEN if requires else ErrorCode.FORBIDDEN_OPERATION
        self.requires = requires


class CredentialWithoutUser(Forbidden):
    """The credential belongs to no user, and the input names none."""


class Conflict(RequestError):
    """The change collides with an existing object."""

    code = ErrorCode.CONFLICT


class StaleObject(RequestError):
    """The object has changed since the caller read it; its MODSEQ is now `current_modseq`."""

    code = ErrorCode.STALE

    def __init__(self, *, current_modseq: int, path: Sequence[str] = ()) -> None:
        super().__init__(
            "The object changed after you read it: read it again, then retry.", path=path
        )
        self.current_modseq = current_modseq


class AuthenticationFailed(RequestError):
    """Wrong credentials. The message is the same whether the user exists or not."""

    code = ErrorCode.AUTHENTICATION_FAILED

    def __init__(
        self,
        message: str = "The username or password is wrong.",
        *,
        required_two_factor_methods: Sequence[str] = (),
        path: Sequence[str] = (),
    ) -> None:
        super().__init__(message, path=path)
        # the password is right; the second factors that are accepted
        self.required_two_factor_methods = list(required_two_factor_methods)


class Unauthenticated(RequestError):
    """A valid credential is required. It is a GraphQL error, never part of a payload."""

    code = ErrorCode.AUTHENTICATION_FAILED

    message = "Sign in first: the request has no valid credential."

    def __init__(self) -> None:
        super().__init__(type(self).message)


class SecondFactorRequired(Unauthenticated):
    """The sign-in of the credential lacks its second factor."""

    message = "The sign-in lacks its second factor: call totpVerify or webauthnVerify."


class LimitReached(RequestError):
    """More than a limit of the domain or of the platform."""

    code = ErrorCode.LIMIT_REACHED

    def __init__(
        self,
        message: str,
        *,
        limit: int,
        used: int,
        path: Sequence[str] = (),
        index: int | None = None,
    ) -> None:
        super().__init__(message, path=path, index=index)
        self.limit = limit
        self.used = used


def require_within_limit(used: int, limit: int, message: str, *, path: Sequence[str]) -> None:
    """Raise LimitReached if `used` is above `limit`, which comes from a setting."""
    if used > limit:
        raise LimitReached(message, limit=limit, used=used, path=path)


def check_count_from_one_to_limit(
    count: int, limit: int, message: str, *, path: Sequence[str]
) -> None:
    """Raise InvalidInput if `count` is 0, or LimitReached if it is above `limit`."""
    if not count:
        raise InvalidInput(message, constraint=ValidationConstraint.MIN, path=path)
    require_within_limit(count, limit, message, path=path)


class OverQuota(RequestError):
    """The change would exceed the quota of the user."""

    code = ErrorCode.QUOTA_EXCEEDED

    def __init__(self, message: str = "", *, used: int = 0, limit: int = 0) -> None:
        super().__init__(message or f"The account is full: {used} of {limit} bytes are used.")
        self.used = used
        self.limit = limit


class RateLimited(RequestError):
    """The caller does this too often."""

    code = ErrorCode.RATE_LIMITED

    def __init__(self, message: str, *, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InUse(RequestError):
    """Open sessions or running tasks prevent the change."""

    code = ErrorCode.IN_USE

    def __init__(
        self, message: str, *, sessions: int, tasks: int = 0, path: Sequence[str] = ()
    ) -> None:
        super().__init__(message, path=path)
        self.sessions, self.tasks = sessions, tasks


class ScriptError(RequestError):
    """A Sieve script has an error; line and column begin with 1."""

    code = ErrorCode.SIEVE_COMPILE

    def __init__(self, message: str, *, line: int, column: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.line, self.column = line, column


class ConnectorFailure(RequestError):
    """The remote server of a connector can't be reached, or refuses the connection."""

    code = ErrorCode.CONNECTOR_FAILURE

    def __init__(self, message: str, *, stage: str, remote_message: str | None = None) -> None:
        super().__init__(message)
        self.stage, self.remote_message = stage, remote_message


class DamagedContent(RequestError):
    """Stored bytes that the request needs are lost or damaged. An administrator must act."""

    code = ErrorCode.DAMAGED

    def __init__(self) -> None:
        super().__init__("The stored bytes are damaged: tell the administrator of the server.")


class ServiceUnavailable(RequestError):
    """A component does not answer, a user is offline, or the transaction was rolled back."""

    def __init__(
        self,
        message: str,
        *,
        component: str | None = None,
        aborted: bool = False,
        code: ErrorCode = ErrorCode.UNAVAILABLE,
    ) -> None:
        super().__init__(message)
        self.code = ErrorCode.ABORTED if aborted else code
        self.component = component


@contextmanager
def prefix_error_messages(name: str) -> Generator[None]:
    """Put the name of an object before the messages of errors that are raised inside.

    For a change of several objects, where the path leads to the new value that all of them get.
    """
    try:
        yield
    except RequestError as refusal:
        for error in refusal.all_errors:
            error.message = f"{name}: {error.message}"
        raise


def require_all_found(
    ids: Iterable[int], found_ids: Container[int], *, path: Sequence[str] = ("ids",)
) -> None:
    """Raise NotFound, with its index, for the first id that is not among the found ones."""
    for index, key in enumerate(ids):
        if key not in found_ids:
            raise NotFound(str(key), path=path, index=index)


def require_found(
    value: Value | None, ref: str = "", *, path: Sequence[str] = ("id",), noun: str = "Object"
) -> Value:
    """Return the value. Raises NotFound if it is None."""
    if value is None:
        raise NotFound(ref, path=path, noun=noun)
    return value
