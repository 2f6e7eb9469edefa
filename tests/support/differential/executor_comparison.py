"""Compare the results of graphql-core's executor and of another executor."""

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
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
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext as StrawberryExecutor

from graph.execution.compiled_executor import CompiledExecutor
from graph.execution.resolver_plans import PlanCache
from tests.support.differential.generated_results import GeneratedContext
from tests.support.differential.random_documents import DocumentGenerator
from tests.support.differential.random_values import PathRandom
from tests.support.time_limits import HANG_SECONDS

MEASURED_FIELDS = frozenset({"latency", "metrics", "statistics", "storageStatus", "uptime"})
MEMORY_ADDRESS = re.compile(r"0x[0-9a-f]+")
MAX_DIFFERENCES = 3  # the comparison stops then; it takes seconds to minimize each difference
RUNS_PER_DOCUMENT = 6  # of each document, with different values and variables
FLAG_OUTCOMES = 2  # per document: values of the variables in @skip and @include
ODD_SHARES = (0.0, 0.0, 0.01, 0.05, 0.15)  # shares of odd values
VALIDATION_RULES = [
    r for r in specified_rules if r not in (NoUnusedFragmentsRule, NoUnusedVariablesRule)
]
REMOVABLE_NODES = (
    FieldNode,
    InlineFragmentNode,
    FragmentSpreadNode,
    DirectiveNode,
    FragmentDefinitionNode,
    VariableDefinitionNode,
)


@dataclass(frozen=True)
class ComparisonCase:
    """One execution: a document, its variables, and what determines the generated values."""

    document: str
    variables: dict[str, Any]
    seed: int
    odd_share: float
    max_items: int = 3  # per list


@dataclass
class ExecutionOutcome:
    """The outcome of an execution, which must be equal for both executors."""

    data: Any
    errors: list[str]
    calls: list[str]


@dataclass
class ComparisonTally:
    """The number of comparisons, and the differences found."""

    cases: int = 0
    with_errors: int = 0
    refused: int = 0  # not executed, because the variables are invalid
    documents: int = 0
    differences: list[str] = field(default_factory=list)


def comparable_value(value: Any, *, is_measured: bool = False) -> Any:
    """A value that is equal only if the types, the order of keys and the texts are equal.

    Of values that are measured at each read, such as free bytes, only the shape and types count.
    """
    kind = type(value).__name__
    if isinstance(value, orjson.Fragment):  # a row of a list, already encoded
        return comparable_value(orjson.loads(orjson.dumps(value)), is_measured=is_measured)
    if isinstance(value, dict):
        return kind, [
            (
                name,
                comparable_value(member, is_measured=is_measured or name in MEASURED_FIELDS),
            )
            for name, member in value.items()
        ]
    if isinstance(value, list | tuple):
        return kind, [comparable_value(member, is_measured=is_measured) for member in value]
    return kind, "" if is_measured else MEMORY_ADDRESS.sub("0x", repr(value))


def comparable_error(error: GraphQLError) -> str:
    """The parts of an error that clients see, and that determine error codes and log entries."""
    cause = error.original_error
    details = (
        error.path,
        error.locations,
        comparable_value(error.extensions or {}),
        type(cause).__name__,
    )
    return MEMORY_ADDRESS.sub("0x", f"{error.message} {details} {cause}")


class DocumentRunner(Protocol):
    """Runs one document repeatedly with one executor."""

    def make_executor(self, context: Any, variables: dict[str, Any]) -> "Executor[Any] | list[Any]":
        """Return the executor of one run, or the errors if the variables are invalid."""


class UnplannedRunner:
    """Runs an executor without plans: each run analyzes the document again."""

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        executor: type[Executor[Any]] = StrawberryExecutor,
    ) -> None:
        self.schema = schema
        self.document = document
        self.executor = executor

    def make_executor(self, context: Any, variables: dict[str, Any]) -> Executor[Any] | list[Any]:
        return self.executor.build(
            self.schema,
            self.document,
            context_value=context,
            raw_variable_values=variables,
            hide_suggestions=True,
        )


class PlannedRunner:
    """Runs the compiled executor with cached plans, from the first run on."""

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
        self.plan_cache = PlanCache.from_document(schema, document, operation, can_compile=True)
        # the first execution of a document is not compiled
        self.plan_cache.count_run_or_create_plans(VariableValues({}, {}))

    def make_executor(self, context: Any, variables: dict[str, Any]) -> Executor[Any] | list[Any]:
        plan_cache = self.plan_cache
        values = get_variable_values(
            self.schema,
            plan_cache.operation.variable_definitions or (),
            variables,
            hide_suggestions=True,
        )
        if isinstance(values, list):
            return values
        plans = plan_cache.count_run_or_create_plans(values)
        if plans:
            context.memo = plans.selection_cache
        return self.executor(
            self.schema,
            plan_cache.definitions,
            plan_cache.fragments,
            None,
            context,
            plan_cache.operation,
            values,
            default_field_resolver,
            default_type_resolver,
            default_field_resolver,
            is_awaitable=optimized_is_awaitable,
            hide_suggestions=True,
            **({"plans": plans} if plans else {}),
        )


