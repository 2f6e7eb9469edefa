"""`validateOnly` returns the number of users that a mutation would change, and changes none."""

from typing import Any

import pytest

from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case

CASES: list[tuple[str, dict[str, Any]]] = [
    ("autoreplySet", {"set": {"text": "Away"}}),
    ("userSyncReset", {}),
    ("userUsageReset", {}),
    ("userPermissionsSet", {"permissions": []}),
    ("userUpdate", {"set": {"name": "X"}}),
    ("userDelete", {}),  # the last one, since the others need the users
]


@pytest.mark.usefixtures("ada", "bob")
async def test_validate_only_counts_the_users(admin_client: GraphQLClient) -> None:
    for case in each_case(CASES):
        with case as (name, input_fields):

            async def run_document(*usernames: str, only: bool) -> Any:
                options = {"validateOnly": only, "reason": "a trial"}
                document = f"mutation ($input: {name[0].upper()}{name[1:]}Input!) {{ done: {name}("
                document += "input: $input) { userCount errors { code message path } } }"
                users = {"users": {"usernames": list(usernames)}}
                return (
                    await admin_client(
                        document, input={**input_fields, **users, "options": options}
                    )
                )["done"]

            expected_for_both = {"userCount": 2, "errors": []}
            assert await run_document("ada", "bob", only=True) == expected_for_both
            assert await run_document("ada", only=True) == {"userCount": 1, "errors": []}
            assert await run_document("ada", "bob", only=False) == expected_for_both
