"""Metadata, annotations and key values count in the storage of the account."""

from typing import Any

import pytest
from sqlmodel import SQLModel

from models.runtime.environment import Environment
from models.users.custom_data_usage import COUNTED_TABLES
from tests.conftest import GraphQLClient
from tests.support.accounts.key_value_operations import set_value
from tests.support.accounts.user_operations import execute_mutation, set_quota
from tests.support.operations.bulk_operations import list_message_ids, run_message_mutation
from tests.support.stores.counter_check import assert_store_consistent, select_rows

KIB = 1 << 10
BIG = {"a": "x" * (60 * KIB)}


async def load_used(environment: Environment, client: GraphQLClient) -> int:
    query = "SELECT used FROM users WHERE id = :id"
    ((used,),) = await select_rows(environment, query, id=client.user.id)
    return int(used)


async def set_metadata(client: GraphQLClient, metadata: Any, **input_values: Any) -> Any:
    return await run_message_mutation(
        client,
        "messageUpdate",
        **{"select": {"all": True}, **input_values},
        set={"metadata": metadata},
    )


def test_every_column_of_metadata_is_counted() -> None:
    columns = {
        (table.name, column.name)
        for table in SQLModel.metadata.tables.values()
        for column in table.columns
        if column.name.endswith("_metadata") and column.name != "client_metadata"
    }
    counted = {(table.name, name) for table in COUNTED_TABLES for name in table.columns}
    assert columns <= counted


async def test_storage_follows_metadata_of_messages(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    before = await load_used(environment, ada_with_mail)
    assert (await set_metadata(ada_with_mail, BIG))["errors"] == []
    assert await load_used(environment, ada_with_mail) - before == pytest.approx(180 * KIB, abs=99)
    await assert_store_consistent(environment)
    copies = await run_message_mutation(
        ada_with_mail, "messageCopy", select={"all": True}, to={"path": "Keep"}
    )
    assert copies["errors"] == []
    assert await load_used(environment, ada_with_mail) > before + 360 * KIB
    await assert_store_consistent(environment)
    ids = await list_message_ids(ada_with_mail)
    deleted = await run_message_mutation(ada_with_mail, "messageDelete", select={"ids": ids[:1]})
    assert deleted["errors"] == []
    await assert_store_consistent(environment)
    assert (await set_metadata(ada_with_mail, None))["errors"] == []
    await assert_store_consistent(environment)


async def test_storage_follows_other_custom_data(
    ada: GraphQLClient, environment: Environment
) -> None:
    before = await load_used(environment, ada)
    box = {"path": "Notes"}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("mailboxCreate", {"paths": ["Notes"]}),
        ("mailboxAnnotationSet", {"mailbox": box, "key": "/private/comment", "value": "x" * 999}),
        ("mailboxAnnotationSet", {"mailbox": box, "key": "/private/comment", "value": "x" * 500}),
        ("userUpdate", {"set": {"metadata": {"a": "x" * 400}}}),
        ("filterCreate", {"query": {}, "action": {"stop": True}, "metadata": {"a": "é" * 300}}),
    ]
    for name, arguments in steps:
        payload = await execute_mutation(ada, name, "", **arguments)
        assert payload["errors"] == [], name
    await set_value(ada, "k", "x" * 200)
    assert await load_used(environment, ada) - before == pytest.approx(1700, abs=60)
    await assert_store_consistent(environment)
    payload = await execute_mutation(ada, "mailboxDelete", "", mailboxes=[box])
    assert payload["errors"] == []
    assert await load_used(environment, ada) - before == pytest.approx(1200, abs=50)
    await assert_store_consistent(environment)


@pytest.mark.parametrize("as_task", [False, True], ids=["at once", "task"])
async def test_metadata_beyond_quota_is_refused_before_anything_is_written(
    ada_with_mail: GraphQLClient, environment: Environment, as_task: bool
) -> None:
    used = await load_used(environment, ada_with_mail)
    await set_quota(environment, ada_with_mail.user, used + 150 * KIB)
    options = {"async": True} if as_task else {}
    payload = await set_metadata(ada_with_mail, BIG, **options)
    assert [error["code"] for error in payload["errors"]] == ["QUOTA_EXCEEDED"]
    assert await load_used(environment, ada_with_mail) == used
    assert await select_rows(environment, "SELECT id FROM tasks") == []
    ids = await list_message_ids(ada_with_mail)
    for _ in range(2):  # the same again does not grow
        payload = await set_metadata(ada_with_mail, BIG, select={"ids": ids[:2]}, **options)
        assert payload["errors"] == []


async def test_other_custom_data_beyond_quota_is_refused(
    ada: GraphQLClient, environment: Environment
) -> None:
    await set_quota(environment, ada.user, await load_used(environment, ada) + KIB)
    value = "x" * 2 * KIB
    box = {"path": "INBOX"}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("mailboxAnnotationSet", {"mailbox": box, "key": "/private/comment", "value": value}),
        ("filterCreate", {"query": {}, "action": {"stop": True}, "metadata": {"a": value}}),
        ("keyValueSet", {"key": "k", "value": value}),
    ]
    for name, arguments in steps:
        payload = await execute_mutation(ada, name, "", **arguments)
        assert [error["code"] for error in payload["errors"]] == ["QUOTA_EXCEEDED"], name


async def test_metadata_of_users_and_addresses_beyond_quota_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    used = await load_used(environment, ada)
    payload = await execute_mutation(
        root, "userUpdate", "", users={"usernames": ["ada"]}, set={"quota": used + KIB}
    )
    assert payload["errors"] == []
    usernames = [bob.user.username, ada.user.username]
    metadata = {"a": "x" * 2 * KIB}
    user, own_address = {"username": "ada"}, {"address": ada.address}
    refused: list[tuple[GraphQLClient, str, dict[str, Any]]] = [
        (ada, "userUpdate", {"set": {"metadata": metadata}}),
        (root, "userUpdate", {"users": {"usernames": ["ada"]}, "set": {"metadata": metadata}}),
        (
            root,
            "userUpdate",
            {"users": {"usernames": usernames}, "set": {"privateMetadata": metadata}},
        ),
        (root, "addressUpdate", {"addresses": [own_address], "set": {"metadata": metadata}}),
        (
            root,
            "addressCreate",
            {"address": "more@example.org", "user": user, "privateMetadata": metadata},
        ),
    ]
    for client, name, arguments in refused:
        payload = await execute_mutation(client, name, "", **arguments)
        assert [error["code"] for error in payload["errors"]] == ["QUOTA_EXCEEDED"], name
    assert await load_used(environment, ada) == used
    for client, name, arguments in refused[:1] + refused[3:4]:
        small = {**arguments, "set": {"metadata": {"a": "x" * 200}}}
        payload = await execute_mutation(client, name, "", **small)
        assert payload["errors"] == [], name
    await assert_store_consistent(environment)


async def test_address_without_user_has_metadata_without_quota(root: GraphQLClient) -> None:
    payload = await execute_mutation(
        root,
        "addressCreate",
        "",
        address="team@example.org",
        forwardTo=["eve@example.net"],
        metadata=BIG,
    )
    assert payload["errors"] == []
