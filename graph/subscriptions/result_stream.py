"""The stream of results of a request: one execution per event of a subscription."""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, cast

from graphql import ExecutionResult as Answer
from graphql import FieldNode, GraphQLError, GraphQLField, OperationType, VariableNode, Visitor
from graphql import visit as walk
from graphql.execution import create_source_event_stream, execute_subscription_event
from graphql.execution.values import VariableValues, get_argument_values
from strawberry.http import process_result
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError

from graph.changes.types import ChangeBatch
from graph.execution.compiled_executor import create_executor_and_set_budget_in_context
from graph.execution.documents.document_cache import PreparedDocument
from graph.execution.json_encoding import encode_response, needs_stepwise_encoding
from graph.execution.plain_executor import PlainExecutor
from graph.execution.resolver_plans import PlanCache
from graph.execution.response_size import ResponseBudget, ResponseTooLarge
from graph.http.graphql_request import GraphqlRequest, encode_json
from graph.http.rate_budgets import read_owner_or_none
from graph.notifications.live_notifications import Notification
from graph.types.fields import LoadPositions
from models.events.journal import StreamPositions
from models.mailboxes.tables import SpecialUse
from models.observability import metrics
from models.store.outages import StorageUnavailable, storage_failure
from resolvers.changes.stream_reader import PositionUpdate
from resolvers.context import Context
from resolvers.operation_reads import operation_reads

SUBSCRIPTION_RESULTS = metrics.counter(
    "merganser_subscription_results",
    "Results computed, each for one subscriber or for all that share it.",
)
AFTER_ARGUMENT = "after"


class SubscriptionSchema(Protocol):
    """The methods of a schema that streams of results use."""

    def find_document_charging_if_uncached(
        self, context: Any, text: str, operation_name: str | None
    ) -> PreparedDocument:
        """Return a prepared document with its operation."""

    async def execute(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: Any | None = None,
        root_value: Any | None = None,
        operation_name: str | None = None,
        allowed_operation_types: Any = None,
        operation_extensions: dict[str, Any] | None = None,
    ) -> ExecutionResult: ...

    def check_and_charge_document(
        self, document: PreparedDocument, variables: dict[str, Any] | None, context: Context
    ) -> list[GraphQLError]:
        """Return the errors for which the document must not be run."""

    def log_and_hide_internal_errors(self, result: ExecutionResult, context: Context) -> None:
        """Log internal errors and make all errors public."""


@dataclass(slots=True)
class StreamResult:
    """One result of a stream with its JSON text, which all subscribers of a group share.

    `positions` are those after the result; `has_more` is True if the next result exists already.
    Only streams of the journal set them. A position update has no text and is not sent as a result.
    """

    result: ExecutionResult
    positions: StreamPositions | None = None
    has_more: bool = False
    has_no_data: bool = False  # nothing was executed
    is_position_update: bool = False
    _text: str | None = field(default=None, init=False, repr=False)

    @property
    def is_refused(self) -> bool:
        """True if the operation was refused before execution."""
        return isinstance(self.result, PreExecutionError)

    @property
    def client_positions(self) -> StreamPositions | None:
        """The positions that a client can resume from after this result; None without any.

        A result without data has not delivered its events, so that a client must not resume
        after them.
        """
        lacks_events = self.result.data is None and not self.is_position_update
        return None if lacks_events else self.positions

    @property
    def json_text(self) -> str:
        """The JSON text of the result. It is encoded once; then the data is released."""
        if self._text is None and not self.is_position_update:
            self._set_text(encode_json(self._payload()))
        return self._text or ""

    async def encode_if_large(self, response_budget: ResponseBudget | None) -> Self:
        """Encode a large result in a thread; return the result.

        If it exceeds the limit of the response, it becomes an error without data.
        """
        if response_budget is not None and needs_stepwise_encoding(response_budget):
            try:
                self._set_text(await encode_response(self._payload(), response_budget))
            except ResponseTooLarge as refusal:
                response_budget.is_exceeded = True
                error = GraphQLError(str(refusal), extensions=refusal.extensions)
                self.result = ExecutionResult(data=None, errors=[error])
        return self

    def _payload(self) -> dict[str, Any]:
        payload: dict[str, Any] = dict(process_result(self.result))
        if self.has_no_data:
            del payload["data"]
        return payload

    def _set_text(self, body: bytes) -> None:
        self._text = body.decode()
        if self.result.data:
            self.result = ExecutionResult(data={}, errors=self.result.errors)


