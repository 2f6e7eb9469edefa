"""Operations on users: documents and the functions that run them."""

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
USER_FIELDS = """
id username name role tags language metaData disabled suspended hasPasswordSet activated
requirePasswordChange retention pubKey fromWhitelist disabledScopes webmailAccess permissions
uploadSentMessages tlsEnforceIn tlsEnforceOut smtpAllowedNetworks
adminPermissions administers { name } spam { level junkScore rejectScore }
keyInfo { name address fingerprint expiresAt } limits { quota { allowed } }
"""
CREATE = f"""mutation ($input: UserCreateInput!) {{
  userCreate(input: $input) {{ user {{ {USER_FIELDS} }} {ERRORS} }} }}"""
UPDATE = f"""mutation ($input: UserUpdateInput!) {{
  userUpdate(input: $input) {{ users {{ {USER_FIELDS} }} {ERRORS} }} }}"""
PASSWORD = "correct horse battery"  # noqa: S105 - a test's
NEW = "another horse entirely"


async def create(client: Client, **input_values: Any) -> tuple[Any, list[Any]]:
    input_values = {"address": "eve@example.org", "password": PASSWORD} | input_values
    payload = (await client(CREATE, input=input_values))["userCreate"]
    return payload["user"], payload["errors"]


async def change(client: Client, *users: Client | int, **values: Any) -> tuple[Any, list[Any]]:
    """Update users; by default the client's own user."""
    user_refs = {"ids": [id_of(user) for user in users]} if users else None
    options = {name: values.pop(name) for name in ("existingPassword", "options") if name in values}
    data = await client(UPDATE, input={"users": user_refs, "set": values, **options})
    return data["userUpdate"]["users"], data["userUpdate"]["errors"]


async def run(
    client: Client, mutation: str, fields: str = "users { username }", **input_values: Any
) -> Any:
    type_name = mutation[0].upper() + mutation[1:]
    document = f"""mutation ($input: {type_name}Input!) {{
      {mutation}(input: $input) {{ {fields} {ERRORS} }} }}"""
    return (await client(document, input=input_values))[mutation]


def id_of(user: Client | int) -> str:
    return str(global_ids.encode("User", user if isinstance(user, int) else user.user.id))


async def row_of(world: Environment, user: Client | int) -> Any:
    user_id = user if isinstance(user, int) else user.user.id
    table = core_table(User)
    (row,) = await world.database.read(table.select().where(table.c.id == user_id))
    return row


async def chief(
    root: Client, *permissions: AdminPermission, domain: str = "example.org", name: str = "chief"
) -> Client:
    """Create a user of example.org who is DOMAIN_ADMIN of this domain."""
    data = await root("{ users { nodes { domain { id name } } } }")
    id_by_domain = {user["domain"]["name"]: user["domain"]["id"] for user in data["users"]["nodes"]}
    domain_ids = [global_ids.decode("Domain", id_by_domain[domain])]
    columns = {"administers": domain_ids, "admin_permissions": permissions}
    return await make_client(root.world, root.http, name, role=Role.DOMAIN_ADMIN, **columns)


async def signs_in(world: Environment, name: str, password: str) -> str | None:
    """Sign in and return the token. Returns None if the password is wrong."""
    ctx = Context(world, Viewer(scopes=frozenset({Scope.MASTER})))
    try:
        return (await authenticate(ctx, name, password, SignInRequest(token=True))).token
    except AuthenticationFailed:
        return None


async def events(world: Environment, stream_id: int, position: int) -> list[tuple[Any, Any, Any]]:
    """Load kind, ids and changed fields of the journal entries of a stream after a position."""
    table = core_table(Change)
    query = table.select().where(table.c.stream_id == stream_id, table.c.last > position)
    changes = await world.database.read(query.order_by(table.c.last))
    return [(row.kind, list(row.ids), row.facts.get("changed")) for row in changes]


async def costs_of_users(client: Client, document: str, statements: list[str]) -> list[int]:
    """Count the statements of a query with one more user, with 20 more, and of a repetition."""

    async def count_statements() -> int:
        del statements[:]
        await client(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await make_user(client.world, "one")
    counts = [await count_statements()]
    for number in range(20):
        await make_user(client.world, f"n{number}")
    return [*counts, await count_statements(), await count_statements()]


async def set_user_columns(client: Client, **columns: object) -> None:
    """Change columns in the row of a user."""
    async with client.world.write_session() as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(**columns))


async def set_quota(world: Environment, user: User, quota: int | None) -> None:
    """Set the quota of a user in bytes; None for no quota."""
    async with world.write_session(user.id) as session:
        await session.exec(update(User).where(User.id == user.id).values(quota=quota))  # type: ignore[arg-type]
