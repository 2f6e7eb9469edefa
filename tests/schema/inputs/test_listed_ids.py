"""Each ID that a list returns is accepted by all references to objects of its type.

Lists, references and their types are derived from the schema. Mutations run with `validateOnly`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from graphql import get_named_type, get_nullable_type, is_input_object_type, is_list_type

from tests.conftest import GraphQLClient, ManualClock
from tests.support.lists.input_locations import (
    InputLocation,
    input_locations,
    run_at_location,
    schema,
)
from tests.support.lists.list_fields import PARENT_SELECTIONS, ListField, required_arguments
from tests.support.lists.list_rows import add_list_rows

REFERENCE_ERRORS = {"NOT_FOUND", "VALIDATION", "BAD_USER_INPUT", "INTERNAL_SERVER_ERROR"}
REFERENCE_SUFFIXES = ("Ref", "Selection")
MIN_PAIR_COUNT = 800  # of a location and an ID
# DeletedUser has IDs of its own, and no reference type.
DELETED_USER_LOCATIONS = {
    "Query.deletedUser:by",
    "Mutation.userDelete:input.users",
    "Mutation.userRestore:input.user",
}
# Locations where an ID of a list is an error for another reason than its form.
REFUSED_LOCATIONS = {
    "Query.filterTest:message.stored.uid.mailbox": "No message has the UID of the sample.",
    "Query.sieveTest:message.stored.uid.mailbox": "No message has the UID of the sample.",
    "Query.statistics:domain": "The statistics of the sample are not counted for domains.",
    "Mutation.deletedMessageRestore:input.user": "Messages selected by ID have owners already.",
    "Mutation.identityProviderDelete:input.domains.0": "The domain has no identity provider.",
    "Mutation.identityProviderTest:input.domain": "The domain has no identity provider.",
    "Mutation.mailImport:input.filter.mailbox": "An archive has no stored mailboxes.",
    "Mutation.mailImport:input.parentMailbox": "Only ROOT, who has no mailbox, imports files.",
    "Mutation.mailImport:input.source.user": "Messages of a user are not imported to that user.",
    "Mutation.oauthClientSecretRotate:input.oauthClient": "A public client has no secret.",
    "Mutation.temporaryAddressCreate:input.domain": "The user has no address in the domain.",
}


@dataclass(frozen=True)
class ListedId:
    """The ID of the first object in a list, and the client that has read the list."""

    list_key: str
    type_name: str
    id: str
    client: GraphQLClient


def lists_with_ids() -> Iterator[ListField]:
    """Yield each list of objects with an ID."""
    for parent in PARENT_SELECTIONS:
        parent_type: Any = schema.type_map[parent]
        for name, field in parent_type.fields.items():
            list_field = ListField(parent, name, field)
            fields = getattr(get_named_type(field.type), "fields", {})
            is_list = "nodes" in fields or is_list_type(get_nullable_type(field.type))
            if is_list and "id" in getattr(node_type(list_field), "fields", {}):
                yield list_field


def node_type(list_field: ListField) -> Any:
    """The type of the objects in a list."""
    named_type: Any = get_named_type(list_field.field.type)
    nodes = getattr(named_type, "fields", {}).get("nodes")
    return get_named_type(nodes.type) if nodes else named_type


async def ids_of_list(clients: list[GraphQLClient], list_field: ListField) -> list[ListedId]:
    """Read a list by each client and return the first ID that each of them gets."""
    literals = required_arguments(schema, list_field, Random(1))  # noqa: S311 - not for cryptography
    arguments = ", ".join(f"{name}: {value}" for name, value in literals.items())
    named_type: Any = get_named_type(list_field.field.type)
    selection = "{ nodes { id } }" if "nodes" in named_type.fields else "{ id }"
    text = f"listed: {list_field.name}{f'({arguments})' if arguments else ''} {selection}"
    found = []
    for client in clients:
        for parent in PARENT_SELECTIONS[list_field.parent]:
            response = await client.execute(f"{{ {parent % text} }}")
            ids = list(ids_in(response.get("data"), "listed"))
            if ids:
                type_name = node_type(list_field).name
                found.append(ListedId(list_field.key, type_name, ids[0], client))
                break
    return found


def ids_in(value: Any, name: str) -> Iterator[str]:
    """Yield the IDs in a response below the fields of this name."""
    if isinstance(value, list):
        for item in value:
            yield from ids_in(item, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == name and inner:
                nodes = inner["nodes"] if isinstance(inner, dict) else inner
                yield from (node["id"] for node in nodes or () if node)
            else:
                yield from ids_in(inner, name)


def reference_inputs() -> dict[str, str]:
    """The inputs that refer to objects by their IDs, with the field of the ID."""
    return {
        name: "id" if "id" in kind.fields else "ids"
        for name, kind in schema.type_map.items()
        if name.endswith(REFERENCE_SUFFIXES)
        and is_input_object_type(kind)
        and {"id", "ids"} & kind.fields.keys()
    }


ID_FIELDS = reference_inputs()
LOCATIONS = list(input_locations(ID_FIELDS))


def referenced_types(location: InputLocation) -> set[str]:
    """The types of the objects that a location refers to."""
    type_name = location.input
    for suffix in REFERENCE_SUFFIXES:
        type_name = type_name.removesuffix(suffix)
    return {type_name} | ({"DeletedUser"} if location.key in DELETED_USER_LOCATIONS else set())


async def reference_errors(
    clients: list[GraphQLClient], location: InputLocation, listed: ListedId
) -> list[tuple[str, Any]]:
    """Return the errors about the reference of the first client, or none if a client has none."""
    first_errors = list[tuple[str, Any]]()
    id_field = ID_FIELDS[location.input]
    reference = {id_field: [listed.id] if id_field == "ids" else listed.id}
    path = list(location.path[1:])
    others = [client for client in clients if client is not listed.client]
    for client in [listed.client, *others]:
        _, errors = await run_at_location([client], location, reference, {"validateOnly": True})
        wrong = [
            (code, error_path)
            for code, error_path in errors
            if code in REFERENCE_ERRORS and (error_path is None or error_path[: len(path)] == path)
        ]
        if not wrong and not any(code == "FORBIDDEN" for code, _ in errors):
            return []
        first_errors = first_errors or wrong
    return first_errors


async def test_references_accept_the_ids_of_lists(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    root: GraphQLClient,
    clock: ManualClock,
) -> None:
    await add_list_rows(ada, bob, clock)
    clients = [ada, bob, admin_client, root]
    listed_ids: dict[str, dict[str, ListedId]] = {}
    for list_field in lists_with_ids():
        for listed in await ids_of_list(clients, list_field):
            listed_ids.setdefault(listed.type_name, {}).setdefault(listed.id, listed)
    refused, pair_count = set[str](), 0
    for location in LOCATIONS:
        for type_name in referenced_types(location):
            for listed in listed_ids.get(type_name, {}).values():
                pair_count += 1
                if await reference_errors(clients, location, listed):
                    refused.add(location.key)
    assert pair_count >= MIN_PAIR_COUNT
    assert refused == set(REFUSED_LOCATIONS)
