"""Coercion of many ids, variables and arguments has the same result as by the usual way."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
import pytest
from graphql import FieldNode, GraphQLError, GraphQLField, OperationDefinitionNode, parse
from graphql.execution.values import VariableValues, get_argument_values, get_variable_values
from hypothesis import given
from hypothesis import strategies as st

from graph.execution.field_arguments import prepare_field_arguments
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


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**33),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["a", "", "INBOX", "2026-01-01T00:00:00Z", "1,2", "COLD", "msg_"]),
)


def nested_values(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
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


VALUES = nested_values(SCALARS)
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


class Variable(NamedTuple):
    """A variable in the literal of an argument."""

    name: str


class Enum(NamedTuple):
    """A value of an enum in the literal of an argument."""

    name: str


LITERALS = nested_values(
    st.one_of(
        SCALARS,
        st.builds(Variable, st.sampled_from(["a", "b"])),
        st.builds(Enum, st.sampled_from(["COLD", "INBOX", "RECEIVED_AT_ASC"])),
    )
)
FIELDS = (
    ("Mutation", "messageUpdate"),
    ("Mutation", "mailboxUpdate"),
    ("Mutation", "appPasswordCreate"),
    ("User", "messages"),
    ("Query", "mailbox"),
    ("Query", "users"),
)


def literal_text(value: Any) -> str:
    if isinstance(value, Variable):
        return f"${value.name}"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {literal_text(item)}' for name, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal_text, value))}]"
    return orjson.dumps(value).decode()


def graphql_field(type_name: str, name: str) -> GraphQLField:
    graphql_type: Any = schema._schema.type_map[type_name]  # noqa: SLF001
    field: GraphQLField = graphql_type.fields[name]
    return field


def field_node(arguments: Mapping[str, Any]) -> FieldNode:
    texts = [f"{name}: {literal_text(value)}" for name, value in arguments.items()]
    (operation,) = parse(f"{{ field{'(' + ', '.join(texts) + ')' if texts else ''} }}").definitions
    assert isinstance(operation, OperationDefinitionNode)
    (node,) = operation.selection_set.selections
    assert isinstance(node, FieldNode)
    return node


def assert_same_arguments(
    field: GraphQLField, arguments: Mapping[str, Any], variables: Mapping[str, Any]
) -> None:
    """The variables are those of the operation after their coercion."""
    node, values = field_node(arguments), VariableValues({}, dict(variables))
    expected = values_or_error(
        lambda: get_argument_values(field, node, values, hide_suggestions=True)
    )
    try:
        prepared = prepare_field_arguments(field, node)
    except GraphQLError:  # graphql-core runs the field
        assert expected.is_error
    else:
        assert values_or_error(lambda: prepared.coerce(node, values)) == expected


class Outcome(NamedTuple):
    """The arguments of a field, or the message of their error."""

    text: str
    is_error: bool = False


def values_or_error(coerce: Callable[[], dict[str, Any]]) -> Outcome:
    try:
        return Outcome(repr(sorted(coerce().items())))
    except GraphQLError as error:
        return Outcome(error.message, is_error=True)


@given(st.data(), st.dictionaries(st.sampled_from(["a", "b"]), VALUES))
def test_arguments_are_coerced_as_by_graphql_core(
    data: st.DataObject, variables: dict[str, Any]
) -> None:
    field = graphql_field(*data.draw(st.sampled_from(FIELDS)))
    arguments = data.draw(st.dictionaries(st.sampled_from(sorted(field.args)), LITERALS))
    assert_same_arguments(field, arguments, variables)


IDS, FLAG = Variable("ids"), Variable("flag")
COMMON_ARGUMENTS = [
    ("messageUpdate", {"input": {"select": {"ids": IDS}, "set": {"flagged": FLAG}}}),
    ("messageUpdate", {"input": {"select": {"ids": [FLAG]}, "set": {"expiresAt": None}}}),
    ("messageUpdate", {"input": {"select": {"ids": "msg_1"}, "set": Variable("set")}}),
    ("messageUpdate", {"input": Variable("input")}),
    ("messages", {"filter": {"seen": FLAG, "not": {"or": [{"subject": FLAG}, {"uids": "1"}]}}}),
    ("messages", {"first": FLAG, "after": IDS, "orderBy": Enum("RECEIVED_AT_ASC")}),
    ("messages", {"filter": {"mailbox": {"path": FLAG}}}),
    ("appPasswordCreate", {"input": {"description": "a", "generateMobileconfig": FLAG}}),
    ("mailbox", {"by": {"path": FLAG}}),
    ("mailbox", {"by": {"path": "INBOX"}, "user": {"id": IDS}}),
]


@pytest.mark.parametrize(("name", "arguments"), COMMON_ARGUMENTS)
@pytest.mark.parametrize(
    "variables", [{}, {"ids": ["msg_1"], "flag": True}, {"ids": None, "flag": None}, {"flag": "a"}]
)
def test_common_arguments_are_coerced_as_by_graphql_core(
    name: str, arguments: dict[str, Any], variables: dict[str, Any]
) -> None:
    (parent,) = [type_name for type_name, field_name in FIELDS if field_name == name]
    field = graphql_field(parent, name)
    assert prepare_field_arguments(field, field_node(arguments)).members is not None
    assert_same_arguments(field, arguments, variables)


def test_objects_in_arguments_are_new_for_each_call() -> None:
    """A resolver may change them."""
    field = graphql_field("User", "messages")
    node = field_node({"filter": {"and": [{"seen": True}]}})
    prepared = prepare_field_arguments(field, node)
    first, second = [prepared.coerce(node, VariableValues({}, {})) for _ in range(2)]
    assert first == second
    assert first["filter"] is not second["filter"]
    assert first["filter"]["and"][0] is not second["filter"]["and"][0]
