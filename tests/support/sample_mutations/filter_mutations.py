"""Calls about filters."""

from typing import Any

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call

SHOWN = """{ name order active metaData matchCount queryText actionText
  query { from size not { subject } } action { seen labels targets mailbox { path } stop } }"""
ACTION: dict[str, Any] = {"seen": True, "labels": ["news"], "mailbox": {"path": "INBOX"}}
GIVEN: dict[str, Any] = {
    "name": "Lists",
    "query": {"from": "ada", "not": [{"subject": "urgent"}]},
    "action": ACTION,
}


@call
async def filter_create(_ada: Client, _root: Client) -> Call:
    given = {**GIVEN, "action": {**ACTION, "targets": ["eve@example.net"]}}
    return Call("filterCreate", given, f"filter {SHOWN}")


@call
async def filter_delete(ada: Client, _root: Client) -> Call:
    return Call("filterDelete", {"ids": [await _filter(ada)]}, "deletedIds")


@call
async def filter_import(_ada: Client, _root: Client) -> Call:
    script = """require ["fileinto", "imap4flags"];
    # Lists
    if header :contains ["from", "sender"] "ada" { addflag "news"; fileinto "INBOX"; stop; }"""
    return Call("filterImport", {"content": script}, f"filters {SHOWN} warnings {{ code path }}")


@call
async def filter_update(ada: Client, _root: Client) -> Call:
    patch = {"name": "All", "query": {"from": None, "size": 5}, "action": {"stop": True}}
    return Call("filterUpdate", {"ids": [await _filter(ada)], "set": patch}, f"filters {SHOWN}")


@call
async def filter_apply(ada: Client, _root: Client) -> Call:
    done = {"labels": ["news"], "copyTo": [{"path": "Sent"}], "spam": True}
    made = await Call("filterCreate", {"query": {}, "action": done}, "filter { id }")(ada)
    given = {"ids": [made["filter"]["id"]], "select": {"mailbox": {"path": "INBOX"}}}
    return Call("filterApply", given, "task { kind state total }")


async def _filter(ada: Client) -> str:
    made = Call("filterCreate", GIVEN, "filter { id }")
    return str((await made(ada))["filter"]["id"])
