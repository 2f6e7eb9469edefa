"""graphql-core's executor and ours give the same answers: to random documents, and to our own.

DIFFERENTIAL_CASES says how many of the random ones, DIFFERENTIAL_SEED which.
"""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from graphql import GraphQLSchema, parse

from graph.executor import CompiledExecutor
from graph.policy import Operation
from graph.schema import schema as real
from models.world import World
from resolvers import auth
from tests import differential_stored as stored
from tests.conftest import Client
from tests.differential import SIGHTS, Bench, Case, Direct, Planned, Tally, answered, frozen, told
from tests.differential_faults import FAULTS
from tests.differential_play import staged
from tests.differential_schema import make_schema
from tests.differential_values import Dice
from tests.furnished import demo_client

CASES = int(os.environ.get("DIFFERENTIAL_CASES", "10200" if "CI" in os.environ else "1200"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))

# graphql-core drops some of its own coroutines where a sibling fails at once
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Futures whose errors nobody asked for are part of the play."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def small() -> GraphQLSchema:
    return make_schema()._schema  # noqa: SLF001 - what graphql-core runs


@pytest.fixture(scope="module")
def large() -> GraphQLSchema:
    """The real schema, with computed fields that give made-up values."""
    return staged(real._schema)  # noqa: SLF001 - what graphql-core runs


@pytest.mark.parametrize("name", ["small", "large"])
async def test_random_documents_are_answered_alike(
    request: pytest.FixtureRequest, name: str
) -> None:
    tally = Tally()
    count = -(-CASES // SIGHTS // 2)
    await Bench(request.getfixturevalue(name), Planned).differences(
        tally, seed=SEED, documents=count
    )
    print(f"seed {SEED}: {tally}"[:200])  # noqa: T201 - pytest shows it where it fails
    assert not tally.differences, f"seed {SEED}\n" + "\n\n".join(tally.differences)
    assert tally.cases >= CASES // 2
    assert tally.with_errors > 0.15 * tally.cases
    assert tally.refused < 0.1 * tally.cases


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_faults_are_found(small: GraphQLSchema, fault: type[CompiledExecutor]) -> None:
    tally = Tally()
    bench = Bench(small, partial(Planned, executor=fault), small=False)
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
async def test_what_is_deep_or_wide_is_answered_alike(small: GraphQLSchema, name: str) -> None:
    bench, document = Bench(small, Planned), parse(WIDE[name])
    sides = bench.sides(document)
    for seed in range(SIGHTS):
        case = Case(WIDE[name], {}, seed, 0.0, most=1)
        plain, ours = [await bench.answer(side, case, document) for side in sides]
        assert plain == ours


@pytest.fixture
async def demo(world: World, http: httpx.AsyncClient, tmp_path: Path) -> Client:
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
    schema = real._schema  # noqa: SLF001 - what graphql-core runs
    documents = stored.queries(schema)
    assert len(documents) > 70
    filled = 0
    for nth, one in enumerate(documents):
        sides = Direct(schema, one.document), Planned(schema, one.document)
        for sight in range(SIGHTS):
            client = root if sight == SIGHTS - 1 else demo
            variables = stored.values(schema, one, known, Dice(SEED).at(nth, sight))
            answers = []
            for side in sides:
                viewer = await auth.sign_in(
                    client.world, {"authorization": f"Bearer {client.secret}"}
                )
                context = Operation(client.world, viewer)
                data, errors = await answered(side, context, variables)
                answers.append((frozen(data), sorted(map(told, errors))))
            assert answers[0] == answers[1], (one.place, variables)
            filled += data is not None and not errors
    assert filled > 2 * len(documents)
