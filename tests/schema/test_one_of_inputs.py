"""Every member of every `@oneOf` input is served, wherever the schema takes the input."""

from typing import Any

import pytest
from graphql import is_input_object_type

from tests.conftest import Client, Clock
from tests.support.differential.random_values import definition
from tests.support.lists.input_locations import answers, places, sample, schema
from tests.support.lists.list_rows import fill

INPUTS = {
    name: kind
    for name, kind in schema.type_map.items()
    if is_input_object_type(kind) and (kind.is_one_of or definition(kind).is_one_of)
}
PLACES = {one.key: one for one in places(INPUTS)}
# Inputs that name many users: each of their members is tried like those of a `@oneOf` input.
PLACES |= {one.key: one for one in places({"UserSelection"})}
BROKEN = {"INTERNAL_SERVER_ERROR", "GRAPHQL_VALIDATION_FAILED"}


@pytest.fixture
async def filled(over: Client, ada: Client, bob: Client, clock: Clock) -> list[Client]:
    """An administrator and a user with rows in every list."""
    await fill(ada, bob, clock)
    return [over, ada]


async def test_every_member_is_answered(filled: list[Client], root: Client) -> None:
    wrong = {}
    for key, place in PLACES.items():
        kind: Any = schema.type_map[place.input]
        for name, one in kind.fields.items():
            for value in _values(name, sample(one.type)):
                answer, found = await answers([*filled, root], place, {name: value})
                codes = {code for code, _ in found}
                if codes & BROKEN or (answer is None and not codes and _is_needed(place.key)):
                    wrong[f"{key}.{name}"] = found, value
    assert not wrong


def _values(name: str, made_up: Any) -> list[Any]:
    """Return a value that names nothing, and one that names something of the store."""
    there = {"username": "ada", "address": "ada@example.org", "path": "INBOX", "masks": ["a*"]}
    there |= {"usernames": ["ada"], "domains": ["example.org"], "specialUse": "INBOX"}
    there |= {"guid": "0" * 32, "name": "example.org"}
    return [
        made_up,
        *([there[name]] if name in there and type(there[name]) is type(made_up) else []),
    ]


def _is_needed(key: str) -> bool:
    """True if a field answers something even where nothing is found."""
    return key.startswith("Mutation.")
