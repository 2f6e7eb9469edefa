"""The size of metadata is limited, whatever mutation stores it."""

from typing import Any

from models.runtime.options import Options
from tests.conftest import GraphQLClient
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.lists.input_locations import (
    InputLocation,
    input_locations,
    input_with_field,
    run_at_location,
    schema,
)

METADATA_FIELDS = ("metadata", "privateMetadata")
INPUT_TYPES = {
    name
    for name, kind in schema.type_map.items()
    if set(METADATA_FIELDS) & set(getattr(kind, "fields", ())) and hasattr(kind, "is_one_of")
}
LOCATIONS = {
    location.key: location
    for location in input_locations(INPUT_TYPES)
    if location.root == "Mutation"
}


def metadata_of_size(size: int) -> dict[str, str]:
    """An object with this number of bytes as JSON."""
    return {"a": "x" * (size - len('{"a":""}'))}


async def store_metadata(
    clients: list[GraphQLClient], location: InputLocation, name: str, size: int
) -> list[tuple[str, Any]]:
    inner = input_with_field(location, name, metadata_of_size(size))
    _, errors = await run_at_location(clients, location, inner)
    return errors


async def test_metadata_above_limit_is_refused_with_its_path(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    for case in each_case(LOCATIONS.values()):
        with case as location:
            limit = Options().metadata_max_size
            assert limit == 64 << 10
            input_type: Any = schema.type_map[location.input]
            for name in METADATA_FIELDS:
                if name in input_type.fields:
                    refusal = ("VALIDATION", [*location.path[1:], name])
                    assert await store_metadata([ada, root], location, name, limit + 1) == [refusal]
                    assert refusal not in await store_metadata([ada, root], location, name, limit)


async def test_limit_of_metadata_and_annotations_is_a_setting(ada: GraphQLClient) -> None:
    change_options(ada.environment, metadata_max_size=100)
    for size, expected in ((100, []), (101, ["MAX"])):
        payload = await execute_mutation(
            ada, "userUpdate", "", set={"metadata": metadata_of_size(size)}
        )
        assert [error["constraint"] for error in payload["errors"]] == expected
        payload = await execute_mutation(
            ada,
            "mailboxAnnotationSet",
            "",
            mailbox={"path": "INBOX"},
            key="/private/comment",
            value="x" * size,
        )
        assert [error["constraint"] for error in payload["errors"]] == expected
