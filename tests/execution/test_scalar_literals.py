"""Wrong literals of scalars: the error says where they are."""

from typing import Any

import pytest

from tests.conftest import Client

CREATE = 'mutation { made: mailboxCreate(input: {paths: ["a"], retention: "xx"}) { __typename } }'
DEFAULT = 'query ($after: Cursor = "xx") { changes(after: $after) { cursor } }'


@pytest.mark.parametrize(
    ("document", "place", "path"),
    [
        ('{ changes(after: "xx") { cursor } }', (1, 18), ["changes", "after"]),
        ("{ changes(after: 5) { cursor } }", (1, 18), ["changes", "after"]),
        (CREATE, (1, 65), ["made", "input", "retention"]),
        (DEFAULT, (1, 25), ["$after"]),
    ],
)
async def test_a_wrong_literal_has_its_location_and_path(
    ada: Client, document: str, place: tuple[int, int], path: list[str]
) -> None:
    for _ in range(2):  # the second time the document is known
        answer: Any = await ada.raw(document)
        (error,) = answer["errors"]
        assert error["message"].startswith("not a")
        assert error["locations"] == [{"line": place[0], "column": place[1]}]
        assert error["extensions"] == {"code": "GRAPHQL_VALIDATION_FAILED", "path": path}
