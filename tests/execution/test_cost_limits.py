"""Limits of the size and the cost of an operation."""

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
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.case_loop import each_case
from tests.support.servers.small_schema_server import make_environment, make_schema

SCHEMA = make_schema()
USER, ADMIN = Viewer(7, Role.USER), Viewer(9, Role.DOMAIN_ADMIN)
SKIP_DIRECTIVE = "@skip(if: false)"
DIRECTIVES_ON_FIELDS = (
    f"{{ hello {SKIP_DIRECTIVE} item {SKIP_DIRECTIVE} {{ name {SKIP_DIRECTIVE} }} }}"
)
DIRECTIVES_ON_FRAGMENTS = (
    f"{{ ...f {SKIP_DIRECTIVE} }} "
    f"fragment f on Query {{ ... {SKIP_DIRECTIVE} {{ odd {SKIP_DIRECTIVE} }} }}"
)
FRAGMENT_OF_THREE_FIELDS = "{ ...f } fragment f on Query { huge odd hello }"
THREE_FRAGMENTS = "{ ...a ...b ...c } " + " ".join(
    f"fragment {name} on Query {{ {field} }}"
    for name, field in (("a", "hello"), ("b", "huge"), ("c", "odd"))
)
REPEATED_ITEM = "{ item { name seen } item { name seen } }"
PAGE_FRAGMENT = "fragment g on ItemConnection { nodes { name } }"


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[Environment]:
    async with make_environment(tmp_path) as environment:
        yield environment


def error_codes(query: str, name: str | None = None, **limits: Any) -> set[str]:
    prepared = DocumentCache(
        SCHEMA.documents.schema, OperationLimits(**limits)
    ).find_or_prepare_with_faults(query, name)
    return {fault.code for fault in prepared.faults}


def fragment_chain(count: int, content: str = "...f{next}") -> str:
    """Return a query with a chain of fragments, each of which spreads the next one."""
    links = (
        f"fragment f{n} on Item {{ {content.replace('{next}', str(n + 1))} }}" for n in range(count)
    )
    return f"{{ item {{ ...f0 }} }} {' '.join(links)} fragment f{count} on Item {{ name }}"


def nested_query(depth: int) -> str:
    return "{ item" + " { within" * (depth - 2) + " { name }" + " }" * (depth - 1)


@pytest.mark.parametrize("name", ["no variables", "variables"])
@pytest.mark.parametrize(
    "content",
    [
        "...f{next} ...f{next}",
        "within { ...f{next} } w: within { ...f{next} }",
        "...f{next} ... on Item { ...f{next} }",
    ],
)
def test_exponential_fragments_are_refused_fast(content: str, name: str) -> None:
    query = fragment_chain(30, content)
    if name == "variables":
        query = (
            "query ($n: Int) { items(first: $n) { nodes { ...f0 } } } " + query.partition("} }")[2]
        )
    start = time.process_time()
    assert error_codes(query) == {"QUERY_TOO_COMPLEX"}
    assert time.process_time() - start < 0.5  # takes some ms; exponential work would take hours


@pytest.mark.parametrize(
    "query",
    [
        "{ " + "a " * 2400 + "}",
        "{ " + "item { name } " * 1100 + "}",
        fragment_chain(600),
        "{ item { ...f0 } } "
        + " ".join(f"fragment f{n} on Item {{ ...f{n} }}" for n in range(500)),
        "{ " + " ".join(f"a{n}: hello" for n in range(1500)) + "}",
        "{ " + "... { " * 150 + "hello" + " }" * 151,
        "{ hello " + "@include(if: true) " * 600 + "}",
        "{ __schema { " + " ".join(f"a{n}: types {{ name }}" for n in range(500)) + "} }",
    ],
)
def test_large_document_is_refused_fast(query: str) -> None:
    start = time.process_time()
    assert error_codes(query)
    assert time.process_time() - start < 2  # takes a tenth of it


def test_depth_limit_counts_fields_and_fragments() -> None:
    assert not error_codes(nested_query(16))
    assert error_codes(nested_query(17)) == {"QUERY_TOO_COMPLEX"}
    assert not error_codes(fragment_chain(14, "within { ...f{next} }"))
    assert error_codes(fragment_chain(15, "within { ...f{next} }")) == {"QUERY_TOO_COMPLEX"}


