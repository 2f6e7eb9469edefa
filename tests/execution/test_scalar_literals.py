"""The error of an invalid scalar literal contains its location."""

from typing import Any

import pytest

from tests.conftest import GraphQLClient

MUTATION_WITH_BAD_LITERAL = (
    'mutation { made: mailboxCreate(input: {paths: ["a"], retention: "xx"}) { __typename } }'
)
QUERY_WITH_BAD_DEFAULT = 'query ($after: Cursor = "xx") { changes(after: $after) { cursor } }'


@pytest.mark.parametrize(
    ("document", "location", "path"),
    [
        ('{ changes(after: "xx") { cursor } }', (1, 18), ["changes", "after"]),
        ("{ changes(after: 5) { cursor } }", (1, 18), ["changes", "after"]),
        (MUTATION_WITH_BAD_LITERAL, (1, 65), ["made", "input", "retention"]),
        (QUERY_WITH_BAD_DEFAULT, (1, 25), ["$after"]),
    ],
)
async def test_invalid_literal_error_has_location_and_path(
    ada: GraphQLClient, document: str, location: tuple[int, int], path: list[str]
) -> None:
    for _ in range(2):  # the second time the document is in the cache
        answer: Any = await ada.execute(document)
        (error,) = answer["errors"]
        assert error["message"].startswith("not a")
        assert error["locations"] == [{"line": location[0], "column": location[1]}]
        assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED", "path": path}
