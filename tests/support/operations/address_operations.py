"""Creating, changing and reading addresses by GraphQL."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.addresses.tables import Address
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import ERRORS, run_mutation

ADDRESS_FIELDS = """id address localPart kind name forwardTo main active sendAs wildcard catchAll
  canonicalAddress expiresAt forSite lastReceivedAt tags publicComment metadata
  user { username } domain { name } limits { forwardsPerDay { limit used resetsAt } }"""
PRIVATE_ADDRESS_FIELDS = "privateComment privateMetadata"
ADDRESS_CREATE = f"""mutation ($input: AddressCreateInput!) {{
  addressCreate(input: $input) {{
    address {{ {ADDRESS_FIELDS} {PRIVATE_ADDRESS_FIELDS} }} {ERRORS} }} }}"""
TEMPORARY_ADDRESS_CREATE = f"""mutation ($input: TemporaryAddressCreateInput!) {{
  temporaryAddressCreate(input: $input) {{ address {{ {ADDRESS_FIELDS} }} {ERRORS} }} }}"""
ADDRESS_UPDATE = f"""mutation ($input: AddressUpdateInput!) {{
  addressUpdate(input: $input) {{ addresses {{ {ADDRESS_FIELDS} }} {ERRORS} }} }}"""
ADDRESS_DELETE = f"""mutation ($input: AddressDeleteInput!) {{
  addressDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
ADDRESS_QUERY = f"""query ($by: AddressRef!, $wild: Boolean) {{
  address(by: $by, allowWildcard: $wild) {{ {ADDRESS_FIELDS} }} }}"""
ADDRESSES_QUERY = """
query ($filter: AddressFilter, $first: Int, $after: String, $last: Int, $before: String) {
  addresses(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { id address } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }
"""


async def try_create_address(
    client: GraphQLClient, address: str, **fields: Any
) -> tuple[Any, list[Any]]:
    """Create an address and return it with the errors."""
    payload, errors = await run_mutation(client, ADDRESS_CREATE, address=address, **fields)
    return payload["address"], errors


async def create_address(client: GraphQLClient, address: str, **fields: Any) -> Any:
    """Create an address and return it; fails on errors."""
    created, errors = await try_create_address(client, address, **fields)
    assert errors == []
    return created


async def try_create_temporary_address(
    client: GraphQLClient, **fields: Any
) -> tuple[Any, list[Any]]:
    """Create a temporary address and return it with the errors."""
    payload, errors = await run_mutation(client, TEMPORARY_ADDRESS_CREATE, **fields)
    return payload["address"], errors


async def try_update_addresses(
    client: GraphQLClient, *addresses: str, **values: Any
) -> tuple[Any, list[Any]]:
    """Change addresses and return them with the errors."""
    refs = [{"address": address} for address in addresses]
    payload, errors = await run_mutation(client, ADDRESS_UPDATE, addresses=refs, set=values)
    return payload["addresses"], errors


async def try_delete_addresses(client: GraphQLClient, *rows: Any) -> tuple[Any, list[Any]]:
    """Delete addresses and return the deleted ids with the errors."""
    payload, errors = await run_mutation(
        client, ADDRESS_DELETE, addresses=[{"id": row["id"]} for row in rows]
    )
    return payload["deletedIds"], errors


async def load_address(client: GraphQLClient, address: str, *, allow_wildcard: bool = False) -> Any:
    """Read an address as this client sees it."""
    return (await client(ADDRESS_QUERY, by={"address": address}, wild=allow_wildcard))["address"]


async def list_addresses(client: GraphQLClient, **filter_fields: Any) -> list[str]:
    """List the addresses that match a filter."""
    page = (await client(ADDRESSES_QUERY, filter=filter_fields or None))["addresses"]
    assert page["totalCount"] == len(page["nodes"])
    return [node["address"] for node in page["nodes"]]


async def load_address_row(environment: Environment, address: str) -> Any:
    statement = select(*select_columns(Address)).where(col(Address.display_address) == address)
    (row,) = await environment.database.read(statement)
    return row
