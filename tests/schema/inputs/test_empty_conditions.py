"""Empty conditions: an empty list selects nothing, an input without conditions is refused.

The cases are derived from the schema: all locations that accept an input of conditions.
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
from tests.conftest import GraphQLClient, ManualClock
from tests.support.differential.random_values import strawberry_definition
from tests.support.lists.input_locations import (
    InputLocation,
    input_locations,
    input_with_field,
    run_at_location,
    schema,
)
from tests.support.lists.list_rows import add_list_rows

CONDITION_INPUTS = {
    name: kind
    for name, kind in schema.type_map.items()
    if is_input_object_type(kind)
    and issubclass(strawberry_definition(kind).origin, ConditionsInput)
}
MAX_TEXT_MEMBERS = 2  # text members that are tested at each location
CONDITION_SUFFIXES = ("Filter", "Selection", "Match")
# inputs with such a name that are no conditions: they have exactly one member
NO_CONDITION_INPUTS = {"DeletedMessageSelection", "SourceAttachmentSelection"}
# mutations that return all objects, or the names given
FULL_LIST_MUTATIONS = {"sieveScriptDelete"}


def test_all_filters_and_selections_are_condition_inputs() -> None:
    input_names = {
        name
        for name, kind in schema.type_map.items()
        if is_input_object_type(kind) and name.endswith(CONDITION_SUFFIXES)
    }
    assert input_names - NO_CONDITION_INPUTS <= set(CONDITION_INPUTS)
    assert len(CONDITION_INPUTS) >= 15


INPUT_LOCATIONS = {location.key: location for location in input_locations(CONDITION_INPUTS)}


@pytest.fixture
async def filled_clients(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> list[GraphQLClient]:
    """An administrator and a user with rows in every list."""
    await add_list_rows(ada, bob, clock)
    return [admin_client, ada]


async def test_input_without_conditions_is_refused(
    filled_clients: list[GraphQLClient], root: GraphQLClient
) -> None:
    failures = {}
    for key, location in INPUT_LOCATIONS.items():
        if any(map(is_required_input_field, CONDITION_INPUTS[location.input].fields.values())):
            continue  # GraphQL validation refuses it
        _, errors = await run_at_location([*filled_clients, root], location, {})
        expected_codes = ["VALIDATION" if location.root == "Mutation" else "BAD_USER_INPUT"]
        expected_path = list(location.path[1:]) if location.root == "Mutation" else None
        if [code for code, _ in errors] != expected_codes or errors[0][1] != expected_path:
            failures[key] = errors
    assert not failures


def _members(location: InputLocation, kind: str) -> list[tuple[str, Any]]:
    """Return the list members of the input at a location, or its texts, with an empty value."""
    fields = CONDITION_INPUTS[location.input].fields
    allowed_empty = strawberry_definition(
        CONDITION_INPUTS[location.input]
    ).origin.fields_with_empty_texts
    return [
        (name, [] if kind == "list" else "")
        for name, member in fields.items()
        if name not in allowed_empty
        and (
            is_list_type(get_nullable_type(member.type))
            if kind == "list"
            else str(member.type).rstrip("!") == "String"
        )
    ]


async def test_empty_text_is_refused(
    filled_clients: list[GraphQLClient], root: GraphQLClient
) -> None:
    failures = {}
    for key, location in INPUT_LOCATIONS.items():
        for name, empty in _members(location, "text")[:MAX_TEXT_MEMBERS]:
            _, errors = await run_at_location(
                [*filled_clients, root], location, input_with_field(location, name, empty)
            )
            expected_code = "VALIDATION" if location.root == "Mutation" else "BAD_USER_INPUT"
            expected_path = [*location.path[1:], name]
            if [code for code, _ in errors] != [expected_code] or errors[0][1] not in (
                None,
                expected_path,
            ):
                failures[f"{key}.{name}"] = errors
    assert not failures


async def test_empty_list_selects_nothing(
    filled_clients: list[GraphQLClient], root: GraphQLClient
) -> None:
    environment, failures = root.environment, {}
    before = await _load_messages_and_users(environment)
    for key, location in INPUT_LOCATIONS.items():
        for name, empty in _members(location, "list"):
            value, errors = await run_at_location(
                [*filled_clients, root], location, input_with_field(location, name, empty)
            )
            codes = {code for code, _ in errors}
            if "not" in location.path:  # the negation of an empty selection would be all objects
                if codes != {"VALIDATION" if location.root == "Mutation" else "BAD_USER_INPUT"}:
                    failures[f"{key}.{name}"] = errors or value
                continue
            if codes & {"INTERNAL_SERVER_ERROR", "GRAPHQL_VALIDATION_FAILED"}:
                failures[f"{key}.{name}"] = errors
            elif (
                not errors
                and _has_item_or_count(value)
                and location.field not in FULL_LIST_MUTATIONS
            ):
                failures[f"{key}.{name}"] = value
    assert not failures
    assert await _load_messages_and_users(environment) == before


async def test_empty_list_below_not_is_refused(filled_clients: list[GraphQLClient]) -> None:
    """It would select everything, also if `not` is deeper in the filter."""
    ada, before = filled_clients[1], await _load_messages_and_users(filled_clients[1].environment)
    delete_mutation = """mutation ($input: MessageDeleteInput!) {
      messageDelete(input: $input) { deletedCount errors { code path } } }"""
    for filter_, path in (
        ({"not": {"emailIds": []}}, ["not", "emailIds"]),
        ({"not": {"not": {"mailboxes": []}}}, ["not", "not", "mailboxes"]),
        ({"and": [{"not": {"or": []}}]}, ["and", "0", "not", "or"]),
        ({"not": {"and": [{"emailIds": []}]}}, ["not", "and", "0", "emailIds"]),
    ):
        delete_input = {"select": {"filter": filter_}, "permanent": True}
        payload = (await ada(delete_mutation, input=delete_input))["messageDelete"]
        expected_error = {"code": "VALIDATION", "path": ["select", "filter", *path]}
        assert payload == {"deletedCount": 0, "errors": [expected_error]}
    assert await _load_messages_and_users(ada.environment) == before


def _has_item_or_count(value: Any) -> bool:
    """True if a response value contains an item or a count."""
    if isinstance(value, dict):
        return any(
            _has_item_or_count(member) for name, member in value.items() if name != "__typename"
        )
    return bool(value) and value != "0"


async def _load_messages_and_users(environment: Environment) -> list[Any]:
    """Return the columns of all messages and users that mutations change."""
    messages: Any = select(Message.id, Message.mailbox_id, Message.seen, Message.deleted_at)
    accounts: Any = select(User.id, User.role, User.active, User.deleted_at)
    rows = [*await environment.database.read(messages), *await environment.database.read(accounts)]
    return sorted(map(repr, rows))
