"""Resources by GraphQL."""

from typing import Any

from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import ERRORS, run_mutation

RESOURCE_FIELDS = "id name address localPart kind bookingPolicy bookingLimit active domain { name }"
RESOURCE_CREATE = f"""mutation ($input: ResourceCreateInput!) {{
  resourceCreate(input: $input) {{ resource {{ {RESOURCE_FIELDS} }} journalCursor {ERRORS} }} }}"""
RESOURCE_UPDATE = f"""mutation ($input: ResourceUpdateInput!) {{
  resourceUpdate(input: $input) {{ resources {{ {RESOURCE_FIELDS} }} {ERRORS} }} }}"""
RESOURCE_DELETE = f"""mutation ($input: ResourceDeleteInput!) {{
  resourceDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
RESOURCES_QUERY = f"""query ($filter: ResourceFilter, $orderBy: ResourceOrder! = NAME_ASC,
    $first: Int, $after: String, $last: Int, $before: String) {{
  resources(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
    before: $before) {{ totalCount nodes {{ {RESOURCE_FIELDS} }}
    pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}"""


def new_resource(name: str = "Room", **fields: Any) -> dict[str, Any]:
    """The input of resourceCreate. A `bookingLimit` implies the policy LIMITED."""
    policy = {"bookingPolicy": "LIMITED"} if "bookingLimit" in fields else {}
    base = {"name": name, "domain": {"name": "example.org"}, "kind": "LOCATION"}
    return {**base, **policy, **fields}


async def create_resource(client: GraphQLClient, name: str = "Room", **fields: Any) -> Any:
    """Create a resource and return it."""
    payload, errors = await run_mutation(client, RESOURCE_CREATE, **new_resource(name, **fields))
    assert errors == [], errors
    return payload["resource"]


async def list_resources(client: GraphQLClient, **variables: Any) -> Any:
    """Return a page of the resources that the client sees."""
    return (await client(RESOURCES_QUERY, **variables))["resources"]


async def list_resource_names(client: GraphQLClient, **variables: Any) -> list[str]:
    """Return the names of the resources on a page."""
    return [node["name"] for node in (await list_resources(client, **variables))["nodes"]]
