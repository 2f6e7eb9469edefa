"""The size of arguments is part of the cost, and is charged before the arguments are read."""

import time
from typing import Any

import pytest

from graph.schema import schema
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.lists.large_inputs import LONG_LISTS, large_requests, request_with_value

MAX_CPU_SECONDS = 1.0  # a refusal takes some ms; without it each request takes several seconds
FILTER_OF_1000_PARTS = {"or": [{"seen": True}] * 999}


def aliased_fields(field: str, count: int = 40) -> str:
    return " ".join(f"a{n}: {field}" for n in range(count))


async def refuse_within_cpu_limit(
    client: GraphQLClient, document: str, **variables: Any
) -> list[tuple[str, str]]:
    """Run a document and return the codes and messages of its errors."""
    start = time.process_time()
    response = await client.execute(document, **variables)
    assert time.process_time() - start < MAX_CPU_SECONDS
    return [(error["extensions"]["code"], error["message"]) for error in response["errors"]]


async def test_large_filter_in_many_fields_is_refused_by_cost(ada: GraphQLClient) -> None:
    cases: list[str] = [
        "messages(filter: $filter) { totalCount }",
        "searchParse(filter: $filter) { text }",
    ]
    for case in each_case(cases):
        with case as field:
            document = f"query ($filter: MessageFilter) {{ {aliased_fields(field)} }}"
            ((code, message),) = await refuse_within_cpu_limit(
                ada, document, filter=FILTER_OF_1000_PARTS
            )
            assert code == "QUERY_TOO_COMPLEX"
            assert message.endswith(" points. At most 10000 are allowed.")


async def test_filter_with_too_many_parts_is_refused(ada: GraphQLClient) -> None:
    cases: list[str] = [
        "messages(filter: $filter) { totalCount }",
        "searchParse(filter: $filter) { text }",
    ]
    for case in each_case(cases):
        with case as field:
            document = f"query ($filter: MessageFilter) {{ {field} }}"
            too_many_parts = {"or": [{"seen": True}] * 250}
            errors = await refuse_within_cpu_limit(ada, document, filter=too_many_parts)
            assert errors == [("BAD_USER_INPUT", "A filter has at most 250 parts.")]


async def test_selection_with_too_many_parts_is_refused(ada: GraphQLClient) -> None:
    document = """mutation ($filter: MessageFilter!) {
      messageDelete(input: {select: {filter: $filter}}) { errors { code message path } } }"""
    payload = (await ada(document, filter={"and": [FILTER_OF_1000_PARTS]}))["messageDelete"]
    assert payload["errors"] == [
        {
            "code": "VALIDATION",
            "message": "A filter has at most 250 parts.",
            "path": ["select", "filter"],
        }
    ]


async def test_long_search_text_in_many_fields_is_refused_by_cost(ada: GraphQLClient) -> None:
    document = f"query ($q: String) {{ {aliased_fields('messages(query: $q) { totalCount }')} }}"
    ((code, _),) = await refuse_within_cpu_limit(ada, document, q="subject:bill " * 250)
    assert code == "QUERY_TOO_COMPLEX"


async def test_largest_accepted_filters_take_limited_time(ada: GraphQLClient) -> None:
    """39 filters of 249 parts cost nearly 10,000 points."""
    fields = aliased_fields("messages(filter: $f, first: 0) { totalCount }", 39)
    document = f"query ($f: MessageFilter) {{ {fields} }}"
    filter_ = {"or": [{"subject": f"x{n}"} for n in range(248)]}
    start = time.process_time()
    response = await ada.execute(document, f=filter_)
    assert time.process_time() - start < 2 * MAX_CPU_SECONDS  # takes 0.4 s
    assert 9_000 < response["extensions"]["cost"]["requested"] < 10_000


def cost(document: str, **variables: Any) -> int:
    prepared = schema.documents.find_or_prepare_with_faults(document, None)
    assert not prepared.faults
    return prepared.cost_with_variables(variables)


FILTER_QUERY = "query ($f: MessageFilter) { messages(filter: $f, first: 0) { totalCount } }"


@pytest.mark.parametrize(
    ("document", "variables", "expected"),
    [
        (FILTER_QUERY, {}, 1),
        (FILTER_QUERY, {"f": {"and": [{"seen": True}] * 10}}, 1),
        (FILTER_QUERY, {"f": {"and": [{"seen": True}] * 100}}, 92),
        (FILTER_QUERY, {"f": {"emailIds": ["0"] * 1000}}, 82),
        (FILTER_QUERY, {"f": {"subject": "x" * 100_000}}, 82),
        (FILTER_QUERY, {"f": {"query": "x" * 1_000}}, 83),
        (FILTER_QUERY.replace("(filter", '(query: "%s", filter' % ("x" * 1_000)), {}, 81),
        (
            "query ($t: String) { messages(filter: {query: $t}, first: 0) { totalCount } }",
            {"t": "x" * 1_000},
            83,
        ),
        (
            "query ($t: String) { messages(query: $t, first: 0) { totalCount } }",
            {"t": "x" * 1_000},
            82,
        ),
        (
            "query ($f: [MessageFilter!]) { a: messages(filter: {and: $f}, first: 0) { totalCount }"
            "  b: messages(filter: {or: $f}, first: 0) { totalCount } }",
            {"f": [{"seen": True}] * 100},
            2 * 92,
        ),
        (
            FILTER_QUERY.replace(
                "MessageFilter", "MessageFilter = {and: [%s]}" % ("{seen: true}" * 100)
            ),
            {},
            92,
        ),
        (FILTER_QUERY.replace("$f,", "{and: [%s]}," % ("{seen: true}" * 100)), {}, 92),
    ],
)  # fmt: skip
def test_cost_of_argument_sizes(document: str, variables: dict[str, Any], expected: int) -> None:
    if "filter: $f" not in document:
        document = document.replace("query ($f: MessageFilter)", "query")
    assert cost(document, **variables) == expected


