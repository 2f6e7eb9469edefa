"""Access to key-value entries: roles, API keys, scopes and the audit log."""

import pytest

from graph.types import global_ids
from models.events.journal import PLATFORM
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import GraphQLClient, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.key_value_operations import (
    KEY_VALUE_QUERY,
    list_keys,
    load_value,
    run_failing_mutation,
    run_key_value_mutation,
    set_value,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")
OWN, OTHER_USERS, SHARED = "mine", "theirs", "all"
READS: dict[str, set[str]] = {  # the namespaces each caller can read
    "user": {SHARED},
    "admin of the domain": {SHARED},
    "admin": {OTHER_USERS, SHARED},
    "root": {OTHER_USERS, SHARED},
}
WRITES: dict[str, dict[str, str]] = {  # the error each caller gets for a write, or none
    "user": {OTHER_USERS: "NOT_FOUND", SHARED: "ADMIN"},
    "admin of the domain": {OTHER_USERS: "ROOT", SHARED: "ADMIN"},
    "admin": {OTHER_USERS: "ROOT", SHARED: ""},
    "root": {OTHER_USERS: "", SHARED: ""},
}


async def test_role_decides_access_to_other_users_and_shared_entries(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    environment, http = ada.environment, ada.http
    callers = {
        "user": await make_client(environment, http, "bob"),
        "admin of the domain": await make_domain_admin(
            environment, http, "chief", list(AdminPermission)
        ),
        "admin": await make_client(environment, http, "over", role=Role.ADMIN),
        "root": root,
    }
    adas_user = {"user": {"username": "ada"}}
    own = await set_value(ada, "a", "private")
    shared = await set_value(root, "a", "public", shared=True)
    assert (shared["shared"], await load_value(ada, "a", shared=True)) == (True, "public")
    node = "query ($id: ID!) { node(id: $id) { id } }"
    for name, client in callers.items():
        readable = READS[name]
        for namespace, arguments, entry in (
            (OTHER_USERS, adas_user, own),
            (SHARED, {"shared": True}, shared),
        ):
            can_read = namespace in readable
            assert (await load_value(client, "a", **arguments) is not None) is can_read, (
                name,
                namespace,
            )
            assert await list_keys(client, recursive=True, **arguments) == ["a"] * can_read, (
                name,
                namespace,
            )
            assert ((await client(node, id=entry["id"]))["node"] is not None) is can_read
            for mutation, extra in (
                ("keyValueSet", {"value": "1"}),
                ("keyValueIncrement", {"delta": 1}),
                ("keyValueDelete", {}),
            ):
                expected_error = WRITES[name][namespace]
                call_input = {"key": "a", **arguments, **extra}
                if expected_error:
                    error = await run_failing_mutation(client, mutation, **call_input)
                    assert error.get("requires", error["code"]) == expected_error, (name, namespace)
                else:
                    assert (await run_key_value_mutation(client, mutation, **call_input))[
                        "errors"
                    ] == []
        own = await set_value(ada, "a", "private")
        shared = await set_value(root, "a", "public", shared=True)
    for client in callers.values():
        if client.user.id:
            assert await load_value(client, "a") is None


async def test_api_key_without_user_has_no_own_entries(root: GraphQLClient) -> None:
    """Its user ID is 0, which is also the stream of shared entries."""
    error = await run_failing_mutation(root, "keyValueSet", key="a", value="1")
    assert error["code"] == "FORBIDDEN"
    answer = await root.execute(KEY_VALUE_QUERY, key="a")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_scope_limits_access_to_entries(ada: GraphQLClient, root: GraphQLClient) -> None:
    admin = await make_client(ada.environment, ada.http, "over", role=Role.ADMIN)
    await set_value(root, "a", shared=True)
    entry = await set_value(ada, "a", "private")

    async def make_scoped_client(client: GraphQLClient, scope: Scope) -> GraphQLClient:
        secret = await make_api_key(
            ada.environment, scope, user_id=client.user.id, role=client.user.role, scopes=[scope]
        )
        return GraphQLClient(ada.http, ada.environment, client.user, secret)

    node = "query ($id: ID!) { node(id: $id) { ... on KeyValueEntry { value } } }"
    mail_client = await make_scoped_client(ada, Scope.MAIL)
    assert (await mail_client(node, id=entry["id"]))["node"] is None  # the scope allows mail only
    answer = await mail_client.execute(KEY_VALUE_QUERY, key="a")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    settings_client = await make_scoped_client(admin, Scope.SETTINGS)
    assert (await set_value(settings_client, "mine", "1"))["value"] == "1"
    error = await run_failing_mutation(
        settings_client, "keyValueSet", key="a", value="1", shared=True
    )
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "FULL")


async def test_audit_log_has_no_values_of_other_users(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    user = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    await set_value(root, "a", "my word", **user)
    await set_value(root, "a", "my word", shared=True)
    await run_key_value_mutation(root, "keyValueDelete", key="a", **user)
    log_rows = await select_rows(
        root.environment,
        "SELECT mutation, target_kind, target_id, before, after FROM audit_log"
        " WHERE mutation LIKE 'keyValue%' ORDER BY id",
    )
    assert [row[:2] for row in log_rows] == [
        ("keyValueSet", "User"), ("keyValueSet", "KeyValueEntry"), ("keyValueDelete", "User"),
    ]  # fmt: skip
    assert [row[2] for row in log_rows if row[1] == "User"] == [ada.user.id] * 2
    assert "my word" not in str(log_rows)
    streams = await select_rows(
        root.environment, "SELECT stream_id FROM changes WHERE type LIKE 'KEY_VALUE_%'"
    )
    assert sorted(stream_id for (stream_id,) in streams) == [PLATFORM, ada.user.id, ada.user.id]
