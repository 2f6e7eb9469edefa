"""graphql-core's executor and ours give the same answers: to random documents, and to our own.

DIFFERENTIAL_CASES says how many of the random ones, DIFFERENTIAL_SEED which.
"""

import gc
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from graph.execution.operation_execution import OperationContext
from graph.execution.resolver_binding import ArgumentConverters, bind_resolvers
from graph.schema import schema as real
from models.runtime.environment import Environment
from resolvers.auth import authentication
from tests.conftest import Client
from tests.support.accounts.demo_account import demo_client
from tests.support.differential import project_documents
from tests.support.differential.comparison_schema import make_schema
from tests.support.differential.executor_comparison import (
    SIGHTS,
    Bench,
    Case,
    Direct,
    Planned,
    Tally,
    answered,
    frozen,
    told,
)
from tests.support.differential.faulty_executors import FAULTS
from tests.support.differential.generated_results import as_shipped, staged
from tests.support.differential.random_documents import Author
from tests.support.differential.random_values import Dice, definition
from tests.support.run_scope import ALL, CI

CASES = int(os.environ.get("DIFFERENTIAL_CASES", "6000" if ALL else "2400" if CI else "1200"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))

# graphql-core drops some of its own coroutines where a sibling fails at once. Where the collector
# finds them inside a named tuple's maker, which has no builtins, Python cannot even warn.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <coroutine object:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(autouse=True)
def _lists_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dataloaders batch would depend on time if long lists were completed in steps."""
    monkeypatch.setattr(list_steps, "MAX_STEP_CPU_SECONDS", math.inf)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Futures whose errors nobody asked for are part of the play, and so are coroutines.

    What is dropped here is collected here: in another test its warning would be an error.
    """
    logging.disable(logging.CRITICAL)
    yield
    gc.collect()
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def small() -> Bench:
    """The test's own schema: with resolvers as Strawberry makes them, and as we do."""
    plain, quick = make_schema(), make_schema()
    ours = quick._schema  # noqa: SLF001 - what graphql-core runs
    bind_resolvers(ours.type_map, quick.schema_converter)
    return Bench(plain._schema, lambda _, document: Planned(ours, document))  # noqa: SLF001


@pytest.fixture(scope="module")
def large() -> Bench:
    """The real schema, with computed fields that give made-up values."""
    return Bench(staged(real._schema), Planned)  # noqa: SLF001 - what graphql-core runs