LONG_TEXT = "x" * 4_000
# argument, type of the variable, its value as JSON, and as literal
COST_OF_ARGUMENT_VALUES: list[tuple[str, str, Any, str]] = [
    ("query: {}", "String", LONG_TEXT, f'"{LONG_TEXT}"'),
    ("query: {}", "String", LONG_TEXT, f'"""{LONG_TEXT}"""'),
    ("filter: {}", "MessageFilter", {"query": LONG_TEXT}, f'{{query: "{LONG_TEXT}"}}'),
    ("filter: {{query: {}}}", "String", LONG_TEXT, f'"{LONG_TEXT}"'),
    ("filter: {{and: [{{query: {}}}]}}", "String", LONG_TEXT, f'"{LONG_TEXT}"'),
    ("filter: {{subject: {}}}", "String", LONG_TEXT * 20, f'"{LONG_TEXT * 20}"'),
    (
        "filter: {{and: {}}}",
        "[MessageFilter!]",
        [{"query": LONG_TEXT}],
        f'[{{query: "{LONG_TEXT}"}}]',
    ),
    ("filter: {{emailIds: {}}}", "[String!]", ["0"] * 1000, '["0"%s]' % (' "0"' * 999)),
    ("first: {}", "Int", 200, "200"),
]


def test_literal_variable_and_default_cost_nearly_the_same() -> None:
    for argument, type_name, value, literal in COST_OF_ARGUMENT_VALUES:
        field = "{{ messages({}) {{ nodes {{ size }} }} }}"
        as_variable = field.format(argument.format("$v"))
        as_literal = field.format(argument.format(literal))
        variable_cost = cost(f"query ($v: {type_name}) {as_variable}", v=value)
        with_default = f"query ($v: {type_name} = {literal}) {as_variable}"
        assert variable_cost > 80, argument
        # a literal search text costs up to 4 points less
        assert variable_cost - 5 <= cost(with_default) <= variable_cost, argument
        assert variable_cost - 5 <= cost(as_literal) <= variable_cost, argument
        # null replaces the default
        assert cost(with_default, v=None) == cost(f"query ($v: {type_name}) {as_variable}", v=None)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        *(("labelCreate", 25), ("undo", 100), ("banAdd", 200)),
        *(("totpEnable", 200), ("userPasswordReset", 300)),
    ],
)
def test_mutation_costs_its_transaction_or_its_weight(field: str, expected: int) -> None:
    input_type = f"{field[0].upper()}{field[1:]}Input"
    document = f"mutation ($i: {input_type}!) {{ {field}(input: $i) {{ __typename }} }}"
    assert cost(document, i={}) == expected


def test_arguments_cost_as_often_as_their_field_is_resolved() -> None:
    document = """query ($f: MessageFilter) { mailboxes(first: 10) { nodes {
      messages(filter: $f, first: 0) { totalCount } } } }"""
    small, large = (cost(document, f={"and": [{"seen": True}] * n}) for n in (1, 100))
    assert large - small == 10 * 91


INVALID_VALUE = {"unknownMember": [[0] * 100] * 1_100}  # 11,000 points


async def test_too_large_arguments_are_refused_before_they_are_coerced(ada: GraphQLClient) -> None:
    """Coercion would report the invalid value, and a resolver its own error."""
    cases: list[str] = ["Query", "User", "Mutation"]
    for case in each_case(cases):
        with case as root_type:
            for request in large_requests(root_type, LONG_LISTS):
                field, argument = request.name.partition(".")[2].split(":")
                invalid = request_with_value(
                    root_type, field, argument, INVALID_VALUE, alias_count=1
                )
                response = await ada.execute(invalid.document, **invalid.variables)
                codes = [error["extensions"]["code"] for error in response["errors"]]
                assert (request.name, codes, response.get("data")) == (
                    request.name,
                    ["QUERY_TOO_COMPLEX"],
                    None,
                )


async def test_nul_in_too_large_arguments_is_not_searched(ada: GraphQLClient) -> None:
    document = "query ($f: MessageFilter) { messages(filter: $f) { totalCount } }"
    ((code, _),) = await refuse_within_cpu_limit(ada, document, f={"and": ["\0"] * 110_000})
    assert code == "QUERY_TOO_COMPLEX"
