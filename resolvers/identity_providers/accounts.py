"""Find, link and create the user of an account of a provider.

An account is linked by `iss` and `sub`. The first time it is linked by its address, if the address
is one of the domain whose provider this is. The local part must be that of the stored address
character by character: the provider can give `ada+x@` and `a.da@` to other people.
"""

import unicodedata
from typing import Any

from sqlalchemy import ColumnElement, Select, insert, or_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normalized_address
from models.addresses.tables import Address, AddressKind
from models.errors import Conflict, RequestError
from models.identity_providers import IdentityLink, IdentityProvider
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin, User
from resolvers.context import Context
from resolvers.domains.served_domains import find_served_domain_id
from resolvers.identity_providers.claims import ProviderIdentity
from resolvers.identity_providers.errors import SignInRefusal, SignInRefused
from resolvers.identity_providers.provider_records import (
    ROLES_WITH_PROVIDER,
    ProviderConfig,
)
from resolvers.users.creation.create import NewUser, create_user
from resolvers.users.roles import RoleChange, set_roles
from resolvers.users.selection import UserSelector
from resolvers.viewer import Viewer

CREATION_ATTEMPTS = 2  # a concurrent sign-in can create the same user


def provider_context(ctx: Context, provider: ProviderConfig) -> Context:
    """Return a context with the rights to change the users of the provider's domain."""
    name = f"identity provider of {provider.domain_name}"
    viewer = Viewer(role=Role.ADMIN, scopes=frozenset({Scope.FULL}), service_name=name)
    return ctx.copy_for_viewer(viewer)


async def require_linked_user_of_ended_account(
    ctx: Context, provider: ProviderConfig, identity: ProviderIdentity
) -> ColumnRow:
    """Return the linked user of an account that the provider has ended. Raises SignInRefused.

    A user who has never signed in at the provider is not looked for.
    """
    user = await _find_linked_user(ctx, provider, identity.subject)
    if user is None:
        raise SignInRefused(SignInRefusal.ENDED)
    require_can_sign_in(provider, user, identity)
    return user


async def find_or_create_user_or_refuse_sign_in(
    ctx: Context, provider: ProviderConfig, identity: ProviderIdentity
) -> ColumnRow:
    """Return the row of the user of an account. Raises SignInRefused.

    The row has the columns of the user and of its link.
    """
    for attempt in reversed(range(CREATION_ATTEMPTS)):
        user = await _find_linked_user(ctx, provider, identity.subject)
        if user is None:
            user = await _find_user_by_address_or_refuse_sign_in(ctx, provider, identity)
        if user is not None:
            require_can_sign_in(provider, user, identity)
            return user
        if not provider.row.user_creation_allowed:
            raise SignInRefused(SignInRefusal.NO_ACCOUNT)
        try:
            await _create_user_without_password(ctx, provider, identity)
        except Conflict as problem:
            if not attempt:
                raise SignInRefused(SignInRefusal.NOT_CREATED, problem.message) from problem
        except RequestError as problem:
            raise SignInRefused(SignInRefusal.NOT_CREATED, problem.message) from problem
    raise SignInRefused(SignInRefusal.NO_ACCOUNT)


async def _find_linked_user(
    ctx: Context, provider: ProviderConfig, subject: str
) -> ColumnRow | None:
    is_linked = (
        col(IdentityLink.provider_id) == provider.id,
        col(IdentityLink.issuer) == provider.issuer,
        col(IdentityLink.client_id) == provider.client_id,
        col(IdentityLink.subject) == subject,
    )
    return next(iter(await ctx.read(_user_with_link_sql().where(*is_linked))), None)


def _user_with_link_sql() -> Any:
    """SQL: users with the columns of their links, which begin with `link_`."""
    return select(
        *select_columns(User),
        col(IdentityLink.id).label("link_id"),
        col(IdentityLink.issuer).label("link_issuer"),
        col(IdentityLink.client_id).label("link_client_id"),
        col(IdentityLink.subject).label("link_subject"),
        col(IdentityLink.is_admin_by_group).label("is_admin_by_group"),
    ).outerjoin(IdentityLink, col(IdentityLink.user_id) == col(User.id))


async def _find_user_by_address_or_refuse_sign_in(
    ctx: Context, provider: ProviderConfig, identity: ProviderIdentity
) -> ColumnRow | None:
    """Return the user with the address of the account. Raises SignInRefused."""
    if identity.address is None:
        raise SignInRefused(SignInRefusal.NO_ACCOUNT, "The provider sends no verified address.")
    local, _, domain = identity.address.rpartition("@")
    if await find_served_domain_id(ctx.environment, domain) != provider.row.domain_id:
        raise SignInRefused(SignInRefusal.OTHER_DOMAIN)
    statement = (
        _user_with_link_sql()
        .join(Address, col(Address.user_id) == col(User.id))
        .add_columns(col(Address.display_address))
        .where(
            col(Address.local) == normalized_address(identity.address).local_part,
            col(Address.domain_id) == provider.row.domain_id,
            col(Address.kind) == AddressKind.MAILBOX,
            col(Address.active),
            or_(
                col(Address.expires_at).is_(None),
                col(Address.expires_at) > ctx.environment.now(),
            ),
        )
    )
    for row in await ctx.read(statement):
        stored_local = row.display_address.rpartition("@")[0]
        is_same = stored_local.isascii() == local.isascii()
        if not is_same or _folded(stored_local) != _folded(local):
            raise SignInRefused(SignInRefusal.NO_ACCOUNT, "The spelling of the address differs.")
        return row
    return None


