"""Rules for the whole schema."""

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
from tests.support.schema.printed_schema import SCHEMA_TEXT, SDL

OWN_TYPES = [kind for kind in SDL.type_map.values() if not kind.name.startswith("__")]
SPECIFIED_DIRECTIVES = {directive.name for directive in specified_directives}
TYPES_WITH_FIELDS = [
    kind for kind in OWN_TYPES if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType)
]
EXTRA_CONNECTION_FIELDS = {
    "ComponentConnection": {"unresponsiveNodes"},
    "CacheEntryConnection": {"unresponsiveNodes"},
    "MessageConnection": {"queryProblems"},
    "SessionConnection": {"unresponsiveNodes"},
    "SessionSummaryConnection": {"unresponsiveNodes"},
    "MetricSetConnection": {"unresponsiveNodes"},
}
NODES_WITH_FIELDS: list[Any] = [
    node for node in parse(SCHEMA_TEXT).definitions if getattr(node, "fields", None)
]


def test_schema_file_is_up_to_date() -> None:
    file = Path(__file__).parents[2] / "schema.graphql"
    assert file.read_text() == SCHEMA_TEXT + "\n", "run: make schema"


def test_every_payload_implements_mutation_payload() -> None:
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
        input_type = get_named_type(field.args["input"].type)
        assert isinstance(input_type, GraphQLInputObjectType)
        assert get_named_type(input_type.fields["options"].type).name == "MutationOptions"


def test_connections_are_well_formed() -> None:
    connections = [kind for kind in TYPES_WITH_FIELDS if kind.name.endswith("Connection")]
    assert connections
    for kind in connections:
        extra_fields = EXTRA_CONNECTION_FIELDS.get(kind.name, set())
        assert set(kind.fields) == {"edges", "nodes", "pageInfo", "totalCount", *extra_fields}, (
            kind.name
        )


def test_no_default_is_null_and_scalars_have_specified_by() -> None:
    assert "= null" not in SCHEMA_TEXT
    scalars_without_url = [
        kind.name
        for kind in OWN_TYPES
        if is_scalar_type(kind) and not is_specified_scalar_type(kind) and not kind.specified_by_url
    ]
    assert set(scalars_without_url) == {"BigInt", "ByteSize", "Cursor", "Upload"}


def test_enums_arrive_as_members() -> None:
    for kind in schema._schema.type_map.values():  # noqa: SLF001
        if is_enum_type(kind) and not kind.name.startswith("__"):
            for name, value in kind.values.items():
                assert getattr(value.value, "name", None) == name, kind.name
