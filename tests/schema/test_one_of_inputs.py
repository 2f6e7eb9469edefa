"""Every member of each `@oneOf` input works at all locations that accept the input."""

from typing import Any

import pytest
from graphql import is_input_object_type

from tests.conftest import Client, Clock
from tests.support.differential.random_values import definition
from tests.support.lists.input_locations import answers, places, sample, schema
from tests.support.lists.list_rows import fill

ONE_OF_INPUTS = {
    name: kind
    for name, kind in schema.type_map.items()
    if is_input_object_type(kind) and (kind.is_one_of or definition(kind).is_one_of)
}
INPUT_LOCATIONS = {one.key: one for one in places(ONE_OF_INPUTS)}
# inputs that select users: their members are tested like those of a `@oneOf` input
INPUT_LOCATIONS |= {one.key: one for one in places({"UserSelection"})}
UNEXPECTED_CODES = {"INTERNAL_SERVER_ERROR", "GRAPHQL_VALIDATION_FAILED"}


@pytest.fixture
async def filled_clients(over: Client, ada: Client, bob: Client, clock: Clock) -> list[Client]:
    """An administrator and a user with rows in every list."""
    await fill(ada, bob, clock)
    return [over, ada]


async def test_every_member_returns_data_or_expected_error(
    filled_clients: list[Client], root: Client
) -> None:
    failures = {}
    for key, location in INPUT_LOCATIONS.items():
        kind: Any = schema.type_map[location.input]
        for name, member in kind.fields.items():
            for value in _sample_values(name, sample(member.type)):
                data, errors = await answers([*filled_clients, root], location, {name: value})
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
        "masks": ["a*"],
    }
    matching_values |= {"usernames": ["ada"], "domains": ["example.org"], "specialUse": "INBOX"}
    matching_values |= {"guid": "0" * 32, "name": "example.org"}
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