@pytest.mark.parametrize("name", ["small", "large"])
async def test_random_documents_are_answered_alike(
    request: pytest.FixtureRequest, name: str
) -> None:
    tally, count = Tally(), -(-CASES // SIGHTS // 2)
    await request.getfixturevalue(name).differences(tally, seed=SEED, documents=count)
    print(f"seed {SEED}: {tally}"[:200])  # noqa: T201 - pytest shows it where it fails
    assert not tally.differences, f"seed {SEED}\n" + "\n\n".join(tally.differences)
    assert tally.cases >= CASES // 2
    assert tally.with_errors > 0.15 * tally.cases
    assert tally.refused < 0.1 * tally.cases


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_faults_are_found(small: Bench, fault: type[CompiledExecutor]) -> None:
    tally = Tally()
    bench = Bench(small.schema, partial(Planned, executor=fault), small=False)
    await bench.differences(tally, seed=SEED, documents=200)
    assert tally.differences, fault.__doc__


WIDE = {
    "forty lists deep": "{ branches " + "{ name kids " * 40 + "{ name }" + " }" * 40 + " }",
    "fifty nullable objects deep": "{ bare " + "{ n bare " * 50 + "{ n }" + " }" * 50 + " }",
    "three thousand aliases": "{ bare { " + " ".join(f"a{n}: n" for n in range(3000)) + " } }",
    "five hundred fragments": "{ bare { "
    + " ".join(f"...F{n}" for n in range(500))
    + " } }"
    + "".join(f" fragment F{n} on Bare {{ a{n}: n bare {{ b{n}: n }} }}" for n in range(500)),
    "a field merged three hundred times": "{ bare { " + "bare { n } " * 300 + "} }",
}


@pytest.mark.parametrize("name", WIDE)
async def test_what_is_deep_or_wide_is_answered_alike(small: Bench, name: str) -> None:
    document = parse(WIDE[name])
    sides = small.sides(document)
    for seed in range(SIGHTS):
        case = Case(WIDE[name], {}, seed, 0.0, most=1)
        plain, ours = [await small.answer(side, case, document) for side in sides]
        assert plain == ours


@pytest.fixture
async def demo(world: Environment, http: httpx.AsyncClient, tmp_path: Path) -> Client:
    return await demo_client(world, http, tmp_path)


@pytest.fixture
async def known(demo: Client) -> dict[str, str]:
    """Ids of things that are there."""
    found = (await demo(IDS))["viewer"]["user"]
    (message,) = found["messages"]["nodes"]
    return {
        "user": found["id"],
        "message": message["id"],
        "box": message["mailbox"]["id"],
        "thread": message["thread"]["id"],
        "gone": "msg_AAAAAAAAAAE",
    }


IDS = """{ viewer { user { id messages(first: 1, filter: {hasAttachment: true}) {
    nodes { id mailbox { id } thread { id } } } } } }"""


async def test_our_own_documents_are_answered_alike_from_the_store(
    demo: Client, root: Client, known: dict[str, str]
) -> None:
    if demo.world.database.dialect != "sqlite" and not CI:
        pytest.skip("both stores where there is time, in CI")
    schema = real._schema  # noqa: SLF001 - what graphql-core runs
    shipped = as_shipped(real)
    documents = project_documents.queries(schema)
    assert len(documents) > 70
    filled = 0
    for nth, one in enumerate(documents):
        sides = Direct(shipped, one.document), Planned(schema, one.document)
        for sight in range(SIGHTS):
            client = root if sight == SIGHTS - 1 else demo
            variables = project_documents.values(schema, one, known, Dice(SEED).at(nth, sight))
            answers = []
            for side in sides:
                viewer = await authentication.authenticate_request(
                    client.world, {"authorization": f"Bearer {client.secret}"}
                )
                context = OperationContext(client.world, viewer)
                data, errors = await answered(side, context, variables)
                answers.append((frozen(data), sorted(map(told, errors))))
            assert answers[0] == answers[1], (one.place, variables)
            filled += data is not None and not errors
    assert filled > 2 * len(documents)


INPUTS = 40  # of each field


def _outcome(make: Callable[[], Any]) -> str:
    try:
        return repr(make())
    except Exception as problem:  # noqa: BLE001 - both must refuse, for the same reason
        return type(problem).__name__


def test_arguments_become_what_strawberry_makes_of_them() -> None:
    schema, converter = real._schema, real.schema_converter  # noqa: SLF001 - graphql-core's
    inputs, author, seen = ArgumentConverters(converter), Author(schema, SEED), 0
    fields = [
        field
        for kind in schema.type_map.values()
        for field in getattr(kind, "fields", {}).values()
        if getattr(field, "args", None) and definition(field)
    ]
    assert len(fields) > 30
    for field in fields:
        known = definition(field)
        ours = inputs.arguments_converter(known)
        for _ in range(INPUTS):
            given = {}
            for name, argument in field.args.items():
                with suppress(GraphQLError, ValueError, TypeError, StrawberryInputCoercionError):
                    given[name] = coerce_input_value(author.input(argument.type, 3), argument.type)
            wanted = _outcome(
                partial(
                    convert_arguments,
                    given,
                    known.arguments,
                    converter.scalar_registry,
                    real.config,
                )
            )
            assert _outcome(partial(ours, given)) == wanted, (known.python_name, given)
            seen += bool(given)
    assert seen > 20 * len(fields)
