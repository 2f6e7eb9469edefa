"""How tests make addresses and ask for them."""

from typing import Any

from tests.conftest import Client
from tests.support.operations.domain_operations import ERRORS, done

FIELDS = """id address localPart kind name targets main active sendAs isWildcard isCatchAll
  inPrimaryDomain expiresAt forDomain lastReceivedAt tags publicComment metaData
  user { username } domain { name } limits { forwards { allowed used resetsAt } }"""
HIDDEN = "privateComment internalData"
CREATE = f"""mutation ($input: AddressCreateInput!) {{
  addressCreate(input: $input) {{ address {{ {FIELDS} {HIDDEN} }} {ERRORS} }} }}"""
TEMPORARY = f"""mutation ($input: AddressCreateTemporaryInput!) {{
  addressCreateTemporary(input: $input) {{ address {{ {FIELDS} }} {ERRORS} }} }}"""
UPDATE = f"""mutation ($input: AddressUpdateInput!) {{
  addressUpdate(input: $input) {{ addresses {{ {FIELDS} }} {ERRORS} }} }}"""
DELETE = f"""mutation ($input: IdsInput!) {{
  addressDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
ADDRESS = f"""query ($by: AddressRef!, $wild: Boolean) {{
  address(by: $by, allowWildcard: $wild) {{ {FIELDS} }} }}"""
LIST = """
query ($filter: AddressFilter, $first: Int, $after: String, $last: Int, $before: String) {
  addresses(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { id address } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }
"""


async def create(client: Client, address: str, **given: Any) -> tuple[Any, list[Any]]:
    answer, errors = await done(client, CREATE, address=address, **given)
    return answer["address"], errors


async def made(client: Client, address: str, **given: Any) -> Any:
    """A new address."""
    found, errors = await create(client, address, **given)
    assert errors == []
    return found


async def temporary(client: Client, **given: Any) -> tuple[Any, list[Any]]:
    answer, errors = await done(client, TEMPORARY, **given)
    return answer["address"], errors


async def change(client: Client, *addresses: str, **values: Any) -> tuple[Any, list[Any]]:
    named = [{"address": address} for address in addresses]
    answer, errors = await done(client, UPDATE, addresses=named, set=values)
    return answer["addresses"], errors


async def delete(client: Client, *rows: Any) -> tuple[Any, list[Any]]:
    answer, errors = await done(client, DELETE, ids=[row["id"] for row in rows])
    return answer["deletedIds"], errors


async def of(client: Client, address: str, *, wild: bool = False) -> Any:
    """The address that is written so, as this client sees it."""
    return (await client(ADDRESS, by={"address": address}, wild=wild))["address"]


async def names(client: Client, **condition: Any) -> list[str]:
    page = (await client(LIST, filter=condition or None))["addresses"]
    assert page["totalCount"] == len(page["nodes"])
    return [node["address"] for node in page["nodes"]]