def _folded(text: str) -> str:
    """Return text in lower case. Letters outside of ASCII equal no letter of ASCII."""
    return unicodedata.normalize("NFC", text).lower() if not text.isascii() else text.lower()


async def load_user_with_link(ctx: Context, user_id: int) -> ColumnRow | None:
    """Return a user with the columns of its link, as the open transaction sees it."""
    return next(iter(await ctx.read(_user_with_link_sql().where(col(User.id) == user_id))), None)


def require_can_sign_in(
    provider: ProviderConfig, user: ColumnRow | None, identity: ProviderIdentity
) -> ColumnRow:
    """Return the user. Raises SignInRefused if it can't sign in with this account."""
    if user is None or not user.active or user.suspended or user.deleted_at:
        user_id = None if user is None else int(user.id)
        raise SignInRefused(SignInRefusal.ENDED, user_id=user_id)
    if user.domain_id != provider.row.domain_id:
        raise SignInRefused(SignInRefusal.OTHER_DOMAIN, user_id=user.id)
    if user.allow_local or user.role not in ROLES_WITH_PROVIDER:
        raise SignInRefused(SignInRefusal.LOCAL_ONLY, user_id=user.id)
    is_linked = provider.is_same_client(user.link_issuer, user.link_client_id)
    if is_linked and user.link_subject != identity.subject:
        raise SignInRefused(SignInRefusal.OTHER_SUBJECT, user_id=user.id)
    return user


async def _create_user_without_password(
    ctx: Context, provider: ProviderConfig, identity: ProviderIdentity
) -> None:
    """Create the user of an account, without a password. Raises the errors of userCreate."""
    new_user = NewUser(
        username=identity.address,
        address=identity.address,
        name=identity.name,
        password_disabled=True,
    )
    await create_user(provider_context(ctx, provider), new_user)


async def store_link(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    values: dict[str, Any],
) -> int:
    """Create or update the link of a locked user, and return its id.

    A link with another issuer is replaced: the domain has a new provider.
    """
    connection = await session.connection()
    statement = (
        update(IdentityLink)
        .where(col(IdentityLink.user_id) == user.id)
        .values(values)
        .returning(col(IdentityLink.id))
    )
    if row := (await connection.execute(statement)).first():
        return int(row.id)
    link_id = ctx.environment.new_id()
    await connection.execute(
        insert(IdentityLink).values(
            id=link_id, user_id=user.id, created_at=values["last_sign_in_at"], **values
        )
    )
    return link_id


async def sync_admin_role_by_group_and_return_has_role(
    admin_ctx: Context, provider: ProviderConfig, user: ColumnRow, *, is_admin: bool
) -> bool:
    """Give or take the role DOMAIN_ADMIN by the groups of a locked account.

    Returns True if the user has the role by its groups. A role that an administrator gave stays.
    `admin_ctx` is that of `provider_context`.
    """
    was_admin_by_group = bool(user.is_admin_by_group) and user.role == Role.DOMAIN_ADMIN
    if is_admin and user.role == Role.USER:
        selection = UserSelector(is_reference=True, ids=(user.id,))
        change = RoleChange(Role.DOMAIN_ADMIN, [provider.row.domain_id])
        await set_roles(admin_ctx, selection, change)
        return True
    if was_admin_by_group and not is_admin:
        await withdraw_group_role(admin_ctx, user.id, provider.row.domain_id)
        return False
    return is_admin and was_admin_by_group


def admins_by_group_sql(condition: ColumnElement[bool]) -> Select[int, int]:
    """SQL: the users to whom a provider gave the role DOMAIN_ADMIN, with the domain.

    `condition` is about the link or the provider.
    """
    return (
        select(col(IdentityLink.user_id), col(IdentityProvider.domain_id))
        .join(IdentityProvider, col(IdentityProvider.id) == col(IdentityLink.provider_id))
        .join(User, col(User.id) == col(IdentityLink.user_id))
        .where(condition, col(IdentityLink.is_admin_by_group), col(User.role) == Role.DOMAIN_ADMIN)
    )


async def withdraw_group_role(
    admin_ctx: Context, user_id: int, domain_id: int, *, path: str = "users"
) -> None:
    """Take the domain from a DOMAIN_ADMIN, and the role if it administers no other domain.

    Errors have the path `path`.
    """
    statement = select(col(DomainAdmin.domain_id)).where(col(DomainAdmin.user_id) == user_id)
    other_ids = {row.domain_id for row in await admin_ctx.read(statement)} - {domain_id}
    change = RoleChange(domain_ids=sorted(other_ids)) if other_ids else RoleChange(Role.USER)
    selection = UserSelector(is_reference=True, ids=(user_id,))
    await set_roles(admin_ctx, selection, change, path=path)
