"""Errors of requests. They are raised anywhere below graph/, which converts each to data.

* RequestError
  - InvalidInput           the input is wrong; `constraint` names the rule
  - NotFound               no such object, or none that the viewer can see
  - Forbidden              the viewer can see the object, but not do this
  - Conflict               it collides with an existing object
  - StaleObject            it changed after the caller read it
  - AuthenticationFailed   wrong credentials
  - Unauthenticated        no credential, or an expired one
  - LimitReached           a count or size limit of domain or platform
  - OverQuota              it would exceed `allowed` bytes
  - RateLimited            too often; wait `retry_after`
  - ScriptError            a Sieve script has an error at `line` and `column`
  - DamagedContent         stored bytes are lost or damaged
  - ServiceUnavailable     a component does not answer, or the transaction was rolled back
"""

from collections.abc import Container, Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Self, TypeVar

Object = TypeVar("Object")


class Code(StrEnum):
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


class Refused(Exception):
    """A valid request that is refused. Any other exception that reaches the client is a bug."""

    code = Code.VALIDATION

    def __init__(self, message: str, *, path: Sequence[str] = (), index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = list(path)  # of the input field: ["set", "expires"]
        self.index = index  # of the item, if the input is a list

    @property
    def each(self) -> list["Refused"]:
        """The errors that this error consists of: itself, or all errors of a MultipleErrors."""
        return [self]


class Invalid(Refused):
    """The input breaks the rule `constraint`, such as "id", "cursor", "page" or "pattern"."""

    code = Code.VALIDATION

    def __init__(
        self, message: str, *, constraint: str, path: Sequence[str] = (), index: int | None = None
    ) -> None:
        super().__init__(message, path=path, index=index)
        self.constraint = constraint


class Several(Refused):
    """All errors of one input, found in one pass."""

    code = Code.VALIDATION

    def __init__(self, refusals: Sequence[Refused]) -> None:
        super().__init__("; ".join(refusal.message for refusal in refusals))
        self.refusals = list(refusals)

    @property
    def each(self) -> list[Refused]:
        """The errors that were found."""
        return self.refusals


class Problems:
    """Collects the errors of an input's fields; of each field the first error counts.

    Each independent check goes into a `with collector.collecting():`. Call `raise_collected` before
    the checked values are used. Errors other than InvalidInput, LimitReached and MultipleErrors are
    raised at once.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], Refused] = {}  # by path

    def caught(self) -> Self:
        """Return a context manager that collects the error of a check."""
        return self

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, wrong: BaseException | None, _trace: object
    ) -> bool:
        if not isinstance(wrong, Invalid | LimitReached | Several):
            return False
        for error in wrong.each:
            self._found.setdefault(tuple(error.path), error)
        return True

    def settle(self) -> None:
        """Raise the collected error, or MultipleErrors in the order of the fields."""
        found = sorted(self._found.values(), key=_place)
        if found:
            raise found[0] if len(found) == 1 else Several(found)


def _place(refusal: Refused) -> list[str]:
    """Return a key for the order of fields in the input, which is alphabetical."""
    return [part.zfill(9) if part.isdecimal() else part for part in refusal.path]


class NotFound(Refused):
    """No such object, or none that the viewer can see: the two must look the same."""

    code = Code.NOT_FOUND

    def __init__(
        self, ref: str, *, path: Sequence[str] = ("id",), index: int | None = None
    ) -> None:
        super().__init__("no such object", path=path, index=index)
        self.ref = ref


class Forbidden(Refused):
    """The credential lacks `requires`; if that is None, no credential allows this."""

    def __init__(
        self, message: str, *, requires: str | None = None, path: Sequence[str] = ()
    ) -> None:
        super().__init__(message, path=path)
        self.code = Code.FORBIDDEN if requires else Code.FORBIDDEN_OPERATION
        self.requires = requires


class Conflict(Refused):
    """The change collides with an existing object."""

    code = Code.CONFLICT


class Stale(Refused):
    """The object has changed since the caller read it; its MODSEQ is now `current_modseq`."""

    code = Code.STALE

    def __init__(self, *, current_modseq: int, path: Sequence[str] = ()) -> None:
        super().__init__("changed meanwhile", path=path)
        self.current_modseq = current_modseq


class AuthenticationFailed(Refused):
    """Wrong credentials. The message is the same whether the user exists or not."""

    code = Code.AUTHENTICATION_FAILED

    def __init__(
        self, message: str = "user name or password is wrong", *, require2fa: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.require2fa = list(
            require2fa
        )  # the password is right; the second factors that are accepted


class Unauthenticated(Refused):
    """A valid credential is required. It is a GraphQL error, never part of a payload."""

    code = Code.AUTHENTICATION_FAILED

    def __init__(self) -> None:
        super().__init__("sign in first: no valid credential was sent")


class LimitReached(Refused):
    """More than a limit of the domain or of the platform."""

    code = Code.LIMIT_REACHED

    def __init__(self, message: str, *, limit: int, used: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.limit = limit
        self.used = used


def check_limit(used: int, limit: int, message: str, *, path: Sequence[str]) -> None:
    """Raise LimitReached if `used` is above `limit`, which comes from a setting."""
    if used > limit:
        raise LimitReached(message, limit=limit, used=used, path=path)


def check_count(count: int, limit: int, message: str, *, path: Sequence[str]) -> None:
    """Raise InvalidInput if `count` is 0, or LimitReached if it is above `limit`."""
    if not count:
        raise Invalid(message, constraint="min", path=path)
    check_limit(count, limit, message, path=path)


class OverQuota(Refused):
    """The change would exceed the quota of the user."""

    code = Code.QUOTA_EXCEEDED

    def __init__(self, message: str = "", *, used: int = 0, allowed: int = 0) -> None:
        super().__init__(message or f"{used} of {allowed} bytes are in use")
        self.used = used
        self.allowed = allowed


class RateLimited(Refused):
    """The caller does this too often."""

    code = Code.RATE_LIMITED

    def __init__(self, message: str, *, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InUse(Refused):
    """Open sessions prevent the change."""

    code = Code.IN_USE

    def __init__(self, message: str, *, sessions: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.sessions = sessions


class NotCompiled(Refused):
    """A Sieve script has an error; line and column begin with 1."""

    code = Code.SIEVE_COMPILE

    def __init__(self, message: str, *, line: int, column: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.line, self.column = line, column


class ConnectorFailure(Refused):
    """The remote server of a connector can't be reached, or refuses the connection."""

    code = Code.CONNECTOR_FAILURE

    def __init__(self, message: str, *, stage: str, remote_message: str | None = None) -> None:
        super().__init__(message)
        self.stage, self.remote_message = stage, remote_message


class Damaged(Refused):
    """Stored bytes that the request needs are lost or damaged. An administrator must act."""

    code = Code.DAMAGED

    def __init__(self) -> None:
        super().__init__("The stored bytes are damaged: tell the administrator of the server.")


class Unavailable(Refused):
    """A component does not answer, a user is offline, or the transaction was rolled back."""

    def __init__(
        self,
        message: str,
        *,
        component: str | None = None,
        aborted: bool = False,
        code: Code = Code.UNAVAILABLE,
    ) -> None:
        super().__init__(message)
        self.code = Code.ABORTED if aborted else code
        self.component = component


def all_found(ids: Iterable[int], there: Container[int], *, path: Sequence[str] = ("ids",)) -> None:
    """Raise NotFound, with its index, for the first id that is not among the found ones."""
    for index, key in enumerate(ids):
        if key not in there:
            raise NotFound(str(key), path=path, index=index)


def found(thing: Object | None, ref: str = "", *, path: Sequence[str] = ("id",)) -> Object:
    """Return the value. Raises NotFound if it is None."""
    if thing is None:
        raise NotFound(ref, path=path)
    return thing