async def stream_results(
    schema: SubscriptionSchema,
    request: GraphqlRequest,
    context: Context,
    *,
    is_encoded: bool = True,
) -> AsyncGenerator[StreamResult]:
    """Run an operation of any type and yield its results; a query or mutation has one result.

    The first result is a PreExecutionError if the operation is refused. Errors of the event
    source and of an event are results too. With `is_encoded`, a large result has text and no data.
    Raises StorageUnavailable if a subscription can't continue now.
    """
    context = context.fresh_copy()
    document = find_subscription_charging_if_uncached(schema, request, context)
    if document is None:
        single = await _execute_query_or_mutation(schema, request, context)
        answer: ResponseBudget | None = getattr(context, "answer", None) if is_encoded else None
        yield await StreamResult(
            single, has_no_data=was_refused_before_execution(single)
        ).encode_if_large(answer)
        return
    subscription = check_and_charge_subscription(schema, document, request, context)
    if isinstance(subscription, list):
        yield _refused_result(schema, subscription, context)
        return
    executor = subscription.create_executor(context)
    source = create_source_event_stream(executor)
    if executor.is_awaitable(source):
        source = await cast("Awaitable[AsyncIterable[Any] | Answer]", source)
    if isinstance(source, Answer):
        _raise_storage_failure(source.errors)
        yield _refused_result(schema, source.errors or [], context)
        return
    try:
        execution = EventExecution(schema, subscription, context, is_encoded=is_encoded)
        source_items = cast("AsyncGenerator[Any]", source)
        async with aclosing(execution.results_of_source(source_items)) as results:
            async for result in results:
                yield result
    except StorageUnavailable:
        raise
    except Exception as problem:
        if failure := storage_failure(problem):
            raise failure from problem
        if isinstance(problem, GraphQLError):
            error = problem
        else:
            error = GraphQLError(str(problem), original_error=problem)
        yield _result_with_public_errors(
            schema, ExecutionResult(data=None, errors=[error]), context
        )


@dataclass(frozen=True, slots=True)
class EventExecution:
    """The execution of the events of a subscription that is allowed to start."""

    schema: SubscriptionSchema
    subscription: "CheckedSubscription"
    context: Context
    is_encoded: bool

    async def results_of_source(self, source: AsyncGenerator[Any]) -> AsyncGenerator[StreamResult]:
        """Yield the results of all items of the source."""
        async with aclosing(source) as items:
            async for item in items:
                async for result in self._results_of_item(item):
                    yield result
                    self.context.clear_loaded()

    async def _results_of_item(self, item: Any) -> AsyncGenerator[StreamResult]:
        """Yield the result of an item of the source. A batch that is too large has several.

        Such a batch is executed in halves, until each result is within the limit of a response. A
        single change that is too large has an error as result.
        """
        if isinstance(item, PositionUpdate):
            yield _result_of_position_update(item)
            return
        parts = [item]
        while parts:
            part = parts.pop()
            result, is_too_large = await self._execute(part)
            if is_too_large and isinstance(part, ChangeBatch) and len(part.events) > 1:
                self.context.clear_loaded()
                parts.extend(reversed(part.split_in_halves()))
            else:
                yield result

    async def _execute(self, event: Any) -> tuple[StreamResult, bool]:
        """Return the result of an event, and whether it exceeds the limit of a response."""
        executor = self.subscription.create_executor(self.context, event)
        with operation_reads(read_owner_or_none(self.context)):
            executed = await _execute_event(executor)
        _raise_storage_failure(executed.errors)
        converted = ExecutionResult(data=executed.data, errors=executed.errors)
        result = _result_with_public_errors(self.schema, converted, self.context, event)
        budget = executor.response_budget
        await result.encode_if_large(budget if self.is_encoded else None)
        return result, budget.is_exceeded


def _raise_storage_failure(errors: Sequence[GraphQLError] | None) -> None:
    """Raise StorageUnavailable if the database or object store caused one of these errors."""
    for error in errors or ():
        if failure := storage_failure(error.original_error):
            raise failure


def outage_result(
    schema: SubscriptionSchema, failure: StorageUnavailable, context: Context
) -> StreamResult:
    """Return the last result of a subscription that ends in an outage, with the time to retry."""
    error = GraphQLError(failure.message, original_error=failure)
    return _result_with_public_errors(schema, ExecutionResult(data=None, errors=[error]), context)


@dataclass(frozen=True, slots=True)
class CheckedSubscription:
    """A subscription that is allowed to start, with its coerced variables."""

    plan_cache: PlanCache
    variable_values: VariableValues

    def create_executor(self, context: Context, root: object = None) -> PlainExecutor:
        """Create the executor of the subscription or of one event."""
        return create_executor_and_set_budget_in_context(
            self.plan_cache, self.variable_values, root, context
        )


def find_subscription_charging_if_uncached(
    schema: SubscriptionSchema, request: GraphqlRequest, context: Context
) -> PreparedDocument | None:
    """Return the document of a subscription; None if it is invalid or another operation."""
    document = schema.find_document_charging_if_uncached(
        context, request.document_text, request.operation_name
    )
    is_subscription = not document.faults and document.operation_type is OperationType.SUBSCRIPTION
    return document if is_subscription else None


