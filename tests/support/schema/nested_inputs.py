"""The fields of inputs, with those of the inputs in them."""

from collections.abc import Iterator, Mapping

from graphql import GraphQLArgument, GraphQLInputField, GraphQLInputObjectType, get_named_type


def iter_nested_fields(
    fields: Mapping[str, GraphQLArgument] | Mapping[str, GraphQLInputField],
) -> Iterator[tuple[str, GraphQLArgument | GraphQLInputField]]:
    """Yield these fields and those of the inputs in them, each with its name. Each input once."""
    seen = set[str]()
    waiting: list[Mapping[str, GraphQLArgument] | Mapping[str, GraphQLInputField]] = [fields]
    while waiting:
        for name, definition in waiting.pop().items():
            yield name, definition
            named = get_named_type(definition.type)
            if isinstance(named, GraphQLInputObjectType) and named.name not in seen:
                seen.add(named.name)
                waiting.append(named.fields)
