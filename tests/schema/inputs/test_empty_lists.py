"""Mutations with empty lists return a payload or a typed error, never an internal error."""

from typing import Any

import pytest
from graphql import GraphQLList, get_named_type, get_nullable_type

from tests.conftest import GraphQLClient
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.schema.printed_schema import SDL

MUTATIONS: Any = SDL.type_map["Mutation"]
LIST_FIELDS = {
    name: [
        input_name
        for input_name, value in get_named_type(field.args["input"].type).fields.items()
        if isinstance(get_nullable_type(value.type), GraphQLList)
    ]
    for name, field in MUTATIONS.fields.items()
}


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
