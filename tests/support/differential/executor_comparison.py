"""The same operation through graphql-core's executor and another one: the answers must be equal."""

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from graphql import (
    REMOVE,
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    InlineFragmentNode,
    Node,
    NoUnusedFragmentsRule,
    NoUnusedVariablesRule,
    OperationType,
    VariableDefinitionNode,
    Visitor,
    default_field_resolver,
    default_type_resolver,
    get_operation_ast,
    parse,
    print_ast,
    specified_rules,
    validate,
    visit,
)
from graphql.execution import Executor
from graphql.execution.values import VariableValues, get_variable_values
from strawberry.execution import optimized_is_awaitable
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext as Stock

from graph.execution.compiled_executor import CompiledExecutor
from graph.execution.resolver_plans import PlanCache
from tests.support.differential.generated_results import Play
from tests.support.differential.random_documents import Author
from tests.support.differential.random_values import Dice

PLACE = re.compile(r"0x[0-9a-f]+")
ENOUGH = 3  # differences: each takes seconds to be made small
SIGHTS = 6  # runs of each document, with other values and variables
OUTCOMES = 2  # of the variables that decide of @skip and @include, for each document
SHARES = (0.0, 0.0, 0.01, 0.05, 0.15)  # of values that are odd
LONGEST = 10.0  # seconds of one execution
RULES = [r for r in specified_rules if r not in (NoUnusedFragmentsRule, NoUnusedVariablesRule)]
PARTS = (
    FieldNode,
    InlineFragmentNode,
    FragmentSpreadNode,
    DirectiveNode,
    FragmentDefinitionNode,
    VariableDefinitionNode,
)


@dataclass(frozen=True)
class Case:
    """One execution: what is asked, with what, and what the values hang on."""

    document: str
    variables: dict[str, Any]
    seed: int
    wrong: float
    most: int = 3  # items of a list


@dataclass
class Answer:
    """All that is to be equal."""

    data: Any
    errors: list[str]
    calls: list[str]


@dataclass
class Tally:
    """What was compared."""

    cases: int = 0
    with_errors: int = 0
    refused: int = 0  # before anything ran: the variables do not fit
    documents: int = 0
    differences: list[str] = field(default_factory=list)


def frozen(value: Any) -> Any:
    """A value so that equal ones are the same in every way: order of keys, types, texts."""
    if isinstance(value, dict):
        return type(value).__name__, [(name, frozen(one)) for name, one in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [frozen(one) for one in value]
    return type(value).__name__, PLACE.sub("0x", repr(value))


def told(error: GraphQLError) -> str:
    """All that a client hears of an error, and what the log and the codes are made of."""
    cause = error.original_error
    facts = (error.path, error.locations, frozen(error.extensions or {}), type(cause).__name__)
    return PLACE.sub("0x", f"{error.message} {facts} {cause}")


class Side(Protocol):
    """A way to run one document again and again."""

    def begin(self, context: Any, variables: dict[str, Any]) -> "Executor[Any] | list[Any]":
        """The executor of one run; errors where the variables do not fit."""


class Direct:
    """An executor as it comes: all is found out anew in each run."""

    def __init__(
        self, schema: GraphQLSchema, document: DocumentNode, executor: type[Executor[Any]] = Stock
    ) -> None:
        self.schema = schema
        self.document = document
        self.executor = executor

    def begin(self, context: Any, variables: dict[str, Any]) -> Executor[Any] | list[Any]:
        return self.executor.build(
            self.schema,
            self.document,
            context_value=context,
            raw_variable_values=variables,
            hide_suggestions=True,
        )


class Planned:
    """Ours, with the plans that a document keeps: from the first run on."""

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        executor: type[CompiledExecutor] = CompiledExecutor,
    ) -> None:
        operation = get_operation_ast(document)
        assert operation
        self.schema = schema
        self.executor = executor
        self.book = PlanCache.from_document(schema, document, operation, can_compile=True)
        self.book.plans_for_variables(
            VariableValues({}, {})
        )  # the first sight of a document is not compiled

    def begin(self, context: Any, variables: dict[str, Any]) -> Executor[Any] | list[Any]:
        book = self.book
        values = get_variable_values(
            self.schema,
            book.operation.variable_definitions or (),
            variables,
            hide_suggestions=True,
        )
        if isinstance(values, list):
            return values
        plans = book.plans_for_variables(values)
        if plans:
            context.memo = plans.selection_cache
        return self.executor(
            self.schema,
            book.definitions,
            book.fragments,
            None,
            context,
            book.operation,
            values,
            default_field_resolver,
            default_type_resolver,
            default_field_resolver,
            is_awaitable=optimized_is_awaitable,
            hide_suggestions=True,
            **({"plans": plans} if plans else {}),
        )


