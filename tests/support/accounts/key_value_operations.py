"""Operations on entries of key-value stores."""

from dataclasses import replace
from typing import Any

from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import Client
from tests.support.stores.counter_check import rows

ENTRY_FIELDS = "id key value store shared expiresAt version"
ERROR_FIELDS = """errors { __typename code path ... on ValidationError { constraint }
  ... on StaleError { currentModseq } ... on LimitReachedError { limit used }
  ... on ForbiddenError { requires } }"""
PAYLOAD_FIELDS = {
    "keyValueSet": f"entry {{ {ENTRY_FIELDS} }}",
    "keyValueIncrement": f"entry {{ {ENTRY_FIELDS} }}",
    "keyValueDelete": "deleted",
    "profileReset": "users { username }",
}
ONE = f"""query ($user: UserRef, $store: String! = "default", $key: String!,
    $shared: Boolean! = false) {{
  keyValue(user: $user, store: $store, key: $key, shared: $shared) {{ {ENTRY_FIELDS} }} }}"""
LIST = f"""query ($user: UserRef, $store: String! = "default", $prefix: String,
    $exact: Boolean! = false, $recurse: Boolean! = false, $noValue: Boolean! = false,
    $shared: Boolean! = false, $first: Int, $after: String, $last: Int, $before: String) {{
  keyValues(user: $user, store: $store, prefix: $prefix, exact: $exact, recurse: $recurse,
      noValue: $noValue, shared: $shared, first: $first, after: $after, last: $last,
      before: $before) {{
    totalCount nodes {{ {ENTRY_FIELDS} }} pageInfo {{ hasNextPage startCursor endCursor }} }} }}"""


async def done(client: Client, name: str, **input_values: Any) -> Any:
    """Run a mutation and return its payload."""
    input_type = name[0].upper() + name[1:]
    selection = f"{name}(input: $input) {{ {PAYLOAD_FIELDS[name]} {ERROR_FIELDS} }}"
    document = f"mutation ($input: {input_type}Input!) {{ {selection} }}"
    return (await client(document, input=input_values))[name]


async def put(client: Client, key: str, value: str = "x", **input_values: Any) -> Any:
    """Set a value and return the entry."""
    payload = await done(client, "keyValueSet", key=key, value=value, **input_values)
    assert payload["errors"] == []
    return payload["entry"]


async def refusal(client: Client, name: str, **input_values: Any) -> Any:
    """Run a mutation that must fail, and return its only error. No row may change."""
    rows_before = await kept(client.world)
    payload = await done(client, name, **input_values)
    assert await kept(client.world) == rows_before
    (error,) = payload["errors"]
    return error


async def value(client: Client, key: str, **variables: Any) -> str | None:
    """Load the value of a key. Returns None if there is no such key."""
    entry = (await client(ONE, key=key, **variables))["keyValue"]
    stored_value: str | None = entry and entry["value"]
    return stored_value


async def keys(client: Client, prefix: str | None = None, **variables: Any) -> list[str]:
    """List the keys that begin with a prefix."""
    page = (await client(LIST, prefix=prefix, **variables))["keyValues"]
    if "first" not in variables and "last" not in variables:
        assert page["totalCount"] == len(page["nodes"])
    return [node["key"] for node in page["nodes"]]


async def kept(world: Environment) -> list[tuple[Any, ...]]:
    """All rows of the key-value stores, sorted."""
    query = "SELECT stream_id, store, key, value, version, size FROM key_values"
    return sorted(await rows(world, query))


def limit(world: Environment, **options: Any) -> None:
    """Change options of the running server."""
    world.use_options_unless_outdated(
        CommittedOptions(replace(world.options, **options), world.options_position)
    )
