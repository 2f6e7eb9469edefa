"""Mutations with empty lists return a payload or a typed error, never an internal error.

An empty list of references is refused.
"""

from typing import Any

import pytest
from graphql import GraphQLInputField, GraphQLList, get_named_type, get_nullable_type

from tests.conftest import GraphQLClient
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input, sample_selection


def is_reference(field: GraphQLInputField) -> bool:
    """True if the items of a list name objects."""
    type_name = get_named_type(field.type).name
    return type_name == "ID" or type_name.endswith("Ref")


MUTATIONS: Any = SDL.type_map["Mutation"]
LIST_FIELDS = {
    name: [
        input_name
        for input_name, value in get_named_type(field.args["input"].type).fields.items()
        if isinstance(get_nullable_type(value.type), GraphQLList)
    ]
    for name, field in MUTATIONS.fields.items()
}
# Lists of references that are a new value: an empty list means none.
VALUE_LISTS = {("userCreate", "administers"), ("userRoleSet", "administers")}
REFERENCE_LISTS = [
    (name, input_name)
    for name, input_names in LIST_FIELDS.items()
    for input_name in input_names
    if is_reference(get_named_type(MUTATIONS.fields[name].args["input"].type).fields[input_name])
    and (name, input_name) not in VALUE_LISTS
]
MIN_LIST_COUNT = 80


@pytest.mark.parametrize("name", [name for name, fields in LIST_FIELDS.items() if fields])
async def test_mutation_with_empty_lists_has_no_internal_error(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    mutation = await SAMPLE_CALLS[name](ada, root)
    client = mutation.other_caller or (root if mutation.by_root else ada)
    empty_lists: dict[str, Any] = {field: [] for field in LIST_FIELDS[name]}
    empty_given_lists: dict[str, Any] = {
        field: [] for field in empty_lists if field in mutation.input
    }
    for changes in (empty_given_lists, empty_lists):
        answer = await client.execute(mutation.document(), input=mutation.input | changes)
        codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
        assert codes <= {"BAD_USER_INPUT"}, answer


async def test_mutation_with_empty_list_of_references_is_refused(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    assert len(REFERENCE_LISTS) >= MIN_LIST_COUNT
    for name, list_name in REFERENCE_LISTS:
        field = MUTATIONS.fields[name]
        document = f"mutation ($input: {field.args['input'].type}) {{"
        document += f" {name}(input: $input) {sample_selection(field)} }}"
        arguments = sample_input(field.args["input"].type) | {list_name: []}
        payloads = [
            (await client(document, input=arguments))[name]
            for client in (ada, root)  # one of them can call the mutation
        ]
        refusals = [(e["code"], e["path"]) for payload in payloads for e in payload["errors"]]
        assert ("VALIDATION", [list_name]) in refusals, (name, refusals)
