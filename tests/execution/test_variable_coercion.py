"""Coercion of many ids and of operation variables has the same result as one by one."""

from typing import Any

import pytest
from graphql import OperationDefinitionNode, parse
from graphql.execution.values import VariableValues, get_variable_values
from hypothesis import given
from hypothesis import strategies as st

from graph.execution.variables import try_to_coerce_variables, variable_signatures_or_none
from graph.schema import schema
from graph.types import global_ids
from models.errors import InvalidInput

KEYS = st.integers(1, 2**63 - 1)
INVALID_OR_OTHER_IDS = st.one_of(
    st.text(max_size=20),
    st.builds(lambda key, end: global_ids.encode("Message", key)[:-1] + end, KEYS, st.characters()),
    st.builds(lambda key: global_ids.encode("Mailbox", key), KEYS),
    st.sampled_from(["msg_AAAAAAAAAAA", "msg_//////////8", "msg_AAAAAAAAAA=", "msg_gAAAAAAAAAA"]),
)


@given(st.lists(KEYS))
def test_many_ids_are_decoded_at_once(keys: list[int]) -> None:
    texts = [global_ids.encode("Message", key) for key in keys]
    assert global_ids.decode_all("Message", texts, path="select") == keys


@given(st.lists(KEYS, max_size=3), INVALID_OR_OTHER_IDS, st.lists(KEYS, max_size=3))
def test_invalid_id_among_many_is_reported_as_alone(
    before: list[int], odd_id: str, after: list[int]
) -> None:
    texts = [*(global_ids.encode("Message", key) for key in before), odd_id]
    texts += [global_ids.encode("Message", key) for key in after]
    try:
        alone = global_ids.decode("Message", odd_id)
    except InvalidInput:
        with pytest.raises(InvalidInput) as refusal:
            global_ids.decode_all("Message", texts, path="select")
        assert (refusal.value.index, refusal.value.path) == (len(before), ["select"])
    else:
        assert global_ids.decode_all("Message", texts, path="select") == [*before, alone, *after]


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
                 "flagged", "flags", "subject", "select", "set", "users", "expiresAt", "async",
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
VARIABLE_NAMES = ("input", "filter", "select", "ids", "many", "first", "by", "tier", "must")
UPDATE_INPUT = {"select": {"ids": ["msg_1"]}, "set": {"flagged": True, "expiresAt": None}}


@given(st.dictionaries(st.sampled_from(VARIABLE_NAMES), VALUES))
def test_variables_are_coerced_as_by_graphql_core(variables: dict[str, Any]) -> None:
    _assert_same_coercion(variables)


@pytest.mark.parametrize(
    "variables",
    [
        {"input": UPDATE_INPUT},
        {"input": {**UPDATE_INPUT, "async": True, "ifUnchangedSince": "7"}},
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
def test_common_variables_are_coerced_as_by_graphql_core(variables: dict[str, Any]) -> None:
    _assert_same_coercion({"must": "there", "first": 1, **variables})
    _assert_same_coercion({"must": "there", **variables})


def _assert_same_coercion(variables: dict[str, Any]) -> None:
    (operation,) = parse(DOCUMENT).definitions
    assert isinstance(operation, OperationDefinitionNode)
    graphql_schema = schema._schema  # noqa: SLF001 - the schema of graphql-core
    signatures = variable_signatures_or_none(graphql_schema, operation.variable_definitions or ())
    assert signatures is not None
    result = try_to_coerce_variables(signatures, variables)
    expected = get_variable_values(graphql_schema, operation.variable_definitions or (), variables)
    if result is None:
        return
    assert isinstance(expected, VariableValues)
    assert repr(result.coerced) == repr(expected.coerced)
    assert _sources(result) == _sources(expected)


def _sources(values: VariableValues) -> dict[str, Any]:
    return {name: repr(source.value) for name, source in values.sources.items()}


def test_common_variables_need_no_graphql_core() -> None:
    variables = '$input: MessageUpdateInput!, $first: Int = 3, $by: MailboxRef = {path: "a"}'
    (operation,) = parse(f"query ({variables}) {{ __typename }}").definitions
    assert isinstance(operation, OperationDefinitionNode)
    signatures = variable_signatures_or_none(schema._schema, operation.variable_definitions or ())  # noqa: SLF001
    assert signatures is not None
    assert try_to_coerce_variables(signatures, {"input": UPDATE_INPUT}) is not None