async def run_document(
    runner: DocumentRunner, context: Any, variables: dict[str, Any]
) -> tuple[Any, list[GraphQLError]]:
    """Run a document once and return data and errors."""
    executor = runner.make_executor(context, dict(variables))
    if isinstance(executor, list):
        return None, executor
    is_event = executor.operation.operation is OperationType.SUBSCRIPTION
    if is_event:  # as the server executes each event
        executor = executor.build_per_event_executor(context.event_value(executor.operation))
    async with asyncio.timeout(HANG_SECONDS):
        result: Any = (
            executor.execute_operation(False) if is_event else executor.execute_operation()
        )
        if executor.is_awaitable(result):
            result = await result
        while executor.background_futures:  # graphql-core doesn't wait for them
            await asyncio.wait(list(executor.background_futures))
    return result.data, list(result.errors or ())


MakeRunner = Callable[[GraphQLSchema, DocumentNode], DocumentRunner]


@dataclass
class ExecutorComparison:
    """A comparison of two runners of documents of one schema."""

    schema: GraphQLSchema
    make_other_runner: MakeRunner
    make_plain_runner: MakeRunner = UnplannedRunner
    minimizes_differences: bool = True  # takes seconds for each difference

    async def compare_random_documents(
        self, tally: ComparisonTally, *, seed: int, documents: int
    ) -> None:
        """Compare random documents, each with several variables, and count in `tally`."""
        for number in range(documents):
            generator = DocumentGenerator(self.schema, PathRandom(seed).derive(number).seed)
            text = generator.document()
            tally.documents += 1
            await self._compare_runs(
                tally, generator, text, PathRandom(seed).derive(number, "values")
            )
            if len(tally.differences) >= (MAX_DIFFERENCES if self.minimizes_differences else 1):
                return

    async def _compare_runs(
        self, tally: ComparisonTally, generator: DocumentGenerator, text: str, random: PathRandom
    ) -> None:
        document = parse(text)
        runners = self.make_runners(document)
        for run_number in range(RUNS_PER_DOCUMENT):
            run_random = random.derive(run_number)
            values = generator.variable_values(
                run_random, flag_random=random.derive("flags", run_number % FLAG_OUTCOMES)
            )
            case = ComparisonCase(text, values, run_random.seed, run_random.choice(ODD_SHARES))
            plain_outcome, other_outcome = [
                await self.run_case(runner, case, document) for runner in runners
            ]
            tally.cases += 1
            tally.with_errors += bool(plain_outcome.errors)
            tally.refused += not plain_outcome.calls and plain_outcome.data == comparable_value(
                None
            )
            if plain_outcome != other_outcome:
                tally.differences.append(await self.describe_difference(case))
                return

    def make_runners(self, document: DocumentNode) -> list[DocumentRunner]:
        return [
            self.make_plain_runner(self.schema, document),
            self.make_other_runner(self.schema, document),
        ]

    async def run_case(
        self, runner: DocumentRunner, case: ComparisonCase, document: DocumentNode
    ) -> ExecutionOutcome:
        """Run a case and return its outcome."""
        definitions = document.definitions
        context = GeneratedContext(
            self.schema,
            {
                definition.name.value: definition
                for definition in definitions
                if isinstance(definition, FragmentDefinitionNode)
            },
            seed=case.seed,
            odd_share=case.odd_share,
            max_items=case.max_items,
        )
        try:
            data, errors = await run_document(runner, context, case.variables)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - both must, alike
            data, errors = ("broken", repr(error)), []
        context.generator.close()
        return ExecutionOutcome(
            comparable_value(data),
            sorted(map(comparable_error, errors)),
            sorted(map(str, context.calls)),
        )

    async def describe_difference(self, case: ComparisonCase) -> str:
        """Describe a difference by the smallest case that still differs."""
        smallest = await self._minimize(case) if self.minimizes_differences else case
        lines = [f"share of odd values {case.odd_share}, seed {case.seed}, {case.variables}"]
        lines.append(smallest.document)
        document = parse(smallest.document)
        for runner in self.make_runners(document):
            outcome = await self.run_case(runner, smallest, document)
            lines += [
                f"{type(runner).__name__}:",
                *(f"  {name}: {value}" for name, value in vars(outcome).items()),
            ]
        return "\n".join(lines)

    async def _minimize(self, case: ComparisonCase) -> ComparisonCase:
        """Remove parts of the document as long as the outcomes still differ."""
        is_reduced = True
        while is_reduced:
            is_reduced = False
            for text in shorter_documents(case.document):
                shorter_case = replace(case, document=text)
                if await self.has_difference(shorter_case):
                    case, is_reduced = shorter_case, True
                    break
        return case

    async def has_difference(self, case: ComparisonCase) -> bool:
        """True if the document is valid and the outcomes of the case differ."""
        try:
            document = parse(case.document)
        except GraphQLSyntaxError:
            return False
        if validate(self.schema, document, VALIDATION_RULES):
            return False
        plain_outcome, other_outcome = [
            await self.run_case(runner, case, document) for runner in self.make_runners(document)
        ]
        return plain_outcome != other_outcome


def shorter_documents(text: str) -> Iterator[str]:
    """Yield the document without one of its parts, for each part. Some results are invalid."""
    counter = PartRemover(-1)
    visit(parse(text), counter)
    for number in range(counter.part_count):
        shorter_text = print_ast(visit(parse(text), PartRemover(number)))
        if "{}" not in shorter_text:
            yield shorter_text


class PartRemover(Visitor):
    """Removes the nth part of a document, and counts the parts."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.part_count = 0

    def enter(self, node: Node, *_: Any) -> Any:
        if not isinstance(node, REMOVABLE_NODES):
            return None
        self.part_count += 1
        return REMOVE if self.part_count - 1 == self.number else None
