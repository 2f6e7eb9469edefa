"""Empty restrictions: an empty list is refused, null removes the restriction."""

from typing import Any

import pytest
from graphql import is_input_object_type
from strawberry.utils.str_converters import to_camel_case

from graph.types.input_conditions import RestrictionsInput
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.differential.random_values import strawberry_definition
from tests.support.lists.input_locations import schema
from tests.support.operations.id_references import id_refs

ERRORS = "errors { code path }"
ADA_SELECTION = {"users": {"usernames": ["ada"]}}
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("apiKeyCreate", {"name": "x", "scopes": []}, ["scopes"]),
    ("apiKeyCreate", {"name": "x", "operations": []}, ["operations"]),
    ("apiKeyCreate", {"name": "x", "allowedIps": []}, ["allowedIps"]),
    ("apiKeyCreate", {"name": "x", "domains": []}, ["domains"]),
    ("apiKeyUpdate", {"apiKeys": [], "set": {"allowedIps": []}}, ["set", "allowedIps"]),
    ("authenticate", {"username": "ada", "password": "x", "scopes": []}, ["scopes"]),
    ("autoreplySet", {"set": {"addresses": []}}, ["set", "addresses"]),
    ("filterCreate", {"query": {"any": []}, "action": {"delete": True}}, ["query", "any"]),
    ("filterCreate", {"query": {"all": []}, "action": {"delete": True}}, ["query", "all"]),
    ("filterCreate", {"query": {"not": []}, "action": {"delete": True}}, ["query", "not"]),
    (
        "filterCreate",
        {"query": {"all": [{"any": []}]}, "action": {"delete": True}},
        ["query", "all", "0", "any"],
    ),
    ("pushChannelSet", {"kind": "HTTP", "mailboxes": []}, ["mailboxes"]),
    ("pushChannelSet", {"kind": "HTTP", "senders": []}, ["senders"]),
    ("userCreate", {"username": "x", "smtpAllowedNetworks": []}, ["smtpAllowedNetworks"]),
    (
        "userUpdate",
        {**ADA_SELECTION, "set": {"smtpAllowedNetworks": []}},
        ["set", "smtpAllowedNetworks"],
    ),
]


@pytest.mark.usefixtures("ada")
async def test_empty_restriction_is_refused(admin_client: GraphQLClient) -> None:
    for case in each_case(CASES):
        with case as (name, input_, path):
            document = f"mutation ($input: {name[0].upper()}{name[1:]}Input!) {{"
            data = await admin_client(
                f"{document} {name}(input: $input) {{ {ERRORS} }} }}", input=input_
            )
            assert data[name]["errors"] == [{"code": "VALIDATION", "path": path}]


def test_every_restriction_field_has_a_case() -> None:
    tested_fields = {path[-1] for _, _, path in CASES}
    for kind in schema.type_map.values():
        if is_input_object_type(kind) and issubclass(
            strawberry_definition(kind).origin, RestrictionsInput
        ):
            fields = strawberry_definition(kind).origin.restriction_fields
            assert {to_camel_case(field_name.rstrip("_")) for field_name in fields} <= tested_fields


async def test_null_removes_restriction(ada: GraphQLClient) -> None:
    created = await execute_mutation(ada, "apiKeyCreate", "apiKey { id allowedIps }", name="x",
                     allowedIps=["192.0.2.0/24"])  # fmt: skip
    assert created["apiKey"]["allowedIps"] == ["192.0.2.0/24"]
    ids = [created["apiKey"]["id"]]
    updated = await execute_mutation(
        ada,
        "apiKeyUpdate",
        "apiKeys { allowedIps }",
        apiKeys=id_refs(ids),
        set={"allowedIps": None},
    )
    assert updated["apiKeys"] == [{"allowedIps": []}]
