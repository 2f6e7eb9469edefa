"""Sample calls of mutations of connectors. No worker runs, so nothing is connected."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

CONNECTOR_INPUT: dict[str, Any] = {
    "server": {
        "host": "imap.example.net",
        "username": "ada@example.net",
        "password": "far-away",
    },
    "interval": None,
}


async def create_connector(ada: GraphQLClient, **fields: Any) -> str:
    """Create a connector and return its id."""
    payload = await MutationCall(
        "connectorCreate", {**CONNECTOR_INPUT, **fields}, "connector { id }"
    )(ada)
    assert payload["errors"] == []
    return str(payload["connector"]["id"])


@register_call
async def connector_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("connectorCreate", CONNECTOR_INPUT, "connector { name host running }")


@register_call
async def connector_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "connectors": [{"id": await create_connector(ada)}],
        "set": {"name": "old account", "active": False},
    }
    return MutationCall("connectorUpdate", input_fields, "connectors { name active }")


@register_call
async def connector_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"connectors": [{"id": await create_connector(ada)}]}
    return MutationCall("connectorDelete", input_fields, "deletedIds")


@register_call
async def connector_start(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"connectors": [{"id": await create_connector(ada)}]}
    return MutationCall("connectorStart", input_fields, "connectorRuns { state dryRun }")


@register_call
async def connector_run_cancel(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    start_fields = {"connectors": [{"id": await create_connector(ada)}]}
    payload = await MutationCall("connectorStart", start_fields, "connectorRuns { id }")(ada)
    input_fields = {"connectorRuns": [{"id": payload["connectorRuns"][0]["id"]}]}
    return MutationCall("connectorRunCancel", input_fields, "connectorRuns { state }")


@register_call
async def connector_test(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "server": {
            "protocol": "IMAP",
            "security": "TLS",
            "host": "imap.example.invalid",
            "username": "ada",
            "password": "far-away",
        },
        "options": {"validateOnly": True},
    }
    return MutationCall("connectorTest", input_fields, "ok stages { stage ok }", journaled=False)


@register_call
async def mail_import(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    source = {"remote": {"server": CONNECTOR_INPUT["server"]}}
    return MutationCall("mailImport", {"source": source}, "connectorRuns { state }")
