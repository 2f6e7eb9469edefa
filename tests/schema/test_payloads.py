"""Payloads: each can be made from errors alone, and no two have the same fields."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import cast

from graphql import GraphQLInterfaceType, GraphQLObjectType, get_named_type
from strawberry.types import get_object_definition

import graph.schema  # noqa: F401 - imports the module of every payload
from graph.types.descriptions.warning_descriptions import NO_WARNINGS, PAYLOADS_WITH_WARNINGS
from graph.types.errors import MutationPayload
from tests.support.reference.areas import iter_root_fields
from tests.support.reference.errors.reach import reach_of
from tests.support.schema.printed_schema import SDL

# Functions and classes that add a warning to a payload.
WARNING_SOURCES = {"graph.types.errors.Warning", "resolvers.context.Context.add_warning"}


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


SECRET_NAME = re.compile("(.*_)?secret|token|password|challenge|recovery_codes|mobileconfig")
ONCE = re.compile(r"(is|are) returned once")


def test_secrets_that_are_returned_once_are_neither_stored_nor_returned_by_a_dry_run() -> None:
    """Fields with the metadata "secret" are cleared in a dry run and in a replayed payload."""
    secret_fields, unmarked, undocumented = [], [], []
    for payload_class in payload_classes():
        for field in get_object_definition(payload_class, strict=True).fields:
            name, text = f"{payload_class.__name__}.{field.python_name}", field.description or ""
            if field.metadata.get("secret"):
                secret_fields.append(name)
                if "dry run" not in text and "validateOnly" not in text:
                    undocumented.append(name)
            elif ONCE.search(text) or SECRET_NAME.fullmatch(field.python_name):
                unmarked.append(name)
    assert len(secret_fields) >= 14
    assert (unmarked, undocumented) == ([], [])


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


def test_payloads_with_warnings_are_those_of_mutations_that_add_one() -> None:
    with_warnings = {
        get_named_type(root_field.field.type).name
        for root_field in iter_root_fields(SDL)
        if root_field.operation == "mutation"
        and WARNING_SOURCES & set(reach_of(root_field.resolver_name).names)
    }
    assert with_warnings == PAYLOADS_WITH_WARNINGS
    always_empty = {
        payload_class.__name__
        for payload_class in payload_classes()
        if cast(GraphQLObjectType, SDL.type_map[payload_class.__name__])
        .fields["warnings"]
        .description
        == NO_WARNINGS
    }
    assert always_empty.isdisjoint(with_warnings)
    assert always_empty | with_warnings == {one.__name__ for one in payload_classes()}
