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

from graph.execution.compiled_executor import executor_of
from graph.execution.documents.document_cache import Known
from graph.execution.json_encoding import encode_answer, needs_steps
from graph.execution.plain_executor import PlainExecutor
from graph.execution.resolver_plans import Book
from graph.execution.response_size import AnswerBudget
from graph.http.graphql_request import Question, encode
from graph.types.fields import Standing
from models.events.journal import Position
from models.observability import metrics
from models.store.outages import StoreUnavailable, unavailable
from resolvers.context import Context

MADE = metrics.counter(
    "merganser_subscription_results", "Results made, each for one subscriber or for all who share."
)
AFTER = "after"


class Runner(Protocol):
    """The methods of a schema that streams of results use."""

    def find(self, context: Any, text: str, name: str | None) -> Known:
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

    def judge(
        self, known: Known, variables: dict[str, Any] | None, context: Context
    ) -> list[GraphQLError]:
        """Return the errors for which the document must not be run."""

    def finish(self, result: ExecutionResult, context: Context) -> None:
        """Log internal errors and make all errors public."""


@dataclass(slots=True)
class Told:
    """One result of a stream with its JSON text, which all subscribers of a group share.

    `positions` are those after the result; `has_more` is True if the next result exists already.
    Only streams of the journal set them.
    """

    result: ExecutionResult
    cursor: Position | None = None
    more: bool = False
    bare: bool = False  # nothing was executed
    _text: str | None = field(default=None, init=False, repr=False)

    @property
    def refused(self) -> bool:
        """True if the operation was refused before execution."""
        return isinstance(self.result, PreExecutionError)

    @property
    def text(self) -> str:
        """The JSON text of the result. It is encoded once; then the data is released."""
        if self._text is None:
            self._set_text(encode(self._payload()))
        return self._text or ""

    async def prepare(self, answer: AnswerBudget | None) -> Self:
        """Encode a large result in a thread, within its response limit; return the result."""
        if answer is not None and needs_steps(answer):
            self._set_text(await encode_answer(self._payload(), answer))
        return self

    def _payload(self) -> dict[str, Any]:
        payload: dict[str, Any] = dict(process_result(self.result))
        if self.bare:
            del payload["data"]
        return payload

    def _set_text(self, body: bytes) -> None:
        self._text = body.decode()
        if self.result.data:
            self.result = ExecutionResult(data={}, errors=self.result.errors)


async def stream(
    schema: Runner, asked: Question, context: Context, *, encoded: bool = True
) -> AsyncGenerator[Told]:
    """Run an operation of any type and yield its results; a query or mutation has one result.

    The first result is a PreExecutionError if the operation is refused. Errors of the event
    source and of an event are results too. With `is_encoded`, a large result has text and no data.
    Raises StorageUnavailable if a subscription can't continue now.
    """
    context = context.fresh()
    known = subscribed(schema, asked, context)
    if known is None:
        single = await _alone(schema, asked, context)
        answer: AnswerBudget | None = getattr(context, "answer", None) if encoded else None
        yield await Told(single, bare=early(single)).prepare(answer)
        return
    opened = begun(schema, known, asked, context)
    if isinstance(opened, list):
        yield _refused(schema, opened, context)
        return
    executor = opened.executor(context)
    source = create_source_event_stream(executor)
    if executor.is_awaitable(source):
        source = await cast("Awaitable[AsyncIterable[Any] | Answer]", source)
    if isinstance(source, Answer):
        _raise_outage(source.errors)
        yield _refused(schema, source.errors or [], context)
        return
    try:
        async with aclosing(cast("AsyncGenerator[Any]", source)) as items:
            async for item in items:
                running = opened.executor(context, item)
                result = await _event(running)
                _raise_outage(result.errors)
                made = ExecutionResult(data=result.data, errors=result.errors)
                yield await _told(schema, made, context, item).prepare(
                    running.answer if encoded else None
                )
                context.forget()
    except StoreUnavailable:
        raise
    except Exception as problem:
        if failure := unavailable(problem):
            raise failure from problem
        if isinstance(problem, GraphQLError):
            error = problem
        else:
            error = GraphQLError(str(problem), original_error=problem)
        yield _told(schema, ExecutionResult(data=None, errors=[error]), context)


def _raise_outage(errors: Sequence[GraphQLError] | None) -> None:
    """Raise StorageUnavailable if the database or object store caused one of these errors."""
    for error in errors or ():
        if failure := unavailable(error.original_error):
            raise failure


