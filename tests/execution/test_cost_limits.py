"""How large and how dear an operation may be."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from graphql import build_schema, get_introspection_query, parse

from graph.execution.documents.cost_limits import MAX_COUNT, OperationLimits, SelectionMeasure
from graph.execution.documents.document_cache import DocumentCache
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.context import Context, Viewer
from tests.support.servers.small_schema_server import a_world, make_schema

SCHEMA = make_schema()
USER, ADMIN = Viewer(7, Role.USER), Viewer(9, Role.DOMAIN_ADMIN)
SKIP = "@skip(if: false)"
SKIPPED = f"{{ hello {SKIP} item {SKIP} {{ name {SKIP} }} }}"
SPREAD = f"{{ ...f {SKIP} }} fragment f on Query {{ ... {SKIP} {{ odd {SKIP} }} }}"
THREE = "{ ...f } fragment f on Query { huge odd hello }"
SIDE_BY_SIDE = "{ ...a ...b ...c } " + " ".join(
    f"fragment {name} on Query {{ {field} }}"
    for name, field in (("a", "hello"), ("b", "huge"), ("c", "odd"))
)
TWICE = "{ item { name seen } item { name seen } }"
PAGE = "fragment g on ItemConnection { nodes { name } }"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Environment]:
    async with a_world(tmp_path) as world:
        yield world


def codes(query: str, name: str | None = None, **limits: Any) -> set[str]:
    known = DocumentCache(SCHEMA.documents.schema, OperationLimits(**limits)).find_or_read(
        query, name
    )
    return {fault.code for fault in known.faults}


def chain(many: int, inside: str = "...f{next}") -> str:
    """A fragment that spreads a fragment that spreads a fragment."""
    links = (
        f"fragment f{n} on Item {{ {inside.replace('{next}', str(n + 1))} }}" for n in range(many)
    )
    return f"{{ item {{ ...f0 }} }} {' '.join(links)} fragment f{many} on Item {{ name }}"


def nested(levels: int) -> str:
    return "{ item" + " { within" * (levels - 2) + " { name }" + " }" * (levels - 1)


@pytest.mark.parametrize("name", ["no variables", "variables"])
@pytest.mark.parametrize(
    "inside",
    [
        "...f{next} ...f{next}",
        "within { ...f{next} } w: within { ...f{next} }",
        "...f{next} ... on Item { ...f{next} }",
    ],
)
def test_a_bomb_of_fragments_is_refused_at_once(inside: str, name: str) -> None:
    bomb = chain(30, inside)
    if name == "variables":
        bomb = (
            "query ($n: Int) { items(first: $n) { nodes { ...f0 } } } " + bomb.partition("} }")[2]
        )
    start = time.process_time()
    assert codes(bomb) == {"QUERY_TOO_COMPLEX"}
    assert time.process_time() - start < 0.5  # ms in truth; doubling per level it were hours


@pytest.mark.parametrize(
    "query",
    [
        "{ " + "a " * 2400 + "}",
        "{ " + "item { name } " * 1100 + "}",
        chain(600),
        "{ item { ...f0 } } "
        + " ".join(f"fragment f{n} on Item {{ ...f{n} }}" for n in range(500)),
        "{ " + " ".join(f"a{n}: hello" for n in range(1500)) + "}",
        "{ " + "... { " * 150 + "hello" + " }" * 151,
        "{ hello " + "@include(if: true) " * 600 + "}",
        "{ __schema { " + " ".join(f"a{n}: types {{ name }}" for n in range(500)) + "} }",
    ],
)
def test_no_document_takes_long_to_be_refused(query: str) -> None:
    start = time.process_time()
    assert codes(query)
    assert time.process_time() - start < 2  # a tenth of it in truth


def test_depth() -> None:
    assert not codes(nested(16))
    assert codes(nested(17)) == {"QUERY_TOO_COMPLEX"}
    assert not codes(chain(14, "within { ...f{next} }"))
    assert codes(chain(15, "within { ...f{next} }")) == {"QUERY_TOO_COMPLEX"}


@pytest.mark.parametrize(
    ("limit", "fits", "exceeds"),
    [
        ("aliases", "{ a: hello b: hello }", "{ a: hello b: hello c: hello }"),
        ("aliases", "{ a: __typename }", "{ a: __typename b: __typename c: __typename }"),
        ("aliases", "{ hello }", "{ ...f } fragment f on Query { a: item { b: name c: name } }"),
        ("fields", "{ item { name } }", "{ item { name seen } }"),
        ("fields", "{ item { name __typename } }", THREE),
        ("root_fields", "{ hello huge }", "{ hello ...f } fragment f on Query { huge odd }"),
        ("root_fields", "{ item { name within { name } } }", "{ hello ... { huge odd } }"),
        ("directives", "{ hello @skip(if: true) }", SKIPPED),
        ("directives", "{ hello }", SPREAD),
        ("comparisons", "{ hello hello }", "{ hello hello hello }"),
        ("comparisons", "{ hello hello }", "{ hello ... { hello ... { hello } } }"),
        ("comparisons", "{ item { name } item { name } }", TWICE),
        ("comparisons", "{ hello ...f } fragment f on Query { hello }", SIDE_BY_SIDE),
        ("members", "{ hello }", "{ chosen(ids: {a: {b: 1}, c: 2}) { name } }"),
    ],
)  # fmt: skip
def test_each_limit_holds_through_fragments(limit: str, fits: str, exceeds: str) -> None:
    assert not codes(fits, None, **{limit: 2})
    assert codes(exceeds, None, **{limit: 2}) == {"QUERY_TOO_COMPLEX"}


def test_all_definitions_count_whichever_is_to_run() -> None:
    query = "query small { hello } query large { a: hello b: hello c: hello }"
    assert codes(query, "small", aliases=2) == {"QUERY_TOO_COMPLEX"}


def test_cycles_and_unknown_fragments_are_left_to_validation() -> None:
    assert codes("{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }") == {
        "GRAPHQL_VALIDATION_FAILED"
    }
    assert codes("{ ...nowhere }") == {"GRAPHQL_VALIDATION_FAILED"}


def test_the_usual_introspection_is_let_through() -> None:
    assert not codes(get_introspection_query(input_value_deprecation=True))


def test_measures_stop_at_a_ceiling() -> None:
    document = parse(chain(70, "...f{next} ...f{next}"))
    operation: Any = document.definitions[0]
    assert SelectionMeasure(document).selection_size(operation.selection_set).fields == MAX_COUNT


@pytest.mark.parametrize(
    ("query", "variables", "price"),
    [
        ("{ hello }", {}, 0),
        ("{ item { name } }", {}, 1),
        ("{ item { within { name } } a: item { name } }", {}, 3),
        ("{ item { dear } }", {}, 501),
        ("{ items { nodes { name } } }", {}, 21),
        ("{ items(first: 50) { nodes { name } } }", {}, 51),
        ("{ items(first: 50) { edges { node { name } } pageInfo { hasNextPage } } }", {}, 51),
        ("{ items(first: 50) { nodes { within { name } } } }", {}, 101),
        ("{ items(first: 0) { totalCount } }", {}, 1),
        ("{ items(first: 0) { nodes { name } } }", {}, 1),
        ("{ items(last: 7) { nodes { name } } }", {}, 8),
        ("{ items(first: 5, last: 7) { nodes { name } } }", {}, 8),
        ("{ items(first: -5) { nodes { name } } }", {}, 1),
        ("{ items(first: 2147483647) { nodes { name } } }", {}, 2147483648),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": 9}, 10),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {}, 21),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": None}, 21),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": -9}, 1),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": 4.0}, 5),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": float("inf")}, MAX_COUNT),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": True}, 21),
        ("query ($n: Int) { items(first: $n) { nodes { name } } }", {"n": "9"}, 21),
        ("query ($n: Int = 3) { items(first: $n) { nodes { name } } }", {}, 4),
        ("query ($n: Int = 3) { items(first: $n) { nodes { name } } }", {"n": 6}, 7),
        ('{ chosen(ids: ["a", "b", "c"]) { name } }', {}, 6),
        ('{ chosen(ids: ["a", "b", "c"]) { within { name } } }', {}, 9),
        ("query ($i: [ID!]!) { chosen(ids: $i) { name } }", {"i": ["a"] * 40}, 80),
        ('{ chosen(ids: "a") { name } }', {}, 2),
        (f"{{ ...f }} fragment f on Query {{ items(first: 2) {{ ...g }} }} {PAGE}", {}, 3),
        ("{ __typename }", {}, 0),
        ("{ __schema { types { name } } }", {}, 3000),
        ("{ __schema { types { name } a: types { name } } }", {}, 6000),
        ('{ __type(name: "Item") { name } }', {}, 20),
        ('mutation { change(text: "x") }', {}, 0),
    ],
)  # fmt: skip
def test_prices(query: str, variables: dict[str, Any], price: int) -> None:
    known = SCHEMA.documents.find_or_read(query, None)
    assert not known.faults
    assert known.cost_with_variables(variables) == price


def test_a_price_with_variables_is_worked_out_fast() -> None:
    links = " ".join(f"fragment f{n} on Item {{ ...f{n + 1} ...f{n + 1} }}" for n in range(8))
    query = f"""
      query ($n: Int!) {{ items(first: $n) {{ nodes {{ ...f0 }} }} }}
      {links} fragment f8 on Item {{ others(first: $n) {{ nodes {{ name }} }} }}
    """
    known = SCHEMA.documents.find_or_read(query, None)
    assert not known.faults
    took = []
    for _ in range(5):
        start = time.process_time()
        assert known.cost_with_variables({"n": 10}) == 1 + 10 * (1 + 2**8 * (1 + 10))
        took.append(time.process_time() - start)
    assert min(took) < 0.001


def test_a_long_chain_of_fragments_is_priced() -> None:
    link = "others(first: $n) { totalCount } ... on Item { ...f{next} }"
    query = chain(39, link).replace("{ item", "query ($n: Int!) { item", 1)
    known = SCHEMA.documents.find_or_read(query, None)
    assert not known.faults
    assert known.cost_with_variables({"n": 10}) == 1 + 39


async def run(world: Environment, viewer: Viewer, query: str, **variables: Any) -> Any:
    return await SCHEMA.execute(query, variables, Context(world, viewer))


ITEMS = "query ($n: Int!) { items(first: $n) { nodes { name } } }"


@pytest.mark.parametrize(
    ("viewer", "maximum"), [(Viewer(), 10_000), (USER, 10_000), (ADMIN, 100_000)]
)
async def test_the_budget_is_the_roles(world: Environment, viewer: Viewer, maximum: int) -> None:
    result = await run(world, viewer, ITEMS, n=maximum - 1)
    assert result.errors is None
    assert result.extensions == {"cost": {"requested": maximum, "maximum": maximum}}
    result = await run(world, viewer, ITEMS, n=maximum)
    assert result.data is None
    assert [error.extensions for error in result.errors] == [{"code": "QUERY_TOO_COMPLEX"}]
    assert result.extensions == {"cost": {"requested": maximum + 1, "maximum": maximum}}


def test_the_directive_is_printed_once_and_the_schema_is_valid() -> None:
    printed = SCHEMA.as_str()
    build_schema(printed)
    assert printed.count("directive @cost") == 1
    assert "@cost(perItem: true, weight: 2)" in printed
