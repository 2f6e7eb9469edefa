"""Each error code that ends the description of a mutation is explained in it, or at an input."""

from graphql import GraphQLInputObjectType, get_named_type

from graph.types.descriptions.mutation_error_codes import ERROR_CODES_BY_MUTATION
from tests.support.schema.nested_inputs import iter_nested_fields
from tests.support.schema.printed_schema import SDL


def test_every_listed_error_code_is_explained() -> None:
    mutations = SDL.mutation_type
    assert mutations is not None
    unexplained = []
    for name, codes in ERROR_CODES_BY_MUTATION.items():
        field = mutations.fields[name]
        text, _, listed = (field.description or "").rpartition(" Errors: ")
        assert listed.rstrip(".").split(", ") == list(codes)
        input_type = get_named_type(field.args["input"].type)
        assert isinstance(input_type, GraphQLInputObjectType)
        input_texts = [one.description or "" for _, one in iter_nested_fields(input_type.fields)]
        explanation = " ".join([text, *input_texts])
        unexplained += [f"{name}: {code}" for code in codes if code not in explanation]
    assert unexplained == []
