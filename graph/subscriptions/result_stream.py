"""From a question to a stream of results: the outer step once, then one execution per event."""

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
AFTER = "after"  # the argument that says where a stream goes on


class Runner(Protocol):
    """What a schema does for its streams."""

    def find(self, context: Any, text: str, name: str | None) -> Known:
        """A document and its operation `name`."""

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
        """What speaks against running this, before anything of it is run."""

    def finish(self, result: ExecutionResult, context: Context) -> None:
        """Log its bugs, and make its errors ready to be sent."""


@dataclass(slots=True)
class Told:
    """One result of a stream. Who shares it shares its text.

    `cursor` is the position after it, `more` says that the next is there already; both are
    of streams of the journal only.
    """

    result: ExecutionResult
    cursor: Position | None = None
    more: bool = False
    bare: bool = False  # nothing was run that could have made `data`
    _text: str | None = field(default=None, init=False, repr=False)

    @property
    def refused(self) -> bool:
        """Whether nothing was run."""
        return isinstance(self.result, PreExecutionError)

    @property
    def text(self) -> str:
        """JSON of the result. Made once; then the data itself is let go."""
        if self._text is None:
            self._set_text(encode(self._payload()))
        return self._text or ""

    async def prepare(self, answer: AnswerBudget | None) -> Self:
        """Make the text of a large result ready, within the limit of its answer."""
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
    """Run an operation of any kind: a query or mutation is a stream of one.

    The first result is a PreExecutionError where it is refused. Errors of the source, and of
    the making of an event, are results too. If they are to be `encoded`, a large result has its
    text and no data. Raises StoreUnavailable if a subscription can't go on now.
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
    """Raise StoreUnavailable if the store or the object storage caused one of these errors."""
    for error in errors or ():
        if failure := unavailable(error.original_error):
            raise failure


def farewell(schema: Runner, failure: StoreUnavailable, context: Context) -> Told:
    """The last result of a subscription that can't be resumed: why, and when to subscribe again."""
    error = GraphQLError(failure.message, original_error=failure)
    return _told(schema, ExecutionResult(data=None, errors=[error]), context)


@dataclass(frozen=True, slots=True)
class Opened:
    """A subscription that may begin, with its variables as they are understood."""

    book: Book
    values: VariableValues

    def executor(self, context: Context, root: object = None) -> PlainExecutor:
        """What runs it, or one event of it."""
        return executor_of(self.book, self.values, root, context)


def subscribed(schema: Runner, asked: Question, context: Context) -> Known | None:
    """The document of a subscription; None where it is none, or wrong."""
    known = schema.find(context, asked.query, asked.operation_name)
    good = not known.faults and known.kind is OperationType.SUBSCRIPTION
    return known if good else None


def begun(
    schema: Runner, known: Known, asked: Question, context: Context
) -> Opened | list[GraphQLError]:
    """A subscription that may begin, or what speaks against it."""
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
    """Whether an operation was refused before it ran: then there is no `data`."""
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
    """How a subscription may be shared: from where it starts, and what else tells it apart.

    `after` is the position asked for. `variables` are those that matter besides it.
    """

    standing: Standing
    after: Position | None
    variables: str
    window: float  # seconds


def sharing(opened: Opened, asked: Question) -> Sharing | None:
    """How the subscription may be shared; None where it may not."""
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
    except GraphQLError:  # the stream itself will say so
        return None
    if given.get("user"):  # whose streams those are is known to the stream itself
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
    return getattr(definition, "metadata", {}).get("standing")


def _only_after(book: Book, node: FieldNode) -> str | None:
    """The variable that says where to go on, if it says nothing else."""
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
