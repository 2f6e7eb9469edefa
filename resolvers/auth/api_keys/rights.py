"""Limits on the rights of an API key: those of its maker, of its owner and of the calling key."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_network
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.domains.tables import Domain
from models.errors import Forbidden, InvalidInput, NotFound
from models.store.columns import ColumnRow
from models.users.roles import AdminPermission, Role, Scope, expand_scopes
from models.users.tables import DomainAdmin, User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_managed_user, is_visible_user
from resolvers.auth import credential_makers
from resolvers.auth.api_keys.loaders import load_visible_api_keys_by_id
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.auth.credential_makers import IMPERSONATION_SCOPES, platform_admin_key_id_or_none
from resolvers.context import Context
from resolvers.viewer import GuardRule


def require_and_inherit_limits_of_calling_key(
    calling_key: ColumnRow | None, new_key: NewApiKey
) -> NewApiKey:
    """Limit the new key to the rights of the key that creates it.

    Raises Forbidden if the new key asks for more. A missing end stays missing.
    """
    if calling_key is None:
        return new_key
    if calling_key.read_only:
        raise Forbidden("A read-only API key can't create API keys.", requires="a key for writing")
    if not set(new_key.operations or calling_key.operations) <= set(
        calling_key.operations or new_key.operations
    ):
        raise calling_key_exceeded_error("operations", "operations")
    require_given_networks_within(calling_key, new_key.allowed_ips)
    require_given_end_within(calling_key, new_key.expires_at)
    return replace(
        new_key,
        operations=new_key.operations or calling_key.operations,
        allowed_ips=new_key.allowed_ips or calling_key.allowed_ips,
    )


def limit_key_for_another_user(ctx: Context, new_key: NewApiKey) -> NewApiKey:
    """Limit a key to the rights of a token of userImpersonate.

    The caller checks that the key is for another user than the viewer. Raises Forbidden for a key
    for domains, and Forbidden or InvalidInput if the new key asks for more.
    """
    text = "An API key for another user can't exceed the {} of a token of userImpersonate."
    if new_key.role is not Role.USER:
        raise Forbidden(text.format("role"), requires=Role.USER, path=["role"])
    if not expand_scopes(frozenset(new_key.scopes)) <= expand_scopes(IMPERSONATION_SCOPES):
        raise Forbidden(text.format("scopes"), requires="the account itself", path=["scopes"])
    if ctx.viewer.user_id == 0 and platform_admin_key_id_or_none(ctx.viewer) is None:
        raise Forbidden(
            "An API key for domains can't create credentials for a user.",
            requires=Role.ADMIN,
            path=["user"],
        )
    max_expires_at = ctx.environment.now() + credential_makers.MAX_LIFETIME
    if new_key.expires_at and new_key.expires_at > max_expires_at:
        raise InvalidInput(
            text.format("lifetime"), constraint=ValidationConstraint.MAX, path=["expiresAt"]
        )
    scopes = new_key.scopes or sorted(IMPERSONATION_SCOPES)
    return replace(new_key, scopes=scopes, expires_at=new_key.expires_at or max_expires_at)


def require_given_networks_within(calling_key: ColumnRow, given_networks: Collection[str]) -> None:
    """Raise Forbidden if a network is not inside the networks of the calling key."""
    allowed_networks = [ip_network(ip) for ip in calling_key.allowed_ips]
    for network in map(ip_network, given_networks):
        if allowed_networks and not any(
            _is_subnet(network, allowed_network) for allowed_network in allowed_networks
        ):
            raise calling_key_exceeded_error("networks", "allowedIps")


def _is_subnet(network: Any, enclosing_network: Any) -> bool:
    return network.version == enclosing_network.version and bool(
        network.subnet_of(enclosing_network)
    )


def require_given_end_within(calling_key: ColumnRow, given_end: datetime | None) -> None:
    """Raise Forbidden if the end is later than that of the calling key."""
    if calling_key.expires_at and given_end and given_end > calling_key.expires_at:
        raise calling_key_exceeded_error("end", "expiresAt")


def end_within_calling_key(calling_key: ColumnRow | None, end: datetime | None) -> datetime | None:
    """Return the earlier one of an end and that of the calling key; None if neither ends."""
    ends = [end, calling_key.expires_at if calling_key else None]
    return min(filter(None, ends), default=None)


def calling_key_exceeded_error(limited_property: str, field: str) -> Forbidden:
    """Return the error for a key that would exceed the calling key."""
    text = (
        f"The {limited_property} of an API key can't exceed the "
        f"{limited_property} of the calling API key."
    )
    return Forbidden(text, requires=f"a key with these {limited_property}", path=[field])


async def require_permitted_owner_id(ctx: Context, new_key: NewApiKey) -> int | None:
    """Return the user id that the new key will belong to; None for a key of the platform.

    Raises NotFound or Forbidden if the viewer can't create a key for that user.
    """
    viewer = ctx.viewer
    user_id = new_key.user_id
    if user_id is None:
        is_without_owner = (
            bool(new_key.domains) and not viewer.user_id and viewer.role.includes(Role.ADMIN)
        )
        if new_key.role.includes(Role.ADMIN) or is_without_owner:
            await _require_domains_of_caller_and_owner(ctx, new_key, None)
            return None
        user_id = viewer.user_id
    if not user_id:
        raise InvalidInput(
            "The user of the API key is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["user"],
        )
    statement = select(col(User.id), col(User.role), is_managed_user(ctx).label("free"))
    for user in await ctx.read(statement.where(col(User.id) == user_id, is_visible_user(ctx))):
        if user.id != viewer.user_id:
            guard = GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.IMPERSONATE)
            viewer.require(guard)
            if not user.free:
                raise Forbidden(
                    f"Requires a role above {viewer.role}.",
                    requires=user.role,
                    path=["user"],
                )
        for role, limiting_role in ((user.role, viewer.role), (new_key.role, user.role)):
            if not limiting_role.includes(role):
                raise Forbidden(f"Requires the role {role}.", requires=role, path=["user"])
        await _require_domains_of_caller_and_owner(ctx, new_key, user)
        return int(user.id)
    raise NotFound(str(user_id), path=["user"])


async def _require_domains_of_caller_and_owner(
    ctx: Context, new_key: NewApiKey, owner: ColumnRow | None
) -> None:
    """Raise NotFound if the owner does not administer one of the domains.

    An ADMIN administers all.
    """
    if not new_key.domains:
        return
    statement = select(col(Domain.id)).where(col(Domain.id).in_(new_key.domains))
    if ctx.viewer.role is Role.DOMAIN_ADMIN:
        statement = statement.where(col(Domain.id).in_(ctx.viewer.administered_domains))
    if owner and not owner.role.includes(Role.ADMIN):
        administered_domains = select(col(DomainAdmin.domain_id)).where(
            col(DomainAdmin.user_id) == owner.id
        )
        statement = statement.where(col(Domain.id).in_(administered_domains))
    found_ids = {row.id for row in await ctx.read(statement)}
    for index, domain_id in enumerate(new_key.domains):
        if domain_id not in found_ids:
            raise NotFound(str(domain_id), path=["domains"], index=index)


async def require_changeable_keys(ctx: Context, ids: list[int]) -> list[ColumnRow]:
    """Load these keys, each once, for a change.

    Raises NotFound if the viewer does not see one, Forbidden if one has a higher role.
    """
    viewer = ctx.viewer
    viewer.require(GuardRule(scope=Scope.FULL))
    rows = await load_visible_api_keys_by_id(ctx, ids)
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
        viewer.require(GuardRule(role=row.role))
    keys_by_id = {row.id: row for row in rows if row}
    other_owner_ids = {row.user_id for row in keys_by_id.values() if row.user_id} - {viewer.user_id}
    if viewer.api_key_id:  # a key for domains sees itself, also if another user owns it
        other_owner_ids -= {
            row.user_id for key, row in keys_by_id.items() if key == viewer.api_key_id
        }
    statement = select(col(User.id)).where(col(User.id).in_(other_owner_ids), is_managed_user(ctx))
    if other_owner_ids and len(await ctx.read(statement)) < len(other_owner_ids):
        raise Forbidden(
            "The user of the API key has a higher role than the caller.", requires=Role.ROOT
        )
    return list(keys_by_id.values())
