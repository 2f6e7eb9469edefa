"""Payloads: each can be made from errors alone, and no two have the same fields."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import cast

from graphql import GraphQLInterfaceType, GraphQLObjectType, get_named_type

import graph.schema  # noqa: F401 - imports the module of every payload
from graph.types.errors import MutationPayload
from tests.support.schema.printed_schema import SDL


def payload_classes(base: type[MutationPayload] = MutationPayload) -> Iterator[type]:
    """Yield the classes of all payloads, without base classes that the schema does not have."""
    for payload_class in base.__subclasses__():
        if payload_class.__name__ in SDL.type_map:
            yield payload_class
        yield from payload_classes(payload_class)


def test_every_payload_can_be_made_from_errors_alone() -> None:
    failing = []
    for payload_class in payload_classes():
        try:
            payload_class(errors=[])
        except TypeError as error:
            failing.append(str(error))
    assert list(payload_classes())
    assert failing == []


def own_fields(payload: GraphQLObjectType) -> frozenset[tuple[str, str]]:
    """Name and type of each field, without the fields of every payload."""
    common_fields = cast(GraphQLInterfaceType, SDL.type_map["MutationPayload"]).fields
    return frozenset(
        (name, str(field.type))
        for name, field in payload.fields.items()
        if name not in common_fields
    )


def test_mutations_that_return_the_same_fields_share_their_payload() -> None:
    names_by_fields = defaultdict[frozenset[tuple[str, str]], set[str]](set)
    mutations = cast(GraphQLObjectType, SDL.mutation_type).fields
    for field in mutations.values():
        payload = cast(GraphQLObjectType, get_named_type(field.type))
        names_by_fields[own_fields(payload)].add(payload.name)
    assert len(mutations) > len(names_by_fields) > 50
    assert [sorted(names) for names in names_by_fields.values() if len(names) > 1] == []


def test_description_of_a_shared_payload_names_no_single_mutation() -> None:
    mutations_by_payload = defaultdict[str, set[str]](set)
    mutations = cast(GraphQLObjectType, SDL.mutation_type).fields
    for name, field in mutations.items():
        mutations_by_payload[get_named_type(field.type).name].add(name)
    wrong = {
        payload_name: named
        for payload_name, names in mutations_by_payload.items()
        for text in (SDL.type_map[payload_name].description or "",)
        if (named := set(re.findall(r"\w+", text)) & mutations.keys())
        and not names <= named
        and "mutations" not in text
    }
    assert wrong == {}
