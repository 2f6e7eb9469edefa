"""Operations on identities, and the addresses that they depend on."""

from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import ERROR_FIELDS

IDENTITY_FIELDS = (
    "id name address default replyTo bcc signatureText signatureHtml sentMailbox { path }"
)
IDENTITIES_QUERY = f"""query ($first: Int, $after: String) {{ viewer {{ user {{
  identities(first: $first, after: $after) {{
    totalCount nodes {{ {IDENTITY_FIELDS} }} pageInfo {{ endCursor hasNextPage }} }} }} }} }}"""
IDENTITY_ADDRESSES_QUERY = "{ viewer { user { identities { nodes { address } } } } }"
IDENTITY_NODE_QUERY = (
    f"query ($id: ID!) {{ node(id: $id) {{ ... on Identity {{ {IDENTITY_FIELDS} }} }} }}"
)
SEND_MUTATION = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submissions { envelopeFrom recipients { recipient } }
  messages { id mailbox { path } from { name address } replyTo { address } bcc { address } }
  errors { __typename code path } } }"""


def _mutation(name: str, fields: str) -> str:
    input_type = f"{name[0].upper()}{name[1:]}Input"
    selection = f"{fields} {ERROR_FIELDS}"
    return f"mutation ($input: {input_type}!) {{ {name}(input: $input) {{ {selection} }} }}"


CREATE_MUTATION = _mutation("identityCreate", f"identity {{ {IDENTITY_FIELDS} }}")
UPDATE_MUTATION = _mutation("identityUpdate", f"identities {{ {IDENTITY_FIELDS} }}")
DELETE_MUTATION = _mutation("identityDelete", "deletedIds")


async def list_identities(client: GraphQLClient, **page: Any) -> Any:
    return (await client(IDENTITIES_QUERY, **page))["viewer"]["user"]["identities"]


async def load_identities_by_address(client: GraphQLClient) -> dict[str, Any]:
    """Load the viewer's identities by address."""
    return {
        identity["address"]: identity
        for identity in (await list_identities(client, first=250))["nodes"]
    }


async def try_create_identity(client: GraphQLClient, email_address: str, **values: Any) -> Any:
    payload = (await client(CREATE_MUTATION, input={"address": email_address, **values}))[
        "identityCreate"
    ]
    return payload["identity"], payload["errors"]


async def try_update_identities(client: GraphQLClient, *ids: str, **values: Any) -> tuple[Any, Any]:
    refs = [{"id": identity_id} for identity_id in ids]
    payload = (await client(UPDATE_MUTATION, input={"identities": refs, "set": values}))[
        "identityUpdate"
    ]
    return payload["identities"], payload["errors"]


async def delete_identities(client: GraphQLClient, *ids: str) -> Any:
    refs = [{"id": identity_id} for identity_id in ids]
    return (await client(DELETE_MUTATION, input={"identities": refs}))["identityDelete"]


async def create_identity(client: GraphQLClient, email_address: str, **values: Any) -> Any:
    """Create an identity and require that the mutation succeeds."""
    identity, errors = await try_create_identity(client, email_address, **values)
    assert errors == []
    return identity


async def add_address(environment: Environment, written: str, **columns: Any) -> int:
    """Add the row of an address or catch-all of an existing domain, and return its id."""
    local, _, domain_name = written.partition("@")
    (domain,) = await environment.database.read(
        select(col(Domain.id)).where(col(Domain.name) == domain_name)
    )
    address_id, now = environment.new_id(), environment.now()
    row = Address(
        id=address_id,
        local=local.replace(".", "").lower(),
        domain_id=domain.id,
        display_address=written,
        created_at=now,
        updated_at=now,
        **columns,
    )
    async with environment.write_session() as session:
        session.add(row)
    return address_id


async def change_address(environment: Environment, address_id: int, **values: Any) -> None:
    async with environment.write_session() as session:
        await session.exec(update(Address).where(col(Address.id) == address_id).values(**values))


async def set_allowed_senders(client: GraphQLClient, *patterns: str) -> None:
    async with client.environment.write_session() as session:
        own_row = update(User).where(col(User.id) == client.user.id)
        await session.exec(own_row.values(allowed_senders=list(patterns)))


async def send_message(client: GraphQLClient, **message_input: Any) -> Any:
    """Send a message, by default to carol@example.net, and return the payload."""
    message_input = {"to": [{"address": "carol@example.net"}], "text": "Hi", **message_input}
    return (await client(SEND_MUTATION, input=message_input))["messageSend"]
