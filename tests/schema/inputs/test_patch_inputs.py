"""Patches: an absent field leaves its value in every update mutation."""

from dataclasses import replace

import pytest
from graphql import GraphQLInputObjectType, GraphQLNonNull, Undefined, get_named_type

from tests.conftest import GraphQLClient
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.schema.printed_schema import SDL
from tests.support.stores.store_snapshot import snapshot_rows

PATCHES = {
    name: kind
    for name, kind in SDL.type_map.items()
    if isinstance(kind, GraphQLInputObjectType) and name.endswith("Patch")
}


def update_mutations() -> list[str]:
    """Return the mutations whose input requires a patch."""
    mutation = SDL.mutation_type
    assert mutation is not None
    return [
        name
        for name, field in mutation.fields.items()
        for input_type in [get_named_type(field.args["input"].type)]
        if isinstance(input_type, GraphQLInputObjectType)
        and "set" in input_type.fields
        and isinstance(input_type.fields["set"].type, GraphQLNonNull)
    ]


def test_every_patch_is_the_field_set_of_an_update_mutation_or_part_of_a_patch() -> None:
    mutation = SDL.mutation_type
    assert mutation is not None
    inputs = [
        get_named_type(mutation.fields[name].args["input"].type) for name in update_mutations()
    ]
    patches_of_mutations = {
        get_named_type(kind.fields["set"].type).name
        for kind in inputs
        if isinstance(kind, GraphQLInputObjectType)
    }
    assert {name for name in patches_of_mutations if name not in PATCHES} == set()
    parts_of_patches = {
        get_named_type(field.type).name
        for kind in PATCHES.values()
        for field in kind.fields.values()
    }
    assert set(PATCHES) - patches_of_mutations - parts_of_patches == set()


def test_no_field_of_a_patch_has_a_default_value_or_is_required() -> None:
    assert [
        f"{name}.{field_name}"
        for name, patch in PATCHES.items()
        for field_name, field in patch.fields.items()
        if field.default_value is not Undefined or isinstance(field.type, GraphQLNonNull)
    ] == []


def test_every_required_patch_says_that_it_needs_a_value() -> None:
    mutation = SDL.mutation_type
    assert mutation is not None
    without_rule = []
    for name in update_mutations():
        input_type = get_named_type(mutation.fields[name].args["input"].type)
        assert isinstance(input_type, GraphQLInputObjectType)
        if "at least one" not in (input_type.fields["set"].description or "").lower():
            without_rule.append(name)
    assert without_rule == []


@pytest.mark.parametrize("name", update_mutations())
async def test_empty_patch_is_an_error_and_changes_nothing(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    call = await SAMPLE_CALLS[name](ada, root)
    client = call.other_caller or (root if call.by_root else ada)
    before = await snapshot_rows(ada.environment)
    payload = await replace(call, input={**call.input, "set": {}})(client)
    (error,) = payload["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["set"])
    assert await snapshot_rows(ada.environment) == before
