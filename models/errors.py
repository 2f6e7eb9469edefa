"""What can be refused, and why. Raised anywhere below graph/; graph/ turns each into data.

* Refused
  - Invalid                the input is wrong; `constraint` names the rule
  - NotFound               no such object, or none you may see
  - Forbidden              you may see it, but not do this
  - Conflict               it collides with something that exists
  - Stale                  it changed meanwhile
  - AuthenticationFailed   wrong credentials
  - Unauthenticated        no credential, or one that has ended
  - LimitReached           a count or size limit of domain or platform
  - OverQuota              it would exceed `allowed` bytes
  - RateLimited            too often; wait `retry_after`
  - NotCompiled            a script cannot be read, or means nothing, at this place
  - Damaged                stored bytes that it needs are lost or damaged
  - Unavailable            a component does not answer, or the unit around it was given up
"""

from collections.abc import Container, Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Self, TypeVar

Object = TypeVar("Object")


class Code(StrEnum):
    """Stable names of refusals; clients switch on them."""

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
    """A request we understood and turned down. Anything else that escapes is a bug."""

    code = Code.VALIDATION

    def __init__(self, message: str, *, path: Sequence[str] = (), index: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = list(path)  # inside the input: ["set", "expires"]
        self.index = index  # which item, where the input was a list

    @property
    def each(self) -> list["Refused"]:
        """The refusals it is made of: itself, or all that were found in one go."""
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
    """All that is wrong with one input, found in one go."""

    code = Code.VALIDATION

    def __init__(self, refusals: Sequence[Refused]) -> None:
        super().__init__("; ".join(refusal.message for refusal in refusals))
        self.refusals = list(refusals)

    @property
    def each(self) -> list[Refused]:
        """What was found."""
        return self.refusals


class Problems:
    """What is wrong with the fields of an input, gathered check by check; of each the first counts.

    Each check that stands for itself goes into a `with problems.caught():`. Whoever needs what
    was checked, or does anything, calls `settle` before. What is neither Invalid nor LimitReached
    is raised at once.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], Refused] = {}  # by path

    def caught(self) -> Self:
        """Keep what this check finds, and go on after it."""
        return self

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, wrong: BaseException | None, _trace: object
    ) -> bool:
        if not isinstance(wrong, Invalid | LimitReached | Several):
            return False
        for one in wrong.each:
            self._found.setdefault(tuple(one.path), one)
        return True

    def settle(self) -> None:
        """Raise what was found: one Invalid, or Several in the order of their fields."""
        found = sorted(self._found.values(), key=_place)
        if found:
            raise found[0] if len(found) == 1 else Several(found)


def _place(refusal: Refused) -> list[str]:
    """Where it stands in the input, whose fields are in the order of the alphabet."""
    return [part.zfill(9) if part.isdecimal() else part for part in refusal.path]


class NotFound(Refused):
    """No such object, or none the viewer may see: the two must look the same."""

    code = Code.NOT_FOUND

    def __init__(
        self, ref: str, *, path: Sequence[str] = ("id",), index: int | None = None
    ) -> None:
        super().__init__("no such object", path=path, index=index)
        self.ref = ref


class Forbidden(Refused):
    """The credential lacks `requires`; without one, nobody may do this to this thing."""

    def __init__(
        self, message: str, *, requires: str | None = None, path: Sequence[str] = ()
    ) -> None:
        super().__init__(message, path=path)
        self.code = Code.FORBIDDEN if requires else Code.FORBIDDEN_OPERATION
        self.requires = requires


class Conflict(Refused):
    """The change collides with something that already exists."""

    code = Code.CONFLICT


class Stale(Refused):
    """It has changed since the caller looked: it stands at `current_modseq`."""

    code = Code.STALE

    def __init__(self, *, current_modseq: int, path: Sequence[str] = ()) -> None:
        super().__init__("changed meanwhile", path=path)
        self.current_modseq = current_modseq


class AuthenticationFailed(Refused):
    """Wrong credentials: the same words whether the account exists or not."""

    code = Code.AUTHENTICATION_FAILED

    def __init__(
        self, message: str = "user name or password is wrong", *, require2fa: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.require2fa = list(require2fa)  # the password was right: proofs that would be taken


class Unauthenticated(Refused):
    """Nobody without a valid credential may do this. Never data of a payload."""

    code = Code.AUTHENTICATION_FAILED

    def __init__(self) -> None:
        super().__init__("sign in first: no valid credential was sent")


class LimitReached(Refused):
    """More than the limit of a domain or of the platform."""

    code = Code.LIMIT_REACHED

    def __init__(self, message: str, *, limit: int, used: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.limit = limit
        self.used = used


def check_limit(used: int, limit: int, message: str, *, path: Sequence[str]) -> None:
    """Raise LimitReached if `used` is above `limit`, which a setting moves."""
    if used > limit:
        raise LimitReached(message, limit=limit, used=used, path=path)


def check_count(count: int, limit: int, message: str, *, path: Sequence[str]) -> None:
    """Raise Invalid if nothing is named, LimitReached if more than a setting allows."""
    if not count:
        raise Invalid(message, constraint="min", path=path)
    check_limit(count, limit, message, path=path)


class OverQuota(Refused):
    """The change would take the account past its quota."""

    code = Code.QUOTA_EXCEEDED

    def __init__(self, message: str = "", *, used: int = 0, allowed: int = 0) -> None:
        super().__init__(message or f"{used} of {allowed} bytes are in use")
        self.used = used
        self.allowed = allowed


class RateLimited(Refused):
    """Too often."""

    code = Code.RATE_LIMITED

    def __init__(self, message: str, *, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InUse(Refused):
    """Open sessions prevent it."""

    code = Code.IN_USE

    def __init__(self, message: str, *, sessions: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.sessions = sessions


class NotCompiled(Refused):
    """A script has a mistake; both counts begin with 1."""

    code = Code.SIEVE_COMPILE

    def __init__(self, message: str, *, line: int, column: int, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.line, self.column = line, column


class ConnectorFailure(Refused):
    """The account elsewhere cannot be reached, or refuses us."""

    code = Code.CONNECTOR_FAILURE

    def __init__(self, message: str, *, stage: str, remote_message: str | None = None) -> None:
        super().__init__(message)
        self.stage, self.remote_message = stage, remote_message


class Damaged(Refused):
    """Stored bytes that the request needs are lost or damaged: an administrator must look."""

    code = Code.DAMAGED

    def __init__(self) -> None:
        super().__init__("The stored bytes are damaged: tell the administrator of the server.")


class Unavailable(Refused):
    """A component does not answer, nobody is there, or this field was given up with the others."""

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
    """NotFound, with its index, where one of these is not there."""
    for index, key in enumerate(ids):
        if key not in there:
            raise NotFound(str(key), path=path, index=index)


def found(thing: Object | None, ref: str = "", *, path: Sequence[str] = ("id",)) -> Object:
    """`thing`, or NotFound where there is none."""
    if thing is None:
        raise NotFound(ref, path=path)
    return thing