def farewell(schema: Runner, failure: StoreUnavailable, context: Context) -> Told:
    """Return the last result of a subscription that ends in an outage, with the time to retry."""
    error = GraphQLError(failure.message, original_error=failure)
    return _told(schema, ExecutionResult(data=None, errors=[error]), context)


@dataclass(frozen=True, slots=True)
class Opened:
    """A subscription that is allowed to start, with its coerced variables."""

    book: Book
    values: VariableValues

    def executor(self, context: Context, root: object = None) -> PlainExecutor:
        """Create the executor of the subscription or of one event."""
        return executor_of(self.book, self.values, root, context)


def subscribed(schema: Runner, asked: Question, context: Context) -> Known | None:
    """Return the document of a subscription; None if it is invalid or another operation."""
    known = schema.find(context, asked.query, asked.operation_name)
    good = not known.faults and known.kind is OperationType.SUBSCRIPTION
    return known if good else None


def begun(
    schema: Runner, known: Known, asked: Question, context: Context
) -> Opened | list[GraphQLError]:
    """Check a subscription; return it with its variables, or the errors that refuse it."""
    refusals = schema.judge(known, asked.variables, context)
    if refusals or known.book is None:
        return refusals
    book = known.book
    values = book.values(asked.variables or {})
    return values if isinstance(values, list) else Opened(book, values)


async def _alone(schema: Runner, asked: Question, context: Context) -> ExecutionResult:
    return await schema.execute(
        asked.query,
        variable_values=asked.variables,
        context_value=context,
        operation_name=asked.operation_name,
        operation_extensions=asked.extensions,
    )


async def _event(executor: PlainExecutor) -> Answer:
    result = execute_subscription_event(executor)
    return await result if isinstance(result, Awaitable) else result


def early(result: ExecutionResult) -> bool:
    """True if an operation was refused before execution: the response then has no `data`."""
    errors = result.errors or ()
    late = any((error.extensions or {}).get("code") == "DEADLINE_EXCEEDED" for error in errors)
    return bool(errors) and result.data is None and not late and not any(e.path for e in errors)


def _refused(schema: Runner, errors: list[GraphQLError], context: Context) -> Told:
    result = PreExecutionError(data=None, errors=errors)
    schema.finish(result, context)
    return Told(result, bare=True)


def _told(schema: Runner, result: ExecutionResult, context: Context, item: Any = None) -> Told:
    schema.finish(result, context)
    MADE.add()
    return Told(result, getattr(item, "cursor", None), getattr(item, "has_more", False))


@dataclass(frozen=True, slots=True)
class Sharing:
    """The facts by which subscriptions are grouped.

    `after_positions` is the argument `after`; `variables_json` has the other variables.
    """

    standing: Standing
    after: Position | None
    variables: str
    window: float  # seconds


def sharing(opened: Opened, asked: Question) -> Sharing | None:
    """Return how a subscription can be shared; None if it can't."""
    (*others, node) = opened.book.operation.selection_set.selections
    root = opened.book.schema.subscription_type
    if others or root is None or not isinstance(node, FieldNode) or node.directives:
        return None
    declared = root.fields[node.name.value]
    standing = _standing(declared)
    if standing is None:
        return None
    try:
        given = get_argument_values(declared, node, opened.values)
    except GraphQLError:  # the stream reports the error
        return None
    if given.get("user"):  # only its own stream can resolve the user
        return None
    variables = dict(asked.variables or {})
    if name := _only_after(opened.book, node):
        variables.pop(name, None)
    ordered = dict(sorted(variables.items()))
    window = given.get("batchWindow")
    return Sharing(
        standing,
        given.get(AFTER),
        encode(ordered).decode(),
        window.total_seconds() if window else 0,
    )


def _standing(declared: GraphQLField) -> Standing | None:
    definition = declared.extensions.get("strawberry-definition")
    return getattr(definition, "metadata", {}).get("load_positions")


def _only_after(book: Book, node: FieldNode) -> str | None:
    """Return the variable of the argument `after`, if it has no other use."""
    for argument in node.arguments or ():
        if argument.name.value == AFTER and isinstance(argument.value, VariableNode):
            name = argument.value.name.value
            uses = _Uses(name)
            walk(book.operation, uses)
            for fragment in book.definitions.values():
                walk(fragment, uses)
            return name if uses.count == 2 else None  # noqa: PLR2004 - it is declared, and used
    return None


class _Uses(Visitor):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.count = name, 0

    def enter_variable(self, node: VariableNode, *_: Any) -> None:
        self.count += node.name.value == self.name
