"""Filters by GraphQL."""

from collections.abc import Sequence
from typing import Any

from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import ERROR_FIELDS, user_global_id

QUERY_FIELDS = (
    "from toOrCc subject listId text hasAttachment larger smaller query header { name value raw } "
)
QUERY_FIELDS += "regex { name pattern }"
ACTION_FIELDS = """seen flag delete spam mailbox { path } copyTo { path } forwardTo keywords
  removeKeywords reply { subject text html } webhook { url } stop"""
FILTER_FIELDS = f"""id name position active metadata matchCount
  querySummary {{ label value }} actionSummary {{ label value }} sieve createdAt
  user {{ username }} query {{ {QUERY_FIELDS}
  all {{ {QUERY_FIELDS} }} any {{ {QUERY_FIELDS} }} not {{ {QUERY_FIELDS} }} }}
  action {{ {ACTION_FIELDS} }}"""
FILTERS_QUERY = f"""query ($first: Int, $after: String) {{ viewer {{ user {{
  filters(first: $first, after: $after) {{
    totalCount nodes {{ {FILTER_FIELDS} }} pageInfo {{ endCursor hasNextPage }} }} }} }} }}"""
FILTER_TEST_QUERY = """query ($user: UserRef, $message: MessageSourceInput!) {
  filterTest(user: $user, message: $message) {
    filter { name } matches actions stepLimitReached } }"""
FILTER_QUERY = f"query ($id: ID!) {{ filter(by: {{id: $id}}) {{ {FILTER_FIELDS} }} }}"


def _mutation(name: str, payload: str) -> str:
    kind = f"{name[0].upper()}{name[1:]}Input"
    return f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {payload} {ERROR_FIELDS} }} }}"


FILTER_CREATE = _mutation("filterCreate", f"filter {{ {FILTER_FIELDS} }}")
FILTER_UPDATE = _mutation("filterUpdate", f"filters {{ {FILTER_FIELDS} }}")
FILTER_DELETE = _mutation("filterDelete", "deletedIds")
FILTER_IMPORT = f"""mutation ($input: FilterImportInput!) {{ filterImport(input: $input) {{
  filters {{ {FILTER_FIELDS} }} warnings {{ code message path }} replayed
  {ERROR_FIELDS} errors {{ ... on SieveCompileError {{ line column }} }} }} }}"""
FILTER_APPLY = _mutation("filterApply", "task { id kind state totalCount }")


async def try_create_filter(
    client: GraphQLClient, query: Any, action: Any, **input_fields: Any
) -> tuple[Any, Any]:
    """Create a filter and return it with the errors."""
    input_fields = {"query": query, "action": action, **input_fields}
    payload = (await client(FILTER_CREATE, input=input_fields))["filterCreate"]
    return payload["filter"], payload["errors"]


async def add_filter(client: GraphQLClient, query: Any, action: Any, **fields: Any) -> Any:
    """Create a filter and return it; fails on errors."""
    created, errors = await try_create_filter(client, query, action, **fields)
    assert errors == []
    return created


async def try_update_filters(client: GraphQLClient, *ids: str, **fields: Any) -> tuple[Any, Any]:
    """Change filters and return them with the errors."""
    input_fields = {"filters": filter_refs(*ids), "set": fields}
    payload = (await client(FILTER_UPDATE, input=input_fields))["filterUpdate"]
    return payload["filters"], payload["errors"]


async def delete_filters(client: GraphQLClient, *ids: str) -> Any:
    """Delete filters and return the payload."""
    return (await client(FILTER_DELETE, input={"filters": filter_refs(*ids)}))["filterDelete"]


async def import_filters(client: GraphQLClient, content: str, **fields: Any) -> Any:
    """Import filters from a Sieve script and return the payload."""
    return (await client(FILTER_IMPORT, input={"content": content, **fields}))["filterImport"]


async def list_filters(client: GraphQLClient, **page: Any) -> Any:
    """List the filters of the signed-in user, or a page of them."""
    return (await client(FILTERS_QUERY, **page))["viewer"]["user"]["filters"]


async def run_filter_test(client: GraphQLClient, **arguments: Any) -> Any:
    """Test the filters with a message and return the results."""
    return (await client(FILTER_TEST_QUERY, **arguments))["filterTest"]


async def try_apply_filters(client: GraphQLClient, *ids: str, **select: Any) -> tuple[Any, Any]:
    """Apply filters to messages; return the task and the errors."""
    input_fields = {"filters": filter_refs(*ids), "select": select}
    payload = (await client(FILTER_APPLY, input=input_fields))["filterApply"]
    return payload["task"], payload["errors"]


def filter_refs(*ids: str) -> list[dict[str, str]]:
    """References to filters by id."""
    return [{"id": filter_id} for filter_id in ids]


def summary_pairs(items: Sequence[Any]) -> list[list[str]]:
    """The label and the value of each item of a summary."""
    return [[item["label"], item["value"]] for item in items]


def error_codes_and_paths(errors: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """The code and path of each error."""
    return [(error["code"], error["path"]) for error in errors]


def user_ref(client: GraphQLClient) -> dict[str, str]:
    """The reference to a user by id."""
    return {"id": user_global_id(client)}


async def create_filter(ada: GraphQLClient, **action: Any) -> None:
    """Create a filter that acts on all messages."""
    await add_filter(ada, {}, action or {"keywords": ["work"]}, name="all")
