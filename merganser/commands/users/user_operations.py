"""Create, list and delete users and API keys for the command line."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import decode, encode
from mail.recipients.address_resolution import find_sign_in_user_id
from merganser.commands.domains.domain_lookup import load_domain
from merganser.errors import CommandError, user_not_found_error
from merganser.server.environment_factory import root_context
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.store.keyset_pages import MAX_PAGE_SIZE, Cursor, PageRequest
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth.api_keys import loaders as api_key_loaders
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.loaders import ApiKeyConditions, ApiKeyOrder
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import listing as user_listing
from resolvers.users import restore as user_restore
from resolvers.users import update as user_update
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.limit_values import limit_or_none
from resolvers.users.listing import UserConditions
from resolvers.users.restore import DeletedUserRef
from resolvers.users.selection import UserSelector
from resolvers.users.update import UserChanges


@dataclass(frozen=True, slots=True)
class ApiKeyRequest:
    """The options of an API key to create."""

    name: str
    username_or_address: str | None = None
    role: Role = Role.USER
    domain_names: tuple[str, ...] = ()
    scopes: tuple[Scope, ...] = ()
    is_read_only: bool = False
    expires_at: datetime | None = None


class CreatedUserIdAndWarnings(NamedTuple):
    """The global id of a new user, and warnings."""

    global_id: str
    warnings: list[str]


async def create_user(environment: Environment, new_user: NewUser) -> CreatedUserIdAndWarnings:
    """Create a user; return the global ID and warnings."""
    ctx = root_context(environment)
    user = await password_hashes.retry_while_hash_workers_are_busy(
        partial(creation_create.create_user, ctx, new_user)
    )
    return CreatedUserIdAndWarnings(
        encode("User", user.id), [warning.message for warning in ctx.warnings]
    )


async def find_user_id_or_fail_command(environment: Environment, username_or_address: str) -> int:
    """The ID of the user with this username or address. Raises CommandError if there is none."""
    key = await find_sign_in_user_id(environment, username_or_address)
    if key is None:
        raise user_not_found_error(username_or_address)
    return key


async def change_password(
    environment: Environment, username_or_address: str, password: str
) -> None:
    """Change the password of a user and end all of the user's tokens.

    Raises CommandError if there is no such user.
    """
    await set_password(
        root_context(environment),
        await find_user_id_or_fail_command(environment, username_or_address),
        password,
    )


async def set_password(ctx: Context, user_id: int, password: str) -> None:
    """Change the password of a user in one transaction. Tokens of the old password end."""
    selector, changes = UserSelector(ids=(user_id,)), UserChanges(password=NewPassword(password))
    await password_hashes.retry_while_hash_workers_are_busy(
        partial(user_update.update_users, ctx, selector, changes)
    )


async def delete_user_or_reschedule_purge(
    environment: Environment, username: str, keep_data_until: datetime | None
) -> datetime | None:
    """Delete a user, or postpone the deletion of a deleted user's data.

    Returns the time until which the data is kept. A task of a running server deletes the data.
    """
    ctx = root_context(environment)
    result = await user_delete.delete_users_or_reschedule_purge(
        ctx, UserSelector(usernames=(username,)), keep_data_until, mutation="user delete"
    )
    until: datetime | None = result.tasks[0].not_before
    return until


class RestoredAddresses(NamedTuple):
    """The addresses of a restored user: recovered ones, and those that are lost."""

    recovered: list[str]
    lost: list[str]


async def restore_user(environment: Environment, username_or_address: str) -> RestoredAddresses:
    """Restore a deleted user; return the recovered and the lost addresses."""
    result = await user_restore.restore_user(
        root_context(environment), DeletedUserRef(name=username_or_address)
    )
    return RestoredAddresses(list(result.recovered_addresses), list(result.lost_addresses))


async def load_users_as_json(
    environment: Environment, where: UserConditions
) -> list[dict[str, Any]]:
    """Load users by username, as JSON values."""
    ctx, cursor, rows = root_context(environment), None, list[Any]()
    columns = {
        "username",
        "name",
        "role",
        "used",
        "quota",
        "message_count",
        "active",
        "suspended",
    }
    while True:
        page_request = PageRequest("users", MAX_PAGE_SIZE, cursor)
        page = await user_listing.load_visible_user_page(ctx, where, page_request, columns)
        rows += page.rows
        if not page.has_next:
            break
        cursor = Cursor(page_request.ordering, page.rows[-1].username_key, page.rows[-1].id)
    addresses = await _load_main_addresses(environment)
    return [
        {
            "id": encode("User", row.id),
            "username": row.username,
            "address": addresses.get(row.id),
            "name": row.name,
            "role": row.role.value,
            "messages": row.message_count,
            "used": row.used,
            "quota": limit_or_none(row.quota),
            "quota_inherited": row.quota is None,
            "active": row.active,
            "suspended": row.suspended,
        }
        for row in rows
    ]


async def _load_main_addresses(environment: Environment) -> dict[int, str]:
    statement = select(col(Address.user_id), col(Address.display_address)).where(col(Address.main))
    return {row.user_id: row.display_address for row in await environment.database.read(statement)}


class ApiKeyWithSecret(NamedTuple):
    """The global id of a new API key, and its secret, which is not stored."""

    global_id: str
    secret: str


async def create_api_key(environment: Environment, request: ApiKeyRequest) -> ApiKeyWithSecret:
    """Create an API key; return its global ID and its secret, which is not stored.

    Raises CommandError if there is no such user or domain, or the role needs one.
    """
    ctx = root_context(environment)
    user_id = (
        await find_user_id_or_fail_command(environment, request.username_or_address)
        if request.username_or_address
        else None
    )
    if user_id is None and not (request.role.includes(Role.ADMIN) or request.domain_names):
        raise CommandError(f"--user, --domain or --role {Role.ADMIN} is required.")
    new = NewApiKey(
        request.name,
        request.role,
        request.scopes,
        request.is_read_only,
        user_id,
        request.expires_at,
        [(await load_domain(ctx, name)).id for name in request.domain_names],
    )
    row, secret = await api_key_mutations.create_api_key(ctx, new)
    return ApiKeyWithSecret(encode("ApiKey", row.id), secret)


async def load_api_keys_as_json(environment: Environment) -> list[dict[str, Any]]:
    """Load all API keys as JSON values, the newest first, without their secrets."""
    ctx, cursor, rows = root_context(environment), None, list[Any]()
    order = ApiKeyOrder.CREATED_AT_DESC
    while True:
        page_request = PageRequest("api-keys", MAX_PAGE_SIZE, cursor)
        page = await api_key_loaders.load_visible_api_key_page(
            ctx, ApiKeyConditions(), page_request, order=order
        )
        rows += page.rows
        if not page.has_next:
            break
        list_order = api_key_loaders.LIST_ORDERS[order]
        cursor = list_order.cursor_of_row(page.rows[-1], page_request.ordering)
    statement = select(*select_columns(User, {"id", "username"})).where(
        col(User.id).in_({row.user_id for row in rows if row.user_id})
    )
    names = {row.id: row.username for row in await environment.database.read(statement)}
    statement = select(*select_columns(Domain, {"id", "name"})).where(
        col(Domain.id).in_({domain_id for row in rows for domain_id in row.domains})
    )
    domain_names = {row.id: row.name for row in await environment.database.read(statement)}
    return [
        {
            "id": encode("ApiKey", row.id),
            "name": row.name,
            "user": names.get(row.user_id),
            "role": row.role.value,
            "domains": sorted(domain_names[key] for key in row.domains if key in domain_names),
            "scopes": list(row.scopes),
            "read_only": row.read_only,
            "created_at": row.created_at.isoformat(),
            "expires_at": row.expires_at and row.expires_at.isoformat(),
            "last_used_at": row.last_used_at and row.last_used_at.isoformat(),
        }
        for row in rows
    ]


async def delete_api_keys(environment: Environment, global_ids: list[str]) -> None:
    """Delete API keys in one transaction. Raises CommandError if one is missing."""
    try:
        decoded = [decode("ApiKey", global_id) for global_id in global_ids]
    except InvalidInput as problem:
        raise CommandError(
            "Not the ID of an API key. `merganser api-key list` lists the keys."
        ) from problem
    api_key_rows = await api_key_loaders.load_visible_api_keys_by_id(
        root_context(environment), decoded
    )
    for global_id, row in zip(global_ids, api_key_rows, strict=True):
        if row is None:
            raise CommandError(
                f"API key not found: {global_id}. `merganser api-key list` lists all keys."
            )
    await api_key_mutations.delete_api_keys(root_context(environment), decoded)
