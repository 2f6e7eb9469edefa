"""Sample calls of mutations of filters."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import Call, call

FILTER_SELECTION = """{ name order active metaData matchCount queryText actionText
  query { from size not { subject } } action { seen labels targets mailbox { path } stop } }"""
ACTION: dict[str, Any] = {"seen": True, "labels": ["news"], "mailbox": {"path": "INBOX"}}
FILTER_INPUT: dict[str, Any] = {
    "name": "Lists",
    "query": {"from": "ada", "not": [{"subject": "urgent"}]},
    "action": ACTION,
}


@call
async def filter_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {**FILTER_INPUT, "action": {**ACTION, "targets": ["eve@example.net"]}}
    return Call("filterCreate", input_fields, f"filter {FILTER_SELECTION}")


@call
async def filter_delete(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("filterDelete", {"ids": [await _create_filter(ada)]}, "deletedIds")


@call
async def filter_import(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    script = """require ["fileinto", "imap4flags"];
    # Lists
    if header :contains ["from", "sender"] "ada" { addflag "news"; fileinto "INBOX"; stop; }"""
    return Call(
        "filterImport", {"content": script}, f"filters {FILTER_SELECTION} warnings {{ code path }}"
    )


@call
async def filter_update(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    patch = {"name": "All", "query": {"from": None, "size": 5}, "action": {"stop": True}}
    return Call(
        "filterUpdate",
        {"ids": [await _create_filter(ada)], "set": patch},
        f"filters {FILTER_SELECTION}",
    )


@call
async def filter_apply(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    action = {"labels": ["news"], "copyTo": [{"path": "Sent"}], "spam": True}
    payload = await Call("filterCreate", {"query": {}, "action": action}, "filter { id }")(ada)
    input_fields = {"ids": [payload["filter"]["id"]], "select": {"mailbox": {"path": "INBOX"}}}
    return Call("filterApply", input_fields, "task { kind state total }")


async def _create_filter(ada: GraphQLClient) -> str:
    create = Call("filterCreate", FILTER_INPUT, "filter { id }")
    return str((await create(ada))["filter"]["id"])
