"""Inputs repeat no fields: items of lists, and the connection to a remote server."""

from typing import Any, cast

import pytest
from graphql import GraphQLInputObjectType, get_named_type

from tests.support.schema.printed_schema import SDL

ITEM_INPUTS = [name for name in SDL.type_map if name.startswith("New") and name.endswith("Input")]


def fields_of(input_name: str) -> dict[str, tuple[str, Any]]:
    """Type and default value of each field of an input."""
    input_type = cast(GraphQLInputObjectType, SDL.type_map[input_name])
    return {
        name: (str(field.type), field.default_value) for name, field in input_type.fields.items()
    }


@pytest.mark.parametrize("item_name", ITEM_INPUTS)
def test_item_of_a_list_has_all_fields_of_the_single_input_but_options(item_name: str) -> None:
    single_name = f"{item_name.removeprefix('New').removesuffix('Input')}CreateInput"
    single_fields = fields_of(single_name)
    del single_fields["options"]
    assert fields_of(item_name) == single_fields
    description = SDL.type_map[item_name].description or ""
    assert single_name in description
    assert "`options`" in description


def test_connection_fields_are_only_in_the_inputs_of_remote_servers() -> None:
    inputs = [kind for kind in SDL.type_map.values() if isinstance(kind, GraphQLInputObjectType)]
    with_connection = {kind.name for kind in inputs if "authMechanism" in kind.fields}
    assert with_connection == {"RemoteHostInput", "RemoteServerInput", "RemoteServerPatch"}
    assert {
        f"{kind.name}.{name}"
        for kind in inputs
        for name, field in kind.fields.items()
        if get_named_type(field.type).name in with_connection
    } == {
        "ConnectorCreateInput.server", "ConnectorPatch.server", "ConnectorTestInput.server",
        "ImportRemoteAccountsInput.server", "ImportRemoteInput.server",
    }  # fmt: skip
