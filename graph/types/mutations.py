"""Declaration of mutations, their payloads, idempotency keys, dry runs and `@atomic` requests."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol, cast

import strawberry
from graphql import DirectiveLocation, GraphQLError
from strawberry.types import ExecutionResult
from strawberry.types.base import StrawberryOptional
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case

from graph.execution.damaged_data import log_damage
from graph.execution.documents.cost_limits import MUTATION_COST, Cost
from graph.types import idempotent_payloads
from graph.types.access_grants import (
    log_refused_mutation_of_acting_viewer,
    refuse_access_grants_of_acting_viewer,
)
from graph.types.custom_data_limit import require_custom_data_of_input_within_limit
from graph.types.error_references import error_with_public_reference, path_in_input
from graph.types.errors import MutationError, MutationOptions, MutationPayload, Options, Warning  # noqa: A004
from graph.types.fields import FieldDecorator, FieldGuard, Info
from graph.types.input_conditions import require_valid_conditions
from graph.types.list_inputs import require_references_in_lists
from graph.types.object_access import ObjectAccess
from graph.types.scalars import MAX_CURSOR_STREAMS, Cursor
from mail.storage.blobs.errors import CorruptBlob
from models.errors import (
    DamagedContent,
    Forbidden,
    InvalidInput,
    RequestError,
    ServiceUnavailable,
    Unauthenticated,
)
from models.store import cancel_safety
from models.store.database import is_retryable_conflict
from models.store.generated_id_collision import MAX_TRIES, GeneratedIdCollision
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers import idempotency
from resolvers.changes import stream_reader
from resolvers.context import Context
from resolvers.idempotency import IdempotentRequest
from resolvers.viewer import GuardRule

# Costs of mutations that take longer than others: a point is about ten microseconds of work, and
# test_cpu_per_point.py allows twenty times as much.
LONG_MUTATION_COST = 50  # of a mutation with many statements, or that parses a key
PASSWORD_HASH_COST = 300  # of a mutation that hashes a password that it generates
SECOND_FACTOR_CHANGE_COST = 200  # of a mutation that ends sign-ins and notifies the user
MAX_KEY_LENGTH = 128  # characters of an idempotency key
MAX_TEXT_LENGTH = 255  # characters of a session ID or a reason
MAX_ATOMIC_FIELDS = 25  # other requests wait for the end of an `@atomic` request
ABORTED_MESSAGE = "Rolled back with the other fields of this @atomic request."
# Fields of payloads that, like secrets, are valid only if the mutation is stored.
UNSTORED_PAYLOAD_FIELDS = {"journal_cursor", "undo"}
CONFLICT_MESSAGE = "Concurrent requests changed the same objects twice: retry the request."


@dataclass(frozen=True, slots=True)
class AtomicExclusion:
    """A rule that excludes a mutation, or some of its inputs, from `@atomic`.

    Such a mutation waits for another server, or counts a failure even if the request is rolled
    back. With `forbids_idempotency_key` it accepts no key: the stored payload would show a secret
    again, the mutation would take long inside the transaction that stores the payload, or it
    commits before that transaction, so that two requests with one key would both take effect.

    If it `applies_to` only some inputs, `condition` names them in the description, such as "With
    `proof`".
    """

    subject: str
    condition: str = ""
    applies_to: Callable[[Any], bool] = lambda _: True  # of the input
    forbids_idempotency_key: bool = False

    @property
    def description(self) -> str:
        """The sentence about the rule in the description of the mutation."""
        subject = f"{self.condition}, this mutation" if self.condition else "This mutation"
        no_key = (
            ", and can't have an idempotency key (VALIDATION)"
            if self.forbids_idempotency_key
            else ""
        )
        return f"{subject} can't be part of an `@atomic` request (FORBIDDEN_OPERATION){no_key}."

    def require_idempotency_key_allowed(self, input_value: Options) -> None:
        """Raise InvalidInput for an idempotency key if this mutation accepts none."""
        if (
            self.forbids_idempotency_key
            and input_value.options
            and input_value.options.idempotency_key
            and self.applies_to(input_value)
        ):
            raise InvalidInput(
                f"{self.subject} can't have an idempotency key.",
                constraint=ValidationConstraint.UNSUPPORTED,
                path=["options", "idempotencyKey"],
            )


def mutation(
    description: str,
    *,
    access: ObjectAccess | None = None,
    atomic_exclusion: AtomicExclusion | None = None,
    cost: int = MUTATION_COST,
    further_scope: Scope | None = None,
    **rule: Any,
) -> FieldDecorator:
    """Declare a mutation with one `input`, a subclass of `Options`.

    `access` names the users or domains that it can change. `further_scope` is a second scope that
    the resolver requires, for the description. `cost` is its cost in points; a point
    is about 10 microseconds of work. Its payload extends MutationPayload.
    The field is nullable: an error of one field must not remove the payloads of other fields.
    """
    if atomic_exclusion is not None:
        description = f"{description} {atomic_exclusion.description}"
    declare: FieldDecorator = strawberry.mutation(
        description=description,
        extensions=[MutationExecution(GuardRule(**rule), atomic_exclusion)],
        metadata={
            "access": access,
            "signed_in_rule": rule.get("signed_in"),
            "further_scope": further_scope,
        },
        directives=[] if cost == MUTATION_COST else [Cost(weight=cost)],
    )
    return declare


@strawberry.directive(
    locations=[DirectiveLocation.MUTATION],
    name="atomic",
    description=f"Runs all fields in one transaction. The first error rolls back all of them, "
    f"and every other field returns the error ABORTED. At most {MAX_ATOMIC_FIELDS} fields.",
)
def atomic() -> None:
    """Declare the directive. `execute_atomically` implements it."""


class MutationExecution(FieldGuard):
    """The extension of a mutation: guard, conversion of errors, dry run and idempotency key."""

    def __init__(self, needs: GuardRule, atomic_exclusion: AtomicExclusion | None = None) -> None:
        super().__init__(needs)
        self.atomic_exclusion = atomic_exclusion

    def require_guard_or_return_refusal(self, raw_info: Any) -> Any:
        """Return the payload with the error if the viewer may not run the mutation, else None.

        Raises Unauthenticated, in an `@atomic` request only at the stage that runs the fields.
        """
        batch: AtomicBatch | None = getattr(raw_info.context, "batch", None)
        try:
            raw_info.context.viewer.require(self.rule)
        except Unauthenticated:
            if batch is None or batch.stage is AtomicStage.RUN:
                raise
            return self._error_payload(ServiceUnavailable(ABORTED_MESSAGE, aborted=True))
        except Forbidden as refusal:
            log_refused_mutation_of_acting_viewer(raw_info, self.rule)
            payload = self._error_payload(refusal)
            if batch is not None:
                batch.payloads_with_errors[str(raw_info.path.key)] = payload
            return payload
        return None

    def apply(self, field: StrawberryField) -> None:
        super().apply(field)
        # a second schema applies it to the same fields, which are nullable already
        kind = field.type.of_type if isinstance(field.type, StrawberryOptional) else field.type
        self.name, self.payload = field.python_name, cast(type[MutationPayload], kind)
        field.type = StrawberryOptional(self.payload)

    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> MutationPayload:
        input_object = kwargs["input"]
        if (
            refusal := self.require_guard_or_return_refusal(info)
        ) is not None:  # for resolvers that are not bound
            return cast(MutationPayload, refusal)

        async def run_resolver() -> MutationPayload:
            payload: MutationPayload = await next_(source, info, **kwargs)
            return payload

        batch: AtomicBatch | None = getattr(info.context, "batch", None)
        if batch is None:
            return await self._execute_with_options_and_errors_as_payload(
                info, input_object, run_resolver
            )
        key = str(info.path.key)
        match batch.stage:
            case AtomicStage.INSPECT:
                return self._count_and_check_atomic_field(batch, key, input_object)
            case AtomicStage.RUN:
                batch.raise_if_cancelled()
                if not batch.payloads_with_errors:
                    payload = await self._execute_with_options_and_errors_as_payload(
                        info, input_object, run_resolver
                    )
                    if not payload.errors:
                        return payload
                    batch.payloads_with_errors[key] = payload
        return batch.payloads_with_errors.get(key) or self._error_payload(
            ServiceUnavailable(ABORTED_MESSAGE, aborted=True)
        )

    def _count_and_check_atomic_field(
        self, batch: "AtomicBatch", key: str, input_value: Any
    ) -> MutationPayload:
        """Count a field of an `@atomic` request and record why it can't run.

        Raises InvalidInput if the request has too many fields.
        """
        batch.field_count += 1
        if batch.field_count > MAX_ATOMIC_FIELDS:
            text = f"An @atomic request has at most {MAX_ATOMIC_FIELDS} fields."
            raise InvalidInput(text, constraint=ValidationConstraint.MAX)
        batch.is_dry_run |= bool(input_value.options and input_value.options.validate_only)
        if self.atomic_exclusion and self.atomic_exclusion.applies_to(input_value):
            refusal = Forbidden(
                f"{self.atomic_exclusion.subject} can't be part of an @atomic request."
            )
            batch.payloads_with_errors[key] = self._error_payload(refusal)
        return self.payload()

    async def _execute_with_options_and_errors_as_payload(
        self, info: Info, input_value: Any, run_resolver: Callable[[], Awaitable[MutationPayload]]
    ) -> MutationPayload:
        ctx, options = info.context, input_value.options or MutationOptions()

        async def complete_payload() -> MutationPayload:
            shared = ctx.viewer.user_id and ctx.viewer.share_visibility.has_shared_mailboxes
            # positions of shared streams
            before = await stream_reader.load_last_stream_positions(ctx) if shared else {}
            payload = await run_resolver()
            payload.warnings += [
                Warning(code=warning.code, message=warning.message, path=warning.path)
                for warning in ctx.warnings
            ]
            reached = {**before, **ctx.committed_position} if ctx.committed_position else {}
            # a longer cursor would be refused
            is_cursor_short = 0 < len(reached) <= MAX_CURSOR_STREAMS
            payload.journal_cursor = Cursor(reached) if is_cursor_short else None
            return _clear_unstored_and_set_task_counts(payload) if ctx.is_dry_run else payload

        try:
            refuse_access_grants_of_acting_viewer(ctx, to_camel_case(self.name), input_value)
            require_custom_data_of_input_within_limit(info, input_value)
            require_valid_conditions(input_value)
            require_references_in_lists(input_value)
            if self.atomic_exclusion:
                self.atomic_exclusion.require_idempotency_key_allowed(input_value)
            key = options.idempotency_key or ""
            idempotent_request = IdempotentRequest(
                key, f"{self.name} {_input_text(input_value)}" if key else ""
            )
            _set_context_from_options_or_refuse(ctx, options)
            if options.validate_only:
                return await (
                    complete_payload()
                    if ctx.is_in_transaction
                    else _begin_dry_run_and_resolve(ctx, complete_payload)
                )
            for left in reversed(range(MAX_TRIES)):
                try:
                    return await (
                        self._execute_idempotently(info, idempotent_request, complete_payload)
                        if idempotent_request.idempotency_key
                        else complete_payload()
                    )
                except GeneratedIdCollision:  # an `@atomic` request runs all fields again
                    if ctx.is_in_transaction or not left:
                        raise
                    _set_context_from_options_or_refuse(ctx, options)
            raise AssertionError("the last try returns or raises")
        except Unauthenticated:
            raise  # for the whole request: the client signs in and tries again
        except RequestError as refusal:
            return self._error_payload(refusal, input_value)
        except CorruptBlob as damage:
            log_damage([damage], getattr(ctx, "request_id", ""), str(info.path.key))
            return self._error_payload(DamagedContent(), input_value)

    def _error_payload(self, refusal: RequestError, input_value: Any = None) -> MutationPayload:
        errors = [
            MutationError.from_error(
                error_with_public_reference(error, input_value), path_in_input(error, input_value)
            )
            for error in refusal.all_errors
        ]
        return self.payload(errors=errors)

    async def _execute_idempotently(
        self,
        info: Info,
        request: IdempotentRequest,
        run_resolver: Callable[[], Awaitable[MutationPayload]],
    ) -> MutationPayload:
        """Run the mutation and store its payload in one transaction, or restore a stored payload.

        Raises the mutation's typed error, or ConcurrentDuplicate inside an `@atomic` request.
        """
        ctx = info.context
        earlier = await idempotency.find_payload_or_refuse_reused_key(ctx, request)
        if earlier is None:
            joined = ctx.is_in_transaction
            try:
                async with ctx.combined_transaction():
                    payload = await run_resolver()
                    await idempotency.store_payload(
                        ctx, request, idempotent_payloads.payload_as_json_without_secrets(payload)
                    )
                if not joined:
                    ctx.environment.reach_fault_point("answer")
                return payload
            except RequestError:
                async with ctx.write_session():  # wait for a concurrent request with the same key
                    earlier = await idempotency.find_payload_or_refuse_reused_key(ctx, request)
                if earlier is None:
                    raise
                if joined:  # the changes are part of the `@atomic` request
                    raise ConcurrentDuplicate from None
        return await idempotent_payloads.restore_payload(info, self.payload, earlier)


async def _begin_dry_run_and_resolve(
    ctx: Any, run_resolver: Callable[[], Awaitable[MutationPayload]]
) -> MutationPayload:
    """Return the payload of a mutation that is rolled back when its field is completed.

    Until then the objects of the payload are read as the mutation has left them.
    """
    trial: AsyncExitStack = ctx.trial_end
    try:
        await trial.enter_async_context(ctx.combined_transaction(commit=False))
        return await run_resolver()
    except BaseException:
        await trial.aclose()
        raise


def _clear_unstored_and_set_task_counts(payload: MutationPayload) -> MutationPayload:
    """Remove secrets and tokens from the payload of a trial, since they are not stored.

    If a task would do the work, the counts are those that the task would reach.
    """
    secrets = idempotent_payloads.secret_field_names(payload)
    for name in UNSTORED_PAYLOAD_FIELDS & vars(payload).keys() | secrets:
        setattr(payload, name, [] if isinstance(getattr(payload, name), list) else None)
    task = vars(payload).get("task")
    if task is not None and task.row.total_count is not None:
        for name, value in vars(payload).items():
            if name.endswith("_count") and value == 0:
                setattr(payload, name, type(value)(task.row.total_count))
    return payload


class AtomicStage(Enum):
    """The stage of an `@atomic` request."""

    INSPECT = auto()  # all fields are checked before the first one runs
    RUN = auto()
    REPORT = auto()  # payloads of the fields that are rolled back


class ConcurrentDuplicate(Exception):
    """A concurrent request with the same idempotency key was stored: run this one again."""


class AtomicRequest(Protocol):
    """An `@atomic` request that can be executed several times."""

    @property
    def context(self) -> Any: ...

    async def execute(self) -> ExecutionResult:
        """Execute all fields once and return the result."""


@dataclass
class AtomicBatch:
    """The state of an `@atomic` request.

    The request is executed twice, and a third time if it is rolled back, so that each payload has
    the selected fields under any alias, fragment or condition.
    """

    stage: AtomicStage = AtomicStage.INSPECT
    field_count: int = 0
    is_dry_run: bool = False  # if one field is a dry run, all are
    # by response name
    payloads_with_errors: dict[str, MutationPayload] = field(default_factory=dict)
    has_broken_field: bool = False  # a field of a payload raised an error
    result: ExecutionResult | None = None  # of the execution that is being committed

    @staticmethod
    def raise_if_cancelled() -> None:
        """Raise asyncio.CancelledError if the task is cancelled."""
        if cancel_safety.is_cancelled():
            raise asyncio.CancelledError


async def execute_atomically(request: AtomicRequest) -> ExecutionResult:
    """Run an `@atomic` request: all fields in one transaction, each in its own savepoint.

    It runs a second time after a conflict with a concurrent request. A second conflict gives a
    result with the error UNAVAILABLE.
    """
    result = await _execute_atomic_attempt(request)
    if _was_rolled_back_by_concurrent_transaction(result):
        result = await _execute_atomic_attempt(request)
        if _was_rolled_back_by_concurrent_transaction(result):
            busy = GraphQLError(
                CONFLICT_MESSAGE,
                original_error=ServiceUnavailable(CONFLICT_MESSAGE, component="store"),
            )
            return ExecutionResult(None, [busy])
    return result


async def _execute_atomic_attempt(request: AtomicRequest) -> ExecutionResult:
    batch = request.context.batch = AtomicBatch()
    query_result = await request.execute()
    if query_result.errors:
        return ExecutionResult(None, query_result.errors)
    result = query_result
    if not batch.payloads_with_errors:
        batch.stage = AtomicStage.RUN
        async with request.context.combined_transaction(commit=not batch.is_dry_run) as unit:
            result = await request.execute()
            batch.raise_if_cancelled()
            batch.has_broken_field = bool(result.errors)
            unit.commits &= not (batch.payloads_with_errors or batch.has_broken_field)
            batch.result = result if unit.commits else None
    if result.data is None or not (batch.payloads_with_errors or batch.has_broken_field):
        return result
    batch.stage = AtomicStage.REPORT
    result_after = await request.execute()
    return ExecutionResult(result_after.data, result.errors)


def _was_rolled_back_by_concurrent_transaction(result: ExecutionResult) -> bool:
    """True if the transaction was rolled back because of a concurrent one."""
    causes = [error.original_error for error in result.errors or ()]
    return any(
        isinstance(cause, ConcurrentDuplicate) or is_retryable_conflict(cause) for cause in causes
    )


def _input_text(input_value: Any) -> str:
    """Return the input as text, without the options, which may differ in a repeated call."""
    return repr({name: value for name, value in vars(input_value).items() if name != "options"})


def _set_context_from_options_or_refuse(ctx: Context, options: MutationOptions) -> None:
    """Set origin, reason and session of the context from the options.

    IP address and session for the logs are only taken from a trusted front end. Raises
    InvalidInput if a text is too long, and Forbidden if the network of that address is banned.
    """
    for name, text, limit in (
        ("idempotencyKey", options.idempotency_key, MAX_KEY_LENGTH),
        ("sessionId", options.session_id, MAX_TEXT_LENGTH),
        ("reason", options.reason, MAX_TEXT_LENGTH),
    ):
        if text and (len(text) > limit or not text.isprintable()):
            raise InvalidInput(
                f"Must have at most {limit} printable characters.",
                constraint=ValidationConstraint.LENGTH,
                path=["options", name],
            )
    ctx.committed_position, ctx.warnings = None, []
    ctx.origin = options.session_id or options.idempotency_key or ctx.session_id
    ctx.reason = options.reason or None
    if ctx.viewer.is_trusted_front_end:
        if options.client_ip:
            ctx.client_ip, ctx.has_named_client = options.client_ip, True
            if ctx.environment.refuses_ip(ctx.client_ip):
                text = "The network of the client is banned."
                raise Forbidden(text, path=["options", "clientIp"])
        ctx.session_id = options.session_id or ctx.session_id
