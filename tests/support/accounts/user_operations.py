"""What tests of accounts share: documents, and those who use them."""

from typing import Any

from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.errors import AuthenticationFailed
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.auth.authentication import authenticate
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context, Viewer
from tests.conftest import Client, make_client, make_user

ERRORS = """
errors {
  code message path index
  ... on ValidationError { constraint }
  ... on LimitReachedError { limit used }
  ... on ForbiddenError { requires }
  ... on NotFoundError { ref }
}
"""
SHOWN = """
id username name role tags language metaData disabled suspended hasPasswordSet activated
requirePasswordChange retention pubKey fromWhitelist disabledScopes webmailAccess permissions
uploadSentMessages tlsEnforceIn tlsEnforceOut smtpAllowedNetworks
adminPermissions administers { name } spam { level junkScore rejectScore }
keyInfo { name address fingerprint expiresAt } limits { quota { allowed } }
"""
CREATE = f"""mutation ($input: UserCreateInput!) {{
  userCreate(input: $input) {{ user {{ {SHOWN} }} {ERRORS} }} }}"""
UPDATE = f"""mutation ($input: UserUpdateInput!) {{
  userUpdate(input: $input) {{ users {{ {SHOWN} }} {ERRORS} }} }}"""
PASSWORD = "correct horse battery"  # noqa: S105 - a test's
NEW = "another horse entirely"


async def create(client: Client, **given: Any) -> tuple[Any, list[Any]]:
    given = {"address": "eve@example.org", "password": PASSWORD} | given
    answer = (await client(CREATE, input=given))["userCreate"]
    return answer["user"], answer["errors"]


async def change(client: Client, *who: Client | int, **given: Any) -> tuple[Any, list[Any]]:
    """Update accounts; nobody named is the client's own."""
    chosen = {"ids": [id_of(one) for one in who]} if who else None
    more = {name: given.pop(name) for name in ("existingPassword", "options") if name in given}
    answer = await client(UPDATE, input={"users": chosen, "set": given, **more})
    return answer["userUpdate"]["users"], answer["userUpdate"]["errors"]


async def run(
    client: Client, mutation: str, fields: str = "users { username }", **given: Any
) -> Any:
    name = mutation[0].upper() + mutation[1:]
    document = f"""mutation ($input: {name}Input!) {{
      {mutation}(input: $input) {{ {fields} {ERRORS} }} }}"""
    return (await client(document, input=given))[mutation]


def id_of(who: Client | int) -> str:
    return str(global_ids.encode("User", who if isinstance(who, int) else who.user.id))


async def row_of(world: Environment, who: Client | int) -> Any:
    key = who if isinstance(who, int) else who.user.id
    table = core_table(User)
    (row,) = await world.database.read(table.select().where(table.c.id == key))
    return row


async def chief(
    root: Client, *permissions: AdminPermission, domain: str = "example.org", name: str = "chief"
) -> Client:
    """A DOMAIN_ADMIN of this domain, who lives in example.org."""
    answer = await root("{ users { nodes { domain { id name } } } }")
    there = {one["domain"]["name"]: one["domain"]["id"] for one in answer["users"]["nodes"]}
    charge = [global_ids.decode("Domain", there[domain])]
    more = {"administers": charge, "admin_permissions": permissions}
    return await make_client(root.world, root.http, name, role=Role.DOMAIN_ADMIN, **more)


async def signs_in(world: Environment, name: str, password: str) -> str | None:
    """A token, or None where the password is wrong."""
    ctx = Context(world, Viewer(scopes=frozenset({Scope.MASTER})))
    try:
        return (await authenticate(ctx, name, password, SignInRequest(token=True))).token
    except AuthenticationFailed:
        return None


async def events(world: Environment, stream: int, after: int) -> list[tuple[Any, Any, Any]]:
    """Kind, ids and changed fields of what happened in a stream."""
    table = core_table(Change)
    asked = table.select().where(table.c.stream_id == stream, table.c.last > after)
    found = await world.database.read(asked.order_by(table.c.last))
    return [(row.kind, list(row.ids), row.facts.get("changed")) for row in found]


async def costs_of_users(client: Client, document: str, statements: list[str]) -> list[int]:
    """The statements of a query with one more user, with twenty more, and once again."""

    async def cost() -> int:
        del statements[:]
        await client(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    await make_user(client.world, "one")
    costs = [await cost()]
    for n in range(20):
        await make_user(client.world, f"n{n}")
    return [*costs, await cost(), await cost()]


async def set_user_columns(client: Client, **columns: object) -> None:
    """Change columns in the row of a user."""
    async with client.world.write_session() as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(**columns))


async def set_quota(world: Environment, user: User, quota: int | None) -> None:
    """Set the quota of a user in bytes; None for no quota."""
    async with world.write_session(user.id) as session:
        await session.exec(update(User).where(User.id == user.id).values(quota=quota))  # type: ignore[arg-type]
