"""Mutations with an empty list: an answer or a typed error, never an internal error."""

import pytest

from tests.conftest import GraphQLClient
from tests.support.sample_mutations import SAMPLE_CALLS


@pytest.mark.parametrize("name", SAMPLE_CALLS)
async def test_mutation_with_empty_lists_has_no_internal_error(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    mutation = await SAMPLE_CALLS[name](ada, root)
    fields = {
        field: [] if isinstance(value, list) else value for field, value in mutation.input.items()
    }
    if fields == mutation.input:
        return  # the sample has no list
    client = mutation.other_caller or (root if mutation.by_root else ada)
    answer = await client.execute(mutation.document(), input=fields)
    codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
    assert codes <= {"BAD_USER_INPUT"}, answer
