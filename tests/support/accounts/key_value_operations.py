"""Operations on entries of key-value stores."""

from dataclasses import replace
from typing import Any

from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient
from tests.support.stores.counter_check import select_rows

ENTRY_FIELDS = "id key value store shared expiresAt version"
ERROR_FIELDS = """errors { __typename code path ... on ValidationError { constraint }
  ... on StaleError { currentModseq } ... on LimitReachedError { limit used }
  ... on ForbiddenError { requires } }"""
PAYLOAD_FIELDS = {
    "keyValueSet": f"keyValueEntry {{ {ENTRY_FIELDS} }}",
    "keyValueIncrement": f"keyValueEntry {{ {ENTRY_FIELDS} }}",
    "keyValueDelete": "deletedCount",
    "userPreferencesReset": "users { username }",
}
KEY_VALUE_QUERY = f"""query ($user: UserRef, $store: String! = "default", $key: String!,
    $shared: Boolean! = false) {{
  keyValue(by: {{name: {{user: $user, store: $store, key: $key, shared: $shared}}}}) {{
    {ENTRY_FIELDS} }} }}"""
KEY_VALUES_QUERY = f"""query ($user: UserRef, $store: String! = "default", $prefix: String,
    $exactKey: String, $recursive: Boolean! = false, $keysOnly: Boolean! = false,
    $shared: Boolean! = false, $orderBy: KeyValueEntryOrder! = KEY_ASC, $first: Int,
    $after: String, $last: Int, $before: String) {{
  keyValues(filter: {{user: $user, store: $store, prefix: $prefix, exactKey: $exactKey,
      recursive: $recursive, keysOnly: $keysOnly, shared: $shared}},
      orderBy: $orderBy, first: $first, after: $after, last: $last, before: $before) {{
    totalCount nodes {{ {ENTRY_FIELDS} }} pageInfo {{ hasNextPage startCursor endCursor }} }} }}"""


async def run_key_value_mutation(client: GraphQLClient, name: str, **input_values: Any) -> Any:
    """Run a mutation and return its payload."""
    input_type = name[0].upper() + name[1:]
    selection = f"{name}(input: $input) {{ {PAYLOAD_FIELDS[name]} {ERROR_FIELDS} }}"
    document = f"mutation ($input: {input_type}Input!) {{ {selection} }}"
    return (await client(document, input=input_values))[name]


async def set_value(
    client: GraphQLClient, key: str, new_value: str = "x", **input_values: Any
) -> Any:
    """Set a value and return the entry."""
    payload = await run_key_value_mutation(
        client, "keyValueSet", key=key, value=new_value, **input_values
    )
    assert payload["errors"] == []
    return payload["keyValueEntry"]


async def run_failing_mutation(client: GraphQLClient, name: str, **input_values: Any) -> Any:
    """Run a mutation that must fail, and return its only error. No row may change."""
    rows_before = await load_key_value_rows(client.environment)
    payload = await run_key_value_mutation(client, name, **input_values)
    assert await load_key_value_rows(client.environment) == rows_before
    (error,) = payload["errors"]
    return error


async def load_value(client: GraphQLClient, key: str, **variables: Any) -> str | None:
    """Load the value of a key. Returns None if there is no such key."""
    entry = (await client(KEY_VALUE_QUERY, key=key, **variables))["keyValue"]
    stored_value: str | None = entry and entry["value"]
    return stored_value


async def list_keys(
    client: GraphQLClient, prefix: str | None = None, **variables: Any
) -> list[str]:
    """List the keys that begin with a prefix."""
    page = (await client(KEY_VALUES_QUERY, prefix=prefix, **variables))["keyValues"]
    if "first" not in variables and "last" not in variables:
        assert page["totalCount"] == len(page["nodes"])
    return [node["key"] for node in page["nodes"]]


async def load_key_value_rows(environment: Environment) -> list[tuple[Any, ...]]:
    """All rows of the key-value stores, sorted."""
    query = "SELECT stream_id, store, key, value, version, size FROM key_value_entries"
    return sorted(await select_rows(environment, query))


def change_options(environment: Environment, **options: Any) -> None:
    """Change options of the running server."""
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, **options), environment.options_position)
    )
