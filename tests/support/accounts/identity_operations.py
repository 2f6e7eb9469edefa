"""What tests of identities share: documents, and addresses of all kinds."""

from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import Client
from tests.support.accounts.user_operations import ERRORS

SHOWN = "id name address default replyTo bcc signatureText signatureHtml sentMailbox { path }"
LIST = f"""query ($first: Int, $after: String) {{ viewer {{ user {{
  identities(first: $first, after: $after) {{
    totalCount nodes {{ {SHOWN} }} pageInfo {{ endCursor hasNextPage }} }} }} }} }}"""
SHORT = "{ viewer { user { identities { nodes { address } } } } }"
NODE = f"query ($id: ID!) {{ node(id: $id) {{ ... on Identity {{ {SHOWN} }} }} }}"
SEND = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submission { envelopeFrom recipients { recipient } }
  message { id mailbox { path } from { name address } replyTo { address } bcc { address } }
  errors { __typename code path } } }"""


def _mutation(name: str, payload: str) -> str:
    kind = "IdsInput" if name == "identityDelete" else f"{name[0].upper()}{name[1:]}Input"
    return f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {payload} {ERRORS} }} }}"


CREATE = _mutation("identityCreate", f"identities {{ {SHOWN} }}")
UPDATE = _mutation("identityUpdate", f"identities {{ {SHOWN} }}")
DELETE = _mutation("identityDelete", "deletedIds")


async def listed(client: Client, **page: Any) -> Any:
    return (await client(LIST, **page))["viewer"]["user"]["identities"]


async def known(client: Client) -> dict[str, Any]:
    """The viewer's identities by address."""
    return {one["address"]: one for one in (await listed(client, first=250))["nodes"]}


async def create(client: Client, address: str, **given: Any) -> Any:
    answer = (await client(CREATE, input={"address": address, **given}))["identityCreate"]
    return answer["identities"][0] if answer["identities"] else None, answer["errors"]


async def change(client: Client, *ids: str, **given: Any) -> tuple[Any, Any]:
    answer = (await client(UPDATE, input={"ids": ids, "set": given}))["identityUpdate"]
    return answer["identities"], answer["errors"]


async def remove(client: Client, *ids: str) -> Any:
    return (await client(DELETE, input={"ids": ids}))["identityDelete"]


async def made(client: Client, address: str, **given: Any) -> Any:
    """An identity that is there now."""
    one, errors = await create(client, address, **given)
    assert errors == []
    return one


async def address(world: Environment, shown: str, **more: Any) -> int:
    """A row for an address, or a pattern, of a domain that is there; its key."""
    local, _, name = shown.partition("@")
    (domain,) = await world.database.read(select(col(Domain.id)).where(col(Domain.name) == name))
    key, now = world.new_id(), world.now()
    row = Address(
        id=key,
        local=local.replace(".", "").lower(),
        domain_id=domain.id,
        shown=shown,
        created_at=now,
        updated_at=now,
        **more,
    )
    async with world.write_session() as session:
        session.add(row)
    return key


async def readdress(world: Environment, key: int, **values: Any) -> None:
    async with world.write_session() as session:
        await session.exec(update(Address).where(col(Address.id) == key).values(**values))


async def whitelist(client: Client, *patterns: str) -> None:
    async with client.world.write_session() as session:
        this = update(User).where(col(User.id) == client.user.id)
        await session.exec(this.values(from_whitelist=list(patterns)))


async def sent(client: Client, **given: Any) -> Any:
    """What becomes of a message to carol."""
    given = {"to": [{"address": "carol@example.net"}], "text": "Hi", **given}
    return (await client(SEND, input=given))["messageSend"]
