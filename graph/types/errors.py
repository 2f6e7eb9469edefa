"""Typed errors and payloads: one GraphQL type for each error class in models/errors.py."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import strawberry

import graph.types.enum_registration  # noqa: F401 - before the first field that has an enum
from graph.types import global_ids
from graph.types.scalars import BigInt, ByteSize, Cursor, Duration, IPAddress
from mail.connectors.remote_server import ConnectorStage
from models import errors
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod


def attribute_field(description: str, **field_options: Any) -> Any:
    """Declare a field that is read from an attribute, without resolver, guard and arguments."""
    return strawberry.field(description=description, **field_options)


@strawberry.interface(description="Error of a mutation that clients can expect and handle.")
class MutationError:
    code: errors.ErrorCode = attribute_field("Stable code of the error, for programs.")
    message: str = attribute_field("Text of the error for people, in English.")
    path: list[str] = attribute_field(
        "Path from `input` to the wrong value: names of fields, and positions in lists from 0. "
        'Example: `["select", "ids", "0"]`. Empty if the error is about the whole input.'
    )

    types_by_error: ClassVar[dict[type[errors.RequestError], type["MutationError"]]] = {}

    def __init_subclass__(cls, of: type[errors.RequestError]) -> None:
        MutationError.types_by_error[of] = cls

    @staticmethod
    def from_error(error: errors.RequestError, path: Sequence[str]) -> "MutationError":
        facts: dict[str, Any] = {"code": error.code, **vars(error), "path": list(path)}
        del facts["index"]  # it is part of the path
        return MutationError.types_by_error[type(error)](**facts)


@strawberry.type(description="A value of the input breaks a rule.")
class ValidationError(MutationError, of=errors.InvalidInput):
    constraint: ValidationConstraint = attribute_field("Rule that the value breaks.")
    allowed_values: list[str] | None = attribute_field(
        "Values that are valid, if the rule is a list of values. Otherwise null."
    )


@strawberry.type(
    description="An object that the input refers to does not exist, or the caller can't see it."
)
class NotFoundError(MutationError, of=errors.NotFound):
    ref: str = attribute_field(
        "Reference to the missing object, as in the input. Empty if the input does not name it."
    )


@strawberry.type(
    description="The caller lacks a role, scope or permission, or nobody can do this to the object."
)
class ForbiddenError(MutationError, of=errors.Forbidden):
    requires: str | None = attribute_field(
        "Role, scope or permission that is missing. Null: no caller can do this."
    )


@strawberry.type(
    description="The change conflicts with an existing object, or the object is still used."
)
class ConflictError(MutationError, of=errors.Conflict):
    pass


@strawberry.type(description="The object was changed after the caller read it.")
class StaleError(MutationError, of=errors.StaleObject):
    current_modseq: BigInt = attribute_field("Current MODSEQ of the object (RFC 7162).")


@strawberry.type(description="The credentials are wrong, or a second factor is wrong or missing.")
class AuthenticationFailedError(MutationError, of=errors.AuthenticationFailed):
    required_two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors that are accepted. Empty if the credentials are wrong."
    )


@strawberry.type(description="A count or size limit of the domain or platform is exceeded.")
class LimitReachedError(MutationError, of=errors.LimitReached):
    limit: BigInt = attribute_field("Highest allowed count or size.")
    used: BigInt = attribute_field("Current or requested count or size.")


@strawberry.type(description="The storage of the account is full.")
class QuotaExceededError(MutationError, of=errors.OverQuota):
    limit: ByteSize = attribute_field("Quota in bytes.")
    used: ByteSize = attribute_field("Bytes in use.")


@strawberry.type(description="The caller sent too many requests.")
class RateLimitedError(MutationError, of=errors.RateLimited):
    retry_after: Duration = attribute_field("Time to wait before the next try.")


@strawberry.type(description="Open sessions prevent the change.")
class SessionsOpenError(MutationError, of=errors.InUse):
    sessions: int = attribute_field("Number of open sessions.")


@strawberry.type(description="A Sieve script has an error. Each error of a script is listed.")
class SieveCompileError(MutationError, of=errors.ScriptError):
    line: int = attribute_field("Line of the error, counted from 1.")
    column: int = attribute_field("Column of the error, counted from 1.")


@strawberry.type(
    description="The remote server of a connector can't be reached, or refuses the connection."
)
class ConnectorFailureError(MutationError, of=errors.ConnectorFailure):
    stage: ConnectorStage = attribute_field("Stage of the connection that failed.")
    remote_message: str | None = attribute_field(
        "Response of the remote server. Null: there was none."
    )


@strawberry.type(
    description="Stored bytes that the mutation needs are lost or damaged. A retry fails in the "
    "same way until an administrator repairs them."
)
class DamagedError(MutationError, of=errors.DamagedContent):
    pass


@strawberry.type(
    description="A component does not answer, no client or session is connected, or the field was "
    "rolled back with its `@atomic` request."
)
class UnavailableError(MutationError, of=errors.ServiceUnavailable):
    component: str | None = attribute_field(
        "Component that does not answer, such as `dns` or `store`. Null: no single component."
    )


@strawberry.type(description="Note about a mutation that succeeded.")
class Warning:  # noqa: A001 - the name in the schema
    code: WarningCode = attribute_field("Reason of the warning.")
    message: str = attribute_field("Text of the warning for people, in English.")
    path: list[str] = attribute_field(
        "Path from `input` to the value that the warning is about. Empty: the whole input."
    )


@strawberry.interface(description="Fields of every mutation payload.")
class MutationPayload:
    errors: list[MutationError] = attribute_field(
        "Expected errors. Empty if the mutation succeeded.", default_factory=list
    )
    warnings: list[Warning] = attribute_field(
        "Notes about a mutation that succeeded.", default_factory=list
    )
    replayed: bool = attribute_field(
        "True if this is the payload of an earlier request with the same `idempotencyKey`. Its "
        "secrets are null.",
        default=False,
    )
    journal_cursor: Cursor | None = attribute_field(
        "Position in the event journal after this mutation: events of the caller up to it are an "
        "echo of the mutation. Null if the mutation caused no event, or changed more than "
        "100 event streams.",
        default=None,
    )


@strawberry.type
class UserSelectionPayload(MutationPayload):
    """Base of the payloads of mutations that change the accounts of a selection."""

    counted_field: ClassVar[str] = "users"  # the field with an item for each account

    user_count: int = attribute_field(
        "Number of accounts that the mutation changed. With `validateOnly`: that it would change.",
        default=0,
    )

    def __post_init__(self) -> None:
        self.user_count = self.user_count or len(getattr(self, self.counted_field))


@strawberry.input(description="Options of every mutation.")
class MutationOptions:
    idempotency_key: str | None = attribute_field(
        "Key of the request, at most 128 printable characters. A repeated mutation of the same "
        "caller with the same key and input returns the first payload and changes nothing, "
        "for 24 hours by default.",
        default=strawberry.UNSET,
    )
    validate_only: bool | None = attribute_field(
        "Runs every check and returns the payload without storing anything. Secrets, tokens and "
        "`journalCursor` are null.",
        default=False,
    )
    session_id: str | None = attribute_field(
        "Session of the caller, at most 255 printable characters: the `origin` of the events "
        "that the mutation causes. With an API key of an ADMIN, also the session in the "
        "security log.",
        default=strawberry.UNSET,
    )
    client_ip: IPAddress | None = attribute_field(
        "IP address of the client of a front end. It is used only with an API key of an ADMIN.",
        default=strawberry.UNSET,
    )
    reason: str | None = attribute_field(
        "Reason for the change, at most 255 printable characters. It is stored in the event "
        "journal and the audit log.",
        default=strawberry.UNSET,
    )


@strawberry.input
class Options:
    """Base of the inputs of all mutations."""

    options: MutationOptions | None = attribute_field(
        "Idempotency key, dry run, and values for the logs.", default=strawberry.UNSET
    )


@strawberry.type(description="Payload of a mutation that deletes objects.")
class DeletePayload(MutationPayload):
    deleted_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the deleted objects.", default_factory=list
    )

    @classmethod
    def of_keys(cls, type_name: str, keys: Iterable[int]) -> "DeletePayload":
        """Return the payload of a deletion of rows of one type."""
        return cls(deleted_ids=[global_ids.encode(type_name, key) for key in keys])
