"""Lists without pages state in their description how many items they can have."""

import re
from collections.abc import Iterator

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    build_schema,
    get_named_type,
)

from tests.support.schema.printed_schema import SDL

LIMIT = re.compile(r"\bat most (the (first|last) )?[\d,]+(?!\w)", re.IGNORECASE)
# Lists with one item for each member of a set that the program or the platform defines.
LISTS_OF_FIXED_SETS = {
    "ApiLogEntry.errorCodes": "error codes",
    "Health.checks": "components of a process",
    "MetricSet.counters": "counters of a type",
    "SessionSummary.pids": "processes of a node",
    "SieveScript.requires": "extensions of Sieve",
    "SieveTestResult.requires": "extensions of Sieve",
    "StorageReport.stores": "stores of the nodes",
    "User.pushChannels": "kinds of push channels",
    "User.serviceSettings": "settings of the mail services",
    "User.twoFactors": "kinds of second factors",
    "ValidationError.allowedValues": "values of an enum",
}


def unpaged_lists(schema: GraphQLSchema) -> Iterator[tuple[str, GraphQLField]]:
    """Yield the fields that return a list, apart from those that some argument or input limits.

    A payload has items for the items of its input, and `path` of an error has parts of the input.
    The `nodes` and `edges` of a connection are a page. A list of an enum has its values.
    """
    for name, parent in schema.type_map.items():
        if not isinstance(parent, (GraphQLObjectType, GraphQLInterfaceType)):
            continue
        if name.startswith("__") or name.endswith(("Payload", "Connection")):
            continue
        for field_name, field in parent.fields.items():
            field_type = field.type
            if isinstance(field_type, GraphQLNonNull):
                field_type = field_type.of_type
            if (
                isinstance(field_type, GraphQLList)
                and not isinstance(get_named_type(field_type), GraphQLEnumType)
                and "first" not in field.args
                and not (field_name == "path" and name.endswith(("Error", "Warning")))
            ):
                yield f"{name}.{field_name}", field


def lists_without_limit(schema: GraphQLSchema) -> list[str]:
    """Return the unpaged lists whose description states no limit."""
    return [
        coordinate
        for coordinate, field in unpaged_lists(schema)
        if not LIMIT.search((field.description or "").replace("\n", " "))
    ]


def test_each_unpaged_list_states_its_limit() -> None:
    assert sorted(lists_without_limit(SDL)) == sorted(LISTS_OF_FIXED_SETS)


@pytest.mark.parametrize(
    ("field", "has_limit"),
    [
        ("boxes: [Box!]!", False),
        ('"Boxes of the user." boxes: [Box!]!', False),
        ('"At most one page of boxes." boxes: [Box!]!', False),
        ('"Boxes, at most 250." boxes: [Box!]!', True),
        ('"By default at most 1,500 boxes." boxes: [String!]', True),
        ('"At most the first 250." boxes: [Box]', True),
        ("boxes(first: Int): [Box!]!", True),
        ("boxes: [Kind!]!", True),
        ("boxes: Box", True),
    ],
)
def test_list_without_limit_is_found(field: str, has_limit: bool) -> None:
    text = f"enum Kind {{ SMALL }} type Box {{ id: ID! }} type Query {{ {field} }}"
    assert lists_without_limit(build_schema(text)) == ([] if has_limit else ["Query.boxes"])
