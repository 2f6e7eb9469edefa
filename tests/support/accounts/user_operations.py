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
from resolvers.auth.authentication import authenticate_user_by_password
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client, make_user

ERROR_FIELDS = """
errors {
  code message path ... on ValidationError { constraint }
  ... on LimitReachedError { limit used }
  ... on ForbiddenError { requires }
  ... on NotFoundError { ref }
}
"""
USER_FIELDS = """
id username name role tags language metadata active suspended hasPassword activated
passwordChangeRequired retention openpgpPublicKey allowedSenders disabledScopes webmailAccess
    permissions
uploadSentMessages requireInboundTls requireOutboundTls smtpAllowedNetworks
adminPermissions administers { nodes { name } } spam { level junkScore rejectScore }
openpgpKey { name address fingerprint expiresAt } limits { quota { limit } }
"""
CREATE_USER_MUTATION = f"""mutation ($input: UserCreateInput!) {{
  userCreate(input: $input) {{ user {{ {USER_FIELDS} }} {ERROR_FIELDS} }} }}"""
UPDATE_USERS_MUTATION = f"""mutation ($input: UserUpdateInput!) {{
  userUpdate(input: $input) {{ users {{ {USER_FIELDS} }} {ERROR_FIELDS} }} }}"""
PASSWORD = "correct horse battery"  # noqa: S105 - a test's
NEW_PASSWORD = "another horse entirely"  # noqa: S105 - a test's


async def try_create_user(client: GraphQLClient, **input_values: Any) -> tuple[Any, list[Any]]:
    input_values = {"address": "eve@example.org", "password": PASSWORD} | input_values
    payload = (await client(CREATE_USER_MUTATION, input=input_values))["userCreate"]
    return payload["user"], payload["errors"]


async def try_update_users(
    client: GraphQLClient, *users: GraphQLClient | int, **values: Any
) -> tuple[Any, list[Any]]:
    """Update users; by default the client's own user."""
    user_refs = {"ids": [user_global_id(user) for user in users]} if users else None
    options = {name: values.pop(name) for name in ("existingPassword", "options") if name in values}
    data = await client(UPDATE_USERS_MUTATION, input={"users": user_refs, "set": values, **options})
    return data["userUpdate"]["users"], data["userUpdate"]["errors"]


async def execute_mutation(
    client: GraphQLClient, mutation: str, fields: str = "users { username }", **input_values: Any
) -> Any:
    type_name = mutation[0].upper() + mutation[1:]
    document = f"""mutation ($input: {type_name}Input!) {{
      {mutation}(input: $input) {{ {fields} {ERROR_FIELDS} }} }}"""
    return (await client(document, input=input_values))[mutation]


def user_global_id(user: GraphQLClient | int) -> str:
    return str(global_ids.encode("User", user if isinstance(user, int) else user.user.id))


async def load_user_row(environment: Environment, user: GraphQLClient | int) -> Any:
    user_id = user if isinstance(user, int) else user.user.id
    table = core_table(User)
    (row,) = await environment.database.read(table.select().where(table.c.id == user_id))
    return row


async def make_admin_of_domain(
    root: GraphQLClient,
    *permissions: AdminPermission,
    domain: str = "example.org",
    name: str = "chief",
) -> GraphQLClient:
    """Create a user of example.org who is DOMAIN_ADMIN of this domain."""
    data = await root("{ users { nodes { domain { id name } } } }")
    id_by_domain = {user["domain"]["name"]: user["domain"]["id"] for user in data["users"]["nodes"]}
    domain_ids = [global_ids.decode("Domain", id_by_domain[domain])]
    columns = {"administers": domain_ids, "admin_permissions": permissions}
    return await make_client(root.environment, root.http, name, role=Role.DOMAIN_ADMIN, **columns)


async def try_sign_in(environment: Environment, name: str, password: str) -> str | None:
    """Sign in and return the token. Returns None if the password is wrong."""
    ctx = Context(environment, Viewer(scopes=frozenset({Scope.FULL})))
    try:
        return (
            await authenticate_user_by_password(ctx, name, password, SignInRequest(token=True))
        ).token
    except AuthenticationFailed:
        return None


async def load_journal_changes(
    environment: Environment, stream_id: int, position: int
) -> list[tuple[Any, Any, Any]]:
    """Load type, ids and changed fields of the journal entries of a stream after a position."""
    table = core_table(Change)
    query = table.select().where(table.c.stream_id == stream_id, table.c.last > position)
    changes = await environment.database.read(query.order_by(table.c.last))
    return [(row.type, list(row.ids), row.facts.get("changed")) for row in changes]


async def count_statements_by_user_count(
    client: GraphQLClient, document: str, statements: list[str]
) -> list[int]:
    """Count the statements of a query with one more user, with 20 more, and of a repetition."""

    async def count_statements() -> int:
        del statements[:]
        await client(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await make_user(client.environment, "one")
    counts = [await count_statements()]
    for number in range(20):
        await make_user(client.environment, f"n{number}")
    return [*counts, await count_statements(), await count_statements()]


async def set_user_columns(client: GraphQLClient, **columns: object) -> None:
    """Change columns in the row of a user."""
    async with client.environment.write_session() as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(**columns))


async def set_quota(environment: Environment, user: User, quota: int | None) -> None:
    """Set the quota of a user in bytes; None for no quota."""
    async with environment.write_session(user.id) as session:
        await session.exec(update(User).where(User.id == user.id).values(quota=quota))  # type: ignore[arg-type]
