"""Execution of operations: context, deadline, checks before execution, and public errors."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import strawberry
from graphql import GraphQLError, OperationType
from strawberry.exceptions import MissingQueryError, StrawberryInputCoercionError
from strawberry.execution import optimized_is_awaitable
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType as Kind

from graph.execution.compiled_executor import CompiledExecutor, executor_class, executor_of
from graph.execution.damaged_data import damage_facts, log_damage
from graph.execution.deadlines import DeadlineExceeded, FieldDeadline
from graph.execution.documents.cost_limits import Limits
from graph.execution.documents.document_cache import NO_NUL, Documents, Known, has_nul, refused
from graph.execution.resolver_binding import quicken
from graph.execution.resolver_plans import Book
from graph.execution.response_size import AnswerBudget, AnswerTooLarge
from graph.execution.telemetry import Observed
from graph.http.admission_control import Guards, Live, Presence, Reader, Running
from graph.http.graphql_request import Question
from graph.subscriptions import result_stream
from graph.types.mutations import Batch, together
from mail.storage.blobs.errors import Corrupt
from models.errors import Code, Forbidden, Invalid, RateLimited, Refused, Unauthenticated
from models.runtime.concurrency_limits import Seat
from models.store.committed_transactions import WorkProgress, current_work
from models.store.outages import StoreUnavailable, unavailable
from models.users.roles import Role, opened
from resolvers.changes import stream_reader
from resolvers.context import Context

log = logging.getLogger(__name__)

# extensions.code of a refused query
RULES = {"id": "BAD_ID", "cursor": "BAD_CURSOR", "page": "BAD_PAGINATION"}
NO_LIMITS_SET = Limits()
STRANGER = "sign in first: no valid credential was sent"


@dataclass
class Operation(Context):
    """The context of an operation with its HTTP request or WebSocket."""

    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    observed: Observed | None = field(default=None, repr=False)
    guards: Guards | None = field(default=None, repr=False)
    presence: Presence | None = field(default=None, repr=False)  # of a request's client
    seat: Seat | None = field(default=None, repr=False)  # of a WebSocket
    reader: Reader | None = field(default=None, repr=False)  # the peer of a WebSocket
    live: Live | None = field(default=None, repr=False)  # connections of this process
    paid: bool = False  # the cost is already charged
    answer: AnswerBudget | None = field(default=None, repr=False)  # of the last execution
    batch: Batch | None = field(default=None, repr=False)  # the fields of an `@atomic` request
    field_deadline: FieldDeadline | None = field(default=None, repr=False)  # of a mutation
    trial_end: AsyncExitStack | None = field(default=None, repr=False)  # of the current root field


NO_BUGS = (
    AnswerTooLarge,
    Corrupt,
    Refused,
    DeadlineExceeded,
    MissingQueryError,
    StrawberryInputCoercionError,
)


class Schema(strawberry.Schema):
    """A schema that executes cached documents within limits and hides internal errors."""

    def __init__(
        self, *args: Any, limits: Limits = NO_LIMITS_SET, compiled: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        quicken(self._schema.type_map, self.schema_converter)
        self.limits = limits
        self.use(compiled=compiled)

    def use(self, *, compiled: bool) -> None:
        """Choose compiled or plain execution. A change clears the document cache."""
        chosen = executor_class(compiled=compiled)
        if chosen is not self.execution_context_class:
            self.execution_context_class = chosen
            compiles = issubclass(chosen, CompiledExecutor)
            self.documents = Documents(self._schema, self.limits, compiles=compiles)

    def find(self, context: Any, text: str, name: str | None) -> Known:
        """Return a prepared document with its operation.

        The caller is charged for reading a document that is not cached. A document that can't be
        run has faults.
        """
        guards: Guards | None = getattr(context, "guards", None)
        unknown = guards is not None and not self.documents.has(text, name)
        error = guards.unread(context, text) if guards and unknown else None
        return refused(name, error) if error else self.documents.find(text, name)

    async def execute(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: Any | None = None,
        root_value: Any | None = None,
        operation_name: str | None = None,
        allowed_operation_types: Iterable[Kind] | None = None,
        operation_extensions: dict[str, Any] | None = None,
    ) -> ExecutionResult:
        """Run a query or mutation and return its result with public errors.

        Raises MissingQueryError without a document, InvalidOperationTypeError for an operation
        type that is not allowed.
        """
        if not query:
            raise MissingQueryError
        context: Operation = context_value  # type: ignore[assignment]  # ty: ignore
        # a WebSocket has one context for all its operations
        if getattr(context, "presence", None) is None:
            context = context.fresh()
        with Observed(context, query) as observed:
            known = self.find(context, query, operation_name)
            observed.judged(known)
            if known.kind.value not in {kind.value for kind in allowed_operation_types or Kind}:
                raise InvalidOperationTypeError(Kind(known.kind.value))
            verdict = judged(known, variable_values, context, self.limits)
            result: ExecutionResult
            if verdict.refusals or known.book is None:
                result = PreExecutionError(data=None, errors=verdict.refusals)
            else:
                given = variable_values or {}
                run = Run(known, known.book, given, context, root_value, operation_extensions)
                result = await self._run(run)
                if context_value is not None:
                    context_value.answer = context.answer
            self.finish(result, context)
            if verdict.cost:
                result.extensions = {"cost": verdict.cost}
                observed.cost = verdict.cost["requested"]
            observed.sent = result
        return result

    async def stream(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: Any | None = None,
        root_value: Any | None = None,
        operation_name: str | None = None,
        operation_extensions: dict[str, Any] | None = None,
        allowed_operation_types: Iterable[Kind] | None = None,
    ) -> Any:
        """Return the results of any operation; a query or mutation has one result."""
        asked = Question(query or "", variable_values, operation_name, operation_extensions)
        return self._results(asked, context_value)

    async def _results(self, asked: Question, context: Any) -> AsyncGenerator[ExecutionResult]:
        async with aclosing(result_stream.stream(self, asked, context, encoded=False)) as results:
            async for told in results:
                yield told.result

    def judge(
        self, known: Known, variables: dict[str, Any] | None, context: Context
    ) -> list[GraphQLError]:
        """Return the errors for which a document must not be run."""
        return judged(known, variables, context, self.limits).refusals

    def finish(self, result: ExecutionResult, context: Context) -> None:
        """Log the internal errors of a result and make its errors public."""
        if result.errors:
            self._report(result.errors, context)
            settle(result, context)

    async def _run(self, run: "Run") -> ExecutionResult:
        """Run an operation until its end or its deadline."""
        if run.lasts:  # a mutation whose fields are committed one by one
            return await self._run_fields(run)
        work = WorkProgress()
        current_work.set(work)
        try:
            async with asyncio.timeout(self.limits.deadline) as clock:
                with Running(run.context, lasts=run.lasts):
                    await self._place(run)
                    return await (together(run) if run.known.atomic else run.execute())
        except TimeoutError as late:
            if clock.expired() and run.known.atomic:
                return await run.atomic_result_at_deadline(committed=work.committed)
            cause: Exception = DeadlineExceeded() if clock.expired() else late
        except Exception as error:  # noqa: BLE001 - a bug is masked, and logged once, by its result
            cause = error
        finally:
            current_work.set(None)
            run.context.forget()  # loaders and context refer to each other
        return PreExecutionError(None, [GraphQLError(str(cause), original_error=cause)])

    async def _run_fields(self, run: "Run") -> ExecutionResult:
        """Run a mutation. Each of its fields ends at the deadline."""
        ends_at = asyncio.get_running_loop().time() + self.limits.deadline
        run.context.field_deadline = FieldDeadline(ends_at)
        try:
            with Running(run.context, lasts=run.lasts):
                return await run.execute()
        except Exception as error:  # noqa: BLE001 - a bug is masked, and logged once, by its result
            return PreExecutionError(None, [GraphQLError(str(error), original_error=error)])
        finally:
            run.context.field_deadline = None
            run.context.forget()

    async def _place(self, run: "Run") -> None:
        """Read the journal position before any state, if the query asks for a cursor."""
        known, context = run.known, run.context
        if known.placed and known.kind is OperationType.QUERY and context.viewer.user_id:
            context.begun = await stream_reader.standing(context)

    def _report(self, errors: Sequence[GraphQLError], context: object) -> None:
        extra = {"request_id": getattr(context, "request_id", "")}
        if any(isinstance(error.original_error, DeadlineExceeded) for error in errors):
            log.warning("an operation was ended at its deadline", extra=extra)
        damaged = [error for error in errors if isinstance(error.original_error, Corrupt)]
        if damaged:
            causes = [error.original_error for error in damaged]
            log_damage(causes, extra["request_id"], ".".join(map(str, damaged[0].path or ())))
        bugs = [error for error in errors if is_bug(error)]
        if bugs:
            path = ".".join(map(str, bugs[0].path or ()))
            extra |= {"path": path, "errors": len(bugs)}
            log.error("a field broke", exc_info=bugs[0].original_error, extra=extra)


class Run(NamedTuple):
    """One run of an operation."""

    known: Known
    book: Book
    variables: dict[str, Any]
    context: Operation
    root: Any
    extensions: dict[str, Any] | None

    @property
    def lasts(self) -> bool:
        """True if it continues without its client, since some fields may be committed."""
        return self.known.kind is OperationType.MUTATION and not self.known.atomic

    async def atomic_result_at_deadline(self, *, committed: bool) -> ExecutionResult:
        """Return the result of an `@atomic` request at its deadline.

        Nothing is stored, so each field is null and has an error. If the deadline came during the
        commit, the result from before the commit is returned.
        """
        batch = self.context.batch
        if committed and batch is not None and batch.result is not None:
            return batch.result
        self.context.field_deadline = FieldDeadline(0, DeadlineExceeded(committed=committed))
        return await self.execute()

    async def execute(self) -> ExecutionResult:
        """Execute the operation once and return its result."""
        values = self.book.values(self.variables)
        if isinstance(values, list):
            return ExecutionResult(None, values)
        executor = executor_of(self.book, values, self.root, self.context, self.extensions)
        self.context.answer = executor.answer
        found: Any = executor.execute_operation()
        if optimized_is_awaitable(found):
            found = await found
        return ExecutionResult(found.data, found.errors)


class Verdict(NamedTuple):
    """The errors of an operation that must not be run, and its cost (None if it is invalid)."""

    refusals: list[GraphQLError]
    cost: dict[str, int] | None = None


def judged(
    known: Known, variables: dict[str, Any] | None, context: Context, limits: Limits
) -> Verdict:
    """Check whether the viewer may run a document with these variables, and charge its cost."""
    if known.faults:
        return Verdict([fault.error() for fault in known.faults])
    if variables and has_nul(variables):
        return Verdict([_error(NO_NUL, "BAD_USER_INPUT")])
    viewer = context.viewer
    cost = {"requested": known.cost(variables), "maximum": limits.budget(viewer.role)}
    refusal = next(_refusals(known, context, cost), None)
    return Verdict([refusal] if refusal else [], cost)


def _refusals(known: Known, context: Context, cost: dict[str, int]) -> Iterator[GraphQLError]:
    viewer, guards = context.viewer, getattr(context, "guards", None)
    stranger = viewer.role is Role.PUBLIC
    if viewer.read_only and known.kind is OperationType.MUTATION:
        yield _error("this credential is for reading only", "FORBIDDEN")
    for name in sorted(known.fields - viewer.operations if viewer.operations else ()):
        yield _error(f"this key is not for {name}", "FORBIDDEN")
    for scope in sorted(known.scopes - opened(viewer.scopes)):
        if stranger:
            yield _error(STRANGER, "UNAUTHENTICATED")
        yield _error(f"this needs the scope {scope}", "FORBIDDEN")
    if known.introspects and guards and (code := guards.hides(viewer)):
        yield _error("the schema is not shown here", code)
    if cost["requested"] > cost["maximum"]:
        message = "the operation costs {requested}, {maximum} are allowed"
        yield _error(message.format(**cost), "QUERY_TOO_COMPLEX")
    if guards and not getattr(context, "paid", False):
        yield from guards.charge(context, cost)


def _error(message: str, code: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": code})


def is_bug(error: GraphQLError) -> bool:
    """True if an error is a bug of the server: not expected and not caused by the client."""
    cause = error.original_error
    if cause is None or isinstance(cause, NO_BUGS) or unavailable(cause):
        return False
    if isinstance(cause, GraphQLError):  # of the type of an argument or of a field's value
        inside = error.path is not None and not error.message.startswith("Argument '")
        return inside and "code" not in (error.extensions or {})
    return True


def settle(result: Any, context: object) -> None:
    """Replace the errors of a result by public errors: with codes, without internal details."""
    errors: list[GraphQLError] | None = getattr(result, "errors", None)
    if errors:
        result.errors = [_settled(error, context) for error in errors]


def _settled(error: GraphQLError, context: object) -> GraphQLError:
    message, extensions = error.message, error.extensions or {}
    viewer = getattr(context, "viewer", None)
    if is_bug(error):
        message = "Something broke on our side."
        extensions = {
            "code": "INTERNAL_SERVER_ERROR",
            "requestId": getattr(context, "request_id", ""),
        }
    elif isinstance(error.original_error, Corrupt):
        message, extensions = damage_facts(getattr(context, "request_id", ""))
    elif failure := unavailable(error.original_error):
        message, extensions = failure.message, outage_facts(failure)
    elif isinstance(error.original_error, Refused):
        extensions = facts(error.original_error)
    elif isinstance(error.original_error, AnswerTooLarge | DeadlineExceeded):
        extensions = error.original_error.extensions
    elif isinstance(error.original_error, StrawberryInputCoercionError):
        message = "A member of an input is null that may be left out, but not be null."
        extensions = {"code": "BAD_USER_INPUT"}
    elif "code" not in extensions:  # a variable or an argument of the wrong type
        extensions = {"code": "BAD_USER_INPUT"}
    guards: Guards | None = getattr(context, "guards", None)
    if viewer is None or viewer.role is Role.PUBLIC or (guards and guards.hides(viewer)):
        message = message.partition(" Did you mean ")[0]
    made = GraphQLError(message, path=error.path, extensions=extensions)
    made.locations = error.locations
    return made


def outage_facts(failure: StoreUnavailable) -> dict[str, Any]:
    """Return the extensions of a temporary failure: the component and the time to retry."""
    seconds = max(1, round(failure.retry_after.total_seconds()))
    return {
        "code": "UNAVAILABLE",
        "component": str(failure.component),
        "retryAfter": f"PT{seconds}S",
        "retryAfterSeconds": seconds,
    }


def facts(refusal: Refused) -> dict[str, Any]:
    """Return the extensions of a typed error: the code, and for RateLimited the seconds to wait."""
    match refusal:
        case Unauthenticated():
            return {"code": "UNAUTHENTICATED"}
        case Forbidden():
            return {"code": "FORBIDDEN"}
        case Invalid():
            return {"code": RULES.get(refusal.constraint, "BAD_USER_INPUT")}
        case RateLimited():
            seconds = max(1, round(refusal.retry_after.total_seconds()))
            return {"code": "RATE_LIMITED", "retryAfterSeconds": seconds}
        case _ if refusal.code is Code.VALIDATION:
            return {"code": "BAD_USER_INPUT"}
        case _:
            return {"code": str(refusal.code)}
