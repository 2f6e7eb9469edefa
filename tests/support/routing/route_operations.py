"""Mutations and lists of relay hosts, transports, TLS policies and forwarding hosts."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import ERRORS, error_summary, run_mutation

RELAY = "id host port username hasPassword tls active usedByDomains { nodes { name } }"
TRANSPORT = "id destination nextHop lookupMx username hasPassword active"
POLICY = "id destination level parameters active updatedAt"
FORWARDER = "id host source filterSpam"
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relayHost": ("relayHosts", RELAY, {"host": "relay.example"}),
    "transport": (
        "transports",
        TRANSPORT,
        {"destination": "far.example", "nextHop": "hop.example"},
    ),
    "tlsPolicy": ("tlsPolicies", POLICY, {"destination": "far.example", "level": "ENCRYPT"}),
    "forwardingHost": ("forwardingHosts", FORWARDER, {"hostname": "192.0.2.1"}),
}
RELAY_PASSWORD = "a password of ours"  # noqa: S105 - a test's


def mutation_document(kind: str, verb: str) -> str:
    list_field, fields, _ = KINDS[kind]
    name = f"{kind}{verb}"
    payload = f"{list_field} {{ {fields} }}"
    if verb == "Create" and kind != "forwardingHost":
        payload = f"{kind} {{ {fields} }}"
    if verb == "Delete":
        payload = "deletedIds"
    return f"""mutation ($input: {name[0].upper()}{name[1:]}Input!) {{ {name}(input: $input) {{
      {payload} journalCursor {ERRORS} }} }}"""


def refs(kind: str, *ids: str) -> dict[str, Any]:
    """The input field with references by ID."""
    return {KINDS[kind][0]: [{"id": one} for one in ids]}


def list_document(kind: str) -> str:
    list_field, fields, _ = KINDS[kind]
    return f"""query ($first: Int, $after: String, $last: Int, $before: String) {{
      {list_field}(first: $first, after: $after, last: $last, before: $before) {{
        totalCount nodes {{ {fields} }} pageInfo {{ endCursor hasNextPage }} }} }}"""


async def create_item(client: GraphQLClient, kind: str, **arguments: Any) -> Any:
    answer, errors = await run_mutation(
        client, mutation_document(kind, "Create"), **{**KINDS[kind][2], **arguments}
    )
    assert errors == [], errors
    return answer["forwardingHosts"][0] if kind == "forwardingHost" else answer[kind]


async def update_items(
    client: GraphQLClient, kind: str, *ids: str, **arguments: Any
) -> tuple[Any, list[Any]]:
    answer, errors = await run_mutation(
        client, mutation_document(kind, "Update"), **refs(kind, *ids), set=arguments
    )
    return answer[KINDS[kind][0]], errors


async def creation_error(client: GraphQLClient, kind: str, **arguments: Any) -> tuple[Any, ...]:
    input_ = {**KINDS[kind][2], **arguments}
    _, errors = await run_mutation(client, mutation_document(kind, "Create"), **input_)
    return error_summary(errors)
