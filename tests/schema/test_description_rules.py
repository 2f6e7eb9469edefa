"""Descriptions of the schema are understandable alone."""

import pytest
from graphql import GraphQLEnumType

from tests.support.schema.description_rules import (
    broken_rules,
    shared_texts,
    unclear_descriptions,
)
from tests.support.schema.printed_schema import SDL


def test_no_description_breaks_a_rule() -> None:
    assert unclear_descriptions(SDL) == {}


@pytest.mark.parametrize(
    ("coordinate", "text", "rule"),
    [
        ("Autoreply.name", "Whose name.", "begins as a fragment"),
        ("Query.tasks(users:)", "Of these accounts.", "begins as a fragment"),
        ("User.quota", "Bytes; null = unlimited.", "contains 'null = '"),
        ("Connector.port", "The port.", "only repeats the name"),
        ("MetricName.READ_TIME", "Duration of these reads.", "refers to another description"),
        ("Connector.lastRunAt", "Start of the last run.", ""),
        ("Query.users", "All users, by name.", "does not begin with a verb"),
        ("Query.users", "Lists users, by name.", ""),
        ("Query.users(first:)", "Page size, 1 to 250. Default: 20.", ""),
    ],
)
def test_rules_find_unclear_texts(coordinate: str, text: str, rule: str) -> None:
    assert list(broken_rules(coordinate, text)) == [rule][: bool(rule)]


def test_texts_of_different_fields_are_found() -> None:
    texts = {"A.host": "Name.", "B.hosts": "Name.", "A.port": "Number.", "B.id": "Number.", "A": ""}
    assert list(shared_texts(texts)) == ["A.port", "B.id"]


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
