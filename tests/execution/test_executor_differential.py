"""The compiled executor and graphql-core return the same: for random and for our own documents.

DIFFERENTIAL_CASES sets the number of random documents, DIFFERENTIAL_SEED the seed.
"""

import gc
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import GraphQLError, coerce_input_value, parse
from strawberry.exceptions import StrawberryInputCoercionError
from strawberry.types.arguments import convert_arguments

from graph.execution import list_steps
from graph.execution.compiled_executor import CompiledExecutor
from graph.execution.completed_rows import ROW_COUNTS
from graph.execution.operation_execution import OperationContext
from graph.execution.resolver_binding import ArgumentConverters, bind_resolvers
from graph.schema import schema as product_schema
from models.runtime import row_cache
from models.runtime.environment import Environment
from models.runtime.row_cache import DEFAULT_MAX_BYTES, RowCache
from resolvers.auth import authentication
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.accounts.demo_account import make_demo_client
from tests.support.differential import project_documents
from tests.support.differential.comparison_schema import make_schema
from tests.support.differential.executor_comparison import (
    RUNS_PER_DOCUMENT,
    ComparisonCase,
    ComparisonTally,
    DocumentRunner,
    ExecutorComparison,
    PlannedRunner,
    UnplannedRunner,
    comparable_error,
    comparable_value,
    run_document,
)
from tests.support.differential.faulty_executors import FAULTY_EXECUTORS
from tests.support.differential.generated_results import (
    schema_with_generated_resolvers,
    schema_with_strawberry_resolvers,
)
from tests.support.differential.random_documents import DocumentGenerator
from tests.support.differential.random_values import PathRandom, strawberry_definition
from tests.support.run_scope import CI, RUNS_ALL_TESTS

CASE_COUNT = int(os.environ.get("DIFFERENTIAL_CASES", "6000" if RUNS_ALL_TESTS else "1200"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))

# graphql-core drops some of its own coroutines if a sibling field fails at once. If the garbage
# collector finds them inside the constructor of a named tuple, which has no builtins, Python cannot
# even warn.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <coroutine object:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(autouse=True)
def _lists_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete long lists in one step: else the batches of dataloaders would depend on time."""
    monkeypatch.setattr(list_steps, "MAX_STEP_CPU_SECONDS", math.inf)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence warnings of futures and coroutines that are dropped on purpose.

    They are collected here: in another test their warnings would be errors.
    """
    logging.disable(logging.CRITICAL)
    yield
    gc.collect()
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def small_bench() -> ExecutorComparison:
    """The schema of this test: with the resolvers of Strawberry and with ours."""
    plain, bound = make_schema(), make_schema()
    bound_schema = bound._schema  # noqa: SLF001 - the schema that graphql-core executes
    bind_resolvers(bound_schema.type_map, bound.schema_converter)
    core_schema = plain._schema  # noqa: SLF001
    return ExecutorComparison(
        core_schema, lambda _, document: PlannedRunner(bound_schema, document)
    )


@pytest.fixture(scope="module")
def large_bench() -> ExecutorComparison:
    """The product's schema, with computed fields that return made-up values."""
    core_schema = product_schema._schema  # noqa: SLF001 - for graphql-core
    return ExecutorComparison(schema_with_generated_resolvers(core_schema), PlannedRunner)


