"""Filters and selections: an empty list selects nothing, an input without conditions is refused.

The cases are derived from the schema: every place where an input of conditions can be given.
"""

from typing import Any

import pytest
from graphql import (
    get_nullable_type,
    is_input_object_type,
    is_list_type,
    is_required_input_field,
)
from sqlmodel import select

from graph.types.input_conditions import ConditionsInput
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import Client, Clock
from tests.support.differential.random_values import definition
from tests.support.lists.input_locations import Place, answers, places, schema, with_member
from tests.support.lists.list_rows import fill

INPUTS = {
    name: kind
    for name, kind in schema.type_map.items()
    if is_input_object_type(kind) and issubclass(definition(kind).origin, ConditionsInput)
}
TEXTS = 2  # members with a text that are tried at each place
NAMES = ("Filter", "Selection", "Match")
# Inputs with such a name that are no conditions, and why.
OTHERS = {"FilterQueryInput"}
# Mutations that answer with all there are, or with the names that they were given.
ALL_LISTED = {"savedSearchSet", "sieveScriptDelete"}


def test_every_filter_and_selection_is_checked() -> None:
    named = {
        name
        for name, kind in schema.type_map.items()
        if is_input_object_type(kind) and name.endswith(NAMES)
    }
    assert named <= set(INPUTS)
    assert len(INPUTS) >= 15


PLACES = {one.key: one for one in places(INPUTS)}


@pytest.fixture
async def filled(over: Client, ada: Client, bob: Client, clock: Clock) -> list[Client]:
    """An administrator and a user with rows in every list."""
    await fill(ada, bob, clock)
    return [over, ada]


async def test_an_input_without_conditions_is_refused(filled: list[Client], root: Client) -> None:
    wrong = {}
    for key, place in PLACES.items():
        if any(map(is_required_input_field, INPUTS[place.input].fields.values())):
            continue  # GraphQL itself refuses it
        _, found = await answers([*filled, root], place, {})
        refused = ["VALIDATION" if place.root == "Mutation" else "BAD_USER_INPUT"]
        path = list(place.path[1:]) if place.root == "Mutation" else None
        if [code for code, _ in found] != refused or found[0][1] != path:
            wrong[key] = found
    assert not wrong


def _members(place: Place, kind: str) -> list[tuple[str, Any]]:
    """Return the list members of the input at a place, or its texts, with an empty value."""
    fields = INPUTS[place.input].fields
    kept = definition(INPUTS[place.input]).origin.fields_with_empty_texts
    return [
        (name, [] if kind == "list" else "")
        for name, one in fields.items()
        if name not in kept
        and (
            is_list_type(get_nullable_type(one.type))
            if kind == "list"
            else str(one.type).rstrip("!") == "String"
        )
    ]


async def test_an_empty_text_is_refused(filled: list[Client], root: Client) -> None:
    wrong = {}
    for key, place in PLACES.items():
        for name, empty in _members(place, "text")[:TEXTS]:
            _, found = await answers([*filled, root], place, with_member(place, name, empty))
            refused = "VALIDATION" if place.root == "Mutation" else "BAD_USER_INPUT"
            at = [*place.path[1:], name]
            if [code for code, _ in found] != [refused] or found[0][1] not in (None, at):
                wrong[f"{key}.{name}"] = found
    assert not wrong


async def test_an_empty_list_selects_nothing(filled: list[Client], root: Client) -> None:
    world, wrong = root.world, {}
    before = await _stored(world)
    for key, place in PLACES.items():
        for name, empty in _members(place, "list"):
            value, found = await answers([*filled, root], place, with_member(place, name, empty))
            told = {code for code, _ in found}
            if "not" in place.path:  # what is not among nothing would be everything
                if told != {"VALIDATION" if place.root == "Mutation" else "BAD_USER_INPUT"}:
                    wrong[f"{key}.{name}"] = found or value
                continue
            if told & {"INTERNAL_SERVER_ERROR", "GRAPHQL_VALIDATION_FAILED"}:
                wrong[f"{key}.{name}"] = found
            elif not found and _some(value) and place.field not in ALL_LISTED:
                wrong[f"{key}.{name}"] = value
    assert not wrong
    assert await _stored(world) == before


async def test_an_empty_list_below_not_is_refused(filled: list[Client]) -> None:
    """It would select everything, also where `not` is deeper in the filter."""
    ada, before = filled[1], await _stored(filled[1].world)
    deleted = """mutation ($input: MessageDeleteInput!) {
      messageDelete(input: $input) { deletedCount errors { code path } } }"""
    for given, path in (
        ({"not": {"guids": []}}, ["not", "guids"]),
        ({"not": {"not": {"mailboxes": []}}}, ["not", "not", "mailboxes"]),
        ({"and": [{"not": {"or": []}}]}, ["and", "0", "not", "or"]),
        ({"not": {"and": [{"guids": []}]}}, ["not", "and", "0", "guids"]),
    ):
        asked = {"select": {"filter": given}, "permanent": True}
        payload = (await ada(deleted, input=asked))["messageDelete"]
        refusal = {"code": "VALIDATION", "path": ["select", "filter", *path]}
        assert payload == {"deletedCount": 0, "errors": [refusal]}
    assert await _stored(ada.world) == before


def _some(value: Any) -> bool:
    """True if an answer has an item or a count."""
    if isinstance(value, dict):
        return any(_some(one) for name, one in value.items() if name != "__typename")
    return bool(value) and value != "0"


async def _stored(world: Environment) -> list[Any]:
    """Return all messages and accounts, with what mutations change of them."""
    asked: Any = select(Message.id, Message.mailbox_id, Message.seen, Message.archived_at)
    accounts: Any = select(User.id, User.role, User.disabled, User.deleted_at)
    rows = [*await world.database.read(asked), *await world.database.read(accounts)]
    return sorted(map(repr, rows))
