"""Execution of operations: context, deadline, and checks before execution."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import strawberry
from graphql import GraphQLError, OperationType
from strawberry.exceptions import MissingQueryError
from strawberry.execution import optimized_is_awaitable
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType as Kind

from graph.execution.compiled_executor import (
    CompiledExecutor,
    create_executor_and_set_budget_in_context,
    supported_executor_class,
)
from graph.execution.damaged_data import log_damage
from graph.execution.deadlines import DeadlineExceeded, FieldDeadline
from graph.execution.documents.cost_limits import OperationLimits
from graph.execution.documents.document_cache import (
    NUL_ERROR,
    DocumentCache,
    PreparedDocument,
    refused_document,
)
from graph.execution.introspection_results import IntrospectionResults, is_introspection_only
from graph.execution.public_errors import is_bug, make_errors_public
from graph.execution.resolver_binding import bind_resolvers
from graph.execution.resolver_plans import PlanCache
from graph.execution.response_size import MAX_RESPONSE_BYTES, ResponseBudget
from graph.execution.strawberry_definitions import mark_one_of_inputs
from graph.execution.telemetry import OperationObserver
from graph.http.admission_control import (
    AdmissionControl,
    AdmittedOperation,
    ConnectionRegistry,
    RequestClient,
    SocketReader,
)
from graph.http.graphql_request import GraphqlRequest
from graph.http.rate_budgets import read_owner_or_none
from graph.subscriptions import result_stream
from graph.types.mutations import AtomicBatch, execute_atomically
from mail.storage.blobs.errors import CorruptBlob
from mail.text.storable_text import has_nul
from models.runtime.concurrency_limits import ConcurrencySlot
from models.sessions.live_sessions import SessionPeer
from models.store.committed_transactions import WorkProgress, current_work
from models.users.roles import Role, expand_scopes
from resolvers.changes import stream_reader
from resolvers.context import Context, ignore_byte_charge
from resolvers.operation_reads import operation_reads

log = logging.getLogger(__name__)

DEFAULT_LIMITS = OperationLimits()


@dataclass
class OperationContext(Context):
    """The context of an operation with its HTTP request or WebSocket."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    observer: OperationObserver | None = field(default=None, repr=False)
    guards: AdmissionControl | None = field(default=None, repr=False)
    presence: RequestClient | None = field(default=None, repr=False)  # of a request's client
    connection_slot: ConcurrencySlot | None = field(default=None, repr=False)  # of a WebSocket
    reader: SocketReader | None = field(default=None, repr=False)  # the peer of a WebSocket
    live: ConnectionRegistry | None = field(default=None, repr=False)  # connections of this process
    peer: SessionPeer = field(default=SessionPeer(), repr=False)  # of the connection
    live_session_id: int | None = field(default=None, repr=False)  # of a WebSocket
    paid: bool = False  # the cost is already charged
    answer: ResponseBudget | None = field(default=None, repr=False)  # of the last execution
    # the fields of an `@atomic` request
    batch: AtomicBatch | None = field(default=None, repr=False)
    field_deadline: FieldDeadline | None = field(default=None, repr=False)  # of a mutation
    trial_end: AsyncExitStack | None = field(default=None, repr=False)  # of the current root field

    def release_results(self) -> None:
        """Drop what the operation has loaded, after its response is encoded.

        The loaders and the response budget refer to the context, so without this the rows would
        stay in memory until a garbage collection, which stops the process for milliseconds.
        """
        self.clear_loaded()
        self.answer, self.charge_bytes = None, ignore_byte_charge


