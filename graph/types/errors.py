"""Typed errors and payloads: one GraphQL type for each error class in models/errors.py."""

from typing import Any, ClassVar

import strawberry

import graph.types.enum_registration  # noqa: F401 - before the first field that has an enum
from graph.types.scalars import BigInt, ByteSize, Cursor, Duration, IPAddress
from mail.connectors.remote_server import Stage
from models import errors
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod


def leaf(description: str, **more: Any) -> Any:
    """Declare a field that is read from an attribute, without resolver, guard and arguments."""
    return strawberry.field(description=description, **more)


@strawberry.interface(description="One expected failure.")
class MutationError:
    code: errors.Code = leaf("Stable code.")
    message: str = leaf("For people, in English.")
    path: list[str] = leaf("Path inside input, such as set, expires.")
    index: int | None = leaf("Position in the list, where the input was a list.")

    types: ClassVar[dict[type[errors.Refused], type["MutationError"]]] = {}

    def __init_subclass__(cls, of: type[errors.Refused]) -> None:
        MutationError.types[of] = cls

    @staticmethod
    def of(refusal: errors.Refused) -> "MutationError":
        facts: dict[str, Any] = {"code": refusal.code, **vars(refusal)}
        return MutationError.types[type(refusal)](**facts)


@strawberry.type(description="Input breaks a rule.")
class ValidationError(MutationError, of=errors.Invalid):
    constraint: str = leaf("Name of the rule, such as id, pattern, max.")


@strawberry.type(description="A referenced thing does not exist or is not visible.")
class NotFoundError(MutationError, of=errors.NotFound):
    ref: str = leaf(
        "The object that was not found, as the input names it. Empty if the input does not name it."
    )


@strawberry.type(description="Role, scope or permission missing, or never allowed for this thing.")
class ForbiddenError(MutationError, of=errors.Forbidden):
    requires: str | None = leaf("Role, scope or permission needed; null = nobody may.")


@strawberry.type(description="Exists already, or is still used.")
class ConflictError(MutationError, of=errors.Conflict):
    pass


@strawberry.type(description="Changed meanwhile.")
class StaleError(MutationError, of=errors.Stale):
    current_modseq: BigInt = leaf("Present modification sequence.")


@strawberry.type(description="Wrong credentials or second factor.")
class AuthenticationFailedError(MutationError, of=errors.AuthenticationFailed):
    require2fa: list[TwoFactorMethod] = leaf("Second factors that would be accepted.")


@strawberry.type(description="A count or size limit of domain or platform.")
class LimitReachedError(MutationError, of=errors.LimitReached):
    limit: BigInt = leaf("The limit.")
    used: BigInt = leaf("Used already.")


@strawberry.type(description="The account's storage is full.")
class QuotaExceededError(MutationError, of=errors.OverQuota):
    allowed: ByteSize = leaf("Quota.")
    used: ByteSize = leaf("Used.")


@strawberry.type(description="Too often.")
class RateLimitedError(MutationError, of=errors.RateLimited):
    retry_after: Duration = leaf("Wait at least.")


@strawberry.type(description="Open sessions prevent it.")
class InUseError(MutationError, of=errors.InUse):
    sessions: int = leaf("How many.")


@strawberry.type(description="A script has a mistake; there is one of these for each.")
class SieveCompileError(MutationError, of=errors.NotCompiled):
    line: int = leaf("Line, from 1.")
    column: int = leaf("Column, from 1.")


@strawberry.type(description="An account elsewhere cannot be reached, or refuses us.")
class ConnectorFailureError(MutationError, of=errors.ConnectorFailure):
    stage: Stage = leaf("Where it failed.")
    remote_message: str | None = leaf("What the server said; null = it said nothing.")


@strawberry.type(
    description="Stored bytes that the mutation needs are lost or damaged. A retry fails in the "
    "same way until an administrator repairs them."
)
class DamagedError(MutationError, of=errors.Damaged):
    pass


@strawberry.type(
    description="A component does not answer, nobody is there, or the field was given up."
)
class UnavailableError(MutationError, of=errors.Unavailable):
    component: str | None = leaf("Which.")


@strawberry.type(description="Succeeded, but worth knowing.")
class Warning:  # noqa: A001 - the name in the schema
    code: str = leaf("Stable code, such as NOT_SAVED_TO_SENT.")
    message: str = leaf("For people, in English.")
    path: list[str] = leaf("Input path it is about.")


@strawberry.interface(description="Common to all payloads.")
class MutationPayload:
    errors: list[MutationError] = leaf(
        "Expected failures; empty when everything succeeded.", default_factory=list
    )
    warnings: list[Warning] = leaf("Succeeded, but worth knowing.", default_factory=list)
    replayed: bool = leaf("The answer of an earlier call with this key.", default=False)
    journal_cursor: Cursor | None = leaf(
        "Journal position after this mutation: events up to it are one's own echo. Null where "
        "nothing was told, or more than 100 accounts were changed.",
        default=None,
    )


@strawberry.type
class UserSelectionPayload(MutationPayload):
    """Base of the payloads of mutations that change the accounts of a selection."""

    counted: ClassVar[str] = "users"  # the field with an item for each account

    user_count: int = leaf(
        "Number of accounts that the mutation changes; with `validateOnly`, that it would change.",
        default=0,
    )

    def __post_init__(self) -> None:
        self.user_count = self.user_count or len(getattr(self, self.counted))


@strawberry.input(description="Accepted by every mutation.")
class MutationOptions:
    idempotency_key: str | None = leaf(
        "Same key, same principal, within 24 h: same answer, no second effect.",
        default=strawberry.UNSET,
    )
    validate_only: bool | None = leaf(
        "Runs every check and answers as the mutation would, but stores nothing. Secrets, tokens "
        "and `journalCursor` are null.",
        default=False,
    )
    session_id: str | None = leaf(
        "The caller's session: the origin of the events this causes, and, believed from API keys "
        "of an ADMIN, the session in the security log.",
        default=strawberry.UNSET,
    )
    client_ip: IPAddress | None = leaf(
        "Address of the person behind a trusted front end; believed from API keys of an ADMIN.",
        default=strawberry.UNSET,
    )
    reason: str | None = leaf(
        "Why; kept in the journal and in the administrative log.", default=strawberry.UNSET
    )


@strawberry.input
class Options:
    """Base of the inputs of all mutations."""

    options: MutationOptions | None = leaf(
        "Dry run, repeatability, and facts for the logs.", default=strawberry.UNSET
    )


@strawberry.input(description="Names many things of one kind.")
class IdsInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")


@strawberry.type(description="For all plain deletions.")
class DeletePayload(MutationPayload):
    deleted_ids: list[strawberry.ID] = leaf("What is gone.", default_factory=list)
