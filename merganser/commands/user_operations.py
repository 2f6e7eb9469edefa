"""Create, list and delete users and API keys for the command line."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import decode, encode
from mail.recipients.address_resolution import login_of
from merganser.errors import Trouble
from merganser.server.environment_factory import owner
from models.addresses.tables import Address
from models.errors import Invalid, Refused
from models.runtime.environment import World
from models.store.columns import picked
from models.store.keyset_pages import MOST, Ask, Cursor
from models.users.list_formats import UserFileFormat
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import listing as user_listing
from resolvers.users import restore as user_restore
from resolvers.users import update as user_update
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.listing import UserWhere
from resolvers.users.restore import Named
from resolvers.users.selection import Users

if TYPE_CHECKING:
    from resolvers.users.creation.file_create import Outcome
from resolvers.users.update import Patch


@dataclass(frozen=True, slots=True)
class Key:
    """The options of an API key to create."""

    name: str
    user: str | None = None
    role: Role = Role.USER
    scopes: tuple[Scope, ...] = ()
    read_only: bool = False
    expires: datetime | None = None


async def add(environment: World, new: NewUser) -> tuple[str, list[str]]:
    """Create a user; return the global ID and warnings."""
    ctx = owner(environment)
    user = await creation_create.create(ctx, new)
    return encode("User", user.id), [one.message for one in ctx.warnings]


async def create_from_file(
    environment: World, path: Path, form: UserFileFormat | None
) -> AsyncGenerator["Outcome"]:
    """Create the users of a CSV or JSON Lines file; yield the results of each batch.

    A user that exists is rejected, so the same file can be given again after a crash. Raises
    CommandError if the file can't be read or is invalid.
    """
    from resolvers.users.creation import file_create  # noqa: PLC0415 - it loads what imports of mail need

    ctx = owner(environment)
    try:
        with path.open("rb") as file:
            head = file.read(file_create.HEAD)
    except OSError as problem:
        text = f"cannot read {path}: {(problem.strerror or '').lower()}"
        raise Trouble(text) from problem
    try:
        async with aclosing(file_create.outcomes(ctx, path, head, form)) as outcomes:
            async for outcome in outcomes:
                yield outcome
    except Refused as refusal:
        raise Trouble(f"{path}: {refusal.message}") from refusal


async def found(environment: World, name: str) -> int:
    """The ID of the user with this username or address. Raises CommandError if there is none."""
    key = await login_of(environment, name)
    if key is None:
        raise Trouble(f"there is no user {name}: `merganser user list` shows all")
    return key


async def change_password(environment: World, name: str, password: str) -> None:
    """Change the password of a user and end all of the user's tokens.

    Raises CommandError if there is no such user.
    """
    await set_password(owner(environment), await found(environment, name), password)


async def set_password(ctx: Context, user_id: int, password: str) -> None:
    """Change the password of a user in one transaction. Tokens of the old password end."""
    await user_update.change(ctx, Users(ids=(user_id,)), Patch(password=NewPassword(password)))


async def delete(environment: World, name: str, after: datetime | None) -> datetime | None:
    """Delete a user, or postpone the deletion of a deleted user's data.

    Returns the time until which the data is kept. A task of a running server deletes the data.
    """
    ctx = owner(environment)
    done = await user_delete.delete(ctx, Users(usernames=(name,)), after, mutation="user delete")
    until: datetime | None = done.tasks[0].not_before
    return until


async def restore(environment: World, name: str) -> tuple[list[str], list[str]]:
    """Restore a deleted user; return the recovered and the lost addresses."""
    done = await user_restore.restore(owner(environment), Named(name=name))
    return list(done.recovered), list(done.lost)


async def listed(environment: World, where: UserWhere) -> list[dict[str, Any]]:
    """Load users by username, as JSON values."""
    ctx, at, found = owner(environment), None, list[Any]()
    columns = {
        "username",
        "name",
        "role",
        "used",
        "quota",
        "message_count",
        "disabled",
        "suspended",
    }
    while True:
        ask = Ask("users", MOST, at)
        page = await user_listing.pages(ctx, where, ask, columns)
        found += page.rows
        if not page.next:
            break
        at = Cursor(ask.ordering, page.rows[-1].username_key, page.rows[-1].id)
    addresses = await _main_addresses(environment)
    return [
        {
            "id": encode("User", row.id),
            "username": row.username,
            "address": addresses.get(row.id),
            "name": row.name,
            "role": row.role.value,
            "messages": row.message_count,
            "used": row.used,
            "quota": row.quota,
            "disabled": row.disabled,
            "suspended": row.suspended,
        }
        for row in found
    ]


async def _main_addresses(environment: World) -> dict[int, str]:
    statement = select(col(Address.user_id), col(Address.shown)).where(col(Address.main))
    return {row.user_id: row.shown for row in await environment.database.read(statement)}


async def make_key(environment: World, key: Key) -> tuple[str, str]:
    """Create an API key; return its global ID and its secret, which is not stored.

    Raises CommandError if there is no such user, or the role needs one.
    """
    user_id = await found(environment, key.user) if key.user else None
    if user_id is None and not key.role.includes(Role.ADMIN):
        raise Trouble(f"say whose key it is with --user, or give it --role {Role.ADMIN}")
    new = NewKey(key.name, key.role, key.scopes, key.read_only, user_id, key.expires)
    row, secret = await api_keys.create_key(owner(environment), new)
    return encode("ApiKey", row.id), secret


async def keys(environment: World) -> list[dict[str, Any]]:
    """Load all API keys as JSON values, the newest first, without their secrets."""
    ctx, at, found = owner(environment), None, list[Any]()
    while True:
        page = await api_keys.keys(ctx, Ask(api_keys.NEWEST, MOST, at))
        found += page.rows
        if not page.next:
            break
        at = Cursor(api_keys.NEWEST, page.rows[-1].created_at, page.rows[-1].id)
    statement = select(*picked(User, {"id", "username"})).where(
        col(User.id).in_({row.user_id for row in found if row.user_id})
    )
    names = {row.id: row.username for row in await environment.database.read(statement)}
    return [
        {
            "id": encode("ApiKey", row.id),
            "name": row.name,
            "user": names.get(row.user_id),
            "role": row.role.value,
            "scopes": list(row.scopes),
            "read_only": row.read_only,
            "created_at": row.created_at.isoformat(),
            "expires_at": row.expires_at and row.expires_at.isoformat(),
            "last_used_at": row.last_used_at and row.last_used_at.isoformat(),
        }
        for row in found
    ]


async def revoke(environment: World, ids: list[str]) -> None:
    """Delete API keys in one transaction. Raises CommandError if one is missing."""
    try:
        decoded = [decode("ApiKey", each) for each in ids]
    except Invalid as problem:
        raise Trouble("that is no id of a key: `merganser token list` shows them") from problem
    there = await api_keys.keys_by_ids(owner(environment), decoded)
    for each, row in zip(ids, there, strict=True):
        if row is None:
            raise Trouble(f"there is no key {each}: `merganser token list` shows all")
    await api_keys.delete_keys(owner(environment), decoded)
