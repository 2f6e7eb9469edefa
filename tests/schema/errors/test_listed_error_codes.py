"""Each error code that ends the description of a mutation is explained in it, or at an input."""

from graphql import GraphQLInputObjectType, get_named_type

from graph.types.descriptions.mutation_error_codes import ERROR_CODES_BY_MUTATION
from tests.support.schema.printed_schema import SDL


def texts_of_input(input_type: GraphQLInputObjectType) -> str:
    """Return the descriptions of the fields of an input and of the inputs in it."""
    texts, seen, waiting = list[str](), {input_type.name}, [input_type]
    while waiting:
        for field in waiting.pop().fields.values():
            texts.append(field.description or "")
            inner = get_named_type(field.type)
            if isinstance(inner, GraphQLInputObjectType) and inner.name not in seen:
                seen.add(inner.name)
                waiting.append(inner)
    return " ".join(texts)


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
        explanation = text + texts_of_input(input_type)
        unexplained += [f"{name}: {code}" for code in codes if code not in explanation]
    assert unexplained == []
