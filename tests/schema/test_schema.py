"""What holds for the whole schema."""

from pathlib import Path
from typing import Any

from graphql import (
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    get_named_type,
    is_enum_type,
    is_scalar_type,
    is_specified_scalar_type,
    parse,
    specified_directives,
)

from graph.schema import schema
from tests.support.schema.printed_schema import SDL, TEXT

OWN = [kind for kind in SDL.type_map.values() if not kind.name.startswith("__")]
SPECIFIED = {directive.name for directive in specified_directives}
WITH_FIELDS = [kind for kind in OWN if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType)]
NODES: list[Any] = [node for node in parse(TEXT).definitions if getattr(node, "fields", None)]


def test_the_file_is_the_printed_schema() -> None:
    file = Path(__file__).parents[2] / "schema.graphql"
    assert file.read_text() == TEXT + "\n", "run: make schema"


def test_every_payload_says_the_same_four_things() -> None:
    mutation = SDL.mutation_type
    assert mutation is not None
    for name, field in mutation.fields.items():
        payload = get_named_type(field.type)
        assert field.type is payload, f"{name}: an error in it would remove the other payloads"
        assert isinstance(payload, GraphQLObjectType)
        assert [kind.name for kind in payload.interfaces] == ["MutationPayload"], name


def test_every_mutation_has_one_input_with_options() -> None:
    mutation = SDL.mutation_type
    assert mutation is not None
    for name, field in mutation.fields.items():
        assert list(field.args) == ["input"], name
        given = get_named_type(field.args["input"].type)
        assert isinstance(given, GraphQLInputObjectType)
        assert get_named_type(given.fields["options"].type).name == "MutationOptions"


def test_connections_are_well_formed() -> None:
    found = [kind for kind in WITH_FIELDS if kind.name.endswith("Connection")]
    assert found
    for kind in found:
        more = {"queryProblems"} if kind.name == "MessageConnection" else set()
        assert set(kind.fields) == {"edges", "nodes", "pageInfo", "totalCount", *more}, kind.name


def test_no_default_is_null_and_no_scalar_without_its_source() -> None:
    assert "= null" not in TEXT
    bare = [
        kind.name
        for kind in OWN
        if is_scalar_type(kind) and not is_specified_scalar_type(kind) and not kind.specified_by_url
    ]
    assert set(bare) == {"BigInt", "ByteSize", "Cursor", "Upload"}


def test_enums_arrive_as_members() -> None:
    for kind in schema._schema.type_map.values():  # noqa: SLF001
        if is_enum_type(kind) and not kind.name.startswith("__"):
            for name, value in kind.values.items():
                assert getattr(value.value, "name", None) == name, kind.name
