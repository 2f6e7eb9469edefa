"""Connectors of imported archives: rights, limits and changed fields."""

from collections.abc import Mapping
from typing import Any

import pytest

from resolvers.connectors import mutations as connector_mutations
from tests.conftest import GraphQLClient
from tests.support.accounts.connector_exports import (
    PASSPHRASE,
    account_record,
    cheap_key_derivation,
    create_connectors,
    load_connectors,
    with_account_changes,
)
from tests.support.accounts.user_exports import export_account, import_account
from tests.support.accounts.user_operations import execute_mutation

pytestmark = pytest.mark.usefixtures("verify_consistency", "cheap_key_derivation")
__all__ = ["cheap_key_derivation"]


async def test_import_of_connectors_needs_the_permission(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await create_connectors(ada)
    content = (await export_account(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    arguments = {"users": {"usernames": ["bob"]}, "permissions": []}
    payload = await execute_mutation(root, "userPermissionsSet", "users { id }", **arguments)
    assert payload["errors"] == []
    result = (await import_account(bob, content, passphrase=PASSPHRASE))["result"]
    expected = ["connector Work", "Requires the permission CONNECTORS."]
    assert [refusal for refusal in result["refused"] if "connector" in refusal[0]] == [expected]
    assert await load_connectors(bob) == []


async def test_changed_connector_does_not_get_the_password(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_connectors(ada)
    content = (await export_account(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    first_connector, second_connector = account_record(content)["connectors"]
    for change in (
        {"host": "evil.example.org"},
        {"port": 143},
        {"security": "TLS"},
        {"username": "eve"},
        {"authMechanism": "PLAIN"},
        {"secret": second_connector["secret"]},
    ):
        changed_content = with_account_changes(content, connectors=[{**first_connector, **change}])
        result = (await import_account(bob, changed_content, passphrase=PASSPHRASE))["result"]
        assert result["refused"][0][0] == "password of connector Work", change
    oauth = {**second_connector["oauth"], "tokenUrl": "https://evil.example.org/"}
    changed_content = with_account_changes(
        content, connectors=[{**second_connector, "oauth": oauth}]
    )
    assert (
        len(
            (await import_account(bob, changed_content, passphrase=PASSPHRASE))["result"]["refused"]
        )
        == 1
    )
    assert not [row for row in await load_connectors(bob) if row["active"] or row["secret"]]


async def test_changed_key_derivation_is_refused(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_connectors(ada)
    content = (await export_account(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    derivation: Mapping[str, Any] = account_record(content)["connectorLock"]
    changes: tuple[dict[str, Any], ...] = ({"n": 1 << 30}, {"salt": "AAAA"}, {"salt": 1},
                                           {"kdf": "none"}, {"r": 1 << 20})  # fmt: skip
    for change in changes:
        changed_content = with_account_changes(content, connectorLock={**derivation, **change})
        result = (await import_account(bob, changed_content, passphrase=PASSPHRASE))["result"]
        assert len(result["refused"]) == 2, change
    failed_task = await import_account(
        bob, with_account_changes(content, connectorLock=[1]), passphrase=PASSPHRASE
    )
    assert failed_task["state"] == "FAILED"


INVALID_CHANGES: list[dict[str, Any]] = [
    {"host": None},
    {"host": 7},
    {"host": "127.0.0.1"},
    {"host": "mail.internal"},
    {"protocol": "SMTP"},
    {"protocol": "USER"},
    {"security": "NONE"},
    {"security": "NONE"},
    {"port": "993"},
    {"port": True},
    {"port": 1 << 20},
    {"interval": 1},
    {"interval": -1},
    {"interval": 1e9},
    {"maxAge": 1 << 39},
    {"maxBytesPerSecond": 1 << 70},
    {"mirrorDeletes": "yes"},
    {"exclude": "("},
    {"authMechanism": "NTLM"},
    {"oauth": {"tokenUrl": "https://x.example/", "clientId": "c"}},
    {"oauth": {"tokenUrl": 1, "clientId": "c"}},
    {"oauth": "x"},
    {"folderRewrites": ["x"]},
    {"folderRewrites": [{"pattern": "x"}]},
    {"customOptions": [{"name": "RUN", "value": "rm"}]},
    {"customOptions": [{"name": ["DRY_RUN"]}]},
    {"customOptions": {}},
    {"targetFolder": "a//b"},
    {"username": ""},
    {"active": 1},
]


async def test_imported_connectors_are_validated(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_connectors(ada)
    content = (await export_account(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    first_connector = account_record(content)["connectors"][0]
    changed_content = with_account_changes(
        content, connectors=[{**first_connector, **change} for change in INVALID_CHANGES]
    )
    task = await import_account(bob, changed_content, passphrase=PASSPHRASE)
    assert task["state"] == "SUCCEEDED"
    assert [subject for subject, _ in task["result"]["refused"]] == ["connector Work"] * len(
        INVALID_CHANGES
    )
    assert await load_connectors(bob) == []


async def test_import_stops_at_the_connector_limit(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_connectors(ada)
    content = (await export_account(ada, format="JSON"))["content"]
    first_connector = account_record(content)["connectors"][0]
    connectors = [
        {**first_connector, "name": f"c{number}", "username": f"u{number}"} for number in range(60)
    ]
    result = (await import_account(bob, with_account_changes(content, connectors=connectors)))[
        "result"
    ]
    assert len(await load_connectors(bob)) == connector_mutations.MAX_CONNECTORS
    assert result["refused"][-1] == ["connector c50", "At most 50 connectors are allowed."]
    assert len(result["refused"]) == connector_mutations.MAX_CONNECTORS + 1