@pytest.mark.parametrize(
    ("limit", "fits", "exceeds"),
    [
        ("aliases", "{ a: hello b: hello }", "{ a: hello b: hello c: hello }"),
        ("aliases", "{ a: __typename }", "{ a: __typename b: __typename c: __typename }"),
        ("aliases", "{ hello }", "{ ...f } fragment f on Query { a: item { b: name c: name } }"),
        ("fields", "{ item { name } }", "{ item { name seen } }"),
        ("fields", "{ item { name __typename } }", FRAGMENT_OF_THREE_FIELDS),
        ("root_fields", "{ hello huge }", "{ hello ...f } fragment f on Query { huge odd }"),
        ("root_fields", "{ item { name within { name } } }", "{ hello ... { huge odd } }"),
        ("directives", "{ hello @skip(if: true) }", DIRECTIVES_ON_FIELDS),
        ("directives", "{ hello }", DIRECTIVES_ON_FRAGMENTS),
        ("comparisons", "{ hello hello }", "{ hello hello hello }"),
        ("comparisons", "{ hello hello }", "{ hello ... { hello ... { hello } } }"),
        ("comparisons", "{ item { name } item { name } }", REPEATED_ITEM),
        ("comparisons", "{ hello ...f } fragment f on Query { hello }", THREE_FRAGMENTS),
        ("members", "{ hello }", "{ chosen(ids: {a: {b: 1}, c: 2}) { name } }"),
    ],
)  # fmt: skip
def test_each_limit_applies_inside_fragments(limit: str, fits: str, exceeds: str) -> None:
    assert not error_codes(fits, None, **{limit: 2})
    assert error_codes(exceeds, None, **{limit: 2}) == {"QUERY_TOO_COMPLEX"}


def test_limits_count_all_operations_of_a_document() -> None:
    query = "query small { hello } query large { a: hello b: hello c: hello }"
    assert error_codes(query, "small", aliases=2) == {"QUERY_TOO_COMPLEX"}


def test_fragment_cycles_and_unknown_fragments_fail_validation() -> None:
    assert error_codes("{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }") == {
        "GRAPHQL_VALIDATION_FAILED"
    }
    assert error_codes("{ ...nowhere }") == {"GRAPHQL_VALIDATION_FAILED"}


def test_standard_introspection_query_is_accepted() -> None:
    assert not error_codes(get_introspection_query(input_value_deprecation=True))


def test_selection_size_stops_at_maximum_count() -> None:
    document = parse(fragment_chain(70, "...f{next} ...f{next}"))
    operation: Any = document.definitions[0]
    assert SelectionMeasure(document).selection_size(operation.selection_set).fields == MAX_COUNT


@pytest.mark.parametrize(
    ("query", "variables", "cost"),
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
        (f"{{ ...f }} fragment f on Query {{ items(first: 2) {{ ...g }} }} {PAGE_FRAGMENT}", {}, 3),
        ("{ __typename }", {}, 0),
        ("{ __schema { types { name } } }", {}, 3000),
        ("{ __schema { types { name } a: types { name } } }", {}, 6000),
        ('{ __type(name: "Item") { name } }', {}, 20),
        ('mutation { change(text: "x") }', {}, 25),
    ],
)  # fmt: skip
def test_cost_of_operation_with_variables(query: str, variables: dict[str, Any], cost: int) -> None:
    prepared = SCHEMA.documents.find_or_prepare_with_faults(query, None)
    assert not prepared.faults
    assert prepared.cost_with_variables(variables) == cost


def test_cost_with_variables_is_computed_fast() -> None:
    links = " ".join(f"fragment f{n} on Item {{ ...f{n + 1} ...f{n + 1} }}" for n in range(8))
    query = f"""
      query ($n: Int!) {{ items(first: $n) {{ nodes {{ ...f0 }} }} }}
      {links} fragment f8 on Item {{ others(first: $n) {{ nodes {{ name }} }} }}
    """
    prepared = SCHEMA.documents.find_or_prepare_with_faults(query, None)
    assert not prepared.faults
    durations = []
    for _ in range(5):
        start = time.process_time()
        assert prepared.cost_with_variables({"n": 10}) == 1 + 10 * (1 + 2**8 * (1 + 10))
        durations.append(time.process_time() - start)
    assert min(durations) < 0.001


def test_cost_of_long_fragment_chain_is_computed() -> None:
    link = "others(first: $n) { totalCount } ... on Item { ...f{next} }"
    query = fragment_chain(39, link).replace("{ item", "query ($n: Int!) { item", 1)
    prepared = SCHEMA.documents.find_or_prepare_with_faults(query, None)
    assert not prepared.faults
    assert prepared.cost_with_variables({"n": 10}) == 1 + 39


async def execute(environment: Environment, viewer: Viewer, query: str, **variables: Any) -> Any:
    return await SCHEMA.execute(query, variables, Context(environment, viewer))


ITEMS_QUERY = "query ($n: Int!) { items(first: $n) { nodes { name } } }"


async def test_cost_limit_depends_on_the_role(environment: Environment) -> None:
    cases: list[tuple[Viewer, int]] = [(Viewer(), 10_000), (USER, 10_000), (ADMIN, 100_000)]
    for case in each_case(cases):
        with case as (viewer, maximum):
            result = await execute(environment, viewer, ITEMS_QUERY, n=maximum - 1)
            assert result.errors is None
            assert result.extensions == {"cost": {"requested": maximum, "maximum": maximum}}
            result = await execute(environment, viewer, ITEMS_QUERY, n=maximum)
            assert result.data is None
            assert [error.extensions for error in result.errors] == [{"code": "QUERY_TOO_COMPLEX"}]
            assert result.extensions == {"cost": {"requested": maximum + 1, "maximum": maximum}}


def test_cost_directive_is_printed_once_in_valid_schema() -> None:
    printed = SCHEMA.as_str()
    build_schema(printed)
    assert printed.count("directive @cost") == 1
    assert "@cost(perItem: true, weight: 2)" in printed
