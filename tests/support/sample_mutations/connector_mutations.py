"""Sample calls of mutations of connectors. No worker runs, so nothing is connected."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import Call, call

ACCOUNT: dict[str, Any] = {
    "host": "imap.example.net",
    "username": "ada@example.net",
    "password": "far-away",
    "interval": None,
}


async def made(ada: GraphQLClient, **fields: Any) -> str:
    """Create a connector and return its id."""
    payload = await Call("connectorCreate", {**ACCOUNT, **fields}, "connector { id }")(ada)
    assert payload["errors"] == []
    return str(payload["connector"]["id"])


@call
async def connector_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("connectorCreate", ACCOUNT, "connector { name host running }")


@call
async def connector_update(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"ids": [await made(ada)], "set": {"name": "old account", "active": False}}
    return Call("connectorUpdate", input_fields, "connectors { name active }")


@call
async def connector_delete(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("connectorDelete", {"ids": [await made(ada)]}, "deletedIds")


@call
async def connector_run(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("connectorRun", {"ids": [await made(ada)]}, "runs { state trial }")


@call
async def connector_cancel(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    payload = await Call("connectorRun", {"ids": [await made(ada)]}, "runs { id }")(ada)
    return Call("connectorCancel", {"ids": [payload["runs"][0]["id"]]}, "runs { state }")


@call
async def connector_check(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {
        "protocol": "IMAP",
        "security": "TLS",
        "host": "imap.example.invalid",
        "username": "ada",
        "password": "far-away",
        "options": {"validateOnly": True},
    }
    return Call("connectorCheck", input_fields, "ok stages { stage ok }", journaled=False)


@call
async def mail_import(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    source = {"remote": {name: ACCOUNT[name] for name in ("host", "username", "password")}}
    return Call("mailImport", {"source": source}, "run { state } runs { state }")
