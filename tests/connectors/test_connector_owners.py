"""Connectors after a change or the deletion of their user, and tests of several users."""

import asyncio
from dataclasses import replace
from typing import Any

from graph.types import global_ids
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.imap_and_pop3_servers import (
    SILENT_FAULT,
    FakeImapServer,
    run_remote_server,
)
from tests.support.operations.connector_operations import load_connector_row, update_connector_row
from tests.support.time_limits import HANG_SECONDS

SERVER = {"host": "imap.example.net", "username": "ada@example.net", "password": "open sesame"}


async def create_connector(client: GraphQLClient, name: str) -> str:
    """Create a connector that only runs when it is started, and return its ID."""
    fields = {"server": SERVER, "name": name, "interval": None}
    payload = await execute_mutation(client, "connectorCreate", "connector { id }", **fields)
    assert payload["errors"] == []
    return str(payload["connector"]["id"])


async def update_connector(client: GraphQLClient, connector_id: str, **changes: Any) -> Any:
    """Change a connector and return the payload."""
    fields = {"connectors": [{"id": connector_id}], "set": changes}
    return await execute_mutation(client, "connectorUpdate", "connectors { id }", **fields)


async def test_new_user_of_a_connector_gets_no_results_of_earlier_runs(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    environment, connector_id = ada.environment, await create_connector(ada, "hers")
    row_id, now = global_ids.decode("Connector", connector_id), environment.now()
    results = {"last_error": "The folder is full.", "last_run_at": now, "last_success_at": now}
    await update_connector_row(environment, row_id, **results)
    await update_connector(root, connector_id, name="still hers")
    assert (await load_connector_row(environment, row_id)).last_error == "The folder is full."
    changes = {"user": {"username": "bob"}, "server": {"password": "another"}}
    assert (await update_connector(root, connector_id, **changes))["errors"] == []
    result = await bob("{ connectors { nodes { name lastError lastRunAt lastSuccessAt } } }")
    assert result["connectors"]["nodes"] == [
        {"name": "still hers", "lastError": None, "lastRunAt": None, "lastSuccessAt": None}
    ]


async def test_connectors_of_a_deleted_user_are_hidden(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    connector_id = await create_connector(ada, "hers")
    await create_connector(bob, "his")
    started = await execute_mutation(
        ada, "connectorStart", "connectorRuns { id }", connectors=[{"id": connector_id}]
    )
    deletion = {"users": {"usernames": ["ada"]}, "purgeAt": "2100-01-01T00:00:00Z"}
    assert (await execute_mutation(root, "userDelete", "deletedIds", **deletion))["errors"] == []
    result = await root("{ connectors { totalCount nodes { name user { username } } } }")
    assert result["connectors"] == {
        "totalCount": 1,
        "nodes": [{"name": "his", "user": {"username": "bob"}}],
    }
    for object_id in (connector_id, started["connectorRuns"][0]["id"]):
        query = "query ($id: ID!) { node(id: $id) { id } }"
        assert await root(query, id=object_id) == {"node": None}


async def test_delete_source_false_is_no_new_value(ada: GraphQLClient) -> None:
    connector_id = await create_connector(ada, "hers")
    (error,) = (await update_connector(ada, connector_id, deleteSource=False))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["set"])


async def test_silent_servers_of_one_user_leave_tests_to_others(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    options = replace(ada.environment.options, connectors_allow_private_networks=True)
    object.__setattr__(ada.environment, "options", options)
    silent, working = FakeImapServer(faults={"GREETING": SILENT_FAULT}), FakeImapServer()

    async def check_server(client: GraphQLClient, remote: FakeImapServer) -> Any:
        server = {**SERVER, "host": "127.0.0.1", "port": remote.port}
        fields = {"server": {**server, "protocol": "IMAP", "security": "NONE"}, "timeout": "PT1M"}
        return await execute_mutation(client, "connectorTest", "ok", **fields)

    async with (
        asyncio.timeout(HANG_SECONDS),
        run_remote_server(silent),
        run_remote_server(working),
    ):
        tests = [asyncio.create_task(check_server(ada, silent)) for _ in range(2)]
        async with silent.asked:
            await silent.asked.wait_for(lambda: len(silent.sessions) == len(tests))
        (error,) = (await check_server(ada, working))["errors"]
        assert error["code"] == "RATE_LIMITED"
        assert await check_server(bob, working) == {"ok": True, "errors": []}
        for test in tests:
            test.cancel()
        await asyncio.gather(*tests, return_exceptions=True)
        assert (await check_server(ada, working))["ok"]
