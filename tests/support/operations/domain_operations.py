"""Domains by GraphQL, and users and administrators of domains."""

from typing import Any

import httpx
from sqlalchemy import update
from sqlmodel import col

from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin, User
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_api_key
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import select_rows

ERRORS = """errors { __typename code message path ... on ValidationError { constraint }
  ... on LimitReachedError { limit used }
  ... on ForbiddenError { requires } ... on NotFoundError { ref } }"""
DOMAIN_FIELDS = """id name description active tags maxAddresses maxUsers defaultUserQuota
  defaultUserQuotaInherited
  maxUserQuota maxNewUserQuota defaultNewUserQuota quota quotaAllocated addressCount addressesLeft
  userCount usersLeft storage { size messageCount } backupMx relayAllRecipients relayUnknownOnly
  globalAddressList"""
DOMAIN_CREATE = f"""mutation ($input: DomainCreateInput!) {{
  domainCreate(input: $input) {{ domain {{ {DOMAIN_FIELDS} }} {ERRORS} }} }}"""
DOMAIN_UPDATE = f"""mutation ($input: DomainUpdateInput!) {{
  domainUpdate(input: $input) {{ domains {{ {DOMAIN_FIELDS} }} {ERRORS} }} }}"""
DOMAIN_DELETE = f"""mutation ($input: DomainDeleteInput!) {{
  domainDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
DOMAIN_RENAME = f"""mutation ($input: DomainRenameInput!) {{ domainRename(input: $input) {{
  domain {{ id name }} addressCount userCount aliasDomainCount journalCursor
  {ERRORS} }} }}"""
ALIAS_DOMAIN_CREATE = f"""mutation ($input: AliasDomainCreateInput!) {{
  aliasDomainCreate(input: $input) {{
  aliasDomain {{ id alias active domain {{ name }} }} {ERRORS} }} }}"""
ALIAS_DOMAIN_DELETE = f"""mutation ($input: AliasDomainDeleteInput!) {{
  aliasDomainDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
DOMAIN_QUERY = f"query ($by: DomainRef!) {{ domain(by: $by) {{ {DOMAIN_FIELDS} }} }}"
DOMAINS_QUERY = """
query ($filter: DomainFilter, $first: Int, $after: String, $last: Int, $before: String) {
  domains(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { id name } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }
"""
ALIAS_DOMAINS_QUERY = """
query ($filter: AliasDomainFilter, $first: Int, $after: String, $last: Int, $before: String) {
  aliasDomains(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { alias domain { name } } totalCount pageInfo { endCursor startCursor hasNextPage } } }
"""
DOMAIN_LIMITS = {"maxUsers": 10, "maxAddresses": 400, "defaultUserQuota": "3 GiB",
           "maxUserQuota": "10 GiB", "quota": "10 GiB"}  # fmt: skip
UNLIMITED_FIELDS: dict[str, Any] = dict.fromkeys(
    ("maxUsers", "maxAddresses", "maxUserQuota", "quota")
)
NO_DOMAIN_LIMITS = {**UNLIMITED_FIELDS, "inheritDefaultUserQuota": True}


async def run_mutation(
    client: GraphQLClient, document: str, **input_fields: Any
) -> tuple[Any, list[Any]]:
    """Run a document with one mutation. Returns its payload without errors, and the errors."""
    payload = next(iter((await client(document, input=input_fields)).values()))
    return payload, payload.pop("errors")


async def create_domain(client: GraphQLClient, name: str, **fields: Any) -> Any:
    """Create a domain with limits, and without a DKIM key by default, since keys take time."""
    fields = {"createDkim": False, **DOMAIN_LIMITS, **fields}
    if fields.get("inheritDefaultUserQuota"):
        fields.pop("defaultUserQuota", None)
    payload, errors = await run_mutation(client, DOMAIN_CREATE, name=name, **fields)
    assert errors == []
    return payload["domain"]


async def load_domain(client: GraphQLClient, name: str) -> Any:
    """Read a domain as this client sees it."""
    return (await client(DOMAIN_QUERY, by={"name": name}))["domain"]


async def make_domain_user(environment: Environment, name: str, /, **values: Any) -> User:
    """Create a user of any domain."""
    new_user = NewUser(name, address=values.pop("address", name), password_disabled=True, **values)
    return await creation_create.create_user(Context(environment, Viewer(role=Role.ROOT)), new_user)


async def load_domain_id(environment: Environment, name: str) -> int:
    """Read the id of a domain."""
    ((domain_id,),) = await select_rows(
        environment, "SELECT id FROM domains WHERE name = :name", name=name
    )
    return int(domain_id)


async def make_admin_of_domains(
    environment: Environment,
    http: httpx.AsyncClient,
    name: str,
    *domain_names: str,
    permissions: Any = (),
) -> GraphQLClient:
    """Create a DOMAIN_ADMIN with an address in the first of these domains."""
    user = await make_domain_user(environment, f"{name}@{domain_names[0]}", role=Role.DOMAIN_ADMIN)
    async with environment.write_session() as session:
        permission_values = [AdminPermission(permission).value for permission in permissions]
        await session.exec(
            update(User).where(col(User.id) == user.id).values(admin_permissions=permission_values)
        )
        for domain in domain_names:
            session.add(
                DomainAdmin(user_id=user.id, domain_id=await load_domain_id(environment, domain))
            )
    secret = await make_api_key(
        environment, name, user_id=user.id, role=Role.DOMAIN_ADMIN, scopes=[Scope.FULL]
    )
    return GraphQLClient(http, environment, user, secret)


def error_summary(errors: list[Any]) -> tuple[Any, ...]:
    """Code, path, index and detail of the only error."""
    (error,) = errors
    detail = error.get("constraint") or error.get("requires") or error.get("ref")
    return error["code"], field_path(error), item_index(error), detail


async def try_update_domain(
    client: GraphQLClient, name: str, **values: Any
) -> tuple[Any, list[Any]]:
    """Change a domain and return the domains with the errors."""
    payload, errors = await run_mutation(
        client, DOMAIN_UPDATE, domains=[{"name": name}], set=values
    )
    return payload["domains"], errors


async def list_domain_names(client: GraphQLClient, **filter_fields: Any) -> list[str]:
    """List the names of the domains that match a filter."""
    page = (await client(DOMAINS_QUERY, filter=filter_fields or None))["domains"]
    assert page["totalCount"] == len(page["nodes"])
    return [node["name"] for node in page["nodes"]]


async def set_domain_columns(environment: Environment, **values: Any) -> None:
    """Change columns in the rows of all domains."""
    async with environment.write_session() as session:
        await session.exec(update(Domain).values(**values))
