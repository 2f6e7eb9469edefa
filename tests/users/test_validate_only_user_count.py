"""`validateOnly` tells how many accounts a mutation would change, and changes none."""

from typing import Any

import pytest

from tests.conftest import Client

CASES: list[tuple[str, dict[str, Any]]] = [
    ("autoreplySet", {"set": {"text": "Away"}}),
    ("clientStateReset", {}),
    ("spamPolicySet", {"level": 10}),
    ("usageReset", {}),
    ("userDelete", {}),
    ("userPermissionsSet", {"permissions": []}),
    ("userUpdate", {"set": {"name": "X"}}),
]


@pytest.mark.parametrize(("name", "given"), CASES)
@pytest.mark.usefixtures("ada", "bob")
async def test_validate_only_counts_the_accounts(
    over: Client, name: str, given: dict[str, Any]
) -> None:
    async def done(*usernames: str, only: bool) -> Any:
        options = {"validateOnly": only, "reason": "a trial"}
        document = f"mutation ($input: {name[0].upper()}{name[1:]}Input!) {{ done: {name}("
        document += "input: $input) { userCount errors { code message path } } }"
        users = {"users": {"usernames": list(usernames)}}
        return (await over(document, input={**given, **users, "options": options}))["done"]

    both = {"userCount": 2, "errors": []}
    assert await done("ada", "bob", only=True) == both
    assert await done("ada", only=True) == {"userCount": 1, "errors": []}
    assert await done("ada", "bob", only=False) == both