class ExecutableSchema(strawberry.Schema):
    """A schema that executes cached documents within limits and hides internal errors."""

    def __init__(
        self,
        *args: Any,
        limits: OperationLimits = DEFAULT_LIMITS,
        compiled: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        bind_resolvers(self._schema.type_map, self.schema_converter)
        mark_one_of_inputs(self._schema.type_map.values())
        self.limits = limits
        self.set_executor_and_clear_documents(is_compiled=compiled)

    def set_executor_and_clear_documents(self, *, is_compiled: bool) -> None:
        """Choose compiled or plain execution. A change clears the cached documents and results."""
        executor = supported_executor_class(is_compiled=is_compiled)
        if executor is not self.execution_context_class:
            self.execution_context_class = executor
            compiles = issubclass(executor, CompiledExecutor)
            self.documents = DocumentCache(self._schema, self.limits, can_compile=compiles)
            self.introspection_results = IntrospectionResults()

    def find_document_charging_if_uncached(
        self, context: Any, text: str, operation_name: str | None
    ) -> PreparedDocument:
        """Return a prepared document with its operation.

        The caller is charged for reading a document that is not cached. A document that can't be
        run has faults.
        """
        guards: AdmissionControl | None = getattr(context, "guards", None)
        unknown = guards is not None and not self.documents.is_cached(text, operation_name)
        error = guards.charge_document_reading(context, text) if guards and unknown else None
        return (
            refused_document(operation_name, error)
            if error
            else self.documents.find_or_prepare_with_faults(text, operation_name)
        )

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
        context: OperationContext = context_value  # type: ignore[assignment]  # ty: ignore
        # a WebSocket has one context for all its operations
        if getattr(context, "presence", None) is None:
            context = context.fresh_copy()
        with OperationObserver(context, query) as observed:
            document = self.find_document_charging_if_uncached(context, query, operation_name)
            observed.set_document_and_count_subscription(document)
            if document.operation_type.value not in {
                kind.value for kind in allowed_operation_types or Kind
            }:
                raise InvalidOperationTypeError(Kind(document.operation_type.value))
            verdict = check_and_charge_operation(document, variable_values, context, self.limits)
            result: ExecutionResult
            if verdict.errors or document.plan_cache is None:
                result = PreExecutionError(data=None, errors=verdict.errors)
            else:
                raw_variables = variable_values or {}
                run = OperationRun(
                    document,
                    document.plan_cache,
                    raw_variables,
                    context,
                    root_value,
                    operation_extensions,
                )
                with operation_reads(read_owner_or_none(context)) as loads:
                    result = await self._run_until_deadline(run)
                    if result.errors and _has_exceeded_deadline(result.errors):
                        loads.cancel()
                if context_value is not None:
                    context_value.answer = context.answer
            self.log_and_hide_internal_errors(result, context)
            if verdict.cost:
                result.extensions = {"cost": verdict.cost}
                observed.cost = verdict.cost["requested"]
            observed.result = result
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
        request = GraphqlRequest(query or "", variable_values, operation_name, operation_extensions)
        return self._stream_results(request, context_value)

    async def _stream_results(
        self, request: GraphqlRequest, context: Any
    ) -> AsyncGenerator[ExecutionResult]:
        async with aclosing(
            result_stream.stream_results(self, request, context, is_encoded=False)
        ) as results:
            async for result in results:
                yield result.result

    def check_and_charge_document(
        self, document: PreparedDocument, variables: dict[str, Any] | None, context: Context
    ) -> list[GraphQLError]:
        """Return the errors for which a document must not be run."""
        return check_and_charge_operation(document, variables, context, self.limits).errors

    def log_and_hide_internal_errors(self, result: ExecutionResult, context: Context) -> None:
        """Log the internal errors of a result and make its errors public."""
        if result.errors:
            self._log_deadlines_damage_and_bugs(result.errors, context)
            make_errors_public(result, context)

    async def _run_until_deadline(self, run: "OperationRun") -> ExecutionResult:
        """Run an operation until its end or its deadline."""
        if run.outlives_client:  # a mutation whose fields are committed one by one
            return await self._run_mutation_with_field_deadlines(run)
        progress = WorkProgress()
        current_work.set(progress)
        seconds = self.limits.deadline
        if is_introspection_only(run.document):
            seconds = self.limits.introspection_deadline
        try:
            async with asyncio.timeout(seconds) as clock:
                with AdmittedOperation(run.context, outlives_client=run.outlives_client):
                    await self._set_position_if_cursor_selected(run)
                    return await self._execute_or_find_result(run)
        except TimeoutError as late:
            if clock.expired() and run.document.is_atomic:
                return await run.atomic_result_at_deadline(committed=progress.committed)
            cause: Exception = DeadlineExceeded() if clock.expired() else late
        except Exception as error:  # noqa: BLE001 - a bug is masked, and logged once, by its result
            cause = error
        finally:
            current_work.set(None)
            run.context.clear_loaded()  # loaders and context refer to each other
        return PreExecutionError(None, [GraphQLError(str(cause), original_error=cause)])

    async def _execute_or_find_result(self, run: "OperationRun") -> ExecutionResult:
        """Execute an operation, unless it reads only the schema and its result is known."""
        if run.document.is_atomic:
            return await execute_atomically(run)
        if run.variables or not is_introspection_only(run.document):
            return await run.execute()
        guards: AdmissionControl | None = getattr(run.context, "guards", None)
        limit = guards.max_response_bytes if guards else MAX_RESPONSE_BYTES
        return await self.introspection_results.find_or_execute(run.document, run.execute, limit)

    async def _run_mutation_with_field_deadlines(self, run: "OperationRun") -> ExecutionResult:
        """Run a mutation. Each of its fields ends at the deadline."""
        ends_at = asyncio.get_running_loop().time() + self.limits.deadline
        run.context.field_deadline = FieldDeadline(ends_at)
        try:
            with AdmittedOperation(run.context, outlives_client=run.outlives_client):
                return await run.execute()
        except Exception as error:  # noqa: BLE001 - a bug is masked, and logged once, by its result
            return PreExecutionError(None, [GraphQLError(str(error), original_error=error)])
        finally:
            run.context.field_deadline = None
            run.context.clear_loaded()

    async def _set_position_if_cursor_selected(self, run: "OperationRun") -> None:
        """Read the journal position before any state, if the query asks for a cursor."""
        document, context = run.document, run.context
        if (
            document.reads_user_cursor
            and document.operation_type is OperationType.QUERY
            and context.viewer.user_id
        ):
            context.query_position = await stream_reader.load_last_stream_positions(context)

    def _log_deadlines_damage_and_bugs(
        self, errors: Sequence[GraphQLError], context: object
    ) -> None:
        extra = {"request_id": getattr(context, "request_id", "")}
        if _has_exceeded_deadline(errors):
            log.warning("Operation cancelled at its deadline", extra=extra)
        damaged = [error for error in errors if isinstance(error.original_error, CorruptBlob)]
        if damaged:
            causes = [error.original_error for error in damaged]
            log_damage(causes, extra["request_id"], ".".join(map(str, damaged[0].path or ())))
        bugs = [error for error in errors if is_bug(error)]
        if bugs:
            path = ".".join(map(str, bugs[0].path or ()))
            extra |= {"path": path, "errors": len(bugs)}
            log.error(
                "Field failed with an internal error", exc_info=bugs[0].original_error, extra=extra
            )


def _has_exceeded_deadline(errors: Iterable[GraphQLError]) -> bool:
    """True if an operation, or a field of a mutation, has exceeded its time limit."""
    return any(isinstance(error.original_error, DeadlineExceeded) for error in errors)


class OperationRun(NamedTuple):
    """One run of an operation."""

    document: PreparedDocument
    plan_cache: PlanCache
    variables: dict[str, Any]
    context: OperationContext
    root_value: Any
    extensions: dict[str, Any] | None

    @property
    def outlives_client(self) -> bool:
        """True if it continues without its client, since some fields may be committed."""
        return (
            self.document.operation_type is OperationType.MUTATION and not self.document.is_atomic
        )

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
        values = self.plan_cache.coerce_variables(self.variables)
        if isinstance(values, list):
            return ExecutionResult(None, values)
        executor = create_executor_and_set_budget_in_context(
            self.plan_cache,
            values,
            self.root_value,
            self.context,
            self.extensions,
            self.document.scopes - expand_scopes(self.context.viewer.scopes),
        )
        self.context.answer = executor.response_budget
        response: Any = executor.execute_operation()
        if optimized_is_awaitable(response):
            response = await response
        return ExecutionResult(response.data, response.errors)


class DocumentCheck(NamedTuple):
    """The errors of an operation that must not be run, and its cost (None if it is invalid)."""

    errors: list[GraphQLError]
    cost: dict[str, int] | None = None


def check_and_charge_operation(
    document: PreparedDocument,
    variables: dict[str, Any] | None,
    context: Context,
    limits: OperationLimits,
) -> DocumentCheck:
    """Check whether the viewer may run a document with these variables, and charge its cost."""
    if document.faults:
        return DocumentCheck([fault.to_error() for fault in document.faults])
    viewer = context.viewer
    cost = {
        "requested": document.cost_with_variables(variables),
        "maximum": limits.max_cost_of_role(viewer.role),
    }
    refusal = next(_check_permissions_and_charge_budget(document, context, cost), None)
    if refusal is None and variables and has_nul(variables):  # after the charge: it reads them all
        refusal = _coded_error(NUL_ERROR, "BAD_USER_INPUT")
    return DocumentCheck([refusal] if refusal else [], cost)


def _check_permissions_and_charge_budget(
    document: PreparedDocument, context: Context, cost: dict[str, int]
) -> Iterator[GraphQLError]:
    viewer, guards = context.viewer, getattr(context, "guards", None)
    if viewer.read_only and document.operation_type is OperationType.MUTATION:
        yield _coded_error("The credential is read-only.", "FORBIDDEN")
    for name in sorted(
        document.root_fields - viewer.allowed_operations if viewer.allowed_operations else ()
    ):
        yield _coded_error(f"The API key is not allowed for {name}.", "FORBIDDEN")
    # Of a query, and without a credential, only the fields are refused.
    is_query = document.operation_type is OperationType.QUERY
    can_miss_scopes = not is_query and viewer.role is not Role.PUBLIC
    missing_scopes = document.scopes - expand_scopes(viewer.scopes) if can_miss_scopes else ()
    for scope in sorted(missing_scopes):
        yield _coded_error(f"Requires the scope {scope}.", "FORBIDDEN")
    if document.is_introspection and guards and (code := guards.introspection_error_code(viewer)):
        yield _coded_error("Introspection is not allowed for this caller.", code)
    if cost["requested"] > cost["maximum"]:
        message = "The operation costs {requested} points. At most {maximum} are allowed."
        yield _coded_error(message.format(**cost), "QUERY_TOO_COMPLEX")
    if guards and not getattr(context, "paid", False):
        yield from guards.charge_operation_and_extend_cost(context, cost)


def _coded_error(message: str, code: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": code})
