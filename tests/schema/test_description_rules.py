"""Descriptions of the schema are understandable alone."""

import re

import pytest
from graphql import (
    GraphQLEnumType,
    ListValueNode,
    NullValueNode,
    Undefined,
    build_schema,
    parse_value,
    value_from_ast,
)

from graph.schema import schema
from graph.types.descriptions import input_examples
from tests.support.schema.description_rules import (
    broken_rules,
    example_or_none,
    inputs_without_example,
    iter_inputs,
    shared_texts,
    unclear_descriptions,
)
from tests.support.schema.printed_schema import SDL

DEFAULT = re.compile(r"\b[Dd]efault: |\bby default\b")


def test_no_description_breaks_a_rule() -> None:
    assert unclear_descriptions(SDL) == {}


@pytest.mark.parametrize(
    ("coordinate", "text", "rule"),
    [
        ("Autoreply.name", "Whose name.", "begins as a fragment"),
        ("Query.tasks(users:)", "Of these accounts.", "begins as a fragment"),
        ("User.quota", "Bytes; null = unlimited.", "contains 'null = '"),
        ("Connector.port", "The port.", "only repeats the name"),
        ("Change.type", "Type of the change.", ""),
        ("MetricName.READ_TIME", "Duration of these reads.", "refers to another description"),
        ("Blob.path", "Name. (Same sentence for tags.)", "contains a note for authors"),
        ("Connector.lastRunAt", "Start of the last run.", ""),
        ("Query.users", "All users, by name.", "does not begin with a verb"),
        ("Query.users", "Lists users, by name.", ""),
        ("Query.users(first:)", "Page size, 1 to 250. Default: 20.", ""),
    ],
)
def test_rules_find_unclear_texts(coordinate: str, text: str, rule: str) -> None:
    assert list(broken_rules(coordinate, text)) == [rule][: bool(rule)]


def test_text_of_name_and_type_is_found() -> None:
    rules = list(broken_rules("Connector.source", "Source mailbox.", "Mailbox"))
    assert rules == ["only repeats the name and the type"]


def test_texts_of_different_fields_are_found() -> None:
    texts = {"A.host": "Name.", "B.hosts": "Name.", "A.port": "Number.", "B.id": "Number.", "A": ""}
    assert list(shared_texts(texts, {})) == ["A.port", "B.id"]


def test_texts_of_different_types_are_found() -> None:
    texts = {"A.state": "State.", "B.state": "State.", "A.node(by:)": "By.", "B.node(by:)": "By."}
    types = dict.fromkeys(texts, "A") | {"B.state": "B", "B.node(by:)": "B"}
    assert list(shared_texts(texts, types)) == ["A.state", "B.state"]


def test_examples_are_values_of_their_type() -> None:
    """A literal that the scalar refuses raises an error or has no value."""
    example_count = 0
    for coordinate, _, member in iter_inputs(schema._schema):  # noqa: SLF001
        if example := example_or_none(member.description):
            example_count += 1
            value = value_from_ast(parse_value(example), member.type)
            assert value is not Undefined, (coordinate, example)
    assert example_count >= 350


def test_each_default_value_is_told() -> None:
    """Hovering over a field in an editor shows its description, but not its default value."""
    described, missing = 0, list[str]()
    for coordinate, _, member in iter_inputs(SDL):
        value = member.ast_node.default_value if member.ast_node else None
        if value is None or isinstance(value, (ListValueNode, NullValueNode)):
            continue
        described += 1
        if not DEFAULT.search(member.description or ""):
            missing.append(coordinate)
    assert missing == []
    assert described >= 300


def test_each_example_has_a_field() -> None:
    inputs = list(iter_inputs(SDL))
    coordinates, names = {item[0] for item in inputs}, {item[1] for item in inputs}
    assert set(input_examples.EXAMPLES_BY_COORDINATE) <= coordinates
    for examples in input_examples.EXAMPLES_BY_NAME.values():
        assert set(examples) <= names


@pytest.mark.parametrize(
    ("field", "missing"),
    [
        ("wait: Duration", True),
        ("pattern: String", True),
        ("patterns: [String!]", True),
        ('"Wait. Example: `\\"P1D\\"`. Requires role ADMIN." wait: Duration', False),
        ("name: String", False),
        ("isOpen: Boolean", False),
    ],
)
def test_value_without_example_is_found(field: str, missing: bool) -> None:
    text = f"scalar Duration input Place {{ {field} }} type Query {{ place: Int }}"
    assert bool(list(inputs_without_example(build_schema(text)))) is missing


def test_protocols_that_others_serve_are_described_as_such() -> None:
    protocols = {"IMAP", "POP3", "MANAGESIEVE", "CALDAV", "CARDDAV"}
    descriptions = {
        f"{name}.{value_name}": value.description or ""
        for name, enum in SDL.type_map.items()
        if isinstance(enum, GraphQLEnumType) and name != "ConnectorProtocol"
        for value_name, value in enum.values.items()
        if value_name in protocols
    }
    assert len(descriptions) >= 10
    assert [name for name, text in descriptions.items() if "beside Merganser" not in text] == []