async def answered(
    side: Side, context: Any, variables: dict[str, Any]
) -> tuple[Any, list[GraphQLError]]:
    """Data and errors of one run."""
    executor = side.begin(context, dict(variables))
    if isinstance(executor, list):
        return None, executor
    event = executor.operation.operation is OperationType.SUBSCRIPTION
    if event:  # as each event of a stream is run
        executor = executor.build_per_event_executor(context.event(executor.operation))
    async with asyncio.timeout(LONGEST):
        result: Any = executor.execute_operation(False) if event else executor.execute_operation()
        if executor.is_awaitable(result):
            result = await result
        while executor.background_futures:  # what graphql-core has left behind
            await asyncio.wait(list(executor.background_futures))
    return result.data, list(result.errors or ())


Make = Callable[[GraphQLSchema, DocumentNode], Side]


@dataclass
class Bench:
    """Two ways to run a document, over one schema."""

    schema: GraphQLSchema
    other: Make
    plain: Make = Direct
    small: bool = True  # cases that differ are made small, which takes seconds

    async def differences(self, tally: Tally, *, seed: int, documents: int) -> None:
        """Compare so many random documents, each with several values, into the tally."""
        for number in range(documents):
            author = Author(self.schema, Dice(seed).at(number).seed)
            text = author.document()
            tally.documents += 1
            await self._sights(tally, author, text, Dice(seed).at(number, "values"))
            if len(tally.differences) >= (ENOUGH if self.small else 1):
                return

    async def _sights(self, tally: Tally, author: Author, text: str, dice: Dice) -> None:
        document = parse(text)
        sides = self.sides(document)
        for sight in range(SIGHTS):
            place = dice.at(sight)
            values = author.values(place, flags=dice.at("flags", sight % OUTCOMES))
            case = Case(text, values, place.seed, place.pick(SHARES))
            plain, other = [await self.answer(side, case, document) for side in sides]
            tally.cases += 1
            tally.with_errors += bool(plain.errors)
            tally.refused += not plain.calls and plain.data == frozen(None)
            if plain != other:
                tally.differences.append(await self.told(case))
                return

    def sides(self, document: DocumentNode) -> list[Side]:
        return [self.plain(self.schema, document), self.other(self.schema, document)]

    async def answer(self, side: Side, case: Case, document: DocumentNode) -> Answer:
        """What one side makes of a case."""
        definitions = document.definitions
        play = Play(
            self.schema,
            {n.name.value: n for n in definitions if isinstance(n, FragmentDefinitionNode)},
            seed=case.seed,
            wrong=case.wrong,
            most=case.most,
        )
        try:
            data, errors = await answered(side, play, case.variables)
        except (Exception, asyncio.CancelledError) as broken:  # noqa: BLE001 - both must, alike
            data, errors = ("broken", repr(broken)), []
        play.maker.close()
        return Answer(frozen(data), sorted(map(told, errors)), sorted(map(str, play.calls)))

    async def told(self, case: Case) -> str:
        """A difference in words, made as small as it gets."""
        small = await self._smaller(case) if self.small else case
        lines = [f"share of odd values {case.wrong}, seed {case.seed}, {case.variables}"]
        lines.append(small.document)
        document = parse(small.document)
        for side in self.sides(document):
            answer = await self.answer(side, small, document)
            lines += [f"{type(side).__name__}:", *(f"  {n}: {v}" for n, v in vars(answer).items())]
        return "\n".join(lines)

    async def _smaller(self, case: Case) -> Case:
        """A case with fewer selections that still differs."""
        again = True
        while again:
            again = False
            for text in shorter(case.document):
                less = replace(case, document=text)
                if await self.differs(less):
                    case, again = less, True
                    break
        return case

    async def differs(self, case: Case) -> bool:
        """Whether the answers to a case are others; False where it is no case at all."""
        try:
            document = parse(case.document)
        except GraphQLSyntaxError:
            return False
        if validate(self.schema, document, RULES):
            return False
        plain, other = [await self.answer(side, case, document) for side in self.sides(document)]
        return plain != other


def shorter(text: str) -> Iterator[str]:
    """The document with one part less, in turn: not all of these are valid."""
    parts = Part(-1)
    visit(parse(text), parts)
    for number in range(parts.seen):
        less = print_ast(visit(parse(text), Part(number)))
        if "{}" not in less:
            yield less


class Part(Visitor):
    """Takes the nth part out of a document."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.seen = 0

    def enter(self, node: Node, *_: Any) -> Any:
        if not isinstance(node, PARTS):
            return None
        self.seen += 1
        return REMOVE if self.seen - 1 == self.number else None
