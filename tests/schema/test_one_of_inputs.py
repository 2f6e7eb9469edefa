"""Every member of each `@oneOf` input works at all locations that accept the input."""

from typing import Any

import pytest
from graphql import is_input_object_type

from tests.conftest import GraphQLClient, ManualClock
from tests.support.lists.input_locations import (
    input_locations,
    run_at_location,
    sample_value,
    schema,
)
from tests.support.lists.list_rows import add_list_rows

ONE_OF_INPUTS = {
    name: kind
    for name, kind in schema.type_map.items()
    if is_input_object_type(kind) and kind.is_one_of
}
INPUT_LOCATIONS = {location.key: location for location in input_locations(ONE_OF_INPUTS)}
# inputs that select users: their members are tested like those of a `@oneOf` input
INPUT_LOCATIONS |= {location.key: location for location in input_locations({"UserSelection"})}
UNEXPECTED_CODES = {"INTERNAL_SERVER_ERROR", "GRAPHQL_VALIDATION_FAILED"}


@pytest.fixture
async def filled_clients(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> list[GraphQLClient]:
    """An administrator and a user with rows in every list."""
    await add_list_rows(ada, bob, clock)
    return [admin_client, ada]


async def test_every_member_returns_data_or_expected_error(
    filled_clients: list[GraphQLClient], root: GraphQLClient
) -> None:
    failures = {}
    for key, location in INPUT_LOCATIONS.items():
        kind: Any = schema.type_map[location.input]
        for name, member in kind.fields.items():
            for value in _sample_values(name, sample_value(member.type)):
                data, errors = await run_at_location(
                    [*filled_clients, root], location, {name: value}
                )
                codes = {code for code, _ in errors}
                if codes & UNEXPECTED_CODES or (
                    data is None and not codes and _always_returns_data(location.key)
                ):
                    failures[f"{key}.{name}"] = errors, value
    assert not failures


def _sample_values(name: str, unmatched: Any) -> list[Any]:
    """Return a value without a match in the database, and one with a match if there is one."""
    matching_values = {
        "username": "ada",
        "address": "ada@example.org",
        "path": "INBOX",
        "patterns": ["a*"],
    }
    matching_values |= {"usernames": ["ada"], "domains": ["example.org"], "specialUse": "INBOX"}
    matching_values |= {"emailId": "0" * 32, "objectId": "0" * 32, "name": "example.org"}
    return [
        unmatched,
        *(
            [matching_values[name]]
            if name in matching_values and type(matching_values[name]) is type(unmatched)
            else []
        ),
    ]


def _always_returns_data(key: str) -> bool:
    """True if a field returns data even if no object is found."""
    return key.startswith("Mutation.")


@pytest.mark.parametrize("value", ["{}", '{id: "a", path: "b"}'])
async def test_value_without_exactly_one_member_is_refused_with_its_location(
    ada: GraphQLClient, value: str
) -> None:
    document = f"mutation {{ mailboxDelete(input: {{mailboxes: [{value}]}}) {{ deletedIds }} }}"
    (error,) = (await ada.execute(document))["errors"]
    assert error["locations"] == [{"line": 1, "column": document.index(value) + 1}], error


async def test_variable_without_exactly_one_member_is_refused_with_its_path(
    ada: GraphQLClient,
) -> None:
    answer = await ada.execute(
        "mutation ($input: MailboxDeleteInput!) { mailboxDelete(input: $input) { deletedIds } }",
        input={"mailboxes": [{"path": "A"}, {"path": "A", "id": "a"}]},
    )
    (error,) = answer["errors"]
    assert "at .mailboxes[1]" in error["message"]