def check_and_charge_subscription(
    schema: SubscriptionSchema,
    document: PreparedDocument,
    request: GraphqlRequest,
    context: Context,
) -> CheckedSubscription | list[GraphQLError]:
    """Check a subscription; return it with its variables, or the errors that refuse it."""
    refusals = schema.check_and_charge_document(document, request.variables, context)
    if refusals or document.plan_cache is None:
        return refusals
    book = document.plan_cache
    values = book.coerce_variables(request.variables or {})
    return values if isinstance(values, list) else CheckedSubscription(book, values)


async def _execute_query_or_mutation(
    schema: SubscriptionSchema, request: GraphqlRequest, context: Context
) -> ExecutionResult:
    return await schema.execute(
        request.document_text,
        variable_values=request.variables,
        context_value=context,
        operation_name=request.operation_name,
        operation_extensions=request.extensions,
    )


async def _execute_event(executor: PlainExecutor) -> Answer:
    result = execute_subscription_event(executor)
    return await result if isinstance(result, Awaitable) else result


def was_refused_before_execution(result: ExecutionResult) -> bool:
    """True if an operation was refused before execution: the response then has no `data`."""
    errors = result.errors or ()
    late = any((error.extensions or {}).get("code") == "DEADLINE_EXCEEDED" for error in errors)
    return bool(errors) and result.data is None and not late and not any(e.path for e in errors)


def _refused_result(
    schema: SubscriptionSchema, errors: list[GraphQLError], context: Context
) -> StreamResult:
    result = PreExecutionError(data=None, errors=errors)
    schema.log_and_hide_internal_errors(result, context)
    return StreamResult(result, has_no_data=True)


def _result_with_public_errors(
    schema: SubscriptionSchema, result: ExecutionResult, context: Context, source_event: Any = None
) -> StreamResult:
    schema.log_and_hide_internal_errors(result, context)
    SUBSCRIPTION_RESULTS.add()
    if isinstance(source_event, ChangeBatch | Notification):
        return StreamResult(result, source_event.cursor, source_event.has_more)
    return StreamResult(result)


def _result_of_position_update(update: PositionUpdate) -> StreamResult:
    nothing = ExecutionResult(data=None, errors=None)
    return StreamResult(nothing, update.position, update.has_more, is_position_update=True)


@dataclass(frozen=True, slots=True)
class SubscriptionSharing:
    """The facts by which subscriptions are grouped.

    `after_positions` is the argument `after`; `variables_json` has the other variables.
    """

    load_positions: LoadPositions
    after_positions: StreamPositions | None
    variables_json: str
    debounce: float  # seconds


def subscription_sharing_or_none(
    subscription: CheckedSubscription, request: GraphqlRequest
) -> SubscriptionSharing | None:
    """Return how a subscription can be shared; None if it can't."""
    (*other_nodes, node) = subscription.plan_cache.operation.selection_set.selections
    root = subscription.plan_cache.schema.subscription_type
    if other_nodes or root is None or not isinstance(node, FieldNode) or node.directives:
        return None
    declared = root.fields[node.name.value]
    load_positions = _load_positions_of_field(declared)
    if load_positions is None:
        return None
    try:
        arguments = get_argument_values(declared, node, subscription.variable_values)
    except GraphQLError:  # the stream reports the error
        return None
    if arguments.get("user"):  # only its own stream can resolve the user
        return None
    references = [arguments.get("mailbox"), *(arguments.get("mailboxes") or ())]
    if not all(map(_refers_to_fixed_mailbox, references)):
        return None
    variables = dict(request.variables or {})
    if name := _variable_used_only_by_after(subscription.plan_cache, node):
        variables.pop(name, None)
    ordered = dict(sorted(variables.items()))
    window = arguments.get("debounce")
    return SubscriptionSharing(
        load_positions,
        arguments.get(AFTER_ARGUMENT),
        encode_json(ordered).decode(),
        window.total_seconds() if window else 0,
    )


def _refers_to_fixed_mailbox(reference: dict[str, Any] | None) -> bool:
    """True without a reference, or if it can't name another mailbox after a rename."""
    if not reference or reference.get("id") or reference.get("objectId"):
        return True
    return reference.get("specialUse") == SpecialUse.INBOX or (
        str(reference.get("path")).upper() == SpecialUse.INBOX
    )


def _load_positions_of_field(field: GraphQLField) -> LoadPositions | None:
    definition = field.extensions.get("strawberry-definition")
    return getattr(definition, "metadata", {}).get("load_positions")


def _variable_used_only_by_after(plan_cache: PlanCache, node: FieldNode) -> str | None:
    """Return the variable of the argument `after`, if it has no other use."""
    for argument in node.arguments or ():
        if argument.name.value == AFTER_ARGUMENT and isinstance(argument.value, VariableNode):
            name = argument.value.name.value
            uses = _VariableUseCounter(name)
            walk(plan_cache.operation, uses)
            for fragment in plan_cache.definitions.values():
                walk(fragment, uses)
            return name if uses.count == 2 else None  # noqa: PLR2004 - it is declared, and used
    return None


class _VariableUseCounter(Visitor):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.count = name, 0

    def enter_variable(self, node: VariableNode, *_: Any) -> None:
        self.count += node.name.value == self.name
