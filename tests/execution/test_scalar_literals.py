"""The error of an invalid scalar literal contains its location."""

from typing import Any

import pytest

from tests.conftest import GraphQLClient

MUTATION_WITH_BAD_LITERAL = (
    'mutation { made: mailboxCreate(input: {paths: ["a"], retention: "xx"}) { __typename } }'
)
QUERY_WITH_BAD_DEFAULT = 'query ($after: Cursor = "xx") { changes(after: $after) { cursor } }'


NO_CURSOR = "Not a cursor of the journal."
NO_DURATION = "Must be an ISO 8601 duration such as P30D or PT20M."


@pytest.mark.parametrize(
    ("document", "column", "path", "message"),
    [
        ('{ changes(after: "xx") { cursor } }', 18, ["changes", "after"], NO_CURSOR),
        ("{ changes(after: 5) { cursor } }", 18, ["changes", "after"], NO_CURSOR),
        (MUTATION_WITH_BAD_LITERAL, 65, ["made", "input", "retention"], NO_DURATION),
        (QUERY_WITH_BAD_DEFAULT, 25, ["$after"], NO_CURSOR),
    ],
)
async def test_invalid_literal_error_has_location_and_path(
    ada: GraphQLClient, document: str, column: int, path: list[str], message: str
) -> None:
    for _ in range(2):  # the second time the document is in the cache
        answer: Any = await ada.execute(document)
        (error,) = answer["errors"]
        assert error["message"] == message
        assert error["locations"] == [{"line": 1, "column": column}]
        assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED", "path": path}
