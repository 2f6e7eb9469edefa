"""Typed errors and payloads: one GraphQL type for each error class in models/errors.py."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import strawberry

import graph.types.enum_registration  # noqa: F401 - before the first field that has an enum
from graph.types import global_ids
from graph.types.scalars import BigInt, Cursor, Duration, IPAddress
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
        types = MutationError.types_by_error
        # an error without a type of its own has that of its base class
        error_type = next(filter(None, map(types.get, type(error).__mro__)))
        return error_type(**facts)


@strawberry.type(description="Error: a value of the input breaks a rule.")
class ValidationError(MutationError, of=errors.InvalidInput):
    constraint: ValidationConstraint = attribute_field("Rule that the value breaks.")
    allowed_values: list[str] | None = attribute_field(
        "Values that are valid, if the rule is a list of values. Otherwise null."
    )


@strawberry.type(
    description="Error: an object that the input refers to does not exist, or the caller "
    "can't see it."
)
class NotFoundError(MutationError, of=errors.NotFound):
    ref: str = attribute_field(
        "Reference to the missing object, as in the input. Empty if the input does not name it."
    )


@strawberry.type(
    description="Error: the caller lacks a role, scope or permission, or nobody can do this "
    "to the object."
)
class ForbiddenError(MutationError, of=errors.Forbidden):
    requires: str | None = attribute_field(
        "Missing role, scope, permission or share right, or another condition in words, such as "
        "`userImpersonate`. Null: no right allows this. `message` has the reason, such as that "
        "only the owner of the mailbox can do it."
    )


@strawberry.type(
    description="Error: the change conflicts with an existing object, or the object is still used."
)
class ConflictError(MutationError, of=errors.Conflict):
    pass


@strawberry.type(description="Error: the object was changed after the caller read it.")
class StaleError(MutationError, of=errors.StaleObject):
    current_modseq: BigInt = attribute_field(
        "Current MODSEQ of the object (RFC 7162); in keyValueSet the current version of the entry. "
        "0: the object does not exist."
    )


@strawberry.type(
    description="Error: a password or another credential in the input is wrong, or a second "
    "factor is wrong or missing."
)
class AuthenticationFailedError(MutationError, of=errors.AuthenticationFailed):
    required_two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors that are accepted, if the password of a sign-in is right and its second "
        "factor is wrong. Otherwise empty."
    )


@strawberry.type(
    description="Error: a count or size limit would be exceeded: of the request, a user, a domain "
    "or the platform."
)
class LimitReachedError(MutationError, of=errors.LimitReached):
    limit: BigInt = attribute_field("Highest allowed count or size.")
    used: BigInt = attribute_field("Current count or size, or the requested one if it is too high.")


@strawberry.type(description="Error: the change would exceed the storage quota of the account.")
class QuotaExceededError(MutationError, of=errors.OverQuota):
    limit: BigInt = attribute_field(
        "Quota of the account in bytes. 0 if another user owns the full mailbox, since the storage "
        "of that user is hidden."
    )
    used: BigInt = attribute_field(
        "Bytes that the account uses. 0 if another user owns the full mailbox, since the storage "
        "of that user is hidden."
    )


@strawberry.type(description="Error: the caller sent too many requests or messages in a period.")
class RateLimitedError(MutationError, of=errors.RateLimited):
    retry_after: Duration = attribute_field("Time to wait before the mutation can succeed.")


@strawberry.type(
    description="Error: open sessions or running tasks of the accounts prevent the change."
)
class SessionsOpenError(MutationError, of=errors.InUse):
    sessions: int = attribute_field("Number of open sessions of the accounts.")
    tasks: int = attribute_field(
        "Number of running tasks of the accounts, in sessionDrain. 0 in other mutations."
    )


@strawberry.type(
    description="Error: a Sieve script has an error. The payload has one such error for each "
    "error of the script."
)
class SieveCompileError(MutationError, of=errors.ScriptError):
    line: int = attribute_field("Line of the error, counted from 1.")
    column: int = attribute_field("Column of the error, counted from 1.")


@strawberry.type(
    description="Error: the remote server of a connector can't be reached, or refuses the "
    "connection."
)
class ConnectorFailureError(MutationError, of=errors.ConnectorFailure):
    stage: ConnectorStage = attribute_field("Stage of the connection that failed.")
    remote_message: str | None = attribute_field(
        "Text with which the remote server or its OAuth token endpoint refused the credentials. "
        "Null: the failure has another reason."
    )


@strawberry.type(
    description="Error: stored bytes that the mutation needs are lost or damaged. A retry "
    "fails in the same way until an administrator repairs them."
)
class DamagedError(MutationError, of=errors.DamagedContent):
    pass


@strawberry.type(
    description=(
        "Error: a component is missing, busy or does not answer, or no client or session is "
        "connected. Or the field was rolled back with its `@atomic` request."
    )
)
class UnavailableError(MutationError, of=errors.ServiceUnavailable):
    component: str | None = attribute_field(
        "Component that is missing, busy or does not answer, such as `dns` or `store`. Null: no "
        "single component."
    )


@strawberry.type(description="Note about a mutation that succeeded, such as a skipped value.")
class Warning:  # noqa: A001 - the name in the schema
    code: WarningCode = attribute_field("Reason of the warning, for programs.")
    message: str = attribute_field("Text of the warning for people, in English.")
    path: list[str] = attribute_field(
        "Path from `input` to the value that the warning is about. Empty: the whole input."
    )


@strawberry.interface(description="Fields that every mutation payload has.")
class MutationPayload:
    errors: list[MutationError] = attribute_field(
        "Errors that a client can expect. Empty if the mutation succeeded. Every mutation can "
        "return the following codes. VALIDATION: a value of the input is not allowed. NOT_FOUND: "
        "an object does not exist, or the caller can't see it. FORBIDDEN: the credential lacks a "
        "role, scope or permission. FORBIDDEN_OPERATION: no credential allows the operation. "
        "DAMAGED: stored bytes that the mutation needs are lost or damaged. ABORTED: the mutation "
        "changed nothing, because another mutation of its `@atomic` request failed. CONFLICT: the "
        "`idempotencyKey` was used with another input, or its first request is in progress. The "
        "description of the mutation lists its other codes.",
        default_factory=list,
    )
    warnings: list[Warning] = attribute_field(
        "Notes about a mutation that succeeded, such as a value that was skipped. Empty if there "
        "is no note, or if the mutation failed.",
        default_factory=list,
    )
    replayed: bool = attribute_field(
        "True if an earlier request with the same `idempotencyKey` and input succeeded, so that "
        "this one changed nothing. The payload is that of the earlier request. Objects with an ID "
        "have their current state, and deleted objects are left out. Secrets in the payload are "
        "null or empty. Always false if the mutation refuses idempotency keys.",
        default=False,
    )
    journal_cursor: Cursor | None = attribute_field(
        "Position in the event journal after the events of this mutation. With this position as "
        "`after`, `changes` returns the later events of an account in which the mutation caused "
        "events. For other accounts `changes` refuses it. Exception: if other users share "
        "mailboxes with the signed-in user, `changes` also accepts it for the accounts of the "
        "signed-in user and of the sharing users. A client with a running stream must keep the "
        "cursor of that stream, because the stream can still send events from before this "
        "position. Null if the mutation caused no event, and with `validateOnly`. Also null if "
        "the position would contain more than 100 accounts and domains. The position contains the "
        "accounts and domains that changed. In the exception the position also contains the "
        "signed-in user and the owners of the shared mailboxes.",
        default=None,
    )


@strawberry.type
class UserSelectionPayload(MutationPayload):
    """Base of the payloads of mutations that change the accounts of a selection."""

    counted_field: ClassVar[str] = "users"  # the field with an item for each account

    user_count: int = attribute_field(
        "Number of accounts that the mutation was applied to, also of those that it did not "
        "change. With `validateOnly`, the number that it would be applied to.",
        default=0,
    )

    def __post_init__(self) -> None:
        self.user_count = self.user_count or len(getattr(self, self.counted_field))


@strawberry.input(
    description="Options that every mutation has: idempotency key, dry run, and values for the "
    "logs."
)
class MutationOptions:
    idempotency_key: str | None = attribute_field(
        "Key of the request, at most 128 printable characters. A repeated mutation of the same "
        "caller with the same key and input returns the first payload and changes nothing, for 24 "
        "hours by default. Objects in it have their current state; deleted ones are left out. A "
        "request that failed is executed again. A key that was used with another input is a "
        "ConflictError. Some mutations refuse a key with VALIDATION, as their descriptions say. "
        "Default: each request is executed.",
        default=strawberry.UNSET,
    )
    validate_only: bool | None = attribute_field(
        "True runs every check and returns the payload without storing anything. Secrets, tokens "
        "and `journalCursor` are null. In an `@atomic` request, one such field makes all fields "
        "a dry run. Default: false.",
        default=False,
    )
    session_id: str | None = attribute_field(
        "Session of the caller, at most 255 printable characters: the `origin` of the events that "
        "the mutation causes. With an API key of an ADMIN, also the session in the security log. "
        "Default: the idempotency key, or the session that a front end names in the header field "
        "X-Client-Session.",
        default=strawberry.UNSET,
    )
    client_ip: IPAddress | None = attribute_field(
        "IP address of the user's client, given by a front end. It is used only with an API key of "
        "an ADMIN. If the network of this address is banned, the error is FORBIDDEN_OPERATION. "
        "Default: the address of the connection.",
        default=strawberry.UNSET,
    )
    reason: str | None = attribute_field(
        "Reason for the change, at most 255 printable characters. It is stored in the event "
        "journal and the audit log. Default: none.",
        default=strawberry.UNSET,
    )


@strawberry.input
class Options:
    """Base of the inputs of all mutations."""

    options: MutationOptions | None = attribute_field(
        "Options of the mutation: dry run, idempotency key, and values for logs and events "
        "(reason, session, IP address of the client). If the mutation refuses an idempotency key, "
        "its description says so. Default: no option is set.",
        default=strawberry.UNSET,
    )


@strawberry.type(description="Payload of a mutation that deletes objects.")
class DeletePayload(MutationPayload):
    deleted_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the deleted objects, each once.", default_factory=list
    )

    @classmethod
    def of_keys(cls, type_name: str, keys: Iterable[int]) -> "DeletePayload":
        """Return the payload of a deletion of rows of one type, each row once."""
        return cls(deleted_ids=global_ids.encode_distinct(type_name, keys))
