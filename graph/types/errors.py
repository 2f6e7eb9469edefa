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


@strawberry.interface(description="One expected failure.")
class MutationError:
    code: errors.ErrorCode = attribute_field("Stable code.")
    message: str = attribute_field("For people, in English.")
    path: list[str] = attribute_field(
        "Path from `input` to the wrong value: names of fields, and positions in lists, from 0. "
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


@strawberry.type(description="Input breaks a rule.")
class ValidationError(MutationError, of=errors.InvalidInput):
    constraint: ValidationConstraint = attribute_field("The rule that the value breaks.")
    allowed_values: list[str] | None = attribute_field(
        "The values that are valid, if the rule is a list of values. Otherwise null."
    )


@strawberry.type(description="A referenced thing does not exist or is not visible.")
class NotFoundError(MutationError, of=errors.NotFound):
    ref: str = attribute_field(
        "The object that was not found, as the input names it. Empty if the input does not name it."
    )


@strawberry.type(description="Role, scope or permission missing, or never allowed for this thing.")
class ForbiddenError(MutationError, of=errors.Forbidden):
    requires: str | None = attribute_field("Role, scope or permission needed; null = nobody may.")


@strawberry.type(description="Exists already, or is still used.")
class ConflictError(MutationError, of=errors.Conflict):
    pass


@strawberry.type(description="Changed meanwhile.")
class StaleError(MutationError, of=errors.StaleObject):
    current_modseq: BigInt = attribute_field("Present modification sequence.")


@strawberry.type(description="Wrong credentials or second factor.")
class AuthenticationFailedError(MutationError, of=errors.AuthenticationFailed):
    required_two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors that would be accepted."
    )


@strawberry.type(description="A count or size limit of domain or platform.")
class LimitReachedError(MutationError, of=errors.LimitReached):
    limit: BigInt = attribute_field("The limit.")
    used: BigInt = attribute_field("Used already.")


@strawberry.type(description="The account's storage is full.")
class QuotaExceededError(MutationError, of=errors.OverQuota):
    limit: ByteSize = attribute_field("The quota in bytes.")
    used: ByteSize = attribute_field("The bytes in use.")


@strawberry.type(description="Too often.")
class RateLimitedError(MutationError, of=errors.RateLimited):
    retry_after: Duration = attribute_field("Wait at least.")


@strawberry.type(description="Open sessions prevent it.")
class SessionsOpenError(MutationError, of=errors.InUse):
    sessions: int = attribute_field("How many.")


@strawberry.type(description="A script has a mistake; there is one of these for each.")
class SieveCompileError(MutationError, of=errors.ScriptError):
    line: int = attribute_field("Line, from 1.")
    column: int = attribute_field("Column, from 1.")


@strawberry.type(description="An account elsewhere cannot be reached, or refuses us.")
class ConnectorFailureError(MutationError, of=errors.ConnectorFailure):
    stage: ConnectorStage = attribute_field("Where it failed.")
    remote_message: str | None = attribute_field("What the server said; null = it said nothing.")


@strawberry.type(
    description="Stored bytes that the mutation needs are lost or damaged. A retry fails in the "
    "same way until an administrator repairs them."
)
class DamagedError(MutationError, of=errors.DamagedContent):
    pass


@strawberry.type(
    description="A component does not answer, nobody is there, or the field was given up."
)
class UnavailableError(MutationError, of=errors.ServiceUnavailable):
    component: str | None = attribute_field("Which.")


@strawberry.type(description="Succeeded, but worth knowing.")
class Warning:  # noqa: A001 - the name in the schema
    code: WarningCode = attribute_field("The reason of the warning.")
    message: str = attribute_field("For people, in English.")
    path: list[str] = attribute_field("Input path it is about.")


@strawberry.interface(description="Common to all payloads.")
class MutationPayload:
    errors: list[MutationError] = attribute_field(
        "Expected failures; empty when everything succeeded.", default_factory=list
    )
    warnings: list[Warning] = attribute_field("Succeeded, but worth knowing.", default_factory=list)
    replayed: bool = attribute_field("The answer of an earlier call with this key.", default=False)
    journal_cursor: Cursor | None = attribute_field(
        "Journal position after this mutation: events up to it are one's own echo. Null where "
        "nothing was told, or more than 100 accounts were changed.",
        default=None,
    )


@strawberry.type
class UserSelectionPayload(MutationPayload):
    """Base of the payloads of mutations that change the accounts of a selection."""

    counted_field: ClassVar[str] = "users"  # the field with an item for each account

    user_count: int = attribute_field(
        "Number of accounts that the mutation changes; with `validateOnly`, that it would change.",
        default=0,
    )

    def __post_init__(self) -> None:
        self.user_count = self.user_count or len(getattr(self, self.counted_field))


@strawberry.input(description="Accepted by every mutation.")
class MutationOptions:
    idempotency_key: str | None = attribute_field(
        "Same key, same principal, within 24 h: same answer, no second effect.",
        default=strawberry.UNSET,
    )
    validate_only: bool | None = attribute_field(
        "Runs every check and answers as the mutation would, but stores nothing. Secrets, tokens "
        "and `journalCursor` are null.",
        default=False,
    )
    session_id: str | None = attribute_field(
        "The caller's session: the origin of the events this causes, and, believed from API keys "
        "of an ADMIN, the session in the security log.",
        default=strawberry.UNSET,
    )
    client_ip: IPAddress | None = attribute_field(
        "Address of the person behind a trusted front end; believed from API keys of an ADMIN.",
        default=strawberry.UNSET,
    )
    reason: str | None = attribute_field(
        "Why; kept in the journal and in the administrative log.", default=strawberry.UNSET
    )


@strawberry.input
class Options:
    """Base of the inputs of all mutations."""

    options: MutationOptions | None = attribute_field(
        "Dry run, repeatability, and facts for the logs.", default=strawberry.UNSET
    )


@strawberry.type(description="For all plain deletions.")
class DeletePayload(MutationPayload):
    deleted_ids: list[strawberry.ID] = attribute_field("What is gone.", default_factory=list)

    @classmethod
    def of_keys(cls, type_name: str, keys: Iterable[int]) -> "DeletePayload":
        """Return the payload of a deletion of rows of one type."""
        return cls(deleted_ids=[global_ids.encode(type_name, key) for key in keys])
