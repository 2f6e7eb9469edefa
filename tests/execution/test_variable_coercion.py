"""What is read together is read as one by one: ids, and the variables of an operation."""

from typing import Any

import pytest
from graphql import OperationDefinitionNode, parse
from graphql.execution.values import VariableValues, get_variable_values
from hypothesis import given
from hypothesis import strategies as st

from graph.execution.variables import coerce_variables, variable_signatures
from graph.schema import schema
from graph.types import global_ids
from models.errors import InvalidInput

KEYS = st.integers(1, 2**63 - 1)
ODD = st.one_of(
    st.text(max_size=20),
    st.builds(lambda key, end: global_ids.encode("Message", key)[:-1] + end, KEYS, st.characters()),
    st.builds(lambda key: global_ids.encode("Mailbox", key), KEYS),
    st.sampled_from(["msg_AAAAAAAAAAA", "msg_//////////8", "msg_AAAAAAAAAA=", "msg_gAAAAAAAAAA"]),
)


@given(st.lists(KEYS))
def test_many_ids_are_read_at_once(keys: list[int]) -> None:
    texts = [global_ids.encode("Message", key) for key in keys]
    assert global_ids.decode_all("Message", texts, path="select") == keys


@given(st.lists(KEYS, max_size=3), ODD, st.lists(KEYS, max_size=3))
def test_what_is_no_id_among_many_is_told_as_it_is_alone(
    before: list[int], odd: str, behind: list[int]
) -> None:
    texts = [*(global_ids.encode("Message", key) for key in before), odd]
    texts += [global_ids.encode("Message", key) for key in behind]
    try:
        alone = global_ids.decode("Message", odd)
    except InvalidInput:
        with pytest.raises(InvalidInput) as refusal:
            global_ids.decode_all("Message", texts, path="select")
        assert (refusal.value.index, refusal.value.path) == (len(before), ["select"])
    else:
        assert global_ids.decode_all("Message", texts, path="select") == [*before, alone, *behind]


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**33),
        st.floats(allow_nan=False),
        st.sampled_from(["a", "", "INBOX", "2026-01-01T00:00:00Z", "1,2", "COLD", "msg_"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["ids", "mailbox", "path", "id", "uids", "filter", "not", "and", "or", "seen",
                 "flagged", "flags", "subject", "select", "set", "users", "expires", "async",
                 "options", "ifUnchangedSince", "specialUse", "larger", "sentSince", "unknown"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip
DOCUMENT = """query (
  $input: MessageUpdateInput, $filter: MessageFilter, $select: MessageSelection, $ids: [ID!],
  $many: [[Int!]], $first: Int = 3, $by: MailboxRef, $tier: StorageTier, $must: String!
) { __typename }"""
NAMES = ("input", "filter", "select", "ids", "many", "first", "by", "tier", "must")
UPDATE = {"select": {"ids": ["msg_1"]}, "set": {"flagged": True, "expires": None}}


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_variables_are_what_graphql_core_makes_of_them(given: dict[str, Any]) -> None:
    _alike(given)


@pytest.mark.parametrize(
    "given",
    [
        {"input": UPDATE},
        {"input": {**UPDATE, "async": True, "ifUnchangedSince": "7"}},
        {"filter": {"not": {"or": [{"seen": True}, {"subject": "x", "larger": "5"}]}}},
        {"select": {"mailbox": {"specialUse": "INBOX"}, "uids": "1:*"}},
        {"by": {"path": "a", "id": "b"}},
        {"by": {"path": None}},
        {"ids": "one"},
        {"ids": [1, "two"]},
        {"many": [[1], None]},
        {"first": 7, "tier": "COLD"},
        {"must": None},
    ],
)
def test_usual_variables_are_read_alike(given: dict[str, Any]) -> None:
    _alike({"must": "there", "first": 1, **given})


def _alike(given: dict[str, Any]) -> None:
    (operation,) = parse(DOCUMENT).definitions
    assert isinstance(operation, OperationDefinitionNode)
    graph = schema._schema  # noqa: SLF001 - as graphql-core has it
    declared = variable_signatures(graph, operation.variable_definitions or ())
    assert declared is not None
    found = coerce_variables(declared, given)
    expected = get_variable_values(graph, operation.variable_definitions or (), given)
    if found is None:
        return  # it was left to graphql-core
    assert isinstance(expected, VariableValues)
    assert repr(found.coerced) == repr(expected.coerced)
    assert _sources(found) == _sources(expected)


def _sources(values: VariableValues) -> dict[str, Any]:
    return {name: repr(source.value) for name, source in values.sources.items()}


def test_the_usual_is_not_left_to_others() -> None:
    (operation,) = parse("query ($input: MessageUpdateInput!) { __typename }").definitions
    assert isinstance(operation, OperationDefinitionNode)
    declared = variable_signatures(schema._schema, operation.variable_definitions or ())  # noqa: SLF001
    assert declared is not None
    assert coerce_variables(declared, {"input": UPDATE}) is not None
