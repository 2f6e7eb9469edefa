"""Sample calls of mutations of filters."""

from typing import Any

from models.users.roles import Role
from tests.conftest import GraphQLClient, make_client
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

FILTER_SELECTION = """{ name position active metadata matchCount
  querySummary { label value } actionSummary { label value }
  query { from larger not { subject } }
  action { seen keywords forwardTo mailbox { path } stop } }"""
ACTION: dict[str, Any] = {"seen": True, "keywords": ["news"], "mailbox": {"path": "INBOX"}}
FILTER_INPUT: dict[str, Any] = {
    "name": "Lists",
    "query": {"from": "ada", "not": [{"subject": "urgent"}]},
    "action": ACTION,
}


@register_call
async def filter_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {**FILTER_INPUT, "action": {**ACTION, "forwardTo": ["eve@example.net"]}}
    return MutationCall("filterCreate", input_fields, f"filter {FILTER_SELECTION}")


@register_call
async def filters_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    filters = [FILTER_INPUT, {**FILTER_INPUT, "name": "More lists"}]
    return MutationCall("filtersCreate", {"filters": filters}, f"filters {FILTER_SELECTION}")


@register_call
async def filters_create_from_file(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    administrator = await make_client(ada.environment, ada.http, "filer", role=Role.ADMIN)
    content = b'{"user": "ada", "query": {"subject": "x"}, "action": {"seen": true}}\n'
    response = await ada.http.post("/rest/uploads", content=content, headers=administrator.headers)
    input_fields = {"file": response.json()["id"]}
    return MutationCall(
        "filtersCreateFromFile", input_fields, "task { kind state }", other_caller=administrator
    )


@register_call
async def filter_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "filterDelete", {"filters": [{"id": await _create_filter(ada)}]}, "deletedIds"
    )


@register_call
async def filter_import(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    script = """require ["fileinto", "imap4flags"];
    # Lists
    if header :contains ["from", "sender"] "ada" { addflag "news"; fileinto "INBOX"; stop; }"""
    return MutationCall(
        "filterImport", {"content": script}, f"filters {FILTER_SELECTION} warnings {{ code path }}"
    )


@register_call
async def filter_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    patch = {"name": "All", "query": {"from": None, "larger": 5}, "action": {"stop": True}}
    return MutationCall(
        "filterUpdate",
        {"filters": [{"id": await _create_filter(ada)}], "set": patch},
        f"filters {FILTER_SELECTION}",
    )


@register_call
async def filter_apply(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    action = {"keywords": ["news"], "copyTo": [{"path": "Sent"}], "spam": True}
    payload = await MutationCall("filterCreate", {"query": {}, "action": action}, "filter { id }")(
        ada
    )
    select = {"mailbox": {"path": "INBOX"}}
    input_fields = {"filters": [{"id": payload["filter"]["id"]}], "select": select}
    return MutationCall("filterApply", input_fields, "task { kind state totalCount }")


async def _create_filter(ada: GraphQLClient) -> str:
    create = MutationCall("filterCreate", FILTER_INPUT, "filter { id }")
    return str((await create(ada))["filter"]["id"])