@pytest.mark.parametrize("name", ["small_bench", "large_bench"], ids=["small", "large"])
async def test_random_documents_have_the_same_result(
    request: pytest.FixtureRequest, name: str
) -> None:
    tally, count = ComparisonTally(), -(-CASE_COUNT // RUNS_PER_DOCUMENT // 2)
    await request.getfixturevalue(name).compare_random_documents(tally, seed=SEED, documents=count)
    print(f"seed {SEED}: {tally}"[:200])  # noqa: T201 - pytest shows it if the test fails
    assert not tally.differences, f"seed {SEED}\n" + "\n\n".join(tally.differences)
    assert tally.cases >= CASE_COUNT // 2
    assert tally.with_errors > 0.15 * tally.cases
    assert tally.refused < 0.1 * tally.cases


@pytest.mark.parametrize("fault", FAULTY_EXECUTORS, ids=lambda fault: fault.__name__)
async def test_comparison_detects_faulty_executors(
    small_bench: ExecutorComparison, fault: type[CompiledExecutor]
) -> None:
    tally = ComparisonTally()
    bench = ExecutorComparison(
        small_bench.schema, partial(PlannedRunner, executor=fault), minimizes_differences=False
    )
    await bench.compare_random_documents(tally, seed=SEED, documents=200)
    assert tally.differences, fault.__doc__


DEEP_OR_WIDE_DOCUMENTS = {
    "forty lists deep": "{ branches " + "{ name kids " * 40 + "{ name }" + " }" * 40 + " }",
    "fifty nullable objects deep": "{ bare " + "{ n bare " * 50 + "{ n }" + " }" * 50 + " }",
    "three thousand aliases": "{ bare { " + " ".join(f"a{n}: n" for n in range(3000)) + " } }",
    "five hundred fragments": "{ bare { "
    + " ".join(f"...F{n}" for n in range(500))
    + " } }"
    + "".join(f" fragment F{n} on Bare {{ a{n}: n bare {{ b{n}: n }} }}" for n in range(500)),
    "a field merged three hundred times": "{ bare { " + "bare { n } " * 300 + "} }",
}


@pytest.mark.parametrize("name", DEEP_OR_WIDE_DOCUMENTS)
async def test_deep_or_wide_documents_have_the_same_result(
    small_bench: ExecutorComparison, name: str
) -> None:
    document = parse(DEEP_OR_WIDE_DOCUMENTS[name])
    sides = small_bench.make_runners(document)
    for seed in range(RUNS_PER_DOCUMENT):
        case = ComparisonCase(DEEP_OR_WIDE_DOCUMENTS[name], {}, seed, 0.0, max_items=1)
        plain, compiled = [await small_bench.run_case(side, case, document) for side in sides]
        assert plain == compiled


@pytest.fixture
async def demo_user(
    environment: Environment, http: httpx.AsyncClient, tmp_path: Path
) -> GraphQLClient:
    return await make_demo_client(environment, http, tmp_path)


@pytest.fixture
async def known_ids(demo_user: GraphQLClient) -> dict[str, str]:
    """Ids of stored objects, and one of a missing message."""
    user = (await demo_user(IDS_QUERY))["viewer"]["user"]
    (message,) = user["messages"]["nodes"]
    return {
        "user": user["id"],
        "message": message["id"],
        "box": message["mailbox"]["id"],
        "thread": message["thread"]["id"],
        "gone": "msg_AAAAAAAAAAE",
    }


IDS_QUERY = """{ viewer { user { id messages(first: 1, filter: {hasAttachment: true}) {
    nodes { id mailbox { id } thread { id } } } } } }"""


# Caches of rows of lists: without rows, with about three rows, and the default.
ROW_CACHE_SIZES = (0, 10_000, DEFAULT_MAX_BYTES)  # bytes
# A row is computed twice before it is cached: the third run of a document reads it.
RUNS_BY_USER = 5 if RUNS_ALL_TESTS else 3  # of each project document; `root` runs it once more


@dataclass(frozen=True)
class StoredDataRun:
    """A run of a project document by one viewer."""

    location: str  # of the document
    environment: Environment
    viewer: Viewer
    variables: dict[str, Any]

    async def run(self, runner: DocumentRunner) -> tuple[Any, list[str]]:
        """Run the document once and return data and errors in a form that can be compared."""
        context = OperationContext(self.environment, self.viewer)
        data, errors = await run_document(runner, context, self.variables)
        return comparable_value(data), sorted(map(comparable_error, errors))


async def compare_runs(
    runners: tuple[DocumentRunner, DocumentRunner],
    runs: list[StoredDataRun],
    caches: list[RowCache],
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Compare all runs of both runners, the second with each cache.

    A run like an earlier one is repeated only with the caches that have rows.
    Returns the number of runs that have data and no errors.
    """
    complete_count, expected_answers = 0, dict[tuple[int, str], Any]()
    for run in runs:
        # 1 and True are equal, but not as variables
        key = run.viewer.user_id, repr(run.variables)
        sides = [(runners[1], cache) for cache in caches[1:]]
        if key not in expected_answers:
            monkeypatch.setattr(row_cache, "ROW_CACHE", caches[0])
            expected_answers[key] = await run.run(runners[0])
            sides.insert(0, (runners[1], caches[0]))
        for runner, cache in sides:
            monkeypatch.setattr(row_cache, "ROW_CACHE", cache)
            assert await run.run(runner) == expected_answers[key], (run.location, run.variables)
        data, errors = expected_answers[key]
        complete_count += data != comparable_value(None) and not errors
    return complete_count


async def test_project_documents_have_the_same_result_on_stored_data(
    demo_user: GraphQLClient,
    root: GraphQLClient,
    known_ids: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if demo_user.environment.database.dialect != "sqlite" and not CI:
        pytest.skip("both stores where there is time, in CI")
    schema = product_schema._schema  # noqa: SLF001 - the schema that graphql-core executes
    graphql_core_schema = schema_with_strawberry_resolvers(product_schema)
    documents = project_documents.load_queries(schema)
    assert len(documents) > 70
    caches = [RowCache(size) for size in ROW_CACHE_SIZES]
    viewers = [
        await authentication.authenticate_request(
            root.environment, {"authorization": f"Bearer {client.secret}"}
        )
        for client in [demo_user] * RUNS_BY_USER + [root]
    ]
    complete_count = 0
    ROW_COUNTS.clear()
    for index, project_document in enumerate(documents):
        runs = [
            StoredDataRun(
                project_document.location,
                root.environment,
                viewer,
                project_documents.variable_values(
                    schema, project_document, known_ids, PathRandom(SEED).derive(index, number)
                ),
            )
            for number, viewer in enumerate(viewers)
        ]
        runners = (
            UnplannedRunner(graphql_core_schema, project_document.document),
            PlannedRunner(schema, project_document.document),
        )
        complete_count += await compare_runs(runners, runs, caches, monkeypatch)
    assert complete_count > len(viewers) * len(documents) // 3
    assert ROW_COUNTS["cached"] > len(documents)


INPUTS_PER_FIELD = 40


def _result_or_error(convert: Callable[[], Any]) -> str:
    try:
        return repr(convert())
    except Exception as error:  # noqa: BLE001 - both must raise the same error
        return type(error).__name__


def test_arguments_are_converted_as_by_strawberry() -> None:
    schema = product_schema._schema  # noqa: SLF001 - the schema of graphql-core
    converter = product_schema.schema_converter
    converters = ArgumentConverters(converter)
    author = DocumentGenerator(schema, SEED)
    converted_count = 0
    fields = [
        field
        for kind in schema.type_map.values()
        for field in getattr(kind, "fields", {}).values()
        if getattr(field, "args", None) and strawberry_definition(field)
    ]
    assert len(fields) > 30
    for field in fields:
        resolver = strawberry_definition(field)
        convert = converters.arguments_converter(resolver)
        for _ in range(INPUTS_PER_FIELD):
            arguments = {}
            for name, argument in field.args.items():
                with suppress(GraphQLError, ValueError, TypeError, StrawberryInputCoercionError):
                    arguments[name] = coerce_input_value(
                        author.input_value(argument.type, 3), argument.type
                    )
            expected = _result_or_error(
                partial(
                    convert_arguments,
                    arguments,
                    resolver.arguments,
                    converter.scalar_registry,
                    product_schema.config,
                )
            )
            assert _result_or_error(partial(convert, arguments)) == expected, (
                resolver.python_name,
                arguments,
            )
            converted_count += bool(arguments)
    assert converted_count > 20 * len(fields)
