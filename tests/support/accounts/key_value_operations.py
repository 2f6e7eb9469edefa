"""Entries of key-value stores, as tests set and read them."""

from dataclasses import replace
from typing import Any

from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import Client
from tests.support.stores.counter_check import rows

FACTS = "id key value store shared expiresAt version"
ERRORS = """errors { __typename code path ... on ValidationError { constraint }
  ... on StaleError { currentModseq } ... on LimitReachedError { limit used }
  ... on ForbiddenError { requires } }"""
PAYLOADS = {
    "keyValueSet": f"entry {{ {FACTS} }}",
    "keyValueIncrement": f"entry {{ {FACTS} }}",
    "keyValueDelete": "deleted",
    "profileReset": "users { username }",
}
ONE = f"""query ($user: UserRef, $store: String! = "default", $key: String!,
    $shared: Boolean! = false) {{
  keyValue(user: $user, store: $store, key: $key, shared: $shared) {{ {FACTS} }} }}"""
LIST = f"""query ($user: UserRef, $store: String! = "default", $prefix: String,
    $exact: Boolean! = false, $recurse: Boolean! = false, $noValue: Boolean! = false,
    $shared: Boolean! = false, $first: Int, $after: String, $last: Int, $before: String) {{
  keyValues(user: $user, store: $store, prefix: $prefix, exact: $exact, recurse: $recurse,
      noValue: $noValue, shared: $shared, first: $first, after: $after, last: $last,
      before: $before) {{
    totalCount nodes {{ {FACTS} }} pageInfo {{ hasNextPage startCursor endCursor }} }} }}"""


async def done(client: Client, name: str, **given: Any) -> Any:
    """What the payload of a mutation is."""
    kind = name[0].upper() + name[1:]
    asked = f"{name}(input: $input) {{ {PAYLOADS[name]} {ERRORS} }}"
    document = f"mutation ($input: {kind}Input!) {{ {asked} }}"
    return (await client(document, input=given))[name]


async def put(client: Client, key: str, value: str = "x", **more: Any) -> Any:
    """Set a value; the entry."""
    payload = await done(client, "keyValueSet", key=key, value=value, **more)
    assert payload["errors"] == []
    return payload["entry"]


async def refusal(client: Client, name: str, **given: Any) -> Any:
    """The one error of a mutation that changes nothing."""
    before = await kept(client.world)
    payload = await done(client, name, **given)
    assert await kept(client.world) == before
    (error,) = payload["errors"]
    return error


async def value(client: Client, key: str, **more: Any) -> str | None:
    """What is under a key; None where there is nothing."""
    entry = (await client(ONE, key=key, **more))["keyValue"]
    found: str | None = entry and entry["value"]
    return found


async def keys(client: Client, prefix: str | None = None, **more: Any) -> list[str]:
    """The keys of a list."""
    page = (await client(LIST, prefix=prefix, **more))["keyValues"]
    if "first" not in more and "last" not in more:
        assert page["totalCount"] == len(page["nodes"])
    return [node["key"] for node in page["nodes"]]


async def kept(world: Environment) -> list[tuple[Any, ...]]:
    """All rows there are, with what is told of them."""
    asked = "SELECT stream_id, store, key, value, version, size FROM key_values"
    return sorted(await rows(world, asked))


def limit(world: Environment, **options: Any) -> None:
    """Let these options be in force."""
    world.apply_options(CommittedOptions(replace(world.options, **options), world.options_position))
